"""A set of knees in memory, as classifiers, arms and kecae_aug read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kecae_aug.data import Preprocessing, check_disjoint, open_radiographs
from kecae_aug.data.folder import Row
from kecae_aug.data.source import has_split
from kecae_bench.machine import CPU, to_device
from kecae_training.checkpoint import fingerprint
from kecae_training.images import to_float, to_uint8


@dataclass(frozen=True)
class Knees(Dataset[tuple[Tensor, int]]):
    """Prepared knees; also a Dataset of (image (1, S, S) float32 in [-1, 1], class index).

    Attributes:
        images: (N, 1, S, S) uint8, 0 to 255 for [-1, 1].
        labels: (N,) int64 class indices.
        patients: N ids.
        files: N names, relative to the data's folder.
        classes: names of the classes.
    """

    images: Tensor
    labels: Tensor
    patients: tuple[str, ...]
    files: tuple[str, ...]
    classes: tuple[str, ...]

    value_range = (-1.0, 1.0)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return to_float(self.images[index]), int(self.labels[index])

    @cached_property
    def targets(self) -> list[int]:
        """Labels as a list, as samplers and kecae_aug want them."""
        found: list[int] = self.labels.tolist()
        return found

    @cached_property
    def members(self) -> list[list[int]]:
        """Indices of every class."""
        return [[i for i, t in enumerate(self.targets) if t == c] for c in range(len(self.classes))]

    def floats(self, indices: Tensor | Sequence[int], device: torch.device = CPU) -> Tensor:
        """(B, 1, S, S) float32 in [-1, 1], on the device."""
        return to_float(to_device(self.images[torch.as_tensor(indices)], device))

    def select(self, indices: Sequence[int]) -> Knees:
        """The knees of these indices, in their order."""
        at = torch.tensor(indices, dtype=torch.int64)
        return replace(
            self,
            images=self.images[at],
            labels=self.labels[at],
            patients=tuple(self.patients[r] for r in indices),
            files=tuple(self.files[r] for r in indices),
        )

    def fingerprint(self) -> str:
        """What was really trained or tested on: images, labels and patients."""
        marks = [int.from_bytes(p.encode(), "little") for p in self.patients]
        return fingerprint(self.images, [*self.targets, *marks])[:16]


class Folder(NamedTuple):
    """Radiographs in memory, the indices of their test split (none where there is no ``val``), and whence each came."""

    knees: Knees
    test: list[int]
    files: list[Row]


def read_folder(
    data: Path, grades: Sequence[str], preprocessing: Preprocessing, *, progress: bool = True
) -> Folder:
    """The splits ``train`` and ``val`` (the test split) in one set; or all, where there is no ``train``.

    Args:
        data: folder or table, see :func:`kecae_aug.data.open_radiographs`.
        grades: the classes, in the order of their indices.
        preprocessing: as the weights ask for it, at the classifiers' size.
        progress: show a bar while images are decoded.

    Raises:
        FileNotFoundError, ValueError: nothing readable there.
        PatientOverlapError: ``train`` and ``val`` share patients.
    """
    splits: list[str | None] = [split for split in ("train", "val") if has_split(data, split)]
    parts = {
        split: open_radiographs(data, split, grades=grades, preprocessing=preprocessing)
        for split in (splits if "train" in splits else [None])
    }
    check_disjoint(**{str(split): part.patients for split, part in parts.items()})
    knees = Knees(
        torch.cat([to_uint8(part, progress=progress) for part in parts.values()]),
        torch.tensor([t for part in parts.values() for t in part.targets]),
        tuple(p for part in parts.values() for p in part.patients),
        tuple(name for part in parts.values() for name in part.files),
        tuple(str(g) for g in grades),
    )
    n_test = len(parts.get("val", ()))
    records = [record for part in parts.values() for record in part.rows]
    return Folder(knees, list(range(len(knees) - n_test, len(knees))), records)
