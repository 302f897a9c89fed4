r"""Does T' beat T? Classifiers on real knees alone, and with exchanged ones, on your own folder.

    python -m kecae_bench.tvt --data DIR --weights W --classifiers resnet18 --seeds 0 1 2          # the default arms
    python -m kecae_bench.tvt --data DIR --weights W --plan budget --dry-run                       # Table II in a day or two
    python -m kecae_bench.tvt --data DIR --weights W --arms T "T'" --fractions 0.05 0.1 0.25 0.5 1 # few labels
    python -m kecae_bench.tvt --data DIR --weights W --arms T "T' from pairs" --n-pairs 500 5000 50000   # Fig. 5
    python -m kecae_bench.tvt --data DIR --folds 5 --export OUT                                    # cross-validation:
    ... kecae-aug discriminator and train on each OUT/fold-K.csv ...
    python -m kecae_bench.tvt --data DIR --folds 5 --weights W0 W1 W2 W3 W4 --weights-data OUT/fold-*.csv

Weights that know more patients than T bring labels in that T has not, which matters for few labels: `--fractions 0.1
--seeds 0 --export OUT` writes the table to train weights inside it; each line says how many patients are outside. To
compare such weights with runs of W under `--test-unseen`, give `--test-unseen W` to export and run: both use W's patients.

Weights that were trained on half of the patients: `--test-unseen` makes that half T and tests all others (but the
validation patients), which are many more than DIR/val has, so that smaller differences become significant.
`--new-patients` leaves out whom the weights know: T is new to them too, as your own knees would be.

Protocol. In all arms of a seed: the same patients, the same real knees in the same order with the same standard
augmentation, equal optimiser steps, the recipe of the classifier, equally many validations, whose AUROC chooses the
checkpoint. Test patients are used once, at the end. Weights and oracles must have seen neither; a leak is an error.
Arms: arms.py. What came out: python -m kecae_bench.report.

Each run appends a JSON line to --results and leaves its predictions beside it (store.py). Interrupted at any point, the
same command goes on; a run that was cut off begins again. Choose options of X' by the lines' `validation` figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from kecae_aug.errors import reporting
from kecae_bench.classifiers import CLASSIFIERS, TABLE_2
from kecae_bench.tvt.arms import ARMS
from kecae_bench.tvt.flags import add_arguments, check_names, drop_impossible, options_of
from kecae_bench.tvt.ground import export
from kecae_bench.tvt.loop import carry_out
from kecae_bench.tvt.plan import ALL_ARMS, CONTROLS, PAIR, RunSpec, combine, drop_repeated, plan_budget


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--classifiers",
        nargs="+",
        default=list(TABLE_2),
        metavar="NAME",
        help=f"by default those of Table II; accepted: {', '.join(CLASSIFIERS)}",
    )
    parser.add_argument(
        "--arms",
        nargs="+",
        metavar="ARM",
        help=f"by default {', '.join((*PAIR, *CONTROLS))}; accepted: {', '.join(ARMS)}",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fractions", type=float, nargs="+", default=[1.0], help="of the training patients")
    parser.add_argument(
        "--n-pairs",
        type=int,
        nargs="+",
        default=[5000],
        metavar="N",
        help="each N of T' from pairs and paper",
    )
    parser.add_argument(
        "--plan",
        choices=("flags", "budget", "all"),
        default="flags",
        help="flags: all combinations of the flags; budget: --classifiers at seed 0 in T and T', four at five seeds, "
        "--one in all arms at three, and with few labels; all: every arm of --classifiers",
    )
    parser.add_argument("--one", default="resnet18", help="of --plan budget: the classifier of all arms")
    parser.add_argument("--folds", type=int, help="cross-validation over all images, instead of DIR/val")
    parser.add_argument("--fold", type=int, nargs="+", help="which of the folds; all by default")
    parser.add_argument(
        "--export",
        type=Path,
        metavar="OUT",
        help="write tables of the training sets of the flags, to train weights on; no run",
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    check_names(parser, args)
    unknown = [name for name in args.arms or [] if name not in ARMS]
    if unknown:
        parser.error(f"--arms {unknown}: accepted are {', '.join(ARMS)}")
    if args.one not in CLASSIFIERS:
        parser.error(f"--one {args.one}: accepted are {', '.join(CLASSIFIERS)}")
    if args.fold and (not args.folds or not set(args.fold) <= set(range(args.folds))):
        parser.error(f"--fold {args.fold}: accepted are 0 to --folds - 1, with --folds {args.folds}")
    if min(args.n_pairs) < 2:
        parser.error(f"--n-pairs {args.n_pairs}: accepted are 2 and more, one a direction")
    if any(not 0 < f <= 1 for f in args.fractions):
        parser.error(f"--fractions {args.fractions}: accepted are numbers above 0, up to 1")
    return args


def plan_runs(args: argparse.Namespace) -> list[RunSpec]:
    """The runs of the flags, in order."""
    folds = [None] if not args.folds else args.fold or list(range(args.folds))
    options = options_of(args)
    if args.plan == "budget":
        arms = drop_impossible(ALL_ARMS, args)
        return plan_budget(
            args.classifiers, args.one, arms, folds=folds, numbers=args.n_pairs, options=options
        )
    named = list(ARMS) if args.plan == "all" else args.arms or [*PAIR, *CONTROLS]
    arms = drop_impossible(named, args)
    return drop_repeated(
        combine(
            args.classifiers,
            arms,
            args.seeds,
            folds=folds,
            fractions=args.fractions,
            numbers=args.n_pairs,
            options=options,
        )
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with reporting("tvt", "interrupted; the same command goes on where it stopped"):
        if args.export:
            export(args, args.folds, args.fractions, args.seeds, args.export)
        else:
            carry_out(plan_runs(args), args, args.folds)


if __name__ == "__main__":
    main()
