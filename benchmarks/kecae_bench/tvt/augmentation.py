"""Standard augmentation: flip (off), affine, exposure; one draw an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Ranges; a value of 0 switches a part off.

    Args:
        degrees: of rotation, either way.
        shift: fraction of the side, in both directions.
        scale: zoom, from 1 - scale to 1 + scale.
        gamma: largest absolute logarithm of the exponent on grey values in [0, 1].
        contrast: gain about the image's mean, from 1 - contrast to 1 + contrast.
        flip: chance of a left-right flip. 0: right knees are mirrored already, so that medial is always on the same
            side, which a flip would undo.
    """

    degrees: float = 7.0
    shift: float = 0.05
    scale: float = 0.05
    gamma: float = 0.2
    contrast: float = 0.15
    flip: float = 0.0

    def __post_init__(self) -> None:
        wrong = {k: v for k, v in vars(self).items() if v < 0}
        if wrong or self.scale >= 1 or self.contrast >= 1 or self.flip > 1:
            raise ValueError(
                f"augmentation: got {vars(self)}; accepted are numbers of 0 or more, scale and contrast below 1, flip "
                "up to 1"
            )

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment.

        Args:
            images: (B, 1, S, S) float32 in [-1, 1].
            generator: of all draws, on the CPU. Seven numbers an image are drawn, whatever is switched off.

        Returns:
            (B, 1, S, S) float32 in [-1, 1].
        """
        draws = torch.rand(7, len(images), generator=generator).mul(2).sub(1).to(images.device)
        angle, zoom = draws[0] * self.degrees * torch.pi / 180, 1 + self.scale * draws[1]
        mirror = torch.where((draws[6] + 1) / 2 < self.flip, -1.0, 1.0)
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        # shifts are fractions of the side, which is 2 in the grid's coordinates
        rows = [torch.stack([mirror * cos, -sin, 2 * self.shift * draws[2]], 1)]
        rows.append(torch.stack([mirror * sin, cos, 2 * self.shift * draws[3]], 1))
        grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        unit = ((moved + 1) / 2).clamp(0, 1) ** (self.gamma * draws[4]).exp().view(-1, 1, 1, 1)
        mean = unit.mean((1, 2, 3), keepdim=True)
        out = (unit - mean) * (1 + self.contrast * draws[5]).view(-1, 1, 1, 1) + mean
        return out.clamp(0, 1) * 2 - 1
