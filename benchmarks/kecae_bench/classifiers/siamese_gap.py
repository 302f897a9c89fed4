"""Siamese-GAP of Wang et al. [9] (ISBI 2022): both compartments through one branch, averages of every level summed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kecae_bench.classifiers.base import KneeClassifier
from kecae_bench.classifiers.views import compartments

BLOCKS = ((1, 32, 2), (32, 64, 3), (64, 128, 4), (128, 256, 4))  # channels in and out, convolutions


def block(c_in: int, channels: int, depth: int) -> nn.Sequential:
    """``depth`` times [Conv 3x3 without padding, BatchNorm, ReLU]; the first has stride 2, but not on the image."""
    layers: list[nn.Module] = []
    for i in range(depth):
        stride = 2 if i == 0 and c_in > 1 else 1
        layers += [
            nn.Conv2d(c_in if i == 0 else channels, channels, 3, stride),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


class Attention(nn.Module):
    """x + x * sigmoid(MLP(average of x) + MLP(maximum of x)), one weight a channel; MLP: C -> C/8 -> C without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // 8, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // 8, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        weight = self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))
        return x + x * torch.sigmoid(weight)


class SiameseGAP(KneeClassifier):
    """Four blocks of 32 to 256 channels; maps of 126, 124 / 61, 59, 57 / 28, 26, 24, 22 / 10, 8, 6, 4 px.

    Each block's output is averaged over the map and summed over the two compartments; the four sums (480 numbers) go to
    one linear layer. So a mirrored knee gives the same logits. Attention stands between the blocks, after the averages are
    taken. None follows the last block, where nothing would read it: 2,693,858 parameters for two classes. The 2.71 M
    that are quoted for this network are these and one more attention of 256 channels (16,384).

    Both compartments pass as one batch, so BatchNorm sees them together (ours; the paper does not say).
    """

    def __init__(self, classes: int, image_size: int) -> None:
        super().__init__(classes, image_size)
        self.blocks = nn.ModuleList(block(*sizes) for sizes in BLOCKS)
        self.attention = nn.ModuleList(Attention(channels) for _, channels, _ in BLOCKS[:-1])
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(sum(c for _, c, _ in BLOCKS), classes))

    def logits(self, x: Tensor) -> Tensor:
        """(B, 1, S, S) -> (B, classes)."""
        maps, averages = compartments(x), []
        for level, convolutions in enumerate(self.blocks):
            maps = convolutions(maps)
            first, second = maps.mean((2, 3)).chunk(2)
            averages.append(first + second)
            if level < len(self.attention):
                maps = self.attention[level](maps)
        out: Tensor = self.head(torch.cat(averages, 1))
        return out
