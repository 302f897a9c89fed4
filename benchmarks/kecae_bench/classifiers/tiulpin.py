"""The Siamese network of Tiulpin et al. [8] (Scientific Reports 2018): both compartments through one branch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kecae_bench.classifiers.base import KneeClassifier
from kecae_bench.classifiers.views import compartments


def conv(c_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    """Conv 3x3 without padding, BatchNorm, ReLU."""
    return nn.Sequential(nn.Conv2d(c_in, channels, 3, stride), nn.BatchNorm2d(channels, eps=1e-3), nn.ReLU())


class Tiulpin(KneeClassifier):
    """Six convolutions; maps of 63, 61, 59, pooled to 29, 27, 25, pooled to 12, 10, then averaged.

    The vectors of the two compartments stand side by side before the linear layer, so it knows which is which: a
    mirrored knee swaps them. The dropout's rate and the pass of both compartments as one batch are ours.

    Args:
        classes: logits.
        image_size: side of the images in pixels.
        width: channels of the first stage: 32 (149,314 parameters for two classes); 64 in their paper.
    """

    def __init__(self, classes: int, image_size: int, width: int = 32) -> None:
        super().__init__(classes, image_size)
        w = width
        self.branch = nn.Sequential(
            *(conv(1, w, stride=2), conv(w, w), conv(w, w), nn.MaxPool2d(2)),
            *(conv(w, 2 * w), conv(2 * w, 2 * w), nn.MaxPool2d(2)),
            *(conv(2 * w, 4 * w), nn.AvgPool2d(10), nn.Flatten()),
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8 * w, classes))

    def logits(self, x: Tensor) -> Tensor:
        """(B, 1, S, S) -> (B, classes)."""
        first, second = self.branch(compartments(x)).chunk(2)
        out: Tensor = self.head(torch.cat([first, second], 1))
        return out
