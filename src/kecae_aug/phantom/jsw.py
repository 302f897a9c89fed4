"""Measure joint-space width on a knee radiograph, from the image alone.

1. The joint line: the dark valley that crosses the image, found column by column with a path of least cost.
2. The compartments: left and right of the notch, where the line rises to the middle of the knee.
3. The edges: in straightened strips of a few columns, the steepest rise of grey above (femur) and below
   (tibia) the valley, to a fraction of a pixel; the width is the median over the strips of a compartment.

On the phantom its error is known (docs/evaluate.md). On a real knee it is a proxy: no reader has checked it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from kecae_aug.phantom.shape import WINDOW
from kecae_aug.phantom.truth import Side

Floats = npt.NDArray[np.float64]

REACH = 0.075  # how far from the valley an edge is sought, fraction of the height
_ROWS = (0.28, 0.85)  # where a joint line may lie
_COLUMNS = (0.08, 0.92)
_STRIPS = 5  # a compartment


@dataclass(frozen=True)
class JointSpace:
    """One knee's measurement, as fractions of the image's height; NaN where `reason` says why not.

    Fields: medial, lateral: joint-space width. reason: "" when both were measured.
    tilt: of the joint line, degrees, clockwise on the screen. line: (S,) row of the joint line a column.
    """

    medial: float
    lateral: float
    reason: str
    tilt: float
    line: Floats


def joint_space_width(image: Tensor | npt.NDArray[Any], side: Side = "L") -> tuple[Floats, Floats]:
    """Medial and lateral joint-space width of one image or many.

    Args:
        image: (..., S, S), any real dtype and range, bone bright; a channel axis of 1 counts as a batch axis.
        side: "L" if the medial side is at the left (a left knee, or a right one mirrored), else "R".

    Returns:
        medial, lateral: float64 of shape (...), fractions of the image's height; NaN where it cannot measure
        (`measure` tells why).

    Raises:
        ValueError: for images that are not square or smaller than 48 px, or another `side`.
    """
    array = _as_array(image)
    flat = [measure(one, side) for one in array.reshape(-1, *array.shape[-2:])]
    shape = array.shape[:-2]
    medial = np.array([m.medial for m in flat], dtype=np.float64).reshape(shape)
    return medial, np.array([m.lateral for m in flat], dtype=np.float64).reshape(shape)


def measure(image: Tensor | npt.NDArray[Any], side: Side = "L") -> JointSpace:
    """One image (S, S), or (1, S, S), with the reason when a width is NaN.

    Reasons: "flat image"; "no joint line" (no dark valley crosses the image); "joint line leaves the image";
    "medial edges not found", "lateral edges not found" (too few strips in which both edges stand out).
    """
    if side not in ("L", "R"):
        raise ValueError(f"measure: side must be 'L' or 'R', got {side!r}")
    a = _as_array(image).squeeze()
    if a.ndim != 2:
        raise ValueError(
            f"measure: takes one image (S, S), got shape {a.shape}; joint_space_width takes many"
        )
    size = len(a)
    low, high = np.percentile(a, (1, 99))
    if not high > low:
        return _fail("flat image", size)
    a = (a - low) / (high - low)

    line, depth = _joint_line(a)
    if depth < 0.02:
        return _fail("no joint line", size, line)
    centre = _centre(line)
    inner, outer = WINDOW
    widths, sides_rows = [], []
    for sign in (-1, 1):
        columns = centre + sign * np.linspace(inner, outer, 2 * _STRIPS + 1)[1::2]
        if columns.min() < 0.02 or columns.max() > 0.98:
            return _fail("joint line leaves the image", size, line)
        width, row = _compartment(a, line, columns, (outer - inner) / _STRIPS)
        widths.append(width)
        sides_rows.append(row)
    tilt = math.atan2(sides_rows[1] - sides_rows[0], inner + outer)
    left, right = (w * math.cos(tilt) for w in widths)
    medial, lateral = (left, right) if side == "L" else (right, left)
    missing = [n for n, w in (("medial", medial), ("lateral", lateral)) if math.isnan(w)]
    reason = f"{' and '.join(missing)} edges not found" if missing else ""
    return JointSpace(medial, lateral, reason, math.degrees(tilt), line)


def _as_array(image: Tensor | npt.NDArray[Any]) -> Floats:
    array = np.asarray(image.detach().cpu().float() if isinstance(image, Tensor) else image, dtype=np.float64)
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-1] < 48:
        raise ValueError(
            f"joint_space_width: image must be (..., S, S) with S at least 48, got shape {array.shape}"
        )
    return array


def _fail(reason: str, size: int, line: Floats | None = None) -> JointSpace:
    return JointSpace(math.nan, math.nan, reason, math.nan, np.full(size, math.nan) if line is None else line)


def _blur(a: Floats, sd: float, axis: int) -> Floats:
    """Gaussian along one axis, edges repeated; `sd` in pixels."""
    half = max(1, math.ceil(3 * sd))
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / max(sd, 1e-3)) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(a, [(half, half) if i == axis else (0, 0) for i in range(2)], mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=axis)
    return np.asarray(windows @ kernel)


def _joint_line(a: Floats) -> tuple[Floats, float]:
    """Row (fraction) of the darkest smooth path from left to right, and how dark it is against both sides."""
    size = len(a)
    smooth = _blur(_blur(a, 0.012 * size, 1), 0.006 * size, 0)
    d1, d2 = round(0.035 * size), round(0.06 * size)
    valley = np.full_like(a, -1.0)
    rows = slice(d2, size - d2)
    sides = [
        np.minimum(smooth[d2 - d : size - d2 - d], smooth[d2 + d : size - d2 + d or None]) for d in (d1, d2)
    ]
    valley[rows] = np.maximum(*sides) - smooth[rows]
    contrast = _blur(_blur(np.abs(valley), 0.1 * size, 1), 0.1 * size, 0) + 0.02
    score = np.clip(valley, -0.2, None) / contrast
    first, last = (round(r * size) for r in _ROWS)
    x0, x1 = (round(c * size) for c in _COLUMNS)
    path = _best_path(score[first:last, x0:x1], steepest=2) + first
    columns = np.arange(x0, x1)
    depth = float(np.median(valley[path, columns]))
    line = np.interp(np.arange(size), columns, path)
    return (line + 0.5) / size, depth


def _best_path(score: Floats, steepest: int) -> npt.NDArray[np.int64]:
    """Rows of the path, one a column, of the largest total score with steps up to `steepest` rows."""
    rows, columns = score.shape
    steps = np.arange(-steepest, steepest + 1)
    cost = 0.15 * np.abs(steps)
    total, back = score[:, 0].copy(), np.zeros((columns, rows), dtype=np.int64)
    for c in range(1, columns):
        padded = np.pad(total, steepest, constant_values=-np.inf)
        options = np.stack([padded[s + steepest : s + steepest + rows] for s in steps]) - cost[:, None]
        best = options.argmax(0)
        back[c] = np.arange(rows) + steps[best]
        total = options[best, np.arange(rows)] + score[:, c]
    path = np.empty(columns, dtype=np.int64)
    path[-1] = total.argmax()
    for c in range(columns - 1, 0, -1):
        path[c - 1] = back[c, path[c]]
    return path


def _centre(line: Floats) -> float:
    """Column (fraction) of the notch: the middle of the part of the line that rises most, near the middle."""
    size = len(line)
    x = (np.arange(size) + 0.5) / size
    at = np.abs(x - 0.5) < 0.15
    flanks = (np.abs(x - 0.5) > 0.2) & (np.abs(x - 0.5) < 0.35)
    slope, level = np.polyfit(x[flanks], line[flanks], 1)
    rise = np.clip(level + slope * x - line, 0, None) * at
    return float((rise**2 * x).sum() / (rise**2).sum()) if rise.max() > 0.015 else 0.5


def _compartment(a: Floats, line: Floats, columns: Floats, width: float) -> tuple[float, float]:
    """Median width over the strips about `columns`, NaN if fewer than three show both edges; and its row."""
    size = len(a)
    steps = np.arange(-REACH * size, REACH * size + 1e-9, 0.25)
    slope, level = np.polyfit(columns, np.interp(columns * size - 0.5, np.arange(size), line), 1)
    found = []
    for column in columns:
        first, last = round((column - width / 2) * size), max(round((column + width / 2) * size), 0)
        xs = np.arange(first, max(last, first + 1))
        middle = np.interp(column * size - 0.5, np.arange(size), line) + slope * ((xs + 0.5) / size - column)
        profile = _sample_columns(a, xs, (middle * size - 0.5)[None, :] + steps[:, None]).mean(1)
        edges = _edges(profile, steps, size)
        if edges is not None:
            found.append((edges[1] - edges[0]) / size)
    row = level + slope * columns.mean()
    return (float(np.median(found)) if len(found) >= 3 else math.nan), float(row)


def _sample_columns(a: Floats, columns: npt.NDArray[np.int64], rows: Floats) -> Floats:
    """a[rows, columns] at fractional rows."""
    r = np.clip(rows, 0, len(a) - 1.001)
    i = r.astype(np.int64)
    return np.asarray(a[i, columns] * (1 - (r - i)) + a[i + 1, columns] * (r - i))


def _edges(profile: Floats, steps: Floats, size: int) -> tuple[float, float] | None:
    """Offsets in pixels of the femoral and the tibial edge: the steepest places on both sides of the valley."""
    near = np.abs(steps) <= max(0.025 * size, 2.0)
    bottom = int(np.flatnonzero(near)[profile[near].argmin()])
    # The profile is piecewise linear between rows: its slope has steps, on which rounding would decide what is a
    # peak. A Gaussian of half a row (two samples) makes the slope smooth.
    gradient = _blur(np.gradient(profile, steps)[None], 2, 1)[0]
    i, j = bottom - _first_peak(-gradient[bottom::-1]), bottom + _first_peak(gradient[bottom:])
    least = 0.25 / size
    if gradient[j] < least or -gradient[i] < least:
        return None
    return _peak(np.abs(gradient), steps, i), _peak(np.abs(gradient), steps, j)


def _first_peak(rise: Floats) -> int:
    """The first peak that is at least half as high as the highest: beyond the edge lie plates and rims."""
    inner = (rise[1:-1] >= rise[:-2]) & (rise[1:-1] >= rise[2:]) & (rise[1:-1] >= 0.5 * rise.max())
    return int(inner.argmax()) + 1 if inner.any() else int(rise.argmax())


def _peak(values: Floats, steps: Floats, i: int) -> float:
    """Centre of mass of a peak of the gradient down to half its height."""
    falls = values[1:] <= values[:-1] + 1e-6 * values[i]
    rises = values[1:] >= values[:-1] - 1e-6 * values[i]
    low = high = i
    while low > 0 and values[low - 1] >= values[i] / 2 and rises[low - 1]:
        low -= 1
    while high < len(values) - 1 and values[high + 1] >= values[i] / 2 and falls[high]:
        high += 1
    w = values[low : high + 1] - values[i] / 2
    return float((w * steps[low : high + 1]).sum() / w.sum()) if w.sum() > 0 else float(steps[i])
