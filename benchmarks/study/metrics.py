"""What is said of a classifier's probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_score, recall_score

from paired import METRICS, Scores

BINS = 10  # of the calibration error, with equally many images in each


def measured(scores: Scores, labels: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy, balanced accuracy, precision, recall, AUROC and calibration error.

    Precision and recall are of the second grade where there are two (the paper's Table II does not say; "diseased" is
    the usual reading), and the mean over the grades where there are more.

    Args:
        scores: (N, K) probabilities.
        labels: (N,) class indices.

    Raises:
        ValueError: scores that are not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError(
            "scores: not finite; the classifier has diverged: a smaller learning rate (--lr) may help"
        )
    said = scores.argmax(1)
    how = {"average": "binary", "pos_label": 1} if scores.shape[1] == 2 else {"average": "macro"}
    found = {name: metric(scores, labels) for name, metric in METRICS.items() if name != "ece"}
    found["precision"] = float(precision_score(labels, said, zero_division=0, **how))
    found["recall"] = float(recall_score(labels, said, zero_division=0, **how))
    found["ece"] = calibration_error(scores, labels)
    return {name: round(float(value), 6) for name, value in found.items()}


def calibration_error(scores: Scores, labels: NDArray[np.int64], bins: int = BINS) -> float:
    """Expected calibration error of the largest probability, in ``bins`` with equally many images each."""
    sure = scores.max(1)
    right = scores.argmax(1) == labels
    parts = np.array_split(np.argsort(sure, kind="stable"), min(bins, len(sure)))
    return float(sum(len(p) / len(sure) * abs(sure[p].mean() - right[p].mean()) for p in parts))
