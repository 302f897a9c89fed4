"""What is said of a classifier's probabilities: the metrics of benchmarks/paired.py, of one run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kecae_bench.paired import ALL_METRICS, Scores


def measured(scores: Scores, labels: NDArray[np.int64]) -> dict[str, float]:
    """Every metric of :data:`paired.ALL_METRICS`, to six digits.

    Args:
        scores: (N, K) probabilities.
        labels: (N,) class indices, all classes among them.

    Raises:
        ValueError: scores that are not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError(
            "scores: not finite, the classifier has diverged; a smaller learning rate (--lr) may help"
        )
    return {name: round(float(metric(scores, labels)), 6) for name, metric in ALL_METRICS.items()}
