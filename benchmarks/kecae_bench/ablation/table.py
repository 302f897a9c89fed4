"""The table of docs/ablation.md from the JSON lines of benchmarks/ablation.py: `python benchmarks/ablation.py table`.

One pair of tables for every combination of data, steps and base, the newest first; of a row whose configuration was
changed under the same name, the last one counts.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from kecae_bench.report import section

Line = dict[str, Any]
HEADER = "# Ablation: what each term does\n"
COLUMNS = {  # heading -> figures, joined by a slash; a column without any value is left out
    "PSNR": ("psnr",),
    "SSIM": ("ssim",),
    "X^": ("reconstructed",),
    "X' decoder": ("decoder",),
    "X' host": ("host",),
    "flips 0->2 / 2->0": ("flip_0->2", "flip_2->0"),
    "guide gap": ("guide_gap",),
    "moved 0->2 / 2->0": ("moved_0->2", "moved_2->0"),
    "joint space 0->2 / 2->0": ("jsw_0->2", "jsw_2->0"),
    "aim": ("aim",),
    "host share": ("host_share",),
    "grade in hK / hN": ("key", "non_key"),
}


def write_table(results: Path, doc: Path, study: str) -> None:
    """Put the tables of ``results`` between the study's markers in ``doc``; both are made if need be."""
    if not results.exists():
        print(f"{results}: not there, no table of {study}")
        return
    lines = [json.loads(text) for text in results.read_text().splitlines()]
    name = f"ablation-{study}"
    opening, closing = section.markers(name)
    text = doc.read_text() if doc.exists() else HEADER
    if opening not in text:
        doc.write_text(f"{text}\n## {study.capitalize()}\n\n{opening}\n{closing}\n")
    section.write(doc, name, tables(lines))
    print(f"{doc}: {len(lines)} runs of {study}")


def tables(lines: list[Line]) -> str:
    """All studies of one file, the newest first."""
    studies: dict[str, list[Line]] = {}
    for line in lines:
        studies.setdefault(json.dumps([line[k] for k in ("data", "steps", "base")]), []).append(line)
    return "\n".join(_study(part) for part in reversed(studies.values()))


def _study(lines: list[Line]) -> str:
    runs: dict[str, dict[int, Line]] = {}
    for line in lines:
        of = runs.setdefault(line["row"], {})
        if of and next(iter(of.values()))["config"] != line["config"]:
            of.clear()
        of[line["seed"]] = line
    real = [x["figures"]["real"] for x in lines if "real" in x["figures"]]
    head = f"{lines[0]['data']}; {lines[0]['steps']} steps"
    judged = f" The judges' AUROC on the real ones: {statistics.mean(real):.3f}." if real else ""
    figures = {row: {seed: line["figures"] for seed, line in of.items()} for row, of in runs.items()}
    shown = {
        h: names for h, names in COLUMNS.items() if any(_found(f, n) for f in figures.values() for n in names)
    }
    parts = [f"\n**{head}.**{judged} Mean +- SD over the seeds.\n", _table(figures, shown)]
    base = figures.get("base", {})
    differences = {
        row: {seed: _minus(f, base[seed]) for seed, f in of.items() if seed in base}
        for row, of in figures.items()
        if row != "base"
    }
    differences = {row: of for row, of in differences.items() if of}
    if differences:
        parts += ["\nDifference to `base` with the same seed, mean (lowest to highest).\n"]
        parts += [_table(differences, shown, span=True)]
    return "\n".join(parts) + "\n"


def _table(rows: dict[str, dict[int, Line]], columns: dict[str, tuple[str, ...]], span: bool = False) -> str:
    lines = ["| row | seeds | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for row, of in rows.items():
        cells = [
            " / ".join(_cell(_found(of, name), name, span) for name in names) for names in columns.values()
        ]
        failed = sum("failed" in f for f in of.values())
        seeds = f"{len(of)}" + (f", {failed} diverged" if failed else "")
        lines.append(f"| {row} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _found(of: dict[int, Line], name: str) -> list[float]:
    return [f[name] for f in of.values() if f.get(name) is not None]


def _minus(figures: Line, base: Line) -> Line:
    if "failed" in figures or "failed" in base:
        return {"failed": ""}
    both = [k for k, v in figures.items() if v is not None and base.get(k) is not None]
    return {k: figures[k] - base[k] for k in both}


def _cell(values: list[float], name: str, span: bool) -> str:
    if not values:
        return "-"
    digits = 1 if name == "psnr" else 2
    mean = statistics.mean(values)
    if span:
        ends = f" ({min(values):+.{digits}f} to {max(values):+.{digits}f})" if len(values) > 1 else ""
        return f"{mean:+.{digits}f}{ends}"
    return f"{mean:.{digits}f}" + (f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")
