"""What reads the grade from a latent while the KECAE learns; not part of the exported weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kecae_aug.engine.model import KECAEConfig


def adversary(config: KECAEConfig) -> nn.Module:
    """Reads the grade from hN: (B, C, h, w) -> (B, classes). For maps it is convolutional, as what it must find is local."""
    channels, side, _ = config.latent_shape
    classes = len(config.classes)
    if side == 1:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(channels, 128), nn.LeakyReLU(0.2), nn.Linear(128, classes)
        )
    return nn.Sequential(
        *(nn.Conv2d(channels, 64, 3, 1, 1), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(64, 64, 3, 2, 1), nn.LeakyReLU(0.2)),
        *(nn.Flatten(), nn.Linear(64 * ((side + 1) // 2) ** 2, classes)),
    )


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * grads[0], None


def reverse_gradient(x: Tensor, scale: float = 1.0) -> Tensor:
    """Identity whose gradient is multiplied by ``-scale``: the head learns, what feeds it unlearns."""
    reversed_: Tensor = _Reversal.apply(x, scale)
    return reversed_
