"""Phantom knees as a dataset and as a folder of files: patients with two knees each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from kecae_aug.files import list_visible
from kecae_aug.phantom.render import render
from kecae_aug.phantom.truth import (
    GRADES,
    NUISANCE,
    KneeTruth,
    Side,
    sample_key,
    sample_nuisance,
)

_MOST_PATIENTS = 100_000
_SIDES: tuple[Side, Side] = ("L", "R")


class PhantomKnees(Dataset[tuple[Tensor, int]]):
    """Phantom knees of `n_patients` patients, left then right of each: 2 * n_patients images.

    Convention:
        image: float32 (1, S, S) in [-1, 1], bone bright. label: int, index into `classes`.
        A knee is a function of (seed, first_patient + index // 2, index % 2) and of the arguments below that
        are not counts: a longer dataset begins with the shorter one, and any worker draws the same knee.

    Args:
        n_patients: 1 to 100,000, together with `first_patient`.
        grades: the classes, distinct Kellgren-Lawrence grades; about equally many knees of each.
        image_size: S in pixels, 32 to 640.
        seed: another seed gives other patients with other ids (seeds 0 to 89 never share an id).
        first_patient: number of the first patient. Patients 0-99 and, with `first_patient=100`, 100-149 are
            a training and a validation set without a patient in common.
        grade_correlation: chance that a patient's right knee has the grade of the left one without a draw.
        mirror_right: draw right knees in the orientation of left ones. `sides` still tells which they are.
        inverted: fraction of negatives (bone dark), in [0, 1].

    Attributes:
        targets: class index of every image, without rendering. classes: the grades as str.
        patients: patient id (seven digits) of every image. sides: "L" or "R".
        truths: the `KneeTruth` of every image; of one image, `truth(index)`.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """

    value_range = (-1.0, 1.0)  # of the images

    def __init__(
        self,
        n_patients: int,
        grades: Sequence[int] = (0, 2),
        image_size: int = 128,
        seed: int = 0,
        *,
        first_patient: int = 0,
        grade_correlation: float = 0.6,
        mirror_right: bool = False,
        inverted: float = 0.0,
    ) -> None:
        grades = tuple(grades)
        if n_patients < 1 or first_patient < 0 or first_patient + n_patients > _MOST_PATIENTS:
            raise ValueError(
                f"PhantomKnees: n_patients must be at least 1 and first_patient + n_patients at most "
                f"{_MOST_PATIENTS}, got n_patients={n_patients}, first_patient={first_patient}; use another seed for more"
            )
        if not grades or len(set(grades)) < len(grades) or not set(grades) <= set(GRADES):
            raise ValueError(f"PhantomKnees: grades must be distinct and among {GRADES}, got {grades}")
        if not 32 <= image_size <= 640:
            raise ValueError(f"PhantomKnees: image_size must be 32 to 640 pixels, got {image_size}")
        if seed < 0:
            raise ValueError(f"PhantomKnees: seed must not be negative, got {seed}")
        for name, value in (("grade_correlation", grade_correlation), ("inverted", inverted)):
            if not 0 <= value <= 1:
                raise ValueError(f"PhantomKnees: {name} must be in [0, 1], got {value}")
        self.n_patients, self.grades, self.image_size, self.seed = n_patients, grades, image_size, seed
        self.first_patient, self.grade_correlation = first_patient, grade_correlation
        self.mirror_right, self.inverted = mirror_right, inverted
        numbers = range(first_patient, first_patient + n_patients)
        self.classes = [str(g) for g in grades]
        self.targets = [t for p in numbers for t in self._labels(p)]
        self.patients = [_patient_id(seed, p) for p in numbers for _ in _SIDES]
        self.sides: list[Side] = [s for _ in numbers for s in _SIDES]

    def __len__(self) -> int:
        return 2 * self.n_patients

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = render(self.truth(index), self.image_size)
        return torch.from_numpy(image).mul(2).sub(1).unsqueeze(0), self.targets[index]

    def __repr__(self) -> str:
        return (
            f"PhantomKnees(n_patients={self.n_patients}, grades={self.grades}, image_size={self.image_size}, "
            f"seed={self.seed}, first_patient={self.first_patient})"
        )

    @cached_property
    def truths(self) -> tuple[KneeTruth, ...]:
        """The truth of every image, in order; computed at the first use (about 0.1 ms a knee)."""
        return tuple(self.truth(i) for i in range(len(self)))

    def truth(self, index: int) -> KneeTruth:
        """What image `index` is drawn from. Raises IndexError outside the dataset."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"PhantomKnees: index {index} is outside the {len(self)} knees")
        index %= len(self)
        patient, knee = self.first_patient + index // 2, index % 2
        shared = np.random.default_rng([self.seed, patient, 2]).standard_normal(len(NUISANCE))
        rng = np.random.default_rng([self.seed, patient, knee])
        key = sample_key(self.grades[self.targets[index]], rng)
        side: Side = "L" if self.mirror_right else _SIDES[knee]
        inverted = bool(rng.random() < self.inverted)
        return KneeTruth(key, sample_nuisance(rng, patient=shared, side=side, inverted=inverted))

    def _labels(self, patient: int) -> tuple[int, int]:
        """Class indices of both knees. Left knees are dealt out block by block, so that few patients suffice
        for every class to occur, and the deal does not depend on how many patients there are.
        """
        k = len(self.grades)
        deal = np.random.default_rng([self.seed, patient // k, 3]).permutation(k)
        left = int(deal[patient % k])
        rng = np.random.default_rng([self.seed, patient, 4])
        return left, left if rng.random() < self.grade_correlation else int(rng.integers(k))

    def write(self, folder: str | Path, split: str = "train") -> Path:
        """Write 8-bit PNG files `folder/split/<grade>/<patient id><L|R>.png`, and `truth.jsonl` beside them.

        Args:
            folder: made if needed.
            split: name of the folder below it, which must be absent or empty.

        Returns:
            folder/split.

        Raises:
            FileExistsError: folder/split holds something; nothing is written then.
        """
        root = Path(folder) / split
        if list_visible(root):
            raise FileExistsError(
                f"PhantomKnees.write: {root} is not empty; name another folder or remove it first"
            )
        for name in self.classes:
            (root / name).mkdir(parents=True, exist_ok=True)
        with (root.parent / f"truth-{split}.jsonl").open("w") as truths:
            for i, (target, patient, side) in enumerate(
                zip(self.targets, self.patients, self.sides, strict=True)
            ):
                truth = self.truth(i)
                grey = np.rint(render(truth, self.image_size) * 255).astype(np.uint8)
                name = f"{self.classes[target]}/{patient}{side}"
                Image.fromarray(grey).save(root / f"{name}.png")
                truths.write(f'{{"file": "{split}/{name}.png", "truth": {truth.to_json()}}}\n')
        return root


def write_phantoms(
    folder: str | Path,
    *,
    train_patients: int = 100,
    val_patients: int = 30,
    grades: Sequence[int] = (0, 2),
    image_size: int = 128,
    seed: int = 0,
) -> Path:
    """Write a training and a validation tree, in the layout of a graded radiograph folder, without common patients.

    Raises FileExistsError if `folder` holds anything (nothing is written then); returns `folder`.
    """
    root = Path(folder)
    if list_visible(root):
        raise FileExistsError(f"write_phantoms: {root} is not empty; name another folder or remove it first")
    PhantomKnees(train_patients, grades, image_size, seed).write(root, "train")
    PhantomKnees(val_patients, grades, image_size, seed, first_patient=train_patients).write(root, "val")
    return root


def _patient_id(seed: int, patient: int) -> str:
    return str(1_000_000 + (seed * _MOST_PATIENTS + patient) % 9_000_000)
