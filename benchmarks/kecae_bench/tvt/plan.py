"""Which runs, in which order: so that what has been run at any time is paired and of use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kecae_bench.tvt.arms import ARMS
from kecae_bench.tvt.options import ExchangeOptions

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
PAIR = ("T + classical", "T' online + classical")
ALL_ARMS = (  # on equal terms: whatever is compared with T' has the classical augmentation too
    "T",
    "T' online",
    "T + classical",
    "T' online + classical",
    "T + real + classical",
    "T + X^ + classical",
    "T + X' same grade + classical",
    "T + shuffled X' + classical",
    "T' offline + classical",
    "T' gate + classical",
    "T + MixUp + classical",
    "T + CutMix + classical",
    "paper",
)
SEVERAL = ("resnet18", "tiulpin", "siamese_gap", "vgg11")
STUDIES = ("main", "scarcity", "sampling")


@dataclass(frozen=True)
class RunSpec:
    """One run; what it depends on beside data, weights and recipe.

    Attributes:
        study: one of :data:`STUDIES`, for the report; no run depends on it.
        n_pairs: N of the arms that have one, else None.
    """

    study: str
    classifier: str
    arm: str
    seed: int
    fold: int | None = None
    fraction: float = 1.0
    n_pairs: int | None = None
    options: ExchangeOptions = field(default_factory=ExchangeOptions)

    def __str__(self) -> str:
        parts = [self.study, self.classifier, self.arm, f"seed {self.seed}"]
        parts += [f"fold {self.fold}"] if self.fold is not None else []
        parts += [f"{self.fraction:.0%} of patients"] if self.fraction < 1 else []
        parts += [f"N = {self.n_pairs}"] if self.n_pairs is not None else []
        return ", ".join(parts)


def product(
    study: str,
    classifiers: Sequence[str],
    arms: Sequence[str],
    seeds: Sequence[int],
    *,
    folds: Sequence[int | None] = (None,),
    fractions: Sequence[float] = (1.0,),
    n_pairs: int | None = None,
    options: ExchangeOptions | None = None,
) -> list[RunSpec]:
    """Every combination that can be: seed by seed and fraction by fraction, the arms of one classifier beside each other."""
    found = options or ExchangeOptions()
    return [
        RunSpec(study, c, arm, seed, fold, fraction, n_pairs if ARMS[arm].uses_pairs else None, found)
        for seed in seeds
        for fold in folds
        for fraction in fractions
        for c in classifiers
        for arm in arms
        if not (ARMS[arm].uses_others and fraction == 1)
    ]


def budget(
    classifiers: Sequence[str],
    one: str,
    arms: Sequence[str],
    *,
    folds: Sequence[int | None] = (None,),
    n_pairs: int | None = None,
    options: ExchangeOptions | None = None,
) -> list[RunSpec]:
    """The budget of issue 5, most useful first.

    All classifiers at one seed in two arms; four of them at five seeds; one in all arms at three seeds; its scarcity curve.

    Args:
        classifiers: all.
        one: the one in all arms.
        arms: of it, those of :data:`ALL_ARMS` that can be run.
        folds: of cross-validation.
        n_pairs: N.
        options: of X'.
    """
    shared = {"folds": folds, "n_pairs": n_pairs, "options": options}
    several = [c for c in SEVERAL if c in classifiers]
    parts = [
        product("main", classifiers, PAIR, [0], **shared),  # type: ignore[arg-type]
        product("main", several, PAIR, range(5), **shared),  # type: ignore[arg-type]
        product("main", [one], arms, range(3), **shared),  # type: ignore[arg-type]
        product("scarcity", [one], PAIR, range(3), fractions=FRACTIONS, **shared),  # type: ignore[arg-type]
    ]
    return once(spec for part in parts for spec in part)


def sampling(
    classifiers: Sequence[str],
    arm: str,
    numbers: Sequence[int],
    seeds: Sequence[int],
    options: ExchangeOptions,
) -> list[RunSpec]:
    """Fig. 5: N pairs each, N = 0 being T with the same classical augmentation as ``arm``; seed by seed."""
    plain = "T + classical" if ARMS[arm].classical else "T"
    return once(
        RunSpec("sampling", c, arm if n else plain, seed, n_pairs=n or None, options=options)
        for seed in seeds
        for n in numbers
        for c in classifiers
    )


def once(specs: Iterable[RunSpec]) -> list[RunSpec]:
    """Without repetitions, in order."""
    return list(dict.fromkeys(specs))
