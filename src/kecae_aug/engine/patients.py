"""Who is who in a batch: the patients' ids, wherever they came with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kecae_aug.donors import ids_of
from kecae_aug.engine.batch import Batch
from kecae_aug.engine.tree import list_named
from kecae_aug.engine.warn import WarnOnce
from kecae_aug.names import is_patient_key, patient_id, warn_of_missing, warn_of_zeros


@dataclass
class Ids:
    """An entry that may have the patients.

    Attributes:
        name: for words about it.
        values: of the entry; tensors on the CPU by the time that :func:`choose_ids` looks at them.
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


def find_ids(batch: Batch) -> list[Ids]:
    """Entries that may have the patients, best first; no value is looked at.

    By name (:func:`kecae_aug.names.is_patient_key`), from the top down: of dicts, namedtuples, lists with a dict for
    each image and the ``meta`` of MONAI's tensors. Then the third of a plain list or tuple.
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
    around = batch.container
    if isinstance(around, (list, tuple)) and not hasattr(around, "_fields") and len(around) > 2:
        found.append(Ids("the third entry of the batch", around[2], guessed=True))
    return found


def _named(value: Any) -> list[tuple[Any, Any]]:
    """Named entries, and what may have some."""
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        return [(k, [row.get(k) for row in value]) for k in value[0] if is_patient_key(k)]
    if isinstance(value, Tensor):  # MONAI's
        return _named(getattr(value, "meta", None)) if getattr(value, "is_batch", False) else []
    return [(name, entry) for _, name, entry in list_named(value)]


def choose_ids(entries: list[Ids], n: int) -> tuple[Any, dict[str, str]]:
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


def read_ids(entries: list[Ids], n: int, warn: WarnOnce, given: bool = False) -> list[str | None] | None:
    """The id of each row; None for a batch without patients.

    Args:
        entries: of :func:`find_ids`, or the caller's own alone.
        n: rows of the batch.
        warn: of entries that are passed over or disagree, of lost zeros and of missing ids.
        given: whether the caller named the entry.
    """
    if given:
        values = entries[0].values if entries else None
    else:
        values, said = choose_ids(entries, n)
        warn.each(said)
    if values is None:
        return None
    ids = ids_of(values, n)
    if not warn.has("zeros") and warn_of_zeros(ids):
        warn.mark("zeros")
    if None in ids and not warn.has("missing"):
        warn.mark("missing")
        warn_of_missing(ids, "patients")
    return ids
