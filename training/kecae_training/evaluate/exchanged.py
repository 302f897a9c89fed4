"""The exchanged images of an evaluation: each knee is a host once, with a random donor of another grade."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kecae_aug.device import Precision, autocast
from kecae_aug.engine.exchange import host_detail
from kecae_aug.engine.model import KECAE
from kecae_training.discriminator import device_of

DETAILS = ("decoder", "host")
BATCH = 64


@dataclass(frozen=True)
class Kind:
    """A kind of X': `detail` and `strength` of the transform."""

    detail: str
    strength: float

    def __str__(self) -> str:
        return f"{self.detail} {self.strength:g}"


class Exchanges:
    """Knees encoded once, and whatever is decoded from them.

    Args:
        model: the weights, in eval mode.
        images: (N, 1, S, S) in [-1, 1].
        donors: (N,) row of the donor of each host.
        precision: of the network; all that comes out of it is float32.

    Attributes:
        key, non_key: (N, C, h, w). reconstruction: X^, (N, 1, S, S). They are on the CPU, wherever the model is.
    """

    @torch.no_grad()
    def __init__(
        self, model: KECAE, images: Tensor, donors: Tensor, precision: Precision = "32-true"
    ) -> None:
        self.model, self.images, self.donors = model.eval(), images, donors
        self.device, self.precision = device_of(model), precision
        with autocast(self.device, precision):
            parts = [model.encode(part.to(self.device)) for part in images.split(BATCH)]
        self.key = torch.cat([_back(p.key) for p in parts])
        self.non_key = torch.cat([_back(p.non_key) for p in parts])
        self.reconstruction = self._decode(self.non_key + self.key)
        self._decoded = {0.0: self.reconstruction}  # by strength: both details and every measurement need it

    def decoder(self, strength: float = 1.0) -> Tensor:
        """X' as decoded, (N, 1, S, S)."""
        if strength not in self._decoded:
            latents = self.non_key + (1 - strength) * self.key + strength * self.key[self.donors]
            self._decoded[strength] = self._decode(latents)
        return self._decoded[strength]

    def in_host(self, decoded: Tensor) -> Tensor:
        """The same exchange in the host's detail: X + X' - X^, clamped to [-1, 1]."""
        return host_detail(self.images, decoded, self.reconstruction)

    def of(self, kind: Kind) -> Tensor:
        """X' of a kind, (N, 1, S, S)."""
        decoded = self.decoder(kind.strength)
        return decoded if kind.detail == "decoder" else self.in_host(decoded)

    def base(self, detail: str) -> Tensor:
        """What X' of a detail would be without an exchange: X^, or the host itself."""
        return self.reconstruction if detail == "decoder" else self.images

    def pairs(self, hosts: Tensor, donors: Tensor) -> Tensor:
        """X' (decoder, strength 1) of any rows as hosts and donors."""
        return self._decode(self.non_key[hosts] + self.key[donors])

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            return torch.cat(
                [_back(self.model.decode(part.to(self.device))) for part in latents.split(BATCH)]
            )


def _back(values: Tensor) -> Tensor:
    """On the CPU, and no narrower than float32."""
    return values.cpu() if values.element_size() >= 4 else values.float().cpu()
