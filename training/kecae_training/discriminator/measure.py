"""How well grades are read: AUROC of each pair of grades, accuracy, quadratic kappa."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from torch import Tensor


def pair_scores(posterior: Tensor, first: int, second: int) -> Any:
    """(N,) probability of class ``second`` among the two, from (N, K) probabilities."""
    two = posterior[:, [first, second]].double().clamp_min(1e-12)
    return (two[:, 1] / two.sum(1)).numpy()


def validation_figures(posterior: Tensor, targets: Sequence[int], grades: Sequence[str]) -> dict[str, Any]:
    """Figures of (N, K) probabilities.

    Returns:
        ``auroc``, the mean over the pairs of grades; ``auroc_<a>_<b>`` of each; ``accuracy`` over all grades and, of
        more than two, ``kappa`` (quadratic weights). A pair without images of both is left out.
    """
    labels = np.asarray(targets)
    found = {}
    for a, b in combinations(range(len(grades)), 2):
        rows = (labels == a) | (labels == b)
        if len(set(labels[rows])) == 2:
            found[f"auroc_{grades[a]}_{grades[b]}"] = float(
                roc_auc_score(labels[rows] == b, pair_scores(posterior, a, b)[rows])
            )
    predicted = posterior.argmax(1).numpy()
    figures = {"auroc": float(np.mean(list(found.values()))) if found else 0.0, **found}
    figures["accuracy"] = float((predicted == labels).mean())
    if len(grades) > 2:
        figures["kappa"] = float(cohen_kappa_score(labels, predicted, weights="quadratic"))
    return figures
