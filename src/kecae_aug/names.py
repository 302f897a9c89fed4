"""One spelling for each class and each patient, wherever they come from: tables, folders, batches, arguments.

``2``, ``2.0``, ``"2"`` and ``"2.0"`` are one grade; NaN, None, ``""`` and what pandas writes for them are none. Every
reader of classes or patients goes through the functions here.
"""

from __future__ import annotations

import math
import numbers
import re
import warnings
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

# What pandas.read_csv takes for missing, and "nan" in any case. Not "none": "none, mild, severe" are grades.
MISSING = frozenset(
    [
        "",
        "None",
        "<NA>",
        "NaT",
        "N/A",
        "n/a",
        "NA",
        "NULL",
        "null",
        "#N/A",
        "#N/A N/A",
        "#NA",
        "1.#IND",
        "-1.#IND",
    ]
)
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
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
_WHOLE = re.compile(r"([+-]?[0-9]+)\.0*")


def class_name(value: Any) -> str | None:
    """The one spelling of a class; None where it is missing.

    Args:
        value: text, a number, a 0-d tensor or array, or a missing value.

    Returns:
        Text without surrounding white space; numbers, also as text, by their value: ``"2"`` for 2, 2.0, "2.0" and
        "02", ``"2.5"`` for 2.50.
    """
    text = _text(value)
    if text is None or not _NUMBER.fullmatch(text):
        return text
    number = Decimal(text)
    whole = number.to_integral_value()
    return str(int(whole)) if number == whole else format(number.normalize(), "f")


def class_names(values: Iterable[Any], what: str = "classes") -> tuple[str, ...]:
    """Names of all classes, in the order given.

    Args:
        values: names or numbers, see :func:`class_name`.
        what: the argument, for the error.

    Raises:
        ValueError: one text in place of several, a missing name, or one that occurs twice (also as ``"2"`` and ``"2.0"``).
    """
    if isinstance(values, (str, bytes)):
        raise ValueError(f"{what}={values!r}: accepted is a sequence of names, such as ('0', '2')")
    given = list(values)
    names = [class_name(value) for value in given]
    missing = [value for value, name in zip(given, names, strict=True) if name is None]
    if missing:
        raise ValueError(
            f"{what}={given}: {missing} {'is a missing value' if len(missing) == 1 else 'are missing values'}, not a class; "
            "accepted are names or numbers"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{what}={given}: accepted are different names (2, 2.0 and '2' are one)")
    return tuple(str(name) for name in names)


def by_value(name: str) -> tuple[int, Decimal, str]:
    """Sort key of class names: numbers by value, then text; the same in every process."""
    return (0, Decimal(name), name) if _NUMBER.fullmatch(name) else (1, Decimal(0), name)


def patient_id(value: Any) -> str | None:
    """The one spelling of a patient's id; None where it is missing.

    Args:
        value: text, a number, a 0-d tensor or array, or a missing value.

    Returns:
        ``"9001"`` for 9001, 9001.0, "9001" and "9001.0". Text keeps its leading zeros: "0012" is not "12"
        (:func:`patient_ids` warns where both occur).
    """
    text = _text(value)
    if text is None:
        return None
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def is_patient_key(name: Any) -> bool:
    """Whether an entry or attribute of this name holds patients, in any case, with or without ``_`` and ``-``."""
    return isinstance(name, str) and re.sub(r"[\s_-]", "", name.casefold()) in PATIENT_KEYS


def patient_ids(values: Iterable[Any]) -> list[str | None]:
    """The ids of all rows, None where one is missing; warns where "0012" and "12" both occur."""
    ids = [patient_id(value) for value in values]
    warn_of_zeros(ids)
    return ids


def warn_of_zeros(ids: Iterable[str | None]) -> bool:
    """Warn, and say so, where ids differ by leading zeros only: a table that went through numbers has lost them."""
    found = {i for i in ids if i is not None}
    padded = sorted(
        i for i in found if i.startswith("0") and i.isdecimal() and (i.lstrip("0") or "0") in found - {i}
    )
    if padded:
        shown = ", ".join(f"{i!r} and {(i.lstrip('0') or '0')!r}" for i in padded[:3])
        warnings.warn(
            f"patients: {shown}{', ...' if len(padded) > 3 else ''} are taken for different patients; if they are the same, "
            "a source has lost leading zeros (read its column as text)",
            stacklevel=3,
        )
    return bool(padded)


def warn_of_missing(ids: Sequence[str | None], where: str) -> None:
    """The one rule for a row whose patient is missing: a patient of its own, and a warning that counts them."""
    missing = sum(i is None for i in ids)
    if missing:
        warnings.warn(
            f"{where}: {missing} of {len(ids)} rows have no patient; each counts as a patient of its own, so that two knees "
            "of one person may exchange keys. Give every row's patient, or same_patient=True if that is what you want",
            stacklevel=3,
        )


def _text(value: Any) -> str | None:
    """Text of a scalar without surrounding white space; None for every kind of missing value."""
    if hasattr(value, "ndim") and hasattr(value, "item") and math.prod(value.shape) == 1:
        value = value.reshape(-1)[0]
        value = (
            value.item() if hasattr(value, "numel") else value
        )  # numpy's scalars keep their own short text
    text = value.decode(errors="replace") if isinstance(value, bytes) else str("" if value is None else value)
    text = text.strip()
    if text in MISSING or text.casefold() in ("nan", "-nan"):
        return None
    if isinstance(value, numbers.Real) and "e+" in text:
        return format(Decimal(text), "f")  # 1e+20 as a number; as text it may be a name
    return text
