"""Is a difference told apart from none? Tests, the correction for several classifiers, and how many patients it would take.

The interval of :func:`paired.estimate` decides: better where all of it is above 0, worse where all of it is below, and
otherwise *not told apart*, which is not "equal". Beside it:

- McNemar's exact test, on the majority vote of the seeds. Counting every seed's answers would count each knee as many
  times as there are seeds, and one test a seed leaves several p for one question; the vote is one answer a knee. It
  asks something else than the interval: whether the *ensembles* differ, on these knees, as if all knees were of
  different patients. Where the two disagree, the interval is the one that knows of seeds and patients.
- Holm's correction: of several classifiers, one is below 0.05 by chance soon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kecae_bench.paired import LEVEL, Difference, Labels, Metric, Scores

ALPHA = round(1 - LEVEL, 6)
POWER = 0.8  # of the number of patients: four of five such studies would tell
Verdict = Literal["better", "worse", "not told apart"]


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


def majority(scores: Sequence[Scores]) -> Labels:
    """(N,) the grade that most seeds say; of equally many votes, the one with the higher mean probability."""
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
    return "not told apart"


def detectable(found: Difference) -> float:
    """The smallest true difference that four of five such studies (patients, seeds) would tell from 0."""
    return _reach(found) * found.error


def patients_needed(found: Difference) -> int | None:
    """Test patients with which four of five studies would tell a true difference of the size that was seen.

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
    """Standard errors from 0 to a difference that is told with :data:`POWER`."""
    return float(stats.t.ppf(1 - ALPHA / 2, found.freedom) + stats.norm.ppf(POWER))


def sentence(
    found: Difference, metric: Metric, name: str, family: int = 1, adjusted: float | None = None
) -> str:
    """One plain sentence or two on a difference.

    Args:
        found: from :func:`paired.estimate`.
        metric: which one it is of.
        name: of the metric, as in "points of accuracy".
        adjusted: p by :func:`holm`, if it is one of several classifiers.
        family: how many classifiers those are.
    """
    seeds = len(found.by_seed)
    said = verdict(found, metric)
    text = (
        f"{said.capitalize()}: {points(found.mean)} points of {name} (95 % interval {points(found.low)} to "
        f"{points(found.high)}; {of_seeds(seeds)}, {found.patients} patients)"
    )
    if seeds == 1:
        text += ", for this one seed: how much seeds differ is not in the interval"
    if said != "not told apart":
        if adjusted is not None and family > 1:
            held = "also" if adjusted < ALPHA else "but not"
            text += f"; {held} after Holm's correction for {family} classifiers (p = {adjusted:.2g})"
        return f"{text}."
    return f"{text}. {_missing(found)}"


def _missing(found: Difference) -> str:
    now = f"these {found.patients} tell differences from about {100 * detectable(found):.1f} points on"
    needed = patients_needed(found)
    if needed is not None:
        return f"To tell a difference of this size takes about {rounded(needed):,} test patients; {now}."
    if not found.mean:
        return f"No difference was seen; {now}."
    spread = 100 * (found.seeds_variance * len(found.by_seed)) ** 0.5
    return (
        f"No number of test patients would tell a difference of this size with {len(found.by_seed)} seeds, which differ "
        f"by {spread:.1f} points (SD) among themselves: it takes more seeds; {now}."
    )


def points(value: float) -> str:
    """A share as percentage points with its sign: one digit, and as many more as it takes to see on which side of 0."""
    digits = next((n for n in (1, 2, 3) if round(100 * value, n)), 1)
    return f"{round(100 * value, digits) + 0.0:+.{digits}f}"


def of_seeds(number: int) -> str:
    """How many seeds, in words."""
    return f"{number} seed{'s' * (number > 1)}"


def rounded(count: int) -> int:
    """To two digits: more are not known."""
    digits = max(0, len(str(count)) - 2)
    return int(round(count, -digits))
