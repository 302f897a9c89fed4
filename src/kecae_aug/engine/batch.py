"""How a batch comes in and goes out: arguments, lists, tuples, dicts or any nesting of them, with images and labels."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from kecae_aug.names import patient_id

IMAGE_KEYS = ("image", "images", "img", "pixel_values")
LABEL_KEYS = ("label", "labels", "target", "targets")
PATIENT_KEYS = (
    "patient",
    "patients",
    "patientid",
    "patientids",
    "subject",
    "subjects",
    "subjectid",
    "subjectids",
    "pid",
    "pids",
)
WHAT_IS_ACCEPTED = (
    "accepted are (images, labels), [images, labels, patients] and {'image': images, 'label': labels}; for other nestings "
    "give labels_getter"
)


Path = tuple[Any, ...]  # keys and positions on the way to an entry of a nested batch


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

    def rebuild(self, images: Tensor, labels: Tensor, rows: Tensor | None = None) -> Any:
        """The structure with other images and labels.

        With ``rows``, every other entry that has a row for each image gets these rows again; without, it stays.
        """
        new = dict(zip(self.places, (images, labels), strict=True))
        return _rebuilt(
            self.structure, (), new, lambda v: v if rows is None else _more(v, rows, self.n, self.left)
        )


def parse(inputs: tuple[Any, ...], labels_getter: Callable[[Any], Any] | None = None) -> Batch:
    """Find images and labels in what a transform was called with; no value is looked at.

    Raises:
        TypeError: another structure, or entries that are not tensors.
        ValueError: keys that are missing or ambiguous.
    """
    structure = inputs[0] if len(inputs) == 1 else inputs
    places: tuple[Path, Path]
    if labels_getter is not None:
        places = _by_getter(structure, labels_getter)
    elif len(inputs) == 1 and isinstance(structure, Mapping):
        places = (find_key(structure, "image", IMAGE_KEYS),), (find_key(structure, "label", LABEL_KEYS),)
    elif len(inputs) == 2 or (len(inputs) == 1 and isinstance(structure, (list, tuple))):
        if len(structure) < 2:
            raise TypeError(
                f"batch: got a {type(structure).__name__} of {len(structure)}; {WHAT_IS_ACCEPTED}"
            )
        places = (0,), (1,)
    elif len(inputs) == 1:
        raise TypeError(
            f"KeyExchangeAugment got a {type(structure).__name__} alone: it exchanges keys between knees of different "
            f"labels and needs the labels too; {WHAT_IS_ACCEPTED}"
        )
    else:
        raise TypeError(
            f"KeyExchangeAugment got {len(inputs)} arguments (patients go into patients=); {WHAT_IS_ACCEPTED}"
        )
    names = [
        str(path[0]) if isinstance(structure, Mapping) else what
        for path, what in zip(places, _WHAT, strict=True)
    ]
    images, labels = (_tensor(name, _at(structure, path)) for name, path in zip(names, places, strict=True))
    return Batch(images, labels, structure, places)


_WHAT = ("images", "labels")


def _by_getter(structure: Any, getter: Callable[[Any], Any]) -> tuple[Path, Path]:
    labels = _tensor("labels_getter", getter(structure))
    leaves = list(_leaves(structure))
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


def _children(value: Any) -> list[tuple[Any, Any]]:
    """(key, entry) of a dict or namedtuple, (position, entry) of a list or tuple; none of anything else."""
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, (list, tuple)) else []


def _at(structure: Any, path: Path) -> Any:
    for key in path:
        structure = structure[key]
    return structure


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if not isinstance(value, (Mapping, list, tuple)):
        yield path, value
    for key, part in _children(value):
        yield from _leaves(part, (*path, key))


@dataclass
class Ids:
    """An entry that may have the patients.

    Attributes:
        name: for words about it.
        values: of the entry; tensors on the CPU by the time that :func:`chosen` looks at them.
        sure: whether it must have them, so that other shapes are refused; otherwise it is passed over.
        guessed: by its place alone, and so only where it looks like ids.
    """

    name: str
    values: Any
    sure: bool = False
    guessed: bool = False

    def __post_init__(self) -> None:
        values = self.values
        if isinstance(values, (list, tuple)) and values and all(_is_number(v) for v in values):
            self.values = torch.stack(
                [v.as_subclass(Tensor).reshape(()) for v in values]
            )  # one transfer, not B


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0


def patient_entries(batch: Batch) -> list[Ids]:
    """Entries that may have the patients, best first; no value is looked at.

    By name (:func:`is_patient_key`), from the top down: of dicts, namedtuples, lists with a dict for each image and the
    ``meta`` of MONAI's tensors. Then the third of a plain list or tuple.
    """
    found: list[Ids] = []
    level, top = [batch.structure], True
    while level:
        below: list[Any] = []
        for part in level:
            for name, value in _named(part):
                if is_patient_key(name) and value is not None and not isinstance(value, Mapping):
                    found.append(Ids(str(name), value, sure=top))
                else:
                    below.append(value)
        level, top = below, False
    structure = batch.structure
    if isinstance(structure, (list, tuple)) and not hasattr(structure, "_fields") and len(structure) > 2:
        found.append(Ids("the third entry of the batch", structure[2], guessed=True))
    return found


def _named(value: Any) -> list[tuple[Any, Any]]:
    """Named entries, and what may have some."""
    if fields := getattr(value, "_fields", None):  # a namedtuple's
        return list(zip(fields, value, strict=True))
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        return [(k, [row.get(k) for row in value]) for k in value[0] if is_patient_key(k)]
    if isinstance(value, Tensor):  # MONAI's
        return _named(getattr(value, "meta", None)) if getattr(value, "is_batch", False) else []
    return _children(value)


def is_patient_key(name: Any) -> bool:
    """Whether an entry or attribute of this name holds patients, in any case, with or without ``_`` and ``-``."""
    return isinstance(name, str) and re.sub(r"[\s_-]", "", name.casefold()) in PATIENT_KEYS


def chosen(entries: list[Ids], n: int) -> tuple[Any, dict[str, str]]:
    """Of the entries with an id for each of n rows the first, or None; and what must be said of the others.

    Raises:
        ValueError: an entry that must have the ids has not one a row.
    """
    said: dict[str, str] = {}
    usable: list[Ids] = []
    for entry in entries:
        if entry.sure or is_one_a_row(entry.values, n, whole=entry.guessed):
            usable.append(entry)
        elif not entry.guessed:
            said["passed over"] = (
                f"patients: the batch's {entry.name!r} is not one id for each of the {n} rows and is passed over; give "
                "patients= if it has them"
            )
    if not usable:
        return None, said
    first, *others = usable
    if not is_one_a_row(first.values, n):
        shape = f" of shape {tuple(first.values.shape)}" if hasattr(first.values, "shape") else ""
        raise ValueError(
            f"patients: the batch's {first.name!r} is a {type(first.values).__name__}{shape}, accepted is one id for each "
            f"of the {n} rows; give patients= if they are elsewhere, or rename the entry if it does not have them"
        )
    groups = _groups(first.values)
    named = [e for e in others if not e.guessed and is_one_a_row(e.values, n)]
    other = next((e.name for e in named if _groups(e.values) != groups), None)
    if other is not None:
        said["ambiguous"] = (
            f"patients: the batch's {first.name!r} and {other!r} group its rows differently; {first.name!r} is taken, give "
            "patients= to choose"
        )
    return first.values, said


def is_one_a_row(value: Any, n: int, whole: bool = False) -> bool:
    """Whether a value has a scalar for each of n rows: (n,) numbers, or n texts, numbers, None or 0-d tensors.

    Args:
        value: on the CPU, where it is a tensor.
        n: rows.
        whole: whether floats must be whole numbers.
    """
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        kind = str(getattr(value, "dtype", ""))
        if tuple(value.shape) != (n,) or "bool" in kind or "complex" in kind:
            return False
        values = value.tolist()
    elif isinstance(value, (list, tuple)) and not hasattr(value, "_fields") and len(value) == n:
        values = list(value)
    else:
        return False
    return all(_is_id(v, whole) for v in values)


def _is_id(value: Any, whole: bool) -> bool:
    if isinstance(value, (float, np.floating)) and whole:
        return value != value or float(value).is_integer()
    if isinstance(value, (bool, np.bool_)):
        return False
    return (
        isinstance(value, (str, bytes, int, float, type(None), np.generic)) or getattr(value, "ndim", 1) == 0
    )


def _groups(values: Any) -> list[int]:
    """The rows by first occurrence of their id: equal where two columns group the rows alike."""
    known: dict[Any, int] = {}
    return [
        known.setdefault(patient_id(v), len(known))
        for v in (values.tolist() if hasattr(values, "tolist") else values)
    ]


def _rebuilt(value: Any, path: Path, new: Mapping[Path, Any], other: Callable[[Any], Any]) -> Any:
    """The structure with ``new`` at these places, and ``other`` of what holds none of them."""
    if path in new:
        return new[path]
    if not any(place[: len(path)] == path for place in new):
        return other(value)
    parts = {key: _rebuilt(part, (*path, key), new, other) for key, part in _children(value)}
    return (
        mapping_like(value, parts)
        if isinstance(value, Mapping)
        else sequence_like(value, list(parts.values()))
    )


def _more(value: Any, rows: Tensor, n: int, left: list[str]) -> Any:
    """A structure with ``rows`` added to whatever in it has one for each of the n images."""
    if isinstance(value, Tensor):
        return with_rows(value, rows, left) if value.ndim and len(value) == n else value
    if isinstance(value, np.ndarray):
        if not value.ndim or len(value) != n:
            return value
        join = np.ma.concatenate if isinstance(value, np.ma.MaskedArray) else np.concatenate
        return join([value, value[rows.numpy()]])
    if isinstance(value, Mapping):
        return mapping_like(value, {k: _more(v, rows, n, left) for k, v in value.items()})
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        if len(value) == n and not (hasattr(value, "_fields") or _is_columns(value, n)):
            return sequence_like(value, [*value, *(_copied(value[i]) for i in rows.tolist())])
        return sequence_like(value, [_more(v, rows, n, left) for v in value])
    if isinstance(value, (str, bytes, torch.Size)) or not hasattr(value, "__len__") or len(value) != n:
        return value
    if hasattr(value, "iloc"):  # pandas
        return value.iloc[[*range(n), *rows.tolist()]]
    left.append(type(value).__name__)
    return value


def _is_columns(values: Any, n: int) -> bool:
    """Whether n entries are columns of n rows each, as default_collate makes of n numbers or texts an image, not n rows."""
    return all(
        tuple(v.shape) == (n,)
        if isinstance(v, (Tensor, np.ndarray))
        else isinstance(v, (list, tuple)) and len(v) == n and all(isinstance(text, str) for text in v)
        for v in values
    )


def _copied(value: Any) -> Any:
    """A row of its own, so that whoever writes to it does not write to the host's."""
    if isinstance(value, Tensor):
        return like(value.as_subclass(Tensor).clone(), value)
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return mapping_like(value, {k: _copied(v) for k, v in value.items()})
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return sequence_like(value, [_copied(v) for v in value])
    return value


def mapping_like(like: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    """A mapping of the kind of ``like`` (BatchEncoding, OrderedDict, ...) with these values."""
    if type(like) is dict or not isinstance(like, MutableMapping):
        return values
    other = copy.copy(like)  # an OrderedDict, a BatchEncoding: with whatever else it holds
    other.update(values)
    return other


def sequence_like(like: Any, values: list[Any]) -> Any:
    """A list, tuple or namedtuple of the kind of ``like``."""
    if hasattr(like, "_fields"):  # a namedtuple takes its fields one by one
        return type(like)(*values)
    return values if type(like) is list else type(like)(values)


def with_rows(value: Tensor, rows: Tensor, left: list[str]) -> Tensor:
    """A tensor of B rows with these added, in the type, memory format and metadata that it came in."""
    plain = value.as_subclass(Tensor)
    return like(joined(plain, plain[sent(rows, plain.device)]), value, rows, left)


def joined(first: Tensor, second: Tensor) -> Tensor:
    """``torch.cat`` that keeps channels_last."""
    out = torch.cat([first, second])
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(first.ndim)
    if last is not None and first.is_contiguous(memory_format=last) and not first.is_contiguous():
        out = out.contiguous(memory_format=last)
    return out


def like(out: Tensor, value: Tensor, rows: Tensor | None = None, left: list[str] | None = None) -> Tensor:
    """In the container that came: a tv_tensor, MONAI's MetaTensor with its metadata, another subclass.

    Metadata is copied, since whoever writes to it would write to the caller's; with ``rows`` it is extended as the batch is.
    """
    if isinstance(value, tv_tensors.TVTensor):
        wrapped: Tensor = tv_tensors.wrap(out, like=value)
        return wrapped
    if type(value) is Tensor:
        return out
    other: Tensor = out.as_subclass(type(value))
    facts = copy.deepcopy(value.__dict__)
    if rows is not None and getattr(value, "is_batch", True):  # MONAI's may have one for all images
        facts = {k: _more(v, rows, len(value), [] if left is None else left) for k, v in facts.items()}
    other.__dict__.update(facts)
    return other


def sent(values: Tensor, device: torch.device) -> Tensor:
    """From the CPU to the device without waiting for it: of memory that is not pinned a copy may wait."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def find_key(batch: Mapping[str, Any], what: str, accepted: tuple[str, ...]) -> str:
    """The one key of a dict that is among those accepted."""
    found = [k for k in accepted if k in batch]
    if len(found) != 1:
        raise ValueError(
            f"{what}: the dict has the keys {list(batch)}, of which exactly one must be among {accepted}; found {found}. "
            "For other names give labels_getter, or rename the entries"
        )
    return found[0]


def _tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name}: got {type(value).__name__}, accepted is a batched torch.Tensor; call the transform on a batch, "
            "after collating (in the loop, or as collate_fn), not on single PIL or numpy images"
        )
    return value


def class_indices(labels: Tensor, rows: int, n_classes: int) -> tuple[Tensor, bool]:
    """Labels as (B,) int64 indices, and whether they came one-hot.

    Args:
        labels: on the CPU.
        rows: B.
        n_classes: K.

    Raises:
        ValueError: another shape or dtype, soft labels, or indices outside the classes.
    """
    if labels.ndim == 2:
        ones = (labels == 1).sum(1)
        if labels.shape != (rows, n_classes) or not bool(((ones == 1) & ((labels != 0).sum(1) == 1)).all()):
            raise ValueError(
                f"labels: got {tuple(labels.shape)} {labels.dtype} that are not one-hot rows of {n_classes} classes for "
                f"{rows} images; soft labels cannot be exchanged: put KeyExchangeAugment before MixUp and CutMix"
            )
        return labels.argmax(1), True
    if labels.ndim != 1 or len(labels) != rows:
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)} for {rows} images, accepted is ({rows},) or one-hot"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels: got {labels.dtype}, accepted are integer class indices, or one-hot rows")
    indices = labels.long()
    if rows and not (int(indices.min()) >= 0 and int(indices.max()) < n_classes):
        raise ValueError(
            f"labels: got values from {int(indices.min())} to {int(indices.max())}, accepted are 0 to {n_classes - 1}, "
            "indices into classes; for a data set with other labels give classes=dataset.classes"
        )
    return indices, False


def to_cpu(tensors: list[Tensor]) -> list[Tensor]:
    """The same values on the CPU, by one transfer from each device; those that are there already stay."""
    out = list(tensors)
    for device in {t.device for t in tensors if t.device.type != "cpu"}:
        there = [i for i, t in enumerate(tensors) if t.device == device]
        raw = [tensors[i].contiguous().flatten().view(torch.uint8) for i in there]
        parts = torch.cat(raw).cpu().split([len(r) for r in raw])
        for i, part in zip(there, parts, strict=True):
            out[i] = part.clone().view(tensors[i].dtype).view(tensors[i].shape)  # cloned to be aligned
    return out
