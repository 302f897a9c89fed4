"""Runs as what is compared: grouped into cells, and two cells paired knee by knee.

A *cell* is what differs in seed and fold only: a classifier, an arm with its options, a setting (which patients, how many
images shown). A *comparison* is two cells over the seeds and folds that both have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kecae_bench.classifiers import CLASSIFIERS
from kecae_bench.stats import (
    METRICS,
    Difference,
    Floats,
    Labels,
    McNemar,
    Scores,
    draw_metric,
    draw_patients,
    estimate_from_draws,
    mcnemar,
    take_vote,
)
from kecae_bench.tvt.arms import ExchangeOptions
from kecae_bench.tvt.store import Line, Predictions

Run = tuple[int, int | None]  # seed, fold
OWN_CONTROL = {"T' unlabelled hosts": "T + X' unlabelled hosts, permuted labels"}
INSIDE = "trained inside T"  # weights that know no label beside those of a fraction of the patients
DEFAULTS = {f.name: f.default for f in fields(ExchangeOptions)}


class PairingError(ValueError):
    """Two cells cannot be compared; the message says why."""


@dataclass
class Cell:
    """Runs that differ in seed and fold only.

    Attributes:
        settings: what two cells must share to be compared: size, steps, recipe, augmentation, data.
        variant: options of X', N, weights: what makes two cells of one arm different things.
        runs: the line of each seed and fold.
    """

    classifier: str
    arm: str
    fraction: float
    settings: dict[str, Any]
    variant: dict[str, Any]
    runs: dict[Run, Line] = field(default_factory=dict)

    @property
    def exchanges(self) -> bool:
        """Whether it is a T'."""
        return self.arm.startswith(("T'", "paper"))

    @property
    def images(self) -> int:
        """Real images in a training, each as often as it came; 0 where that is not known."""
        return int(self.settings.get("steps", 0) * self.settings.get("batch_size", 0))

    @property
    def seeds(self) -> list[int]:
        """In order."""
        return sorted({seed for seed, _ in self.runs})

    @property
    def title(self) -> str:
        """The classifier; with what of its training is not its recipe's."""
        known = CLASSIFIERS.get(self.classifier)
        own = {"precision": "float32", "device": "cpu"}
        own |= (
            {name: getattr(known.recipe, name) for name in ("optimiser", "lr", "weight_decay")}
            if known
            else {}
        )
        other = [f"{name} {_short(self.settings[name])}" for name in own if self._differs(name, own[name])]
        name = known.title if known else self.classifier
        return (
            f"{name} ({', '.join(other)})".replace("precision ", "").replace("device ", "") if other else name
        )

    def _differs(self, name: str, own: Any) -> bool:
        return name in self.settings and self.settings[name] != own

    @property
    def options(self) -> str:
        """How X' is used, where that is not the default: "strength 1.5, N 5,000"."""
        usual = {**DEFAULTS, "strength": [1.0, 1.0], "N": None}
        usual["added"] = ExchangeOptions().count_beside(self.settings.get("batch_size", 1))
        said = [
            f"{name.replace('_', ' ')} {_short(value)}"
            for name, value in self.variant.items()
            if name not in ("weights", "oracles") and value != usual.get(name)
        ]
        return ", ".join(said)

    @property
    def setting(self) -> str:
        """Which patients T has and how long it is trained, in words."""
        counts = [line.get("counts", {}).get("train", {}).get("patients") for line in self.runs.values()]
        known = [count for count in counts if count is not None]
        patients = f"{round(float(np.mean(known))):,} patients" if known else "all patients"
        said = patients if self.fraction == 1 else f"{100 * self.fraction:g} % of the labels ({patients})"
        said += ", all new to the weights" if self.settings.get("known_patients") == "left out" else ""
        said += ", weights trained on them alone" if self.variant.get("weights") == INSIDE else ""
        said += f", {self.images:,} images" if self.images else ""
        return said + ("" if self.settings.get("augmentation", True) else ", no augmentation")

    def summarise(self, part: str) -> dict[str, tuple[float, float]]:
        """Mean and SD over runs of each metric of the lines' ``test`` or ``validation``; SD NaN of one run."""
        return {m: mean_sd([line[part].get(m) for line in self.runs.values()]) for m in METRICS}


@dataclass(frozen=True)
class Answers:
    """What a cell's runs said of the same knees, seed by seed.

    Attributes:
        scores: (N, K) of each seed. labels: (N,). patients: N ids.
        parts: (N,) the fold that tested each knee, or None.
    """

    scores: list[Scores]
    labels: Labels
    patients: list[str]
    parts: NDArray[np.int64] | None

    @cached_property
    def weights(self) -> Floats:
        """How often each draw of patients has each knee."""
        return draw_patients(self.patients)

    @cached_property
    def _drawn(self) -> dict[str, Floats]:
        return {}

    def draw(self, metric: str) -> Floats:
        """(S, 1 + DRAWS) a metric of each seed, of all knees and of each draw."""
        if metric not in self._drawn:
            self._drawn[metric] = np.array(
                [draw_metric(s, self.labels, self.weights, METRICS[metric], self.parts) for s in self.scores]
            )
        return self._drawn[metric]


@dataclass(frozen=True)
class Comparison:
    """An arm and its base over the seeds and folds that both have.

    Attributes:
        differences: of every metric; one that is undefined on this test set is left out.
        vote: McNemar's test of the seeds' majority votes.
    """

    cell: Cell
    base: Cell
    seeds: tuple[int, ...]
    folds: int
    arm_mean: dict[str, tuple[float, float]]
    base_mean: dict[str, tuple[float, float]]
    differences: dict[str, Difference]
    vote: McNemar
    answers: tuple[Answers, Answers]


class Study:
    """All runs of a file, as cells, with what they said.

    Args:
        lines: of :meth:`kecae_bench.tvt.store.Store.finished`.
        predictions: of the same runs, by id.

    Attributes:
        cells: in the order of their first lines.
        problems: comparisons that could not be made, and why.
    """

    def __init__(self, lines: Iterable[Line], predictions: dict[str, Predictions]) -> None:
        self.cells, self.predictions = group_runs(list(lines)), predictions
        self.problems: list[str] = []
        self._answers: dict[tuple[Any, ...], Answers] = {}

    def compare(self, cell: Cell, base: Cell) -> Comparison:
        """Pair two cells and estimate their differences.

        Raises:
            PairingError: they share no seed, or were tested on different knees, or predictions are missing.
        """
        seeds, folds = _find_shared(cell, base)
        a, b = (self._collect(of, seeds, folds) for of in (cell, base))
        if a.patients != b.patients or not np.array_equal(a.labels, b.labels):
            raise PairingError(f"{_name(cell)} and {_name(base)}: tested on different knees")
        patients = len(set(a.patients))
        found = {m: estimate_from_draws(a.draw(m) - b.draw(m), patients) for m in METRICS}
        runs = [(seed, fold) for seed in seeds for fold in folds]
        means = [
            {m: mean_sd([of.runs[run]["test"].get(m) for run in runs]) for m in METRICS}
            for of in (cell, base)
        ]
        votes = (take_vote(of.scores) == of.labels for of in (a, b))
        defined = {m: difference for m, difference in found.items() if np.isfinite(difference.mean)}
        return Comparison(
            cell, base, tuple(seeds), len(folds), means[0], means[1], defined, mcnemar(*votes), (a, b)
        )

    def try_to_compare(self, cell: Cell, base: Cell | None) -> Comparison | None:
        """The same, where there is a base; what fails is noted in :attr:`problems`."""
        if base is None:
            return None
        try:
            return self.compare(cell, base)
        except PairingError as error:
            self.problems.append(str(error))
            return None

    def pair_of(self, cell: Cell, arm: str, **settings: Any) -> Cell | None:
        """The cell of another arm that differs in nothing else (but ``settings``), of the same weights if it has some.

        Of several (two sets of options) the one with the most options, then runs, in common.
        """
        wanted = {**cell.settings, **settings}
        same = [
            other
            for other in self.cells
            if other is not cell
            and (other.classifier, other.arm, other.fraction) == (cell.classifier, arm, cell.fraction)
            and other.settings == wanted
            and other.variant.get("weights") in (None, cell.variant.get("weights"))
            and other.runs.keys() & cell.runs.keys()
        ]

        def likeness(other: Cell) -> tuple[int, int]:
            options = sum(other.variant.get(k) == v for k, v in cell.variant.items() if v is not None)
            return options, len(other.runs.keys() & cell.runs.keys())

        return max(same, key=likeness, default=None)

    def base_of(self, cell: Cell) -> Cell | None:
        """T of the same setting; of T itself, T without augmentation."""
        if cell.arm != "T":
            return self.pair_of(cell, "T")
        return self.pair_of(cell, "T", augmentation=None) if cell.settings.get("augmentation") else None

    def rivals_of(self, cell: Cell) -> list[Cell]:
        """Of a T': what adds as much, or augments, without an exchanged grade; "paper": T with as many steps."""
        if not cell.exchanges:
            return []
        if cell.arm == "paper":
            steps = {line.get("run_steps") for line in cell.runs.values()}
            as_long = self.pair_of(cell, "T", steps=steps.pop()) if len(steps) == 1 else None
            return [as_long] if as_long else []
        there = dict.fromkeys(other.arm for other in self.cells if other.arm.startswith("T + "))
        own = set(OWN_CONTROL.values()) - {OWN_CONTROL.get(cell.arm)}
        found = (self.pair_of(cell, arm) for arm in there if arm not in own)
        return [rival for rival in found if rival is not None]

    def _collect(self, cell: Cell, seeds: Sequence[int], folds: Sequence[int | None]) -> Answers:
        key = (id(cell), *seeds, *folds)
        if key not in self._answers:
            self._answers[key] = self._join(cell, seeds, folds)
        return self._answers[key]

    def _join(self, cell: Cell, seeds: Sequence[int], folds: Sequence[int | None]) -> Answers:
        of_seed: list[list[Predictions]] = []
        for seed in seeds:
            ids = [cell.runs[seed, fold]["id"] for fold in folds]
            missing = [ident for ident in ids if ident not in self.predictions]
            if missing:
                raise PairingError(f"{_name(cell)}: no predictions of {missing[0]}; run the study again")
            of_seed.append([self.predictions[ident] for ident in ids])
            if [said.knees for said in of_seed[-1]] != [said.knees for said in of_seed[0]]:
                raise PairingError(
                    f"{_name(cell)}: seeds {seeds[0]} and {seed} were tested on different knees"
                )
        first = of_seed[0]
        parts = np.repeat(np.arange(len(folds)), [len(said.labels) for said in first])
        return Answers(
            [np.concatenate([said.scores for said in of]).astype(np.float64) for of in of_seed],
            np.concatenate([said.labels for said in first]),
            [patient for said in first for patient in said.patients.tolist()],
            parts if len(folds) > 1 else None,
        )


def group_runs(lines: Sequence[Line]) -> list[Cell]:
    """Cells, in the order of their first lines."""
    folds_of: dict[str | None, set[int | None]] = {}
    for line in lines:
        folds_of.setdefault((line.get("weights") or {}).get("sha256"), set()).add(line.get("fold"))
    found: dict[str, Cell] = {}
    for line in lines:
        fold, weights = line.get("fold"), line.get("weights") or {}
        # keys that are set by --new-patients, and on other devices, only
        settings = {"known_patients": "kept", "device": "cpu", **line["settings"]}
        variant = {**line.get("options", {}), "N": line.get("n_pairs")}
        if fold is None and line["fraction"] < 1 and weights.get("patients_outside_T") == 0:
            variant["weights"] = INSIDE  # each seed draws patients, and has weights, of its own
        elif fold is None or len(folds_of[weights.get("sha256")]) > 1:
            variant["weights"] = weights.get("name") and f"{weights['name']} ({weights['sha256'][:6]})"
        if fold is not None:  # every fold has data, and cross-fitted weights, of its own
            settings.pop("data", None)
        keys = (line["classifier"], line["arm"], line["fraction"])
        name = json.dumps([*keys, settings, variant], sort_keys=True)
        found.setdefault(name, Cell(*keys, settings=settings, variant=variant)).runs[line["seed"], fold] = (
            line
        )
    return list(found.values())


def pool_classifiers(comparisons: Sequence[Comparison], metric: str) -> Difference | None:
    """Mean difference over classifiers, which are taken as a sample of classifiers, as seeds are elsewhere.

    Over the seeds that all have; None of fewer than three classifiers, without such a seed, or of different test knees.
    """
    seeds = sorted(set.intersection(*(set(c.seeds) for c in comparisons))) if comparisons else []
    if len(comparisons) < 3 or not seeds:
        return None
    first = comparisons[0].answers[0]
    if any(c.answers[0].patients != first.patients or c.folds != comparisons[0].folds for c in comparisons):
        return None

    def mean_of(c: Comparison) -> Floats:
        rows = [c.seeds.index(seed) for seed in seeds]
        difference: Floats = (c.answers[0].draw(metric) - c.answers[1].draw(metric))[rows].mean(0)
        return difference

    return estimate_from_draws(np.array([mean_of(c) for c in comparisons]), len(set(first.patients)))


def mean_sd(values: Sequence[float | None]) -> tuple[float, float]:
    """Of the values that are there; NaN where there are none, and the SD of one."""
    known = [value for value in values if value is not None]
    if not known:
        return float("nan"), float("nan")
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else float("nan")


def _find_shared(cell: Cell, base: Cell) -> tuple[list[int], list[int | None]]:
    """Seeds and folds so that every seed has every fold: all folds if some seed has them, else those of all seeds."""
    both = cell.runs.keys() & base.runs.keys()
    by_seed = {seed: {fold for s, fold in both if s == seed} for seed, _ in both}
    if not by_seed:
        raise PairingError(f"{_name(cell)} and {_name(base)}: no seed in common")
    every = {fold for _, fold in (*cell.runs, *base.runs)}
    seeds = [seed for seed, folds in by_seed.items() if folds == every]
    folds = every
    if not seeds:
        seeds, folds = list(by_seed), set.intersection(*by_seed.values())
    if not folds:
        raise PairingError(f"{_name(cell)} and {_name(base)}: no fold that all seeds have")
    return sorted(seeds), sorted(folds, key=lambda fold: -1 if fold is None else fold)


def _name(cell: Cell) -> str:
    return ", ".join(filter(None, (cell.classifier, cell.arm, cell.options)))


def _short(value: Any) -> str:
    """An option's value, in a name."""
    if isinstance(value, list):
        return "-".join(dict.fromkeys(map(_short, value)))
    return (
        f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )
