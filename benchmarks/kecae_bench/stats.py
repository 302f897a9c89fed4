"""Metrics of classifiers, and whether two of them differ: intervals over seeds and patients, tests, corrections.

    difference = estimate([scores of the arm, seed 0, seed 1, ...], [T's, of the same seeds], labels, patients, accuracy)

The interval is mean +- t * sqrt(patients' part + seeds' part). The patients' part is the variance of the mean over
seeds when patients are drawn with replacement, all knees of a patient together. The seeds' part is what the seeds'
variance exceeds that which the test set's size explains (from the same draws), divided by their number. t has the
degrees of freedom of Welch and Satterthwaite. Percentiles of seeds and patients drawn together are the usual way; in
simulated studies they cover the truth too often where seeds differ little and far too seldom where they differ much,
since few seeds drawn with replacement vary too little (tests/test_significance.py). Of a single seed there is no seeds'
part: the interval is of these two networks, not of the arms.

The interval decides: better where all of it is above 0, worse where all of it is below, otherwise *not significant*,
which is not "equal". Beside it:

- McNemar's exact test, on the majority vote of the seeds. Counting every seed's answers would count each knee as many
  times as there are seeds, and one test a seed leaves several p for one question; the vote is one answer a knee. It
  asks something else than the interval: whether the *ensembles* differ, on these knees, as if all knees were of
  different patients. Where the two disagree, the interval is the one that knows of seeds and patients.
- Holm's correction: of several classifiers, one is below 0.05 by chance soon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kecae_training.bootstrap import Bootstrap, ratio, weighted_auroc

DRAWS = 1000  # of the bootstrap; a standard error is then within 2 %
LEVEL = 0.95
ALPHA = round(1 - LEVEL, 6)
POWER = 0.8  # of the number of patients: four of five such studies would find the difference
ECE_BINS = 10
Floats = NDArray[np.float64]
Scores = NDArray[np.float64]  # (N, K) probabilities
Labels = NDArray[np.int64]  # (N,) class indices
Verdict = Literal["better", "worse", "not significant"]


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
    """Fraction of right answers."""
    return _fraction(weights, scores.argmax(1) == labels)


@Metric
def balanced_accuracy(scores: Scores, labels: Labels, weights: Floats) -> Floats:
    """Mean recall of the grades that are there."""
    right = scores.argmax(1) == labels
    return _mean([_fraction(weights[:, labels == c], right[labels == c]) for c in np.unique(labels)])


@Metric
def precision(scores: Scores, labels: Labels, weights: Floats) -> Floats:
    """Of two grades, of the second one; of more, the mean over grades. A grade that is never predicted counts 0."""
    predicted = scores.argmax(1)
    by = [_fraction(weights[:, predicted == c], labels[predicted == c] == c) for c in _positive(scores)]
    return _mean(np.nan_to_num(by))


@Metric
def recall(scores: Scores, labels: Labels, weights: Floats) -> Floats:
    """Of two grades, of the second one (sensitivity); of more, the mean over grades."""
    predicted = scores.argmax(1)
    return _mean([_fraction(weights[:, labels == c], predicted[labels == c] == c) for c in _positive(scores)])


@Metric
def auroc(scores: Scores, labels: Labels, weights: Floats) -> Floats:
    """Of two grades; of more, the mean of each against the rest. NaN where a draw misses a grade."""
    return _mean([weighted_auroc(scores[:, c], labels == c, weights) for c in _positive(scores)])


def _ece(scores: Scores, labels: Labels, weights: Floats) -> Floats:
    """Expected calibration error of the answer given: mean over bins of |fraction right - confidence|.

    The bins hold equally many of the knees, by confidence, and stay as they are in every draw.
    """
    confidence = scores.max(1)
    excess = (scores.argmax(1) == labels) - confidence
    bins = np.array_split(np.argsort(confidence, kind="stable"), min(ECE_BINS, len(labels)))
    gaps = [np.abs(weights[:, rows] @ excess[rows]) for rows in bins]
    found: Floats = np.sum(gaps, axis=0) / weights.sum(1)
    return found


ece = Metric(_ece, better=-1)
METRICS: dict[str, Metric] = {  # of a run's line in t_vs_tprime.jsonl
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "precision": precision,
    "recall": recall,
    "auroc": auroc,
    "ece": ece,
}


def measure(scores: Scores, labels: Labels) -> dict[str, float]:
    """Every metric, to six digits.

    Args:
        scores: (N, K) probabilities.
        labels: (N,) class indices, all classes among them.

    Raises:
        ValueError: scores that are not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError(
            "scores: not finite, the classifier has diverged; a smaller learning rate (--lr) may help"
        )
    return {name: round(float(metric(scores, labels)), 6) for name, metric in METRICS.items()}


def _positive(scores: Scores) -> Sequence[int]:
    n = scores.shape[1]
    return range(n) if n > 2 else (1,)


def _mean(of: Sequence[Floats] | Floats) -> Floats:
    found: Floats = np.mean(of, axis=0)
    return found


def _fraction(weights: Floats, true: NDArray[np.bool_]) -> Floats:
    return ratio(weights @ true.astype(np.float64), weights.sum(1))


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of metric(arm) - metric(T), and what is known of its error.

    Attributes:
        mean: in the metric's unit (a fraction, not points).
        low, high: interval of 95 %.
        p: two-sided, of no difference; below 0.05 exactly where the interval leaves out 0.
        by_seed: the difference of each seed.
        patients: how many were tested.
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
        """Of the mean over seeds, from the seeds: what between_seeds has beyond the patients' part, over their number."""
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
        metric: one of :data:`METRICS`.
        parts: (N,) the fold of cross-validation that tested each knee. The metric is taken within each fold and
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
    weights = draw_patients(patients)
    both = [
        draw_metric(a, labels, weights, metric, parts) - draw_metric(b, labels, weights, metric, parts)
        for a, b in zip(arm, base, strict=True)
    ]
    return estimate_from_draws(np.array(both), len(set(patients)))


def draw_patients(patients: Sequence[str]) -> Floats:
    """(1 + DRAWS, N) how often each knee was drawn, all of a patient together; the first row is the test set itself.

    Raises:
        ValueError: one patient only.
    """
    if len(set(patients)) < 2:
        raise ValueError(
            f"patients: all {len(patients)} knees are of one; an interval over patients takes two or more"
        )
    return Bootstrap(patients, draws=DRAWS).weights


def draw_metric(
    scores: Scores, labels: Labels, weights: Floats, metric: Metric, parts: NDArray[np.int64] | None = None
) -> Floats:
    """(1 + DRAWS,) a metric of the test set and of each draw; arguments as of :func:`estimate`."""
    n = len(labels)
    folds = [np.arange(n)] if parts is None else [np.flatnonzero(parts == part) for part in np.unique(parts)]
    by_fold = [len(rows) / n * metric.drawn(scores[rows], labels[rows], weights[:, rows]) for rows in folds]
    found: Floats = np.sum(by_fold, axis=0)
    return found


def estimate_from_draws(both: Floats, patients: int) -> Difference:
    """The interval of differences (S, 1 + DRAWS) of each seed: of the test set, then of each draw of patients."""
    return _with_interval(both[:, 0], both[:, 1:], patients)


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


@dataclass(frozen=True)
class McNemar:
    """Knees that only one of two classifiers gets right, and the exact two-sided p of as uneven a split."""

    only_arm: int
    only_base: int
    p: float


def mcnemar(arm: NDArray[np.bool_], base: NDArray[np.bool_]) -> McNemar:
    """McNemar's exact test (a sign test of the knees on which the two disagree).

    Args:
        arm: (N,) whether each knee was answered right.
        base: the same of T.
    """
    if arm.shape != base.shape or arm.ndim != 1:
        raise ValueError(f"arm, base: shapes {arm.shape} and {base.shape}; accepted: (N,) of the same knees")
    gained, lost = int((arm & ~base).sum()), int((~arm & base).sum())
    p = float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    return McNemar(gained, lost, p)


def take_vote(scores: Sequence[Scores]) -> Labels:
    """(N,) the grade that most seeds predict; of equally many votes, the one with the higher mean probability."""
    votes = sum(np.eye(s.shape[1])[s.argmax(1)] for s in scores)
    answer: Labels = (votes + np.mean(scores, axis=0) / 2).argmax(1)  # a mean is below one vote
    return answer


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p (1979): below 0.05 for any of true nulls in 5 % of studies at most.

    Args:
        p: of each classifier; none may be NaN.
    """
    if not all(0 <= value <= 1 for value in p):
        raise ValueError(f"p={list(p)}: accepted are numbers from 0 to 1")
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(p) else steps
    return adjusted.tolist()


def verdict(found: Difference, metric: Metric) -> Verdict:
    """What the interval says; of a metric where less is better, a difference below 0 is "better"."""
    if found.low > 0:
        return "better" if metric.better > 0 else "worse"
    if found.high < 0:
        return "worse" if metric.better > 0 else "better"
    return "not significant"


def detectable(found: Difference) -> float:
    """The smallest true difference that four of five such studies (patients, seeds) would find significant."""
    return _reach(found) * found.error


def patients_needed(found: Difference) -> int | None:
    """Test patients with which a true difference of the size that was seen would be significant in four of five studies.

    The patients' part of the variance falls with their number, the seeds' part does not.

    Returns:
        None where no number would do: no difference was seen, or the seeds alone differ by too much.
    """
    wanted = (found.mean / _reach(found)) ** 2
    left = wanted - found.seeds_variance
    if found.mean == 0 or left <= 0:
        return None
    return max(2, int(np.ceil(found.patients * found.patients_variance / left)))


def _reach(found: Difference) -> float:
    """Standard errors from 0 to a difference that is found with :data:`POWER`."""
    return float(stats.t.ppf(1 - ALPHA / 2, found.freedom) + stats.norm.ppf(POWER))


def format_points(value: float) -> str:
    """A fraction as percentage points with its sign: one digit, and as many more as it takes to see on which side of 0."""
    digits = next((n for n in (1, 2, 3) if round(100 * value, n)), 1)
    return f"{round(100 * value, digits) + 0.0:+.{digits}f}"
