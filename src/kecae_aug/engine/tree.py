"""Nested batches: their entries, the places of these, and rebuilding them.

``torch.utils._pytree`` takes registered types only: to it a BatchEncoding, an OrderedDict's subclass and any other Mapping
is a leaf. Here every Mapping, list and tuple has entries, and comes back as what it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

Path = tuple[Any, ...]  # keys and positions on the way to an entry


def list_entries(value: Any) -> list[tuple[Any, Any]]:
    """(key, entry) of a dict, (position, entry) of a list or tuple; none of anything else."""
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, (list, tuple)) else []


def list_named(value: Any) -> list[tuple[Any, Any, Any]]:
    """(key, name, entry): of a namedtuple's field the name is the field's, and the key its position."""
    names = getattr(value, "_fields", None)
    return [(key, names[key] if names else key, entry) for key, entry in list_entries(value)]


def get_at(structure: Any, path: Path) -> Any:
    """The entry at a place."""
    for key in path:
        structure = structure[key]
    return structure


def iterate_leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(place, leaf) of everything that has no entries, from left to right."""
    if not isinstance(value, (Mapping, list, tuple)):
        yield path, value
    for key, part in list_entries(value):
        yield from iterate_leaves(part, (*path, key))


def iterate_levels(structure: Any) -> Iterator[list[tuple[Path, Any]]]:
    """(place, container) of each level, from the top down."""
    level: list[tuple[Path, Any]] = [((), structure)]
    while level := [(path, part) for path, part in level if isinstance(part, (Mapping, list, tuple))]:
        yield level
        level = [((*path, key), entry) for path, part in level for key, entry in list_entries(part)]


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """The structure with ``function`` of every leaf."""
    if not isinstance(value, (Mapping, list, tuple)):
        return function(value)
    return rebuild_like(value, {key: map_leaves(function, part) for key, part in list_entries(value)})


def replace_at(value: Any, new: Mapping[Path, Any], other: Callable[[Any], Any], path: Path = ()) -> Any:
    """The structure with ``new`` at these places, and ``other`` of what holds none of them."""
    if path in new:
        return new[path]
    if not any(place[: len(path)] == path for place in new):
        return other(value)
    parts = {key: replace_at(part, new, other, (*path, key)) for key, part in list_entries(value)}
    return rebuild_like(value, parts)


def rebuild_like(value: Any, entries: Mapping[Any, Any]) -> Any:
    """A container of the kind of ``value`` (BatchEncoding, OrderedDict, namedtuple, ...) with other entries.

    Args:
        value: a Mapping, list or tuple.
        entries: by key or position, in order; of a list or tuple maybe more or fewer than it has.
    """
    if isinstance(value, Mapping):
        if type(value) is dict or not isinstance(value, MutableMapping):
            return dict(entries)
        other = copy.copy(value)  # an OrderedDict, a BatchEncoding: with whatever else it holds
        other.update(entries)
        return other
    values = list(entries.values())
    if hasattr(value, "_fields"):  # a namedtuple takes its fields one by one
        return type(value)(*values)
    return values if type(value) is list else type(value)(values)
