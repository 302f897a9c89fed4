"""What a map-style Dataset of somebody else's says about itself: classes, targets, patients, grey range.

Read part by part through ``Subset``, ``ConcatDataset`` and wrappers (:mod:`kecae_aug.data.parts`), so that a data set of
several clinics may list its classes in different orders.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch.utils.data import ConcatDataset

from kecae_aug.data.identity import differences, identity, other_preprocessing, preprocessing_of
from kecae_aug.data.parts import (
    Part,
    called,
    column,
    gives_its_labels,
    gives_its_rows,
    is_plain,
    item,
    linked,
    own_targets,
    parts,
    per_row,
    plain,
    split_item,
    stacked,
    targets_of,
    wrapped,
)
from kecae_aug.names import by_value, class_name, class_names, is_patient_key, patient_ids, warn_of_missing

__all__ = [
    "attribute", "differences", "identity", "item", "labels_of", "other_preprocessing", "patient_names", "roots_of",
    "split_item", "stacked", "value_range_of",
]  # fmt: skip

Names = tuple[str, ...]


def attribute(dataset: Any, name: str) -> list[Any] | None:
    """A list with an entry a row (``paths``, ...); None where a part has none."""

    def own(part: Any) -> list[Any] | None:
        values = getattr(part, name, None)
        return None if values is None else column(values, len(part), f"{name} of {called(part)}")

    return per_row(parts(dataset, own, gives_its_rows), len(dataset))


def roots_of(dataset: Any) -> list[Any]:
    """The different ``root`` folders of the parts; none where a part has none."""
    found = [part.value for part in parts(dataset, lambda one: getattr(one, "root", None))]
    return [] if any(root is None for root in found) else list(dict.fromkeys(found))


def labels_of(dataset: Any, classes: Sequence[str | int] | None = None) -> tuple[Names, list[int]]:
    """Class names in the order of the indices, and the class index of every row.

    Parts that list other classes, or the same ones in another order, are brought together by name. Targets are read from
    ``.targets``, or from every item where a part has none; class names among them are taken by name.

    Args:
        dataset: any map-style Dataset.
        classes: all names that the data set has, and maybe more, in the order of the indices that come out; or new names
            for its classes, one each; of a data set without ``.classes`` the names of its label indices. By default the
            data set's own: of parts that differ all of them, numbers by value.

    Raises:
        ValueError: no classes, parts that cannot be brought together, a label that is missing or no index of a class.
    """
    found = parts(dataset, own_targets, gives_its_labels)
    values = [
        [(w, plain(item(p.owner, r)[1] if p.value is None else p.value[r])) for w, r in p.rows] for p in found
    ]
    lists = [_class_list(part) for part in found]
    unlisted = [
        f"part {i} ({called(part.owner)})"
        for i, part in enumerate(found)
        if lists[i] is None and not all(isinstance(v, str) for _, v in values[i])
    ]
    given = None if classes is None else class_names(classes)
    if given is None and isinstance(dataset, ConcatDataset) and getattr(dataset, "classes", None) is not None:
        given = _own_classes(dataset)
    names, own, new = _brought_together(dataset, given, lists, unlisted)
    at = {name: i for i, name in enumerate(names)}
    targets = [0] * len(dataset)
    for part_names, labels in zip(own, values, strict=True):
        for row, value in labels:
            name = part_names[_index(value, part_names, row)]
            targets[row] = at[new.get(name, name)]
    return names, targets


def _brought_together(
    dataset: Any, given: Names | None, lists: list[Names | None], unlisted: list[str]
) -> tuple[Names, list[Names], dict[str, str]]:
    """Names of all classes, those that each part's indices are of, and new names for some."""
    present = list(dict.fromkeys(one for one in lists if one is not None))
    all_of_them = tuple(sorted({name for one in present for name in one}, key=by_value))
    if given is None:
        if not present:
            raise ValueError(
                f"classes: {called(dataset)} has no .classes; give their names in the order of the label indices, "
                "for instance classes=('0', '2')"
            )
        if unlisted:
            raise ValueError(
                f"classes: {', '.join(unlisted)} has no .classes beside parts that have; give it a list, so that labels "
                "can be told by name"
            )
        names = present[0] if len(present) == 1 else all_of_them
        return names, [one or names for one in lists], {}
    new: dict[str, str] = {}
    if not set(all_of_them) <= set(given):
        moved = any(name in given and given.index(name) != i for i, name in enumerate(present[0]))
        if len(present) > 1 or moved or len(present[0]) != len(given):
            missing = [name for name in all_of_them if name not in given] or list(all_of_them)
            who = "the parts of the data set have" if len(present) > 1 else "the data set has"
            raise ValueError(
                f"classes={given}: {who} {missing} too; give all of its names "
                f"{present[0] if len(present) == 1 else all_of_them}, or leave classes out. To rename its classes "
                "give a new name for each"
            )
        new = dict(zip(present[0], given, strict=True))
    return given, [one or given for one in lists], new


def _class_list(part: Part) -> Names | None:
    """The names that a part's labels are indices of: those of the outermost data set that has any."""
    own = [
        names
        for one in part.chain
        if not isinstance(one, ConcatDataset)
        if (names := _own_classes(one)) is not None
    ]
    if own:
        return own[0]
    inner, owner = wrapped(part.owner), part.owner
    if inner is not None and part.value is not None and (link := linked(owner, inner)) is not None:
        known = targets_of(
            inner
        )  # a wrapper that lists other targets than what it wraps has other classes, too
        if known is not None and all(
            plain(known[i]) == plain(v) for i, v in zip(link, part.value, strict=True)
        ):
            under = {one.value for one in parts(inner, _own_classes)}
            return under.pop() if len(under) == 1 else None
    around = (_own_classes(one) for one in reversed(part.chain) if isinstance(one, ConcatDataset))
    return next((names for names in around if names is not None), None)


def _own_classes(dataset: Any) -> Names | None:
    """``dataset.classes``, in accord with torchvision's ``class_to_idx``.

    Raises:
        ValueError: names that are missing or double, or an accord that is none.
    """
    found, places = getattr(dataset, "classes", None), getattr(dataset, "class_to_idx", None)
    places = places if isinstance(places, Mapping) else None
    if found is None and places is not None:
        found = sorted(places, key=lambda name: places[name])
    if found is None or callable(found):
        return None
    what = f"{called(dataset)}.classes"
    if isinstance(found, Mapping):
        raise ValueError(f"{what}: got a dict, accepted is a list of names in the order of the label indices")
    if _changes_targets(dataset):
        return None
    names = class_names(found.tolist() if hasattr(found, "tolist") else found, what)
    if places is not None and [places.get(name) for name in found] != list(range(len(names))):
        raise ValueError(
            f"{what}: {names} is not the order of its class_to_idx {dict(places)}; make them agree"
        )
    return names


def _changes_targets(dataset: Any) -> bool:
    """Whether torchvision's ``target_transform`` makes other labels than those that ``.classes`` is of."""
    before = getattr(dataset, "targets", None)
    if not callable(getattr(dataset, "target_transform", None)) or before is None:
        return False
    after = own_targets(dataset) or []
    return any(plain(a) != plain(b) for a, b in zip(before, after, strict=True))


def _index(value: Any, names: Names, row: int) -> int:
    """A label as an index into ``names``."""
    if isinstance(value, (str, bytes)) and class_name(value) in names:
        return names.index(str(class_name(value)))
    label = int(value) if isinstance(value, float) and value.is_integer() else value
    whole = hasattr(label, "__index__") and not isinstance(label, bool)
    if not whole or not 0 <= int(label) < len(names):
        why = f"a missing label ({value})" if not whole and class_name(value) is None else repr(value)
        raise ValueError(
            f"labels: row {row} has {why}, accepted are class indices from 0 to {len(names) - 1}, or names, of "
            f"classes={names}"
        )
    return int(label)


def patient_names(
    dataset: Any, patients: Sequence[Hashable] | None, *, warn: bool = True
) -> list[str | None] | None:
    """Patient id of every row (:func:`kecae_aug.names.patient_id`): as given, or the data set's own, or None.

    Read is ``.patients``, or an attribute named alike (``patient_ids``, ``subject_id``, ``pid``, ..., see
    :func:`kecae_aug.names.is_patient_key`). Where a part has none, its rows have None, and a warning counts them.

    Raises:
        ValueError: not one id a row.
    """
    if patients is not None:
        values = column(patients, len(dataset), "patients", "ids")
    else:
        found = parts(dataset, _own_patients, gives_its_rows)
        for part in found:
            if part.hidden is not None:
                warnings.warn(
                    f"patients: {called(part.owner)} has none, and which rows of the {called(part.hidden)} under it (which "
                    "has) it gives is not to be seen; give patients=, or .indices, or two knees of one person may exchange "
                    "keys",
                    stacklevel=4,
                )
        if all(part.value is None for part in found):
            _tell_of_patients_in_items(dataset)
            return None
        values = [None] * len(dataset)
        for part in found:
            for whole, row in part.rows if part.value is not None else ():
                values[whole] = part.value[row]
    ids = patient_ids(values)
    if warn:
        warn_of_missing(ids, f"patients of {called(dataset)}")
    return ids


def _own_patients(dataset: Any) -> list[Any] | None:
    """The column of a data set's own that has the patients."""
    values = getattr(dataset, "patients", None)
    if values is not None and not callable(values):
        return column(values, len(dataset), f"patients of {called(dataset)}", "ids")
    for name in dir(dataset):
        if name.startswith("_") or name == "patients" or not is_patient_key(name):
            continue
        values = getattr(dataset, name, None)
        if (
            values is None
            or callable(values)
            or not hasattr(values, "__len__")
            or isinstance(values, (str, bytes))
        ):
            continue
        if len(values) == len(dataset) and not isinstance(values, Mapping):
            return column(values, len(dataset), f"{name} of {called(dataset)}")
        warnings.warn(
            f"patients: {called(dataset)}.{name} is not one id for each of its {len(dataset)} rows and is passed over; give "
            "patients= if it has them",
            stacklevel=6,
        )
    return None


def _tell_of_patients_in_items(dataset: Any) -> None:
    first = dataset[0] if len(dataset) else None
    names = list(first) if isinstance(first, Mapping) else getattr(first, "_fields", ())
    where = next((repr(name) for name in names if is_patient_key(name)), None)
    if isinstance(first, (tuple, list)) and not names and len(first) > 2:
        third = plain(first[2])
        where = f"their third entry ({third!r}), if these are patients" if isinstance(third, str) else where
    if where is not None:
        warnings.warn(
            f"patients: items of {called(dataset)} hold them as {where}, which is not read from every image; give "
            "patients=, or the data set an attribute .patients, or two knees of one person may exchange keys",
            stacklevel=4,
        )


def value_range_of(dataset: Any, given: tuple[float, float] | None) -> tuple[float, float]:
    """As given; what the data set declares, as those of this package do; (0, 1) otherwise.

    Raises:
        ValueError: parts that declare different ranges, or that were preprocessed differently; a wrapper that seems to have
            changed the range of what it wraps.
    """
    if dataset is None:
        return given or (0.0, 1.0)
    found = parts(dataset, lambda part: getattr(part, "value_range", None))
    ranges = [(0.0, 1.0) if p.value is None else (float(p.value[0]), float(p.value[1])) for p in found]
    if len(set(ranges)) > 1:
        raise ValueError(
            f"value_range: the parts of the data set have others ({_listed(found, ranges)}); bring them to one range "
            "(a part that declares none is taken for (0, 1); give it .value_range)"
        )
    ways = [p for p in parts(dataset, preprocessing_of) if p.value is not None]
    other = next((p for p in ways if p.value != ways[0].value), None)
    if other is not None:
        raise ValueError(
            "preprocessing: the parts of the data set differ in it "
            f"({differences(ways[0].value, other.value)}); prepare them "
            "alike"
        )
    if given is None:
        for part, value_range in zip(found, ranges, strict=True):
            _check_wrapper(dataset, part, value_range)
    return given or (ranges[0] if ranges else (0.0, 1.0))


def _check_wrapper(dataset: Any, part: Part, value_range: tuple[float, float]) -> None:
    """Values from 0 on fit into a range from -1 on, but as other greys."""
    own = [one for one in part.chain[:-1] if not is_plain(one) and not isinstance(one, ConcatDataset)]
    if not own or value_range[0] >= 0 or not part.rows:
        return
    for i in (0, len(part.rows) // 2, -1):
        whole, row = part.rows[i]
        given, under = item(dataset, whole)[0], item(part.owner, row)[0]
        if not given.is_floating_point() or float(given.min()) < 0 or float(under.min()) >= 0:
            return
    raise ValueError(
        f"value_range: {called(own[-1])} declares none, the {called(part.owner)} under it {value_range}, but no value of "
        "its images is below 0: it seems to change the range; give value_range="
    )


def _listed(found: list[Part], ranges: list[tuple[float, float]]) -> str:
    return ", ".join(
        f"part {i} ({called(p.owner)}) {r}" for i, (p, r) in enumerate(zip(found, ranges, strict=True))
    )
