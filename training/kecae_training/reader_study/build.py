"""Build a reader study (Section V-E): a folder for the readers, and apart from it the key that says which image is what.

Real knees go the same way as exchanged ones: preprocessed and resized for the weights, enlarged, rounded, written.
A real knee that came straight from its file would be sharper than any exchanged one.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from kecae_aug.data import Preprocessing, Radiographs, open_radiographs
from kecae_aug.device import Precision, amp_dtype, choose_device
from kecae_aug.engine.model import KECAE
from kecae_aug.files import list_visible
from kecae_aug.weights.io import load_weights
from kecae_training.evaluate.entrants import NotHeldOutError, check_weights, training_patients
from kecae_training.evaluate.exchanges import DETAILS, Exchanges, Kind
from kecae_training.reader_study.canonical import add_hash, canonical_json, digest
from kecae_training.reader_study.draw import Draw, Pair, draw_study
from kecae_training.reader_study.folder import (
    PHASE2,
    Secret,
    read_page,
    write_pictures,
    write_private,
    write_texts,
)
from kecae_training.reader_study.formats import KEY, REAL, STUDY, VERSION, Key, Study, check_key, check_study

CHUNK = 16  # pairs that are exchanged at once


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
        if not self.weights or len({Path(w).name for w in self.weights}) < len(self.weights):
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
    page = read_page()
    device = choose_device(config.device)
    models = {Path(name).name: load_weights(name).to(device) for name in config.weights}
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
    cases = make_cases(knees, drawn, arms, config.strength, config.precision)
    names = Secret(config.seed, secrets.token_bytes(32) if secret is None else secret)
    first, second = make_phases(cases, drawn.repeats, names)
    part = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    part.mkdir(parents=True)
    try:
        hashes = write_pictures(part, first.pictures | second.pictures, config.image_size, names)
        phase2 = {"items": second.with_hashes(hashes)}
        study = check_study(
            add_hash(
                {
                    "format": STUDY,
                    "version": VERSION,
                    "title": config.title,
                    "created": created or datetime.now(UTC).date().isoformat(),
                    "order_seed": names.number("order") % 2**31,
                    "grades": list(knees.classes),
                    "phase1": first.with_hashes(hashes),
                    "phase2": {
                        "items": [entry["item"] for entry in phase2["items"]],
                        "file": PHASE2,
                        "sha256": digest(phase2),
                    },
                },
                "id",
            )
        )
        write_texts(part, page, study, phase2)
        key = _make_key(config, study, list(arms), models, first, second)
        write_private(key_file, canonical_json(key))
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


def _check_places(out: Path, key_file: Path) -> None:
    if list_visible(out):
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
    preprocessing = Preprocessing.of(first)
    for other in others:
        if other.config.classes != first.config.classes or Preprocessing.of(other) != preprocessing:
            raise ValueError(
                "weights: they read different images (classes or preprocessing), which readers could see; build a study "
                "for each"
            )
    knees = open_radiographs(
        config.data, config.split, grades=list(first.config.classes), preprocessing=preprocessing
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


@dataclass
class Case:
    """A pair or a control before it becomes an item of each phase.

    Fields:
        key: what the key says of its image in phase 1, all but ``repeat_of``.
        host: grade of ``original``. claimed: grade that phase 2 claims for ``picture``.
        original, picture: (1, S, S) in [-1, 1].
    """

    key: dict[str, Any]
    host: str
    claimed: str
    original: Tensor
    picture: Tensor


@dataclass
class Phase:
    """Items of a phase: what the readers get, what the key says, and the pictures by their file."""

    shown: list[dict[str, Any]] = field(default_factory=list)
    key: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)

    def with_hashes(self, hashes: Mapping[str, str]) -> list[dict[str, Any]]:
        """What the readers get, in the order of the random names, with the hash of each picture or those of both."""
        found = []
        for entry in sorted(self.shown, key=lambda entry: str(entry["item"])):
            of = [hashes[entry[name]] for name in ("image", "original", "exchanged") if name in entry]
            found.append({**entry, "sha256": of[0] if len(of) == 1 else of})
        return found


def make_cases(
    knees: Radiographs,
    drawn: Draw,
    arms: Mapping[str, tuple[KECAE, str]],
    strength: float,
    precision: Precision = "32-true",
) -> list[Case]:
    """The pairs, exchanged, and after them the controls.

    Args:
        knees: preprocessed for the weights.
        drawn: indices in ``knees``.
        arms: name -> (weights, detail).
        strength: of the exchange.
        precision: of the weights, which run where they are.
    """
    grades = [knees.classes[target] for target in knees.targets]

    def facts(arm: str, label: str, host: int, donor: int | None) -> dict[str, Any]:
        return {
            "arm": arm,
            "label": label,
            "before": None if donor is None else grades[host],
            "patient": knees.patients[host],
            "file": knees.files[host],
            "donor": None if donor is None else knees.files[donor],
            "strength_percent": None if donor is None else round(strength * 100),
        }

    cases = []
    made = _exchange(knees, drawn.pairs, arms, strength, precision)
    for (arm, host, donor), (original, picture) in zip(drawn.pairs, made, strict=True):
        label = grades[donor]
        cases.append(Case(facts(arm, label, host, donor), grades[host], label, original, picture))
    for index, claimed in zip(tqdm(drawn.controls, "real knees", leave=False), drawn.claimed, strict=True):
        image, label = knees[index][0], grades[index]
        cases.append(Case(facts(REAL, label, index, None), label, knees.classes[claimed], image, image))
    return cases


def make_phases(cases: Sequence[Case], repeats: Sequence[int], names: Secret) -> tuple[Phase, Phase]:
    """Items under random names: every picture, the repeated ones again; and every pair.

    Args:
        cases: of :func:`make_cases`.
        repeats: positions in it.
        names: gives the names.
    """
    first, second = Phase(), Phase()
    items = [names.name(f"phase 1/{i}") for i in range(len(cases))]
    again = [(i, names.name(f"repeat/{i}")) for i in repeats]
    for i, item in [*enumerate(items), *again]:
        file = f"images/{item}.png"
        first.pictures[file] = cases[i].picture
        first.shown.append({"item": item, "image": file})
        first.key[item] = {**cases[i].key, "repeat_of": None if item == items[i] else items[i]}
    for i, case in enumerate(cases):
        item = names.name(f"phase 2/{i}")
        left, right = (f"images2/{names.name(f'{side}/{i}')}.png" for side in ("original", "exchanged"))
        second.pictures |= {left: case.original, right: case.picture}
        entry = {"item": item, "original": left, "exchanged": right}
        second.shown.append({**entry, "before": case.host, "after": case.claimed})
        second.key[item] = {
            "arm": case.key["arm"],
            "label": case.claimed,
            "before": case.host,
            "patient": case.key["patient"],
            "phase1": items[i],
        }
    return first, second


def _exchange(
    knees: Radiographs,
    pairs: Sequence[Pair],
    arms: Mapping[str, tuple[KECAE, str]],
    strength: float,
    precision: Precision,
) -> list[tuple[Tensor, Tensor]]:
    """Host and X' of every pair, (1, S, S) each."""
    made: dict[int, tuple[Tensor, Tensor]] = {}
    with tqdm(total=len(pairs), desc="exchange", unit="pair", leave=False) as bar:
        for arm, (model, detail) in arms.items():
            mine = [i for i, pair in enumerate(pairs) if pair.arm == arm]
            for at in range(0, len(mine), CHUNK):
                some = mine[at : at + CHUNK]
                indices = [pairs[i].host for i in some] + [pairs[i].donor for i in some]
                images = torch.stack([knees[index][0] for index in indices])
                partners = torch.arange(len(indices)).roll(len(some))  # of host j the donor, and the reverse
                exchanged = Exchanges(model, images, partners, precision).of(Kind(detail, strength))
                made |= {i: (images[j], exchanged[j]) for j, i in enumerate(some)}
                bar.update(len(some))
    return [made[i] for i in range(len(pairs))]


def _make_key(
    config: BuildConfig,
    study: Study,
    arms: list[str],
    models: Mapping[str, KECAE],
    first: Phase,
    second: Phase,
) -> Key:
    weights = [
        {"name": name, "sha256": models[Path(name).name].metadata.get("weights", {}).get("sha256")}
        for name in config.weights
    ]
    return check_key(
        {
            "format": KEY,
            "version": VERSION,
            "study": study["id"],
            "title": study["title"],
            "created": study["created"],
            "seed": config.seed,
            "weights": weights,
            "data": str(config.data / (config.split or "")),
            "allow_seen": config.allow_seen,
            "grades": study["grades"],
            "arms": arms,
            "phase1": first.key,
            "phase2": second.key,
        }
    )
