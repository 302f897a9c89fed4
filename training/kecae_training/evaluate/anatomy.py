"""Does the exchange move the joint? The JSW measurement on X, X^ and X'.

"Moved" is the mean change of the medial joint-space width over the gap between the two grades, which the same JSW
measurement measures on the real knees: 0 is nothing, 1 exactly right, above 1 too much. The change is measured against
what X' would be without an exchange (X^ for ``detail="decoder"``, the host for ``detail="host"``).
On real knees the JSW measurement is a proxy that no reader has checked; on phantoms
:mod:`~kecae_training.evaluate.phantom_truth` knows better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from kecae_aug.phantom.jsw import JointSpace, measure
from kecae_aug.phantom.truth import Side
from kecae_training.evaluate.exchanged import Kind
from kecae_training.evaluate.measures import Bools, Bootstrap, Draws, ratio

Floats = NDArray[np.float64]


def read(images: Tensor, medial: Sequence[Side | None]) -> list[JointSpace]:
    """The JSW measurement on (N, 1, S, S) images; where the medial side is not known, it is read as if at the left."""
    return [measure(image[0], side or "L") for image, side in zip(images, medial, strict=True)]


def widths(readings: Sequence[JointSpace]) -> Floats:
    """(N,) medial joint-space width in percent of the image's height; NaN where the JSW measurement declined."""
    return np.array([100 * r.medial for r in readings])


def moved(boot: Bootstrap, change: Floats, gap: Floats, of: Bools) -> Draws:
    """Slope through the origin of (N,) changes over the (D, N) gaps they should cover; for one gap, a ratio of means."""
    keep = of & np.isfinite(change)
    w, g = boot.weights[:, keep], gap[:, keep]
    return ratio((w * g * change[keep]).sum(1), (w * g * g).sum(1))


def class_gaps(boot: Bootstrap, real: Floats, labels: Tensor, wanted: Tensor) -> Floats:
    """(D, N) mean width of the donor's grade less that of the host's, for every draw and row."""
    grades = range(int(max(labels.max(), wanted.max())) + 1)
    means = np.stack([boot.mean(real, labels.numpy() == g) for g in grades], 1)
    return np.asarray(means[:, wanted.numpy()] - means[:, labels.numpy()])


def follows_strength(strengths: Sequence[float], by_strength: Sequence[Floats], sign: Floats) -> Floats:
    """(N,) Spearman's rank correlation of strength and width, +1 where the width goes the wanted way all along.

    Args:
        strengths: increasing or not.
        by_strength: (N,) widths at each of them.
        sign: (N,) +1 where the joint should widen, -1 where it should narrow.

    Returns:
        NaN where a width is missing at any strength, 0 where nothing changes.
    """
    rows = np.stack(by_strength, 1)
    ranks = rankdata(np.nan_to_num(rows), axis=1)
    a, b = ranks - ranks.mean(1, keepdims=True), rankdata(strengths) - rankdata(strengths).mean()
    norm = np.sqrt((a**2).sum(1) * (b**2).sum())
    rho = np.divide((a * b).sum(1), norm, out=np.zeros(len(a)), where=norm > 0)
    return np.where(np.isfinite(rows).all(1), rho * sign, np.nan)


def anatomy(
    boot: Bootstrap,
    labels: Tensor,
    wanted: Tensor,
    of_direction: Mapping[str, Bools],
    real: Floats,
    reconstructed: Floats,
    exchanged: Mapping[Kind, Floats],
) -> dict[str, Any]:
    """All figures of the JSW measurement, as draws.

    Args:
        boot: over the hosts.
        labels: (N,) grades of the hosts.
        wanted: (N,) grades of the donors.
        of_direction: rows of each direction.
        real: (N,) widths of X, in percent of the image's height.
        reconstructed: of X^.
        exchanged: widths of X' of every kind.

    Returns:
        ``gap``: by direction, in percent of the height; ``moved``: by kind and direction; ``follows_strength``: by
        detail and direction, mean over the hosts of :func:`follows_strength` (from three strengths on);
        ``not_measured``: fraction of the images that the JSW measurement declined; ``width``: mean by grade, of X and of X^.
    """
    gaps = class_gaps(boot, real, labels, wanted)
    widths_of = {"real": real, "reconstructed": reconstructed}
    by_grade = {
        name: {int(g): boot.mean(w, labels.numpy() == int(g)) for g in labels.unique()}
        for name, w in widths_of.items()
    }
    widths_of |= {str(kind): width for kind, width in exchanged.items()}
    result: dict[str, Any] = {
        "unit": "percent of the image's height, medial",
        "width": by_grade,
        "gap": {
            name: ratio((boot.weights[:, rows] * gaps[:, rows]).sum(1), boot.weights[:, rows].sum(1))
            for name, rows in of_direction.items()
        },
        "not_measured": {name: boot.mean(~np.isfinite(w)) for name, w in widths_of.items()},
        "moved": {},
        "follows_strength": {},
    }
    for kind, width in exchanged.items():
        base = reconstructed if kind.detail == "decoder" else real
        result["moved"][str(kind)] = {
            name: moved(boot, width - base, gaps, rows) for name, rows in of_direction.items()
        }
    for detail in dict.fromkeys(kind.detail for kind in exchanged):
        kinds = [kind for kind in exchanged if kind.detail == detail]
        if len(kinds) > 2:
            rho = follows_strength(
                [k.strength for k in kinds], [exchanged[k] for k in kinds], np.sign(gaps[0])
            )
            result["follows_strength"][detail] = {
                name: boot.mean(rho, rows) for name, rows in of_direction.items()
            }
    return result
