"""What held-out judges say of images: agreement with the grade that they should have, AUROC, and both against real knees.

Judges are not calibrated: one that calls most knees KL-0 "flips" few knees to KL-2 whatever they show. Beside the
agreement at its own argmax stands the agreement at the threshold where it is equally right on both grades of the
real knees, which is what the bars are about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_auc_score
from torch import Tensor

from kecae_training.guide import Guide, predict
from kecae_training.measures import mean_of_rows, with_interval

Probabilities = NDArray[np.float32]
Seen = dict[str, Probabilities]  # by judge, (N, K)


def balanced_threshold(positive: Probabilities, labels: NDArray[np.int64]) -> float:
    """The threshold on P(second grade) at which sensitivity and specificity differ least.

    Args:
        positive: (N,) probabilities of the second of two grades, on real knees.
        labels: (N,) 0 or 1.
    """
    cuts = np.unique(positive)
    sensitivity = np.array([(positive[labels == 1] >= cut).mean() for cut in cuts])
    specificity = np.array([(positive[labels == 0] < cut).mean() for cut in cuts])
    return float(cuts[np.abs(sensitivity - specificity).argmin()])


def auroc(positive: Probabilities, labels: NDArray[np.int64]) -> float:
    """Area under the ROC curve; NaN where one grade is missing."""
    return float(roc_auc_score(labels, positive)) if len(set(labels)) == 2 else float("nan")


class Bench:
    """Judges and the real knees they are measured against.

    Args:
        judges: name -> held-out judge of the same classes.
        images: (N, 1, S, S) real knees in [-1, 1].
        labels: (N,) their class indices.
        patients: (N,) ids; figures of other images refer to the same hosts, row by row.
        seed: of the intervals.
    """

    def __init__(
        self,
        judges: Mapping[str, Guide],
        images: Tensor,
        labels: Tensor,
        patients: Sequence[str],
        seed: int = 0,
    ) -> None:
        self.judges, self.patients, self.seed = dict(judges), list(patients), seed
        self.labels = labels.numpy()
        self.classes = next(iter(self.judges.values())).classes
        self.real = self.see(images)
        self.binary = len(self.classes) == 2
        self.cuts = (
            {name: balanced_threshold(p[:, 1], self.labels) for name, p in self.real.items()}
            if self.binary
            else {}
        )

    def see(self, images: Tensor) -> Seen:
        """Class probabilities (N, K) of images (N, 1, S, S) by every judge."""
        return {name: predict(judge, images).numpy() for name, judge in self.judges.items()}

    def judged(self, seen: Seen, wanted: Tensor) -> dict[str, dict[str, Any]]:
        """What every judge says of images that should be of the grades ``wanted`` (N,).

        Returns:
            By judge: ``says_<grade>`` (share given the wanted grade, for each wanted grade); for two grades also
            ``balanced_<grade>`` (the same at the balanced threshold), ``auroc`` and ``auroc_over_real``; for more
            of them ``confusion``, rows the wanted grade, columns the judged one, shares of a row.
        """
        return {name: self._judged(probability, wanted.numpy(), name) for name, probability in seen.items()}

    def _judged(self, probability: Probabilities, wanted: NDArray[np.int64], name: str) -> dict[str, Any]:
        says = probability.argmax(1)
        result = {f"says_{g}": self._share(says == wanted, wanted == i) for i, g in enumerate(self.classes)}
        if not self.binary:
            matrix = confusion_matrix(wanted, says, labels=range(len(self.classes)), normalize="true")
            return {**result, "confusion": matrix.round(4).tolist()}
        positive, real = probability[:, 1], self.real[name][:, 1]
        at_cut = (positive >= self.cuts[name]).astype(int)
        result |= {
            f"balanced_{g}": self._share(at_cut == wanted, wanted == i) for i, g in enumerate(self.classes)
        }

        def over_real(rows: NDArray[np.intp]) -> float:
            return auroc(positive[rows], wanted[rows]) / auroc(real[rows], self.labels[rows])

        result["auroc"] = self._interval(lambda rows: auroc(positive[rows], wanted[rows]))
        result["auroc_over_real"] = self._interval(over_real)
        return result

    def _share(self, right: NDArray[np.bool_], of: NDArray[np.bool_]) -> dict[str, Any]:
        rows = np.flatnonzero(of)
        return with_interval(partial(mean_of_rows, right[rows]), [self.patients[i] for i in rows], self.seed)

    def _interval(self, statistic: Callable[[NDArray[np.intp]], float]) -> dict[str, Any]:
        return with_interval(statistic, self.patients, self.seed)

    def headline(self, seen: Seen, wanted: Tensor) -> dict[str, Any]:
        """Means over the judges, of two grades: AUROC over that on real knees, each direction's flip over real accuracy.

        Args:
            seen: what the judges said of X'.
            wanted: (N,) the donors' class indices.
        """
        target = wanted.numpy()
        positive = {name: probability[:, 1] for name, probability in seen.items()}

        def ratio(rows: NDArray[np.intp]) -> float:
            return float(
                np.mean(
                    [
                        auroc(p[rows], target[rows]) / auroc(self.real[name][rows, 1], self.labels[rows])
                        for name, p in positive.items()
                    ]
                )
            )

        def flip(grade: int, rows: NDArray[np.intp]) -> float:
            rows_of = rows[target[rows] == grade]
            shares = []
            for name, p in positive.items():
                cut, real = self.cuts[name], self.real[name][rows, 1]
                accuracy = np.mean(
                    [((real >= cut) == bool(g))[self.labels[rows] == g].mean() for g in (0, 1)]
                )
                shares.append(((p[rows_of] >= cut) == bool(grade)).mean() / accuracy)
            return float(np.mean(shares))

        low, high = self.classes
        return {
            "auroc_over_real": self._interval(ratio),
            f"flip_{low}->{high}_over_real": self._interval(partial(flip, 1)),
            f"flip_{high}->{low}_over_real": self._interval(partial(flip, 0)),
        }
