"""Writing a study: the page, the pictures and the texts of its folder, and the key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from tqdm import tqdm

from kecae_training.reader_study import formats
from kecae_training.reader_study.formats import Study
from kecae_training.reader_study.pictures import Secret, png

PAGE = (".html", ".css", ".js")  # of the page's files


def page_files() -> dict[str, bytes]:
    """The page's files by name."""
    folder = files("kecae_training.reader_study") / "page"
    found = (
        {f.name: f.read_bytes() for f in folder.iterdir() if f.name.endswith(PAGE)} if folder.is_dir() else {}
    )
    if "index.html" not in found:
        raise FileNotFoundError(f"{folder}: the page is not there; install kecae-aug again")
    return found


def write_pictures(part: Path, pictures: Mapping[str, Tensor], size: int, hidden: Secret) -> dict[str, str]:
    """Write them in the order of their names, so that no inode or time of creation tells; their hashes."""
    for folder in ("images", "images2"):
        (part / folder).mkdir()
    hashes = {}
    for name in tqdm(sorted(pictures), "pictures", leave=False):
        raw = png(pictures[name], size, hidden.number(f"dither/{name}"))
        (part / name).write_bytes(raw)
        hashes[name] = sha256(raw).hexdigest()
    return hashes


def write_text(part: Path, page: Mapping[str, bytes], study: Study, late: dict[str, Any]) -> None:
    """The page, the study as JSON and as script, and phase 2; from file:// a page can load scripts only."""
    raw = formats.canonical(cast(dict[str, Any], study))
    for name, content in page.items():
        (part / name).write_bytes(content)
    (part / "study.json").write_bytes(raw)
    (part / "study.js").write_bytes(b"window.STUDY = " + raw + b";\n")
    (part / "phase2.js").write_bytes(b"window.PHASE2 = " + formats.canonical(late) + b";\n")


def same_times(part: Path, day: str) -> None:
    """One time for all files, so that none tells when, and in which order, it was written."""
    moment = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
    for path in [*part.rglob("*"), part]:
        os.utime(path, (moment, moment))


def write_private(path: Path, raw: bytes) -> None:
    """A new file that only its owner may read.

    Raises:
        FileExistsError: there is one already.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(raw)
