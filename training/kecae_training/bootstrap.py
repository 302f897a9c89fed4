"""Intervals over patients: the one bootstrap of this repository, and figures of weighted rows.

All rows of a patient are drawn together. A measurement returns a tree: a dict of dicts whose leaves are draws of the
bootstrap (:data:`Draws`) or plain facts. :func:`pool` averages trees of several weights draw by draw, :func:`summarise`
turns draws into mean, low and high.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 500  # of the bootstrap, unless a caller asks for more
Draws = NDArray[np.float64]  # (1 + draws,): the figure itself, then the figure of every draw
Weights = NDArray[np.float64]  # (1 + draws, N): how often every row was drawn; the first row is all 1
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Bootstrap:
    """Patients drawn with replacement, as weights of rows; all rows of a patient are drawn together.

    Figures of one Bootstrap come from the same draws, so differences, ratios and means over oracles or weights are
    paired.

    Args:
        patients: id of every row.
        seed: of the draws.
        draws: how many.

    Attributes:
        weights: :data:`Weights`.
    """

    def __init__(self, patients: Sequence[str], seed: int = 0, draws: int = DRAWS) -> None:
        ids = np.unique(np.asarray(patients), return_inverse=True)[1].reshape(-1)
        n = int(ids.max()) + 1
        times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws)
        self.weights: Weights = np.concatenate([np.ones((1, len(ids))), times[:, ids]])

    def sum(self, values: Any, of: Bools | None = None) -> Draws:
        """Sum of (N,) values over the rows ``of``; NaN values are left out."""
        x = np.asarray(values, dtype=np.float64)
        keep = np.isfinite(x) if of is None else of & np.isfinite(x)
        return np.asarray(self.weights[:, keep] @ x[keep])

    def mean(self, values: Any, of: Bools | None = None) -> Draws:
        """Mean of (N,) values over the rows ``of``; NaN values are left out, NaN where none is left."""
        x = np.asarray(values, dtype=np.float64)
        keep = np.isfinite(x) if of is None else of & np.isfinite(x)
        return ratio(self.weights[:, keep] @ x[keep], self.weights[:, keep].sum(1))


def ratio(above: Any, below: Any) -> Draws:
    """Quotient, NaN where below is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(below) == 0, np.nan, np.asarray(above) / np.asarray(below))


def summary(draws: Draws, digits: int = 4) -> dict[str, Any]:
    """``{"mean", "low", "high"}`` of draws: the figure and its 95 % percentile interval; None where it is not defined."""
    finite = draws[1:][np.isfinite(draws[1:])]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
    values = {"mean": draws[0], "low": low, "high": high}
    return {name: round(float(v), digits) if np.isfinite(v) else None for name, v in values.items()}


def summarise(tree: Any) -> Any:
    """The tree with its draws summarised; JSON-able."""
    if isinstance(tree, Mapping):
        return {key: summarise(value) for key, value in tree.items()}
    return summary(tree) if isinstance(tree, np.ndarray) else tree


def pool(trees: Sequence[Any]) -> Any:
    """One tree of several: draws and fractional numbers are averaged, other facts are kept where all have the same."""
    first = trees[0]
    if isinstance(first, Mapping):
        common = [key for key in first if all(key in tree for tree in trees)]
        pooled = {key: pool([tree[key] for tree in trees]) for key in common}
        return {key: value for key, value in pooled.items() if value is not None}
    if isinstance(first, np.ndarray):
        return np.mean(trees, axis=0)
    if all(tree == first for tree in trees):
        return first
    return round(float(np.mean(trees)), 4) if all(isinstance(tree, float) for tree in trees) else None


def weighted_auroc(scores: NDArray[Any], positive: Bools, weights: Weights) -> Draws:
    """(D,) area under the ROC curve for each row of weights; NaN where one class has no weight.

    It is the fraction of pairs in the right order, ties half: Mann and Whitney's statistic of weighted rows.

    Args:
        scores: (N,) of the positive class.
        positive: (N,) whether a row is of it.
        weights: (D, N).
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order].astype(np.float64), prepend=-np.inf))  # of equal scores
    drawn, is_positive = weights[:, order], positive[order]
    ups = np.add.reduceat(drawn * is_positive, starts, axis=1)
    downs = np.add.reduceat(drawn * ~is_positive, starts, axis=1)
    below = np.cumsum(downs, axis=1) - downs / 2
    return ratio((ups * below).sum(1), ups.sum(1) * downs.sum(1))


def count_confusions(weights: Weights, target: Ints, predicted: Ints, n: int) -> NDArray[np.float64]:
    """(D, n, n) weighted counts of (N,) target classes (rows) and predicted ones (columns), for each row of weights."""
    cells = np.eye(n * n)[target * n + predicted]
    return np.asarray((weights @ cells).reshape(-1, n, n))


def cohen_kappa(counts: NDArray[np.float64], *, quadratic: bool = True) -> Draws:
    """(D,) Cohen's kappa of (D, n, n) counts: 1 is full agreement, 0 what chance gives; NaN where all are of one class.

    Args:
        counts: of :func:`count_confusions`.
        quadratic: a disagreement counts by the square of its distance, as in the reading of radiographs; otherwise every
            disagreement counts alike.
    """
    index = np.arange(counts.shape[-1])
    distance = np.subtract.outer(index, index) ** 2
    cost = distance if quadratic else (distance > 0).astype(np.float64)
    chance = counts.sum(2)[:, :, None] * counts.sum(1)[:, None, :]
    return 1 - ratio((counts * cost).sum((1, 2)) * counts.sum((1, 2)), (chance * cost).sum((1, 2)))
