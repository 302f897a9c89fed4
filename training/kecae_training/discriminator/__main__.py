"""Train a discriminator (Eq. 5) or an oracle: the same thing, on other patients, with another architecture and seed.

    kecae-aug discriminator --data DIR --out runs/lite0                        # from ImageNet, half of the patients
    kecae-aug discriminator --data DIR --out runs/oracle --fold 1 --seed 1 --network lite1
    kecae-aug discriminator --data DIR --out runs/robust --init runs/lite0 --adversarial_radius 0.2 --epochs 2
    kecae-aug discriminator --data DIR --out runs/vgg --network vgg --epochs 24 --lr 2e-3 --batch_size 64

The same command goes on where a training stopped. In the folder: log.jsonl (validation after each epoch),
checkpoint.pt while it runs, and discriminator.safetensors, the best epoch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kecae_aug.data import Preprocessing, check_disjoint, open_radiographs
from kecae_aug.data.source import has_split
from kecae_aug.device import DEVICES, Device, choose_device
from kecae_aug.errors import reporting
from kecae_training.discriminator.learn import train_discriminator
from kecae_training.discriminator.model import (
    DiscriminatorConfig,
    in_fold,
    load_discriminator,
    save_discriminator,
)
from kecae_training.flags import join_lists
from kecae_training.images import to_uint8


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``kecae-aug discriminator`` or ``python -m kecae_training.discriminator``."""
    with reporting(
        "kecae-aug discriminator", "interrupted; the same command goes on after the last whole epoch"
    ):
        _command(argv)


def _command(argv: Sequence[str] | None) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="kecae-aug discriminator", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="radiographs: DIR/split/grade/name.png, or a table.csv")
    add("--split", default="train")
    add(
        "--val_split", default="val", help="validated after each epoch, where the data have it (default: val)"
    )
    add("--out", type=Path, required=True, help="folder for discriminator.safetensors")
    add("--no-mirror", action="store_true", help="leave right knees as they are")
    add("--no-fix-inverted", action="store_true", help="leave negatives as they are")
    add("--contrast", type=float, nargs=2, default=None, help="percentiles that become -1 and 1")
    add("--align", action="store_true", help="bring every joint line to one place")
    add("--device", type=Device, default="auto", help=f"{', '.join(DEVICES)} (default: auto)")
    parser.add_class_arguments(DiscriminatorConfig)
    args = parser.parse_args(join_lists(sys.argv[1:] if argv is None else argv, "--grades"))
    values = vars(parser.instantiate(args))
    config = DiscriminatorConfig(**{k: values[k] for k in asdict(DiscriminatorConfig())})
    device = choose_device(args.device)
    preprocessing = Preprocessing(
        config.image_size, not args.no_mirror, not args.no_fix_inverted, args.contrast, args.align
    )
    if config.init is not None:
        load_discriminator(config.init)  # a wrong folder is named before the images are read
    if (args.out / "discriminator.safetensors").exists():
        raise FileExistsError(
            f"--out {args.out}: already holds a discriminator; choose another folder or remove it"
        )
    options = {"grades": config.grades, "preprocessing": preprocessing}
    data = open_radiographs(args.data, args.split, **options)
    rows = [i for i, patient in enumerate(data.patients) if in_fold(patient, config.fold, config.folds)]
    print(f"{len(rows)} of {len(data)} images, fold {config.fold} of {config.folds}", flush=True)
    validation = None
    if args.val_split and args.val_split != args.split and has_split(args.data, args.val_split):
        val = open_radiographs(args.data, args.val_split, **options)
        check_disjoint(**{args.split: data.patients, args.val_split: val.patients})
        validation = to_uint8(val), val.targets
    images = to_uint8(data, rows)
    start = time.perf_counter()
    discriminator = train_discriminator(
        images,
        [data.targets[i] for i in rows],
        config,
        validation=validation,
        folder=args.out,
        device=device,
    )
    path = save_discriminator(
        discriminator,
        args.out,
        patients=[data.patients[i] for i in rows],
        data={"split": args.split, "images": len(rows), "preprocessing": preprocessing.to_dict()},
    )
    (args.out / "checkpoint.pt").unlink(missing_ok=True)
    print(f"{path}  ({time.perf_counter() - start:.0f} s) {discriminator.metadata.get('validation', '')}")


if __name__ == "__main__":
    main()
