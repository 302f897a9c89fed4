"""How a batch comes in and goes out: arguments, lists, tuples, dicts or any nesting of them, with images and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torchvision import tv_tensors

from kecae_aug.engine.rows import add_rows
from kecae_aug.engine.tree import Path, get_at, iterate_leaves, iterate_levels, list_named, replace_at

IMAGE_KEYS = ("image", "images", "img", "pixel_values")
LABEL_KEYS = ("label", "labels", "target", "targets")
WHAT_IS_ACCEPTED = (
    "accepted are (images, labels), [images, labels, patients], {'image': images, 'label': labels} and nestings of them; "
    "where these names are others, give labels_getter"
)
LabelsGetter = Callable[[Any], Any] | Literal["default"] | None


@dataclass
class Batch:
    """A parsed batch.

    Attributes:
        images: (B, C, H, W), as it came.
        labels: (B,) or (B, K), as it came.
        structure: what came, with both in it.
        places: where images and labels stand in it.
        left: entries that might have B rows, but of a type that :meth:`rebuild` does not know to extend.
    """

    images: Tensor
    labels: Tensor
    structure: Any
    places: tuple[Path, Path]
    left: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        """B."""
        return len(self.images) if self.images.ndim else 0

    @property
    def container(self) -> Any:
        """What holds the images and the labels side by side; None where they are apart."""
        images, labels = self.places
        return get_at(self.structure, images[:-1]) if images[:-1] == labels[:-1] else None

    def rebuild(self, images: Tensor, labels: Tensor, rows: Tensor | None = None) -> Any:
        """The structure with other images and labels.

        With ``rows``, every other entry that has a row for each image gets these rows again; without, it stays.
        """
        new = dict(zip(self.places, (images, labels), strict=True))
        return replace_at(
            self.structure, new, lambda v: v if rows is None else add_rows(v, rows, self.n, self.left)
        )


def parse(inputs: tuple[Any, ...], labels_getter: LabelsGetter = "default") -> Batch:
    """Find images and labels in what a transform was called with; no value is looked at.

    Args:
        inputs: the arguments of the call.
        labels_getter: as of torchvision's MixUp.

    Raises:
        ValueError: another structure, keys that are missing or ambiguous, or entries that are not tensors.
    """
    if labels_getter is None:
        raise ValueError(
            "labels_getter=None: an exchange needs the labels; accepted are 'default' and a function from a batch to them"
        )
    if len(inputs) not in (1, 2):
        raise ValueError(
            f"KeyExchangeAugment got {len(inputs)} arguments (patients go into patients=); {WHAT_IS_ACCEPTED}"
        )
    structure = inputs[0] if len(inputs) == 1 else inputs
    find = _find_places if labels_getter == "default" else lambda s: _find_by_getter(s, labels_getter)
    places = find(structure)
    names = [
        str(path[0]) if isinstance(structure, Mapping) else what
        for path, what in zip(places, ("images", "labels"), strict=True)
    ]
    images, labels = (
        _check_tensor(name, get_at(structure, path)) for name, path in zip(names, places, strict=True)
    )
    return Batch(images, labels, structure, places)


def _find_places(structure: Any) -> tuple[Path, Path]:
    """By name in a dict or namedtuple, by position in a list or tuple, whichever is nearest to the top."""
    if not isinstance(structure, (Mapping, list, tuple)):
        raise ValueError(
            f"KeyExchangeAugment got a {type(structure).__name__} alone: it exchanges keys between knees of different "
            f"labels and needs the labels too; {WHAT_IS_ACCEPTED}"
        )
    for level in iterate_levels(structure):
        found = [places for path, part in level if (places := _find_within(path, part)) is not None]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"batch: {len(found)} entries of it could each be the batch; give the one that is meant, or labels_getter"
            )
    if isinstance(structure, Mapping):  # its error names the keys
        return (find_key(structure, "image", IMAGE_KEYS),), (find_key(structure, "label", LABEL_KEYS),)
    if len(structure) < 2:
        raise ValueError(f"batch: got a {type(structure).__name__} of {len(structure)}; {WHAT_IS_ACCEPTED}")
    return (0,), (1,)  # whose error names what is there instead of tensors


def _find_within(path: Path, part: Any) -> tuple[Path, Path] | None:
    """Images and labels of one container, or of the dicts in a pair; None where it does not hold both."""
    if isinstance(part, Mapping) and (set(IMAGE_KEYS) & set(part)) and (set(LABEL_KEYS) & set(part)):
        image, label = find_key(part, "image", IMAGE_KEYS), find_key(part, "label", LABEL_KEYS)
        return (*path, image), (*path, label)
    if isinstance(part, Mapping) or len(part) < 2:
        return None
    by_name = {
        what: [key for key, name, _ in list_named(part) if name in keys]
        for what, keys in (("image", IMAGE_KEYS), ("label", LABEL_KEYS))
    }
    if len(by_name["image"]) == len(by_name["label"]) == 1:  # of a namedtuple
        return (*path, by_name["image"][0]), (*path, by_name["label"][0])
    places = [
        _find_in_entry(entry, keys) for entry, keys in zip(part[:2], (IMAGE_KEYS, LABEL_KEYS), strict=True)
    ]
    if places[0] is None or places[1] is None:
        return None
    images = get_at(part[0], places[0])
    if path and not (
        isinstance(images, Tensor) and images.ndim == 4
    ):  # below the top any two tensors may be neighbours
        return None
    return (*path, 0, *places[0]), (*path, 1, *places[1])


def _find_in_entry(entry: Any, keys: tuple[str, ...]) -> Path | None:
    """() where the entry is a tensor itself, (key,) where it is a dict with one of these keys."""
    if isinstance(entry, Tensor):
        return ()
    found = [key for key in keys if isinstance(entry, Mapping) and isinstance(entry.get(key), Tensor)]
    return (found[0],) if len(found) == 1 else None


def _find_by_getter(structure: Any, getter: Callable[[Any], Any]) -> tuple[Path, Path]:
    labels = _check_tensor("labels_getter", getter(structure))
    leaves = list(iterate_leaves(structure))
    place = next((path for path, leaf in leaves if leaf is labels), None)
    if place is None:
        raise ValueError(
            "labels_getter: gave a tensor that is not in the batch; accepted is one that returns an entry of it"
        )
    marked = [path for path, leaf in leaves if isinstance(leaf, tv_tensors.Image)]
    images = marked or [
        path
        for path, leaf in leaves
        if isinstance(leaf, Tensor)
        and not isinstance(leaf, tv_tensors.TVTensor)
        and leaf.ndim == 4
        and path != place
    ]
    if len(images) != 1:
        raise ValueError(
            f"labels_getter: the batch has {len(images)} tensors (B, C, H, W) that could be its images, accepted is one; "
            "mark it as a tv_tensors.Image"
        )
    return images[0], place


def find_key(batch: Mapping[str, Any], what: str, accepted: tuple[str, ...]) -> str:
    """The one key of a dict that is among those accepted."""
    found = [k for k in accepted if k in batch]
    if len(found) != 1:
        raise ValueError(
            f"{what}: the dict has the keys {list(batch)}, of which exactly one must be among {accepted}; found {found}. "
            "For other names give labels_getter, or rename the entries"
        )
    return found[0]


def _check_tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name}: got {type(value).__name__}, accepted is a batched torch.Tensor; call the transform on a batch, "
            "after collating (in the loop, or as collate_fn), not on single PIL or numpy images"
        )
    return value
