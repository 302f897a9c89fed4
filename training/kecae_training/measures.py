"""What every measurement of an evaluation uses: the knees, PSNR and SSIM, intervals over patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from kecae_aug.model import KECAE
from kecae_training.images import to_float, to_uint8

DRAWS = 500  # of the bootstrap


@dataclass
class Knees:
    """Images (N, 1, S, S) in [-1, 1], class indices (N,), patients; what an evaluation works on."""

    images: Tensor
    labels: Tensor
    patients: list[str]


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """(N,) peak signal-to-noise ratio in dB for images in [-1, 1], whose peak is 2."""
    return 10 * torch.log10(4 / (images - reference).square().flatten(1).mean(1).clamp_min(1e-12))


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """(N,) structural similarity (torchmetrics: Gaussian window, sigma 1.5)."""
    value = structural_similarity_index_measure(images, reference, data_range=2.0, reduction="none")
    assert isinstance(value, Tensor)
    return value


def with_interval(
    statistic: Callable[[NDArray[np.intp]], float], patients: Sequence[str], seed: int = 0, digits: int = 4
) -> dict[str, Any]:
    """A statistic of rows, with its 95 % percentile interval over patients drawn with replacement.

    Args:
        statistic: of an array of row numbers, which may repeat.
        patients: id of every row; all rows of a patient are drawn together.
        seed: of the draws.
        digits: of the figures returned.
    """
    rows_of: dict[str, list[int]] = {}
    for row, patient in enumerate(patients):
        rows_of.setdefault(patient, []).append(row)
    groups = [np.array(rows) for rows in rows_of.values()]
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(DRAWS):
        rows = np.concatenate([groups[g] for g in rng.integers(len(groups), size=len(groups))])
        value = statistic(rows)
        if np.isfinite(value):
            draws.append(value)
    low, high = np.percentile(draws, [2.5, 97.5]) if draws else (float("nan"), float("nan"))
    mean = statistic(np.arange(len(patients)))
    return {"mean": round(mean, digits), "low": round(float(low), digits), "high": round(float(high), digits)}


def mean_of_rows(values: Tensor | NDArray[Any], rows: NDArray[np.intp]) -> float:
    """Mean of the picked rows; NaN where there are none."""
    picked = np.asarray(values, dtype=np.float64)[rows]
    return float(picked.mean()) if len(picked) else float("nan")


def open_knees(model: KECAE, data: Path, split: str | None) -> Knees:
    """The knees of a split, prepared as the weights ask for it."""
    from kecae_aug.data import Preparation, RadiographFolder

    folder = RadiographFolder(
        data, split, grades=list(model.config.classes), preparation=Preparation.of(model)
    )
    return Knees(to_float(to_uint8(folder)), torch.tensor(folder.targets), list(folder.patients))
