"""Contact sheets of an evaluation: a seeded sample of both directions, and the worst cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from kecae_aug.sheet import contact_sheet
from kecae_training.evaluate.evaluation import Evaluation
from kecae_training.evaluate.exchanged import Kind
from kecae_training.evaluate.identity import psnr_outside
from kecae_training.evaluate.measures import psnr

GAIN = 3.0  # of differences, so that a change of a tenth of the range can be seen


@dataclass(frozen=True)
class Sheet:
    """A picture and what it shows."""

    title: str
    text: str
    image: Image.Image


def sheets(run: Evaluation, kinds: Mapping[str, Kind], per_direction: int = 4, seed: int = 0) -> list[Sheet]:
    """The sheets of one weights file.

    Args:
        run: its evaluation.
        kinds: of X', by detail.
        per_direction: rows of each direction; as many worst cases.
        seed: of the sample.
    """
    decoder, host = run.exchanges.of(kinds["decoder"]), run.exchanges.of(kinds["host"])
    generator = torch.Generator().manual_seed(seed)
    sample = []
    for of in run.directions.values():
        rows = torch.from_numpy(of).nonzero()[:, 0]
        sample += rows[torch.randperm(len(rows), generator=generator)[:per_direction]].tolist()
    quality = psnr(decoder, run.knees.images)
    outside = psnr_outside(host, run.knees.images, run.joint)
    wrong = confidence_in_wrong(run, decoder)

    def sheet(title: str, text: str, rows: list[int], notes: Mapping[int, str] | None = None) -> Sheet:
        return Sheet(title, text, _draw(run, kinds, decoder, host, rows, notes or {}))

    worst = quality.argsort()[:per_direction].tolist()
    worst_host = outside.argsort()[:per_direction].tolist()
    fooled = wrong.argsort(descending=True)[:per_direction].tolist()
    return [
        sheet("A sample of each direction", "Drawn at random, not chosen.", sample),
        sheet(
            f"Worst: X' ({kinds['decoder']}) least like its host",
            "Lowest PSNR over the whole image.",
            worst,
            {i: f"{quality[i]:.1f} dB" for i in worst},
        ),
        sheet(
            f"Worst: X' ({kinds['host']}) most changed outside the joint",
            "Lowest PSNR outside the joint region, where nothing should change.",
            worst_host,
            {i: f"{outside[i]:.1f} dB" for i in worst_host},
        ),
        sheet(
            f"Worst: judged wrong most surely, X' ({kinds['decoder']})",
            "Lowest mean probability, over the oracles, of the donor's grade. The oracles may be wrong too.",
            fooled,
            {i: f"P(wanted) {1 - wrong[i]:.2f}" for i in fooled},
        ),
    ]


def confidence_in_wrong(run: Evaluation, images: Tensor) -> Tensor:
    """(N,) one minus the oracles' mean probability of the wanted grade."""
    seen = run.bench.see(images)
    mean = torch.stack([torch.from_numpy(p) for p in seen.values()]).mean(0)
    return 1 - mean.gather(1, run.wanted[:, None])[:, 0]


def _draw(
    run: Evaluation,
    kinds: Mapping[str, Kind],
    decoder: Tensor,
    host: Tensor,
    rows: list[int],
    notes: Mapping[int, str],
) -> Image.Image:
    images, x_hat, donors = run.knees.images, run.exchanges.reconstruction, run.exchanges.donors
    columns = {
        "host X": images[rows],
        "X^": x_hat[rows],
        f"X' {kinds['decoder']}": decoder[rows],
        f"X' {kinds['host']}": host[rows],
        f"X' - X^, x {GAIN:g}": (GAIN * (decoder - x_hat)[rows]).clamp(-1, 1),
        "key donor": images[donors[rows]],
    }
    names = run.bench.classes
    texts = [
        f"{names[int(run.knees.labels[i])]} -> {names[int(run.wanted[i])]}\n{run.knees.files[i].rsplit('/', 1)[-1]}"
        + (f"\n{notes[i]}" if i in notes else "")
        for i in rows
    ]
    return contact_sheet(columns, texts)
