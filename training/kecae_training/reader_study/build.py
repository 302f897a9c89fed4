"""Build a reader study (Section V-E): a folder for the readers, and apart from it the key that says which image is what.

Real knees go the same way as exchanged ones: prepared and resized as the weights want it, enlarged, rounded, written.
A real knee that came straight from its file would be sharper than any exchanged one.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from kecae_aug.data import Preparation, Radiographs, open_radiographs
from kecae_aug.device import Precision, amp_dtype, choose_device
from kecae_aug.model import KECAE
from kecae_aug.weights import load_weights
from kecae_training.reader_study import formats
from kecae_training.reader_study.draw import draw_study
from kecae_training.reader_study.formats import Key, Study
from kecae_training.reader_study.items import Phase, make_phases, make_shown
from kecae_training.reader_study.pictures import Secret
from kecae_training.reader_study.writing import (
    page_files,
    same_times,
    write_pictures,
    write_private,
    write_text,
)
from kecae_training.validity.exchanged import DETAILS
from kecae_training.validity.provenance import NotHeldOutError, check_weights, training_patients


@dataclass(frozen=True)
class BuildConfig:
    """What a study shows.

    Fields:
        data: folder of split/grade/name, or a table. split: None where grades are directly below the folder.
        weights: bundled names, folders or Hub ids. detail: kinds of X'. Weights x detail are the arms.
        n: pairs in all. real: real knees as control (None: a fifth of n). repeat: items of phase 1 that are shown twice
            (None: a tenth of n). strength: of the exchange, in whole percent.
        image_size: side of the pictures in pixels. seed: of the draw. title: on the page; it must not tell anything.
        allow_seen: take patients whom the weights saw in training, which the key then says.
        device: where the weights run: auto, cpu, cuda or mps. precision: of them.
    """

    data: Path
    weights: Sequence[str]
    split: str | None = "val"
    detail: Sequence[str] = ("decoder",)
    n: int = 100
    real: int | None = None
    repeat: int | None = None
    strength: float = 1.0
    image_size: int = 512
    seed: int = 0
    title: str = "Reader study"
    allow_seen: bool = False
    device: str = "auto"
    precision: Precision = "32-true"

    def check(self) -> None:
        """Raise ValueError for values that make no study."""
        unknown = [d for d in self.detail if d not in DETAILS]
        if unknown or not self.detail or len(set(self.detail)) < len(self.detail):
            raise ValueError(f"detail={list(self.detail)}: accepted are {list(DETAILS)}, each once")
        if not self.weights or len({_short(w) for w in self.weights}) < len(self.weights):
            raise ValueError(f"weights={list(self.weights)}: one or more of different names; rename folders")
        if not 0 < self.strength <= 5 or abs(self.strength * 100 - round(self.strength * 100)) > 1e-9:
            raise ValueError(f"strength={self.strength}: accepted are whole percent above 0, up to 5 (500 %)")
        if not 64 <= self.image_size <= 4096:
            raise ValueError(f"image_size={self.image_size}: accepted are 64 to 4096 pixels")
        amp_dtype(self.precision)
        if not self.title.strip():
            raise ValueError("title: it is empty")


class Built(NamedTuple):
    """What was written, and where."""

    study: Study
    key: Key
    folder: Path
    key_file: Path


def build(
    config: BuildConfig,
    out: Path,
    key_file: Path | None = None,
    *,
    secret: bytes | None = None,
    created: str | None = None,
    say: Callable[[str], None] = print,
) -> Built:
    """Build a study.

    Args:
        config: what it shows.
        out: folder for the readers; absent or empty.
        key_file: by default ``<out>-key.json``, beside the folder. Never inside it, and never overwritten.
        secret: 16 to 64 bytes that file names depend on; from the operating system by default.
        created: YYYY-MM-DD; today (UTC) by default.
        say: gets what the user should know.

    Returns:
        Study, key and their places. On an error nothing is left behind.

    Raises:
        ValueError: values, weights or data that make no study. FileExistsError: something is there already.
        NotHeldOutError: weights that have seen the patients.
    """
    config.check()
    key_file = out.with_name(f"{out.name}-key.json") if key_file is None else key_file
    _check_places(out, key_file)
    page = page_files()
    device = choose_device(config.device)
    models = {_short(name): load_weights(name).to(device) for name in config.weights}
    knees = _open(config, models, say)
    arms = {
        (f"{name} {detail}" if len(models) > 1 else detail): (models[name], detail)
        for name in models
        for detail in config.detail
    }
    drawn = draw_study(
        knees.targets,
        knees.patients,
        knees.classes,
        list(arms),
        n=config.n,
        real=config.real,
        repeats=config.repeat,
        seed=config.seed,
    )
    hidden = Secret(config.seed, secrets.token_bytes(32) if secret is None else secret)
    first, second = make_phases(
        make_shown(knees, drawn, arms, config.strength, config.precision), drawn.repeats, hidden
    )
    day = created or datetime.now(UTC).date().isoformat()
    part = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    part.mkdir(parents=True)
    try:
        hashes = write_pictures(part, first.pictures | second.pictures, config.image_size, hidden)
        study, late = _study(config, knees.classes, first, second, hashes, hidden, day)
        write_text(part, page, study, late)
        same_times(part, day)
        key = _key(config, knees.classes, list(arms), models, first, second, study)
        write_private(key_file, formats.canonical(key))
        try:
            if out.is_dir():
                out.rmdir()
            part.rename(out)
        except OSError:
            key_file.unlink()
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Built(study, key, out, key_file)


def _short(weights: str) -> str:
    return Path(weights).name


def _check_places(out: Path, key_file: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"out={str(out)!r}: there is something already; take an absent or empty folder")
    if key_file.exists():
        raise FileExistsError(
            f"key={str(key_file)!r}: exists already; a key is never overwritten, take another name"
        )
    if key_file.resolve().is_relative_to(out.resolve()):
        raise ValueError(
            f"key={str(key_file)!r}: inside {out}, where readers would find it; put it elsewhere"
        )
    if not key_file.resolve().parent.is_dir() and key_file.resolve().parent != out.resolve().parent:
        raise FileNotFoundError(f"key={str(key_file)!r}: no such folder; make it first")


def _open(config: BuildConfig, models: Mapping[str, KECAE], say: Callable[[str], None]) -> Radiographs:
    """The split's knees as the weights read them; refuses patients whom they saw in training."""
    first, *others = models.values()
    preparation = Preparation.of(first)
    for other in others:
        if other.config.classes != first.config.classes or Preparation.of(other) != preparation:
            raise ValueError(
                "weights: they read different images (classes or preparation), so that their pictures could be told "
                "apart; build a study for each"
            )
    knees = open_radiographs(
        config.data, config.split, grades=list(first.config.classes), preparation=preparation
    )
    for name, model in models.items():
        seen = training_patients(model, config.data)
        if seen is None:
            say(f"{name}: not known which patients it was trained on; make sure they are none of this split")
        elif not config.allow_seen:
            try:
                check_weights(name, seen, knees.patients, str(config.split))
            except NotHeldOutError as error:
                raise NotHeldOutError(f"{error}, or give --allow-seen, which the key will say") from None
    return knees


def _study(
    config: BuildConfig,
    classes: Sequence[str],
    first: Phase,
    second: Phase,
    hashes: Mapping[str, str],
    hidden: Secret,
    day: str,
) -> tuple[Study, dict[str, Any]]:
    """The study, and the object of phase 2."""
    early = [{**entry, "sha256": hashes[entry["image"]]} for entry in _by_item(first)]
    late = [
        {**entry, "sha256": [hashes[entry["original"]], hashes[entry["exchanged"]]]}
        for entry in _by_item(second)
    ]
    phase2 = {"items": late}
    study = {
        "format": formats.STUDY,
        "version": formats.VERSION,
        "title": config.title,
        "created": day,
        "order_seed": hidden.number("order") % 2**31,
        "grades": list(classes),
        "confidence": formats.SCALE,
        "realism": formats.SCALE,
        "phase1": early,
        "phase2": {
            "items": [e["item"] for e in late],
            "file": "phase2.js",
            "sha256": formats.digest(phase2),
        },
    }
    return formats.check_study(formats.sealed(study, "id")), phase2


def _by_item(phase: Phase) -> list[dict[str, Any]]:
    """In the order of the random names, which tells nothing."""
    return sorted(phase.shown, key=lambda entry: str(entry["item"]))


def _key(
    config: BuildConfig,
    classes: Sequence[str],
    arms: list[str],
    models: Mapping[str, KECAE],
    first: Phase,
    second: Phase,
    study: Study,
) -> Key:
    weights = [
        {"name": name, "sha256": models[_short(name)].metadata.get("weights", {}).get("sha256")}
        for name in config.weights
    ]
    return formats.check_key(
        {
            "format": formats.KEY,
            "version": formats.VERSION,
            "study": study["id"],
            "title": study["title"],
            "created": study["created"],
            "seed": config.seed,
            "weights": weights,
            "data": str(config.data / (config.split or "")),
            "allow_seen": config.allow_seen,
            "grades": list(classes),
            "arms": arms,
            "phase1": first.key,
            "phase2": second.key,
        }
    )
