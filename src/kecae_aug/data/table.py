"""Radiographs by a table: a row for each image, whatever files and folders are called.

RadiographTable("knees.csv", split="train")
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from kecae_aug.data.folder import SIDES, Radiographs, Row
from kecae_aug.data.preprocessing import Preprocessing
from kecae_aug.data.reading import show_first
from kecae_aug.data.splits import check_disjoint
from kecae_aug.names import class_name, patient_id

SEPARATORS = (",", ";", "\t", "|")
COLUMNS = ("path", "label", "patient", "side", "split")


class RadiographTable(Radiographs):
    """A CSV file with a row for each image, in UTF-8 or UTF-16, separated by commas, semicolons, tabs or bars.

    Args:
        table: the CSV file, with a header.
        root: folder that relative paths start from; the table's own folder by default.
        split: keep the rows whose split column has this value; None keeps all.
        grades: as of :class:`RadiographFolder`.
        preprocessing: see :class:`Preprocessing`.
        transform: applied to the preprocessed image.
        columns: names of the columns where they are not ``path``, ``label``, ``patient``, ``side`` and
            ``split``; side (L, R, left, right or empty) and split may be absent.
        on_bad: ``"raise"`` refuses a table with bad rows, and raises at the first use of a bad file; ``"skip"`` lists
            both in ``.skipped``, the rows by their line.

    Raises:
        FileNotFoundError: no such table.
        ValueError: an encoding or separator that is none of these, missing columns; rows without path, label or patient,
            whose file is missing, or with an unknown side (with ``on_bad="raise"``), or listed twice, all named by their
            line in the file; a split without rows.
        PatientOverlapError: a patient who stands in two splits of the table.
    """

    def __init__(
        self,
        table: str | Path,
        root: str | Path | None = None,
        split: str | None = None,
        *,
        grades: Sequence[str | int] | None = None,
        preprocessing: Preprocessing = Preprocessing(),  # noqa: B008  (frozen)
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
        rows, twice = [], []
        skipped: list[tuple[Path, str]] = []
        seen: dict[Path, int] = {}
        for line in lines:
            path, number = root / line["path"], line.number
            if split is not None and line["split"] != split:
                continue
            grade, patient = class_name(line["label"]), patient_id(line["patient"])
            why = None
            if not line["path"] or grade is None or patient is None:
                cells = ", ".join(f"{name} {line[name]!r}" for name in ("path", "label", "patient"))
                why = f"empty path, label or patient ({cells})"
            elif not path.is_file():
                why = f"no file {path}"
            elif path in seen:
                twice.append(f"line {number}: {path} stands in line {seen[path]} already")
            elif line["side"].upper() not in SIDES:
                why = f"side {line['side']!r}, accepted are L, R and nothing"
            elif grade is not None and patient is not None:
                seen[path] = number
                rows.append(Row(path, grade, patient, SIDES[line["side"].upper()]))
            if why is not None:
                skipped.append((path, f"line {number}: {why}"))
        problems = twice + [reason for _, reason in skipped if on_bad != "skip"]
        if problems:
            way = (
                ""
                if on_bad == "skip"
                else "; on_bad='skip' leaves those of one line out and lists them in .skipped"
            )
            raise ValueError(f"table={str(table)!r}: {len(problems)} bad rows{way}: {show_first(problems)}")
        patients_of: dict[str, list[str]] = {}
        for line in lines:  # of all splits, whichever is opened
            if line["split"] and (who := patient_id(line["patient"])) is not None:
                patients_of.setdefault(line["split"], []).append(who)
        check_disjoint(**patients_of)
        super().__init__(root, rows, grades, preprocessing, transform, on_bad, skipped)


def write_table(table: Path, rows: Iterable[Row], split: str) -> None:
    """Rows that :class:`RadiographTable` reads, all of one split; nothing is overwritten.

    Raises:
        FileExistsError.
    """
    with table.open("x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([r.path.absolute(), r.label, r.patient, r.side or "", split] for r in rows)


class Line(dict[str, str]):
    """A row of a table by our column names, and the line of the file that it begins in."""

    number: int


def read_table(table: Path, renamed: dict[str, str], needed: list[str]) -> list[Line]:
    """Rows by our column names, stripped; absent optional columns are empty, and so are not blank lines.

    Raises:
        ValueError: another encoding, separator or header; the message names the file, and the line where there is one.
    """
    if not set(renamed) <= set(COLUMNS):
        raise ValueError(f"columns: got {sorted(set(renamed) - set(COLUMNS))}, accepted are {list(COLUMNS)}")
    names = {c: renamed.get(c, c) for c in COLUMNS}
    text = _decoded(table)
    first, _, rest = text.partition("\n")
    above = int(first.startswith("sep="))  # Excel's word for its own separator
    text = rest if above else text
    separator = _separator(text.partition("\n")[0], names.values())
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    before = csv.field_size_limit(
        max(csv.field_size_limit(), len(text) + 1)
    )  # a report in one field is no error
    try:
        header = [name.strip() for name in next(reader, [])]
        wanted = {"path", "label", "patient", *needed, *renamed}
        absent = sorted(names[c] for c in wanted if names[c] not in header)
        if absent:
            raise ValueError(
                f"table={str(table)!r}: columns {absent} are missing; it has {header}, separated by {separator!r}; see the "
                f"columns argument{_nearly(absent, header)}"
                + ("; of all rows, leave split out" if "split" in absent else "")
            )
        if twice := sorted({name for name in names.values() if header.count(name) > 1}):
            raise ValueError(
                f"table={str(table)!r}: columns {twice} stand in its header twice; rename one of each"
            )
        at = {c: header.index(name) for c, name in names.items() if name in header}
        lines, end = [], reader.line_num
        for fields in reader:
            start, end = end + 1, reader.line_num
            if any(field.strip() for field in fields):
                line = Line(
                    {c: fields[at[c]].strip() if c in at and at[c] < len(fields) else "" for c in COLUMNS}
                )
                line.number = start + above
                lines.append(line)
        return lines
    except csv.Error as error:
        raise ValueError(f"table={str(table)!r}: line {reader.line_num + above}: {error}") from error
    finally:
        csv.field_size_limit(before)


def _decoded(table: Path) -> str:
    raw = table.read_bytes()
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(
            f"table={str(table)!r}: line {line} is not {'UTF-16' if encoding == 'utf-16' else 'UTF-8'} ({error.reason}); "
            "accepted are UTF-8, and UTF-16 as spreadsheets write it: save it as 'CSV UTF-8'"
        ) from error
    if "\0" in text:
        raise ValueError(
            f"table={str(table)!r}: line {text[: text.index(chr(0))].count(chr(10)) + 1} has a zero byte; accepted is "
            "UTF-8 text, or UTF-16 with its mark: save it as 'CSV UTF-8'"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _separator(header: str, names: Iterable[str]) -> str:
    """The one that splits the header into most of the columns that are asked for; a comma where none does."""
    wanted = set(names)

    def found(separator: str) -> int:
        return len(wanted & {name.strip().strip('"') for name in header.split(separator)})

    return max(SEPARATORS, key=found)


def _nearly(absent: Sequence[str], header: Sequence[str]) -> str:
    """The columns that differ in case or blanks only."""
    alike = {name.casefold().replace(" ", ""): name for name in header}
    near = {name: alike[key] for name in absent if (key := name.casefold().replace(" ", "")) in alike}
    return f", for instance columns={near}" if near else ""
