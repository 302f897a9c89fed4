"""X': from a batch's hosts and donors to exchanged knees. Images are in [-1, 1] here, as the network reads them."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info

from kecae_aug.engine.inference import FastKECAE
from kecae_aug.engine.intensity import Intensity
from kecae_aug.engine.model import KECAE
from kecae_aug.engine.options import EngineOptions, check_engine
from kecae_aug.engine.transfer import send
from kecae_aug.weights.io import hashes

Detail = Literal["decoder", "host"]


def check_detail(detail: str) -> Detail:
    """``detail`` of every transform and data set.

    Raises:
        ValueError: another one.
    """
    if detail not in ("decoder", "host"):
        raise ValueError(f"detail={detail!r}: accepted are 'decoder' and 'host'")
    return detail  # type: ignore[return-value]


class Exchanger:
    """An inference copy of a model, outside every module tree, one a device.

    Images are (B, C, H, W) float32 in [-1, 1], C = 1 or 3 equal channels, any H and W; :meth:`exchange` alone takes them
    as the caller has them.
    """

    def __init__(self, model: KECAE, engine: EngineOptions | None = None) -> None:
        if not isinstance(model, KECAE):
            raise TypeError(
                f"model: got {type(model).__name__}, accepted is a KECAE; for a name, a folder or a Hub id use "
                "from_pretrained(name) or load_weights(name)"
            )
        self.config, self.metadata = model.config, copy.deepcopy(model.metadata)
        self.engine = check_engine(engine)
        self.fast = FastKECAE(model, self.engine)
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

    def fit(self, images: Tensor) -> Tensor:
        """What the network reads of images: (B, 1, S, S)."""
        size = self.config.image_size
        return resize(images.mean(1, keepdim=True), (size, size))

    def encode_key(self, images: Tensor) -> Tensor:
        """HK of images, (B, C, h, w) float32."""
        with torch.autocast(images.device.type, enabled=False):
            return self.on(images.device).encode_key(self.fit(images))

    def encode_non_key(self, images: Tensor) -> Tensor:
        """HN of images, (B, C, h, w) float32."""
        with torch.autocast(images.device.type, enabled=False):
            return self.on(images.device).encode_non_key(self.fit(images))

    @torch.no_grad()
    def exchange(
        self,
        images: Tensor,
        hosts: Tensor,
        donors: Tensor,
        strengths: Tensor,
        *,
        detail: Detail,
        intensity: Intensity,
        donor_keys: Tensor | None = None,
    ) -> Tensor:
        """X' of rows of a batch. Waits for no device: what decides is on the CPU.

        Args:
            images: (B, C, H, W) as the caller has them, on any device.
            hosts: (k,) int64 on the CPU, the rows that give hN.
            donors: (k,) int64 on the CPU, the rows that give hK; not read where ``donor_keys`` are given.
            strengths: (k,) float32 on the CPU, fraction of the donor's key.
            detail: ``"decoder"`` or ``"host"``, see :class:`~kecae_aug.KeyExchangeAugment`.
            intensity: the caller's scale.
            donor_keys: (k, C, h, w) float32, hK of donors that are no rows of the batch (of a bank).

        Returns:
            (k, C, H, W) in the dtype and scale of ``images``.
        """
        device, size = images.device, self.engine.chunk_size or max(1, len(hosts))
        needs_own_key = detail == "host" or bool((strengths != 1).any())
        wanted = [hosts] * needs_own_key + [donors] * (donor_keys is None)
        encoded = torch.cat(wanted).unique() if wanted else hosts[:0]  # each key once, whoever it is given to
        new = []
        with torch.autocast(device.type, enabled=False):
            model = self.on(device)
            keys = [
                self.encode_key(intensity.to_engine(images[send(rows, device)]))
                for rows in _split(encoded, size)
            ]
            key = torch.cat(keys) if keys else torch.empty(0, device=device)

            def key_of(rows: Tensor) -> Tensor:
                return key[send(torch.searchsorted(encoded, rows), device)]

            for part in _split(torch.arange(len(hosts), device="cpu"), size):
                host = intensity.to_engine(images[send(hosts[part], device)])
                non_key = model.encode_non_key(self.fit(host))
                own_key = key_of(hosts[part]) if needs_own_key else None
                donor_key = key_of(donors[part]) if donor_keys is None else send(donor_keys[part], device)
                exchanged = model.decode(
                    non_key + blend_keys(donor_key, own_key, send(strengths[part], device))
                )
                if detail == "host":
                    assert own_key is not None
                    exchanged = host_detail(host, exchanged, model.decode(non_key + own_key))
                else:
                    exchanged = resize(exchanged, host.shape[-2:]).clamp(-1, 1).expand_as(host)
                new.append(intensity.from_engine(exchanged, images.dtype))
        return torch.cat(new) if new else images[:0]


def _split(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    return rows.split(size) if len(rows) else ()  # torch gives one part of nothing


def blend_keys(donor_key: Tensor, own_key: Tensor | None, strengths: Tensor) -> Tensor:
    """(1 - s) hK + s hK' (Section III-A: s = 1, where the host's own key plays no part and may be None)."""
    if own_key is None:
        return donor_key
    s = strengths.to(donor_key.dtype).view(-1, 1, 1, 1)
    return (1 - s) * own_key + s * donor_key


def host_detail(host: Tensor, exchanged: Tensor, reconstruction: Tensor | None) -> Tensor:
    """X + X' - X^: the host's own image and what the exchange changed in it. Differentiable.

    Args:
        host: (B, C, H, W) in [-1, 1]; or X - X^, as a bank holds it.
        exchanged: X', (B, 1, S, S) in [-1, 1].
        reconstruction: X^, (B, 1, S, S) in [-1, 1]; None where ``host`` is X - X^.

    Returns:
        (B, C, H, W) in [-1, 1].
    """
    change = exchanged if reconstruction is None else exchanged - reconstruction
    return (host + resize(change, host.shape[-2:])).clamp(-1, 1)


def resize(images: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear with antialiasing; the same tensor where the size fits."""
    if images.shape[-2:] == tuple(size):
        return images
    return F.interpolate(images, size=tuple(size), mode="bilinear", antialias=True, align_corners=False)
