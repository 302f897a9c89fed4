"""What every measurement of an evaluation uses: the knees, PSNR and SSIM, intervals over patients.

A measurement returns a tree: a dict of dicts whose leaves are draws of the bootstrap (:data:`Draws`) or plain facts.
:func:`pool` averages trees of several weights draw by draw, :func:`summarise` turns draws into mean, low and high.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from kecae_aug.engine.model import KECAE
from kecae_aug.phantom.truth import Side
from kecae_training.images import to_float, to_uint8

DRAWS = 500  # of the bootstrap
Draws = NDArray[np.float64]  # (1 + DRAWS,): the figure itself, then the figure of every draw
Bools = NDArray[np.bool_]


@dataclass
class Knees:
    """What an evaluation works on.

    Fields:
        images: (N, 1, S, S) in [-1, 1]. labels: (N,) class indices. patients: N ids.
        files: name of every image, to list it by. sides: "L", "R" or None as in the file.
        medial: where the medial side of the *preprocessed* image is, as the JSW measurement wants it; None where not known.
    """

    images: Tensor
    labels: Tensor
    patients: list[str]
    files: list[str] = field(default_factory=list)
    sides: list[str | None] = field(default_factory=list)
    medial: list[Side | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = len(self.patients)
        self.files = self.files or [str(i) for i in range(n)]
        self.sides = self.sides or [None] * n
        self.medial = self.medial or [None] * n


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """(N,) peak signal-to-noise ratio in dB for images in [-1, 1], whose peak is 2."""
    return 10 * torch.log10(4 / (images - reference).square().flatten(1).mean(1).clamp_min(1e-12))


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """(N,) structural similarity (torchmetrics: Gaussian window, sigma 1.5)."""
    value = structural_similarity_index_measure(images, reference, data_range=2.0, reduction="none")
    assert isinstance(value, Tensor)
    return value


def ssim_map(images: Tensor, reference: Tensor) -> Tensor:
    """(N, S, S) structural similarity of every pixel's surroundings."""
    _, full = structural_similarity_index_measure(
        images, reference, data_range=2.0, reduction="none", return_full_image=True
    )
    assert isinstance(full, Tensor)
    return full[:, 0]


class Bootstrap:
    """Patients drawn with replacement, as weights of rows; all rows of a patient are drawn together.

    Every figure of an evaluation comes from the same draws, so differences, ratios and means over oracles or weights
    are paired.

    Args:
        patients: id of every row.
        seed: of the draws.
    """

    def __init__(self, patients: Sequence[str], seed: int = 0) -> None:
        ids = np.unique(list(patients), return_inverse=True)[1].reshape(-1)
        n = int(ids.max()) + 1
        rng = np.random.default_rng(seed)
        counts = [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(DRAWS)]
        self.weights = np.stack([np.ones(n), *counts]).astype(np.float64)[:, ids]  # (1 + DRAWS, N)

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


def directions(labels: Tensor, wanted: Tensor, classes: Sequence[str]) -> dict[str, Bools]:
    """Rows of each direction of the exchange: ``0->2`` and ``2->0``, or to higher and lower grades where there are more.

    Args:
        labels: (N,) of the hosts.
        wanted: (N,) of the donors.
        classes: names, in the order of the grades.
    """
    up, down = (wanted > labels).numpy(), (wanted < labels).numpy()
    if len(classes) == 2:
        return {f"{classes[0]}->{classes[1]}": up, f"{classes[1]}->{classes[0]}": down}
    return {"to a higher grade": up, "to a lower grade": down}


def with_interval(
    statistic: Callable[[NDArray[np.intp]], float], patients: Sequence[str], seed: int = 0, digits: int = 4
) -> dict[str, Any]:
    """Any statistic of rows, with its 95 % percentile interval over patients drawn with replacement.

    Slower than :class:`Bootstrap`, for statistics that do not take weights.

    Args:
        statistic: of an array of row numbers, which may repeat.
        patients: id of every row; all rows of a patient are drawn together.
        seed: of the draws.
        digits: of the figures returned.
    """
    rows_of: dict[str, list[int]] = {}
    for row, patient in enumerate(patients):
        rows_of.setdefault(patient, []).append(row)
    groups = [np.array(rows) for rows in rows_of.values()]
    rng = np.random.default_rng(seed)
    draws = [statistic(np.arange(len(patients)))]
    for _ in range(DRAWS):
        draws.append(
            statistic(np.concatenate([groups[g] for g in rng.integers(len(groups), size=len(groups))]))
        )
    return summary(np.array(draws), digits)


def stratified(labels: Sequence[int], n: int, seed: int) -> list[int]:
    """At most ``n`` rows, each grade by its share (at least one), drawn by ``seed``; in their order."""
    if n >= len(labels):
        return list(range(len(labels)))
    rng, targets = np.random.default_rng(seed), np.asarray(labels)
    picked: list[int] = []
    for grade in np.unique(targets):
        rows = np.flatnonzero(targets == grade)
        picked += rng.permutation(rows)[: max(1, round(n * len(rows) / len(targets)))].tolist()
    return sorted(picked)


def open_knees(
    model: KECAE, data: Path, split: str | None, max_images: int | None = None, seed: int = 0
) -> Knees:
    """The knees of a split, preprocessed as the weights ask for it.

    Args:
        model: the weights.
        data: folder of split/grade/name, or a table.
        split: subfolder.
        max_images: at most so many, stratified by grade; None takes all.
        seed: of that choice.
    """
    from kecae_aug.data import Preprocessing, open_radiographs

    preprocessing = Preprocessing.of(model)
    folder = open_radiographs(data, split, grades=list(model.config.classes), preprocessing=preprocessing)
    if max_images is not None:
        if max_images < 2 * len(model.config.classes):
            raise ValueError(
                f"max_images={max_images}: at least {2 * len(model.config.classes)}, two of each grade, or none for all"
            )
        folder = folder.subset(stratified(folder.targets, max_images, seed))
    medial: list[Side | None] = [
        "L" if preprocessing.mirror_right or side == "L" else "R" if side == "R" else None
        for side in folder.sides
    ]
    return Knees(
        to_float(to_uint8(folder)),
        torch.tensor(folder.targets),
        list(folder.patients),
        folder.files,
        list(folder.sides),
        medial,
    )
