"""Figures of readers with 95 % intervals: means over readers and patients, their differences, and kappas.

**Means.** Readers and patients are both a sample, and an interval of patients alone would be too narrow for "a radiologist
says". Here readers x images is a two-way table with both random (as in multi-reader studies, Obuchowski and Rockette 1995,
and in benchmarks/kecae_bench/stats.py, where readers are seeds):

- patients' part: variance over images of their mean over readers, divided by their number;
- readers' part: variance of the readers' means, divided by their number. A fraction of it is chance of the images and is in
  the patients' part, too. stats.py takes it out; with three readers that estimate is rough, and intervals of simulated
  studies held the truth in 89 instead of 94 of 100 where readers differ by 6 points, in 93 instead of 96 at 3 points and
  96 instead of 98 at none (tests/test_reader_intervals.py). A study of people is better a little too careful;
- t has the degrees of freedom of Welch and Satterthwaite.

The patients' part is not laid symmetrically around the mean but as Wilson's (1927) interval of a fraction of as many
independent images as would have that variance; otherwise 20 right of 20 would have an interval without width. Of one
reader's fraction it is Wilson's interval itself. Parts are added as squares of the distances to the mean (Newcombe 1998,
Zou and Donner 2008), which is how differences get theirs.

**Kappas.** Their intervals come from patients drawn with replacement (:class:`kecae_training.bootstrap.Bootstrap`).
scikit-learn and statsmodels take no matrix of weights, so the formulas are ours, on weighted counts; tests compare figures
and draws with theirs. The readers are taken as they are: a kappa of three readers has no interval for "any readers".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from kecae_training.bootstrap import (
    Bootstrap,
    Draws,
    cohen_kappa,
    count_confusions,
    ratio,
    summary,
)

LEVEL = 0.95
Table = NDArray[np.float64] | NDArray[np.bool_]  # (R, N): a row for each reader, a column for each image
Grades = NDArray[np.int64]  # (N,) or (R, N) class indices


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        mean: in the unit of the values.
        low, high: interval of 95 %; NaN where fewer than two images leave it undefined.
        images: how many, of all groups.
    """

    mean: float
    low: float
    high: float
    images: int

    def figure(self, digits: int = 4) -> dict[str, Any]:
        """``{"mean", "low", "high", "images"}``, None where undefined; like :func:`~kecae_training.bootstrap.summary`."""
        values = {"mean": self.mean, "low": self.low, "high": self.high}
        rounded = {k: round(v, digits) if np.isfinite(v) else None for k, v in values.items()}
        return {**rounded, "images": self.images}


def mean_over_readers(values: Table, bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """Mean of a two-way table.

    Args:
        values: (R, N) of R readers and N images, each of another patient; within ``bounds``.
        bounds: least and greatest possible value.
    """
    return _estimate([(1, values)], bounds)


def difference(first: Table, second: Table, bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """Mean of ``first`` minus mean of ``second``: two kinds of image of different patients, seen by the same readers.

    Args:
        first: (R, N).
        second: (R, M) of the same readers.
        bounds: of the values; the difference lies within plus and minus their distance.

    Raises:
        ValueError: the readers' numbers differ.
    """
    if len(first) != len(second):
        raise ValueError(
            f"first, second: {len(first)} and {len(second)} readers; accepted are the same readers in both"
        )
    return _estimate([(1, first), (-1, second)], bounds)


def wilson(mean: float, images: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval of a fraction ``mean`` of ``images`` independent images, which need not be a whole number."""
    if not np.isfinite(images):
        return mean, mean
    square = quantile**2 / images
    centre = (mean + square / 2) / (1 + square)
    half = quantile / (1 + square) * np.sqrt(mean * (1 - mean) / images + square / (4 * images))
    return float(max(centre - half, 0.0)), float(min(centre + half, 1.0))


def _estimate(groups: Sequence[tuple[int, Table]], bounds: tuple[float, float]) -> Estimate:
    """Of the signed sum of the groups' means."""
    span = bounds[1] - bounds[0]
    tables = [(sign, (np.asarray(v, np.float64) - bounds[0]) / span) for sign, v in groups]
    readers, images = len(tables[0][1]), sum(v.shape[1] for _, v in tables)
    offset = bounds[0] * sum(sign for sign, _ in tables)
    if any(v.shape[1] < 2 for _, v in tables):
        mean = sum(sign * v.mean() for sign, v in tables) if all(v.size for _, v in tables) else np.nan
        return Estimate(float(mean * span + offset), np.nan, np.nan, images)
    by_reader = np.sum([sign * v.mean(1) for sign, v in tables], axis=0)
    of_patients = [float(v.mean(0).var() / v.shape[1]) for _, v in tables]
    of_readers, freedom = 0.0, np.inf
    if readers > 1:
        of_readers = float(by_reader.var(ddof=1)) / readers
        freedom = _freedom(of_patients, [v.shape[1] for _, v in tables], of_readers, readers)
    quantile = float(stdtrit(freedom, (1 + LEVEL) / 2))  # of Student's t
    mean = float(by_reader.mean())
    below = above = quantile**2 * of_readers
    for (sign, v), variance in zip(tables, of_patients, strict=True):
        p = float(v.mean())
        low, high = wilson(p, _effective(p, variance, v.shape[1]), quantile)
        down, up = (p - low, high - p) if sign > 0 else (high - p, p - low)
        below, above = below + down**2, above + up**2
    least = 0.0 if len(tables) == 1 else -1.0
    low, high = max(mean - below**0.5, least), min(mean + above**0.5, 1.0)
    return Estimate(mean * span + offset, low * span + offset, high * span + offset, images)


def _effective(mean: float, variance: float, images: int) -> float:
    """How many independent images, each right or wrong, would have the variance."""
    if mean * (1 - mean) < 1e-12:  # all right or all wrong: the variance says nothing
        return images
    return mean * (1 - mean) / variance if variance > 0 else np.inf


def _freedom(of_patients: list[float], images: list[int], of_readers: float, readers: int) -> float:
    parts = sum(v**2 / (n - 1) for v, n in zip(of_patients, images, strict=True))
    parts += of_readers**2 / (readers - 1)
    if parts == 0:
        return float(sum(images) - len(images))
    return float(min(max((sum(of_patients) + of_readers) ** 2 / parts, 1.0), sum(images) - len(images)))


def inter_reader(
    given: Grades, readers: Sequence[str], patients: Sequence[str], grades: int
) -> dict[str, Any]:
    """Agreement of all readers on the same images.

    Args:
        given: (R, N) class index that every reader gives every image.
        readers: R names.
        patients: N ids; all images of a patient are drawn together.
        grades: how many there are.

    Returns:
        ``cohen`` by pair ("A, B"), ``cohen_mean``, ``fleiss``, and with more than two grades
        ``cohen_quadratic_mean``: each ``{"mean", "low", "high"}``, None where it is not defined (all gave the same grade).
        ``observed``: fraction of images to which all give the same. Empty of one reader or no image.
    """
    if len(given) < 2 or given.shape[1] == 0:
        return {}
    drawn = Bootstrap(patients)

    def by_pair(quadratic: bool) -> dict[str, Draws]:
        return {
            f"{readers[i]}, {readers[j]}": cohen(given[i], given[j], drawn, grades, quadratic=quadratic)
            for i, j in combinations(range(len(given)), 2)
        }

    pairs = by_pair(False)
    found: dict[str, Any] = {
        "cohen": {pair: summary(draws) for pair, draws in pairs.items()},
        "cohen_mean": summary(np.mean(list(pairs.values()), axis=0)),
        "fleiss": summary(fleiss(given, drawn, grades)),
        "observed": summary(drawn.mean((given == given[0]).all(0))),
    }
    if grades > 2:
        found["cohen_quadratic_mean"] = summary(np.mean(list(by_pair(True).values()), axis=0))
    return found


def intra_reader(
    first: Grades, second: Grades, patients: Sequence[str], grades: int, between: Sequence[int]
) -> dict[str, Any]:
    """A reader's agreement with the same reader's first reading of the same images.

    Args:
        first: (K,) of the first reading.
        second: (K,) of the other.
        patients: K ids.
        grades: how many there are.
        between: (K,) how many images lay between the two readings.

    Returns:
        ``kappa`` and ``observed`` with intervals, ``images``, ``between`` (``min`` and ``median``); empty without repeats.
    """
    if not len(first):
        return {}
    drawn = Bootstrap(patients)
    return {
        "kappa": summary(cohen(first, second, drawn, grades)),
        "observed": summary(drawn.mean(first == second)),
        "images": len(first),
        "between": {"min": int(min(between)), "median": float(np.median(between))},
    }


def cohen(first: Grades, second: Grades, drawn: Bootstrap, grades: int, *, quadratic: bool = False) -> Draws:
    """Cohen's kappa of two readers (or of a reader's two readings): the figure, then that of every draw.

    Args:
        first: (N,) grades of one.
        second: (N,) of the other.
        drawn: the draws of their N images.
        grades: how many there are.
        quadratic: see :func:`kecae_training.bootstrap.cohen_kappa`.
    """
    return cohen_kappa(count_confusions(drawn.weights, first, second, grades), quadratic=quadratic)


def fleiss(given: Grades, drawn: Bootstrap, grades: int) -> Draws:
    """Fleiss' kappa of (R, N) grades: the figure, then that of every draw."""
    readers = len(given)
    counts = np.stack([(given == k).sum(0) for k in range(grades)], 1).astype(np.float64)  # (N, K)
    same = ((counts**2).sum(1) - readers) / (readers * (readers - 1))
    frequencies = ratio(drawn.weights @ counts, drawn.weights.sum(1, keepdims=True) * readers)
    chance = (frequencies**2).sum(1)
    return ratio(drawn.mean(same) - chance, np.where(np.isclose(chance, 1), 0, 1 - chance))


def list_kappas(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The kappas of :func:`inter_reader` as (name, figure), for tables."""
    names = {
        "cohen_mean": "Cohen's kappa, mean",
        "cohen_quadratic_mean": "Cohen's, quadratic, mean",
        "fleiss": "Fleiss' kappa",
    }
    pairs = [(f"Cohen's kappa, {pair}", figure) for pair, figure in found.get("cohen", {}).items()]
    return pairs + [(text, found[name]) for name, text in names.items() if name in found]
