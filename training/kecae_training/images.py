"""A training set decoded once: 8-bit tensors in memory, a quarter of their size as floats.

3,802 knees take 62 MB at 128 px and 340 MB at 299 px, so no step of the training waits for a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Floats in [-1, 1] -> uint8 0..255, rounded; the inverse of :func:`to_float`."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_uint8(dataset: Any, rows: Sequence[int] | None = None, *, progress: bool = True) -> Tensor:
    """Decode rows of a dataset of (image (1, S, S) float in [-1, 1], label) into (N, 1, S, S) uint8."""
    rows = range(len(dataset)) if rows is None else rows
    images = []
    for i in tqdm(rows, desc="reading radiographs", disable=None if progress else True, leave=False):
        image = dataset[i][0]
        images.append(to_bytes(image))
    if not images:
        raise ValueError("dataset: no images to read; check the folder, the split and the grades")
    return torch.stack(images)
