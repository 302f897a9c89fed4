"""What weights are worth, measured by what they have not seen: held-out judges on patients of another split.

    kecae-aug evaluate --weights runs/knee/weights --data DIR --judges runs/judge-vgg runs/judge-densenet \
        --guide runs/guide --out benchmarks/results/knee-kl02.jsonl

Each knee of the split is a host once, with a random donor of the other grade. Every figure is a mean with
a 95 % interval from a bootstrap over the hosts' patients. The guide's own rate is reported only to show
its gap to the judges: it certifies itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kecae_aug.model import KECAE
from kecae_aug.pairing import random_donors
from kecae_aug.weights import load_weights
from kecae_training.checkpoint import environment
from kecae_training.guide import Guide, load_guide
from kecae_training.judging import Bench
from kecae_training.measures import Knees, mean_of_rows, open_knees, psnr, ssim, with_interval
from kecae_training.robustness import DEGRADATIONS

GUIDE = "guide (certifies itself)"


@dataclass
class EvaluateConfig:
    """What is evaluated, on what, by whom.

    Args:
        weights: bundled name, folder or Hub id.
        data: folder of split/grade/name.
        split: subfolder whose knees are exchanged; no judge may have seen a patient of it.
        judges: folders of guides of other architecture and patients than the training's.
        guide: folder of the training's guide, for the gap.
        strengths: exchange strengths.
        seed: of the donors and the bootstrap.
        out: file to which one JSON line is appended.
        robustness: also judge X' (at the first strength), X^ and real images after 8-bit rounding, JPEG, blur and
            a shift; a flip that dies there was noise. A minute more.
    """

    weights: str
    data: Path
    judges: list[Path]
    split: str = "val"
    guide: Path | None = None
    strengths: list[float] = field(default_factory=lambda: [1.0])
    seed: int = 0
    out: Path | None = None
    robustness: bool = False


@torch.no_grad()
def exchange_all(
    model: KECAE, images: Tensor, donors: Tensor, strength: float, batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """X' of every host in both details: (decoder, host), each (N, 1, S, S)."""
    decoder, host = [], []
    for rows in torch.arange(len(images)).split(batch_size):
        own, other = model.encode(images[rows]), model.encode(images[donors[rows]])
        mixed = model.decode(own.non_key + (1 - strength) * own.key + strength * other.key)
        decoder.append(mixed)
        host.append((images[rows] + mixed - model.decode(own.sum)).clamp(-1, 1))
    return torch.cat(decoder), torch.cat(host)


@torch.no_grad()
def evaluate(
    model: KECAE,
    knees: Knees,
    judges: dict[str, Guide],
    guide: Guide | None = None,
    strengths: Sequence[float] = (1.0,),
    seed: int = 0,
    robustness: bool = False,
) -> dict[str, Any]:
    """All figures of a weights file on one set of knees.

    Args:
        model: the weights.
        knees: of patients that neither the weights nor the judges have seen.
        judges: name -> held-out judge.
        guide: the training's own, for the gap.
        strengths: of the exchange.
        seed: of donors and bootstrap.
        robustness: also judge after each small degradation, of X' at the first strength.
    """
    images, labels, patients = knees.images, knees.labels, knees.patients
    model = model.eval()
    generator = torch.Generator().manual_seed(seed)
    donors = random_donors(labels, patients=patients, generator=generator)
    wanted = labels[donors]
    reconstruction = torch.cat([model(part) for part in images.split(64)])
    bench = Bench(judges, images, labels, patients, seed)
    own = Bench({GUIDE: guide}, images, labels, patients, seed) if guide is not None else None

    def interval(values: Tensor) -> dict[str, Any]:
        return with_interval(lambda rows: mean_of_rows(values, rows), patients, seed)

    def judged(of: Tensor, grades: Tensor) -> dict[str, Any]:
        by_guide = own.judged(own.see(of), grades) if own is not None else {}
        return bench.judged(bench.see(of), grades) | by_guide

    result: dict[str, Any] = {
        "images": len(images),
        "per_class": dict(zip(model.config.classes, torch.bincount(labels).tolist(), strict=True)),
        "patients": len(set(patients)),
        "reconstruction": {
            "psnr": interval(psnr(reconstruction, images)),
            "ssim": interval(ssim(reconstruction, images)),
        },
        "real": judged(images, labels),
        "reconstructed": judged(reconstruction, labels),
        "exchanged": {},
    }
    if robustness:
        result["robustness"] = {
            "real": after_degradation(bench, images, labels),
            "reconstructed": after_degradation(bench, reconstruction, labels),
        }
    for strength in strengths:
        decoder, host = exchange_all(model, images, donors, strength)
        for detail, exchanged in (("decoder", decoder), ("host", host)):
            if robustness and strength == strengths[0]:
                result["robustness"][detail] = after_degradation(bench, exchanged, wanted)
            result["exchanged"][f"{detail} {strength:g}"] = {
                "change": interval((decoder - reconstruction).abs().flatten(1).mean(1)),
                "psnr_to_host": interval(psnr(exchanged, images)),
                "judges": judged(exchanged, wanted),
                **({"headline": bench.headline(bench.see(exchanged), wanted)} if bench.binary else {}),
            }
    result["follows"] = follows(model, knees, donors, generator)
    return result


def after_degradation(bench: Bench, images: Tensor, wanted: Tensor) -> dict[str, dict[str, Any]]:
    """What every judge says after each of :data:`~kecae_training.robustness.DEGRADATIONS`."""
    return {kind: bench.judged(bench.see(degrade(images)), wanted) for kind, degrade in DEGRADATIONS.items()}


@torch.no_grad()
def follows(
    model: KECAE, knees: Knees, donors: Tensor, generator: torch.Generator, n: int = 128
) -> dict[str, float]:
    """Mean absolute change of X' when only its donor, or only its host, is another knee of the same grade."""
    rows = torch.randperm(len(knees.images), generator=generator)[:n]
    labels = knees.labels

    def another(of: Tensor) -> Tensor:
        picks = []
        for row in of.tolist():
            same = ((labels == labels[row]) & (torch.arange(len(labels)) != row)).nonzero()[:, 0]
            picks.append(same[torch.randint(len(same), (), generator=generator)])
        return torch.stack(picks)

    host, donor = knees.images[rows], knees.images[donors[rows]]
    base = model.exchange(host, donor)
    by_donor = (model.exchange(host, knees.images[another(donors[rows])]) - base).abs().mean()
    by_host = (model.exchange(knees.images[another(rows)], donor) - base).abs().mean()
    return {"host": round(float(by_host), 4), "donor": round(float(by_donor), 4)}


def table(result: dict[str, Any], classes: Sequence[str]) -> str:
    """The figures as a Markdown table: agreement for each wanted grade, and AUROC, one row a kind of image."""

    def cell(value: dict[str, float]) -> str:
        return f"{value['mean']:.2f} ({value['low']:.2f}-{value['high']:.2f})"

    names = list(result["real"])
    lines = [
        "| images | " + " | ".join(f"{n}: says {' / '.join(classes)}, AUROC" for n in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    kinds = [("real", result["real"]), ("X^ (reconstructed, own label)", result["reconstructed"])]
    kinds += [(f"X' ({kind}, donor's label)", value["judges"]) for kind, value in result["exchanged"].items()]
    for kind, by in kinds:
        cells = []
        for name in names:
            says = " / ".join(cell(by[name][f"says_{c}"]) for c in classes)
            cells.append(says + (f", {cell(by[name]['auroc'])}" if "auroc" in by[name] else ""))
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``kecae-aug evaluate``."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="kecae-aug evaluate", description=__doc__)
    parser.add_class_arguments(EvaluateConfig)
    config = EvaluateConfig(**vars(parser.instantiate(parser.parse_args(argv))))
    start = time.perf_counter()
    model = load_weights(config.weights)
    knees = open_knees(model, config.data, config.split)
    judges = {path.name: load_guide(path, model.config.classes) for path in config.judges}
    guide = load_guide(config.guide, model.config.classes) if config.guide else None
    seen_by_guide = set(guide.metadata["patients"]) if guide else set()
    provenance = {}
    for name, judge in judges.items():
        seen = set(judge.metadata["patients"])
        both = seen & set(knees.patients)
        if both:
            raise SystemExit(
                f"judges: {name} was trained on {len(both)} patients of split {config.split!r} ({sorted(both)[:3]}, ...): "
                "it is not held out; train one on other patients (`kecae-aug guide --fold`)"
            )
        provenance[name] = {
            "network": judge.config.network,
            "patients": len(seen),
            "shared_with_guide": len(seen & seen_by_guide),
        }
    result = evaluate(model, knees, judges, guide, config.strengths, config.seed, config.robustness)
    line = {
        "weights": config.weights,
        "sha256": model.metadata.get("weights", {}).get("sha256"),
        "split": config.split,
        "seed": config.seed,
        "judges": provenance,
        **result,
        "seconds": round(time.perf_counter() - start, 1),
        "environment": environment(),
    }
    if config.out:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        with config.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
    print(json.dumps({k: line[k] for k in ("images", "patients", "reconstruction", "follows")}))
    print(table(result, model.config.classes))


if __name__ == "__main__":
    main()
