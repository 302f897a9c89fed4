"""The images of an evaluation: held-out knees, each a host once with a random donor of another grade, and their X'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from kecae_aug.data import Preprocessing, open_radiographs
from kecae_aug.device import Precision, autocast
from kecae_aug.engine.exchange import host_detail
from kecae_aug.engine.model import KECAE
from kecae_aug.phantom.truth import Side
from kecae_training.bootstrap import Bools
from kecae_training.discriminator import device_of
from kecae_training.images import to_float, to_uint8

DETAILS = ("decoder", "host")
BATCH = 64


@dataclass
class HeldOutKnees:
    """Knees of patients that neither weights nor oracles have seen.

    Fields:
        images: (N, 1, S, S) in [-1, 1]. labels: (N,) class indices. patients: N ids.
        files: name of every image, to list it by. sides: "L", "R" or None as in the file.
        medial: where the medial side of the *preprocessed* image is, as the JSW measurement wants it; None where not known.
    """

    images: Tensor
    labels: Tensor
    patients: list[str]
    files: list[str] = field(default_factory=list)
    sides: list[str | None] = field(default_factory=list)
    medial: list[Side | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = len(self.patients)
        self.files = self.files or [str(i) for i in range(n)]
        self.sides = self.sides or [None] * n
        self.medial = self.medial or [None] * n


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
        donors: (N,) index of the donor of each host.
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
        """X' (decoder, strength 1) of any indices as hosts and donors."""
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


def open_knees(
    model: KECAE, data: Path, split: str | None, max_images: int | None = None, seed: int = 0
) -> HeldOutKnees:
    """The knees of a split, preprocessed as the weights ask for it.

    Args:
        model: the weights.
        data: folder of split/grade/name, or a table.
        split: subfolder.
        max_images: at most so many, stratified by grade; None takes all.
        seed: of that choice.
    """
    preprocessing = Preprocessing.of(model)
    folder = open_radiographs(data, split, grades=list(model.config.classes), preprocessing=preprocessing)
    if max_images is not None:
        if max_images < 2 * len(model.config.classes):
            raise ValueError(
                f"max_images={max_images}: at least {2 * len(model.config.classes)}, two of each grade, or none for all"
            )
        folder = folder.subset(draw_stratified(folder.targets, max_images, seed))
    medial: list[Side | None] = [
        "L" if preprocessing.mirror_right or side == "L" else "R" if side == "R" else None
        for side in folder.sides
    ]
    return HeldOutKnees(
        to_float(to_uint8(folder)),
        torch.tensor(folder.targets),
        list(folder.patients),
        folder.files,
        list(folder.sides),
        medial,
    )


def draw_stratified(labels: Sequence[int], n: int, seed: int) -> list[int]:
    """At most ``n`` indices, each grade by its frequency (at least one), drawn by ``seed``; in their order."""
    if n >= len(labels):
        return list(range(len(labels)))
    rng, targets = np.random.default_rng(seed), np.asarray(labels)
    picked: list[int] = []
    for grade in np.unique(targets):
        indices = np.flatnonzero(targets == grade)
        picked += rng.permutation(indices)[: max(1, round(n * len(indices) / len(targets)))].tolist()
    return sorted(picked)


def directions(labels: Tensor, target: Tensor, classes: Sequence[str]) -> dict[str, Bools]:
    """(N,) bool, the hosts of each direction: ``0->2`` and ``2->0``, or of more classes to higher and to lower grades.

    Args:
        labels: (N,) of the hosts.
        target: (N,) of the donors.
        classes: names, in the order of the grades.
    """
    up, down = (target > labels).numpy(), (target < labels).numpy()
    if len(classes) == 2:
        return {f"{classes[0]}->{classes[1]}": up, f"{classes[1]}->{classes[0]}": down}
    return {"to a higher grade": up, "to a lower grade": down}


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """(N,) peak signal-to-noise ratio in dB for images in [-1, 1], whose peak is 2."""
    return 10 * torch.log10(4 / (images - reference).square().flatten(1).mean(1).clamp_min(1e-12))


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """(N,) structural similarity (torchmetrics: Gaussian window, sigma 1.5)."""
    value = structural_similarity_index_measure(images, reference, data_range=2.0, reduction="none")
    assert isinstance(value, Tensor)
    return value


def ssim_map(images: Tensor, reference: Tensor) -> Tensor:
    """(N, S, S) structural similarity of every pixel's surroundings."""
    _, full = structural_similarity_index_measure(
        images, reference, data_range=2.0, reduction="none", return_full_image=True
    )
    assert isinstance(full, Tensor)
    return full[:, 0]
