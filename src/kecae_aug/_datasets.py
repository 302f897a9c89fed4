"""What a map-style Dataset of somebody else's says about itself: classes, targets, patients, grey range, items.

Read through ``Subset``, ``ConcatDataset`` and wrappers that hold a ``.dataset``, row by row, so that the parts of a
data set of several clinics may list their classes in different orders.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from kecae_aug._batch import IMAGE_KEYS, LABEL_KEYS, find_key, is_patient_key
from kecae_aug.names import by_value, class_name, class_names, patient_ids, warn_of_missing


class Place(NamedTuple):
    """Where a row of a data set really stands: a leaf's number and the row there."""

    leaf: int
    row: int


def flattened(
    dataset: Any, says: Callable[[Any], bool] = lambda part: getattr(part, "targets", None) is not None
) -> tuple[list[Any], list[Place]]:
    """The data sets under Subset and ConcatDataset, and for each row its place in them.

    Args:
        dataset: map-style.
        says: whether a part tells by itself what is asked for, so that what is under it is not looked at.
    """
    if isinstance(dataset, ConcatDataset) and not says(dataset):
        leaves: list[Any] = []
        places: list[Place] = []
        for part in dataset.datasets:
            under, rows = flattened(part, says)
            places += [Place(len(leaves) + leaf, row) for leaf, row in rows]
            leaves += under
        return leaves, places
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(f"dataset: got {_called(dataset)}, accepted is a map-style Dataset with a length")
    indices = getattr(dataset, "indices", None)
    inner = getattr(dataset, "dataset", None)
    if inner is not None and indices is not None and len(indices) == len(dataset) and not says(dataset):
        leaves, places = flattened(inner, says)
        return leaves, [places[int(i)] for i in indices]
    return [dataset], [Place(0, row) for row in range(len(dataset))]


def leaf_attribute(leaf: Any, name: str) -> Any:
    """An attribute of a data set, or of what it wraps row by row (a ``.dataset`` of the same length)."""
    value = getattr(leaf, name, None)
    inner = getattr(leaf, "dataset", None)
    if value is not None or inner is None or not hasattr(inner, "__len__") or len(inner) != len(leaf):
        return value
    return leaf_attribute(inner, name)


def _listed(column: Any) -> Any:
    """A column of pandas, numpy or torch by position: ``series[row]`` would look the row up in the index."""
    return column.tolist() if hasattr(column, "tolist") else column


def attribute(dataset: Any, name: str) -> list[Any] | None:
    """A list with an entry a row (``paths``, ...); None where a part has none."""
    leaves, places = flattened(dataset, lambda part: getattr(part, name, None) is not None)
    values = [_listed(leaf_attribute(leaf, name)) for leaf in leaves]
    if any(v is None for v in values):
        return None
    return [values[leaf][row] for leaf, row in places]


def labels_of(dataset: Any, classes: Sequence[str | int] | None = None) -> tuple[tuple[str, ...], list[int]]:
    """Class names in the order of the indices, and the class index of every row.

    Parts of one data set that list other classes, or the same ones in another order, are brought together by name: then the
    classes are those given, or all of them, numbers by value.

    Args:
        dataset: any map-style Dataset.
        classes: names in the order of the label indices; by default ``dataset.classes``.

    Raises:
        ValueError: no classes, parts that cannot be brought together, a label that is missing or no index of a class.
    """
    leaves, places = flattened(dataset)
    found = [leaf_attribute(leaf, "classes") for leaf in leaves]
    lists = [
        None if f is None else class_names(f, f"{_called(leaf)}.classes")
        for f, leaf in zip(found, leaves, strict=True)
    ]
    given = None if classes is None else class_names(classes)
    whole = getattr(dataset, "classes", None)
    if given is None and whole is not None and dataset is not leaves[0]:
        given = class_names(whole, f"{_called(dataset)}.classes")
    if len(set(lists)) <= 1:  # one meaning of an index: the caller may name it anew
        names = given or (lists[0] if lists else None)
        if names is None:
            raise ValueError(
                f"classes: {_called(dataset)} has no .classes; give their names in the order of the label indices, "
                "for instance classes=('0', '2')"
            )
        own = [names] * len(leaves)
    else:
        without = [f"part {i} ({_called(leaf)})" for i, leaf in enumerate(leaves) if lists[i] is None]
        if without:
            raise ValueError(
                f"classes: {', '.join(without)} has no .classes beside parts that have; give it a list, so that labels "
                "can be told by name"
            )
        own = [part for part in lists if part is not None]
        names = given or tuple(sorted({name for part in own for name in part}, key=by_value))
        unknown = sorted({name for part in own for name in part} - set(names), key=by_value)
        if unknown:
            raise ValueError(
                f"classes={names}: the parts of the data set have {unknown} too; give all names, or leave classes out"
            )
    columns = [_listed(leaf_attribute(leaf, "targets")) for leaf in leaves]
    for leaf, column in zip(leaves, columns, strict=True):
        if column is not None and len(column) != len(leaf):
            raise ValueError(
                f"targets: {len(column)} for {len(leaf)} rows of {_called(leaf)}, accepted is one a row"
            )
    at = {name: i for i, name in enumerate(names)}
    targets = []
    for i, (leaf, row) in enumerate(places):
        column = columns[leaf]
        value = item(leaves[leaf], row)[1] if column is None else column[row]
        targets.append(at[own[leaf][_index(value, own[leaf], i)]])
    return names, targets


def _index(value: Any, names: tuple[str, ...], row: int) -> int:
    """A label as an index into ``names``."""
    label = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(label, str):
        name = class_name(label)
        if name in names:
            return names.index(name)
    elif isinstance(label, float) and label.is_integer():
        label = int(label)
    whole = hasattr(label, "__index__") and not isinstance(label, bool)
    if not whole or not 0 <= int(label) < len(names):
        why = "a missing label" if not isinstance(label, bool) and class_name(label) is None else repr(value)
        raise ValueError(
            f"labels: row {row} has {why}, accepted are class indices from 0 to {len(names) - 1}, of classes={names}"
        )
    return int(label)


def patient_names(dataset: Any, patients: Sequence[Hashable] | None) -> list[str | None] | None:
    """Patient id of every row (:func:`kecae_aug.names.patient_id`): as given, or the data set's own, or None.

    Read is ``.patients``, or an attribute named alike (``patient_ids``, ``subject_id``, ...). Where a part has none, its
    rows have None, and a warning counts them.
    """
    if patients is None:
        values = _patients_under(dataset)
        if values is None:
            _tell_of_patients_in_items(dataset)
            return None
    else:
        values = patients.tolist() if hasattr(patients, "tolist") else list(patients)
    if len(values) != len(dataset):
        raise ValueError(f"patients: got {len(values)} ids for {len(dataset)} rows, accepted is one id a row")
    ids = patient_ids(values)
    warn_of_missing(ids, f"patients of {_called(dataset)}")
    return ids


def _patients_under(dataset: Any) -> list[Any] | None:
    """The patient of every row, None for the rows of parts that have none; None where no part has any."""
    leaves, places = flattened(dataset, lambda part: _own_patients(part) is not None)
    columns = [_patients_of(leaf) for leaf in leaves]
    if all(column is None for column in columns):
        return None
    return [None if (column := columns[leaf]) is None else column[row] for leaf, row in places]


def _own_patients(leaf: Any) -> Sequence[Any] | None:
    """The column of a data set itself that has the patients."""
    names = ["patients", *(name for name in dir(leaf) if name != "patients" and is_patient_key(name))]
    for name in names:
        values = getattr(leaf, name, None)
        if (
            values is not None
            and hasattr(values, "__len__")
            and not isinstance(values, str)
            and len(values) == len(leaf)
        ):
            column: Sequence[Any] = _listed(values)
            return column
    return None


def _patients_of(leaf: Any) -> Sequence[Any] | None:
    """The column of a data set, or of what it wraps, that has the patients."""
    if (own := _own_patients(leaf)) is not None:
        return own
    inner: Any = getattr(leaf, "dataset", None)
    if not (hasattr(inner, "__len__") and hasattr(inner, "__getitem__")):
        return None
    under = _patients_under(inner)
    if under is None or len(inner) == len(leaf):
        return under
    warnings.warn(
        f"patients: {_called(leaf)} has none, and which rows of the {_called(inner)} under it (which has) it gives "
        "is not to be seen; give patients=, or .indices, or two knees of one person may exchange keys",
        stacklevel=4,
    )
    return None


def _tell_of_patients_in_items(dataset: Any) -> None:
    first = dataset[0] if len(dataset) else None
    if isinstance(first, Mapping) and any(is_patient_key(key) for key in first):
        key = next(key for key in first if is_patient_key(key))
        warnings.warn(
            f"patients: items of {_called(dataset)} hold them as {key!r}, which is not read from every image; give "
            "patients=, or the data set an attribute .patients, or two knees of one person may exchange keys",
            stacklevel=4,
        )


def value_range_of(dataset: Any, given: tuple[float, float] | None) -> tuple[float, float]:
    """As given; what the data set declares, as those of this package do; (0, 1) otherwise.

    Raises:
        ValueError: parts that declare different ranges, or that were preprocessed differently.
    """
    if dataset is None:
        return given or (0.0, 1.0)
    leaves, _ = flattened(dataset, lambda part: getattr(part, "value_range", None) is not None)
    ranges = [
        getattr(leaf, "value_range", None) for leaf in leaves
    ]  # of a wrapper its own: it may have changed them
    declared = {(float(r[0]), float(r[1])) if r is not None else (0.0, 1.0) for r in ranges}
    if len(declared) > 1:
        raise ValueError(
            f"value_range: the parts of the data set have {sorted(declared)}; bring them to one range (a part that "
            "declares none is taken for (0, 1); give it .value_range)"
        )
    ways = [_plain(way) for leaf in leaves if (way := leaf_attribute(leaf, "preparation")) is not None]
    if ways and (differ := differences(ways[0], next((w for w in ways if w != ways[0]), ways[0]))):
        raise ValueError(
            f"preparation: the parts of the data set differ in it ({differ}); prepare them alike"
        )
    return given or (declared.pop() if declared else (0.0, 1.0))


def identity(dataset: Any) -> dict[str, str]:
    """What a cache of a data set depends on, part by part, so that a cache of another one is refused with what differs.

    A data set's own ``identity()`` or ``fingerprint()`` is taken where it has one; of others a hash of labels, patients and
    three images. Of a Subset or ConcatDataset also which rows of which part.
    """
    leaves, places = flattened(dataset)
    parts: dict[str, str] = {}
    for i, leaf in enumerate(leaves):
        own = _own_identity(leaf)
        parts |= own if len(leaves) == 1 else {f"part {i} {k}": v for k, v in own.items()}
    if leaves != [dataset]:
        parts["rows"] = hashlib.sha256(json.dumps(places).encode()).hexdigest()
        parts["items"] = _pixels(dataset)  # a Subset of one's own may change what it gives
    return parts


def _pixels(dataset: Any) -> str:
    """Hash of three images as they are given."""
    digest = hashlib.sha256()
    for row in sorted({0, len(dataset) // 2, len(dataset) - 1}) if len(dataset) else ():
        digest.update(item(dataset, row)[0].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _own_identity(leaf: Any) -> dict[str, str]:
    if callable(own := getattr(leaf, "identity", None)):
        return {str(k): str(v) for k, v in own().items()}
    if callable(own := getattr(leaf, "fingerprint", None)):
        return {"fingerprint": str(own())}
    labels = _listed(leaf_attribute(leaf, "targets"))
    text = json.dumps([len(leaf), None if labels is None else [str(v) for v in labels], _pixels(leaf)])
    facts = {"labels and images": hashlib.sha256(text.encode()).hexdigest()}
    if is_dataclass(way := leaf_attribute(leaf, "preparation")):  # of what it wraps
        facts["preprocessing"] = json.dumps(_plain(way))
    return facts


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """``mirror_right was False, now True; ...``; empty where nothing differs."""
    return "; ".join(
        f"{key} was {_short(old.get(key))}, now {_short(new.get(key))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    )


def other_preprocessing(old: Mapping[str, str] | None, new: Any) -> str:
    """What differs in the preprocessing of an :func:`identity`, and of another one or of a data set.

    No file is read. Empty where nothing differs, or one of them has none to compare.
    """
    if not isinstance(new, Mapping):
        ways = [leaf_attribute(leaf, "preparation") for leaf in flattened(new)[0]]
        new = {
            f"{i} preprocessing": json.dumps(_plain(way)) for i, way in enumerate(ways) if is_dataclass(way)
        }
    first = [[v for k, v in (i or {}).items() if k.endswith("preprocessing")][:1] for i in (old, new)]
    return differences(*(json.loads(way[0]) for way in first)) if all(first) else ""


def _short(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else repr(value)  # a hash is cut


def _plain(way: Any) -> dict[str, Any]:
    return asdict(way) if is_dataclass(way) and not isinstance(way, type) else {"": repr(way)}


def _called(dataset: Any) -> str:
    return type(dataset).__name__


def item(dataset: Any, index: int) -> tuple[Tensor, Any]:
    """Image (C, H, W) and label of a row.

    Raises:
        TypeError: an item that is no pair, or whose image is no tensor.
        ValueError: an image of another rank.
    """
    return split_item(dataset[index], index)


def split_item(row: Any, index: int) -> tuple[Tensor, Any]:
    """Image and label of an item: (image, label, ...) or a dict."""
    if isinstance(row, Mapping):
        image, label = row[find_key(row, "image", IMAGE_KEYS)], row[find_key(row, "label", LABEL_KEYS)]
    elif isinstance(row, (tuple, list)) and len(row) >= 2:
        image, label = row[0], row[1]
    else:
        raise TypeError(
            f"dataset[{index}]: got {type(row).__name__}, accepted are (image, label) and "
            "{'image': image, 'label': label}"
        )
    if not isinstance(image, Tensor):
        raise TypeError(
            f"dataset[{index}]: its image is a {type(image).__name__}, accepted is a torch.Tensor (C, H, W); put "
            "v2.PILToTensor() (uint8) or v2.ToImage() into the data set's transform"
        )
    if image.ndim != 3:
        raise ValueError(
            f"dataset[{index}]: image of shape {tuple(image.shape)}, accepted is (1, H, W) or (3, H, W)"
        )
    return image.as_subclass(Tensor), label


def stacked(images: Sequence[Tensor]) -> Tensor:
    """Images of one shape as a batch."""
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(
            f"dataset: images of different shapes ({', '.join(map(str, sorted(shapes)))}); resize them in its transform"
        )
    return torch.stack(list(images))
