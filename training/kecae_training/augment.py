"""Standard augmentation of a batch: for discriminators and oracles, and, optionally, for the KECAE's own training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, generator: torch.Generator, amount: float = 1.0, noise: float = 0.06) -> Tensor:
    """Affine (7 degrees, 10 % zoom and shift), exposure (gain, offset) and noise, drawn for each image.

    Args:
        images: (B, 1, S, S) in [-1, 1].
        generator: of all draws, on the CPU.
        amount: scales the ranges of the affine map and of the exposure; 0 leaves the images as they are.
        noise: largest standard deviation of the noise, in units of [-1, 1].

    Returns:
        (B, 1, S, S); a little outside [-1, 1] where the exposure says so.
    """
    n = len(images)

    def draw(centre: float, reach: float) -> Tensor:
        return centre + amount * reach * (2 * torch.rand(n, generator=generator) - 1)

    angle, zoom = draw(0, 0.12), draw(1, 0.1)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    theta = torch.stack(
        [torch.stack([cos, -sin, draw(0, 0.1)], 1), torch.stack([sin, cos, draw(0, 0.1)], 1)], 1
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    images = images * draw(1, 0.2).view(-1, 1, 1, 1) + draw(0, 0.2).view(-1, 1, 1, 1)
    if not noise:
        return images
    sigma = noise * torch.rand(n, generator=generator)
    return images + torch.randn(images.shape, generator=generator) * sigma.view(-1, 1, 1, 1)
