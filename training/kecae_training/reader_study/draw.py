"""Which knees a study shows: pairs dealt evenly over arms and directions, controls, repeats; no patient twice.

Section V-E draws 100 pairs at random. Here every patient is a host or a control once at most, so that answers are
independent, and every arm gets every direction as often as the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

A = TypeVar("A")
B = TypeVar("B")
# of hosts, until all of them find a donor; more than one is needed only where patients are very few
TRIES = 20


class Pair(NamedTuple):
    """An exchange: ``arm``, and the rows of ``host`` and ``donor`` in the data set."""

    arm: str
    host: int
    donor: int


@dataclass(frozen=True)
class Draw:
    """What a study shows.

    Fields:
        pairs: the exchanges. real: rows of the control.
        shown: for every real knee the class that phase 2 claims for it, another than its own.
        repeats: positions in ``pairs`` followed by ``real`` that phase 1 shows twice.
    """

    pairs: list[Pair]
    real: list[int]
    shown: list[int]
    repeats: list[int]


class TooFewPatientsError(ValueError):
    """The data set has not enough patients; the message says how many pairs it has patients for."""


def deal(n: int, first: Sequence[A], second: Sequence[B]) -> list[tuple[A, B]]:
    """``n`` combinations of two lists, every prefix even: in either list, and in all combinations.

    Over a block of the least common multiple both lists run round; the next block is shifted by one, so that after all
    blocks every combination has come once.
    """
    a, b = len(first), len(second)
    block = math.lcm(a, b)
    return [(first[i % a], second[(i + i // block) % b]) for i in range(n)]


def draw_study(
    targets: Sequence[int],
    patients: Sequence[str],
    classes: Sequence[str],
    arms: Sequence[str],
    *,
    n: int,
    real: int | None = None,
    repeats: int | None = None,
    seed: int = 0,
) -> Draw:
    """Draw a study. The same arguments give the same study.

    Args:
        targets: class index of every row of the data set.
        patients: patient of every row.
        classes: names of the grades; a direction is any two different ones.
        arms: names.
        n: pairs in all; arms, directions and their combinations differ by one at most.
        real: real knees as control, even over the grades; by default a fifth of ``n``.
        repeats: items of phase 1 that are shown twice, even over arms and control; by default a tenth of ``n``.
        seed: any integer.

    Returns:
        The draw. A patient is a host or a control once at most, a donor once at most, never the donor of itself.

    Raises:
        TooFewPatientsError: says how many pairs are possible.
        ValueError: numbers out of range.
    """
    if n < 1 or (real is not None and real < 0):
        raise ValueError(f"n={n}, real={real}: accepted are 1 or more pairs, 0 or more real knees")
    controls, again = _controls(n, real), n // 10 if repeats is None else repeats
    if not 0 <= again <= n + controls:
        raise ValueError(
            f"repeat={again}: accepted are 0 to {n + controls}, as many as phase 1 has different images"
        )
    knees = _Knees(targets, patients, len(classes))
    found = _attempt(knees, arms, n, controls, seed)
    if found is None:
        # low is possible, high is not: with more pairs, more patients of each grade are needed
        low, high = 0, n
        while high - low > 1:
            middle = (low + high) // 2
            fits = _attempt(knees, arms, middle, _controls(middle, real), seed) is not None
            low, high = (middle, high) if fits else (low, middle)
        raise TooFewPatientsError(
            f"n={n}: too few patients for {n} pairs and {controls} real knees; possible are {low} pairs with "
            f"{_controls(low, real)} real knees. Patients by grade: {knees.counts(classes)}; each is a host or a control "
            "once, and a donor once. Take fewer pairs (-n) or real knees (--real), or a larger split"
        )
    pairs, controlled = found
    rng = np.random.default_rng([abs(seed), 1])
    others = [[c for c in range(len(classes)) if c != targets[row]] for row in controlled]
    shown = [int(rng.choice(other)) for other in others]
    return Draw(pairs, controlled, shown, _repeats(pairs, len(controlled), again, rng))


class _Knees:
    """Patients with the rows of each grade that they have."""

    def __init__(self, targets: Sequence[int], patients: Sequence[str], grades: int) -> None:
        self.names = sorted(set(patients))
        number = {name: i for i, name in enumerate(self.names)}
        self.rows: dict[tuple[int, int], list[int]] = {}
        for row, (target, patient) in enumerate(zip(targets, patients, strict=True)):
            self.rows.setdefault((number[patient], target), []).append(row)
        self.has = np.zeros((grades, len(self.names)), dtype=bool)
        for patient_number, target in self.rows:
            self.has[target, patient_number] = True

    def counts(self, classes: Sequence[str]) -> str:
        return ", ".join(f"{c}: {int(h.sum())}" for c, h in zip(classes, self.has, strict=True))


def _controls(n: int, real: int | None) -> int:
    return n // 5 if real is None else real


def _attempt(
    knees: _Knees, arms: Sequence[str], n: int, controls: int, seed: int
) -> tuple[list[Pair], list[int]] | None:
    """Pairs and controls, None where the patients do not suffice."""
    rng = np.random.default_rng([abs(seed), 0])
    grades = len(knees.has)
    # Who gets one more is random, but the same whatever n is: so fewer pairs never need other patients.
    arm_order = [arms[i] for i in rng.permutation(len(arms))]
    routes = list(permutations(range(grades), 2))
    routes = [routes[i] for i in rng.permutation(len(routes))]
    control_order = [int(g) for g in rng.permutation(grades)]
    dealt = deal(n, arm_order, routes)
    wanted = [route[0] for _, route in dealt] + [control_order[i % grades] for i in range(controls)]
    for _ in range(TRIES):
        hosts = _match(knees.has[wanted], rng)
        if hosts is None:
            return None  # the largest matching is the same whichever patients are tried first
        eligible = knees.has[[route[1] for _, route in dealt]]
        eligible[np.arange(n), hosts[:n]] = False
        donors = _match(eligible, rng)
        if donors is not None:
            rows = [_any(knees, int(p), g, rng) for p, g in zip(hosts, wanted, strict=True)]
            givers = [_any(knees, int(p), route[1], rng) for p, (_, route) in zip(donors, dealt, strict=True)]
            pairs = [Pair(arm, rows[i], givers[i]) for i, (arm, _) in enumerate(dealt)]
            return pairs, rows[n:]
    return None


def _match(eligible: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.intp] | None:
    """A column for each row, each once, from the eligible ones; None where there is no such choice.

    Rows and columns are shuffled before, so patients with knees of the same grades are equally likely.
    """
    rows, columns = eligible.shape
    if not rows:
        return np.empty(0, dtype=np.intp)
    row_order, column_order = rng.permutation(rows), rng.permutation(columns)
    shuffled = csr_array(eligible[row_order][:, column_order])
    found = maximum_bipartite_matching(shuffled, perm_type="column")
    if (found < 0).any():
        return None
    result = np.empty(rows, dtype=np.intp)
    result[row_order] = column_order[found]
    return result


def _any(knees: _Knees, patient: int, grade: int, rng: np.random.Generator) -> int:
    rows = knees.rows[patient, grade]
    return rows[int(rng.integers(len(rows)))]


def _repeats(pairs: Sequence[Pair], controls: int, count: int, rng: np.random.Generator) -> list[int]:
    """Positions of the repeated items, dealt in turn to the arms and the control."""
    groups: dict[str, list[int]] = {}
    for position, pair in enumerate(pairs):
        groups.setdefault(pair.arm, []).append(position)
    if controls:
        groups[""] = list(range(len(pairs), len(pairs) + controls))
    names = sorted(groups)
    queues = [
        [groups[names[i]][j] for j in rng.permutation(len(groups[names[i]]))]
        for i in rng.permutation(len(names))
    ]
    rounds = max(map(len, queues))
    return [queue[r] for r in range(rounds) for queue in queues if r < len(queue)][:count]
