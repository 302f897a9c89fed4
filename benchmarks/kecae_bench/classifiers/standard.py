"""DenseNet-201, ResNet-18 and VGG-11 (with BatchNorm): torchvision's, untrained, with a stem of one channel."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.models import densenet201, resnet18, vgg11_bn

from kecae_bench.classifiers.base import KneeClassifier


class Standard(KneeClassifier):
    """A torchvision classifier for one channel: what it would do with the radiograph in all three of its channels.

    The images keep their size: the pooling before the last layers takes any. Of VGG-11's 129 M parameters 120 M are
    hidden layers after the convolutions, made for maps of 7x7; torchvision's pooling stretches smaller maps (4x4 at
    128 px) to that.

    Args:
        make: torchvision's function; called with ``num_classes`` alone, so there are no pretrained weights.
        stem: name of its first convolution.
        classes: logits.
        image_size: side of the images in pixels.
    """

    def __init__(self, make: Callable[..., nn.Module], stem: str, classes: int, image_size: int) -> None:
        super().__init__(classes, image_size)
        self.net = make(num_classes=classes)
        first = self.net.get_submodule(stem)
        assert isinstance(first, nn.Conv2d)  # for the type checker
        first.in_channels = 1
        first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))

    def logits(self, x: Tensor) -> Tensor:
        """(B, 1, S, S) -> (B, classes)."""
        out: Tensor = self.net(x)
        return out


def densenet_201(classes: int, image_size: int) -> KneeClassifier:
    """DenseNet-201."""
    return Standard(densenet201, "features.conv0", classes, image_size)


def resnet_18(classes: int, image_size: int) -> KneeClassifier:
    """ResNet-18."""
    return Standard(resnet18, "conv1", classes, image_size)


def vgg_11(classes: int, image_size: int) -> KneeClassifier:
    """VGG-11 with BatchNorm."""
    return Standard(vgg11_bn, "features.0", classes, image_size)
