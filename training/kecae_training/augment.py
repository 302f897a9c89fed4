"""Standard augmentation of a batch: mild for the KECAE's own training, strong for discriminators and oracles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

PADDINGS = ("border", "reflection", "zeros")  # of a frame that is wider than the image


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
    images = _moved(images, angle, zoom, draw(0, 0.1), draw(0, 0.1))
    images = images * draw(1, 0.2).view(-1, 1, 1, 1) + draw(0, 0.2).view(-1, 1, 1, 1)
    if not noise:
        return images
    sigma = noise * torch.rand(n, generator=generator)
    return images + torch.randn(images.shape, generator=generator) * sigma.view(-1, 1, 1, 1)


def augment_strongly(images: Tensor, generator: torch.Generator, *, wide: float = 0.3) -> Tensor:
    """What a classifier of other clinics' knees must not mind: frame, exposure curve, focus, noise; drawn for each image.

    Affine (7 degrees, 10 % zoom, 8 % shift); a fraction ``wide`` of the images stands in a frame up to 1 / 0.6 times
    as wide, continued by its border, mirrored or black; gamma 0.67 to 1.5, gain and offset; Gaussian blur of half of
    the batches (sigma up to 1 px); noise up to 0.03.

    Args:
        images: (B, 1, S, S) in [-1, 1].
        generator: of all draws, on the CPU.
        wide: fraction of the images in a wider frame.

    Returns:
        (B, 1, S, S); a little outside [-1, 1] where the exposure says so.
    """
    n = len(images)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    widened = torch.rand(n, generator=generator) < wide
    scale = torch.where(widened, draw(0.6, 0.9), draw(0.9, 1.1))
    mode = PADDINGS[int(torch.randint(len(PADDINGS), (), generator=generator))]
    unit = (images + 1) / 2
    unit = _moved(unit, draw(-0.12, 0.12), 1 / scale, draw(-0.08, 0.08), draw(-0.08, 0.08), mode)
    unit = unit.clamp(0, 1) ** draw(-0.4, 0.4).exp().view(-1, 1, 1, 1)
    images = 2 * unit - 1
    images = images * draw(0.8, 1.2).view(-1, 1, 1, 1) + draw(-0.2, 0.2).view(-1, 1, 1, 1)
    sigma = 2.0 * float(torch.rand((), generator=generator)) - 1.0
    if sigma > 0.2:
        images = gaussian_blur(images, [7, 7], [sigma, sigma])
    return images + torch.randn(images.shape, generator=generator) * draw(0, 0.03).view(-1, 1, 1, 1)


def _moved(
    images: Tensor, angle: Tensor, zoom: Tensor, dx: Tensor, dy: Tensor, padding: str = "border"
) -> Tensor:
    """Turned (radians), shrunk ``zoom`` times, shifted (fractions of half the side), each (B,)."""
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    theta = torch.stack([torch.stack([cos, -sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=False)
