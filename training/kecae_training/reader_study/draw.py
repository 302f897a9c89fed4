"""Draw which knees a study shows: pairs spread evenly over arms and directions, controls, repeats; no patient twice.

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
    """An exchange: ``arm``, and the indices of ``host`` and ``donor`` in the data set."""

    arm: str
    host: int
    donor: int


@dataclass(frozen=True)
class Draw:
    """What a study shows.

    Fields:
        pairs: the exchanges. controls: indices of the real knees in the data set.
        claimed: for every control the class index that phase 2 claims for it, another than its own.
        repeats: positions in ``pairs`` followed by ``controls`` that phase 1 shows twice.
    """

    pairs: list[Pair]
    controls: list[int]
    claimed: list[int]
    repeats: list[int]


class TooFewPatientsError(ValueError):
    """The data set has not enough patients; the message says how many pairs it has patients for."""


def spread(n: int, first: Sequence[A], second: Sequence[B]) -> list[tuple[A, B]]:
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
        targets: class index of every image of the data set.
        patients: patient of every image.
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
    wanted, again = _count_controls(n, real), n // 10 if repeats is None else repeats
    if not 0 <= again <= n + wanted:
        raise ValueError(
            f"repeat={again}: accepted are 0 to {n + wanted}, as many as phase 1 has different images"
        )
    cohort = _Cohort(targets, patients, len(classes))
    found = _draw(cohort, arms, n, wanted, seed)
    if found is None:
        # low is possible, high is not: with more pairs, more patients of each grade are needed
        low, high = 0, n
        while high - low > 1:
            middle = (low + high) // 2
            fits = _draw(cohort, arms, middle, _count_controls(middle, real), seed) is not None
            low, high = (middle, high) if fits else (low, middle)
        counts = ", ".join(f"{c}: {int(h.sum())}" for c, h in zip(classes, cohort.has, strict=True))
        raise TooFewPatientsError(
            f"n={n}: too few patients for {n} pairs and {wanted} real knees; possible are {low} pairs with "
            f"{_count_controls(low, real)} real knees. Patients by grade: {counts}; each is a host or a control "
            "once, and a donor once. Take fewer pairs (-n) or real knees (--real), or a larger split"
        )
    pairs, controls = found
    rng = np.random.default_rng([abs(seed), 1])
    others = [[c for c in range(len(classes)) if c != targets[i]] for i in controls]
    claimed = [int(rng.choice(other)) for other in others]
    return Draw(pairs, controls, claimed, _draw_repeats(pairs, len(controls), again, rng))


class _Cohort:
    """Patients, by number, with the images of each class that they have.

    Attributes:
        images: (patient, class index) -> indices in the data set. has: (classes, patients) whether there are any.
    """

    def __init__(self, targets: Sequence[int], patients: Sequence[str], classes: int) -> None:
        number = {name: i for i, name in enumerate(sorted(set(patients)))}
        self.images: dict[tuple[int, int], list[int]] = {}
        for index, (target, patient) in enumerate(zip(targets, patients, strict=True)):
            self.images.setdefault((number[patient], target), []).append(index)
        self.has = np.zeros((classes, len(number)), dtype=bool)
        for patient_number, target in self.images:
            self.has[target, patient_number] = True

    def pick(self, patient: np.intp, target: int, rng: np.random.Generator) -> int:
        """One of the patient's images of the class."""
        indices = self.images[int(patient), target]
        return indices[int(rng.integers(len(indices)))]


def _count_controls(n: int, real: int | None) -> int:
    return n // 5 if real is None else real


def _draw(
    cohort: _Cohort, arms: Sequence[str], n: int, controls: int, seed: int
) -> tuple[list[Pair], list[int]] | None:
    """Pairs and controls, None where the patients do not suffice."""
    rng = np.random.default_rng([abs(seed), 0])
    grades = len(cohort.has)
    # Who gets one more is random, but the same whatever n is: so fewer pairs never need other patients.
    arm_order = [arms[i] for i in rng.permutation(len(arms))]
    routes = list(permutations(range(grades), 2))
    routes = [routes[i] for i in rng.permutation(len(routes))]
    control_order = [int(g) for g in rng.permutation(grades)]
    cells = spread(n, arm_order, routes)
    of_hosts = [host for _, (host, _) in cells] + [control_order[i % grades] for i in range(controls)]
    of_donors = [donor for _, (_, donor) in cells]
    for _ in range(TRIES):
        hosts = _match(cohort.has[of_hosts], rng)
        if hosts is None:
            return None  # the largest matching is the same whichever patients are tried first
        eligible = cohort.has[of_donors]
        eligible[np.arange(n), hosts[:n]] = False
        donors = _match(eligible, rng)
        if donors is not None:
            shown = [cohort.pick(p, g, rng) for p, g in zip(hosts, of_hosts, strict=True)]
            givers = [cohort.pick(p, g, rng) for p, g in zip(donors, of_donors, strict=True)]
            return [Pair(cells[i][0], shown[i], givers[i]) for i in range(n)], shown[n:]
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


def _draw_repeats(pairs: Sequence[Pair], controls: int, count: int, rng: np.random.Generator) -> list[int]:
    """Positions of the repeated items, in turn from each arm and the control."""
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
