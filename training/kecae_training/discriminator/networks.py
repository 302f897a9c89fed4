"""The networks of discriminators and oracles: EfficientNet-Lite from ImageNet (:mod:`.lite`), and small ones from scratch.

They take (B, 1, S, S) in [-1, 1], any S of 32 or more, and return (B, n_classes) logits. Those from scratch are small on
purpose: a discriminator runs in every training step of a KECAE, and architectures that have little in common are
    what makes an
oracle held out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import DenseNet
from torchvision.models.densenet import _DenseBlock
from torchvision.models.resnet import BasicBlock

from kecae_training.discriminator.lite import LITE, Lite


def _conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    ]


def _head(channels: int, n_classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, n_classes)]


def vgg(n_classes: int) -> nn.Module:
    """Five pooled stages of plain 3x3 convolutions, 16 to 192 channels."""
    layers: list[nn.Module] = [*_conv(1, 16, 5, 2)]
    before = 16
    for channels, depth in ((32, 1), (64, 2), (128, 2), (192, 2)):
        layers.append(nn.MaxPool2d(2))
        for _ in range(depth):
            layers += _conv(before, channels)
            before = channels
    return nn.Sequential(*layers, *_head(before, n_classes))


def resnet(n_classes: int) -> nn.Module:
    """Four stages of torchvision's BasicBlock with strided shortcuts, 24 to 192 channels."""
    layers: list[nn.Module] = [*_conv(1, 24, 7, 2)]
    before = 24
    for channels, stride in ((24, 2), (48, 2), (96, 2), (192, 2)):
        shortcut = nn.Sequential(nn.Conv2d(before, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        layers.append(BasicBlock(before, channels, stride, shortcut))
        before = channels
    return nn.Sequential(*layers, *_head(before, n_classes))


def densenet(n_classes: int) -> nn.Module:
    """Torchvision's DenseNet with growth 12 and four dense blocks of 4, and a one-channel stem."""
    net = DenseNet(
        growth_rate=12, block_config=(4, 4, 4, 4), num_init_features=24, drop_rate=0.0, num_classes=n_classes
    )
    net.features.conv0 = nn.Conv2d(1, 24, 7, 2, 3, bias=False)
    module: nn.Module = net
    return module


class Siamese(nn.Module):
    """Both compartments through one branch, after Tiulpin et al. [8]: the halves of the knee, the second one mirrored.

    It sees each compartment alone, so it cannot lean on the knee's exposure or outline as a whole.

    Args:
        n_classes: logits.
        width: channels of the first stage; the last has four times as many.
    """

    def __init__(self, n_classes: int, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_conv(1, width, stride=2), *_conv(width, width), nn.MaxPool2d(2)]
        layers += [*_conv(width, 2 * width), *_conv(2 * width, 2 * width), nn.MaxPool2d(2)]
        layers += [*_conv(2 * width, 4 * width), *_conv(4 * width, 4 * width)]
        self.branch = nn.Sequential(*layers)
        self.join = _Join()
        self.head = nn.Sequential(*_head(8 * width, n_classes))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, S, S) -> (B, n_classes) logits."""
        half = images.shape[-1] // 2  # of an odd width the middle column is left out
        left, right = images[..., :half], images[..., -half:]
        logits: Tensor = self.head(self.join(self.branch(torch.cat([left, right.flip(-1)]))))
        return logits


class _Join(nn.Module):
    def forward(self, both: Tensor) -> Tensor:
        """(2B, C, h, w), first halves and then second ones -> (B, 2C, h, w)."""
        return torch.cat(both.chunk(2), dim=1)


def siamese(n_classes: int) -> nn.Module:
    """See :class:`Siamese`."""
    return Siamese(n_classes)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    **{name: partial(Lite, name) for name in LITE},
    "vgg": vgg,
    "resnet": resnet,
    "densenet": densenet,
    "siamese": siamese,
}


def stages(network: nn.Module) -> list[nn.Module]:
    """The modules whose outputs (B, C, h, w) are the network's features, from fine to coarse."""
    if isinstance(network, Lite):
        return network.stages()
    for kind in (_DenseBlock, BasicBlock, _Join, nn.MaxPool2d):
        found = [module for module in network.modules() if isinstance(module, kind)]
        if found:
            return found
    raise ValueError(f"network: {type(network).__name__} has no stages; accepted are those of build()")


def build(name: str, n_classes: int) -> nn.Module:
    """The network ``name`` with fresh weights."""
    if name not in NETWORKS:
        raise ValueError(f"network={name!r}: accepted are {', '.join(map(repr, NETWORKS))}")
    return NETWORKS[name](n_classes)
