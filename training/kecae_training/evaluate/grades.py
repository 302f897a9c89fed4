"""Figures of more than two grades: who was given which grade, and what the oracles say.

Rows are the wanted grade, columns the predicted one. The single figure is Cohen's kappa with quadratic weights, as in the
reading of radiographs: 1 is full agreement, 0 what chance gives; a miss by two grades counts four times one by one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kecae_training.evaluate.measures import Draws, ratio

Ints = NDArray[np.int64]


def confusions(weights: NDArray[np.float64], wanted: Ints, judged: Ints, n: int) -> NDArray[np.float64]:
    """Weighted counts (D, n, n) of (N,) wanted and predicted grades under (D, N) weights of the rows."""
    cells = np.zeros((len(wanted), n * n))
    cells[np.arange(len(wanted)), wanted * n + judged] = 1
    return np.asarray((weights @ cells).reshape(-1, n, n))


def shares(counts: NDArray[np.float64]) -> list[list[float]]:
    """One matrix (n, n) of counts as fractions of its rows; a row without images is all 0."""
    total = counts.sum(1, keepdims=True)
    rows: list[list[float]] = (
        np.divide(counts, total, out=np.zeros_like(counts), where=total > 0).round(4).tolist()
    )
    return rows


def kappa(counts: NDArray[np.float64]) -> Draws:
    """Cohen's kappa with quadratic weights of (D, n, n) counts; NaN where all are of one grade."""
    n = counts.shape[-1]
    penalty = np.subtract.outer(np.arange(n), np.arange(n)) ** 2
    total = counts.sum((1, 2))
    chance = counts.sum(2)[:, :, None] * counts.sum(1)[:, None, :]
    return 1 - ratio((counts * penalty).sum((1, 2)) * total, (chance * penalty).sum((1, 2)))
