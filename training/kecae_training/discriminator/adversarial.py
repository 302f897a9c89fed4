"""The attack that a robust discriminator is trained against: projected gradient ascent in an L2 ball (Madry et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 128  # px, of the images that a radius is given for


def radius_at(radius: float, image_size: int) -> float:
    """The radius for another side: the L2 norm of the same change of every pixel grows with the side."""
    return radius * image_size / SIDE


def l2_attack(
    classify: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor, radius: float, steps: int
) -> Tensor:
    """Images moved to where the classifier errs most, each within an L2 ball about itself.

    It starts at the image, and each of its steps is 1.5 radius / steps long, so that it gets to the border and can turn on
    the way. The result is not cut to [-1, 1]: augmented images leave that range too.

    Args:
        classify: (B, 1, S, S) -> (B, K) float32 logits. In eval mode, or an image's attack depends on the others.
        images: (B, 1, S, S) float32; not changed.
        targets: (B,) class indices.
        radius: of the ball, in units of the images; 0 returns them unchanged.
        steps: of gradient ascent, at least 1.

    Returns:
        (B, 1, S, S), without a graph; no parameter's ``grad`` is touched.
    """
    length = 1.5 * radius / steps
    change = torch.zeros_like(images)
    for _ in range(steps):
        change.requires_grad_(True)
        loss = F.cross_entropy(classify(images + change), targets, reduction="sum")
        (slope,) = torch.autograd.grad(loss, change)
        change = change.detach() + length * slope / _norm(slope)
        change = change * (radius / _norm(change)).clamp(max=1)
    return images + change


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    return norm.clamp_min(1e-12)
