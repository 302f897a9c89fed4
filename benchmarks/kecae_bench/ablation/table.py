"""Tables of the JSON lines of the ablation: `python -m kecae_bench.ablation table`.

One table for every combination of data, steps and base, the newest first: the base's figures, mean and SD over its seeds,
then of every other row the difference from the base with the same seed, mean (lowest to highest). Of a row whose
configuration was changed under the same name, the last one counts.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from kecae_bench.report.tables import render_table

Line = dict[str, Any]
COLUMNS = {  # heading -> figures, joined by a slash; a column without any value is left out
    "PSNR": ("psnr",),
    "X^": ("reconstructed",),
    "X' decoder": ("decoder",),
    "X' host": ("host",),
    "discriminator gap": ("discriminator_gap",),
    "moved 0->2 / 2->0": ("moved_0->2", "moved_2->0"),
    "host fraction": ("host_fraction",),
}
MORE = {
    "SSIM": ("ssim",),
    "flips 0->2 / 2->0": ("flip_0->2", "flip_2->0"),
    "joint space 0->2 / 2->0": ("jsw_0->2", "jsw_2->0"),
    "aim": ("aim",),
    "grade in hK / hN": ("key", "non_key"),
}


def render_all(lines: Sequence[Line]) -> str:
    """Every column of every study of one file, the newest first."""
    return "\n\n".join(render_study(part, COLUMNS | MORE) for part in group_studies(lines))


def group_studies(lines: Sequence[Line]) -> list[list[Line]]:
    """By data, steps and base, the newest first."""
    studies: dict[str, list[Line]] = {}
    for line in lines:
        studies.setdefault(json.dumps([line[k] for k in ("data", "steps", "base")]), []).append(line)
    return list(reversed(studies.values()))


def group_rows(lines: Sequence[Line]) -> dict[str, dict[int, Line]]:
    """Of one study, the lines by row and seed; see the module's text on rows that were changed."""
    runs: dict[str, dict[int, Line]] = {}
    for line in lines:
        of = runs.setdefault(line["row"], {})
        if of and next(iter(of.values()))["config"] != line["config"]:
            of.clear()
        of[line["seed"]] = line
    return runs


def render_study(lines: Sequence[Line], columns: dict[str, tuple[str, ...]]) -> str:
    """One table, see the module's text."""
    runs = group_rows(lines)
    figures = {row: {seed: line["figures"] for seed, line in of.items()} for row, of in runs.items()}
    shown = {
        h: names for h, names in columns.items() if any(_find(f, n) for f in figures.values() for n in names)
    }
    base = figures.get("base", {})
    rows = [_render_row("base", base, shown)] if base else []
    for row, of in figures.items():
        if row == "base":
            continue
        minus = {seed: _subtract(f, base[seed]) for seed, f in of.items() if seed in base}
        rows.append(_render_row(row, minus, shown, difference=True) if minus else _render_row(row, of, shown))
    real = [x["figures"]["real"] for x in lines if "real" in x["figures"]]
    said = f" The oracles' AUROC on the real ones: {statistics.mean(real):.3f}." if real else ""
    head = f"**{lines[0]['data']}; {lines[0]['steps']} steps.**{said}"
    return f"{head}\n\n{render_table(['row', 'seeds', *shown], rows)}"


def _render_row(
    row: str, of: dict[int, Line], columns: dict[str, tuple[str, ...]], difference: bool = False
) -> list[str]:
    failed = sum("failed" in f for f in of.values())
    seeds = f"{len(of)}" + (f", {failed} diverged" if failed else "")
    cells = (" / ".join(_spell(_find(of, n), n, difference) for n in names) for names in columns.values())
    return [row, seeds, *cells]


def _find(of: dict[int, Line], name: str) -> list[float]:
    return [f[name] for f in of.values() if f.get(name) is not None]


def _subtract(figures: Line, base: Line) -> Line:
    if "failed" in figures or "failed" in base:
        return {"failed": ""}
    both = [k for k, v in figures.items() if v is not None and base.get(k) is not None]
    return {k: figures[k] - base[k] for k in both}


def _spell(values: list[float], name: str, difference: bool) -> str:
    if not values:
        return "-"
    digits = 1 if name == "psnr" else 2
    mean = statistics.mean(values)
    if difference:
        ends = f" ({min(values):+.{digits}f} to {max(values):+.{digits}f})" if len(values) > 1 else ""
        return f"{mean:+.{digits}f}{ends}"
    return f"{mean:.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")
