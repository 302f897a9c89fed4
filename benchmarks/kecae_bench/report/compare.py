"""Two cells of benchmarks/report_data.py compared over the seeds and folds that both have, knee by knee."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kecae_bench.stats import ALL_METRICS, Difference, Labels, Scores, estimate
from kecae_bench.report.data import Cell, mean_sd
from kecae_bench.stats import McNemar, majority, mcnemar


class PairingError(ValueError):
    """Two cells cannot be compared; the message says why."""


@dataclass(frozen=True)
class Judged:
    """Scores of the same knees, seed by seed: (N, K) each; ``parts`` (N,) are folds, or None."""

    scores: list[Scores]
    labels: Labels
    patients: list[str]
    parts: NDArray[np.int64] | None


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
    arm_judged: Judged
    base_judged: Judged


def compare(cell: Cell, base: Cell, folder: Path, metrics: Sequence[str] = tuple(ALL_METRICS)) -> Comparison:
    """Pair two cells and estimate their differences.

    Args:
        cell: the arm.
        base: what it is compared with.
        folder: what the lines' ``predictions`` are relative to.
        metrics: keys of :data:`paired.ALL_METRICS`.

    Raises:
        PairingError: they share no seed, or were judged on different knees, or predictions are missing.
    """
    seeds, folds = _shared(cell, base)
    arm_judged, base_judged = (_judged(of, seeds, folds, folder) for of in (cell, base))
    if arm_judged.patients != base_judged.patients or not np.array_equal(
        arm_judged.labels, base_judged.labels
    ):
        raise PairingError(f"{cell.classifier}, {cell.label} and {base.label}: judged on different knees")
    a, b = arm_judged, base_judged
    found = {m: estimate(a.scores, b.scores, a.labels, a.patients, ALL_METRICS[m], a.parts) for m in metrics}
    runs = [(seed, fold) for seed in seeds for fold in folds]
    means = [
        {m: mean_sd([of.runs[run]["test"].get(m) for run in runs]) for m in ALL_METRICS}
        for of in (cell, base)
    ]
    return Comparison(
        cell,
        base,
        tuple(seeds),
        len(folds),
        means[0],
        means[1],
        {m: difference for m, difference in found.items() if np.isfinite(difference.mean)},
        mcnemar(*(majority(of.scores) == of.labels for of in (a, b))),
        a,
        b,
    )


def overall(comparisons: Sequence[Comparison], metric: str = "accuracy") -> Difference | None:
    """Mean difference over classifiers, which are taken as a sample of classifiers, as seeds are elsewhere.

    Over the seeds that all have; None of fewer than three classifiers, without such a seed, or of different test knees.
    """
    seeds = sorted(set.intersection(*(set(c.seeds) for c in comparisons))) if comparisons else []
    if len(comparisons) < 3 or not seeds:
        return None
    first = comparisons[0].arm_judged
    if any(c.arm_judged.patients != first.patients or c.folds != comparisons[0].folds for c in comparisons):
        return None
    folds = np.zeros(len(first.labels), np.int64) if first.parts is None else first.parts
    parts = np.concatenate([folds + i * (int(folds.max()) + 1) for i in range(len(seeds))])

    def joined(of: Judged, c: Comparison) -> Scores:
        return np.concatenate([of.scores[c.seeds.index(seed)] for seed in seeds])

    return estimate(
        [joined(c.arm_judged, c) for c in comparisons],
        [joined(c.base_judged, c) for c in comparisons],
        np.tile(first.labels, len(seeds)),
        first.patients * len(seeds),
        ALL_METRICS[metric],
        parts,
    )


def _shared(cell: Cell, base: Cell) -> tuple[list[int], list[int | None]]:
    """Seeds and folds so that every seed has every fold: all folds if some seed has them, else those of all seeds."""
    both = cell.runs.keys() & base.runs.keys()
    by_seed = {seed: {fold for s, fold in both if s == seed} for seed, _ in both}
    if not by_seed:
        raise PairingError(f"{cell.classifier}, {cell.label} and {base.label}: no seed in common")
    every = {fold for _, fold in (*cell.runs, *base.runs)}
    seeds = [seed for seed, folds in by_seed.items() if folds == every]
    folds = every
    if not seeds:
        seeds, folds = list(by_seed), set.intersection(*by_seed.values())
    if not folds:
        raise PairingError(f"{cell.classifier}, {cell.label} and {base.label}: no fold that all seeds have")
    return sorted(seeds), sorted(folds, key=lambda fold: -1 if fold is None else fold)


def _judged(cell: Cell, seeds: Sequence[int], folds: Sequence[int | None], folder: Path) -> Judged:
    of_seed = []
    for seed in seeds:
        parts = [predictions(folder / cell.runs[seed, fold]["predictions"]) for fold in folds]
        of_seed.append([np.concatenate(of) for of in zip(*parts, strict=True)])
        same = all(np.array_equal(of_seed[0][i], of_seed[-1][i]) for i in range(3))
        if not same:
            raise PairingError(
                f"{cell.classifier}, {cell.label}: seeds {seeds[0]} and {seed} judged different knees"
            )
    sizes = [len(part[0]) for part in parts]
    _, patients, labels, _ = of_seed[0]
    fold_of = np.repeat(np.arange(len(folds)), sizes) if len(folds) > 1 else None
    return Judged([s[3] for s in of_seed], labels.astype(np.int64), patients.tolist(), fold_of)


def predictions(path: Path) -> tuple[NDArray[Any], ...]:
    """Files, patients, labels (N,), probabilities (N, K), sorted by file."""
    if not path.is_file():
        raise PairingError(f"{path}: not there; commit predictions with their lines, or run the study again")
    with np.load(path, allow_pickle=False) as held:
        order = np.argsort(held["files"], kind="stable")
        names = ("files", "patients", "labels", "probabilities")
        files, patients, labels, scores = (held[name][order] for name in names)
    return files, patients, labels, scores.astype(np.float64)
