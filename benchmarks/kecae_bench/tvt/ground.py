"""What runs stand on: knees, their split, weights and oracles, checked for leaks before anything is trained."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path

from kecae_aug import KECAE, load_weights
from kecae_aug.data import Preprocessing
from kecae_aug.data.table import write_table
from kecae_bench.tvt.knees import Knees, read_folder
from kecae_bench.tvt.seen import Seen, by_oracle, by_weights
from kecae_bench.tvt.split import Split, fixed_split, fraction_of, k_fold_split, new_patients, unseen_split
from kecae_training.discriminator import Discriminator, load_discriminator


@dataclass(frozen=True)
class Ground:
    """What a fold's runs stand on.

    Attributes:
        knees: all. split: their parts; checked.
        model, name, seen: weights, as the user named them, and whom they were trained on; None for arms of T alone.
        oracles: held-out oracles of the gate and of soft labels, by folder.
        new: whether the patients whom weights and oracles know were left out, so that T is new to them too.
    """

    knees: Knees
    split: Split
    model: KECAE | None = None
    name: str = ""
    seen: Seen | None = None
    oracles: Mapping[str, Discriminator] = field(default_factory=dict)
    new: bool = False

    @property
    def oracle_size(self) -> int | None:
        """Side of the images that all oracles read.

        Raises:
            ValueError: they read different ones.
        """
        sizes = {oracle.config.image_size for oracle in self.oracles.values()}
        if len(sizes) > 1:
            raise ValueError(f"oracles: they read images of {sorted(sizes)} px, accepted is one size")
        return next(iter(sizes), None)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of the three parts: images, labels and patients."""
        parts = ("train", "validation", "test")
        return {name: self.knees.select(getattr(self.split, name)).fingerprint() for name in parts}


def open_grounds(
    args: argparse.Namespace, folds: int | None, progress: bool = True
) -> dict[int | None, Ground]:
    """Data, split, weights and oracles of every fold (``{None: ...}`` for a fixed test set), checked for leaks.

    Raises:
        ValueError, FileNotFoundError: with the way out; nothing has been trained then.
    """
    _agree(args, folds)
    numbers: list[int | None] = [None] if folds is None else list(range(folds))
    if len(args.weights) not in (1, len(numbers)):
        raise ValueError(
            f"weights: {len(args.weights)} given for {len(numbers)} test sets; give one for each, or one for all that knows "
            "none of their patients"
        )
    models = [load_weights(name) for name in args.weights]
    preprocessings = {Preprocessing.of(m) for m in models}
    classes = {m.config.classes for m in models}
    if len(preprocessings) > 1 or len(classes) > 1:
        raise ValueError(
            f"weights: they differ in preprocessing or classes ({preprocessings}, {classes}); give like ones"
        )
    grades = [str(c) for c in models[0].config.classes]
    preprocessing = _preprocessing(args, models[0])
    oracles = {fold: _oracles(args.oracles, fold, grades, preprocessing) for fold in numbers}
    knees, test, _ = read_folder(args.data, grades, preprocessing, progress=progress)
    of_t = _halving(args) if args.test_unseen is not True else []  # of True, they are the weights themselves
    folders = [args.data, *args.weights_data]
    loaded = [
        (model, name, by_weights(model, name, folders, trust=args.trust_weights))
        for model, name in zip(models, args.weights, strict=True)
    ]
    of_oracles = {
        fold: [by_oracle(oracle, path) for path, oracle in of.items()] for fold, of in oracles.items()
    }
    if args.new_patients:
        everybody = [*(seen for _, _, seen in loaded), *(one for of in of_oracles.values() for one in of)]
        knees, test = new_patients(knees, test, everybody)
    grounds: dict[int | None, Ground] = {}
    each = loaded * len(numbers) if len(loaded) == 1 else loaded
    for fold, (model, name, seen) in zip(numbers, each, strict=True):
        split = _split(args, knees, test, [seen, *of_oracles[fold], *of_t], fold, folds)
        grounds[fold] = Ground(knees, split, model, name, seen, oracles[fold], args.new_patients)
        describe(grounds[fold])
    return grounds


def _agree(args: argparse.Namespace, folds: int | None) -> None:
    """Before an image is read: flags that contradict each other.

    Raises:
        ValueError: naming them.
    """
    if args.test_unseen and args.new_patients:
        raise ValueError(
            "--test-unseen and --new-patients: T is whom the weights know, or nobody of them; give one"
        )
    if args.test_unseen and folds is not None:
        raise ValueError("--test-unseen and --folds: both say who is tested; give one")


def _preprocessing(args: argparse.Namespace, model: KECAE) -> Preprocessing:
    """As the weights ask for it, but for the flags."""
    own = Preprocessing.of(model)
    return replace(own, image_size=args.image_size, mirror_right=own.mirror_right and not args.no_mirror)


def _split(
    args: argparse.Namespace,
    knees: Knees,
    test: Sequence[int],
    seen: Sequence[Seen],
    fold: int | None,
    folds: int | None,
) -> Split:
    """The fixed test set, all whom nobody has seen, or a fold of ``folds``."""
    fraction = args.validation_fraction
    if args.test_unseen:
        return unseen_split(knees, test, seen, fraction=fraction)
    if fold is None or folds is None:
        return fixed_split(knees, test, seen, fraction=fraction)
    return k_fold_split(knees, fold, folds, seen, fraction=fraction)


def _halving(args: argparse.Namespace) -> list[Seen]:
    """Whom the weights of ``--test-unseen`` were trained on, so that others, trained inside T, have the same T."""
    if not args.test_unseen:
        return []
    name = args.weights[0] if args.test_unseen is True else args.test_unseen
    folders = [args.data, *args.weights_data]
    return [by_weights(load_weights(name), name, folders, trust=args.trust_weights)]


def _oracles(
    paths: Sequence[Path], fold: int | None, grades: Sequence[str], preprocessing: Preprocessing
) -> dict[str, Discriminator]:
    """Oracles of a fold, of images like these: ``{fold}`` in a path is its number."""
    named = [str(path).replace("{fold}", str(fold)) for path in paths]
    return {name: load_discriminator(name, grades, preprocessing=preprocessing) for name in named}


def describe(ground: Ground) -> None:
    """Print what a fold stands on."""
    patients = ground.knees.patients
    parts = {
        name: f"{len(indices)} knees of {len({patients[r] for r in indices})} patients"
        for name, indices in vars(ground.split).items()
        if name != "fold"
    }
    fold = "" if ground.split.fold is None else f"fold {ground.split.fold}: "
    print(fold + "; ".join(f"{name} {what}" for name, what in parts.items()), flush=True)
    if ground.seen is not None:
        known = ground.seen.patients
        print(
            f"{ground.seen.name}: "
            + (
                "NOT KNOWN whom they were trained on (--trust-weights)"
                if known is None
                else f"trained on {len(known)} patients, none of validation or test"
            ),
            flush=True,
        )


def export(
    args: argparse.Namespace, folds: int | None, fractions: Sequence[float], seeds: Sequence[int], out: Path
) -> list[Path]:
    """Tables of the training sets, to train weights, discriminators and oracles inside them.

    Nobody of the validation and test sets is in them. They are OUT/fixed.csv or OUT/fold-K.csv; of a fraction of the
    patients, which depends on the seed, OUT/fixed-0.1-seed-0.csv: weights of it know no more labels than T has.

    Args:
        args: of the command line: data, image size, fraction of the validation patients; weights for their grades alone.
        folds: of cross-validation; None for the fixed test set.
        fractions: of the training patients.
        seeds: of the fractions.
        out: made if need be.

    Raises:
        FileExistsError: a table is there already; nothing is written then.
    """
    _agree(args, folds)
    if args.new_patients:
        raise ValueError(
            "--export: weights that are trained on T know its patients; leave --new-patients out"
        )
    model = load_weights(args.weights[0])
    preprocessing = _preprocessing(args, model)
    knees, test, images = read_folder(args.data, [str(c) for c in model.config.classes], preprocessing)
    tables: dict[Path, Sequence[int]] = {}
    for fold in range(folds) if folds else [None]:
        split = _split(args, knees, test, _halving(args), fold, folds)
        name = "fixed" if fold is None else f"fold-{fold}"
        for fraction, seed in product(fractions, seeds):
            part = name if fraction == 1 else f"{name}-{fraction:g}-seed-{seed}"
            tables[out / f"{part}.csv"] = fraction_of(knees, split.train, fraction, seed)
    there = [str(table) for table in tables if table.exists()]
    if there:
        raise FileExistsError(f"--export: {there[0]} is there already; name another folder or remove it")
    out.mkdir(parents=True, exist_ok=True)
    for table, of in tables.items():
        write_table(table, [images[index] for index in of], "train")
        print(
            f"{table}: {len(of)} images of {len({knees.patients[index] for index in of})} patients",
            flush=True,
        )
    return list(tables)
