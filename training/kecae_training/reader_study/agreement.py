"""Do readers agree with each other and with themselves? Cohen's and Fleiss' kappa, with intervals over patients.

The figures are scikit-learn's and statsmodels'. Their intervals come from patients drawn with replacement
(:class:`kecae_training.validity.measures.Bootstrap`), and neither library takes a matrix of weights, so the draws use the
same formulas on weighted counts; tests hold both to each other. The readers are taken as they are: a kappa of
three readers has no interval for "any readers".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from kecae_training.validity.measures import Bootstrap, Draws, ratio, summary

Grades = NDArray[np.int64]  # (N,) or (R, N) indices of grades


def agreement(said: Grades, readers: Sequence[str], patients: Sequence[str], grades: int) -> dict[str, Any]:
    """Kappas of all readers on the same images.

    Args:
        said: (R, N) what every reader says of every image.
        readers: R names.
        patients: N ids; all images of a patient are drawn together.
        grades: how many there are.

    Returns:
        ``cohen`` by pair ("A, B"), ``cohen_mean``, ``fleiss``, and with more than two grades
        ``cohen_quadratic_mean``: each ``{"mean", "low", "high"}``, None where it is not defined (all said the same grade).
        ``same``: share of images of which all say the same. Empty of one reader or no image.
    """
    if len(said) < 2 or said.shape[1] == 0:
        return {}
    drawn = Bootstrap(patients)
    kinds: tuple[str | None, ...] = (None,) if grades == 2 else (None, "quadratic")
    by_pair: dict[str | None, dict[str, Draws]] = {
        kind: {
            f"{readers[i]}, {readers[j]}": cohen(said[i], said[j], drawn, grades, kind)
            for i, j in combinations(range(len(said)), 2)
        }
        for kind in kinds
    }
    found: dict[str, Any] = {
        "cohen": {pair: summary(draws) for pair, draws in by_pair[None].items()},
        "cohen_mean": summary(np.mean(list(by_pair[None].values()), axis=0)),
        "fleiss": summary(fleiss(said, drawn, grades)),
        "same": summary(drawn.mean((said == said[0]).all(0))),
    }
    if "quadratic" in by_pair:
        found["cohen_quadratic_mean"] = summary(np.mean(list(by_pair["quadratic"].values()), axis=0))
    return found


def cohen(first: Grades, second: Grades, drawn: Bootstrap, grades: int, kind: str | None = None) -> Draws:
    """Cohen's kappa of two readers (or of a reader's two looks): the figure, then that of every draw.

    Args:
        first: (N,) grades of one.
        second: (N,) of the other.
        drawn: the draws of their N images.
        grades: how many there are.
        kind: None counts every disagreement alike, "quadratic" by the square of its distance.
    """
    counts = np.eye(grades * grades)[first * grades + second]  # (N, K * K)
    both = (drawn.weights @ counts).reshape(-1, grades, grades)
    both /= both.sum((1, 2), keepdims=True)
    expected = both.sum(2)[:, :, None] * both.sum(1)[:, None, :]
    index = np.arange(grades, dtype=np.float64)
    apart = np.subtract.outer(index, index) ** 2
    cost = apart if kind == "quadratic" else (apart > 0).astype(np.float64)
    draws = 1 - ratio((cost * both).sum((1, 2)), (cost * expected).sum((1, 2)))
    if np.isfinite(draws[0]):
        draws[0] = cohen_kappa_score(first, second, labels=range(grades), weights=kind)
    return draws


def fleiss(said: Grades, drawn: Bootstrap, grades: int) -> Draws:
    """Fleiss' kappa of (R, N) grades: the figure, then that of every draw."""
    from statsmodels.stats.inter_rater import fleiss_kappa

    readers = len(said)
    counts = np.stack([(said == k).sum(0) for k in range(grades)], 1).astype(np.float64)  # (N, K)
    same = ((counts**2).sum(1) - readers) / (readers * (readers - 1))
    shares = ratio(drawn.weights @ counts, drawn.weights.sum(1, keepdims=True) * readers)
    chance = (shares**2).sum(1)
    draws = ratio(drawn.mean(same) - chance, np.where(np.isclose(chance, 1), 0, 1 - chance))
    if np.isfinite(draws[0]):
        draws[0] = fleiss_kappa(counts)
    return draws


def with_oneself(
    first: Grades, second: Grades, patients: Sequence[str], grades: int, apart: Sequence[int]
) -> dict[str, Any]:
    """A reader's agreement with what the same reader said of the same images before.

    Args:
        first: (K,) of the first look.
        second: (K,) of the other.
        patients: K ids.
        grades: how many there are.
        apart: (K,) how many images lay between the two looks and the one after it: 1 is the next image.

    Returns:
        ``kappa`` and ``same`` with intervals, ``images``, ``apart`` (``least`` and ``median``); empty without repeats.
    """
    if not len(first):
        return {}
    drawn = Bootstrap(patients)
    return {
        "kappa": summary(cohen(first, second, drawn, grades)),
        "same": summary(drawn.mean(first == second)),
        "images": len(first),
        "apart": {"least": int(min(apart)), "median": float(np.median(apart))},
    }


def kappas(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The kappas of :func:`agreement` as (name, figure), for tables."""
    names = {
        "cohen_mean": "Cohen's kappa, mean",
        "cohen_quadratic_mean": "Cohen's, quadratic, mean",
        "fleiss": "Fleiss' kappa",
    }
    rows = [(f"Cohen's kappa, {pair}", figure) for pair, figure in found.get("cohen", {}).items()]
    return rows + [(text, found[name]) for name, text in names.items() if name in found]
