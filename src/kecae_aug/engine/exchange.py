"""From hosts and keys to exchanged knees of any size; used by the transform, the bank and the dataset."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info

from kecae_aug.engine.inference import FastKECAE
from kecae_aug.engine.model import KECAE
from kecae_aug.weights.io import hashes

Detail = Literal["decoder", "host"]


class Exchanger:
    """An inference copy of a model, outside every module tree, one a device.

    Images here are "unit": (B, C, H, W) float32 in [0, 1], C = 1 or 3 equal channels, any H and W.
    """

    def __init__(
        self,
        model: KECAE,
        amp_dtype: torch.dtype | None = None,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        if not isinstance(model, KECAE):
            raise TypeError(
                f"model: got {type(model).__name__}, accepted is a KECAE; for a name, a folder or a Hub id use "
                "from_pretrained(name) or load_weights(name)"
            )
        self.config, self.metadata = model.config, copy.deepcopy(model.metadata)
        self.fast = FastKECAE(model, amp_dtype or torch.float32, channels_last=channels_last, compile=compile)
        self.hashes = hashes(model)
        self.sha256 = self.hashes[0]
        self._copies: dict[torch.device, FastKECAE] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copies": {}}  # a spawned worker makes its own copies

    def on(self, device: torch.device) -> FastKECAE:
        """The model on this device; copied there on first use."""
        home = self.fast.device
        if get_worker_info() is not None and {home.type, device.type} != {"cpu"}:
            raise RuntimeError(
                f"model: on {home} with images on {device}, in a DataLoader worker; accepted there is the CPU only "
                "(CUDA cannot be used in forked workers). Exchange after the DataLoader, in the loop or with "
                "KeyExchangeLoader, or give model.cpu()"
            )
        if home == device:
            return self.fast
        if device not in self._copies:
            self._copies[device] = copy.deepcopy(self.fast).to(device)
        return self._copies[device]

    def preprocessed(self, unit: Tensor) -> Tensor:
        """Unit images -> what the model reads: (B, 1, S, S) in [-1, 1]."""
        size = self.config.image_size
        return resize(unit.mean(1, keepdim=True), (size, size)) * 2 - 1

    def keys(self, unit: Tensor) -> Tensor:
        """HK of unit images, (B, C, h, w)."""
        with torch.autocast(unit.device.type, enabled=False):
            return self.on(unit.device).encode_key(self.preprocessed(unit))

    def non_keys(self, unit: Tensor) -> Tensor:
        """HN of unit images, (B, C, h, w)."""
        with torch.autocast(unit.device.type, enabled=False):
            return self.on(unit.device).encode_non_key(self.preprocessed(unit))

    def exchange(
        self, hosts: Tensor, key: Tensor, own_key: Tensor | None, strengths: Tensor, detail: Detail
    ) -> Tensor:
        """X' of unit hosts and their donors' keys, at the hosts' size and channels.

        Args:
            hosts: unit images.
            key: hK of the donors.
            own_key: hK of the hosts; may be None where it plays no part (:func:`needs_own_key`).
            strengths: (B,) fraction of the donor's key.
            detail: see :class:`~kecae_aug.KeyExchangeAugment`.

        Returns:
            Unit images.
        """
        with torch.autocast(hosts.device.type, enabled=False):
            model = self.on(hosts.device)
            non_key = model.encode_non_key(self.preprocessed(hosts))
            new = model.decode(non_key + mixed(key, own_key, strengths))
            if detail == "decoder":
                out = (resize(new, hosts.shape[-2:]) + 1) / 2
                out = out.expand(-1, hosts.shape[1], -1, -1)
            else:
                assert own_key is not None
                change = new - model.decode(non_key + own_key)
                out = hosts + resize(change, hosts.shape[-2:]) / 2
            return out.clamp(0, 1)


def needs_own_key(strengths: Tensor, detail: Detail) -> bool:
    """Whether an exchange uses the host's own key: not for the paper's, which replaces it whole."""
    return detail == "host" or bool((strengths != 1).any())


def taken(values: Tensor, at: Tensor, rows: Tensor) -> Tensor:
    """Values of ``rows``, where ``values[i]`` is that of row ``at[i]`` (sorted)."""
    return values[torch.searchsorted(at, rows)]


def mixed(key: Tensor, own_key: Tensor | None, strengths: Tensor) -> Tensor:
    """(1 - s) hK + s hK' (Section III-A: s = 1)."""
    if own_key is None:
        return key
    s = strengths.to(key.dtype).view(-1, 1, 1, 1)
    return (1 - s) * own_key + s * key


def resize(images: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear with antialiasing; the same tensor where the size fits."""
    if images.shape[-2:] == tuple(size):
        return images
    return F.interpolate(images, size=tuple(size), mode="bilinear", antialias=True, align_corners=False)
