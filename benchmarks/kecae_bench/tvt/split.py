"""Training, validation and test indices by patient; what a leak would be is an error that names patients.

The test set is fixed (DIR/val), or one of k folds. Validation patients, whom checkpoints are chosen by, are training
patients that neither the weights nor an oracle have seen: X' of a knee that the weights know would flatter a checkpoint
that was trained on X'.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from kecae_aug.data import split_patients
from kecae_bench.tvt.knees import Knees
from kecae_bench.tvt.seen import Seen

FRACTION = 0.15  # of the training patients, for validation
_FEWEST = 2  # patients of a class in a part: a donor is of another patient


class LeakError(ValueError):
    """A patient, or an image, stands in two parts, or has been seen by weights or oracles."""


class SplitError(ValueError):
    """There are too few patients for a split."""


@dataclass(frozen=True)
class Split:
    """Indices of one set of knees, disjoint by patient.

    Attributes:
        train, validation, test: sorted indices.
        fold: which fold the test set is; None for a fixed test set.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    fold: int | None = None


def fixed_split(
    knees: Knees, test: Sequence[int], seen: Sequence[Seen], *, fraction: float = FRACTION, seed: int = 0
) -> Split:
    """The test set as given; validation patients drawn from the others.

    Args:
        knees: all.
        test: indices of the test set.
        seen: whom weights and oracles were trained on.
        fraction: of the other patients, for validation.
        seed: of the draw; not that of a run, so that all seeds choose by the same patients.

    Raises:
        LeakError, SplitError.
    """
    if not test:
        raise SplitError("data: no test split DIR/val; give one, or take cross-validation (--folds)")
    return _with_validation(knees, test, seen, fraction, seed, None)


def unseen_split(
    knees: Knees, test: Sequence[int], seen: Sequence[Seen], *, fraction: float = FRACTION, seed: int = 0
) -> Split:
    """T is whom the weights (and oracles) were trained on; tested are all others but the validation patients.

    With weights of half of the patients: no label is in the weights that T has not, and many more patients are tested
    than DIR/val has. The validation patients are those of :func:`fixed_split`.

    Args and errors: as of :func:`fixed_split`; ``test`` may be empty.
    """
    known = _known(seen)
    if not known or any(s.patients is None for s in seen):
        raise SplitError("--test-unseen: it is not known whom the weights were trained on; leave it out")
    return _with_validation(knees, test, seen, fraction, seed, None, known)


def new_patients(knees: Knees, test: Sequence[int], seen: Sequence[Seen]) -> tuple[Knees, list[int]]:
    """Knees of patients whom nobody has seen, and the indices of the test set among them.

    A split of them is a user's case: weights of other people's knees, and T, validation and test new to them.

    Args:
        knees: all.
        test: indices of the test set; may be empty.
        seen: whom weights and oracles were trained on.

    Raises:
        SplitError: it is not known whom.
    """
    if any(s.patients is None for s in seen):
        raise SplitError("--new-patients: it is not known whom the weights were trained on; leave it out")
    known, of_test = _known(seen), set(test)
    indices = [index for index in range(len(knees)) if knees.patients[index] not in known]
    return knees.select(indices), [place for place, index in enumerate(indices) if index in of_test]


def k_fold_split(
    knees: Knees, fold: int, folds: int, seen: Sequence[Seen], *, fraction: float = FRACTION, seed: int = 0
) -> Split:
    """Fold ``fold`` of ``folds`` is the test set: grouped by patient, stratified by grade.

    Args and errors: as of :func:`fixed_split`; ``seen`` is of the weights of this fold.
    """
    return _with_validation(knees, fold_of(knees, fold, folds, seed), seen, fraction, seed, fold)


def fold_of(knees: Knees, fold: int, folds: int, seed: int = 0) -> list[int]:
    """Indices of one fold; a function of patients, grades and seed, not of the order of the indices."""
    if folds < 2 or not 0 <= fold < folds:
        raise ValueError(f"fold={fold}, folds={folds}: accepted are 2 or more folds, and 0 to folds - 1")
    return split_patients(knees.targets, knees.patients, [1 / folds] * folds, seed)[fold]


def _with_validation(
    knees: Knees,
    test: Sequence[int],
    seen: Sequence[Seen],
    fraction: float,
    seed: int,
    fold: int | None,
    only: frozenset[str] | None = None,
) -> Split:
    """T are the patients of ``only``, or all that are neither tested nor for validation; who is left is tested."""
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction}: accepted is a number between 0 and 1")
    refuse_seen("test", {knees.patients[index] for index in test}, seen)
    of_test = set(test)
    rest = [index for index in range(len(knees)) if index not in of_test]
    validation = _drawn(knees, rest, seen, fraction, seed)
    train = [
        index for index in rest if index not in validation and (only is None or knees.patients[index] in only)
    ]
    tested = of_test | set(rest) - validation - set(train)
    split = Split(tuple(train), tuple(sorted(validation)), tuple(sorted(tested)), fold)
    check_split(knees, split, seen)
    return split


def _drawn(knees: Knees, rest: Sequence[int], seen: Sequence[Seen], fraction: float, seed: int) -> set[int]:
    """Indices of the validation patients.

    Those whom anybody would draw, where nobody has seen them: so weights that were trained inside an exported fold keep
    its validation patients. Otherwise drawn among those whom nobody has seen.
    """

    def draw(indices: Sequence[int], part: float) -> set[int]:
        if part >= 1:
            return set(indices)
        targets = [knees.targets[index] for index in indices]
        patients = [knees.patients[index] for index in indices]
        return {indices[i] for i in split_patients(targets, patients, [part, 1 - part], seed)[0]}

    known = _known(seen)
    first = draw(rest, fraction)
    if not known & {knees.patients[index] for index in first}:
        return first
    free = [index for index in rest if knees.patients[index] not in known]
    n_rest, n_free = (len({knees.patients[index] for index in indices}) for indices in (rest, free))
    wanted = max(_FEWEST, round(fraction * n_rest))
    if n_free < wanted:
        counts = ", ".join(f"{s.name} {len(s.patients or ())}" for s in seen)
        raise SplitError(
            f"validation: {wanted} patients are wanted ({fraction:.0%} of {n_rest}), and {n_free} of the training patients "
            f"have been seen by neither weights nor oracles ({counts}). Train those on fewer patients (`--data.folds` of "
            "kecae-aug train, `--folds` of kecae-aug discriminator), on the same half; or ask for a "
            "smaller --validation-fraction"
        )
    return draw(free, wanted / n_free)


def _known(seen: Sequence[Seen]) -> frozenset[str]:
    """Whom weights or oracles were trained on, as far as that is known."""
    return frozenset[str]().union(*(s.patients or frozenset() for s in seen))


def check_split(knees: Knees, split: Split, seen: Sequence[Seen]) -> None:
    """Refuse what would flatter any arm.

    Raises:
        LeakError: a patient or an identical image in two parts; weights or oracles that have seen a validation or test
            patient.
        SplitError: a part with a class of fewer than two patients.
    """
    parts = {name: getattr(split, name) for name in ("train", "validation", "test")}
    for (first, ours), (second, theirs) in combinations(parts.items(), 2):
        both = {knees.patients[r] for r in ours} & {knees.patients[r] for r in theirs}
        if both:
            raise LeakError(f"split: {first} and {second} share {_named(both)}; split by patient")
        marks = {knees.images[r].numpy().tobytes(): r for r in ours}
        for index in theirs:
            twin = marks.get(knees.images[index].numpy().tobytes())
            if twin is not None:
                raise LeakError(
                    f"data: {knees.files[twin]} ({first}) and {knees.files[index]} ({second}) are the same image under two "
                    f"patients, {knees.patients[twin]} and {knees.patients[index]}: take one of them out"
                )
    for name in ("validation", "test"):
        refuse_seen(name, {knees.patients[r] for r in parts[name]}, seen)
    for name, indices in parts.items():
        _check_classes(knees, indices, name)


def refuse_seen(part: str, patients: Iterable[str], seen: Sequence[Seen]) -> None:
    """Refuse weights and oracles that were trained on patients of a part."""
    patients = set(patients)
    for one in seen:
        both = patients & (one.patients or frozenset())
        if both:
            raise LeakError(
                f"{one.name}: trained on {_named(both)} of the {part} set, so that no figure would be held out; give "
                "weights and oracles of other patients (--export writes tables to train them on), or leave out whom they "
                "know (--new-patients)"
            )


def fraction_of(knees: Knees, indices: Sequence[int], fraction: float, seed: int) -> list[int]:
    """Indices of a fraction of the patients: label scarcity, nested (the 5 % are among the 10 %) and stratified by grade.

    Args:
        knees: all.
        indices: of the training set.
        fraction: above 0, up to 1; of its patients, rounded up.
        seed: of the order of patients; the same order for every fraction.

    Raises:
        SplitError: a class of fewer than two patients.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: accepted is a number above 0, up to 1")
    grades_of: dict[str, set[int]] = defaultdict(set)
    for index in indices:
        grades_of[knees.patients[index]].add(knees.targets[index])
    strata: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for patient in sorted(grades_of):
        strata[tuple(sorted(grades_of[patient]))].append(patient)
    rng = np.random.default_rng([seed, 5])
    place: dict[str, float] = {}
    for stratum in sorted(strata):  # every prefix of the order has about the same fraction of each stratum
        members = strata[stratum]
        for position, i in enumerate(rng.permutation(len(members)).tolist()):
            place[members[i]] = (position + 0.5) / len(members)
    order = sorted(place, key=lambda patient: (place[patient], patient))
    kept = set(order[: math.ceil(round(fraction * len(order), 6))])
    chosen = [index for index in indices if knees.patients[index] in kept]
    _check_classes(knees, chosen, f"{fraction:.0%} of training")
    return chosen


def _check_classes(knees: Knees, indices: Sequence[int], name: str) -> None:
    for c, grade in enumerate(knees.classes):
        patients = {knees.patients[index] for index in indices if knees.targets[index] == c}
        if len(patients) < _FEWEST:
            raise SplitError(
                f"{name} set: {len(patients)} patients with grade {grade}, at least {_FEWEST} are needed; give more "
                "data or a larger fraction"
            )


def _named(patients: Iterable[str]) -> str:
    found = sorted(patients)
    return f"{len(found)} patients ({', '.join(found[:5])}{', ...' if len(found) > 5 else ''})"
