"""Canonical JSON and its hash, as page/hash.js has them: Python and JavaScript must agree to the byte.

:func:`canonical_json` is what ``JSON.stringify`` writes for sorted keys. It holds no floats: durations are whole
milliseconds, strengths percent.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


class FormatError(ValueError):
    """A file of a reader study that is not what it should be; the message says where and why."""


def canonical_json(value: Any) -> bytes:
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
    """SHA-256 of :func:`canonical_json`, 64 lower hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def add_hash(value: dict[str, Any], name: str = "sha256") -> dict[str, Any]:
    """A copy with the hash of all other fields in the field ``name``."""
    rest = {k: v for k, v in value.items() if k != name}
    return {**rest, name: digest(rest)}


def parse_json(raw: bytes, where: str) -> Any:
    """JSON as these files hold it: no floats, no field twice.

    Raises:
        FormatError: names ``where``.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a field stands twice in one object")
        return found

    def refuse(number: str) -> None:
        raise ValueError(f"{number} is no integer")

    try:
        return json.loads(raw, object_pairs_hook=unique, parse_float=refuse, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: no JSON of this package: {abbreviate(error)}") from None


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ValueError(f"canonical_json: a key {name!r}, accepted are strings")
            _check_plain(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner)
    elif not (value is None or isinstance(value, (str, int))):
        raise ValueError(
            f"canonical_json: {value!r} ({type(value).__name__}); accepted are integers, strings, booleans, null, "
            "lists and objects"
        )


def abbreviate(value: object) -> str:
    """A value for an error message, cut after 80 characters."""
    written = str(value) if isinstance(value, Exception) else repr(value)
    return written if len(written) <= 80 else written[:77] + "..."
