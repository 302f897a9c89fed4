"""Weights with their oracles, and the patients that each has seen.

An oracle must not have seen the evaluated patients, and should not have seen those of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kecae_aug.data import Preprocessing, open_radiographs
from kecae_aug.engine.model import KECAE
from kecae_aug.names import warn_of_zeros
from kecae_aug.weights.io import load_weights
from kecae_training.discriminator import Discriminator, ids_of, in_fold, load_discriminator
from kecae_training.discriminator.panel import members_of
from kecae_training.evaluate.exchanges import draw_stratified
from kecae_training.evaluate.identity import ShrunkImages, shrink
from kecae_training.images import to_float, to_uint8

TRAINING_SAMPLE = 500  # training images whose reconstruction is measured


class NotHeldOutError(ValueError):
    """Oracles or weights have seen patients of the evaluated split."""


def training_patients(model: KECAE, data: Path) -> set[str] | None:
    """Patients that weights were trained on, from what their config.json says of split and fold; None where not known.

    Their names are read from the split of the folder or table. Where it does not hold the same number of images, it is not
    what the weights were trained on, and nothing is known.
    """
    facts = model.metadata.get("data") or {}
    split = facts.get("split")
    if "images" not in facts:
        return None
    try:
        folder = open_radiographs(data, split, grades=list(model.config.classes))
    except (ValueError, FileNotFoundError):
        return None
    folds, fold = int(facts.get("folds", 1)), int(facts.get("fold", 0))
    patients = [p for p in folder.patients if in_fold(p, fold, folds)]
    return ids_of(patients) if len(patients) == facts["images"] else None


def both_of(seen: Iterable[Any], evaluated: Iterable[Any]) -> list[str]:
    """Patients in both, sorted; warns of ids that differ by leading zeros only."""
    one, two = ids_of(seen), ids_of(evaluated)
    warn_of_zeros(one | two)
    return sorted(one & two)


def check_oracles(
    oracles: Mapping[str, Discriminator],
    evaluated: Sequence[str],
    split: str,
    of_weights: set[str] | None,
    of_discriminator: set[str] | None,
) -> dict[str, dict[str, Any]]:
    """What is known of every oracle; refuses one that has seen an evaluated patient.

    Args:
        oracles: name -> oracle, with the patients in its metadata.
        evaluated: patients of the evaluated images.
        split: its name, for the error.
        of_weights: patients that the weights were trained on, None where not known.
        of_discriminator: patients that their discriminator was trained on, None where not known.

    Returns:
        By oracle: ``network``, ``patients``, ``shared_with_weights`` and ``shared_with_discriminator`` (counts, None
        where not known).

    Raises:
        NotHeldOutError: an oracle was trained on evaluated patients.
    """
    result = {}
    for name, oracle in oracles.items():
        seen = ids_of(oracle.metadata["patients"])
        both = both_of(seen, evaluated)
        if both:
            raise NotHeldOutError(
                f"oracles: {name} was trained on {len(both)} patients of split {split!r} ({both[:3]}, ...): "
                "it is not held out; train one on other patients (`kecae-aug discriminator --fold`)"
            )
        result[name] = {
            "network": oracle.config.network,
            "patients": len(seen),
            "shared_with_weights": None if of_weights is None else len(seen & ids_of(of_weights)),
            "shared_with_discriminator": None
            if of_discriminator is None
            else len(seen & ids_of(of_discriminator)),
        }
    return result


def check_weights(name: str, seen: set[str] | None, evaluated: Sequence[str], split: str) -> None:
    """Refuse weights that were trained on evaluated patients.

    Raises:
        NotHeldOutError: with how many, and the way out.
    """
    both = both_of(seen or (), evaluated)
    if both:
        raise NotHeldOutError(
            f"weights: {name} was trained on {len(both)} patients of split {split!r} ({both[:3]}, ...): its figures "
            "would not be held out; evaluate on another split (--split)"
        )


def warnings_of(oracles: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences on what is not as held out as it should be.

    Args:
        oracles: of one weights file, as :func:`check_oracles` gives them.
    """
    found = []
    for whom, what in (("weights", "these weights were"), ("discriminator", "their discriminator was")):
        shared = {n: j.get(f"shared_with_{whom}") for n, j in oracles.items()}
        some = [f"{n} ({count} of {oracles[n]['patients']} patients)" for n, count in shared.items() if count]
        if some:
            found.append(
                f"Trained on patients that {what} trained on too: {', '.join(some)}. Such an oracle cannot detect "
                "what it and the weights have both learned from the same knees."
            )
        unknown = [n for n, count in shared.items() if count is None]
        if unknown and whom == "weights":
            found.append(
                f"Not known whether an oracle shares patients with these weights: {', '.join(unknown)}."
            )
    if len({j["network"] for j in oracles.values()}) < 3:
        found.append("Fewer than three different oracle networks: what fools one may fool both.")
    return found


@dataclass
class Entrant:
    """A weights file with its oracles.

    Fields:
        model: the weights. oracles: name -> oracle. discriminator: the training's own, for the gap.
    """

    model: KECAE
    oracles: dict[str, Discriminator]
    discriminator: Discriminator | None = None


@dataclass(frozen=True)
class TrainingKnees:
    """HeldOutKnees that weights were trained on: all of them shrunk, and a sample (M, 1, S, S) of patients ``patients``."""

    album: ShrunkImages
    sample: Tensor
    patients: list[str]


def open_entrants(
    weights: Sequence[str], oracles: Sequence[Sequence[str]], discriminators: Sequence[str]
) -> dict[str, Entrant]:
    """Weights with their oracles and discriminator, by name.

    Raises:
        ValueError: numbers that do not fit, weights that do not read the same images, or an oracle or discriminator
        of other images.
    """
    if len(oracles) != len(weights) or not all(oracles):
        raise ValueError(
            f"oracles: {len(oracles)} lists for {len(weights)} weights; give one list of oracles for one weights file, "
            """or as JSON a list for each: --oracles '[["a", "b"], ["c", "d"]]'"""
        )
    if discriminators and len(discriminators) != len(weights):
        raise ValueError(
            f"discriminator: {len(discriminators)} for {len(weights)} weights; give one for each, or none"
        )
    if len(set(weights)) < len(weights):
        raise ValueError(f"weights={list(weights)}: each only once")
    entrants = {}
    for i, name in enumerate(weights):
        model = load_weights(name)
        classes = model.config.classes
        fits = Preprocessing.of(model)
        folders = [member for path in oracles[i] for member in members_of(path)]
        by_name = {path.name: load_discriminator(path, classes, preprocessing=fits) for path in folders}
        if len(by_name) < len(folders):
            raise ValueError(f"oracles={list(oracles[i])}: two folders of one name; rename one")
        discriminator = (
            load_discriminator(discriminators[i], classes, preprocessing=fits) if discriminators else None
        )
        entrants[name] = Entrant(model, by_name, discriminator)
    first, *others = (entrant.model for entrant in entrants.values())
    for other in others:
        if other.config.classes != first.config.classes or Preprocessing.of(other) != Preprocessing.of(first):
            raise ValueError(
                "weights: they read different images (classes or preprocessing), so they cannot be pooled"
            )
    return entrants


def open_training(entrant: Entrant, data: Path, split: str, seed: int) -> TrainingKnees:
    """The knees that weights were trained on, by the split and the fold that their config.json names."""
    model = entrant.model
    facts = model.metadata.get("data") or {}
    folder = open_radiographs(
        data, split, grades=list(model.config.classes), preprocessing=Preprocessing.of(model)
    )
    folds, fold = int(facts.get("folds", 1)), int(facts.get("fold", 0))
    folder = folder.subset(i for i, p in enumerate(folder.patients) if in_fold(p, fold, folds))
    images = to_uint8(folder)
    indices = draw_stratified(folder.targets, TRAINING_SAMPLE, seed)
    small = torch.cat([shrink(to_float(part)) for part in images.split(256)])
    return TrainingKnees(
        ShrunkImages(small, folder.files), to_float(images[indices]), [folder.patients[i] for i in indices]
    )


def check_classes(name: str, entrant: Entrant) -> None:
    """Refuse oracles whose logits are of other classes than the weights', or in another order."""
    target = entrant.model.config.classes
    for who, oracle in [*entrant.oracles.items(), ("discriminator", entrant.discriminator)]:
        if oracle is not None and tuple(oracle.classes) != tuple(target):
            raise ValueError(
                f"{who}: its logits are of classes {tuple(oracle.classes)}, {name} exchanges {tuple(target)}; load it with "
                f"load_discriminator(folder, {tuple(target)})"
            )
