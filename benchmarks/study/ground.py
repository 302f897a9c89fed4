"""What runs stand on: knees, their split, weights and judges, checked for leaks before anything is trained."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kecae_aug import KECAE, load_weights
from kecae_aug.data import Preparation
from kecae_training.guide import Guide, load_guide
from study.knees import Knees, read_folder
from study.seen import Seen, by_judge, by_weights
from study.split import Split, fixed_split, k_fold_split


@dataclass(frozen=True)
class Ground:
    """What a fold's runs stand on.

    Attributes:
        knees: all. split: their parts; checked.
        model, name, seen: weights, as the user named them, and whom they were trained on; None for arms of T alone.
        judges: held-out judges of the gate and of soft labels, by folder.
    """

    knees: Knees
    split: Split
    model: KECAE | None = None
    name: str = ""
    seen: Seen | None = None
    judges: Mapping[str, Guide] = field(default_factory=dict)

    @property
    def judge_size(self) -> int | None:
        """Side of the images that all judges read.

        Raises:
            ValueError: they read different ones.
        """
        sizes = {judge.config.image_size for judge in self.judges.values()}
        if len(sizes) > 1:
            raise ValueError(f"judges: they read images of {sorted(sizes)} px, accepted is one size")
        return next(iter(sizes), None)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of the three parts: images, labels and patients."""
        parts = ("train", "validation", "test")
        return {name: self.knees.of(getattr(self.split, name)).fingerprint() for name in parts}


def open_grounds(
    args: argparse.Namespace, folds: int | None, progress: bool = True
) -> dict[int | None, Ground]:
    """Data, split, weights and judges of every fold (``{None: ...}`` for a fixed test set), checked for leaks.

    Raises:
        ValueError, FileNotFoundError: with the way out; nothing has been trained then.
    """
    numbers: list[int | None] = [None] if folds is None else list(range(folds))
    if len(args.weights) != len(numbers):
        raise ValueError(
            f"weights: {len(args.weights)} given for {len(numbers)} test sets; give one for each, trained on none of its "
            "patients (--export-folds writes the folders to train them on)"
        )
    models = [load_weights(name) for name in args.weights]
    preparations = {Preparation.of(m) for m in models}
    classes = {m.config.classes for m in models}
    if len(preparations) > 1 or len(classes) > 1:
        raise ValueError(
            f"weights: they differ in preparation or classes ({preparations}, {classes}); give like ones"
        )
    grades = [str(c) for c in models[0].config.classes]
    judges = {fold: _judges(args.judges, fold, grades) for fold in numbers}
    preparation = replace(preparations.pop(), image_size=args.image_size)
    knees, test = read_folder(args.data, grades, preparation, progress=progress)
    grounds: dict[int | None, Ground] = {}
    for fold, model, name in zip(numbers, models, args.weights, strict=True):
        seen = by_weights(model, name, [args.data, *args.weights_data], trust=args.trust_weights)
        everybody = [seen, *(by_judge(judge, path) for path, judge in judges[fold].items())]
        how: dict[str, Any] = {"share": args.validation_share}
        split = (
            fixed_split(knees, test, everybody, **how)
            if fold is None or folds is None
            else k_fold_split(knees, fold, folds, everybody, **how)
        )
        grounds[fold] = Ground(knees, split, model, name, seen, judges[fold])
        told(grounds[fold])
    return grounds


def _judges(paths: Sequence[Path], fold: int | None, grades: Sequence[str]) -> dict[str, Guide]:
    """Judges of a fold: ``{fold}`` in a path is its number."""
    named = [str(path).replace("{fold}", str(fold)) for path in paths]
    return {name: load_guide(name, grades) for name in named}


def told(ground: Ground) -> None:
    """Print what a fold stands on."""
    patients = ground.knees.patients
    parts = {
        name: f"{len(rows)} knees of {len({patients[r] for r in rows})} patients"
        for name, rows in vars(ground.split).items()
        if name != "fold"
    }
    fold = "" if ground.split.fold is None else f"fold {ground.split.fold}: "
    print(fold + "; ".join(f"{name} {what}" for name, what in parts.items()), flush=True)
    if ground.seen is not None:
        known = ground.seen.patients
        print(
            f"{ground.seen.name}: "
            + (
                "NOT KNOWN whom they were trained on (--trust-weights)"
                if known is None
                else f"trained on {len(known)} patients, none of validation or test"
            ),
            flush=True,
        )


def export_folds(args: argparse.Namespace, folds: int, out: Path) -> list[Path]:
    """Folders to train each fold's weights, guides and judges on: OUT/fold-K/train/<grade>, links to the images.

    A fold's test patients are not in its folder, nor the patients that are kept for validation.

    Raises:
        FileExistsError: OUT/fold-K is there already; nothing is written then.
    """
    model = load_weights(args.weights[0])  # for the grades alone
    preparation = replace(Preparation.of(model), image_size=args.image_size)
    knees, _ = read_folder(args.data, [str(c) for c in model.config.classes], preparation)
    places = [out / f"fold-{fold}" for fold in range(folds)]
    there = [str(place) for place in places if place.exists()]
    if there:
        raise FileExistsError(
            f"--export-folds: {there[0]} is there already; name another folder or remove it"
        )
    for fold, place in enumerate(places):
        split = k_fold_split(knees, fold, folds, [], share=args.validation_share)
        for row in split.train:
            file = args.data.resolve() / knees.files[row]
            link = place / "train" / file.parent.name / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
        print(
            f"{place}: {len(split.train)} images; kecae-aug guide and train --data.root {place}", flush=True
        )
    return places
