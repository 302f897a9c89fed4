"""Flags of the commands as people type them, turned into what jsonargparse takes."""

from __future__ import annotations

import json
from collections.abc import Sequence


def join_lists(args: Sequence[str], *names: str) -> list[str]:
    """``--grades 0 2``, ``--grades [0, 2.0]`` and ``--grades=0,2`` as ``--grades ["0", "2.0"]``.

    Args:
        args: of the command line.
        names: the flags that take a list of classes.
    """
    result: list[str] = []
    left = list(args)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if name not in names:
            result.append(name + equals + value)
            continue
        values = [value] if equals else []
        while not equals and left and not left[0].startswith("--"):
            values.append(left.pop(0))
        texts = [text.strip(" \"'") for v in values for text in v.strip("[]() ").split(",")]
        result += [name, json.dumps([text for text in texts if text])]
    return result
