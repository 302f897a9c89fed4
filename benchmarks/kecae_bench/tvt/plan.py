"""Which runs, in which order: so that what has been run at any time is paired and of use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kecae_bench.tvt.arms import ARMS, ExchangeOptions

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
PAIR = ("T", "T'")
CONTROLS = ("T + X^", "T + X' same grade", "T + X' permuted labels", "T + further real")
ALL_ARMS = tuple(name for name, arm in ARMS.items() if not arm.uses_others)
SEVERAL = ("resnet18", "tiulpin", "siamese_gap", "vgg11")


@dataclass(frozen=True)
class RunSpec:
    """One run; what it depends on beside data, weights and recipe.

    Attributes:
        fraction: of the training patients.
        n_pairs: N of the arms that have one, else None.
    """

    classifier: str
    arm: str
    seed: int
    fold: int | None = None
    fraction: float = 1.0
    n_pairs: int | None = None
    options: ExchangeOptions = field(default_factory=ExchangeOptions)

    def __str__(self) -> str:
        parts = [self.classifier, self.arm, f"seed {self.seed}"]
        parts += [f"fold {self.fold}"] if self.fold is not None else []
        parts += [f"{self.fraction:.0%} of patients"] if self.fraction < 1 else []
        parts += [f"N = {self.n_pairs}"] if self.n_pairs is not None else []
        return ", ".join(parts)


def combine(
    classifiers: Sequence[str],
    arms: Sequence[str],
    seeds: Sequence[int],
    *,
    folds: Sequence[int | None] = (None,),
    fractions: Sequence[float] = (1.0,),
    numbers: Sequence[int] = (),
    options: ExchangeOptions | None = None,
) -> list[RunSpec]:
    """Every combination that can be: seed by seed and fraction by fraction, the arms of one classifier beside each other.

    ``numbers`` are every N of the arms that have one.
    """
    found = options or ExchangeOptions()
    return [
        RunSpec(c, arm, seed, fold, fraction, n, found)
        for seed in seeds
        for fold in folds
        for fraction in fractions
        for c in classifiers
        for arm in arms
        if not (ARMS[arm].uses_others and fraction == 1)
        for n in (numbers if ARMS[arm].uses_pairs else [None])
    ]


def plan_budget(
    classifiers: Sequence[str],
    one: str,
    arms: Sequence[str],
    *,
    folds: Sequence[int | None] = (None,),
    numbers: Sequence[int] = (),
    options: ExchangeOptions | None = None,
) -> list[RunSpec]:
    """Much for little, most useful first.

    All classifiers at one seed in T and T'; four of them at five seeds; ``one`` in all ``arms`` at three seeds, and with
    few labels. The other arguments are those of :func:`combine`.
    """
    several = [c for c in SEVERAL if c in classifiers]
    parts = [
        (classifiers, PAIR, [0], (1.0,)),
        (several, PAIR, range(5), (1.0,)),
        ([one], arms, range(3), (1.0,)),
        ([one], PAIR, range(3), FRACTIONS),
    ]
    return drop_repeated(
        spec
        for names, of, seeds, fractions in parts
        for spec in combine(
            names, of, seeds, folds=folds, fractions=fractions, numbers=numbers, options=options
        )
    )


def drop_repeated(specs: Iterable[RunSpec]) -> list[RunSpec]:
    """Each once, in order."""
    return list(dict.fromkeys(specs))
