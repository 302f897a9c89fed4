"""Classifiers compared in pairs: differences with intervals over seeds and patients.

    difference = estimate([arm of seed 0, of seed 1, ...], [T of the same seeds], labels, patients, accuracy)

The interval is mean +- t * sqrt(patients' part + seeds' part). The patients' part is the variance of the mean over
seeds when patients are drawn with replacement, all knees of a patient together. The seeds' part is what the seeds'
variance exceeds that which the test set's size explains (from the same draws), divided by their number. t has the
degrees of freedom of Welch and Satterthwaite. Percentiles of seeds and patients drawn together are the usual way; in
simulated studies they hold the truth too often where seeds differ little and far too seldom where they differ much,
since few seeds drawn with replacement vary too little (tests/test_significance.py, docs/benchmark.md). Of a single
seed there is no seeds' part: the interval is of these two networks, not of the arms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

DRAWS = 1000  # of the bootstrap; a standard error is then within 2 %
LEVEL = 0.95
ECE_BINS = 10
Floats = NDArray[np.float64]
Scores = NDArray[np.float64]  # (N, K) probabilities
Labels = NDArray[np.int64]  # (N,) class indices


@dataclass(frozen=True)
class Metric:
    """A figure of scores (N, K) and labels (N,): ``metric(scores, labels)`` is a float.

    Attributes:
        drawn: the same for each row of weights (B, N), how often every knee was drawn: (B,). NaN where it is undefined.
        better: 1 where more is better, -1 where less is.
    """

    drawn: Callable[[Scores, Labels, Floats], Floats]
    better: int = 1

    def __call__(self, scores: Scores, labels: Labels) -> float:
        """Of the knees as they are."""
        return float(self.drawn(scores, labels, np.ones((1, len(labels))))[0])


@Metric
def accuracy(scores: Scores, labels: Labels, weights: Floats) -> Floats:
    """Share of right answers."""
    return _share(weights, scores.argmax(1) == labels)


@Metric
def balanced_accuracy(scores: Scores, labels: Labels, weights: Floats) -> Floats:
    """Mean recall of the grades that are there."""
    right = scores.argmax(1) == labels
    return _mean([_share(weights[:, labels == c], right[labels == c]) for c in np.unique(labels)])


@Metric
def precision(scores: Scores, labels: Labels, weights: Floats) -> Floats:
    """Of two grades, of the second one; of more, the mean over grades. A grade that is never said counts 0."""
    said = scores.argmax(1)
    by = [_share(weights[:, said == c], labels[said == c] == c) for c in _positive(scores)]
    return _mean(np.nan_to_num(by))


@Metric
def recall(scores: Scores, labels: Labels, weights: Floats) -> Floats:
    """Of two grades, of the second one (sensitivity); of more, the mean over grades."""
    said = scores.argmax(1)
    return _mean([_share(weights[:, labels == c], said[labels == c] == c) for c in _positive(scores)])


@Metric
def auroc(scores: Scores, labels: Labels, weights: Floats) -> Floats:
    """Of two grades; of more, the mean of each against the rest. NaN where a draw misses a grade."""
    return _mean([_auroc(scores[:, c], labels == c, weights) for c in _positive(scores)])


def _ece(scores: Scores, labels: Labels, weights: Floats) -> Floats:
    """Expected calibration error of the answer given: mean over bins of |share right - confidence|.

    The bins hold equally many of the knees, by confidence, and stay as they are in every draw.
    """
    confidence = scores.max(1)
    excess = (scores.argmax(1) == labels) - confidence
    bins = np.array_split(np.argsort(confidence, kind="stable"), min(ECE_BINS, len(labels)))
    gaps = [np.abs(weights[:, rows] @ excess[rows]) for rows in bins]
    found: Floats = np.sum(gaps, axis=0) / weights.sum(1)
    return found


ece = Metric(_ece, better=-1)
METRICS: dict[str, Metric] = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy, "auroc": auroc}
ALL_METRICS: dict[str, Metric] = {  # of a run's line in t_vs_tprime.jsonl
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "precision": precision,
    "recall": recall,
    "auroc": auroc,
    "ece": ece,
}


def _positive(scores: Scores) -> Sequence[int]:
    n = scores.shape[1]
    return range(n) if n > 2 else (1,)


def _mean(of: Sequence[Floats] | Floats) -> Floats:
    found: Floats = np.mean(of, axis=0)
    return found


def _share(weights: Floats, true: NDArray[np.bool_]) -> Floats:
    with np.errstate(invalid="ignore"):
        found: Floats = weights @ true.astype(np.float64) / weights.sum(1)
    return found


def _auroc(score: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """(B,) share of pairs in the right order, ties half: Mann and Whitney's statistic with weighted knees."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))  # of each group of equal scores
    drawn, is_positive = weights[:, order], positive[order]
    ups = np.add.reduceat(drawn * is_positive, starts, axis=1)
    downs = np.add.reduceat(drawn * ~is_positive, starts, axis=1)
    below = np.cumsum(downs, axis=1) - downs / 2
    with np.errstate(invalid="ignore"):
        found: Floats = (ups * below).sum(1) / (ups.sum(1) * downs.sum(1))
    return found


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of metric(arm) - metric(T), and what is known of its error.

    Attributes:
        mean: in the metric's unit (a share, not points).
        low, high: interval of 95 %.
        p: two-sided, of no difference; below 0.05 exactly where the interval leaves out 0.
        by_seed: the difference of each seed.
        patients: how many were judged.
        patients_variance: of the mean over seeds, from drawing patients.
        between_seeds: variance of the differences between seeds; 0 of a single seed.
        seeds_by_patients: the part of it that a finite test set explains, from the same draws.
        freedom: degrees of freedom of the interval's t.
    """

    mean: float
    low: float
    high: float
    p: float
    by_seed: tuple[float, ...]
    patients: int
    patients_variance: float
    between_seeds: float
    seeds_by_patients: float
    freedom: float

    @property
    def seeds_variance(self) -> float:
        """Of the mean over seeds, from the seeds: what between_seeds has beyond the patients' share, over their number."""
        return _seeds_part(self.between_seeds, self.seeds_by_patients, len(self.by_seed))

    @property
    def error(self) -> float:
        """Standard error."""
        return float(np.sqrt(self.patients_variance + self.seeds_variance))


def estimate(
    arm: Sequence[Scores],
    base: Sequence[Scores],
    labels: Labels,
    patients: Sequence[str],
    metric: Metric,
    parts: NDArray[np.int64] | None = None,
) -> Difference:
    """Difference of two arms, paired by seed and by knee.

    Args:
        arm: scores (N, K) of each seed.
        base: those of T, of the same seeds.
        labels: (N,).
        patients: (N,); all knees of a patient are drawn together.
        metric: one of :data:`ALL_METRICS`.
        parts: (N,) the fold of cross-validation that judged each knee. The metric is taken within each fold and
            averaged by size, since scores of different networks do not rank against each other.

    Raises:
        ValueError: seeds or knees do not pair, or there is one patient only.
    """
    shapes = {scores.shape for scores in (*arm, *base)}
    n = len(labels)
    if (
        len(arm) != len(base)
        or not arm
        or len(shapes) != 1
        or next(iter(shapes))[0] != n
        or len(patients) != n
    ):
        raise ValueError(
            f"arm, base: {len(arm)} and {len(base)} seeds with scores {sorted(shapes)} of {n} labels and {len(patients)} "
            "patients; accepted are the same seeds, one or more, each with (N, K) scores of the same N knees"
        )
    ids = np.unique(np.asarray(patients), return_inverse=True)[1]
    count = int(ids.max()) + 1
    if count < 2:
        raise ValueError(f"patients: all {n} knees are of one; an interval over patients takes two or more")
    folds = [np.arange(n)] if parts is None else [np.flatnonzero(parts == part) for part in np.unique(parts)]
    # the first row is the test set itself, the others are draws
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), DRAWS)
    weights = np.concatenate([np.ones((1, n)), times[:, ids]])

    def found(scores: Scores) -> Floats:
        by_fold = [
            len(rows) / n * metric.drawn(scores[rows], labels[rows], weights[:, rows]) for rows in folds
        ]
        total: Floats = np.sum(by_fold, axis=0)
        return total

    both = np.array([found(a) - found(b) for a, b in zip(arm, base, strict=True)])  # (seeds, 1 + DRAWS)
    return _with_interval(both[:, 0], both[:, 1:], count)


def _seeds_part(between: float, explained: float, seeds: int) -> float:
    return max(0.0, between - explained) / seeds


def _with_interval(by_seed: Floats, draws: Floats, patients: int) -> Difference:
    """From the differences of the test set (S,) and of draws of patients (S, B)."""
    seeds, mean = len(by_seed), float(by_seed.mean())
    of_patients = float(np.nanvar(draws.mean(0), ddof=1))
    between, explained = 0.0, 0.0
    if seeds > 1:
        between = float(by_seed.var(ddof=1))
        explained = float(np.nanvar(draws - draws.mean(0), axis=1, ddof=1).mean()) * seeds / (seeds - 1)
    error = (of_patients + _seeds_part(between, explained, seeds)) ** 0.5
    freedom = float(patients - 1)
    if between:
        # of the whole variance between seeds: of what is left of it, t would jump where that begins to exceed 0
        parts = of_patients**2 / (patients - 1) + (between / seeds) ** 2 / (seeds - 1)
        freedom = min(max((of_patients + between / seeds) ** 2 / parts, 1.0), freedom)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    low, high = max(mean - half, -1.0), min(mean + half, 1.0)
    return Difference(
        mean, low, high, p, tuple(by_seed.tolist()), patients, of_patients, between, explained, freedom
    )


def difference(
    arm: Sequence[Scores], base: Sequence[Scores], labels: Labels, patients: Sequence[str], metric: Metric
) -> dict[str, float]:
    """``mean``, ``low`` and ``high`` of :func:`estimate`, to four digits, as a result's line keeps them."""
    found = estimate(arm, base, labels, patients, metric)
    return {name: round(getattr(found, name), 4) for name in ("mean", "low", "high")}


def compared(
    scores: dict[str, list[Scores]], labels: Labels, patients: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """``mean`` over the seeds of every arm and metric, and ``minus_T``, see :func:`difference`."""
    means = {
        arm: {
            name: round(float(np.mean([metric(s, labels) for s in of])), 4)
            for name, metric in METRICS.items()
        }
        for arm, of in scores.items()
    }
    minus = {
        arm: {name: difference(of, scores["T"], labels, patients, metric) for name, metric in METRICS.items()}
        for arm, of in scores.items()
        if arm != "T"
    }
    return {"mean": means, "minus_T": minus}


def table(summary: dict[str, Any]) -> str:
    """What :func:`compared` found, as a Markdown table."""
    lines = ["| trained on | " + " | ".join(METRICS) + " |", "|---" * (1 + len(METRICS)) + "|"]
    for arm, mean in summary["mean"].items():
        lines.append(f"| {arm} | " + " | ".join(f"{mean[name]:.3f}" for name in METRICS) + " |")
    for arm, by in summary["minus_T"].items():
        cells = (f"{d['mean']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})" for d in by.values())
        lines.append(f"| {arm} minus T | " + " | ".join(cells) + " |")
    return "\n".join(lines)
