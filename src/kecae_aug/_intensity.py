"""How the caller's grey values are scaled, and the way to [0, 1] and back."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FEW = 4  # images, for a verdict on the scale from the values that are missing
GREY_TOLERANCE = 0.02  # largest difference of the channels of a grey RGB image, of the full range


@dataclass(frozen=True)
class Intensity:
    """Float images in ``value_range``, or normalised by ``mean`` and ``std``; uint8 is 0 to 255 in any case.

    Attributes:
        value_range: of float images that are not normalised.
        mean, std: of images that are, one value or one a channel; taken to be in [0, 1] before.
    """

    value_range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(
        cls,
        value_range: Sequence[float] = (0.0, 1.0),
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> Intensity:
        """From a caller's arguments, checked."""
        if (mean is None) != (std is None):
            raise ValueError(f"mean={mean}, std={std}: give both, or neither")
        means, stds = (None if v is None else _numbers(v) for v in (mean, std))
        if stds is not None and min(stds) <= 0:
            raise ValueError(f"std={std}: accepted are positive numbers")
        if means is not None and stds is not None and len(means) != len(stds):
            raise ValueError(f"mean={mean}, std={std}: both need one value a channel, or one for all")
        if len(value_range) != 2 or not value_range[0] < value_range[1]:
            raise ValueError(f"value_range={value_range}: accepted is (low, high) with low < high")
        low, high = (float(v) for v in value_range)
        if means is not None and (low, high) != (0.0, 1.0):
            raise ValueError(
                "value_range is of images that are not normalised: leave it out where mean and std are given"
            )
        return cls((low, high), means, stds)

    def to_unit(self, images: Tensor) -> Tensor:
        """(B, C, H, W) as they came -> float32 in [0, 1]."""
        if images.dtype == torch.uint8:
            return images.float() / 255
        x = images.float()
        if self.mean is not None and self.std is not None:
            return x * _channels(self.std, x) + _channels(self.mean, x)
        low, high = self.value_range
        return (x - low) / (high - low)

    def from_unit(self, unit: Tensor, dtype: torch.dtype) -> Tensor:
        """Inverse of :meth:`to_unit`, in ``dtype``."""
        if dtype == torch.uint8:
            return (unit * 255).round().to(torch.uint8)
        if self.mean is not None and self.std is not None:
            return ((unit - _channels(self.mean, unit)) / _channels(self.std, unit)).to(dtype)
        low, high = self.value_range
        return (unit * (high - low) + low).to(dtype)

    def check(self, images: Tensor) -> None:
        """Refuse what cannot be grey radiographs in this scale.

        Raises:
            ValueError: shape, dtype, values outside the range, NaN, or channels that differ.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images: got shape {tuple(images.shape)}, accepted is (B, 1, H, W) or (B, 3, H, W) with equal channels; "
                "call the transform on a batch, after collating"
            )
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"images: got {images.dtype}, accepted are uint8 and floats")
        if self.mean is not None and len(self.mean) not in (1, images.shape[1]):
            raise ValueError(
                f"mean: {len(self.mean)} values for {images.shape[1]} channels, accepted is one each"
            )
        if images.numel() == 0:
            if len(images):
                raise ValueError(f"images: got shape {tuple(images.shape)}, images without a pixel")
            return
        raw = images.as_subclass(Tensor)
        unit = self.to_unit(raw)
        spread = unit.amax(1) - unit.amin(1)
        # one transfer for all of them: each would make the CPU wait for a GPU
        low, high, raw_low, raw_high, most = torch.stack(
            [v.float() for v in (*unit.aminmax(), *raw.aminmax(), spread.max())]
        ).tolist()
        if not (low >= -0.01 and high <= 1.01):  # also refuses NaN
            raise ValueError(self._misfit(raw_low, raw_high))
        if images.is_floating_point():
            self._check_declared(raw_low, raw_high, len(images))
        if most > GREY_TOLERANCE:
            raise ValueError(
                "images: 3 channels that differ; a KECAE knows grey radiographs, so all three must be the same grey "
                "(for normalised images give their mean and std per channel)"
            )

    def _check_declared(self, low: float, high: float, n: int) -> None:
        """Refuse a scale that holds the values, but only because it is much wider than theirs.

        A single overexposed radiograph may have no dark pixel; FEW of them do not all.
        """
        several = n >= FEW
        if several and self.mean is not None and low >= 0 and high <= 1 and high > low:
            raise ValueError(
                f"images: floats from {low:.3g} to {high:.3g} with mean={self.mean}, std={self.std} given look like images "
                "that are not normalised yet (normalised radiographs have negative values); leave mean and std out, or "
                "normalise first"
            )
        if self.mean is None and self.value_range[1] > 2 and 0 < high <= 1 and low >= 0:
            raise ValueError(
                f"images: floats from {low:.3g} to {high:.3g} in value_range={self.value_range} would be black; for [0, 1] "
                "leave value_range out"
            )
        if several and self.mean is None and self.value_range[0] < 0 and low >= 0 and high > low:
            warnings.warn(
                f"images: floats from {low:.3g} to {high:.3g} in value_range={self.value_range}: no value of this batch is "
                "below 0; if your images are in [0, 1], leave value_range out",
                stacklevel=2,
            )

    def _misfit(self, low: float, high: float) -> str:
        what = f"mean={self.mean}, std={self.std}" if self.mean else f"value_range={self.value_range}"
        return (
            f"images: floats from {low:.3g} to {high:.3g} do not fit {what}. For [-1, 1] give "
            "value_range=(-1, 1), for 0-255 floats value_range=(0, 255), for normalised images their mean and std; "
            "NaN and infinity are not accepted"
        )


def _numbers(values: float | Sequence[float]) -> tuple[float, ...]:
    return (float(values),) if isinstance(values, (int, float)) else tuple(float(v) for v in values)


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)
