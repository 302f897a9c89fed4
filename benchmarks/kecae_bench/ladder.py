"""How well the grade is read: by each discriminator, by a panel of them, from hK and from hN.

    python -m kecae_bench.ladder --data DIR --discriminators runs/lite0 runs/panel --radius 0.2
    python -m kecae_bench.ladder --data DIR --weights knee-kl02

What a KECAE can exchange is what its key knows, and a key learns no more than its teacher does. Each line is one rung of the
ladder in docs/training.md: AUROC and accuracy of one grade against another, and quadratic kappa over all grades, on patients
that none of them has seen, with 95 % intervals over patients. Of a discriminator also on frames that show 1 / 0.6 times as
much (padded, then shrunk: half of them continued by the border, half black), and under an attack of its own. Of weights,
linear probes on hK and hN, cross-validated over patients. Appends JSON lines to benchmarks/results/ladder.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kecae_aug.data import Preprocessing, check_disjoint, open_radiographs
from kecae_aug.device import choose_device
from kecae_aug.engine.exchange import resize
from kecae_aug.errors import reporting
from kecae_aug.weights.io import load_weights
from kecae_bench.key_probe import encode_keys
from kecae_bench.record import RESULTS, read_lines, record
from kecae_bench.report.tables import render_table
from kecae_training.bootstrap import Bootstrap, cohen_kappa, count_confusions, summary, weighted_auroc
from kecae_training.discriminator import device_of, predict
from kecae_training.discriminator.adversarial import l2_attack, radius_at
from kecae_training.discriminator.measure import pair_scores
from kecae_training.discriminator.panel import load_panel
from kecae_training.evaluate.probes import cross_predict
from kecae_training.images import to_float, to_uint8

WIDE = 0.6
LATENTS: dict[Literal["key", "non_key"], str] = {"key": "hK", "non_key": "hN"}


def widen(images: Tensor, fraction: float = WIDE) -> Tensor:
    """(N, 1, S, S) knees shrunk to ``fraction`` of the side; around them their border, continued, or black, in turn."""
    size = images.shape[-1]
    margin = round(size * (1 / fraction - 1) / 2)
    continued = F.pad(images[::2], (margin,) * 4, mode="replicate")
    black = F.pad(images[1::2], (margin,) * 4, value=-1.0)
    out = torch.empty_like(images)
    out[::2] = resize(continued, (size, size))
    out[1::2] = resize(black, (size, size))
    return out


def read_figures(
    posterior: Tensor, targets: Tensor, grades: Sequence[str], pair: Sequence[str], boot: Bootstrap
) -> dict[str, Any]:
    """AUROC and accuracy of the pair, and kappa of all grades, of (N, K) probabilities."""
    first, second = (list(grades).index(g) for g in pair)
    labels = targets.numpy()
    rows = (labels == first) | (labels == second)
    score, is_second = pair_scores(posterior, first, second), (labels == second).astype(np.int64)
    found = {
        "auroc": summary(weighted_auroc(score[rows], is_second[rows] == 1, boot.weights[:, rows])),
        "accuracy": summary(boot.mean((score > 0.5) == is_second, rows)),
    }
    if len(grades) > 2:
        counts = count_confusions(boot.weights, labels, posterior.argmax(1).numpy(), len(grades))
        found["kappa"] = summary(cohen_kappa(counts))
    return found


def attacked(network: nn.Module, images: Tensor, targets: Tensor, radius: float, steps: int = 10) -> Tensor:
    """Each image at its worst place within ``radius`` (at 128 px) for this network."""
    reach, device = radius_at(radius, images.shape[-1]), device_of(network)
    parts = zip(images.split(32), targets.split(32), strict=True)
    return torch.cat([l2_attack(network, x.to(device), y.to(device), reach, steps) for x, y in parts])


def weights_figures(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Linear probes of the pair on hK and hN."""
    model = load_weights(name)
    data = open_radiographs(args.data, args.split, grades=args.pair, preprocessing=Preprocessing.of(model))
    images, device = to_uint8(data), choose_device(args.device)
    labels, boot = np.asarray(data.targets), Bootstrap(data.patients)
    found: dict[str, Any] = {}
    for latent in LATENTS:
        x = encode_keys(model, images, device, latent)
        score = cross_predict("linear", x, labels, list(data.patients), 0, "decision_function")
        if score is None:
            raise ValueError(
                f"--data {args.data}: too few patients of {args.pair} in {args.split!r} for a probe"
            )
        found[latent] = {
            "auroc": summary(weighted_auroc(score, labels == 1, boot.weights)),
            "accuracy": summary(boot.mean((score > 0) == labels)),
        }
    return {"weights": name, "images": len(data), **found}


def discriminator_figures(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """A discriminator's or a panel's reading of the split, of wide frames of it, and under attack."""
    panel = load_panel(folder).to(choose_device(args.device))
    preprocessing = panel.preprocessing or Preprocessing(panel.image_size)
    data = open_radiographs(args.data, args.split, grades=panel.classes, preprocessing=preprocessing)
    check_disjoint(**{folder.name: panel.patients, args.split: data.patients})
    images, targets, boot = to_float(to_uint8(data)), torch.tensor(data.targets), Bootstrap(data.patients)

    def figures(x: Tensor) -> dict[str, Any]:
        return read_figures(predict(panel, x), targets, panel.classes, args.pair, boot)

    members = [m.config for m in panel.discriminators]
    line = {
        "discriminator": folder.name,
        "members": [
            f"{c.network} {c.image_size} px, grades {','.join(c.grades)}, fold {c.fold} of {c.folds}, seed {c.seed}"
            + (f", radius {c.adversarial_radius:g}" if c.adversarial_radius else "")
            for c in members
        ],
        "temperature": panel.temperature,
        "images": len(data),
        "clean": figures(images),
        "wide": figures(widen(images)),
    }
    if args.radius and len(members) == 1:
        line["attacked"] = {"radius": args.radius, **figures(attacked(panel, images, targets, args.radius))}
    return line


def make_block() -> str:
    """The table of docs/training.md, from the committed lines."""

    def cell(figure: Mapping[str, Any]) -> str:
        return f"{figure['mean']:.3f} ({figure['low']:.3f}–{figure['high']:.3f})"

    def mean(figures: Mapping[str, Any] | None, name: str) -> str:
        return "" if figures is None else f"{figures[name]['mean']:.3f}"

    rows = []
    for line in read_lines(RESULTS / "ladder.jsonl"):
        if "weights" in line:
            rows += [
                (
                    f"{line['note']}, {latent}",
                    cell(line[part]["auroc"]),
                    cell(line[part]["accuracy"]),
                    "",
                    "",
                    "",
                )
                for part, latent in LATENTS.items()
            ]
            continue
        clean = line["clean"]
        more = (mean(clean, "kappa"), mean(line["wide"], "auroc"), mean(line.get("attacked"), "auroc"))
        rows.append((line["note"], cell(clean["auroc"]), cell(clean["accuracy"]), *more))
    return render_table(("", "AUROC", "accuracy", "kappa", "AUROC, wide", "attacked"), rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kecae_bench.ladder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True)
    add("--split", default="val")
    add("--pair", nargs=2, default=("0", "2"), help="the two grades (default: 0 2)")
    add("--discriminators", type=Path, nargs="*", default=[], help="folders of discriminators or panels")
    add("--weights", nargs="*", default=[], help="names or folders of weights")
    add("--radius", type=float, default=0.0, help="of the attack, at 128 px; 0 for none")
    add("--device", default="auto")
    add("--note", default="", help="what this rung is, in words")
    add("--out", type=Path, default=None)
    args = parser.parse_args(argv)
    with reporting("python -m kecae_bench.ladder"):
        for folder in args.discriminators:
            record("ladder", {"note": args.note, **discriminator_figures(folder, args)}, args.out)
        for name in args.weights:
            record("ladder", {"note": args.note, **weights_figures(name, args)}, args.out)


if __name__ == "__main__":
    main()
