"""Classifiers compared in pairs: the file their runs are kept in, and differences with intervals over seeds and patients."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

DRAWS = 500  # of the bootstrap
Scores = NDArray[np.float64]  # (N, K) probabilities
Metric = Callable[[Scores, NDArray[np.int64]], float]


def accuracy(scores: Scores, labels: NDArray[np.int64]) -> float:
    """Share of right answers."""
    return float((scores.argmax(1) == labels).mean())


def balanced_accuracy(scores: Scores, labels: NDArray[np.int64]) -> float:
    """Mean recall of the grades that are there."""
    right = scores.argmax(1) == labels
    return float(np.mean([right[labels == c].mean() for c in np.unique(labels)]))


def auroc(scores: Scores, labels: NDArray[np.int64]) -> float:
    """Of two grades; of more, the mean of each against the rest. NaN where a draw misses a grade."""
    n = scores.shape[1]
    if len(np.unique(labels)) < n:
        return float("nan")
    return float(np.mean([roc_auc_score(labels == c, scores[:, c]) for c in (range(n) if n > 2 else (1,))]))


METRICS: dict[str, Metric] = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy, "auroc": auroc}


def difference(
    arm: Sequence[Scores],
    base: Sequence[Scores],
    labels: NDArray[np.int64],
    patients: Sequence[str],
    metric: Metric,
) -> dict[str, float]:
    """Mean over seeds of metric(arm) - metric(T), paired by seed; 95 % interval over seeds and patients drawn together.

    Args:
        arm: scores (N, K) of each seed.
        base: those of T, of the same seeds.
        labels: (N,).
        patients: (N,); all knees of a patient are drawn together.
        metric: one of :data:`METRICS`.
    """

    def mean(seeds: Sequence[int], rows: NDArray[np.intp]) -> float:
        return float(
            np.mean([metric(arm[s][rows], labels[rows]) - metric(base[s][rows], labels[rows]) for s in seeds])
        )

    ids = np.unique(np.asarray(patients), return_inverse=True)[1]
    groups = [np.flatnonzero(ids == i) for i in range(int(ids.max()) + 1)]
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(DRAWS):
        seeds = rng.integers(len(arm), size=len(arm)).tolist()
        draws.append(
            mean(seeds, np.concatenate([groups[g] for g in rng.integers(len(groups), size=len(groups))]))
        )
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    found = {"mean": mean(range(len(arm)), np.arange(len(labels))), "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in found.items()}


def compared(
    scores: dict[str, list[Scores]], labels: NDArray[np.int64], patients: Sequence[str]
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


@dataclass
class Log:
    """The file of runs: read at the start, one line more after each run."""

    path: Path
    lines: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for text in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                self.lines.append(json.loads(text))
            except json.JSONDecodeError:
                print(f"{self.path}: a broken line (of an interrupted write?) is passed over: {text[:60]}...")

    def run(self, arm: str, seed: int, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The line of this run, if it has been made."""
        wanted = {"kind": "run", "arm": arm, "seed": seed, "settings": settings}
        found = (line for line in self.lines if {name: line.get(name) for name in wanted} == wanted)
        return next(found, None)

    def append(self, line: dict[str, Any]) -> None:
        """Add a line; a broken last one is ended first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write((json.dumps(line) + "\n").encode())
        self.lines.append(json.loads(json.dumps(line)))
