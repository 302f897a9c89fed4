"""What is known of a classifier before it is built: its names, its native image, how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from kecae_bench.classifiers.base import KneeClassifier


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained, the same in every arm of the benchmark.

    Attributes:
        optimiser: ``adam`` adds weight decay to the gradient (L2), ``adamw`` shrinks the weights beside it.
        lr: highest learning rate of the schedule.
        weight_decay: of all parameters.
        batch_size: real images a step.
        source: who chose these numbers: ``published`` by the network's authors, or ``ours``, which nobody tuned.
    """

    optimiser: Literal["adam", "adamw"]
    lr: float
    weight_decay: float
    batch_size: int = 32
    source: Literal["published", "ours"] = "ours"

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of these parameters."""
        kind = torch.optim.AdamW if self.optimiser == "adamw" else torch.optim.Adam
        # one pass over the memory instead of ten: of VGG-11's 129 M parameters 0.1 s a step on one core, not 1.6
        return kind(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)


@dataclass(frozen=True)
class Spec:
    """A row of Table II, or a network beside it.

    Attributes:
        name: key of :data:`kecae_bench.classifiers.CLASSIFIERS`, on the command line and in result files.
        title: in tables and figures.
        table2: its name in Table II of the paper; None where it is not there.
        paper: accuracy in percent there, trained on T and on T'; None where it is not there.
        size: rows and columns the first layer is made for, whatever the image is; None where it takes any.
        make: (number of classes, side of the images) -> the network; :func:`kecae_bench.classifiers.build` calls it.
        recipe: how it is trained.
    """

    name: str
    title: str
    table2: str | None
    paper: tuple[float, float] | None
    size: tuple[int, int] | None
    make: Callable[[int, int], KneeClassifier]
    recipe: Recipe

    def build(self, classes: int, image_size: int) -> KneeClassifier:
        """The network, freshly initialised from torch's global generator; see :func:`kecae_bench.classifiers.build`."""
        return self.make(classes, image_size)
