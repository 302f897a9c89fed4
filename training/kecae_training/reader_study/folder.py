"""A study's folder as it is served: opened, checked against its hashes, and the list of what readers may ask for."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from kecae_training.reader_study import formats
from kecae_training.reader_study.checking import FormatError, fields
from kecae_training.reader_study.formats import Study

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
}
PHASE2 = "phase2.js"
_BEFORE, _AFTER = b"window.PHASE2 = ", b";"


class Folder(NamedTuple):
    """A study and its files: path below the folder -> file."""

    study: Study
    files: dict[str, Path]


def open_folder(folder: Path) -> Folder:
    """Open the folder of a study.

    Returns:
        The study, and what may be read: the page, ``study.*``, ``phase2.js`` and the images of the study. Nothing else
        that lies in the folder.

    Raises:
        FileNotFoundError: no study, or a file of it is missing.
        FormatError: a file that was changed after the study was built.
    """
    if not (folder / "study.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no study.json in it; give the folder that `reader-study build` wrote"
        )
    study = formats.read_study(folder)
    second = _phase2(folder, study)
    hashes = {entry["image"]: entry["sha256"] for entry in study["phase1"]}
    for entry in second["items"]:
        fields(entry, formats.Phase2Item, f"{folder / PHASE2}: items")
        hashes |= zip((entry["original"], entry["exchanged"]), entry["sha256"], strict=True)
    for name, wanted in hashes.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: missing; copy the whole folder of the study again")
        if sha256((folder / name).read_bytes()).hexdigest() != wanted:
            raise FormatError(f"{folder / name}: changed after the study was built; copy the folder again")
    page = [p for p in sorted(folder.iterdir()) if p.suffix in (".html", ".css", ".js")]
    files = {path.name: path for path in [*page, folder / "study.json"]}
    return Folder(study, files | {name: folder / name for name in hashes})


def _phase2(folder: Path, study: Study) -> dict[str, Any]:
    """The object of ``phase2.js``, if it has the hash that the study names."""
    path = folder / PHASE2
    raw = path.read_bytes().strip()
    if not (raw.startswith(_BEFORE) and raw.endswith(_AFTER)):
        raise FormatError(f"{path}: does not read `window.PHASE2 = ...;`; copy the folder of the study again")
    value: dict[str, Any] = formats.parse(raw[len(_BEFORE) : -len(_AFTER)], str(path))
    if formats.digest(value) != study["phase2"]["sha256"]:
        raise FormatError(f"{path}: changed after the study was built; copy the folder of the study again")
    return value
