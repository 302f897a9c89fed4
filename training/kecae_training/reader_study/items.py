"""The items of both phases: what readers get, what the key says of it, and the pictures, not yet written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from kecae_aug.data import Radiographs
from kecae_aug.device import Precision
from kecae_aug.model import KECAE
from kecae_training.reader_study.draw import Draw
from kecae_training.reader_study.formats import REAL
from kecae_training.reader_study.pictures import Secret
from kecae_training.validity.exchanged import Exchanges, Kind

CHUNK = 16  # pairs that are exchanged at once


@dataclass
class Shown:
    """A pair or a control before it becomes items: facts for the key, and pictures (1, S, S) in [-1, 1].

    Fields: arm, label, before, donor, strength_percent, patient, file: as the key has them for phase 1.
    claimed: the grade that phase 2 claims for ``picture``. host: the grade of ``original``.
    """

    arm: str
    label: str
    before: str | None
    donor: str | None
    strength_percent: int | None
    patient: str
    file: str
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


def make_shown(
    knees: Radiographs,
    drawn: Draw,
    arms: Mapping[str, tuple[KECAE, str]],
    strength: float,
    precision: Precision = "32-true",
) -> list[Shown]:
    """The pairs, exchanged, and after them the controls.

    Args:
        knees: prepared as the weights want it.
        drawn: rows of ``knees``.
        arms: name -> (weights, detail).
        strength: of the exchange.
        precision: of the weights, which run where they are.
    """
    grades = [knees.classes[target] for target in knees.targets]
    files = knees.files
    shown = []
    made = _exchanged(knees, drawn, arms, strength, precision)
    for (arm, host, donor), (original, picture) in zip(drawn.pairs, made, strict=True):
        shown.append(
            Shown(
                arm=arm,
                label=grades[donor],
                before=grades[host],
                donor=files[donor],
                strength_percent=round(strength * 100),
                patient=knees.patients[host],
                file=files[host],
                host=grades[host],
                claimed=grades[donor],
                original=original,
                picture=picture,
            )
        )
    for row, claimed in zip(tqdm(drawn.real, "real knees", leave=False), drawn.shown, strict=True):
        image = knees[row][0]
        shown.append(
            Shown(
                arm=REAL,
                label=grades[row],
                before=None,
                donor=None,
                strength_percent=None,
                patient=knees.patients[row],
                file=files[row],
                host=grades[row],
                claimed=knees.classes[claimed],
                original=image,
                picture=image,
            )
        )
    return shown


def make_phases(shown: Sequence[Shown], repeats: Sequence[int], hidden: Secret) -> tuple[Phase, Phase]:
    """Items under names that tell nothing: every picture, the repeated ones again; and every pair.

    Args:
        shown: as :func:`make_shown` gives it.
        repeats: positions in it.
        hidden: gives the names.
    """
    first, second = Phase(), Phase()
    names = [hidden.name(f"phase 1/{i}") for i in range(len(shown))]
    again = [(i, hidden.name(f"repeat/{i}")) for i in repeats]
    for i, name in [*enumerate(names), *again]:
        one = shown[i]
        file = f"images/{name}.png"
        first.pictures[file] = one.picture
        first.shown.append({"item": name, "image": file})
        first.key[name] = {
            "arm": one.arm,
            "label": one.label,
            "before": one.before,
            "patient": one.patient,
            "file": one.file,
            "donor": one.donor,
            "strength_percent": one.strength_percent,
            "repeat_of": None if name == names[i] else names[i],
        }
    for i, one in enumerate(shown):
        item = hidden.name(f"phase 2/{i}")
        left, right = (f"images2/{hidden.name(f'{side}/{i}')}.png" for side in ("original", "exchanged"))
        second.pictures |= {left: one.original, right: one.picture}
        entry = {"item": item, "original": left, "exchanged": right}
        second.shown.append({**entry, "before": one.host, "after": one.claimed})
        second.key[item] = {
            "arm": one.arm,
            "label": one.claimed,
            "before": one.host,
            "patient": one.patient,
            "phase1": names[i],
        }
    return first, second


def _exchanged(
    knees: Radiographs,
    drawn: Draw,
    arms: Mapping[str, tuple[KECAE, str]],
    strength: float,
    precision: Precision,
) -> list[tuple[Tensor, Tensor]]:
    """Host and X' of every pair, (1, S, S) each."""
    made: dict[int, tuple[Tensor, Tensor]] = {}
    with tqdm(total=len(drawn.pairs), desc="exchange", unit="pair", leave=False) as bar:
        for arm, (model, detail) in arms.items():
            mine = [i for i, pair in enumerate(drawn.pairs) if pair.arm == arm]
            for at in range(0, len(mine), CHUNK):
                some = mine[at : at + CHUNK]
                rows = [drawn.pairs[i].host for i in some] + [drawn.pairs[i].donor for i in some]
                images = torch.stack([knees[row][0] for row in rows])
                partners = torch.arange(len(rows)).roll(len(some))  # of host j the donor, and the other way
                exchanged = Exchanges(model, images, partners, precision).of(Kind(detail, strength))
                made |= {i: (images[j], exchanged[j]) for j, i in enumerate(some)}
                bar.update(len(some))
    return [made[i] for i in range(len(drawn.pairs))]
