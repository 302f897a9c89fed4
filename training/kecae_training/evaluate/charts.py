"""A line chart as inline SVG: curves of a figure over the strength, with their intervals and a criterion."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 30, 62
COLOURS = ("#1f5fa8", "#c2571a", "#3f7f3f", "#7a4b9a")
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # so that the curves differ without colour too
Point = tuple[float, Mapping[str, Any]]  # strength, figure


def line_chart(
    title: str, curves: Mapping[str, Sequence[Point]], wanted: float | None = None, label: str = "strength"
) -> str:
    """The SVG.

    Args:
        title: above the chart.
        curves: name -> points; a figure is mean, low, high.
        wanted: a criterion, drawn as a level line.
        label: of the horizontal axis.
    """
    points = [p for curve in curves.values() for p in curve if p[1].get("mean") is not None]
    if not points:
        return ""
    values = [v for _, f in points for v in (f["mean"], f["low"], f["high"]) if v is not None]
    values += [] if wanted is None else [wanted]
    low, high = min(0.0, *values), max(1.0, *values)
    # an interval may be far wider than the curve; the axis shows the curve, and the band is cut
    means = [f["mean"] for _, f in points] + ([] if wanted is None else [wanted])
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
    if wanted is not None:
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(wanted):.1f}" y2="{y(wanted):.1f}" stroke="#1c1c1f" '
            f'stroke-width="1.5"/><text x="{WIDTH - RIGHT}" y="{y(wanted) - 4:.1f}" text-anchor="end">'
            f"criterion {wanted:g}</text>"
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
