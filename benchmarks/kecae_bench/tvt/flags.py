"""Flags that the benchmark and the key probe share, and what they come to."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from kecae_bench.classifiers import CLASSIFIERS
from kecae_bench.machine import add_device, add_precision
from kecae_bench.record import PROJECT, RESULTS, knee_data
from kecae_bench.tvt.arms import ARMS, Arm, ExchangeOptions
from kecae_bench.tvt.augmentation import Augmentation
from kecae_bench.tvt.run import Protocol
from kecae_bench.tvt.split import FRACTION
from kecae_bench.tvt.training import Loop


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of data, protocol and exchange."""
    o, c, loop = ExchangeOptions(), Augmentation(), Loop()
    data = parser.add_argument_group("data and weights")
    data.add_argument(
        "--data",
        type=Path,
        default=knee_data(),
        help="DIR/train/<grade>/name.png and DIR/val/..., or a table.csv (default: KECAE_KNEE_DATA)",
    )
    data.add_argument(
        "--weights",
        nargs="+",
        default=["knee-kl02"],
        help="bundled name, folder or Hub id; with --folds one a fold, or one that knows nobody of the data",
    )
    data.add_argument(
        "--weights-data",
        type=Path,
        nargs="+",
        default=[],
        help="folders or tables the weights were trained on, if others",
    )
    data.add_argument(
        "--trust-weights", action="store_true", help="take weights of unknown training patients for clean"
    )
    data.add_argument(
        "--oracles",
        type=Path,
        nargs="+",
        default=[],
        help="held-out oracles (kecae-aug discriminator); {fold} is the fold",
    )
    data.add_argument(
        "--image-size", type=int, default=128, help="of the classifiers' images; the paper's is 299"
    )
    data.add_argument("--no-mirror", action="store_true", help="leave right knees as they are")
    data.add_argument("--validation-fraction", type=float, default=FRACTION, help="of the training patients")
    data.add_argument(
        "--test-unseen",
        nargs="?",
        const=True,
        default=False,
        metavar="W",
        help="T is whom W (default: --weights) were trained on, all others but validation patients are tested",
    )
    data.add_argument(
        "--new-patients",
        action="store_true",
        help="leave out whom the weights know: T, validation and test are new to them, as your knees would be",
    )
    run = parser.add_argument_group("protocol")
    run.add_argument(
        "--steps", type=int, default=1000, help="optimiser steps of every arm (default: %(default)s)"
    )
    run.add_argument(
        "--validations",
        type=int,
        default=loop.validations,
        help="at validation patients (default: %(default)s)",
    )
    add_device(run)
    add_precision(
        run,
        loop.precision,
        "bf16-mixed on a CPU only where it has it (AVX-512 BF16, AMX): three times faster, else nine times slower",
    )
    run.add_argument("--contiguous", action="store_true", help="memory format; channels_last by default")
    run.add_argument("--lr", type=float, help="instead of the classifier's own, in all arms")
    run.add_argument("--batch-size", type=int, help="real knees a step, instead of the classifier's own")
    run.add_argument("--flip", type=float, default=c.flip, help="chance, of the standard augmentation")
    run.add_argument("--no-augmentation", action="store_true", help="no standard augmentation, in all arms")
    run.add_argument("--threads", type=int, help="of torch")
    ex = parser.add_argument_group("how X' is used (choose by validation figures, never by test ones)")
    ex.add_argument("--added", type=int, help="X' beside each batch (default: a third of it)")
    ex.add_argument("--p", type=float, help="replace each real knee with this chance instead of adding")
    ex.add_argument("--strength", type=float, nargs="+", default=[1.0], help="a number, or low and high")
    ex.add_argument("--detail", choices=("host", "decoder"), default=o.detail)
    ex.add_argument("--labels", choices=("key", "soft", "oracles"), default=o.labels, help="of X'")
    ex.add_argument("--smoothing", type=float, default=o.smoothing, help="of X' labels")
    ex.add_argument(
        "--early", type=float, default=o.early, help="X' in this first fraction of the steps only"
    )
    ex.add_argument("--donors", choices=("batch", "bank"), default=o.donors)
    ex.add_argument("--min-probability", type=float, default=o.min_probability, help="of the gate")
    ex.add_argument("--min-agreement", type=float, default=o.min_agreement, help="of the gate")
    ex.add_argument("--max-distance", type=float, help="of the gate")
    out = parser.add_argument_group("files")
    out.add_argument(
        "--results",
        type=Path,
        default=RESULTS / "t_vs_tprime.jsonl",
        help="one JSON line a run (default: %(default)s)",
    )
    out.add_argument("--work", type=Path, default=PROJECT / "runs" / "t_vs_tprime", help="for latent banks")
    out.add_argument("--dry-run", action="store_true", help="print the runs and an estimate, train nothing")


def options_of(args: argparse.Namespace) -> ExchangeOptions:
    """How X' is used, from the flags."""
    if len(args.strength) > 2:
        raise ValueError(f"strength={args.strength}: accepted is a number, or low and high")
    if args.labels == "oracles" and not args.oracles:
        raise ValueError("labels='oracles': needs --oracles")  # now, and not after hours of T
    strength = args.strength[0] if len(args.strength) == 1 else tuple(args.strength)
    names = ("added", "p", "detail", "labels", "smoothing", "early", "donors")
    names += ("min_probability", "min_agreement", "max_distance")  # type: ignore[assignment]
    return ExchangeOptions(strength=strength, **{name: getattr(args, name) for name in names})


def protocol_of(args: argparse.Namespace) -> Protocol:
    """What all runs share, from the flags."""
    if args.threads:
        torch.set_num_threads(args.threads)
    loop = Loop(args.validations, args.precision, not args.contiguous, device=args.device)
    augmentation = None if args.no_augmentation else Augmentation(flip=args.flip)
    return Protocol(args.steps, loop, augmentation, args.lr, args.batch_size, args.work)


def drop_impossible(arms: Sequence[str], args: argparse.Namespace) -> list[str]:
    """The arms that can be run with what was given; says which cannot, and why."""
    found = []
    for name in arms:
        why = _lacking(ARMS[name], args)
        if why:
            print(f"left out: {name} ({why})", flush=True)
        else:
            found.append(name)
    return found


def _lacking(arm: Arm, args: argparse.Namespace) -> str:
    if arm.added == "gated" and not args.oracles and args.max_distance is None:
        return "needs --oracles or --max-distance"
    if arm.uses_others and all(f == 1 for f in getattr(args, "fractions", [1])):
        return "needs --fractions below 1"
    return ""


def check_names(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse classifiers that are not there, and seeds twice."""
    unknown = [name for name in args.classifiers if name not in CLASSIFIERS]
    if unknown:
        parser.error(f"--classifiers {unknown}: accepted are {', '.join(CLASSIFIERS)}")
    if len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--seeds {args.seeds}: a seed twice is the same run twice")
