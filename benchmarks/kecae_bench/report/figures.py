"""The report's figures, as SVG files: the forest plot, and curves over labels, length of training and number of pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from kecae_bench.report.cells import INSIDE, Cell
from kecae_bench.report.tables import MEAN, PAPER, Row, select_page

COLOURS = {1: "#0b6fb8", -1: "#b4450c", 0: "#6b757f"}  # of an interval above 0, below 0, around it
SERIES = ("#0b6fb8", "#c05a00", "#2b8a57", "#8a4fb5", "#a88400", "#b8336a")
RULES: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dfe3e7",
}
WIDTH = 7.6  # inches


def draw_all(rows: Sequence[Row], cells: Sequence[Cell], folder: Path) -> list[str]:
    """Draw what there are runs for; the files' names.

    Args:
        rows: of differences.csv.
        cells: for the curves of single trainings.
        folder: where the files go.
    """
    shown = select_page(rows)
    makers: dict[str, Callable[[], Figure | None]] = {
        "forest.svg": lambda: draw_forest(shown) if shown else None,
        "few-labels.svg": lambda: draw_along(_by_fraction(shown), "fraction", "fraction of the labels"),
        "length.svg": lambda: draw_along(_by_length(shown), "images", "real images shown"),
        "pairs.svg": lambda: draw_pairs(cells),
    }
    done = []
    with mpl.rc_context(RULES):
        for name, make in makers.items():
            figure = make()
            if figure is not None:
                figure.savefig(folder / name, metadata={"Date": None, "Creator": None})
                done.append(name)
    return done


def draw_forest(shown: Sequence[Row]) -> Figure:
    """T' minus T of each setting and classifier, in AUROC and in accuracy, with the paper's own differences as crosses."""
    lines: list[Row | str] = []
    for row in shown:
        heading = row["setting"]
        if not lines or heading not in [line if isinstance(line, str) else line["setting"] for line in lines]:
            lines.append(heading)
        lines.append(row)
    figure = Figure((WIDTH, 0.9 + 0.26 * len(lines)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (metric, label) in zip(axes, {"auroc": "AUROC", "accuracy": "accuracy"}.items(), strict=True):
        for y, line in enumerate(lines):
            if not isinstance(line, str):
                _draw_interval(axis, line, metric, y)
                if (
                    metric == "accuracy"
                    and line["fraction"] == 1
                    and line["classifier"].split(" (")[0] in PAPER
                ):
                    paper = PAPER[line["classifier"].split(" (")[0]]
                    axis.plot(100 * paper, y, "x", color="black", ms=5, mew=1)
        axis.axvline(0, color="black", lw=1)
        axis.set_xlabel(f"T' − T, points of {label}", fontsize=9)
        axis.grid(axis="y", visible=False)
    names = ["" if isinstance(line, str) else f"{line['classifier']} ({line['seeds']})" for line in lines]
    axes[0].set_yticks(range(len(lines)), names, fontsize=8)
    for y, line in enumerate(lines):
        if isinstance(line, str):  # a heading has its line to itself
            text = axes[0].text(
                0.01, y, line, transform=axes[0].get_yaxis_transform(), va="center", fontsize=8
            )
            text.set(
                fontweight="bold", in_layout=False, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}
            )
    axes[0].set_zorder(2)  # a long heading goes on over the second panel
    axes[0].patch.set_visible(False)
    axes[0].set_ylim(len(lines) - 0.4, -0.6)
    axes[0].tick_params(axis="y", length=0)
    return figure


def draw_along(rows: Sequence[Row], column: str, label: str) -> Figure | None:
    """AUROC of T and T' along a logarithmic axis, and beside it their difference; None of fewer than two rows."""
    if len(rows) < 2:
        return None
    at = [row[column] for row in rows]
    figure = Figure((WIDTH, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, end, colour in (("T", "base", COLOURS[0]), ("T'", "arm", COLOURS[1])):
        left.plot(at, [100 * row[f"auroc_{end}"] for row in rows], "o-", color=colour, label=name, ms=4)
    left.set_ylabel("AUROC, %")
    left.legend(frameon=False)
    for x, row in zip(at, rows, strict=True):
        _draw_interval(right, row, "auroc", x, upright=True)
    right.axhline(0, color="black", lw=1)
    right.set_ylabel("T' − T, points of AUROC")
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xticks(at, [f"{x:,}" if isinstance(x, int) else f"{x:.0%}" for x in at])
        axis.minorticks_off()
        axis.set_xlabel(label)
    figure.suptitle(rows[0]["classifier"], fontsize=10)
    return figure


def draw_pairs(cells: Sequence[Cell]) -> Figure | None:
    """The paper's Fig. 5: training loss and validation accuracy over the steps, for each number of pairs N."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.arm == "T' from pairs" and cell.fraction == 1:
            rest = {k: v for k, v in cell.variant.items() if k != "N"}
            groups.setdefault(f"{cell.classifier} {cell.settings} {rest}", []).append(cell)
    of = max(groups.values(), key=len, default=[])
    if len(of) < 2:
        return None
    like = (of[0].classifier, of[0].fraction, of[0].settings)
    plain = [c for c in cells if c.arm == "T" and (c.classifier, c.fraction, c.settings) == like]
    figure = Figure((WIDTH, 3.3), layout="constrained")
    axes = figure.subplots(1, 2)
    for i, cell in enumerate([*plain, *sorted(of, key=lambda cell: int(cell.variant["N"]))]):
        n = cell.variant["N"] or 0
        colour = SERIES[(i - 1) % len(SERIES)] if n else COLOURS[0]
        curves = [line["curve"] for line in cell.runs.values()]
        length = min(map(len, curves))
        curve = np.array([one[:length] for one in curves], dtype=float)  # (runs, validations, 4)
        for axis, column, scale in zip(axes, (1, 2), (1, 100), strict=True):
            steps, values = curve[0, :, 0], scale * curve[:, :, column]
            axis.plot(steps, values.mean(0), "-" if n else "--", color=colour, label=f"N = {n:,}")
            axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
    for axis, text in zip(axes, ("training loss", "validation accuracy, %"), strict=True):
        axis.set_xlabel("optimiser step")
        axis.set_ylabel(text)
    axes[1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{of[0].title}: mean, lowest and highest seed", fontsize=10)
    return figure


def _by_fraction(shown: Sequence[Row]) -> list[Row]:
    """Of the classifier and length of training with the most fractions of the labels."""
    return _find_longest([row for row in shown if row["arm"] == "T'"], ("classifier", "images"), "fraction")


def _by_length(shown: Sequence[Row]) -> list[Row]:
    """Of the classifier with the most lengths, on all labels."""
    return _find_longest([row for row in shown if row["fraction"] == 1], ("classifier",), "images")


def _find_longest(rows: Sequence[Row], same: Sequence[str], along: str) -> list[Row]:
    groups: dict[tuple[Any, ...], dict[Any, Row]] = {}
    for row in rows:
        usual = (
            row["known_patients"] == "kept" and row["weights"] != INSIDE and "no augm" not in row["setting"]
        )
        if usual and not row["classifier"].startswith(MEAN):
            groups.setdefault(tuple(row[name] for name in same), {}).setdefault(row[along], row)
    longest = max(groups.values(), key=len, default={})
    return [longest[at] for at in sorted(longest)]


def _draw_interval(axis: Any, row: Row, metric: str, at: float, upright: bool = False) -> None:
    """Interval, mean and seeds of a difference, in points."""
    if row[metric] == "":
        return
    low, high = 100 * row[f"{metric}_low"], 100 * row[f"{metric}_high"]
    colour = COLOURS[int(low > 0) - int(high < 0)]
    dots = [100 * float(value) for value in row[f"{metric}_by_seed"].split()]
    strong = row["classifier"].startswith(MEAN)
    beside = at * 1.08 if upright else at + 0.3  # the seeds; an upright one stands on a logarithmic axis
    marks = [([at, at], [low, high], "-"), ([at], [100 * row[metric]], "D" if strong else "o")]
    if len(dots) > 1 and not strong:
        marks.append(([beside] * len(dots), dots, "."))
    for across, along, mark in marks:
        x, y = (across, along) if upright else (along, across)
        axis.plot(x, y, mark, color=colour, ms=2.5 if mark == "." else 5, lw=1.6)
