"""Radiographs by a path, as every command line takes them: a folder, or a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kecae_aug.data.folder import RadiographFolder, Radiographs
from kecae_aug.data.table import RadiographTable, read_table


def open_radiographs(source: str | Path, split: str | None = None, **options: Any) -> Radiographs:
    """A :class:`RadiographTable` of a ``.csv`` file, else a :class:`RadiographFolder`.

    Args:
        source: the table or the folder.
        split: rows of this split, or its subfolder; None for all rows, or where there are no such subfolders.
        options: ``grades``, ``preprocessing``, ``transform``, ``on_bad``, as of both; or what only one of them takes.

    Raises:
        FileNotFoundError, ValueError, PatientOverlapError: as of both.
    """
    kind = RadiographTable if is_table(source) else RadiographFolder
    return kind(source, split=split, **options)


def has_split(source: str | Path, split: str) -> bool:
    """Whether a folder has this subfolder, or a table rows of this split."""
    if is_table(source):
        return any(line["split"] == split for line in read_table(Path(source), {}, []))
    return (Path(source) / split).is_dir()


def is_table(source: str | Path) -> bool:
    """Whether a path is one of a table, by its name."""
    return Path(source).suffix.lower() == ".csv"
