"""Simulate studies to see how many pairs and readers give which interval; scored as `score` does.

    kecae-aug reader-study plan -n 50 100 200 --readers 1 3 5 --accuracy .86 --kappa .78

Each image is hard or easy for all readers, and each reader reads it with an error of their own: a reader is right where
``skill + difficulty of the image + own error > 0``, all normal. The kappa that two readers' grades shall reach sets how
much is the image's: at the paper's 86 % right, readers with independent errors would reach .52, so its .78 means that
they err on the same images (images that do not look like their label), and another reader of the same image then adds
less. Skill differs between readers by ``reader_sd``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import multivariate_normal, norm
from tqdm import tqdm

from kecae_training.bootstrap import Bootstrap, summary
from kecae_training.evaluate.tables import markdown
from kecae_training.reader_study.intervals import Estimate, cohen, difference, mean_over_readers

Right = NDArray[np.bool_]  # (R, N): who graded what as its label says


@dataclass(frozen=True)
class Readers:
    """What is assumed of readers and images.

    Attributes:
        accuracy: fraction of exchanged knees that a reader drawn at random grades as their label says; 0.5 to 1.
        kappa: Cohen's, between the grades of two readers as skilled as that, of two grades equally often.
        reader_sd: standard deviation of accuracy between readers, as a fraction.
        real_accuracy: the same of real knees.
    """

    accuracy: float
    kappa: float
    reader_sd: float
    real_accuracy: float

    def __post_init__(self) -> None:
        for name in ("accuracy", "real_accuracy"):
            if not 0.5 < getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: accepted is 0.5 to 1, exclusive"
                )
        least = (2 * self.accuracy - 1) ** 2
        if not least <= self.kappa < 1:
            raise ValueError(
                f"--kappa {self.kappa}: readers who are right in {self.accuracy:.0%} reach {least:.2f} where their "
                f"errors are independent; accepted is {least:.2f} to 1, exclusive"
            )
        if not 0 <= self.reader_sd <= 0.2:
            raise ValueError(
                f"--reader-sd {self.reader_sd}: accepted is 0 to 0.2 (0.03 are 3 points of accuracy)"
            )

    def correlation(self) -> float:
        """Correlation of two readers' scores of one image that gives the kappa."""
        wrong = 1 - self.accuracy
        both = wrong - (1 - self.kappa) / 4  # both wrong: kappa = 1 - 2 P(one of them is wrong)
        if both - wrong**2 < 1e-9:
            return 0.0
        z = [norm.ppf(wrong)] * 2

        def excess(rho: float) -> float:
            return float(multivariate_normal.cdf(z, cov=[[1, rho], [rho, 1]])) - both

        return float(brentq(excess, 0, 1 - 1e-9, xtol=1e-6))


def draw_right(
    rng: np.random.Generator,
    readers: int,
    images: int,
    accuracy: float,
    spread: NDArray[np.float64],
    rho: float,
) -> Right:
    """(R, N) right answers.

    Args:
        rng: of the draw.
        readers: R.
        images: N.
        accuracy: of readers on average.
        spread: (R,) how much each reader's skill is above the mean, on the scale of the scores.
        rho: fraction of a score's variance that belongs to the image.
    """
    hard = rng.normal(0, rho**0.5, images)
    own = rng.normal(0, (1 - rho) ** 0.5, (readers, images))
    right: Right = norm.ppf(accuracy) + spread[:, None] + hard + own > 0
    return right


def simulate(
    assumed: Readers, images: int, readers: int, real: int, studies: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Interval half-widths, and whether each interval held the truth, of simulated studies.

    Args:
        assumed: of readers and images.
        images: exchanged knees, half of each direction, half of each of two arms.
        readers: R.
        real: real knees.
        studies: how many.
        seed: of all draws.

    Returns:
        By figure of :data:`FIGURES`: (mean half-width, fraction of studies whose interval holds the truth); the second is
        NaN for kappa, whose truth differs with the readers drawn.
    """
    rng, rho = np.random.default_rng([seed, images, readers]), assumed.correlation()
    skill = assumed.reader_sd / float(norm.pdf(norm.ppf(assumed.accuracy)))
    # accuracy is the mean over readers, who are drawn around a middle that is a little better than it
    middle, real_middle = (
        float(norm.cdf(norm.ppf(a) * (1 + skill**2) ** 0.5))
        for a in (assumed.accuracy, assumed.real_accuracy)
    )
    drawn = Bootstrap([str(i) for i in range(images)]) if readers > 1 else None
    label = np.arange(images) % 2
    widths: dict[str, list[float]] = {name: [] for name in FIGURES}
    held: dict[str, list[bool]] = {name: [] for name in FIGURES}

    def record(name: str, found: Estimate, truth: float) -> None:
        widths[name].append((found.high - found.low) / 2)
        held[name].append(found.low <= truth <= found.high)

    for _ in range(studies):
        spread = rng.normal(0, skill, readers)
        right = draw_right(rng, readers, images, middle, spread, rho)
        of_real = draw_right(rng, readers, real, real_middle, spread, rho)
        # of one reader's interval the truth is that reader's
        own = float(norm.cdf(norm.ppf(middle) + spread[0]))
        record("one reader", mean_over_readers(right[:1]), own)
        record("readers", mean_over_readers(right), assumed.accuracy)
        record("one direction", mean_over_readers(right[:, label == 0]), assumed.accuracy)
        arm = np.arange(images) // 2 % 2
        record("two arms", difference(right[:, arm == 0], right[:, arm == 1]), 0.0)
        if real > 1:
            record("exchanged - real", difference(right, of_real), assumed.accuracy - assumed.real_accuracy)
        if drawn is not None:
            given = np.where(right, label, 1 - label).astype(np.int64)
            pairs = [
                cohen(given[i], given[j], drawn, 2) for i, j in itertools.combinations(range(readers), 2)
            ]
            ends = summary(np.mean(pairs, axis=0))
            widths["kappa"].append((ends["high"] - ends["low"]) / 2)
    return {
        name: (
            float(np.mean(widths[name])) if widths[name] else np.nan,
            float(np.mean(held[name])) if held[name] else np.nan,
        )
        for name in FIGURES
    }


FIGURES = {  # name of a figure: head of its column
    "one reader": "one reader",
    "readers": "mean over readers",
    "one direction": "one direction (half the pairs)",
    "two arms": "difference of two arms (half each)",
    "exchanged - real": "exchanged minus real",
    "kappa": "kappa, mean of pairs",
}


def table(
    assumed: Readers, pairs: Sequence[int], readers: Sequence[int], real: int | None, studies: int, seed: int
) -> str:
    """A Markdown table with a row for each number of pairs and of readers.

    Args:
        assumed: of readers and images.
        pairs: numbers of exchanged knees.
        readers: numbers of readers.
        real: real knees; None takes a fifth of the pairs.
        studies: simulated a row.
        seed: of all draws.

    Raises:
        ValueError: a number outside what is accepted.
    """
    for name, given, least in (("pairs", pairs, 8), ("readers", readers, 1), ("studies", [studies], 10)):
        if min(given) < least:
            raise ValueError(f"--{name} {list(given)}: accepted is {least} or more")
    rows = []
    for n, r in tqdm(list(itertools.product(pairs, readers)), unit="row", disable=None):
        controls = n // 5 if real is None else real
        found = simulate(assumed, n, r, controls, studies, seed)
        cells = [_cell(name, *found[name]) for name in FIGURES]
        rows.append((str(n), str(r), str(controls), *cells))
    return markdown(("pairs", "readers", "real", *FIGURES.values()), rows)


def _cell(name: str, width: float, held: float) -> str:
    if not np.isfinite(width):
        return "-"
    if name == "kappa":
        return f"± {width:.2f}"
    return f"± {100 * width:.1f} ({held:.0%})"
