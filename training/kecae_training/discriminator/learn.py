"""Training of a discriminator: AdamW in one cycle, an average of the weights, validation after each epoch, resume."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from kecae_aug.device import autocast, cpu_by_default
from kecae_aug.files import replacing
from kecae_training.augment import augment_strongly
from kecae_training.checkpoint import cut_log, fingerprint, read_checkpoint
from kecae_training.discriminator.adversarial import l2_attack, radius_at
from kecae_training.discriminator.lite import Lite
from kecae_training.discriminator.measure import validation_figures
from kecae_training.discriminator.model import Discriminator, DiscriminatorConfig, load_discriminator, predict
from kecae_training.images import to_float
from kecae_training.prefetch import pin, prefetch


def train_discriminator(
    images: Tensor,
    targets: Sequence[int],
    config: DiscriminatorConfig,
    *,
    validation: tuple[Tensor, Sequence[int]] | None = None,
    folder: Path | None = None,
    progress: bool = True,
    device: str | torch.device = "cpu",
) -> Discriminator:
    """Train a discriminator from ImageNet, from scratch or from ``config.init``; rare grades are drawn more often.

    The attack, where there is one, sees the discriminator in eval mode: then it is aimed at the function that will be used
    (running statistics, no dropout), an image's attack does not depend on its batch, and the running statistics are those of
    the images that are learned, not of every step on the way to them (Pang et al. 2021, "Bag of Tricks for Adversarial
    Training", found it to cost no robustness).

    Args:
        images: (N, 1, S, S) uint8, 0 to 255 for [-1, 1] (see :func:`kecae_training.images.to_uint8`).
        targets: N indices into ``config.grades``.
        config: see :class:`DiscriminatorConfig`.
        validation: images and targets of other patients, likewise. Then each epoch is validated, and the one with the best
            AUROC (mean over the pairs of grades) is returned; its figures stand in ``metadata["validation"]``.
        folder: log.jsonl and checkpoint.pt go there after every epoch, and the next call goes on from them.
        progress: show a progress bar; its accuracy is that on augmented, and attacked, images.
        device: where it is trained; the images stay where they are, batches are made and augmented on the CPU.

    Returns:
        The discriminator, frozen, on the CPU.

    Raises:
        ValueError: a grade without images; images of another size than ``config.image_size``; an ``init`` of another
            network; a ``folder`` of another training.
        FileNotFoundError: no discriminator in ``init``.
        ImportError: ``[pretrained]`` is not installed.
    """
    given = [("images", images), *([("validation", validation[0])] if validation is not None else [])]
    for name, some in given:
        if some.shape[-1] != config.image_size:
            raise ValueError(
                f"{name}: {some.shape[-1]} px, image_size={config.image_size}; accepted are images of that size"
            )
    labels = torch.as_tensor(targets, device="cpu")
    counts = torch.bincount(labels, minlength=len(config.grades))
    if (counts == 0).any():
        raise ValueError(
            f"targets: {counts.tolist()} images of the grades {config.grades}; every grade needs some"
        )
    with cpu_by_default():
        training = _Training(images.cpu(), labels, counts, config, torch.device(device), folder)
        return training.run(validation, progress)


class _Training:
    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        counts: Tensor,
        config: DiscriminatorConfig,
        device: torch.device,
        folder: Path | None,
    ) -> None:
        self.images, self.labels, self.config = images, labels, config
        self.device, self.folder = device, folder
        self.weights = 1.0 / counts[labels].double().sqrt()  # between as they come and balanced: KL 4 is rare
        self.steps = max(1, len(labels) // config.batch_size)
        self.epoch, self.best = 0, {"auroc": -1.0}
        self.kept: dict[str, Tensor] = {}  # weights of the best epoch
        torch.manual_seed(config.seed)
        # drawn on the CPU: the same weights at the start of every device
        self.network = begin(config).to(device).to(memory_format=torch.channels_last)
        self.averaged: AveragedModel | None = None
        if config.ema is not None:
            average = get_ema_multi_avg_fn(config.ema)
            self.averaged = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.lr, total_steps=self.steps * config.epochs
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "16-mixed")
        self.radius = radius_at(config.adversarial_radius, images.shape[-1])

    def run(self, validation: tuple[Tensor, Sequence[int]] | None, progress: bool) -> Discriminator:
        config = self.config
        self.resume()
        left = (config.epochs - self.epoch) * self.steps
        with (
            prefetch(self.batches()) as made,
            tqdm(
                total=left, desc=f"discriminator {config.network}", unit="step", disable=not progress
            ) as bar,
        ):
            while self.epoch < config.epochs:
                accuracy, loss = self.train_epoch(made, bar)
                self.epoch += 1
                figures: dict[str, Any] = {"epoch": self.epoch, "loss": loss, "train_accuracy": accuracy}
                found = self.network if self.averaged is None else self.averaged.module
                if validation is not None:
                    found.eval()
                    posterior = predict(found, validation[0], precision=config.precision)
                    figures |= validation_figures(posterior, validation[1], config.grades)
                if validation is None or figures["auroc"] > self.best["auroc"]:
                    self.best = {"auroc": -1.0, **figures}
                    self.kept = {k: v.detach().cpu().clone() for k, v in found.state_dict().items()}
                bar.set_postfix({k: f"{figures[k]:.3f}" for k in ("train_accuracy", "auroc") if k in figures})
                self.save(figures)
        discriminator = Discriminator(config)
        discriminator.load_state_dict(self.kept)
        discriminator.metadata = {**self.network.metadata}
        if validation is not None:
            discriminator.metadata["validation"] = self.best
        return discriminator.to(memory_format=torch.channels_last).freeze()

    def train_epoch(self, made: Iterator[tuple[Tensor, Tensor]], bar: tqdm[Any]) -> tuple[float, float]:
        config, network = self.config, self.network
        network.train()
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        total = torch.zeros((), device=self.device)
        for _ in range(self.steps):
            x, y = (t.to(self.device, non_blocking=True) for t in next(made))
            if self.radius:
                network.eval()
                x = l2_attack(self.logits, x, y, self.radius, config.adversarial_steps)
                network.train()
            logits = self.logits(x)
            wanted = soft_targets(y, len(config.grades), config.smoothing, config.ordinal)
            loss = F.cross_entropy(logits, wanted)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.schedule.step()
            if self.averaged is not None:
                self.averaged.update_parameters(network)
            correct += (logits.argmax(1) == y).sum()
            total += loss.detach()
            bar.update()
        return int(correct.cpu()) / (self.steps * config.batch_size), float(total.cpu()) / self.steps

    def logits(self, x: Tensor) -> Tensor:
        with autocast(self.device, self.config.precision):
            logits: Tensor = self.network(x.contiguous(memory_format=torch.channels_last))
        return logits.float()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Of the epochs that are left; an epoch's draws are a function of (seed, epoch), so that a resumed run
        sees the same.
        """
        config, n = self.config, self.steps * self.config.batch_size
        for epoch in range(self.epoch, config.epochs):
            generator = torch.Generator().manual_seed(config.seed * 1009 + epoch)
            order = torch.multinomial(self.weights, n, replacement=True, generator=generator)
            for rows in order.split(config.batch_size):
                x = augment_strongly(to_float(self.images[rows]), generator, wide=config.wide)
                yield pin(x, self.device), pin(self.labels[rows], self.device)

    @cached_property
    def identity(self) -> str:
        """What a checkpoint must have been written by: configuration and images."""
        return json.dumps([asdict(self.config), fingerprint(self.images, self.labels)], default=str)

    def save(self, figures: dict[str, Any]) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(figures) + "\n")
        state = {
            "identity": self.identity,
            "epoch": self.epoch,
            "best": self.best,
            "kept": self.kept,
            "network": self.network.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
        }
        with replacing(self.folder / "checkpoint.pt") as part:
            torch.save(state, part)

    def resume(self) -> None:
        if self.folder is None:
            return
        path = self.folder / "checkpoint.pt"
        if path.exists():
            self.load(path)
        cut_log(
            self.folder / "log.jsonl", "epoch", self.epoch
        )  # one that was logged and not saved comes again

    def load(self, path: Path) -> None:
        state = read_checkpoint(path)
        if state["identity"] != self.identity:
            raise ValueError(
                f"{path}: of a training with another configuration or other images; give another folder, or move it away"
            )
        self.network.load_state_dict(state["network"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        for name in ("optimizer", "schedule", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        self.epoch, self.best, self.kept = state["epoch"], state["best"], state["kept"]
        torch.set_rng_state(state["rng"])


def soft_targets(labels: Tensor, n_classes: int, smoothing: float, ordinal: bool) -> Tensor:
    """(B, K) targets: 1 - ``smoothing`` on the label, the rest on its neighbours (``ordinal``) or on all other classes."""
    index = torch.arange(n_classes, device=labels.device)
    distance = (index[None] - labels[:, None]).abs()
    others = ((distance == 1) if ordinal else (distance > 0)).float()
    return F.one_hot(labels, n_classes) * (1 - smoothing) + smoothing * others / others.sum(1, keepdim=True)


def begin(config: DiscriminatorConfig) -> Discriminator:
    """A discriminator at the start of its training: from ``config.init``, from ImageNet or from a draw."""
    discriminator = Discriminator(config)
    if config.from_imagenet:
        assert isinstance(discriminator.network, Lite)
        discriminator.network.load_imagenet()
    if config.init is None:
        return discriminator
    other = load_discriminator(config.init)
    if other.config.network != config.network:
        raise ValueError(
            f"init={str(config.init)!r}: its network is {other.config.network!r}, not {config.network!r}; give "
            f"network={other.config.network!r}, or no init"
        )
    state = other.network.state_dict()
    if other.config.grades != config.grades:
        last = [
            name for name, module in discriminator.network.named_modules() if isinstance(module, nn.Linear)
        ][-1]
        state |= {k: v for k, v in discriminator.network.state_dict().items() if k.startswith(f"{last}.")}
    discriminator.network.load_state_dict(state)
    discriminator.metadata = {"patients": sorted(other.patients)}
    return discriminator
