"""The command line: `kecae-aug demo`, `exchange`, `phantoms`, `info`; `guide`, `train`, `evaluate`, `card` with [train]."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

TRAINING = {
    "guide": "kecae_training.guide",
    "train": "kecae_training.train",
    "evaluate": "kecae_training.evaluate",
    "card": "kecae_training.card",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with a message and status 1 on errors of the user's input."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0] in TRAINING:
        _training(args[0], args[1:])
        return
    options = _parser().parse_args(args)
    try:
        options.run(options)
    except (ValueError, FileExistsError, FileNotFoundError, ImportError) as error:
        raise SystemExit(f"kecae-aug {options.command}: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(f"kecae-aug {options.command}: interrupted") from None


def _training(command: str, args: list[str]) -> None:
    """Hand over to kecae_training, which is in the wheel but needs the packages of the extra."""
    try:
        module = importlib.import_module(TRAINING[command])
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("kecae"):
            raise
        raise SystemExit(
            f"kecae-aug {command}: {error.name} is not installed; pip install 'kecae-aug[train]'"
        ) from None
    module.main(args)


def _parser() -> argparse.ArgumentParser:
    from kecae_aug import __version__

    parser = argparse.ArgumentParser(
        prog="kecae-aug",
        description="Key-exchange data augmentation for medical image classifiers.",
        epilog="Also, with pip install 'kecae-aug[train]': guide, train, evaluate, card (each with --help).",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser(
        "demo", help="phantom knees, a classifier on T and on T', a report; offline, minutes"
    )
    demo.add_argument(
        "--out", type=Path, default=Path("kecae-demo"), help="folder for the report (default: %(default)s)"
    )
    demo.add_argument("--train-patients", type=int, default=None, help="labelled patients to learn from")
    demo.add_argument("--steps", type=int, default=None, help="optimiser steps of every arm")
    demo.add_argument("--seeds", type=int, default=None, help="repetitions")
    demo.set_defaults(run=_demo)

    exchange = commands.add_parser("exchange", help="give one radiograph the key of another")
    exchange.add_argument("host", type=Path, help="radiograph that keeps its non-key")
    exchange.add_argument("donor", type=Path, help="radiograph of another grade that gives its key")
    exchange.add_argument("--out", type=Path, required=True, help="contact sheet (PNG); must not exist")
    exchange.add_argument(
        "--weights", default="knee-kl02", help="bundled name, folder or Hub id (default: %(default)s)"
    )
    exchange.add_argument(
        "--strength", type=float, default=1.0, help="share of the donor's key (default: %(default)s)"
    )
    exchange.add_argument(
        "--sides", default=None, help="sides of host and donor, such as LR; by default from the names"
    )
    exchange.set_defaults(run=_exchange)

    phantoms = commands.add_parser("phantoms", help="write phantom knees as a folder of train and val grades")
    phantoms.add_argument("--out", type=Path, required=True, help="folder; must be empty or absent")
    phantoms.add_argument("--train-patients", type=int, default=1000)
    phantoms.add_argument("--val-patients", type=int, default=200)
    phantoms.add_argument("--grades", type=int, nargs="+", default=[0, 2])
    phantoms.add_argument("--image-size", type=int, default=64)
    phantoms.add_argument("--seed", type=int, default=1)
    phantoms.set_defaults(run=_phantoms)

    info = commands.add_parser("info", help="what a weights file is and expects")
    info.add_argument(
        "weights", nargs="?", help="bundled name, folder or Hub id; without it, the bundled ones are listed"
    )
    info.set_defaults(run=_info)
    return parser


def _demo(options: argparse.Namespace) -> None:
    from kecae_aug.demo import DemoConfig, run_demo

    given = {
        k: getattr(options, k)
        for k in ("train_patients", "steps", "seeds")
        if getattr(options, k) is not None
    }
    run_demo(options.out, DemoConfig(**given), lambda line: print(line, flush=True))


def _exchange(options: argparse.Namespace) -> None:
    import torch

    from kecae_aug.data import Preparation, read_image
    from kecae_aug.sheet import contact_sheet
    from kecae_aug.weights import load_weights

    if options.out.exists():
        raise FileExistsError(f"--out {options.out} exists already; nothing is overwritten")
    model = load_weights(options.weights)
    prepare = Preparation.of(model)
    paths = (options.host, options.donor)
    sides = options.sides or [path.stem[-1:].upper() for path in paths]
    host, donor = (
        prepare(read_image(p), s if s in ("L", "R") else None)[None]
        for p, s in zip(paths, sides, strict=True)
    )
    with torch.no_grad():
        reconstruction, exchanged = model(host), model.exchange(host, donor, options.strength)
    columns = {
        "host X": host,
        "X^": reconstruction,
        "X' (decoder)": exchanged,
        "X' (host detail)": (host + exchanged - reconstruction).clamp(-1, 1),
        "key donor": donor,
    }
    contact_sheet(columns, cell=2 * model.config.image_size, path=options.out)
    print(options.out)


def _phantoms(options: argparse.Namespace) -> None:
    from kecae_aug.data.phantom import write_phantoms

    folder = write_phantoms(
        options.out,
        train_patients=options.train_patients,
        val_patients=options.val_patients,
        grades=options.grades,
        image_size=options.image_size,
        seed=options.seed,
    )
    print(folder)


def _info(options: argparse.Namespace) -> None:
    from kecae_aug.weights import bundled_weights, load_weights

    if options.weights is None:
        print("bundled weights:", ", ".join(bundled_weights()))
        return
    model = load_weights(options.weights)
    count = sum(p.numel() for p in model.parameters())
    print(
        json.dumps(
            {"model": model.config.to_dict(), "parameters": count, "metadata": model.metadata}, indent=2
        )
    )


if __name__ == "__main__":
    main()
