"""How many pairs? The paper's Fig. 5: loss and accuracy of a classifier on T' with N pairs, N = 0 being T alone.

    python benchmarks/sampling_size.py --data DIR --weights W --classifiers resnet18 --numbers 0 5000 50000 100000

Each seed is another sampling of N pairs (the paper has five). Steps are equal for all N: with "T' offline" every step adds
as many X', and N says how many different ones there are; `--arm paper` takes the paper's protocol, where a larger N is a
longer training too. The curves are in the lines' `curve`: validation patients, not test ones. Splits, leaks, storing and
going on: as in benchmarks/t_vs_tprime.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from kecae_bench.tvt.arms import ARMS
from kecae_bench.tvt.flags import add_arguments, check_names, options_of
from kecae_bench.tvt.loop import carry_out, ending
from kecae_bench.tvt.plan import sampling

WITH_PAIRS = [name for name, arm in ARMS.items() if arm.uses_pairs]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classifiers", nargs="+", default=["resnet18"], metavar="NAME")
    parser.add_argument("--numbers", type=int, nargs="+", default=[0, 5_000, 50_000, 100_000], help="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arm", choices=WITH_PAIRS, default="T' offline + classical")
    add_arguments(parser)
    args = parser.parse_args(argv)
    check_names(parser, args)
    if any(n < 0 or n == 1 for n in args.numbers):
        parser.error(f"--numbers {args.numbers}: accepted are 0, and 2 and more, one a direction")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with ending("sampling_size"):
        carry_out(sampling(args.classifiers, args.arm, args.numbers, args.seeds, options_of(args)), args)


if __name__ == "__main__":
    main()
