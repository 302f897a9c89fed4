"""Radiographs on disk as torch Datasets: a folder for each grade, or a table.

    RadiographFolder("knees", split="train", grades=("0", "2"), preparation=Preparation(128))
    RadiographTable("knees.csv", split="train")

Convention: an item is (image (1, S, S) float32 in [-1, 1], class index), as of torchvision's ImageFolder.
Targets, patients and sides are read from names and columns alone; no image is decoded for them.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from torch import Tensor
from torch.utils.data import Dataset

from kecae_aug.data.preparation import Preparation
from kecae_aug.data.reading import SUFFIXES, BadImagesError, bad_files, listed, read_image
from kecae_aug.data.splits import check_disjoint

PATTERN = r"(?P<patient>\d+)[ _-]?(?P<side>[LR])?"
COLUMNS = ("path", "label", "patient", "side", "split")
_SIDES = {"": None, "L": "L", "LEFT": "L", "R": "R", "RIGHT": "R"}


class Row(NamedTuple):
    """One image of a dataset, before anything is decoded."""

    path: Path
    label: str
    patient: str
    side: str | None


class Radiographs(Dataset[tuple[Tensor, int]]):
    """What folder and table share; made by one of them.

    Attributes:
        paths: file of every image.
        targets: class index of every image.
        classes: names of the grades: in the order of ``grades``, or sorted, numbers by value.
        patients: patient id of every image.
        sides: "L", "R" or None of every image.
        skipped: (path, reason) of the files that ``on_bad="skip"`` left out.
        value_range: of the images.
    """

    value_range = (-1.0, 1.0)

    def __init__(
        self,
        root: Path,
        rows: Iterable[Row],
        grades: Sequence[str | int] | None,
        preparation: Preparation,
        transform: Callable[[Tensor], Any] | None,
        on_bad: Literal["raise", "skip"],
    ) -> None:
        if on_bad not in ("raise", "skip"):
            raise ValueError(f"on_bad={on_bad!r}: accepted are 'raise' and 'skip'")
        rows = list(rows)
        found = sorted({row.label for row in rows}, key=_by_value)
        self.classes = [str(g) for g in grades] if grades is not None else found
        missing = [g for g in self.classes if g not in found]
        if missing or not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"grades={grades}: accepted are different grades that have images under {root}; those are "
                f"{found or 'none'}" + (f", not {missing}" if missing else "")
            )
        self.root, self.preparation, self.transform = root, preparation, transform
        index = {grade: i for i, grade in enumerate(self.classes)}
        kept = [row for row in rows if row.label in index]
        self.skipped: list[tuple[Path, str]] = []
        if on_bad == "skip":
            self.skipped = bad_files(row.path for row in kept)
            bad = {path for path, _ in self.skipped}
            kept = [row for row in kept if row.path not in bad]
            if not kept:
                raise BadImagesError(self.skipped)
        self.paths = [row.path for row in kept]
        self.targets = [index[row.label] for row in kept]
        self.patients = [row.patient for row in kept]
        self.sides = [row.side for row in kept]
        if preparation.mirror_right and None in self.sides:
            raise ValueError(
                f"mirror_right: {self.sides.count(None)} images have no side (first: "
                f"{self.paths[self.sides.index(None)]}); name files <patient><L|R>, give a pattern or a column "
                "with the side, or set mirror_right=False"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Any = self.preparation(read_image(self.paths[index]), self.sides[index])
        return (image if self.transform is None else self.transform(image)), self.targets[index]

    def __repr__(self) -> str:
        counts = {c: self.targets.count(i) for i, c in enumerate(self.classes)}
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return (
            f"{type(self).__name__}({len(self)} images of {len(set(self.patients))} patients under "
            f"{self.root}{skipped}, per grade {counts}, {self.preparation})"
        )

    def subset(self, rows: Iterable[int]) -> Self:
        """The dataset of these rows, with the same classes; :func:`split_patients` returns such rows."""
        rows = list(rows)
        part = copy.copy(self)
        for name in ("paths", "targets", "patients", "sides"):
            setattr(part, name, [getattr(self, name)[row] for row in rows])
        return part

    def check(self) -> None:
        """Decode every file; raise one :class:`BadImagesError` that names all that cannot be used."""
        bad = bad_files(self.paths)
        if bad:
            raise BadImagesError(bad)

    def file_hashes(self) -> dict[str, str]:
        """Path relative to the root -> sha256 of the file's bytes, for every image."""
        names = [p.relative_to(self.root) if p.is_relative_to(self.root) else p for p in self.paths]
        return {
            name.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for name, path in zip(names, self.paths, strict=True)
        }

    def fingerprint(self) -> str:
        """sha256 over (relative path, file hash, grade) of every image, whatever their order."""
        grades = [self.classes[t] for t in self.targets]
        files = self.file_hashes().items()
        lines = sorted(
            f"{name} {digest} {grade}" for (name, digest), grade in zip(files, grades, strict=True)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class RadiographFolder(Radiographs):
    """``root/split/grade/<patient><L|R>.png`` (or .jpg, .dcm), or ``root/grade/...`` without a split.

    Args:
        root: top folder.
        split: subfolder to read; None where the grades are directly below ``root``.
        grades: the grades to use, in the order of their class index; all folders by default.
        preparation: see :class:`Preparation`.
        transform: applied to the prepared image.
        pattern: regular expression with the groups ``patient`` and, optionally, ``side`` (L, R, left, right),
            which the whole file name without suffix must match.
        patients: ``"name"`` takes the patient from the pattern; ``"file"`` takes every file for a patient of
            its own (then two knees of one person can get into two splits).
        on_bad: ``"raise"`` at the first use of a bad file, ``"skip"`` to decode all now and leave them out.

    Files of other suffixes and hidden ones are not read; their number is in the error where a grade has
    no image.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a grade without images, names that do not match.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        grades: Sequence[str | int] | None = None,
        preparation: Preparation = Preparation(),  # noqa: B008  (frozen)
        transform: Callable[[Tensor], Any] | None = None,
        pattern: str = PATTERN,
        patients: Literal["name", "file"] = "name",
        on_bad: Literal["raise", "skip"] = "raise",
    ) -> None:
        root = Path(root)
        top = root / split if split else root
        if not top.is_dir():
            near = [p.name for p in _folders(root)] if root.is_dir() else []
            hint = f"; {root} holds {near}" if near else ""
            raise FileNotFoundError(f"root={str(root)!r}, split={split!r}: {top} is not a folder{hint}")
        if patients not in ("name", "file"):
            raise ValueError(f"patients={patients!r}: accepted are 'name' and 'file'")
        names = re.compile(pattern)
        if patients == "name" and "patient" not in names.groupindex:
            raise ValueError(
                f"pattern={pattern!r}: it needs a group (?P<patient>...), or give patients='file'"
            )
        wanted = None if grades is None else {str(g) for g in grades}
        rows, unmatched, empty = [], [], []
        for folder in _folders(top):
            files = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
            images = [p for p in files if p.suffix.lower() in SUFFIXES]
            if not images:
                empty.append(f"{folder.name} ({len(files)} other entries)")
            for path in images if wanted is None or folder.name in wanted else []:
                match = names.fullmatch(path.stem)
                groups = match.groupdict() if match else {}
                side = (groups.get("side") or "").upper()
                if side not in _SIDES or (match is None and patients == "name"):
                    unmatched.append(path)
                else:
                    patient = path.stem if patients == "file" else groups["patient"]
                    rows.append(Row(path, folder.name, patient, _SIDES[side]))
        if empty and wanted is None:  # left out in silence, it would shift the class indices
            raise ValueError(
                f"{top}: no {', '.join(SUFFIXES)} files in {empty}; give grades to leave folders out"
                + ("" if split else ", or split if these are splits")
            )
        if unmatched:
            raise ValueError(
                f"pattern={pattern!r}: {len(unmatched)} file names do not match: "
                f"{listed(p.name for p in unmatched)}\nGive a pattern whose group 'patient' is the patient's id, "
                "or patients='file' if every file is another patient."
            )
        super().__init__(root, rows, grades, preparation, transform, on_bad)


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
        lines = _read_table(table, columns or {}, ["split"] if split is not None else [])
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
            elif line["side"].upper() not in _SIDES:
                problems.append(f"row {number}: side {line['side']!r}, accepted are L, R and nothing")
            else:
                seen[path] = number
                rows.append(Row(path, line["label"], line["patient"], _SIDES[line["side"].upper()]))
        if problems:
            raise ValueError(f"table={str(table)!r}: {len(problems)} bad rows: {listed(problems)}")
        patients_of: dict[str, list[str]] = {}
        for line in lines:  # of all splits, whichever is opened
            if line["split"] and line["patient"]:
                patients_of.setdefault(line["split"], []).append(line["patient"])
        check_disjoint(**patients_of)
        super().__init__(root, rows, grades, preparation, transform, on_bad)


def _read_table(table: Path, renamed: dict[str, str], needed: list[str]) -> list[dict[str, str]]:
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
                "argument"
            )
        return [{c: (line.get(names[c]) or "").strip() for c in COLUMNS} for line in reader]


def _folders(top: Path) -> list[Path]:
    found = (p for p in top.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))
    return sorted(found, key=lambda p: _by_value(p.name))


def _by_value(name: str) -> tuple[int, float, str]:
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)
