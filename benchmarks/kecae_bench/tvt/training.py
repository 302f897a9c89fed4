"""One classifier of one arm: equal steps, equally many validations, the best one is kept.

Test images are no argument here: what is chosen cannot depend on them.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from kecae_bench.machine import CPU, PRECISIONS, autocast, forked, to_device
from kecae_bench.stats import Scores, measure
from kecae_bench.tvt.batches import Batch, Batches
from kecae_bench.tvt.draws import seed_of
from kecae_bench.tvt.knees import Knees
from kecae_training.images import to_float

CHUNK = 64  # images scored at once

Build = Callable[[int, int], nn.Module]  # (classes, image size)
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Recipe(Protocol):
    """How a classifier is trained, the same in every arm."""

    @property
    def lr(self) -> float:
        """Peak of the one-cycle schedule."""

    def make(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of these parameters."""


@dataclass(frozen=True)
class Loop:
    """What all runs of a study share.

    Args:
        validations: how many, evenly over the steps, the last step included. The same number in every arm: the best of
            more would be better by chance.
        precision: of training and scoring; logits, losses and probabilities are float32.
        channels_last: memory format, faster on most CPUs.
        progress: show a bar, on a terminal.
        device: where networks train and score; the steps' images are moved there. All draws but those of the networks
            themselves (dropout) are the CPU's, so that a run sees the same knees on every device.
    """

    validations: int = 10
    precision: str = "float32"
    channels_last: bool = True
    progress: bool = True
    device: torch.device = CPU

    def __post_init__(self) -> None:
        if self.validations < 1:
            raise ValueError(f"validations={self.validations}: accepted is 1 or more")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r}: accepted are {', '.join(PRECISIONS)}")

    def validation_steps(self, steps: int) -> list[int]:
        """After which steps, from 1."""
        return sorted({max(1, round(steps * (i + 1) / self.validations)) for i in range(self.validations)})


@dataclass(frozen=True)
class Trained:
    """A run's classifier, as it was at its best validation.

    Attributes:
        model: in eval mode.
        best_step: after which step, from 1; the first of equals.
        validation: metrics there. scores: (N, K) probabilities of the validation knees there.
        curve: [step, mean training loss since the last validation, validation accuracy, validation AUROC] of each. The
            loss is over all that the arm learns from, so that losses of different arms are of different images.
        seconds: of the training, without the tests after it.
    """

    model: nn.Module
    best_step: int
    validation: dict[str, float]
    scores: Scores
    curve: list[list[float]]
    seconds: float


class DivergedError(RuntimeError):
    """A training whose loss is not finite."""


def train(
    build: Build,
    loss_of: Loss,
    recipe: Recipe,
    batches: Batches,
    validation: Knees,
    loop: Loop,
    name: str = "",
) -> Trained:
    """Train a classifier; the same arguments give the same one on the same machine and number of threads.

    Args:
        build: makes the network.
        loss_of: (model, images, labels) -> scalar.
        recipe: optimiser and learning rate (:class:`kecae_bench.classifiers.Recipe`).
        batches: the arm's steps, with its seed.
        validation: knees of the validation patients.
        loop: validations, precision.
        name: on the progress bar.

    Raises:
        DivergedError: with the step.
    """
    start = time.perf_counter()
    with forked(loop.device):
        torch.manual_seed(seed_of(batches.seed, "network"))
        model = build(len(validation.classes), validation.images.shape[-1])
        model.to(loop.device).to(memory_format=_memory(loop))
        optimiser = recipe.make(model.parameters())
        steps, at = batches.steps, set(loop.validation_steps(batches.steps))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=max(steps, 2))
        curve: list[list[float]] = []
        best: dict[str, Any] = {"auroc": float("-inf")}
        losses: list[float] = []
        bar = tqdm(range(1, steps + 1), desc=name, disable=None if loop.progress else True, leave=False)
        for step in bar:
            model.train()
            # CUDA is still in the last step's backward pass while the CPU makes this batch
            losses.append(learn(model, optimiser, loss_of, batches.batch(step - 1), loop))
            if not math.isfinite(losses[-1]):
                raise DivergedError(f"{name}: loss {losses[-1]} at step {step}; a smaller --lr may help")
            schedule.step()
            if step in at:
                scores = scores_of(model, validation.images, loop)
                if not np.isfinite(scores).all():
                    raise DivergedError(
                        f"{name}: no finite scores after step {step}; a smaller --lr may help"
                    )
                found = measure(scores, validation.labels.numpy())
                mean = round(sum(losses) / len(losses), 6)
                curve.append([step, mean, found["accuracy"], found["auroc"]])
                losses = []
                bar.set_postfix(loss=f"{mean:.3f}", auroc=f"{found['auroc']:.3f}")
                if found["auroc"] > best["auroc"]:
                    best = {"auroc": found["auroc"], "step": step, "found": found, "scores": scores}
                    best["state"] = copy.deepcopy(model.state_dict())
        model.load_state_dict(best["state"])
    seconds = round(time.perf_counter() - start, 1)
    return Trained(model.eval(), best["step"], best["found"], best["scores"], curve, seconds)


def learn(
    model: nn.Module, optimiser: torch.optim.Optimizer, loss_of: Loss, batch: Batch, loop: Loop
) -> float:
    """One step; its loss. Where that is not finite the weights stay."""
    images = batch.images.contiguous(memory_format=_memory(loop))
    with autocast(loop.device, loop.precision):
        loss = loss_of(model, images, batch.labels)
    value = float(loss.detach())
    if math.isfinite(value):
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return value


@torch.no_grad()
def scores_of(model: nn.Module, images: Tensor, loop: Loop) -> Scores:
    """(N, K) probabilities of (N, 1, S, S) uint8 images, as float32 values (what is stored is what is measured)."""
    model.eval()
    parts = []
    with forked(loop.device):
        torch.manual_seed(0)  # a network that draws in eval mode must not shift the training's draws
        for part in images.split(CHUNK):
            x = to_float(to_device(part, loop.device)).contiguous(memory_format=_memory(loop))
            with autocast(loop.device, loop.precision):
                logits = model(x)
            parts.append(logits.float().softmax(1))
    found: Scores = torch.cat(parts).cpu().numpy().astype("float64")
    return found


def _memory(loop: Loop) -> torch.memory_format:
    return torch.channels_last if loop.channels_last else torch.contiguous_format
