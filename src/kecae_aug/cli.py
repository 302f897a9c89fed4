"""The command line: demo, exchange, generate, phantoms, info; with [train] discriminator, train and others."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kecae_aug.errors import reporting

TRAINING = {
    "discriminator": "kecae_training.discriminator.__main__",
    "panel": "kecae_training.discriminator.panel",
    "train": "kecae_training.train",
    "search": "kecae_training.search.__main__",
    "evaluate": "kecae_training.evaluate.__main__",
    "card": "kecae_training.evaluate.card",
    "reader-study": "kecae_training.reader_study.command",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with a message and status 1 on errors of the user's input."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0] in TRAINING:
        _training(args[0], args[1:])
        return
    options = _parser().parse_args(args)
    again = "; run it again to go on" if options.command == "generate" else ""
    with reporting(f"kecae-aug {options.command}", f"interrupted{again}"):
        options.run(options)


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
        epilog="Also, with pip install 'kecae-aug[train]': discriminator, panel, train, search, evaluate, card, "
        "reader-study (each with --help).",
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
        "--strength", type=float, default=1.0, help="fraction of the donor's key (default: %(default)s)"
    )
    exchange.add_argument(
        "--sides",
        default=None,
        help="of host and donor: LR, left,right, or one for both; by default from names such as 9001L.png",
    )
    exchange.add_argument(
        "--no-mirror", action="store_true", help="leave right knees as they are, whatever the weights expect"
    )
    _add_machine(exchange)
    exchange.set_defaults(run=_exchange)

    phantoms = commands.add_parser("phantoms", help="write phantom knees as a folder of train and val grades")
    phantoms.add_argument("--out", type=Path, required=True, help="folder; must be empty or absent")
    phantoms.add_argument("--train-patients", type=int, default=1000)
    phantoms.add_argument("--val-patients", type=int, default=200)
    phantoms.add_argument("--grades", type=int, nargs="+", default=[0, 2])
    phantoms.add_argument("--image-size", type=int, default=64)
    phantoms.add_argument("--seed", type=int, default=1)
    phantoms.set_defaults(run=_phantoms)

    _add_generate(commands)

    info = commands.add_parser("info", help="what a weights file is and expects")
    info.add_argument(
        "weights", nargs="?", help="bundled name, folder or Hub id; without it, the bundled ones are listed"
    )
    info.set_defaults(run=_info)
    return parser


def _add_machine(parser: argparse.ArgumentParser) -> None:
    from kecae_aug.device import DEVICES, PRECISIONS

    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="where the weights run (default: %(default)s)"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="32-true", help="of the weights (default: %(default)s)"
    )


def _add_generate(commands: Any) -> None:
    generate = commands.add_parser(
        "generate",
        help="write exchanged knees to disk, with a manifest; goes on where it was interrupted",
        description="Exchanged knees of a radiograph folder (train/<grade>/<patient><L|R>.png) as a folder for each "
        "grade, or as WebDataset shards. Run it again to go on. Under torchrun the processes share the work.",
    )
    add = generate.add_argument
    add("--data", type=Path, required=True, help="radiographs: DIR/split/grade/name.png, or a table.csv")
    add("--split", default=None, help="subfolder, such as train; without it grades are directly below --data")
    add("--out", type=Path, required=True, help="folder; empty, absent, or of this run")
    add("-n", "--pairs", type=int, required=True, help="how many exchanged knees (before a gate)")
    add("--weights", default="knee-kl02", help="bundled name, folder or Hub id (default: %(default)s)")
    add("--format", choices=("folder", "webdataset"), default="folder")
    add("--detail", choices=("host", "decoder"), default="host")
    add("--strength", type=float, nargs="+", default=[1.0], help="a number, or LOW HIGH (default: 1)")
    add("--balanced", action="store_true", help="level the grades of T and X' together")
    add("--image-size", type=int, default=None, help="of the written images (default: the weights')")
    add("--no-mirror", action="store_true", help="leave right knees as they are, whatever the weights expect")
    add("--skip-bad", action="store_true", help="leave out files that cannot be read, and list them")
    add(
        "--oracle",
        type=Path,
        nargs="+",
        default=[],
        help="folders of oracles (kecae-aug discriminator): gate their verdict",
    )
    add(
        "--min-probability",
        type=float,
        default=None,
        help="of the new grade, for an oracle to agree (default: 0.5)",
    )
    add("--max-distance", type=float, default=None, help="gate: mean absolute difference to the host, 0 to 1")
    add("--seed", type=int, default=0)
    add("--unit", type=int, default=1000, help="pairs a unit of work, and a shard")
    add("--batch-size", type=int, default=64)
    _add_machine(generate)
    generate.set_defaults(run=_generate)


def _generate(options: argparse.Namespace) -> None:
    import dataclasses

    from kecae_aug.data import Preprocessing, open_radiographs
    from kecae_aug.dataset import KeyExchangeDataset
    from kecae_aug.device import amp_dtype, choose_device
    from kecae_aug.engine.options import EngineOptions
    from kecae_aug.gate import Gate
    from kecae_aug.generate import generate
    from kecae_aug.weights.io import load_weights

    if len(options.strength) > 2:
        raise ValueError(f"--strength {options.strength}: accepted are a number, or LOW and HIGH")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if options.min_probability is not None and not options.oracle:
        raise ValueError(
            f"--min-probability {options.min_probability}: it is an oracle's; give --oracle, or leave it out"
        )
    device = choose_device(options.device, int(os.environ.get("LOCAL_RANK", 0)))
    model = load_weights(options.weights)
    preprocessing = Preprocessing.of(model)
    preprocessing = dataclasses.replace(
        preprocessing,
        image_size=options.image_size or preprocessing.image_size,
        mirror_right=preprocessing.mirror_right and not options.no_mirror,
    )
    knees = open_radiographs(
        options.data,
        options.split,
        grades=model.config.classes,
        preprocessing=preprocessing,
        on_bad="skip" if options.skip_bad else "raise",
    )
    for path, reason in knees.skipped:
        print(f"left out {path}: {reason}", file=sys.stderr)
    strength = options.strength[0] if len(options.strength) == 1 else tuple(options.strength)
    dataset = KeyExchangeDataset(
        knees,
        model,
        options.pairs,
        real=False,
        strength=strength,
        detail=options.detail,
        balanced=options.balanced,
        seed=options.seed,
        engine=EngineOptions(amp_dtype=amp_dtype(options.precision)),
        device=device,
    )
    gate = None
    if options.oracle or options.max_distance is not None:
        oracles = [
            _oracle(folder, model.config.classes, preprocessing, options.no_mirror)
            for folder in options.oracle
        ]
        gate = Gate(
            oracles,
            classes=model.config.classes,
            min_probability=0.5 if options.min_probability is None else options.min_probability,
            max_distance=options.max_distance,
        )
    manifest = generate(
        dataset,
        options.out,
        format=options.format,
        gate=gate,
        unit=options.unit,
        batch_size=options.batch_size,
        rank=rank,
        world_size=world_size,
        facts={
            "preprocessing": repr(preprocessing),
            "oracles": [str(path) for path in options.oracle],
            **({} if options.precision == "32-true" else {"precision": options.precision}),
        },
        say=lambda line: print(f"rank {rank}: {line}" if world_size > 1 else line, flush=True),
    )
    print(manifest or f"rank {rank}: done; other ranks are still at work")


def _oracle(folder: Path, classes: tuple[str, ...], preprocessing: Any, mirror_overridden: bool) -> Any:
    """An oracle as `kecae-aug discriminator` writes it, of images like these; their architectures are part of [train]."""
    try:
        discriminator = importlib.import_module("kecae_training.discriminator")
    except ModuleNotFoundError as error:
        raise ValueError(f"--oracle: {error.name} is not installed; pip install 'kecae-aug[train]'") from None
    oracle = discriminator.load_discriminator(folder, classes)
    own = oracle.preprocessing
    if mirror_overridden and own is not None:  # then the user answers for the sides
        import dataclasses

        preprocessing = dataclasses.replace(preprocessing, mirror_right=own.mirror_right)
    discriminator.check_fits(oracle, f"--oracle {folder}", preprocessing=preprocessing)
    return oracle


def _demo(options: argparse.Namespace) -> None:
    from kecae_aug.phantom.demo import DemoConfig, run_demo

    given = {
        k: getattr(options, k)
        for k in ("train_patients", "steps", "seeds")
        if getattr(options, k) is not None
    }
    run_demo(options.out, DemoConfig(**given), lambda line: print(line, flush=True))


def _exchange(options: argparse.Namespace) -> None:
    import dataclasses

    import torch

    from kecae_aug.data import Preprocessing, read_image
    from kecae_aug.device import autocast, choose_device
    from kecae_aug.engine.exchange import host_detail
    from kecae_aug.sheet import contact_sheet
    from kecae_aug.weights.io import load_weights

    if options.out.exists():
        raise FileExistsError(f"--out {options.out} exists already; nothing is overwritten")
    device = choose_device(options.device)
    given = None if options.sides is None else _given_sides(options.sides)
    if given is not None and options.no_mirror:
        raise ValueError(f"--sides {options.sides}: with --no-mirror no knee is turned; give one of them")
    model = load_weights(options.weights, device=device)
    prepare = Preprocessing.of(model)
    prepare = dataclasses.replace(prepare, mirror_right=prepare.mirror_right and not options.no_mirror)
    paths = (options.host, options.donor)
    sides: Sequence[str | None] = given or [_named_side(path) for path in paths]
    if prepare.mirror_right and None in sides:
        unknown = ", ".join(path.name for path, side in zip(paths, sides, strict=True) if side is None)
        raise ValueError(
            f"{unknown}: no side in the name (<patient><L|R>, such as 9001L.png), and these weights read right knees "
            "mirrored; give --sides LR (host, donor), or --no-mirror for images that are as the weights want them"
        )
    host, donor = (
        prepare(read_image(p), side)[None].to(device) for p, side in zip(paths, sides, strict=True)
    )
    with torch.no_grad(), autocast(device, options.precision):
        reconstruction, exchanged = model(host), model.exchange(host, donor, options.strength)
    columns = {
        "host X": host,
        "X^": reconstruction,
        "X' (decoder)": exchanged,
        "X' (host detail)": host_detail(host, exchanged, reconstruction),
        "key donor": donor,
    }
    contact_sheet(columns, cell=2 * model.config.image_size, path=options.out)
    print(options.out)


def _given_sides(text: str) -> list[str]:
    """``--sides``: L or R (left, right) of host and donor, or one for both, in any case."""
    from kecae_aug.data.folder import SIDES

    words = [word for word in re.split(r"[\s,;/]+", text.strip().upper()) if word]
    if len(words) == 1 and set(words[0]) <= {"L", "R"}:
        words = list(words[0])
    sides = [SIDES.get(word) for word in words]
    found = [side for side in sides if side is not None]
    if len(found) < len(sides) or len(found) not in (1, 2):
        raise ValueError(
            f"--sides {text!r}: accepted are L or R (left, right) for host and donor, such as LR, l,r or left,right, or one "
            "for both"
        )
    if len(found) == 1:
        print(f"--sides {text}: host and donor are both taken for {found[0]} knees", file=sys.stderr)
    return found if len(found) == 2 else found * 2


def _named_side(path: Path) -> str | None:
    """The side in a name of the documented pattern, None where it says none or is another name."""
    from kecae_aug.data.folder import PATTERN, SIDES

    match = re.fullmatch(PATTERN, path.stem)
    return SIDES[match["side"] or ""] if match else None


def _phantoms(options: argparse.Namespace) -> None:
    from kecae_aug.phantom import write_phantoms

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
    from kecae_aug.weights.io import bundled_weights, load_weights

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
