"""Knees in one place: the joint line level, its middle at a fixed pixel; and the way back.

    aligned, matrix, found = align(image)            # before encoding
    image = undo(changed, matrix, original=image)    # after decoding

The JSW measurement (:mod:`kecae_aug.phantom.jsw`) finds the joint line; the image is turned and moved, never scaled:
a joint-space width is the grade, and the bones' width is not separable from the osteophytes at their margins.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from kecae_aug.phantom.jsw import _centre, measure
from kecae_aug.phantom.shape import WINDOW

ROW, COLUMN = (
    0.58,
    0.5,
)  # where the middle of the joint line goes, fractions of the side; the median of public knees
STEEPEST = 15.0  # degrees; of 826 public knees three are steeper, all of them misread


class Aligned(NamedTuple):
    """What :func:`align` returns.

    Fields: image: (1, S, S) or (B, 1, S, S), as it came in. matrix: (2, 3) or (B, 2, 3) float32, takes a place of the
    aligned image to its place in the original, x to the right and y down in [-1, 1] (``affine_grid``,
    ``align_corners=False``). found: () or (B,) bool; where False the matrix is the identity and the image unchanged.
    """

    image: Tensor
    matrix: Tensor
    found: Tensor


def align(image: Tensor) -> Aligned:
    """Turn and move knees so that the joint line is level, with its middle at (:data:`ROW`, :data:`COLUMN`).

    Negatives have to be turned first: the JSW measurement looks for a dark line between bright bones.

    Args:
        image: (1, S, S) or (B, 1, S, S), floats of any range, bone bright, S at least 48; not changed.

    Returns:
        See :class:`Aligned`. What comes in from beyond the border repeats it. Values stay in the image's own range.

    Raises:
        ValueError: another shape, not square, smaller than 48 px, or not floats.
    """
    batch = _as_batch(image, "image")
    poses = [_pose(one) for one in batch.detach().float().cpu().numpy()[:, 0]]
    found = torch.tensor([pose is not None for pose in poses], device=image.device)
    rows = np.stack([np.eye(2, 3) if pose is None else pose for pose in poses])
    matrix = torch.from_numpy(rows).to(image.device, torch.float32)
    if image.ndim == 3:
        matrix, found = matrix[0], found[0]
    return Aligned(place(image, matrix), matrix, found)


def place(image: Tensor, matrix: Tensor) -> Tensor:
    """Turn and move knees as other images of them were by :func:`align`, whose ``matrix`` this is.

    Args:
        image: (1, S, S) or (B, 1, S, S), as for :func:`align`.
        matrix: (2, 3) or (B, 2, 3); the identity leaves an image as it is, to the bit.
    """
    batch = _as_batch(image, "image")
    matrices = matrix.reshape(-1, 2, 3)
    moved = torch.where(_is_identity(matrices), batch, _sample(batch, matrices))
    return moved if image.ndim == 4 else moved[0]


def undo(aligned: Tensor, matrix: Tensor, original: Tensor) -> Tensor:
    """Put aligned knees back where they were.

    Args:
        aligned: (1, S, S) or (B, 1, S, S) floats, for one a decoded knee; not changed.
        matrix: (2, 3) or (B, 2, 3), of :func:`align`.
        original: what was aligned, of the shape of `aligned`: what the aligned image does not reach is its pixels.

    Returns:
        Of the shape and dtype of `aligned`. Two samplings blur a little: docs/data.md has the error.

    Raises:
        ValueError: shapes that do not fit, or not floats.
    """
    batch, behind = _as_batch(aligned, "aligned"), _as_batch(original, "original")
    matrices = matrix.reshape(-1, *matrix.shape[-2:])
    if behind.shape != batch.shape or matrices.shape != (len(batch), 2, 3):
        raise ValueError(
            f"undo: aligned {tuple(aligned.shape)}, matrix {tuple(matrix.shape)} and original "
            f"{tuple(original.shape)} do not fit; give the matrix that align returned and the images it was given"
        )
    turn = torch.linalg.inv(matrices[..., :2].double())
    back = torch.cat([turn, -turn @ matrices[..., 2:].double()], -1).to(matrices)
    reach = F.grid_sample(
        torch.ones_like(batch, dtype=torch.float32), _grid(back, batch), align_corners=False
    ).to(batch.dtype)
    image = behind + reach * (_sample(batch, back) - behind)
    image = torch.where(_is_identity(matrices), batch, image)
    return image if aligned.ndim == 4 else image[0]


def _as_batch(image: Tensor, name: str) -> Tensor:
    shape = tuple(image.shape)
    if len(shape) not in (3, 4) or shape[-3] != 1 or shape[-1] != shape[-2] or shape[-1] < 48 or 0 in shape:
        raise ValueError(
            f"{name}: got shape {shape}, accepted are (1, S, S) and (B, 1, S, S) with S at least 48; resize first "
            "(Preprocessing's image_size)"
        )
    if not image.is_floating_point():
        raise ValueError(f"{name}: got {image.dtype}, accepted are floats; convert with .float()")
    return image.reshape(-1, *shape[-3:])


def _pose(image: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """The (2, 3) matrix of one knee (S, S), or None where its joint line cannot be measured."""
    reading = measure(image)
    if not abs(reading.tilt) <= STEEPEST:  # True for NaN
        return None
    size, column = len(image), _centre(reading.line)
    flank = np.linspace(
        *WINDOW, 11
    )  # the middle of the compartments: the notch between them is no part of the line
    at = np.concatenate([column - flank, column + flank]) * size - 0.5
    row = np.interp(at, np.arange(size), reading.line).mean()
    tilt = math.radians(reading.tilt)
    turn = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    here, there = 2 * np.array([column, row]) - 1, 2 * np.array([COLUMN, ROW]) - 1
    return np.column_stack([turn, here - turn @ there])


def _is_identity(matrices: Tensor) -> Tensor:
    """(B, 1, 1, 1) bool."""
    return (
        (matrices == torch.eye(2, 3, device=matrices.device, dtype=matrices.dtype))
        .flatten(1)
        .all(1)
        .view(-1, 1, 1, 1)
    )


def _grid(matrix: Tensor, images: Tensor) -> Tensor:
    return F.affine_grid(matrix, list(images.shape), align_corners=False)


def _sample(images: Tensor, matrix: Tensor) -> Tensor:
    """Bicubic (bilinear loses 7 dB more), the border repeated, within each image's range, which bicubic oversteps."""
    x = images.float()
    moved = F.grid_sample(
        x, _grid(matrix, images), mode="bicubic", padding_mode="border", align_corners=False
    )
    return moved.clamp(x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)).to(images.dtype)
