"""Checks of values that came out of a file: each says where, what was found and what is accepted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

_JSON = {list: "a list", dict: "an object"}


class FormatError(ValueError):
    """A file of a reader study that is not what it should be; the message says where and why."""


def shown(value: object) -> str:
    """A value for an error message, cut after 80 characters."""
    written = str(value) if isinstance(value, Exception) else repr(value)
    return written if len(written) <= 80 else written[:77] + "..."


def fields(value: Any, shape: type, where: str) -> dict[str, Any]:
    """The value, if it is an object with exactly the fields of a TypedDict, its containers being containers."""
    if not isinstance(value, dict):
        raise FormatError(f"{where}: {shown(value)}: accepted is an object")
    wanted = set(shape.__annotations__)
    missing, unknown = sorted(wanted - set(value)), sorted(set(value) - wanted)
    if missing or unknown:
        raise FormatError(
            f"{where}: fields missing: {missing}, unknown: {unknown}; another version, or edited"
        )
    for name, kind in shape.__annotations__.items():
        written = str(getattr(kind, "__forward_arg__", kind))
        container = list if written.startswith("list[") else dict if written.startswith("dict[") else None
        if container is not None and not isinstance(value[name], container):
            raise FormatError(f"{where}: {name}={shown(value[name])}: accepted is {_JSON[container]}")
        if written == "bool" and not isinstance(value[name], bool):
            raise FormatError(f"{where}: {name}={shown(value[name])}: accepted are true and false")
    return value


def whole(value: Any, low: int, high: int, where: str) -> None:
    """Refuse what is no integer from low to high; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise FormatError(f"{where}={shown(value)}: accepted are integers from {low} to {high}")


def one_of(value: Any, accepted: Sequence[str], where: str) -> None:
    """Refuse what is not in the list."""
    if not isinstance(value, str) or value not in accepted:
        raise FormatError(f"{where}={shown(value)}: accepted are {', '.join(map(repr, accepted))}")


def text(value: Any, where: str) -> None:
    """Refuse what is no text, or empty."""
    if not isinstance(value, str) or not value:
        raise FormatError(f"{where}={shown(value)}: accepted is text that is not empty")


def pattern(value: Any, accepted: re.Pattern[str], where: str) -> None:
    """Refuse what does not match as a whole."""
    if not isinstance(value, str) or not accepted.fullmatch(value):
        raise FormatError(f"{where}={shown(value)}: accepted is {accepted.pattern}")


def instant(value: Any, where: str) -> None:
    """Refuse what is no time in ISO 8601 and UTC."""
    try:
        offset = datetime.fromisoformat(value).utcoffset()
    except (TypeError, ValueError):
        offset = None
    if offset != timedelta(0):
        raise FormatError(f"{where}={shown(value)}: accepted is a time such as 2026-01-31T12:00:00Z")
