"""Radiographs by a table: a row for each image, whatever files and folders are called.

RadiographTable("knees.csv", split="train")
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from kecae_aug.data.preparation import Preparation
from kecae_aug.data.radiographs import SIDES, Radiographs, Row
from kecae_aug.data.reading import listed
from kecae_aug.data.splits import check_disjoint

COLUMNS = ("path", "label", "patient", "side", "split")


class RadiographTable(Radiographs):
    """A CSV file (UTF-8, commas) with a row for each image.

    Args:
        table: the CSV file, with a header.
        root: folder that relative paths start from; the table's own folder by default.
        split: keep the rows whose split column has this value; None keeps all.
        grades: as of :class:`RadiographFolder`.
        preparation: see :class:`Preparation`.
        transform: applied to the prepared image.
        columns: names of the columns where they are not ``path``, ``label``, ``patient``, ``side`` and
            ``split``; side (L, R, left, right or empty) and split may be absent.
        on_bad: as of :class:`RadiographFolder`.

    Raises:
        FileNotFoundError: no such table.
        ValueError: missing columns; rows without path, label or patient, whose file is missing or listed
            twice, or with an unknown side, all named; a split without rows.
        PatientOverlapError: a patient who stands in two splits of the table.
    """

    def __init__(
        self,
        table: str | Path,
        root: str | Path | None = None,
        split: str | None = None,
        *,
        grades: Sequence[str | int] | None = None,
        preparation: Preparation = Preparation(),  # noqa: B008  (frozen)
        transform: Callable[[Tensor], Any] | None = None,
        columns: dict[str, str] | None = None,
        on_bad: Literal["raise", "skip"] = "raise",
    ) -> None:
        table = Path(table)
        if not table.is_file():
            raise FileNotFoundError(f"table={str(table)!r}: no such file")
        root = Path(root) if root is not None else table.parent
        lines = read_table(table, columns or {}, ["split"] if split is not None else [])
        if split is not None and split not in {line["split"] for line in lines}:
            there = sorted({line["split"] for line in lines})
            raise ValueError(f"split={split!r}: {table} has no such rows; its splits are {there}")
        rows, problems = [], []
        seen: dict[Path, int] = {}
        for number, line in enumerate(lines, 2):
            path = root / line["path"]
            if split is not None and line["split"] != split:
                continue
            if not (line["path"] and line["label"] and line["patient"]):
                problems.append(f"row {number}: empty path, label or patient")
            elif not path.is_file():
                problems.append(f"row {number}: no file {path}")
            elif path in seen:
                problems.append(f"row {number}: {path} stands in row {seen[path]} already")
            elif line["side"].upper() not in SIDES:
                problems.append(f"row {number}: side {line['side']!r}, accepted are L, R and nothing")
            else:
                seen[path] = number
                rows.append(Row(path, line["label"], line["patient"], SIDES[line["side"].upper()]))
        if problems:
            raise ValueError(f"table={str(table)!r}: {len(problems)} bad rows: {listed(problems)}")
        patients_of: dict[str, list[str]] = {}
        for line in lines:  # of all splits, whichever is opened
            if line["split"] and line["patient"]:
                patients_of.setdefault(line["split"], []).append(line["patient"])
        check_disjoint(**patients_of)
        super().__init__(root, rows, grades, preparation, transform, on_bad)


def write_table(table: Path, rows: Iterable[Row], split: str) -> None:
    """Rows that :class:`RadiographTable` reads, all of one split; nothing is overwritten.

    Raises:
        FileExistsError.
    """
    with table.open("x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([r.path.absolute(), r.label, r.patient, r.side or "", split] for r in rows)


def read_table(table: Path, renamed: dict[str, str], needed: list[str]) -> list[dict[str, str]]:
    """Rows by our column names, stripped; absent optional columns are empty."""
    if not set(renamed) <= set(COLUMNS):
        raise ValueError(f"columns: got {sorted(set(renamed) - set(COLUMNS))}, accepted are {list(COLUMNS)}")
    names = {c: renamed.get(c, c) for c in COLUMNS}
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        header = list(reader.fieldnames or [])
        absent = [names[c] for c in {"path", "label", "patient", *needed, *renamed} if names[c] not in header]
        if absent:
            raise ValueError(
                f"table={str(table)!r}: columns {sorted(absent)} are missing; it has {header}; see the columns "
                "argument" + ("; of all rows, leave split out" if "split" in absent else "")
            )
        return [{c: (line.get(names[c]) or "").strip() for c in COLUMNS} for line in reader]
