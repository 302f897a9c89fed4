"""`kecae-aug demo`: the whole line on phantom knees, offline, in minutes on two cores.

A small classifier learns KL-0 against KL-2 from few labelled knees: from T, from T with reconstructions
added (the control: it gets the same extra images, without an exchange), and from T' = T with exchanged
knees added. Equal optimiser steps, equal real knees a step. The phantom's truth is known, so a JSW measurement also
says whether the exchange moved the joint space where it should be.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kecae_aug.donors import draw_donors
from kecae_aug.engine.exchange import host_detail
from kecae_aug.engine.model import KECAE
from kecae_aug.files import list_visible
from kecae_aug.phantom import PhantomKnees
from kecae_aug.phantom.jsw import joint_space_width
from kecae_aug.phantom.report import write_report
from kecae_aug.sheet import contact_sheet
from kecae_aug.transform import KeyExchangeAugment
from kecae_aug.weights.io import load_weights

ARMS = ("T", "T + X^", "T' = T + X'")
SEEN_SEED = 1  # the bundled phantom weights were trained on the patients of this seed
MARKER = "results.json"


@dataclass(frozen=True)
class DemoConfig:
    """Size of the demo.

    Args:
        train_patients: labelled patients that the classifier learns from, two knees each.
        test_patients: patients that it is tested on.
        steps: optimiser steps of every arm.
        batch_size: real knees a step.
        seeds: repetitions; each draws initial weights, order and augmentation anew.
        weights: of the KECAE; ``"phantom"`` is bundled.
    """

    train_patients: int = 40
    test_patients: int = 300
    steps: int = 150
    batch_size: int = 32
    seeds: int = 3
    weights: str = "phantom"


@dataclass
class DemoKnees:
    """Phantoms in memory: images (N, 1, S, S) in [-1, 1], labels (N,), patients and sides."""

    images: Tensor
    labels: Tensor
    patients: list[str]
    sides: list[Any]

    @classmethod
    def draw(cls, n_patients: int, size: int, seed: int) -> DemoKnees:
        """Render the two knees of ``n_patients`` patients."""
        data = PhantomKnees(n_patients, (0, 2), size, seed, mirror_right=True)
        images = torch.stack([data[i][0] for i in range(len(data))])
        return cls(images, torch.tensor(data.targets), list(data.patients), list(data.sides))


def run_demo(out: str | Path, config: DemoConfig = DemoConfig(), say: Callable[[str], None] = print) -> Path:
    """Run the demo and write its report.

    Args:
        out: folder for ``report.html``, ``contact_sheet.png`` and ``results.json``; a demo that is already
            there is replaced, any other folder that is not empty is refused.
        config: its size.
        say: takes progress lines.

    Returns:
        The report's path.

    Raises:
        FileExistsError: ``out`` holds something else.
    """
    out = Path(out)
    if list_visible(out) and not (out / MARKER).is_file():
        raise FileExistsError(
            f"out={str(out)!r} exists and is not a demo's folder: choose another with --out"
        )
    start = time.perf_counter()
    model = load_weights(config.weights)
    size = model.config.image_size
    say(
        f"1/4  drawing phantom knees: {config.train_patients} patients to learn from, {config.test_patients} to test"
    )
    train = DemoKnees.draw(config.train_patients, size, SEEN_SEED + 1)
    test = DemoKnees.draw(config.test_patients, size, SEEN_SEED + 2)

    say("2/4  exchanging keys")
    exchanged = exchange_test(model, test)
    columns, texts = sheet_columns(test, exchanged)
    say("3/4  training the classifier")
    right = {arm: _repeat(arm, model, train, test, config, say) for arm in ARMS}

    say("4/4  writing the report")
    result = {
        "config": asdict(config),
        "weights": model.metadata.get("weights", {}),
        "accuracy": {arm: _interval(rows, test.patients) for arm, rows in right.items()},
        "difference_to_T": {arm: _interval(right[arm] - right["T"], test.patients) for arm in ARMS[1:]},
        "joint_space": joint_space(test, exchanged),
        "psnr_of_reconstruction_db": round(_psnr(exchanged["X^"], test.images), 2),
        "seconds": round(time.perf_counter() - start, 1),
    }
    out.mkdir(parents=True, exist_ok=True)
    sheet = contact_sheet(columns, texts, path=out / "contact_sheet.png")
    (out / MARKER).write_text(json.dumps(result, indent=2) + "\n")
    path = write_report(result, sheet, out / "report.html")
    say(_table(result))
    say(f"\n{result['seconds']} s. Open {path} (contact sheet: {out / 'contact_sheet.png'})")
    return path


@torch.no_grad()
def exchange_test(model: KECAE, knees: DemoKnees) -> dict[str, Tensor]:
    """Every test knee as a host once: donors (rows), X^, X' as decoded, and X' in the host's detail."""
    generator = torch.Generator().manual_seed(0)
    donors = draw_donors(knees.labels, patients=knees.patients, generator=generator)
    key, non_key = model.encode(knees.images)
    reconstruction, decoded = model.decode(non_key + key), model.decode(non_key + key[donors])
    host = host_detail(knees.images, decoded, reconstruction)
    return {"donors": donors, "X^": reconstruction, "decoder": decoded, "host": host}


def joint_space(knees: DemoKnees, exchanged: dict[str, Tensor]) -> dict[str, Any]:
    """Medial joint-space width by the JSW measurement, in percent of the image's height, for each direction.

    ``moved`` is the fraction of the gap between the grades that the exchange covers: 1 is exactly right.
    """
    widths = {
        name: joint_space_width(images[:, 0], "L")[0] * 100
        for name, images in (
            ("real", knees.images),
            ("X^", exchanged["X^"]),
            ("decoder", exchanged["decoder"]),
            ("host", exchanged["host"]),
        )
    }
    donors = exchanged["donors"].numpy()
    result = {}
    for label, direction in ((0, "0 -> 2"), (1, "2 -> 0")):
        rows = np.flatnonzero(knees.labels.numpy() == label)
        means = {name: float(np.nanmean(w[rows])) for name, w in widths.items()}
        means["donor"] = float(np.nanmean(widths["real"][donors[rows]]))
        row = {name: round(value, 2) for name, value in means.items()}
        gap = means["donor"] - means["real"]
        result[direction] = {
            **row,
            "moved_decoder": round((means["decoder"] - means["X^"]) / gap, 2),
            "moved_host": round((means["host"] - means["real"]) / gap, 2),
        }
    return result


def classifier() -> nn.Module:
    """Four pooled 3x3 convolutions and a linear head: (B, 1, 64, 64) -> (B, 2) logits."""
    layers: list[nn.Module] = []
    before = 1
    for channels in (16, 32, 64, 64):
        layers += [
            nn.Conv2d(before, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        ]
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 2))


def fit(arm: str, model: KECAE, train: DemoKnees, config: DemoConfig, seed: int) -> nn.Module:
    """Train the classifier in one arm; the loop that a user has, with the line that the demo is about."""
    torch.manual_seed(seed)
    net = classifier()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=config.steps)
    augment = KeyExchangeAugment(model, p=1.0, detail="decoder", value_range=(-1, 1))
    for _ in range(config.steps):
        rows = torch.randint(len(train.images), (config.batch_size,))
        images, labels = train.images[rows], train.labels[rows]
        if arm == "T' = T + X'":
            new_images, new_labels = augment(images, labels)  # <- the line
            images, labels = torch.cat([images, new_images]), torch.cat([labels, new_labels])
        elif arm == "T + X^":
            with torch.no_grad():
                images, labels = torch.cat([images, model(images)]), torch.cat([labels, labels])
        loss = F.cross_entropy(net(_classical(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def _classical(images: Tensor) -> Tensor:
    """Standard augmentation, in every arm: a shift of up to 3 pixels and another exposure for each image."""
    n = len(images)
    theta = torch.eye(2, 3).repeat(n, 1, 1)
    theta[:, :, 2] = (torch.rand(n, 2) - 0.5) * 0.2
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return images * (0.8 + 0.4 * torch.rand(n, 1, 1, 1)) + 0.2 * torch.randn(n, 1, 1, 1)


def _repeat(
    arm: str, model: KECAE, train: DemoKnees, test: DemoKnees, config: DemoConfig, say: Callable[[str], None]
) -> np.ndarray[Any, Any]:
    """(seeds, N) bool: which test knees each repetition gets right."""
    right = []
    for seed in range(config.seeds):
        net = fit(arm, model, train, config, seed)
        with torch.no_grad():
            guess = torch.cat([net(part).argmax(1) for part in test.images.split(200)])
        right.append((guess == test.labels).numpy())
        say(f"     {arm:<12} seed {seed}: accuracy {right[-1].mean():.3f}")
    return np.stack(right).astype(float)


def _interval(rows: np.ndarray[Any, Any], patients: list[str]) -> dict[str, float]:
    """Mean of (seeds, N), with a 95 % interval over seeds and patients, both drawn with replacement."""
    rng = np.random.default_rng(0)
    ids = np.unique(patients, return_inverse=True)[1]
    by_patient = np.stack([np.bincount(ids, row) for row in rows])  # sums; every patient has two knees
    count = np.bincount(ids)
    draws = []
    for _ in range(1000):
        seeds, people = rng.integers(len(rows), size=len(rows)), rng.integers(len(count), size=len(count))
        draws.append(by_patient[seeds][:, people].mean(0).sum() / count[people].sum())
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"mean": round(float(rows.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _psnr(images: Tensor, reference: Tensor) -> float:
    return float((10 * torch.log10(4 / (images - reference).square().flatten(1).mean(1))).mean())


def sheet_columns(
    knees: DemoKnees, exchanged: dict[str, Tensor], n: int = 3
) -> tuple[dict[str, Tensor], list[str]]:
    """The first knees of each direction with all that is made of them."""
    labels = knees.labels
    picked = torch.cat([(labels == c).nonzero()[:n, 0] for c in (0, 1)])
    donors = exchanged["donors"][picked]
    columns = {
        "host X": knees.images[picked],
        "reconstruction X^": exchanged["X^"][picked],
        "X' (decoder)": exchanged["decoder"][picked],
        "X' (host detail)": exchanged["host"][picked],
        "key donor": knees.images[donors],
    }
    grade = ("KL 0", "KL 2")
    texts = [
        f"{grade[int(labels[i])]} host\nkey of {grade[int(labels[j])]}"
        for i, j in zip(picked, donors, strict=True)
    ]
    return columns, texts


def _table(result: dict[str, Any]) -> str:
    lines = [f"\n{'trained on':<14}{'accuracy':>10}   95 % interval      against T"]
    for arm, value in result["accuracy"].items():
        line = f"{arm:<14}{value['mean']:>10.3f}   {value['low']:.3f} to {value['high']:.3f}"
        if arm in result["difference_to_T"]:
            d = result["difference_to_T"][arm]
            line += f"    {d['mean']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})"
        lines.append(line)
    return "\n".join(lines)
