"""What held-out oracles predict for images: agreement with the grade that these should have, AUROC or kappa, each also
over the same figure on real knees, and what small degradations take away.

Oracles are not calibrated: one that predicts KL-0 for most knees "flips" few knees to KL-2 whatever they show. Beside the
agreement at its own argmax stands the agreement at the threshold at which it is equally right on both grades of the
real knees; the acceptance criteria ask for the latter. Of more than two grades the single figure is Cohen's kappa with
quadratic weights.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from kecae_aug.device import Precision
from kecae_training.bootstrap import (
    Bootstrap,
    Draws,
    Ints,
    cohen_kappa,
    count_confusions,
    ratio,
    summary,
    weighted_auroc,
)
from kecae_training.discriminator import Discriminator, predict
from kecae_training.images import to_bytes, to_float

Probabilities = NDArray[np.float32]
Predictions = dict[str, Probabilities]  # by oracle, (N, K)
Tree = dict[str, Any]


def balanced_threshold(positive: Probabilities, labels: Ints) -> float:
    """The threshold on P(second grade) at which sensitivity and specificity differ least.

    Args:
        positive: (N,) probabilities of the second of two grades, on real knees.
        labels: (N,) 0 or 1.
    """
    scores = np.unique(positive)
    # between scores, so that none depends on rounding
    cuts = (scores[1:] + scores[:-1]) / 2 if len(scores) > 1 else scores
    sensitivity = np.array([(positive[labels == 1] >= cut).mean() for cut in cuts])
    specificity = np.array([(positive[labels == 0] < cut).mean() for cut in cuts])
    return float(cuts[np.abs(sensitivity - specificity).argmin()])


def auroc(positive: Probabilities, labels: Ints) -> float:
    """Area under the ROC curve of (N,) probabilities and labels 0 or 1; NaN where one grade is missing."""
    return float(weighted_auroc(positive, labels == 1, np.ones((1, len(labels))))[0])


class Bench:
    """Oracles, and the real knees on which their reference figures are measured.

    Args:
        oracles: name -> held-out oracle of the same classes.
        images: (N, 1, S, S) real knees in [-1, 1].
        labels: (N,) their class indices.
        patients: (N,) ids; figures of other images refer to the same hosts in the same order.
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
        self.real = self.predict(images)
        self.cuts = (
            {name: balanced_threshold(p[:, 1], self.labels) for name, p in self.real.items()}
            if self.binary
            else {}
        )
        self._on_real = {name: self._figures(p, self.labels, name) for name, p in self.real.items()}

    def at_chance(self) -> list[str]:
        """Oracles that are no better than chance: the interval of their AUROC (kappa) on real knees is not above it.

        Ratios to such an oracle's figures mean nothing.
        """
        chance, figure = (0.5, "auroc") if self.binary else (0.0, "kappa")
        low = {name: summary(own[figure])["low"] for name, own in self._on_real.items()}
        return [name for name, value in low.items() if value is None or value <= chance]

    def predict(self, images: Tensor) -> Predictions:
        """Class probabilities (N, K) of images (N, 1, S, S) by every oracle."""
        return {
            name: predict(oracle, images, precision=self.precision).numpy()
            for name, oracle in self.oracles.items()
        }

    def tree(self, predictions: Predictions, target: Tensor) -> Tree:
        """Figures of every oracle on images that should be of the grades ``target`` (N,), as draws.

        Returns:
            By oracle: ``predicted_<grade>`` (of the images that should be of this grade, the fraction for which the oracle
            predicts it: for two grades specificity and sensitivity); for two grades also ``balanced_<grade>`` (the same at
            the balanced threshold) and ``auroc``; for more of them ``kappa`` and ``confusion`` (rows the target grade,
            columns the predicted one, fractions of a row). Each figure X also as ``X_over_real``: over the same figure of
            the same oracle on the real knees.
        """
        result = {}
        for name, probability in predictions.items():
            own, real = self._figures(probability, target.numpy(), name), self._on_real[name]
            over = {f"{k}_over_real": ratio(v, real[k]) for k, v in own.items() if isinstance(v, np.ndarray)}
            result[name] = {**own, **over}
        return result

    def _figures(self, probability: Probabilities, target: Ints, name: str) -> Tree:
        predicted, boot = probability.argmax(1), self.bootstrap
        result: Tree = {
            f"predicted_{g}": boot.mean(predicted == target, target == i) for i, g in enumerate(self.classes)
        }
        if not self.binary:
            counts = count_confusions(boot.weights, target, predicted, len(self.classes))
            return {**result, "kappa": cohen_kappa(counts), "confusion": normalise_rows(counts[0])}
        at_cut = (probability[:, 1] >= self.cuts[name]).astype(int)
        for i, g in enumerate(self.classes):
            result[f"balanced_{g}"] = boot.mean(at_cut == target, target == i)
        result["auroc"] = weighted_auroc(probability[:, 1], target == 1, boot.weights)
        return result

    def headline(self, predictions: Predictions, target: Tensor) -> Tree:
        """Means over the oracles of the figures of X', as draws.

        For two grades: ``auroc``, ``auroc_over_real``, and for each direction ``flip_0->2`` (at the balanced threshold) and
        ``flip_0->2_over_real`` (over the oracle's balanced accuracy on real knees). For more: ``kappa``,
        ``kappa_over_real`` and ``confusion``.

        Args:
            predictions: of the oracles for X'.
            target: (N,) the donors' class indices.
        """
        by = self.tree(predictions, target)
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

    def kept(self, predictions: Predictions, target: Tensor) -> Tree:
        """Means over the oracles of what X^ keeps of the figures on real knees: every ``..._over_real`` of :meth:`tree`."""
        by = self.tree(predictions, target)
        keys = [k for k in next(iter(by.values())) if k.endswith("_over_real")]
        return {key: mean_of(by, key) for key in keys}


def mean_of(by: Mapping[str, Tree], key: str) -> Draws:
    """Mean over the oracles of one figure, draw by draw."""
    return np.asarray(np.mean([oracle[key] for oracle in by.values()], axis=0))


def normalise_rows(counts: NDArray[np.float64]) -> list[list[float]]:
    """One matrix (n, n) of counts as fractions of its rows; a row without images is all 0."""
    total = counts.sum(1, keepdims=True)
    rows: list[list[float]] = (
        np.divide(counts, total, out=np.zeros_like(counts), where=total > 0).round(4).tolist()
    )
    return rows


def discriminator_gap(by: Mapping[str, Tree], by_discriminator: Mapping[str, Tree]) -> Tree:
    """How far the discriminator certifies itself: of each grade its agreement minus the oracles' mean, at the own argmax.

    Args:
        by: :meth:`Bench.tree` of the oracles.
        by_discriminator: the same of the discriminator alone.
    """
    own = next(iter(by_discriminator.values()))
    keys = [k for k in own if k.startswith("predicted_") and not k.endswith("_over_real")]
    return {key: own[key] - mean_of(by, key) for key in keys}


# Small changes that a true change of anatomy survives: a flip of the oracles that is lost under them was noise. Each takes
# and gives (N, 1, S, S) in [-1, 1].


def eight_bits(images: Tensor) -> Tensor:
    """Rounded to 256 greys, as in a PNG."""
    return to_float(to_bytes(images))


def jpeg(images: Tensor, quality: int = 75) -> Tensor:
    """Through a JPEG file of this quality."""
    out = []
    for image in to_bytes(images)[:, 0].numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(buffer)))
    return to_float(torch.from_numpy(np.stack(out))[:, None]) if out else images


def blur(images: Tensor, sigma: float = 1.0) -> Tensor:
    """Gaussian blur, sigma in pixels."""
    size = 2 * int(3 * sigma + 0.5) + 1
    blurred: Tensor = F.gaussian_blur(images, [size, size], [sigma, sigma])
    return blurred


def shift(images: Tensor, pixels: int = 2) -> Tensor:
    """Right and down by this many pixels; the edges are repeated."""
    padded = torch.nn.functional.pad(images, (pixels, 0, pixels, 0), mode="replicate")
    return padded[..., : images.shape[-2], : images.shape[-1]]


DEGRADATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "8 bits": eight_bits,
    "JPEG 75": jpeg,
    "blur 1 px": blur,
    "shift 2 px": shift,
}


def measure_robustness(bench: Bench, images: Tensor, target: Tensor) -> dict[str, Any]:
    """What is left of the oracles' figure after each of :data:`DEGRADATIONS`, as draws.

    Args:
        bench: the oracles. The figure is their AUROC for two grades, their kappa for more.
        images: (N, 1, S, S) in [-1, 1], before any degradation.
        target: (N,) the grades that the images should be of.

    Returns:
        ``undegraded`` and each kind, means over the oracles; ``lost``: by kind, undegraded minus degraded; ``oracles``: by
        kind and oracle. For two grades also ``balanced_lost``: the same of the accuracy at the threshold that is balanced
        on undegraded real knees, since a change that only fades keeps its AUROC; compare it with that of the real
        knees, whose threshold moves too. A loss below 0 is a gain.
    """
    figure = "auroc" if bench.binary else "kappa"
    kinds = {"undegraded": images} | {kind: degrade(images) for kind, degrade in DEGRADATIONS.items()}
    by = {kind: bench.tree(bench.predict(x), target) for kind, x in kinds.items()}
    means = {kind: mean_of(oracles, figure) for kind, oracles in by.items()}
    result: dict[str, Any] = {
        **means,
        "lost": {kind: means["undegraded"] - means[kind] for kind in DEGRADATIONS},
        "oracles": {
            kind: {name: oracle[figure] for name, oracle in oracles.items()} for kind, oracles in by.items()
        },
    }
    if bench.binary:
        low, high = bench.classes
        both = {
            kind: (mean_of(oracles, f"balanced_{low}") + mean_of(oracles, f"balanced_{high}")) / 2
            for kind, oracles in by.items()
        }
        result["balanced_lost"] = {kind: both["undegraded"] - both[kind] for kind in DEGRADATIONS}
    return result
