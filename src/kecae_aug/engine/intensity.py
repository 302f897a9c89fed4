"""How the caller's grey values are scaled, and the way to [-1, 1] and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kecae_aug.engine.transfer import send
from kecae_aug.engine.warn import WarnOnce

FEW = 4  # images, for a verdict on the scale from the values that are missing
ROUNDING = 0.01  # of the full range: beyond it by so much needs no word
HUES = 0.1  # an image with colours of several hues in more of its area is no radiograph,
FILL = 0.9  # nor is one with a single hue in more of it; below, a rotation left so much to be filled
SAMPLE = 64  # colour is looked for in every second, third, ... pixel that leaves so many a side,
CELL = 4  # and in the means of squares of so many of these a side, where the channels' noise cancels

# How far an image may be from grey, and from its range, and still be a radiograph: one rule for files and for batches.
CHANNEL_TOLERANCE = 8 / 255  # of the full range: JPEG's colour rounding in a grey image
COLOURED_FRACTION = 0.01  # of an image's pixels whose channels may differ by more: a side marker
RANGE_TOLERANCE = 0.05  # of the full range: how far interpolation overshoots before it is another range


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "_warn", WarnOnce())  # of check

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

    def to_engine(self, images: Tensor) -> Tensor:
        """(B, C, H, W) as they came -> float32 in [-1, 1], as the engine reads them."""
        floats = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        return (self._scale(floats, images.dtype) * 2 - 1).clamp(-1, 1)

    def _scale(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Float32 (B, C, H, W) -> around [0, 1]; of uint8 images it is there already."""
        if dtype == torch.uint8:
            return x
        if self.mean is not None and self.std is not None:
            return x * _channels(self.std, x) + _channels(self.mean, x)
        low, high = self.value_range
        return (x - low) / (high - low)

    def from_engine(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Inverse of :meth:`to_engine`, in ``dtype``."""
        unit = (images + 1) / 2
        if dtype == torch.uint8:
            return (unit * 255).round().to(torch.uint8)
        if self.mean is not None and self.std is not None:
            return ((unit - _channels(self.mean, unit)) / _channels(self.std, unit)).to(dtype)
        low, high = self.value_range
        return (unit * (high - low) + low).to(dtype)

    def check(self, images: Tensor) -> None:
        """Refuse what cannot be grey radiographs in this scale; warn, once for each kind, of what is mended.

        See :meth:`statistics` for images on a GPU.

        Raises:
            ValueError: shape, dtype, values outside the range, NaN, or channels that differ.
        """
        self.check_shape(images)
        warn: WarnOnce = self.__dict__["_warn"]
        warn.each(self.assess(images, self.statistics(images).cpu()))

    def check_shape(self, images: Tensor) -> None:
        """Refuse shapes and dtypes, without a look at the values."""
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
        if images.numel() == 0 and len(images):
            raise ValueError(f"images: got shape {tuple(images.shape)}, images without a pixel")

    @torch.no_grad()
    def statistics(self, images: Tensor) -> Tensor:
        """What :meth:`assess` needs, on the images' device, so that it can come over in one transfer with other things.

        Returns:
            (C, 2) + (B, 2), flat, float32: lowest and highest value of each channel as it came, and, with three channels,
            of each image the fraction of its area that is coloured, and that is of another hue than the rest of it.
        """
        raw = images.as_subclass(Tensor)
        if not raw.numel():
            return torch.empty(0, device=raw.device)
        flat = raw.flatten(2)
        ranges = torch.stack([flat.amin((0, 2)), flat.amax((0, 2))], 1).float().flatten()
        if raw.shape[1] == 1:
            return ranges
        full = 255 if raw.dtype == torch.uint8 else 1
        step = max(1, min(raw.shape[2:]) // SAMPLE)
        sample = self._scale(raw[:, :, ::step, ::step].float() / full, raw.dtype)
        pooled = F.avg_pool2d(sample, min(CELL, *sample.shape[2:]))
        dots, spots = ((x.amax(1) - x.amin(1) > CHANNEL_TOLERANCE).float() for x in (sample, pooled))
        area = torch.minimum(
            dots.mean((1, 2)), spots.mean((1, 2))
        )  # neither noise, nor the rim of a small marker
        chroma = (pooled - pooled.mean(1, keepdim=True)) * spots[:, None]
        # What interpolation mixes of grey and a fill has less of the fill's colour, but its hue.
        hue = F.normalize(chroma.sum((2, 3), keepdim=True), dim=1)
        off = chroma - (chroma * hue).sum(1, keepdim=True) * hue
        other = (off.abs().amax(1) > CHANNEL_TOLERANCE).float().mean((1, 2))
        return torch.cat([ranges, area, other])

    def assess(self, images: Tensor, statistics: Tensor) -> dict[str, str]:
        """Refuse what cannot be grey radiographs in this scale; for what is mended a sentence of each kind.

        Args:
            images: for their dtype and number; not looked at.
            statistics: of :meth:`statistics`, on the CPU.

        Raises:
            ValueError: values outside the range by more than ``RANGE_TOLERANCE``, NaN, or channels that differ.
        """
        if not len(statistics):
            return {}
        channels = images.shape[1]
        ranges, parts = (
            statistics[: 2 * channels].view(1, channels, 2, 1),
            statistics[2 * channels :].view(2, -1),
        )
        unit = self._scale(ranges / (255 if images.dtype == torch.uint8 else 1), images.dtype)[0, :, :, 0]
        low, high = float(unit[:, 0].amin()), float(unit[:, 1].amax())
        raw_low, raw_high = float(ranges[:, :, 0].amin()), float(ranges[:, :, 1].amax())
        beyond = max(-low, high - 1)
        if not beyond <= RANGE_TOLERANCE:  # also refuses NaN
            raise ValueError(self._misfit(raw_low, raw_high))
        said = self._declared(raw_low, raw_high, len(images)) if images.is_floating_point() else {}
        if beyond > ROUNDING:
            said["beyond"] = (
                f"images: values reach {beyond:.3f} of the range beyond it, as bicubic interpolation overshoots; the "
                "exchanged knees are clamped. Clamp after resizing to be rid of this"
            )
        if not parts.numel():
            return said
        area, other = parts
        if colour := int(((area > FILL) | (other > HUES)).sum()):
            raise ValueError(
                f"images: 3 channels that differ, in {colour} of {len(images)} images; a KECAE knows grey radiographs, so "
                "all three must be the same grey. For normalised images give their own mean and std per channel; fills and "
                "augmentations of colour belong after the exchange"
            )
        if mended := int((area > COLOURED_FRACTION).sum()):
            said["coloured"] = (
                f"images: {mended} of {len(images)} have coloured parts (a marker, the fill of a rotation, an erased "
                "patch); they are exchanged as grey. If an augmentation comes before the exchange, move it after it, or "
                "fill with grey"
            )
        return said

    def _declared(self, low: float, high: float, n: int) -> dict[str, str]:
        """Refuse a scale that holds the values, but only because it is much wider than theirs; or doubt it.

        A single overexposed radiograph may have no dark pixel; FEW of them do not all.
        """
        several = n >= FEW
        darkest = min(self.mean or (0.0,))  # what 0 stands for: black, where images were normalised by mean 0
        if several and darkest > 0.1 and low >= 0 and high <= 1 and high > low:
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
            return {
                "declared": f"images: floats from {low:.3g} to {high:.3g} in value_range={self.value_range}: no value of "
                "this batch is below 0; if your images are in [0, 1], leave value_range out"
            }
        return {}

    def _misfit(self, low: float, high: float) -> str:
        what = f"mean={self.mean}, std={self.std}" if self.mean else f"value_range={self.value_range}"
        return (
            f"images: floats from {low:.3g} to {high:.3g} do not fit {what}. For [-1, 1] give "
            "value_range=(-1, 1), for 0-255 floats value_range=(0, 255), for normalised images their mean and std. If the "
            "range is right, an interpolation (bicubic overshoot: clamp after it), a fill or an augmentation before the "
            "exchange has left it; NaN and infinity are not accepted"
        )


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(torch.as_tensor(values, dtype=torch.float64, device="cpu").flatten().tolist())


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return send(torch.tensor(values, device="cpu", dtype=like.dtype).view(1, -1, 1, 1), like.device)
