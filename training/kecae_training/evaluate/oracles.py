"""What held-out oracles say of images: agreement with the grade that they should have, AUROC, and both against real knees.

Oracles are not calibrated: one that calls most knees KL-0 "flips" few knees to KL-2 whatever they show. Beside the
agreement at its own argmax stands the agreement at the threshold where it is equally right on both grades of the
real knees, which is what the bars are about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kecae_aug.device import Precision
from kecae_training.discriminator import Discriminator, predict
from kecae_training.evaluate.grades import confusions, kappa, shares
from kecae_training.evaluate.measures import Bootstrap, Draws, ratio, summarise, summary

Probabilities = NDArray[np.float32]
Seen = dict[str, Probabilities]  # by oracle, (N, K)
Tree = dict[str, Any]


def balanced_threshold(positive: Probabilities, labels: NDArray[np.int64]) -> float:
    """The threshold on P(second grade) at which sensitivity and specificity differ least.

    Args:
        positive: (N,) probabilities of the second of two grades, on real knees.
        labels: (N,) 0 or 1.
    """
    scores = np.unique(positive)
    cuts = (
        (scores[1:] + scores[:-1]) / 2 if len(scores) > 1 else scores
    )  # between scores, so that none hangs on rounding
    sensitivity = np.array([(positive[labels == 1] >= cut).mean() for cut in cuts])
    specificity = np.array([(positive[labels == 0] < cut).mean() for cut in cuts])
    return float(cuts[np.abs(sensitivity - specificity).argmin()])


def auroc(positive: Probabilities, labels: NDArray[np.int64]) -> float:
    """Area under the ROC curve; NaN where one grade is missing."""
    return float(aurocs(positive, labels, np.ones((1, len(labels))))[0])


def aurocs(positive: NDArray[Any], labels: NDArray[np.int64], weights: NDArray[np.float64]) -> Draws:
    """Area under the ROC curve under each of D weightings of the rows; NaN where one grade has no weight.

    Args:
        positive: (N,) scores of the second grade.
        labels: (N,) 0 or 1.
        weights: (D, N).
    """
    order = np.argsort(positive, kind="stable")
    score, second, w = positive[order], labels[order] == 1, weights[:, order]
    starts = np.flatnonzero(
        np.r_[True, score[1:] != score[:-1]]
    )  # of groups of equal scores, which count half
    ones = np.add.reduceat(w * second, starts, axis=1)
    zeros = np.add.reduceat(w * ~second, starts, axis=1)
    below = zeros.cumsum(1) - zeros / 2
    return ratio((ones * below).sum(1), ones.sum(1) * zeros.sum(1))


class Bench:
    """Oracles and the real knees they are measured against.

    Args:
        oracles: name -> held-out oracle of the same classes.
        images: (N, 1, S, S) real knees in [-1, 1].
        labels: (N,) their class indices.
        patients: (N,) ids; figures of other images refer to the same hosts, row by row.
        seed: of the intervals.
        precision: of the oracles, which run where their parameters are.
    """

    def __init__(
        self,
        oracles: Mapping[str, Discriminator],
        images: Tensor,
        labels: Tensor,
        patients: Sequence[str],
        seed: int = 0,
        precision: Precision = "32-true",
    ) -> None:
        self.precision = precision
        self.oracles, self.bootstrap = dict(oracles), Bootstrap(patients, seed)
        self.labels = labels.numpy()
        self.classes = next(iter(self.oracles.values())).classes
        self.binary = len(self.classes) == 2
        self.real = self.see(images)
        self.cuts = (
            {name: balanced_threshold(p[:, 1], self.labels) for name, p in self.real.items()}
            if self.binary
            else {}
        )
        self._on_real = {name: self._absolute(p, self.labels, name) for name, p in self.real.items()}

    def at_chance(self) -> list[str]:
        """Oracles that do not tell the real knees apart: the interval of their AUROC (kappa) on them holds chance, or less.

        Ratios to such an oracle's figures mean nothing.
        """
        chance, figure = (0.5, "auroc") if self.binary else (0.0, "kappa")
        low = {name: summary(own[figure])["low"] for name, own in self._on_real.items()}
        return [name for name, value in low.items() if value is None or value <= chance]

    def see(self, images: Tensor) -> Seen:
        """Class probabilities (N, K) of images (N, 1, S, S) by every oracle."""
        return {
            name: predict(oracle, images, precision=self.precision).numpy()
            for name, oracle in self.oracles.items()
        }

    def tree(self, seen: Seen, wanted: Tensor) -> Tree:
        """What every oracle says of images that should be of the grades ``wanted`` (N,), as draws.

        Returns:
            By oracle: ``says_<grade>`` (share given the wanted grade, for each wanted grade); for two grades also
            ``balanced_<grade>`` (the same at the balanced threshold) and ``auroc``; for more of them ``kappa`` and
            ``confusion`` (rows the wanted grade, columns the predicted one, fractions of a row). Each figure X also as
            ``X_over_real``: over the same figure of the same oracle on the real knees.
        """
        target, result = wanted.numpy(), {}
        for name, probability in seen.items():
            own = self._absolute(probability, target, name)
            real = self._on_real[name]
            over = {f"{k}_over_real": ratio(v, real[k]) for k, v in own.items() if isinstance(v, np.ndarray)}
            result[name] = {**own, **over}
        return result

    def judged(self, seen: Seen, wanted: Tensor) -> dict[str, dict[str, Any]]:
        """:meth:`tree` with its draws summarised to mean, low and high."""
        result: dict[str, dict[str, Any]] = summarise(self.tree(seen, wanted))
        return result

    def _absolute(self, probability: Probabilities, wanted: NDArray[np.int64], name: str) -> Tree:
        says, boot = probability.argmax(1), self.bootstrap
        result: Tree = {
            f"says_{g}": boot.mean(says == wanted, wanted == i) for i, g in enumerate(self.classes)
        }
        if not self.binary:
            counts = confusions(boot.weights, wanted, says, len(self.classes))
            return {**result, "kappa": kappa(counts), "confusion": shares(counts[0])}
        at_cut = (probability[:, 1] >= self.cuts[name]).astype(int)
        for i, g in enumerate(self.classes):
            result[f"balanced_{g}"] = boot.mean(at_cut == wanted, wanted == i)
        result["auroc"] = aurocs(probability[:, 1], wanted, boot.weights)
        return result

    def headline(self, seen: Seen, wanted: Tensor) -> Tree:
        """Means over the oracles of what :meth:`tree` says of X', as draws.

        For two grades: ``auroc_over_real``, and for each direction ``flip_0->2`` (at the balanced threshold) and
        ``flip_0->2_over_real`` (over the oracle's balanced accuracy on real knees). For more: ``kappa``,
        ``kappa_over_real`` and ``confusion``.

        Args:
            seen: what the oracles said of X'.
            wanted: (N,) the donors' class indices.
        """
        by = self.tree(seen, wanted)
        if not self.binary:
            matrix = np.mean([oracle["confusion"] for oracle in by.values()], axis=0).round(4).tolist()
            return {
                "kappa": mean_of(by, "kappa"),
                "kappa_over_real": mean_of(by, "kappa_over_real"),
                "confusion": matrix,
            }
        result = {"auroc": mean_of(by, "auroc"), "auroc_over_real": mean_of(by, "auroc_over_real")}
        low, high = self.classes
        for start, end in ((low, high), (high, low)):
            flips = [
                ratio(
                    oracle[f"balanced_{end}"],
                    (self._on_real[n][f"balanced_{low}"] + self._on_real[n][f"balanced_{high}"]) / 2,
                )
                for n, oracle in by.items()
            ]
            result[f"flip_{start}->{end}"] = mean_of(by, f"balanced_{end}")
            result[f"flip_{start}->{end}_over_real"] = np.mean(flips, axis=0)
        return result

    def kept(self, seen: Seen, wanted: Tensor) -> Tree:
        """Means over the oracles of what X^ keeps: accuracy over that on real knees for each grade, at the own argmax
        (``says_0_over_real``) and, for two grades, at the balanced threshold (``balanced_0_over_real``); and AUROC or kappa.
        """
        by = self.tree(seen, wanted)
        keys = [k for k in next(iter(by.values())) if k.endswith("_over_real")]
        return {key: mean_of(by, key) for key in keys}


def mean_of(by: Mapping[str, Tree], key: str) -> Draws:
    """Mean over the oracles of one figure, draw by draw."""
    return np.asarray(np.mean([oracle[key] for oracle in by.values()], axis=0))


def discriminator_gap(
    bench: Bench, discriminator: Bench, seen: Seen, seen_by_discriminator: Seen, wanted: Tensor
) -> Tree:
    """How far the discriminator certifies itself: for each wanted grade its agreement minus the oracles' mean, at
    the own argmax.
    """
    oracles, own = (
        bench.tree(seen, wanted),
        next(iter(discriminator.tree(seen_by_discriminator, wanted).values())),
    )
    return {f"says_{g}": own[f"says_{g}"] - mean_of(oracles, f"says_{g}") for g in bench.classes}
