"""Keys that know the grade before the first exchange.

An exchange can be learned only once hK says something of the grade. Learning that inside Algorithm 1 costs a decoder
and a discriminator in every step; the key's encoder with its head alone is a small classifier.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import trange

from kecae_training.augment import augment
from kecae_training.images import to_float
from kecae_training.prefetch import pinned, prefetched
from kecae_training.step import KeyExchange

Remembered = dict[str, list[dict[str, Tensor]]]
BATCH = 64
LR = 2e-3


def warm_up_keys(
    modules: KeyExchange,
    images: Tensor,
    labels: Tensor,
    steps: int,
    *,
    fabric: Fabric,
    seed: int,
    progress: bool,
    remembered: Remembered | None = None,
) -> None:
    """Train the key's encoder and its head as a classifier, in place.

    Every process does the same steps on the same batches, so nothing has to be exchanged between them.

    Args:
        modules: with the head of ``loss.grade_in_key``, not yet set up by Fabric.
        images: (N, 1, S, S) uint8, the training knees.
        labels: (N,) their class indices; batches are class-balanced.
        steps: of 64 augmented knees.
        fabric: for the device and the precision.
        seed: of the batches and their augmentation.
        progress: show a progress bar.
        remembered: warm keys of earlier trainings on these images, in this process: taken from here, or added.
    """
    model, head = modules.model, modules.key_head
    assert head is not None
    parts = (model.key_encoder, model.spread, head)
    same = f"{model.config} {steps} {seed} {fabric.strategy.precision.precision}"
    if remembered is not None and same in remembered:
        for part, state in zip(parts, remembered[same], strict=True):
            part.load_state_dict(state)
        return
    modules.to(fabric.device).train()
    learned = [parameter for part in parts for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=LR, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    balanced = 1.0 / torch.bincount(labels)[labels].double()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(steps):
            rows = torch.multinomial(balanced, BATCH, replacement=True, generator=generator)
            knees = augment(to_float(images[rows]), generator).contiguous(memory_format=torch.channels_last)
            yield pinned(knees, fabric.device), pinned(labels[rows], fabric.device)

    with prefetched(batches()) as made:
        for step in (bar := trange(steps, desc="keys", unit="step", disable=not progress)):
            knees, targets = (t.to(fabric.device, non_blocking=True) for t in next(made))
            with fabric.autocast():
                key = model.spread(model.key_encoder(knees))
                logits = head(key.flatten(1)).float()
            loss = F.cross_entropy(logits, targets, label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            optimizer.step()
            schedule.step()
            if step % 10 == 9:  # reading it waits for the device
                bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
    optimizer.zero_grad(set_to_none=True)
    if remembered is not None:
        remembered[same] = [deepcopy(part.state_dict()) for part in parts]
