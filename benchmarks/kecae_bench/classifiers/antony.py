"""The network of Antony et al. [36] (MLDM 2017): the grade as a class and as a number, from one body."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kecae_bench.classifiers.base import KneeClassifier, as_targets, cross_entropy
from kecae_bench.classifiers.views import resize_to


def conv(c_in: int, channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Conv that keeps the map (or halves it, by its stride), BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(c_in, channels, kernel, stride, kernel // 2), nn.BatchNorm2d(channels), nn.ReLU()
    )


class Antony(KneeClassifier):
    """Seven convolutions and one hidden layer; maps of 100x150, 49x74, 24x36, 11x17, at the end 5x8.

    It sees 200x300 px: the middle two thirds of the rows. 3,080,771 parameters for two classes.

    Ours, where nothing is published: which rows; padding of the convolutions; equal weights of the two losses; class
    index as the grade the second head regresses (with classes KL 0 and KL 2, 0 and 1: a scale, no more).
    """

    def __init__(self, classes: int, image_size: int) -> None:
        super().__init__(classes, image_size)
        self.body = nn.Sequential(
            *(conv(1, 32, 11, stride=2), nn.MaxPool2d(3, 2)),
            *(conv(32, 64), conv(64, 64), nn.MaxPool2d(3, 2)),
            *(conv(64, 96), conv(96, 96), nn.MaxPool2d(3, 2)),
            *(conv(96, 128), conv(128, 128), nn.MaxPool2d(3, 2)),
            *(nn.Flatten(), nn.Linear(128 * 5 * 8, 512), nn.ReLU(), nn.Dropout(0.3)),
        )
        self.classify = nn.Linear(512, classes)
        self.regress = nn.Linear(512, 1)

    def features(self, x: Tensor) -> Tensor:
        """(B, 1, S, S) -> (B, 512)."""
        out: Tensor = self.body(resize_to(x, 300)[:, :, 50:250])
        return out

    def logits(self, x: Tensor) -> Tensor:
        """(B, 1, S, S) -> (B, classes)."""
        out: Tensor = self.classify(self.features(x))
        return out

    def training_loss(self, x: Tensor, y: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """Cross-entropy + mean squared error of the grade (of a soft label: its mean grade), weighted alike by class."""
        features = self.features(self.checked(x))
        grade: Tensor = self.regress(features)[:, 0].float()
        rows = as_targets(y, self.classes)
        weights = as_targets(y, self.classes, class_weights).sum(1)
        # no matrix product: autocast would round the grades
        wanted = (rows * torch.arange(self.classes, device=rows.device)).sum(1)
        error = (weights * (grade - wanted).square()).sum() / weights.sum()
        return cross_entropy(self.classify(features), y, class_weights) + error
