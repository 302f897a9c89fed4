"""Canonical JSON and its hash.

The page (JavaScript) and this package must agree on hashes to the byte, so :func:`canonical` is what
``JSON.stringify`` writes for sorted keys, and holds no floats: durations are whole milliseconds, strengths percent.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from kecae_training.reader_study.checking import FormatError, shown

_SURROGATE = re.compile("[\ud800-\udfff]")


def canonical(value: Any) -> bytes:
    """UTF-8 JSON without spaces, keys sorted by code point: the bytes that are hashed.

    Args:
        value: dicts with string keys, lists, strings, ints, bools and None.

    Raises:
        ValueError: a float or anything else; floats are written differently by different languages.
    """
    _check_plain(value)
    written = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    # As JSON.stringify: half of a surrogate pair is no character and has no UTF-8.
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", written).encode()


def digest(value: Any) -> str:
    """SHA-256 of :func:`canonical`, 64 lower hex digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def sealed(value: dict[str, Any], name: str = "sha256") -> dict[str, Any]:
    """A copy with the hash of all other fields in the field ``name``."""
    rest = {k: v for k, v in value.items() if k != name}
    return {**rest, name: digest(rest)}


def parse(raw: bytes, where: str) -> Any:
    """JSON as these files hold it: no floats, no field twice.

    Raises:
        FormatError: names ``where``.
    """
    try:
        return json.loads(raw, object_pairs_hook=_once, parse_float=_no_float, parse_constant=_no_float)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: no JSON of this package: {shown(error)}") from None


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ValueError(f"canonical: a key {name!r}, accepted are strings")
            _check_plain(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner)
    elif not (value is None or isinstance(value, (str, int))):
        raise ValueError(
            f"canonical: {value!r} ({type(value).__name__}); accepted are integers, strings, booleans, null, "
            "lists and objects"
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field stands twice in one object")
    return found


def _no_float(number: str) -> None:
    raise ValueError(f"{number} is no integer")
