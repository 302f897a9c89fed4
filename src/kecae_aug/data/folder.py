"""Radiographs on disk as torch Datasets: a folder for each grade; a table is in kecae_aug.data.table.

    RadiographFolder("knees", split="train", grades=("0", "2"), preprocessing=Preprocessing(128))

Convention: an item is (image (1, S, S) float32 in [-1, 1], class index), as of torchvision's ImageFolder.
Targets, patients and sides are read from names and columns alone; no image is decoded for them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from torch import Tensor
from torch.utils.data import Dataset

from kecae_aug.data.preprocessing import Preprocessing
from kecae_aug.data.reading import SUFFIXES, BadImagesError, bad_files, read_image, show_first
from kecae_aug.names import by_value, class_name, class_names, patient_id, warn_of_zeros

PATTERN = r"(?P<patient>\d+)[ _-]?(?P<side>[LR])?"
SIDES = {"": None, "L": "L", "LEFT": "L", "R": "R", "RIGHT": "R"}


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
        classes: names of the grades (:func:`kecae_aug.names.class_name`): in the order of ``grades``, or sorted, numbers by
            value.
        patients: patient id of every image (:func:`kecae_aug.names.patient_id`).
        sides: "L", "R" or None of every image.
        skipped: (path, reason) of every file in the grades' folders, or row of the table, that is not used: of another
            suffix, in a deeper folder, and what ``on_bad="skip"`` left out.
        value_range: of the images.
    """

    value_range = (-1.0, 1.0)

    def __init__(
        self,
        root: Path,
        rows: Iterable[Row],
        grades: Sequence[str | int] | None,
        preprocessing: Preprocessing,
        transform: Callable[[Tensor], Any] | None,
        on_bad: Literal["raise", "skip"],
        skipped: Iterable[tuple[Path, str]] = (),
    ) -> None:
        skipped = list(skipped)
        if on_bad not in ("raise", "skip"):
            raise ValueError(f"on_bad={on_bad!r}: accepted are 'raise' and 'skip'")
        rows = list(rows)
        found = sorted({row.label for row in rows}, key=by_value)
        _warn_of_case(found)
        self.classes = list(found if grades is None else class_names(grades, "grades"))
        missing = [g for g in self.classes if g not in found]
        if missing or not self.classes:
            raise ValueError(
                f"grades={grades}: accepted are different grades that have images under {root}; those are "
                f"{found or 'none'}" + (f", not {missing}" if missing else "") + _of_skipped(skipped)
            )
        self.root, self.preprocessing, self.transform = root, preprocessing, transform
        index = {grade: i for i, grade in enumerate(self.classes)}
        kept = [row for row in rows if row.label in index]
        self.skipped: list[tuple[Path, str]] = list(skipped)
        if on_bad == "skip":
            bad_here = bad_files(row.path for row in kept)
            self.skipped += bad_here
            bad = {path for path, _ in bad_here}
            kept = [row for row in kept if row.path not in bad]
            if not kept:
                raise BadImagesError(self.skipped)
        warn_of_zeros(row.patient for row in kept)
        self.paths = [row.path for row in kept]
        self.targets = [index[row.label] for row in kept]
        self.patients = [row.patient for row in kept]
        self.sides = [row.side for row in kept]
        if preprocessing.mirror_right and None in self.sides:
            raise ValueError(
                f"mirror_right: {self.sides.count(None)} images have no side (first: "
                f"{self.paths[self.sides.index(None)]}); name files <patient><L|R>, give a pattern or a column "
                "with the side, or set mirror_right=False (--no-mirror)"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Any = self.preprocessing(read_image(self.paths[index]), self.sides[index])
        return (image if self.transform is None else self.transform(image)), self.targets[index]

    def __repr__(self) -> str:
        counts = {c: self.targets.count(i) for i, c in enumerate(self.classes)}
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return (
            f"{type(self).__name__}({len(self)} images of {len(set(self.patients))} patients under "
            f"{self.root}{skipped}, per grade {counts}, {self.preprocessing})"
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

    @property
    def rows(self) -> list[Row]:
        """Every image as a table has it, see :func:`kecae_aug.data.table.write_table`."""
        grades = [self.classes[target] for target in self.targets]
        return [Row(*row) for row in zip(self.paths, grades, self.patients, self.sides, strict=True)]

    @property
    def files(self) -> list[str]:
        """Path of every image relative to the root; whole where it is elsewhere."""
        return [
            (path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix()
            for path in self.paths
        ]

    def file_hashes(self) -> dict[str, str]:
        """:attr:`files` -> sha256 of the file's bytes, for every image."""
        return {
            name: hashlib.sha256(path.read_bytes()).hexdigest()
            for name, path in zip(self.files, self.paths, strict=True)
        }

    def identity(self) -> dict[str, str]:
        """What whoever keeps something made of these images must compare, by name, so that it can say what differs.

        Returns:
            ``files`` (a hash of names, bytes and grades, whatever their order), ``preprocessing``, ``classes``, and
            ``pixels`` (a hash of three images as they are given, with whatever ``transform`` does to them).
        """
        grades = [self.classes[t] for t in self.targets]
        files = self.file_hashes().items()
        lines = sorted(
            f"{name} {digest} {grade}" for (name, digest), grade in zip(files, grades, strict=True)
        )
        pixels = hashlib.sha256()
        by_name = sorted(range(len(self)), key=lambda row: self.paths[row])
        for row in (by_name[0], by_name[len(self) // 2], by_name[-1]) if by_name else ():
            image = self[row][0]
            raw = (
                image.contiguous().view(-1).numpy().tobytes()
                if isinstance(image, Tensor)
                else repr(image).encode()
            )
            pixels.update(raw)
        return {
            "files": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
            "preprocessing": json.dumps(self.preprocessing.to_dict()),
            "classes": json.dumps(self.classes),
            "pixels": pixels.hexdigest(),
            "order": hashlib.sha256("\n".join(self.files).encode()).hexdigest(),
        }

    def fingerprint(self) -> str:
        """sha256 of :meth:`identity` but for the files' order: of the files, their preprocessing and the class indices."""
        parts = {name: part for name, part in self.identity().items() if name != "order"}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class RadiographFolder(Radiographs):
    """``root/split/grade/<patient><L|R>.png`` (or .jpg, .dcm), or ``root/grade/...`` without a split.

    Args:
        root: top folder.
        split: subfolder to read; None where the grades are directly below ``root``.
        grades: the grades to use, in the order of their class index; all folders by default.
        preprocessing: see :class:`Preprocessing`.
        transform: applied to the preprocessed image.
        pattern: regular expression with the groups ``patient`` and, optionally, ``side`` (L, R, left, right),
            which the whole file name without suffix must match.
        patients: ``"name"`` takes the patient from the pattern; ``"file"`` takes every file for a patient of
            its own (then two knees of one person can get into two splits).
        on_bad: ``"raise"`` at the first use of a bad file, ``"skip"`` to decode all now and leave them out.

    Hidden files are left out. Files of other suffixes, deeper folders, and folders whose name is a missing value
    (``nan``) are listed in ``.skipped``; files beside the grades' folders are not looked at.

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
        preprocessing: Preprocessing = Preprocessing(),  # noqa: B008  (frozen)
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
        wanted = None if grades is None else set(class_names(grades, "grades"))
        rows, unmatched, empty = [], [], []
        skipped: list[tuple[Path, str]] = []
        for folder in _folders(top):
            grade = class_name(folder.name)
            files = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
            if grade is None:
                skipped += [
                    (path, f"{path}: its folder's name {folder.name!r} is a missing grade") for path in files
                ]
                continue
            if wanted is not None and grade not in wanted:
                continue
            images = [p for p in files if p.suffix.lower() in SUFFIXES and p.is_file()]
            others = [p for p in files if p not in set(images)]
            skipped += [(path, f"{path}: {_why_not(path)}") for path in others]
            if not images:
                empty.append(f"{folder.name} ({len(files)} other entries)")
            for path in images:
                match = names.fullmatch(path.stem)
                groups = match.groupdict() if match else {}
                side = (groups.get("side") or "").upper()
                patient = patient_id(path.stem if patients == "file" else groups.get("patient"))
                if side not in SIDES or patient is None:
                    unmatched.append(path)
                else:
                    rows.append(Row(path, grade, patient, SIDES[side]))
        if empty and wanted is None:  # left out in silence, it would shift the class indices
            raise ValueError(
                f"{top}: no {', '.join(SUFFIXES)} files in {empty}; give grades to leave folders out"
                + ("" if split else ", or split if these are splits")
            )
        if unmatched:
            raise ValueError(
                f"pattern={pattern!r}: {len(unmatched)} file names do not match: "
                f"{show_first(p.name for p in unmatched)}\nGive a pattern whose group 'patient' is the patient's id, "
                "or patients='file' if every file is another patient; on the command line, a table (docs/data.md)."
            )
        super().__init__(root, rows, grades, preprocessing, transform, on_bad, skipped)


def _why_not(path: Path) -> str:
    if path.is_dir():
        return "a folder inside a grade's; only files directly in it are read"
    return f"suffix {path.suffix or 'none'}, read are {', '.join(SUFFIXES)}"


def _of_skipped(skipped: Sequence[tuple[Path, str]]) -> str:
    return f"; not used: {show_first(reason for _, reason in skipped)}" if skipped else ""


def _warn_of_case(names: Sequence[str]) -> None:
    """Two classes whose names differ in case only are likely one."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.casefold(), []).append(name)
    if twice := [found for found in alike.values() if len(found) > 1]:
        warnings.warn(
            f"grades: {twice} differ in upper and lower case only and are different classes; spell them alike if they "
            "are one",
            stacklevel=4,
        )


def _folders(top: Path) -> list[Path]:
    found = (p for p in top.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))
    return sorted(found, key=lambda p: (by_value(class_name(p.name) or ""), p.name))
