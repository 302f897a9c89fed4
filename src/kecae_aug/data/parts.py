"""Through Subset, ConcatDataset and wrappers of somebody's own to the data set that says something of its rows."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from kecae_aug.engine.batch import IMAGE_KEYS, LABEL_KEYS, find_key
from kecae_aug.names import class_name

MOST_PROBES = 16  # items that are read to see whether a wrapper changes labels or rows


class Part(NamedTuple):
    """Rows of a data set of which one and the same owner says something.

    Attributes:
        owner: who says it; the innermost data set where nobody does.
        value: what it says, or None.
        rows: (row of the whole data set, row of the owner).
        chain: the data sets from the outermost to the owner.
        hidden: a data set under the owner that says it, of rows which are not known.
    """

    owner: Any
    value: Any
    rows: list[tuple[int, int]]
    chain: tuple[Any, ...]
    hidden: Any = None


Say = Callable[[Any], Any]  # what a data set says by itself, or None
Trust = Callable[[Any, Any, Sequence[int]], bool]  # a wrapper, what it wraps, whose row each of its rows is


def find_parts(
    dataset: Any,
    say: Say,
    trust: Trust | None = None,
    rows: list[tuple[int, int]] | None = None,
    chain: tuple[Any, ...] = (),
) -> list[Part]:
    """Who says something of the rows of a data set, from the outside in.

    Args:
        dataset: map-style.
        say: the data set's own word, or None to ask what is under it.
        trust: whether a wrapper of somebody's own gives the rows of what it wraps unchanged, as far as ``say`` goes;
            None for what is said of a data set as a whole, whatever its rows.
        rows: (row of the whole, row here) to ask for; all by default.
        chain: the data sets outside.

    Raises:
        TypeError: no map-style data set.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(f"dataset: got {name_of(dataset)}, accepted is a map-style Dataset with a length")
    chain = (*chain, dataset)
    rows = [(i, i) for i in range(len(dataset))] if rows is None else rows
    value = say(dataset)
    if value is not None:
        return [Part(dataset, value, rows, chain)]
    if isinstance(dataset, ConcatDataset):
        ends = list(dataset.cumulative_sizes)
        groups: list[list[tuple[int, int]]] = [[] for _ in ends]
        for whole, row in rows:
            number = bisect.bisect_right(ends, row)
            groups[number].append((whole, row - (ends[number - 1] if number else 0)))
        inner_parts = zip(dataset.datasets, groups, strict=True)
        return [found for part, group in inner_parts for found in find_parts(part, say, trust, group, chain)]
    inner = unwrap(dataset)
    if inner is None:
        return [Part(dataset, None, rows, chain)]
    link = find_link(dataset, inner)
    if trust is None:
        return find_parts(inner, say, None, [] if link is None else [(w, link[r]) for w, r in rows], chain)
    if link is None or not (is_plain(dataset) or trust(dataset, inner, link)):
        said = any(part.value is not None for part in find_parts(inner, say, trust))
        return [Part(dataset, None, rows, chain, inner if said else None)]
    return find_parts(inner, say, trust, [(whole, link[row]) for whole, row in rows], chain)


def unwrap(dataset: Any) -> Any:
    """The data set that a wrapper holds: its ``.dataset``, or its one attribute that is a Dataset; None for others."""
    inner = getattr(dataset, "dataset", None)
    if inner is not None and not isinstance(inner, (str, bytes, list, tuple, Mapping, Tensor)):
        map_style = hasattr(inner, "__len__") and hasattr(inner, "__getitem__") and not hasattr(inner, "iloc")
        return inner if map_style else None
    held = [
        v
        for v in getattr(dataset, "__dict__", {}).values()
        if isinstance(v, Dataset) and hasattr(v, "__len__")
    ]
    return held[0] if len(held) == 1 else None


def find_link(dataset: Any, inner: Any) -> Sequence[int] | None:
    """Which row of ``inner`` each row of its wrapper is: by ``.indices``, or the same where both are of one length."""
    indices = getattr(dataset, "indices", None)
    n = len(inner)
    if indices is None:
        return range(n) if len(dataset) == n else None
    if len(indices) != len(dataset):
        return None
    link = [int(i) for i in indices]
    return [i % n for i in link] if all(-n <= i < n for i in link) else None


def is_plain(dataset: Any) -> bool:
    """Whether it is torch's own Subset, whose items are those of what it wraps."""
    return isinstance(dataset, Subset) and type(dataset).__getitem__ is Subset.__getitem__


def changing_wrappers(part: Part) -> list[Any]:
    """Wrappers of somebody's own around the owner, which may change its images."""
    return [one for one in part.chain[:-1] if not is_plain(one) and not isinstance(one, ConcatDataset)]


def gives_its_labels(dataset: Any, inner: Any, link: Sequence[int]) -> bool:
    """Whether a wrapper's items have the labels of what it wraps: a few of every class are looked at."""
    known = targets_of(inner)
    for row in _probes(dataset, link, known):
        other = _label_or_none(inner[link[row]]) if known is None else known[link[row]]
        if class_name(to_scalar(_label_or_none(dataset[row]))) != class_name(to_scalar(other)):
            return False
    return True


def gives_its_rows(dataset: Any, inner: Any, link: Sequence[int]) -> bool:
    """Whether the rows of a wrapper are those of what it wraps: known by ``.indices``, or seen in labels or images."""
    if getattr(dataset, "indices", None) is not None or gives_its_labels(dataset, inner, link):
        return True
    for row in _probes(dataset, link, None):
        try:
            image, other = image_of(dataset[row]), image_of(inner[link[row]])
        except ValueError:
            return False
        if not (isinstance(image, Tensor) and isinstance(other, Tensor) and torch.equal(image, other)):
            return False
    return True


def _probes(dataset: Any, link: Sequence[int], known: Sequence[Any] | None) -> list[int]:
    """The first row of every class, and first, middle and last."""
    n = len(dataset)
    firsts: dict[str, int] = {}
    for row in range(n) if known is not None else ():
        firsts.setdefault(str(to_scalar(known[link[row]])), row)  # type: ignore[index]
    return sorted({*list(firsts.values())[:MOST_PROBES], *({0, n // 2, n - 1} if n else ())})


def targets_of(dataset: Any) -> list[Any] | None:
    """The targets that a data set or what is under it lists, a row each; None where a part lists none."""
    return merge_columns(find_parts(dataset, own_targets, gives_its_labels), len(dataset))


def own_targets(dataset: Any) -> list[Any] | None:
    """``dataset.targets``, as its items have them.

    Raises:
        ValueError: not one a row.
    """
    values = getattr(dataset, "targets", None)
    if values is None or callable(values):
        return None
    found = to_column(values, len(dataset), f"targets of {name_of(dataset)}")
    change = getattr(dataset, "target_transform", None)  # torchvision's: targets are listed without it
    return [change(value) for value in found] if callable(change) else found


def merge_columns(found: list[Part], n: int) -> list[Any] | None:
    """The values of all rows in order, where each part has a column of them."""
    if any(part.value is None and part.rows for part in found):
        return None
    out: list[Any] = [None] * n
    for part in found:
        for whole, row in part.rows:
            out[whole] = part.value[row]
    return out


def to_column(values: Any, n: int, what: str, unit: str = "values") -> list[Any]:
    """A list of n from a list, tensor, array or Series (by position, whatever its index).

    Raises:
        ValueError: text, a dict, or another length.
    """
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):
        raise ValueError(f"{what}: got a {name_of(values)}, accepted is a list with one a row")
    if len(values) != n:
        raise ValueError(f"{what}: got {len(values)} {unit} for {n} rows, accepted is one a row")
    return values.tolist() if hasattr(values, "tolist") else list(values)


def to_scalar(value: Any) -> Any:
    """The scalar of a tensor or array of one element; others as they are."""
    one = isinstance(value, Tensor) and value.numel() == 1
    one = one or (not isinstance(value, Tensor) and hasattr(value, "item") and getattr(value, "size", 0) == 1)
    return value.item() if one else value


def label_of(row: Any) -> Any:
    """Label of an item, whatever its image is."""
    if isinstance(row, Mapping):
        return row[find_key(row, "label", LABEL_KEYS)]
    return row[1] if isinstance(row, (tuple, list)) and len(row) >= 2 else None


def _label_or_none(row: Any) -> Any:
    try:
        return label_of(row)
    except ValueError:  # a dict with other keys
        return None


def image_of(row: Any) -> Any:
    """Image of an item, of whatever kind."""
    if isinstance(row, Mapping):
        return row[find_key(row, "image", IMAGE_KEYS)]
    return row[0] if isinstance(row, (tuple, list)) and len(row) else None


def name_of(dataset: Any) -> str:
    """What to call somebody's data set in words."""
    return type(dataset).__name__


def read_item(dataset: Any, index: int) -> tuple[Tensor, Any]:
    """Image (C, H, W) and label of a row.

    Raises:
        TypeError: an item that is no pair, or whose image is no tensor.
        ValueError: an image of another rank.
    """
    return split_item(dataset[index], index)


def split_item(row: Any, index: int) -> tuple[Tensor, Any]:
    """Image and label of an item: (image, label, ...) or a dict."""
    if not isinstance(row, Mapping) and not (isinstance(row, (tuple, list)) and len(row) >= 2):
        raise TypeError(
            f"dataset[{index}]: got {name_of(row)}, accepted are (image, label) and {{'image': image, 'label': label}}"
        )
    image, label = image_of(row), label_of(row)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"dataset[{index}]: its image is a {name_of(image)}, accepted is a torch.Tensor (C, H, W); put "
            "v2.PILToTensor() (uint8) or v2.ToImage() into the data set's transform"
        )
    if image.ndim != 3:
        raise ValueError(
            f"dataset[{index}]: image of shape {tuple(image.shape)}, accepted is (1, H, W) or (3, H, W)"
        )
    return image.as_subclass(Tensor), label


def stack_images(images: Sequence[Tensor]) -> Tensor:
    """Images of one shape as a batch."""
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(
            f"dataset: images of different shapes ({', '.join(map(str, sorted(shapes)))}); resize them in its transform"
        )
    return torch.stack(list(images))
