"""Can weights help a classifier at all? Their reconstructions, and their exchanged knees, *added* to each batch.

    python benchmarks/reconstruction_control.py --data ../shared/data/knee --weights runs/knee/weights

A small classifier from scratch, three arms, the same seeds in each:

    T          real knees
    T + X^     the same, and reconstructions of some of them with their own labels: what decoding costs
    T'         the same, and exchanged knees (X') with their donors' labels

Steps, real knees a step (class-balanced, the same rows with the same classical augmentation in all arms of a seed) and
optimiser are equal; only what is added differs. Judged on the split `val`, whose patients are others.

Each run appends one JSON line to --out, with its settings: started again, the study goes on where it stopped, and
T, which no weights play a part in, is taken from earlier studies of the same settings and images. At the end a summary
is printed and appended: differences from T with 95 % intervals over seeds and patients drawn together.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from kecae_aug import KECAE, load_weights
from kecae_aug.data import Preparation, check_disjoint, open_radiographs
from kecae_aug.inference import FastKECAE
from kecae_aug.weights import weights_sha256
from kecae_training.augment import augment
from kecae_training.checkpoint import environment, fingerprint
from kecae_training.images import to_float, to_uint8
from kecae_training.networks import NETWORKS, build
from kecae_training.validity.measures import psnr
from machine import CPU, add_device, add_precision, autocast, of_device, to_device
from paired import METRICS, Scores, compared, table
from record import PROJECT, Log, knee_data

ARMS = ("T", "T + X^", "T'")
VERSION = 1  # of the procedure: runs of another one are not reused
BARS = {"train": 34.0, "val": 30.0}  # dB, PSNR of X^ at 128 px (issue 4)


@dataclass
class Knees:
    """A split in memory: (N, 1, S, S) uint8, class indices (N,), N patients."""

    images: Tensor
    labels: Tensor
    patients: list[str]

    @cached_property
    def members(self) -> list[list[int]]:
        """Rows of every grade."""
        return [(self.labels == c).nonzero()[:, 0].tolist() for c in range(int(self.labels.max()) + 1)]


class Decoded:
    """Latents and reconstructions of a split, made once; exchanged knees then cost one decoding.

    Attributes:
        reconstruction: (N, 1, S, S) float16 in [-1, 1], X^.
        psnr: mean over the images, in dB.
    """

    def __init__(self, model: FastKECAE, knees: Knees, batch_size: int = 64) -> None:
        self.model, self.knees = model, knees
        keys, non_keys, decoded, ratios = [], [], [], []
        for part in knees.images.split(batch_size):
            real = to_float(part.to(model.device))
            latents = model.encode(real)
            out = model.decode(latents.sum)
            ratios.append(psnr(out, real).cpu())
            for kept, value in ((keys, latents.key), (non_keys, latents.non_key), (decoded, out.half())):
                kept.append(value.cpu())
        self.key, self.non_key, self.reconstruction = torch.cat(keys), torch.cat(non_keys), torch.cat(decoded)
        self.psnr = round(float(torch.cat(ratios).mean()), 2)

    def exchanged(self, rows: Tensor, donors: Tensor, detail: str, strength: float) -> Tensor:
        """X' of rows (B,) with the keys of donors (B,): D(hN + (1 - s) hK + s hK'), or the host and its change."""
        key = (1 - strength) * self.key[rows] + strength * self.key[donors]
        new = self.model.decode((self.non_key[rows] + key).to(self.model.device)).cpu()
        if detail == "decoder":
            return new
        real, own = to_float(self.knees.images[rows]), self.reconstruction[rows].float()
        return (real + new - own).clamp(-1, 1)


def donors_of(rows: Tensor, knees: Knees, generator: torch.Generator) -> Tensor:
    """For each host a donor of another grade and patient: the grade uniform among the others, then the knee."""
    picks = []
    for row in rows.tolist():
        grades = [g for g in range(len(knees.members)) if g != int(knees.labels[row])]
        first, second = torch.rand(2, generator=generator).tolist()
        of = knees.members[grades[int(first * len(grades))]]
        at = int(second * len(of))
        # the next knee of another patient, as in LatentBank.random_donors
        tried = (of[(at + k) % len(of)] for k in range(len(of)))
        donor = next((i for i in tried if knees.patients[i] != knees.patients[row]), None)
        if donor is None:
            raise ValueError(f"data: training knee {row} has no donor of another patient in a grade")
        picks.append(donor)
    return torch.tensor(picks)


@dataclass
class Recipe:
    """How one classifier is trained; what a run is known by, with the images and the weights."""

    network: str = "vgg"
    steps: int = 1000
    batch_size: int = 48
    added: int = 24
    lr: float = 2e-3
    weight_decay: float = 0.02
    precision: str = "float32"
    detail: str = "decoder"
    strength: float = 1.0

    def of_arm(self, arm: str) -> dict[str, Any]:
        """What plays a part in an arm."""
        values = dict(vars(self))
        unused = {"T": ("added", "detail", "strength"), "T + X^": ("detail", "strength"), "T'": ()}[arm]
        return {name: value for name, value in values.items() if name not in unused}


def train(
    arm: str, seed: int, knees: Knees, decoded: Decoded | None, recipe: Recipe, device: torch.device = CPU
) -> nn.Module:
    """A classifier of one arm, in eval mode, on the device; the same arguments give the same one."""
    torch.manual_seed(seed)
    n_classes = int(knees.labels.max()) + 1
    net = build(recipe.network, n_classes).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.steps)
    balanced = 1.0 / torch.bincount(knees.labels)[knees.labels].double()
    # what is added has draws of its own, so that the real knees and their augmentation are those of T
    of_real, of_added = (torch.Generator().manual_seed(2 * seed + i) for i in range(2))
    for _ in trange(recipe.steps, desc=f"{arm}, seed {seed}", leave=False):
        rows = torch.multinomial(balanced, recipe.batch_size, replacement=True, generator=of_real)
        x, y = augment(to_float(knees.images[rows]), of_real), knees.labels[rows]
        if arm != "T":
            assert decoded is not None
            rows = rows[: recipe.added]
            if arm == "T + X^":
                new, labels = decoded.reconstruction[rows].float(), knees.labels[rows]
            else:
                donors = donors_of(rows, knees, of_added)
                new, labels = (
                    decoded.exchanged(rows, donors, recipe.detail, recipe.strength),
                    knees.labels[donors],
                )
            x, y = torch.cat([x, augment(new, of_added)]), torch.cat([y, labels])
        x, y = to_device(x, device), to_device(y, device)
        with autocast(device, recipe.precision):
            loss = F.cross_entropy(net(x.contiguous(memory_format=torch.channels_last)), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def scores_of(net: nn.Module, images: Tensor) -> Scores:
    """(N, K) probabilities, to four digits, as they are kept."""
    device = next(net.parameters()).device
    floats = (to_float(part.to(device)) for part in images.split(128))
    logits = torch.cat([net(x.contiguous(memory_format=torch.channels_last)) for x in floats])
    rounded: Scores = logits.cpu().double().softmax(1).numpy().round(4)
    return rounded


def read(data: Path, model: KECAE) -> dict[str, Knees]:
    """Both splits, prepared as the weights ask for it; refused where they share a patient."""
    options = {"grades": list(model.config.classes), "preparation": Preparation.of(model)}
    folders = {split: open_radiographs(data, split, **options) for split in ("train", "val")}
    check_disjoint(**{split: folder.patients for split, folder in folders.items()})
    return {s: Knees(to_uint8(f), torch.tensor(f.targets), list(f.patients)) for s, f in folders.items()}


def study(
    weights: str,
    data: Path,
    out: Path,
    arms: Sequence[str],
    seeds: Sequence[int],
    recipe: Recipe,
    device: torch.device = CPU,
) -> dict[str, Any]:
    """Train what is not in ``out`` yet, and compare; the summary that is also appended there."""
    model = load_weights(weights)
    sets, log = read(data, model), Log(out)
    train_set, val = sets["train"], sets["val"]
    sha256 = model.metadata.get("weights", {}).get("sha256") or weights_sha256(model)
    fast = FastKECAE(model.eval()).to(device)
    decoded = Decoded(fast, train_set)
    quality = {"train": decoded.psnr, "val": Decoded(fast, val).psnr}
    print(
        f"PSNR of X^: {quality['train']} dB on training knees, {quality['val']} dB on val knees", flush=True
    )
    images = {split: fingerprint(knees.images, knees.labels) for split, knees in sets.items()}
    scores: dict[str, list[Scores]] = {}
    for seed in seeds:
        for arm in arms:
            settings = {
                "version": VERSION,
                "images": images,
                "classes": list(model.config.classes),
                **recipe.of_arm(arm),
                **of_device(device),
            }
            if arm != "T":
                settings["weights"] = sha256
            line = log.run(arm, seed, settings)
            if line is None:
                start = time.perf_counter()
                said = scores_of(train(arm, seed, train_set, decoded, recipe, device), val.images)
                line = {
                    "kind": "run",
                    "date": date.today().isoformat(),
                    "arm": arm,
                    "seed": seed,
                    **{name: round(metric(said, val.labels.numpy()), 4) for name, metric in METRICS.items()},
                    "seconds": round(time.perf_counter() - start),
                    "settings": settings,
                    "environment": environment(),
                    "scores": said[:, 1:].tolist(),  # of all grades but the first, whose share is the rest
                }
                log.append(line)
            kept = np.asarray(line["scores"])
            scores.setdefault(arm, []).append(np.concatenate([1 - kept.sum(1, keepdims=True), kept], 1))
            print(", ".join(f"{k} {line[k]}" for k in ("arm", "seed", *METRICS, "seconds")), flush=True)
    facts = {
        "kind": "summary",
        "date": date.today().isoformat(),
        "weights": weights,
        "sha256": sha256,
        "psnr": quality,
        "val": {"images": len(val.labels), "patients": len(set(val.patients))},
        "seeds": list(seeds),
        "settings": {
            "image_size": train_set.images.shape[-1],
            "images": images,
            **vars(recipe),
            **of_device(device),
        },
    }
    summary = {**facts, **compared(scores, val.labels.numpy(), val.patients), "environment": environment()}
    log.append(summary)
    return summary


def told(summary: dict[str, Any]) -> str:
    """The summary as a Markdown table and plain sentences."""
    lines = [table(summary), ""]
    val, of = summary["val"], summary["settings"]
    basis = (
        f"{len(summary['seeds'])} seeds, {val['images']} val knees of {val['patients']} patients, {of['image_size']} px, "
        f"{of['network']}, {of['steps']} steps of {of['batch_size']} knees and {of['added']} added"
    )
    for arm, by in summary["minus_T"].items():
        d = by["accuracy"]
        verdict = (
            "costs accuracy"
            if d["high"] < 0
            else "helps"
            if d["low"] > 0
            else "shows neither a loss nor a gain"
        )
        lines.append(
            f"{arm} {verdict}: {100 * d['mean']:+.1f} points of accuracy against T (95 % interval {100 * d['low']:+.1f} to "
            f"{100 * d['high']:+.1f}; {basis})."
        )
    for split, bar in BARS.items():
        psnr_of = summary["psnr"][split]
        lines.append(
            f"X^ of {split} knees: {psnr_of} dB, {'at or above' if psnr_of >= bar else 'below'} the bar of {bar:g}."
        )
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    recipe = Recipe()
    parser.add_argument("--weights", default="knee-kl02", help="bundled name, folder or Hub id")
    parser.add_argument(
        "--data",
        type=Path,
        default=knee_data(),
        help="folder of train/ and val/, each with a folder a grade (default: KECAE_KNEE_DATA)",
    )
    parser.add_argument(
        "--out", type=Path, default=PROJECT / "benchmarks/results/reconstruction_control.jsonl"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="T is always among them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--network", choices=sorted(NETWORKS), default=recipe.network)
    parser.add_argument("--steps", type=int, default=recipe.steps, help="optimiser steps of each run")
    parser.add_argument("--batch-size", type=int, default=recipe.batch_size, help="real knees a step")
    parser.add_argument("--added", type=int, default=recipe.added, help="X^ or X' added to each step")
    add_device(parser)
    add_precision(parser, recipe.precision)
    parser.add_argument("--detail", choices=("decoder", "host"), default=recipe.detail, help="of X'")
    parser.add_argument("--strength", type=float, default=recipe.strength, help="of the exchange")
    args = parser.parse_args(argv)
    if args.steps < 1 or not 1 <= args.added <= args.batch_size:
        parser.error(
            f"--steps {args.steps}, --added {args.added}: accepted are 1 or more steps, and 1 to --batch-size = "
            f"{args.batch_size} images added, which are made of the batch's own knees"
        )
    if len(set(args.seeds)) < len(args.seeds):
        parser.error(f"--seeds {args.seeds}: a seed twice is the same run twice")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    recipe = Recipe(
        network=args.network,
        steps=args.steps,
        batch_size=args.batch_size,
        added=args.added,
        precision=args.precision,
        detail=args.detail,
        strength=args.strength,
    )
    arms = [arm for arm in ARMS if arm in {"T", *args.arms}]
    print(told(study(args.weights, args.data, args.out, arms, args.seeds, recipe, args.device)))


if __name__ == "__main__":
    main()
