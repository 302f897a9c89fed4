"""From a decoded radiograph to what a KECAE reads (Section IV-B: resize, [-1, 1]), and four options.

Knee sets mix left and right knees, negatives, exposures and positions; each option removes one of these before
the network has to.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from kecae_aug.engine.model import KECAE

Floats = npt.NDArray[np.float32]
_GRID = 16


@dataclass(frozen=True)
class Preprocessing:
    """Prepares one image; the defaults are the paper's.

    Args:
        image_size: side S in pixels (bilinear, antialiased; the aspect is not kept); None keeps the size.
        mirror_right: mirror right knees, so that the medial side is on the same side in all.
        fix_inverted: turn negatives (bone dark), which are detected by :func:`inversion_score`.
        contrast: percentiles of the image that become -1 and 1, with clipping; None keeps the file's range.
        align: last, turn and move the knee to a level joint line in one place (:mod:`kecae_aug.data.alignment`); a
            knee whose line cannot be measured stays as it is. Images are square and of 48 px or more, and negatives
            turned (``fix_inverted``). This is for sets of files, which come out aligned; images that are to go back
            where they were are preprocessed without it and go through ``align`` and ``undo``. KeyExchangeAugment
            aligns nothing: give it knees that already are (docs/data.md).

    Raises:
        ValueError: a size below 8 (48 with ``align``), percentiles out of order.
    """

    image_size: int | None = 299
    mirror_right: bool = False
    fix_inverted: bool = False
    contrast: tuple[float, float] | None = None
    align: bool = False

    def __post_init__(self) -> None:
        if self.contrast is not None:  # a list, where it comes from JSON or YAML
            object.__setattr__(self, "contrast", tuple(self.contrast))
        if self.image_size is not None and self.image_size < 8:
            raise ValueError(f"image_size={self.image_size}: 8 or more pixels, or None")
        if self.align and self.image_size is not None and self.image_size < 48:
            raise ValueError(
                f"image_size={self.image_size}: 48 or more pixels with align=True, or align=False"
            )
        if self.contrast is not None and not (
            len(self.contrast) == 2 and 0 <= self.contrast[0] < self.contrast[1] <= 100
        ):
            raise ValueError(
                f"contrast={self.contrast}: accepted are two percentiles, 0 <= low < high <= 100"
            )

    def __call__(self, image: npt.NDArray[Any], side: str | None = None) -> Tensor:
        """Prepare an image.

        Args:
            image: (H, W); uint8 (of 255), uint16 (of 65535), or floats in [0, 1]; not changed.
            side: ``"L"``, ``"R"`` or None where it is not known.

        Returns:
            (1, S, S) float32 in [-1, 1].

        Raises:
            ValueError: another shape, dtype or range; no side where ``mirror_right`` needs one; with ``align`` and no
                ``image_size``, an image that is not square.
        """
        x = torch.from_numpy(_unit_range(image))[None]
        if self.mirror_right:
            if side not in ("L", "R"):
                raise ValueError(
                    f"side={side!r}: mirror_right needs 'L' or 'R' for every image; give the side in the "
                    "file name or a column, or set mirror_right=False"
                )
            x = x.flip(-1) if side == "R" else x
        if self.fix_inverted and is_inverted(x):
            x = 1 - x
        if self.contrast is not None:
            low, high = np.percentile(x.numpy(), self.contrast)
            # Clipped before the resize, or metal and markers would bleed into their neighbours.
            x = ((x - low) / max(high - low, 1e-6)).clamp(0, 1).float()
        if self.image_size is not None and x.shape[-2:] != (self.image_size, self.image_size):
            x = resize(x, [self.image_size, self.image_size], antialias=True)
        x = (2 * x - 1).clamp(-1, 1)
        if not self.align:
            return x
        # here, since it measures joints as the phantom's tools do, which a user's loop need not load
        from kecae_aug.data.alignment import align

        return align(x).image

    @classmethod
    def of(cls, model: KECAE) -> Preprocessing:
        """How the training images of loaded weights were preprocessed, from their metadata."""
        return cls(**{"image_size": model.config.image_size, **model.metadata.get("preprocessing", {})})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; ``Preprocessing(**d)`` is its inverse."""
        return asdict(self)


def inversion_score(image: Tensor | npt.NDArray[Any]) -> float:
    """How much a limb radiograph looks like a negative (bone dark), in [-1, 1]; above 0 it is taken for one.

    The limb stands upright and its bone is in the middle, so brightness falls towards the left and the right
    border; in a negative it rises. The score is the correlation of the image, averaged to 16 x 16, with the
    distance from the middle column. Nothing in it is fitted: a negative's score is the image's with the other
    sign, and brightness, gain and mirroring do not change it. It needs a crop that reaches the limb's sides;
    precision and recall, also under tighter crops, come from benchmarks/kecae_bench/checks/inverted_exposures.py.

    Args:
        image: (H, W) or (1, H, W), any dtype and range.

    Returns:
        The score; 0 for a constant image.
    """
    x = image.float() if isinstance(image, Tensor) else torch.from_numpy(np.array(image, dtype=np.float32))
    if x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[0] != 1) or not x.numel():
        raise ValueError(f"image: got shape {tuple(x.shape)}, accepted are (H, W) and (1, H, W)")
    small = F.adaptive_avg_pool2d(x.reshape(1, *x.shape[-2:]), _GRID)[0]
    distance = ((torch.arange(_GRID, device=small.device) + 0.5) / _GRID - 0.5).abs().expand(_GRID, _GRID)
    a, b = small - small.mean(), distance - distance.mean()
    norm = float(a.norm() * b.norm())
    return float((a * b).sum()) / norm if norm > 1e-6 * max(1.0, float(small.abs().max())) else 0.0


def is_inverted(image: Tensor | npt.NDArray[Any]) -> bool:
    """Whether a limb radiograph is a negative, from the image alone: :func:`inversion_score` above 0."""
    return inversion_score(image) > 0


def _unit_range(image: npt.NDArray[Any]) -> Floats:
    if image.ndim != 2 or not image.size:
        raise ValueError(f"image: got shape {image.shape}, accepted is (H, W)")
    if image.dtype.kind == "u" and image.dtype.itemsize <= 2:
        return np.asarray(image, dtype=np.float32) / np.float32(np.iinfo(image.dtype).max)
    if image.dtype.kind != "f":
        raise ValueError(f"image: got {image.dtype}, accepted are uint8, uint16 and floats in [0, 1]")
    low, high = image.min(), image.max()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # False for NaN
        raise ValueError(f"image: floats from {low} to {high}, accepted are finite ones in [0, 1]")
    return np.array(image, dtype=np.float32)  # a copy: torch cannot share read-only memory
