"""The readers' folder: written so that nothing but what a picture shows tells images apart, opened against its hashes."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from PIL import Image
from tqdm import tqdm

from kecae_training.reader_study.canonical import FormatError, canonical_json, digest, parse_json
from kecae_training.reader_study.formats import Phase2Item, Study, check_fields, read_study

if TYPE_CHECKING:  # a study is served without torch
    from torch import Tensor

PAGE = (".html", ".css", ".js")  # of the page's files
PHASE2 = "phase2.js"
_BEFORE, _AFTER = b"window.PHASE2 = ", b";"


class Secret:
    """Random names and numbers of a study, from its seed and a secret that is not written down.

    Whoever knows the seed and has this package must not be able to derive which file is what.

    Args:
        seed: of the study.
        secret: 16 to 64 bytes of the operating system's randomness.
    """

    def __init__(self, seed: int, secret: bytes) -> None:
        if not 16 <= len(secret) <= 64:
            raise ValueError(f"secret: {len(secret)} bytes, accepted are 16 to 64")
        self._seed, self._secret = seed, secret

    def name(self, purpose: str) -> str:
        """32 hex digits, others for every purpose."""
        text = f"{self._seed}/{purpose}".encode()
        return hashlib.blake2b(text, key=self._secret, digest_size=16).hexdigest()

    def number(self, purpose: str) -> int:
        """An integer of 128 bit, as :meth:`name`."""
        return int(self.name(purpose), 16)


class Folder(NamedTuple):
    """A study and its files: path below the folder -> file."""

    study: Study
    files: dict[str, Path]


def read_page() -> dict[str, bytes]:
    """The page's files by name."""
    folder = files("kecae_training.reader_study") / "page"
    if not (folder / "index.html").is_file():
        raise FileNotFoundError(f"{folder}: the page is not there; install kecae-aug again")
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name.endswith(PAGE)}


def encode_png(image: Tensor, size: int, noise: int) -> bytes:
    """An 8-bit grey PNG.

    Grey values are dithered (triangular, of one grey level) before they are rounded, so that a knee which is shown twice
    gives files of different hashes, and real knees, whose values are whole in their files, are rounded like exchanged
    ones. A narrow window shows no bands in an enlarged image then. The pixels are stored, not compressed, so all files have
    the same length: smooth images, as a decoder makes, would be shorter.

    Args:
        image: (1, S, S) in [-1, 1].
        size: side of the picture in pixels (bicubic, antialiased).
        noise: seed of the dither.
    """
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    enlarged = resize(image.float(), [size, size], InterpolationMode.BICUBIC, antialias=True)[0]
    grey = (enlarged.clamp(-1, 1).double().numpy() + 1) * 127.5
    rounded = (grey + np.random.default_rng(noise).triangular(-1, 0, 1, grey.shape)).round()
    buffer = io.BytesIO()
    Image.fromarray(rounded.clip(0, 255).astype(np.uint8)).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def write_pictures(part: Path, pictures: Mapping[str, Tensor], size: int, secret: Secret) -> dict[str, str]:
    """Write them in the order of their names, so that no inode or time of creation tells; their hashes."""
    for folder in ("images", "images2"):
        (part / folder).mkdir()
    hashes = {}
    for name in tqdm(sorted(pictures), "pictures", leave=False):
        raw = encode_png(pictures[name], size, secret.number(f"dither/{name}"))
        (part / name).write_bytes(raw)
        hashes[name] = sha256(raw).hexdigest()
    return hashes


def write_texts(part: Path, page: Mapping[str, bytes], study: Study, phase2: dict[str, Any]) -> None:
    """The page, the study as JSON and as script, and phase 2; from file:// a page can load scripts only.

    Afterwards all files get one time, so that none tells when, and in which order, it was written.
    """
    raw = canonical_json(cast(dict[str, Any], study))
    for name, content in page.items():
        (part / name).write_bytes(content)
    (part / "study.json").write_bytes(raw)
    (part / "study.js").write_bytes(b"window.STUDY = " + raw + b";\n")
    (part / PHASE2).write_bytes(_BEFORE + canonical_json(phase2) + _AFTER + b"\n")
    moment = datetime.fromisoformat(study["created"]).replace(tzinfo=UTC).timestamp()
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
    study = read_study(folder)
    hashes = {entry["image"]: entry["sha256"] for entry in study["phase1"]}
    for entry in _read_phase2(folder / PHASE2, study)["items"]:
        check_fields(entry, Phase2Item, f"{folder / PHASE2}: items")
        hashes |= zip((entry["original"], entry["exchanged"]), entry["sha256"], strict=True)
    for name, wanted in hashes.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: missing; copy the whole folder of the study again")
        if sha256((folder / name).read_bytes()).hexdigest() != wanted:
            raise FormatError(f"{folder / name}: changed after the study was built; copy the folder again")
    page = [p for p in sorted(folder.iterdir()) if p.suffix in PAGE]
    found = {path.name: path for path in [*page, folder / "study.json"]}
    return Folder(study, found | {name: folder / name for name in hashes})


def _read_phase2(path: Path, study: Study) -> dict[str, Any]:
    """The object of ``phase2.js``, if it has the hash that the study names."""
    raw = path.read_bytes().strip()
    if not (raw.startswith(_BEFORE) and raw.endswith(_AFTER)):
        raise FormatError(f"{path}: does not read `window.PHASE2 = ...;`; copy the folder of the study again")
    value: dict[str, Any] = parse_json(raw[len(_BEFORE) : -len(_AFTER)], str(path))
    if digest(value) != study["phase2"]["sha256"]:
        raise FormatError(f"{path}: changed after the study was built; copy the folder of the study again")
    return value
