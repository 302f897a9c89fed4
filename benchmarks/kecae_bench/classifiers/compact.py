"""The package's own small networks (discriminators and oracles are of them): made for small radiographs and few cores."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from kecae_bench.classifiers.base import KneeClassifier
from kecae_training.discriminator.networks import NETWORKS


class Compact(KneeClassifier):
    """One of :data:`kecae_training.discriminator.networks.NETWORKS`, untrained, as a classifier of the benchmark.

    Args:
        network: its key there.
        classes: logits.
        image_size: side of the images in pixels.
    """

    def __init__(self, network: str, classes: int, image_size: int) -> None:
        super().__init__(classes, image_size)
        self.net = NETWORKS[network](classes)

    def logits(self, x: Tensor) -> Tensor:
        """(B, 1, S, S) -> (B, classes)."""
        out: Tensor = self.net(x)
        return out


def compact(network: str) -> Callable[[int, int], KneeClassifier]:
    """(number of classes, side of the images) -> the network."""
    return lambda classes, image_size: Compact(network, classes, image_size)
