"""What a map-style Dataset of somebody else's has beside its classes: columns, patients, grey range.

Read part by part through ``Subset``, ``ConcatDataset`` and wrappers (:mod:`kecae_aug.data.parts`).
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from kecae_aug.data.identity import differences, preprocessing_of
from kecae_aug.data.parts import (
    Part,
    changing_wrappers,
    find_parts,
    gives_its_rows,
    merge_columns,
    name_of,
    read_item,
    to_column,
    to_scalar,
)
from kecae_aug.names import is_patient_key, patient_ids, warn_of_missing


def attribute(dataset: Any, name: str) -> list[Any] | None:
    """A list with an entry a row (``paths``, ...); None where a part has none."""

    def own(part: Any) -> list[Any] | None:
        values = getattr(part, name, None)
        return None if values is None else to_column(values, len(part), f"{name} of {name_of(part)}")

    return merge_columns(find_parts(dataset, own, gives_its_rows), len(dataset))


def roots_of(dataset: Any) -> list[Any]:
    """The different ``root`` folders of the parts; none where a part has none."""
    found = [part.value for part in find_parts(dataset, lambda one: getattr(one, "root", None))]
    return [] if any(root is None for root in found) else list(dict.fromkeys(found))


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
        values = to_column(patients, len(dataset), "patients", "ids")
    else:
        found = find_parts(dataset, _own_patients, gives_its_rows)
        for part in found:
            if part.hidden is not None:
                warnings.warn(
                    f"patients: {name_of(part.owner)} has none, and which rows of the {name_of(part.hidden)} under it "
                    "(which has) it gives is not to be seen; give patients=, or .indices, or two knees of one person may "
                    "exchange keys",
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
        warn_of_missing(ids, f"patients of {name_of(dataset)}")
    return ids


def _own_patients(dataset: Any) -> list[Any] | None:
    """The column of a data set's own that has the patients."""
    values = getattr(dataset, "patients", None)
    if values is not None and not callable(values):
        return to_column(values, len(dataset), f"patients of {name_of(dataset)}", "ids")
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
            return to_column(values, len(dataset), f"{name} of {name_of(dataset)}")
        warnings.warn(
            f"patients: {name_of(dataset)}.{name} is not one id for each of its {len(dataset)} rows and is passed over; "
            "give patients= if it has them",
            stacklevel=6,
        )
    return None


def _tell_of_patients_in_items(dataset: Any) -> None:
    first = dataset[0] if len(dataset) else None
    names = list(first) if isinstance(first, Mapping) else getattr(first, "_fields", ())
    where = next((repr(name) for name in names if is_patient_key(name)), None)
    if isinstance(first, (tuple, list)) and not names and len(first) > 2:
        third = to_scalar(first[2])
        where = f"their third entry ({third!r}), if these are patients" if isinstance(third, str) else where
    if where is not None:
        warnings.warn(
            f"patients: items of {name_of(dataset)} hold them as {where}, which is not read from every image; give "
            "patients=, or the data set an attribute .patients, or two knees of one person may exchange keys",
            stacklevel=4,
        )


def value_range_of(dataset: Any, given: tuple[float, float] | None) -> tuple[float, float]:
    """As given; what the data set declares, as those of this package do; (0, 1) otherwise.

    Raises:
        ValueError: a given range other than what the data set itself, or the one under a Subset, declares; parts that
            declare different ranges, or that were preprocessed differently; a wrapper that seems to have changed the range
            of what it wraps.
    """
    if dataset is None:
        return given or (0.0, 1.0)
    found = find_parts(dataset, lambda part: getattr(part, "value_range", None))
    ranges = [(0.0, 1.0) if p.value is None else (float(p.value[0]), float(p.value[1])) for p in found]
    if len(set(ranges)) > 1:
        raise ValueError(
            f"value_range: the parts of the data set have others ({_list_ranges(found, ranges)}); bring them to one range "
            "(a part that declares none is taken for (0, 1); give it .value_range)"
        )
    ways = [p for p in find_parts(dataset, preprocessing_of) if p.value is not None]
    other = next((p for p in ways if p.value != ways[0].value), None)
    if other is not None:
        raise ValueError(
            "preprocessing: the parts of the data set differ in it "
            f"({differences(ways[0].value, other.value)}); prepare them "
            "alike"
        )
    for part, value_range in zip(found, ranges, strict=True):
        if given is None:
            _check_wrapper(dataset, part, value_range)
        elif part.value is not None and value_range != tuple(given) and not changing_wrappers(part):
            raise ValueError(
                f"value_range={tuple(given)}: {name_of(part.owner)} declares {value_range}; leave value_range out, or "
                "correct the data set's"
            )
    return given or (ranges[0] if ranges else (0.0, 1.0))


def _check_wrapper(dataset: Any, part: Part, value_range: tuple[float, float]) -> None:
    """Values from 0 on fit into a range from -1 on, but as other greys."""
    own = changing_wrappers(part)
    if not own or value_range[0] >= 0 or not part.rows:
        return
    for i in (0, len(part.rows) // 2, -1):
        whole, row = part.rows[i]
        given, under = read_item(dataset, whole)[0], read_item(part.owner, row)[0]
        if not given.is_floating_point() or float(given.min()) < 0 or float(under.min()) >= 0:
            return
    raise ValueError(
        f"value_range: {name_of(own[-1])} declares none, the {name_of(part.owner)} under it {value_range}, but no value of "
        "its images is below 0: it seems to change the range; give value_range="
    )


def _list_ranges(found: list[Part], ranges: list[tuple[float, float]]) -> str:
    return ", ".join(
        f"part {i} ({name_of(p.owner)}) {r}" for i, (p, r) in enumerate(zip(found, ranges, strict=True))
    )
