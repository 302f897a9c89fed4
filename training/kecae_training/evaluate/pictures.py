"""The pictures of an evaluation's page: contact sheets of a seeded sample and of the worst cases, and line charts as SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from kecae_aug.sheet import contact_sheet
from kecae_training.evaluate.evaluation import Evaluation
from kecae_training.evaluate.exchanges import Kind, psnr
from kecae_training.evaluate.identity import psnr_outside

GAIN = 3.0  # of differences, so that a change of a tenth of the range is visible
WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 30, 62
COLOURS = ("#1f5fa8", "#c2571a", "#3f7f3f", "#7a4b9a")
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # so that the curves differ without colour too
Point = tuple[float, Mapping[str, Any]]  # strength, figure


class Sheet(NamedTuple):
    """A picture and what it shows."""

    title: str
    text: str
    image: Image.Image


def draw_sheets(
    run: Evaluation, kinds: Mapping[str, Kind], per_direction: int = 4, seed: int = 0
) -> list[Sheet]:
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
        found = torch.from_numpy(of).nonzero()[:, 0]
        sample += found[torch.randperm(len(found), generator=generator)[:per_direction]].tolist()
    quality = psnr(decoder, run.knees.images)
    outside = psnr_outside(host, run.knees.images, run.joint)
    wrong = confidence_in_wrong(run, decoder)

    def sheet(title: str, text: str, indices: list[int], notes: Mapping[int, str] | None = None) -> Sheet:
        return Sheet(title, text, _draw(run, kinds, decoder, host, indices, notes or {}))

    worst = quality.argsort()[:per_direction].tolist()
    worst_host = outside.argsort()[:per_direction].tolist()
    confident = wrong.argsort(descending=True)[:per_direction].tolist()
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
            f"Worst: most confident wrong predictions, X' ({kinds['decoder']})",
            "Lowest mean probability, over the oracles, of the donor's grade. The oracles may be wrong too.",
            confident,
            {i: f"P(target) {1 - wrong[i]:.2f}" for i in confident},
        ),
    ]


def confidence_in_wrong(run: Evaluation, images: Tensor) -> Tensor:
    """(N,) one minus the oracles' mean probability of the target grade."""
    seen = run.bench.predict(images)
    mean = torch.stack([torch.from_numpy(p) for p in seen.values()]).mean(0)
    return 1 - mean.gather(1, run.target[:, None])[:, 0]


def _draw(
    run: Evaluation,
    kinds: Mapping[str, Kind],
    decoder: Tensor,
    host: Tensor,
    indices: list[int],
    notes: Mapping[int, str],
) -> Image.Image:
    images, x_hat, donors = run.knees.images, run.exchanges.reconstruction, run.exchanges.donors
    columns = {
        "host X": images[indices],
        "X^": x_hat[indices],
        f"X' {kinds['decoder']}": decoder[indices],
        f"X' {kinds['host']}": host[indices],
        f"X' - X^, x {GAIN:g}": (GAIN * (decoder - x_hat)[indices]).clamp(-1, 1),
        "key donor": images[donors[indices]],
    }
    names = run.bench.classes
    texts = [
        f"{names[int(run.knees.labels[i])]} -> {names[int(run.target[i])]}\n{run.knees.files[i].rsplit('/', 1)[-1]}"
        + (f"\n{notes[i]}" if i in notes else "")
        for i in indices
    ]
    return contact_sheet(columns, texts)


def line_chart(
    title: str, curves: Mapping[str, Sequence[Point]], limit: float | None = None, label: str = "strength"
) -> str:
    """The SVG.

    Args:
        title: above the chart.
        curves: name -> points; a figure is mean, low, high.
        limit: of a criterion, drawn as a level line.
        label: of the horizontal axis.
    """
    points = [p for curve in curves.values() for p in curve if p[1].get("mean") is not None]
    if not points:
        return ""
    values = [v for _, f in points for v in (f["mean"], f["low"], f["high"]) if v is not None]
    values += [] if limit is None else [limit]
    low, high = min(0.0, *values), max(1.0, *values)
    # an interval may be far wider than the curve; the axis shows the curve, and the band is cut
    means = [f["mean"] for _, f in points] + ([] if limit is None else [limit])
    span = max(1.0, max(means) - min(0.0, *means))
    low, high = max(low, min(0.0, *means) - span / 2), min(high, max(1.0, *means) + span / 2)
    first, last = min(p[0] for p in points), max(p[0] for p in points)

    def x(strength: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((strength - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        clipped = min(max(value, low), high)
        return float(TOP + (HEIGHT - TOP - BOTTOM) * (1 - (clipped - low) / (high - low)))

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{html.escape(title)}">',
        f'<text x="{LEFT}" y="16" class="t">{html.escape(title)}</text>',
    ]
    for value in _ticks(low, high):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for strength in sorted({p[0] for p in points}):
        parts.append(
            f'<text x="{x(strength):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{strength:g}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - BOTTOM + 32}" text-anchor="middle">{html.escape(label)}</text>'
    )
    if limit is not None:
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(limit):.1f}" y2="{y(limit):.1f}" stroke="#1c1c1f" '
            f'stroke-width="1.5"/><text x="{WIDTH - RIGHT}" y="{y(limit) - 4:.1f}" text-anchor="end">'
            f"criterion {limit:g}</text>"
        )
    for i, (name, curve) in enumerate(curves.items()):
        shown = sorted((p for p in curve if p[1].get("mean") is not None), key=lambda p: p[0])
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
        band = [(x(s), y(f["high"])) for s, f in shown if f["high"] is not None]
        band += [(x(s), y(f["low"])) for s, f in reversed(shown) if f["low"] is not None]
        parts.append(f'<polygon points="{_points(band)}" fill="{colour}" opacity="0.14"/>')
        middle = [(x(s), y(f["mean"])) for s, f in shown]
        parts.append(
            f'<polyline points="{_points(middle)}" fill="none" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dash}"/>'
        )
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{colour}"/>' for a, b in middle]
        at = LEFT + i * (WIDTH - LEFT) / max(len(curves), 1)
        parts.append(
            f'<line x1="{at:.0f}" x2="{at + 26:.0f}" y1="{HEIGHT - 12}" y2="{HEIGHT - 12}" '
            f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
            f'<text x="{at + 31:.0f}" y="{HEIGHT - 8}">{html.escape(name)}</text>'
        )
    return "".join(parts) + "</svg>"


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs)


def _ticks(low: float, high: float) -> list[float]:
    """Round values between low and high, about five."""
    step = next((s for s in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0) if (high - low) / s <= 6), (high - low) / 5)
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 6) for i in range(first, math.floor(high / step + 1e-9) + 1)]
