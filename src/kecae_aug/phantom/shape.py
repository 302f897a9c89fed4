"""The outlines of a phantom knee: joint surfaces and bone sides as one-dimensional tables.

The joint space is exact by construction: the mean gap over the middle of a compartment is the key's width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kecae_aug.phantom.truth import KneeKey, KneeNuisance

Array = npt.NDArray[np.floating[Any]]
Table = npt.NDArray[np.float64]

WINDOW = (0.17, 0.31)  # |x| of the middle of a compartment, over which a joint-space width is averaged
_RANGE = 0.9  # the contours are tabulated on [-0.9, 0.9]
_AXIS = np.linspace(-_RANGE, _RANGE, 1801)


class Contours(NamedTuple):
    """Tables over [-0.9, 0.9]: surfaces y(x), sides x(y)."""

    femur: Table
    tibia: Table
    femur_medial: Table
    femur_lateral: Table
    tibia_medial: Table
    tibia_lateral: Table


def _smooth(points: list[tuple[float, float]], width: float = 0.03) -> Table:
    """A polyline through (t, value), tabulated over `_AXIS` and rounded."""
    t, v = zip(*points, strict=True)
    kernel = np.hanning(2 * int(width / (_AXIS[1] - _AXIS[0])) + 1)
    half = len(kernel) // 2
    table = np.pad(np.interp(_AXIS, t, v), half, mode="edge")
    return np.convolve(table, kernel / kernel.sum(), mode="valid")


def _bump(t: Table, low: float, high: float) -> Table:
    """Zero up to `low`, one from `high`, smooth between (either order)."""
    u = np.clip((t - low) / (high - low), 0.0, 1.0)
    return u * u * (3 - 2 * u)


def contours(key: KneeKey, n: KneeNuisance) -> Contours:
    """The outlines of one knee, osteophytes included."""
    x, ax = _AXIS, np.abs(_AXIS)
    spine = np.exp(-(((x + n.spine_gap) / 0.024) ** 2)) + 0.85 * np.exp(-(((x - n.spine_gap) / 0.026) ** 2))
    hill = np.exp(-((ax / 0.125) ** 2.2))
    tibia = n.plateau_dish * np.exp(-(((ax - 0.22) / 0.09) ** 2)) - n.spine_height * (
        0.45 * spine + 0.65 * hill
    )
    tibia += n.plateau_slope * x + 0.6 * np.maximum(ax - 0.34, 0) ** 2
    notch = np.exp(-((ax / n.notch_width) ** n.notch_power))
    femur = -n.notch_depth * notch - n.condyle_round * np.maximum(ax - 0.29, 0) ** 2 + n.plateau_slope * x
    femur -= 0.5 * np.maximum(0.22 - ax, 0) ** 2

    # the mean gap over the window of each compartment becomes exactly the key's width; half from each bone
    lateral = _bump(x, -0.1, 0.1)
    window = (ax >= WINDOW[0]) & (ax <= WINDOW[1])
    for jsw, side, weight in ((key.medial_jsw, x < 0, 1 - lateral), (key.lateral_jsw, x > 0, lateral)):
        at = window & side
        change = (tibia - femur)[at].mean() - jsw / n.scale
        femur, tibia = femur + weight * change / 2, tibia - weight * change / 2

    rng = np.random.default_rng([n.texture_seed, 1])
    waves = [_waves(rng, n.contour) for _ in range(4)]
    w, f = n.femur_width, n.flare
    shaft = [(-0.8, n.shaft_width - 0.03), (f - 0.25, n.shaft_width), (f - 0.08, w - 0.02), (f, w)]
    femur_m = _smooth([*shaft, (-0.16, w - 0.012), (-0.10, w - 0.022), (-0.05, w - 0.015), (0.0, w - 0.03)])
    femur_l = _smooth([*shaft, (-0.17, w - 0.01), (-0.11, w - 0.045), (-0.05, w - 0.02), (0.0, w - 0.03)])
    v = n.tibia_width
    below = [
        (0.0, v - 0.004),
        (0.06, v),
        (0.13, v - 0.008),
        (0.22, v - 0.04),
        (0.40, v - 0.115),
        (0.55, v - 0.16),
        (0.8, v - 0.18),
    ]
    tibia_m, tibia_l = _smooth(below), _smooth([(t, b + 0.008 * (t < 0.1)) for t, b in below])

    # osteophytes: the margin is drawn out sideways, and its tip beaks towards the joint
    spurs = [
        (key.medial_femur, femur_m, femur, -1, 1.0),
        (key.lateral_femur, femur_l, femur, 1, 1.0),
        (key.medial_tibia, tibia_m, tibia, -1, -1.0),
        (key.lateral_tibia, tibia_l, tibia, 1, -1.0),
    ]
    for size, edge, surface, direction, towards in spurs:
        s = size / n.scale
        depth = -towards * _AXIS  # into the bone, from the joint line
        edge += s * _bump(depth, 0.035 + 1.5 * s, 0.012)
        surface += towards * 0.35 * s * _bump(direction * x, 0.34, 0.34 + 0.05 + s)
    femur_m, femur_l, tibia_m, tibia_l = (
        e + q for e, q in zip((femur_m, femur_l, tibia_m, tibia_l), waves, strict=True)
    )
    return Contours(femur, tibia, -femur_m, femur_l, -tibia_m, tibia_l)


def _waves(rng: np.random.Generator, amplitude: float) -> Table:
    phases, sizes = rng.uniform(0, 2 * np.pi, 5), rng.standard_normal(5)
    k = np.array([9.0, 17.0, 26.0, 41.0, 60.0])
    total: Table = amplitude * (sizes / np.sqrt(k / 9) * np.sin(k * _AXIS[:, None] + phases)).sum(1) * 0.6
    return total


def at(table: Table, t: Array) -> Array:
    """Linear interpolation of a table over [-0.9, 0.9]; a gather is several times faster than np.interp."""
    u = (np.clip(t, -_RANGE, _RANGE - 1e-4) + _RANGE) * ((len(_AXIS) - 1) / (2 * _RANGE))
    i = u.astype(np.int32)
    values = table.astype(np.float32)
    low = values[i]
    return np.asarray(low + (u - i) * (values[i + 1] - low), dtype=np.float32)


def distance(table: Table, along: Array, across: Array) -> Array:
    """Signed distance, to first order, of `across` beyond the contour table(along)."""
    slope = np.gradient(table, _AXIS)
    return (across - at(table, along)) * at(1 / np.sqrt(1 + slope**2), along)
