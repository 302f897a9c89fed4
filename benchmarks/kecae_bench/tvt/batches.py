"""The steps of one run: real knees, the same in every arm of a seed, and beside them what the arm adds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2

from kecae_bench.machine import to_device
from kecae_bench.tvt.added import Added, Made, Tools, soft
from kecae_bench.tvt.arms import Arm, ExchangeOptions
from kecae_bench.tvt.augmentation import Augmentation
from kecae_bench.tvt.draws import BalancedIndices, generator, seeded
from kecae_bench.tvt.knees import Knees

MIXUP_ALPHA = 0.2  # Zhang et al. 2018 use 0.1 to 0.4 on natural images
CUTMIX_ALPHA = 1.0  # Yun et al. 2019


class Batch(NamedTuple):
    """A step: images (B + A, 1, S, S) float32 in [-1, 1], labels (B + A,) int64 or (B + A, K) float32, B real first.

    Both are on the device of :class:`Tools`.
    """

    images: Tensor
    labels: Tensor
    real: int


@dataclass
class Batches:
    """The steps of one run; step n is a function of these arguments and n.

    Args:
        arm: one of :data:`ARMS`.
        knees: T, the training knees alone.
        seed: of the run. size: real knees a step. steps: of an arm at equal steps; "paper" has its own number.
        options: how X' is used. tools: weights, oracles, N.
        augmentation: ranges of the standard augmentation; None for none.

    Attributes:
        steps: of this run. added: how many images were added so far.

    Raises:
        ValueError: an arm without what it needs.
    """

    arm: Arm
    knees: Knees
    seed: int
    size: int
    steps: int
    options: ExchangeOptions = field(default_factory=ExchangeOptions)
    tools: Tools = field(default_factory=Tools)
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    added: int = 0

    def __post_init__(self) -> None:
        self._real = BalancedIndices(self.knees.members, self.seed, "real")
        self._k = len(self.knees.classes)
        self.per_step = self.options.count_beside(self.size)
        self._until = math.ceil(self.options.early * self.steps)
        self._adds = (
            None
            if self.arm.added == "none"
            else Added(self.arm, self.knees, self.seed, self.per_step, self.options, self.tools)
        )
        self._mix = {
            None: None,
            "mixup": v2.MixUp(alpha=MIXUP_ALPHA, num_classes=self._k),
            "cutmix": v2.CutMix(alpha=CUTMIX_ALPHA, num_classes=self._k),
        }[self.arm.mix]
        if self.arm.added == "paper":
            assert self._adds is not None
            assert self._adds.prime is not None
            self.steps = round(self.steps * len(self._adds.prime) / len(self.knees))

    def indices(self, step: int) -> Tensor:
        """(B,) indices of T that a step begins with, in every arm but "paper"."""
        return self._real.batch(step, self.size)

    def batch(self, step: int) -> Batch:
        """What the network learns from in step ``step``, from 0."""
        new: Made | None = None
        adds = self._adds
        if adds is not None and self.arm.added == "paper":
            images, labels = adds.draw_of_prime(step, self.size, "paper")
        else:
            indices = self.indices(step)
            images, labels = self.knees.floats(indices, self.tools.device), self.knees.labels[indices]
            if adds is not None and step < self._until:
                with seeded(self.seed, step, "added"):
                    if self.arm.added == "exchanged" and self.options.p is not None:
                        images, labels, replaced = adds.replace(images, labels, indices)
                        self.added += replaced
                    else:
                        new = adds.make(images, labels, indices, step)
        images = self._augment(images, step, "standard")
        real = len(images)
        if new is not None and len(new[0]):
            extra = self._augment(new[0], step, "standard of added")
            images = torch.cat([images, extra])
            labels = _join(labels, new[1], self._k)
            self.added += len(extra)
        if self._mix is not None:
            with seeded(self.seed, step, "mix"):
                images, labels = self._mix(images, labels)
        return Batch(images, to_device(labels, self.tools.device), real)

    def _augment(self, images: Tensor, step: int, draws: str) -> Tensor:
        """``draws`` names the random numbers: it is part of the seed, so another name gives another run."""
        if self.augmentation is None:
            return images
        return self.augmentation(images, generator(self.seed, step, draws))

    def report(self) -> dict[str, Any]:
        """What was added, and what the gate said, for the run's line."""
        found: dict[str, Any] = {"added": self.added}
        if self._adds is not None and self._adds.gate is not None:
            found["gate"] = dict(self._adds.gate.counts)
        return found


def _join(real: Tensor, added: Tensor, k: int) -> Tensor:
    if real.ndim == added.ndim == 1:
        return torch.cat([real, added])
    return torch.cat([soft(real, k), soft(added, k)])
