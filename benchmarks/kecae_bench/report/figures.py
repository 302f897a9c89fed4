"""The report's figures, as SVG that stands in the page and takes the page's colours, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from kecae_bench.classifiers import CLASSIFIERS
from kecae_bench.stats import ALL_METRICS, Difference
from kecae_bench.report.compare import Comparison
from kecae_bench.report.data import Cell
from kecae_bench.report.findings import Findings, lengths, mean_over, row_title, title
from kecae_bench.stats import of_seeds, verdict

# drawn in colours that nothing else has, and written as the page's own
COLOURS = {"ink": "#010203", "muted": "#040506", "rule": "#070809", "better": "#0a0b0c", "worse": "#0d0e0f"}
SERIES = {f"series-{i}": f"#1{i}1213" for i in range(6)}
OF_VERDICT = {"better": COLOURS["better"], "worse": COLOURS["worse"], "not told apart": COLOURS["muted"]}
RULES: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["rule"],
    "axes.edgecolor": COLOURS["muted"],
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), COLOURS["ink"]),
}
WIDE = 7.6  # inches; 547 units


class Row(NamedTuple):
    """A line of a forest plot, or a heading; ``paper`` is the paper's own difference, ``strong`` a mean of others."""

    name: str
    difference: Difference | None
    paper: float | None = None
    strong: bool = False


def forest_of_classifiers(found: Findings) -> str:
    """Table II's differences."""
    rows = []
    for c in found.headline:
        spec = CLASSIFIERS.get(c.cell.classifier)
        paper = (spec.paper[1] - spec.paper[0]) / 100 if spec and spec.paper else None
        rows.append(Row(f"{row_title(c.cell)} ({of_seeds(len(c.seeds))})", c.differences["accuracy"], paper))
    if found.mean is not None:
        rows.append(Row(f"mean over {mean_over(found)}", found.mean, strong=True))
    c = found.headline[0]
    return _figure(
        lambda: _forest(rows, "accuracy of T' minus T, points"),
        f"Forest plot: {c.cell.shared} minus {c.base.shared} for each classifier",
        f"{c.cell.shared} minus {c.base.shared}: differences in accuracy with 95 % intervals over patients and seeds; "
        "small dots below are single seeds, crosses the paper's own differences (other images). Right of 0 T' is "
        "better. Grey: not told apart.",
    )


def forest_of_arms(found: Findings, classifier: str) -> str:
    """All arms of one classifier against their bases."""
    compared = [c for c in found.arms if c.cell.classifier == classifier]
    compared.sort(key=lambda c: c.cell.exchanges)
    rows = []
    for base in dict.fromkeys(c.base.label for c in compared):
        rows.append(Row(f"minus {base}:", None))
        rows += [Row(c.cell.label, c.differences["accuracy"]) for c in compared if c.base.label == base]
    return _figure(
        lambda: _forest(rows, "difference in accuracy, points"),
        f"Forest plot: all arms of {title(classifier)}",
        f"{title(classifier)}: every arm against the same training without it; 95 % intervals, dots are seeds.",
    )


def scarcity(found: Findings) -> str:
    """Accuracy and gain by the share of the training patients, of the classifier and arm with the most shares."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for c in (c for c in found.scarcity if c.cell.exchanges):
        groups.setdefault((c.cell.classifier, c.cell.label), []).append(c)
    if not groups:
        return ""
    (name, _), of = max(groups.items(), key=lambda item: len(item[1]))
    of = sorted(of, key=lambda c: c.cell.fraction)

    shares = [100 * c.cell.fraction for c in of]
    return _figure(
        lambda: _along(of, shares, [f"{share:g}" for share in shares], "share of the training patients, %"),
        "Label scarcity curve",
        f"{title(name)} by the share of the training patients. Left: mean (line) and runs (dots). Right: difference "
        "with its 95 % interval.",
    )


def length(found: Findings) -> str:
    """Accuracy and gain by the real knees shown, of the classifier with the most lengths; of each length most seeds."""
    name, of = max(lengths(found).items(), key=lambda item: len(item[1]), default=("", {}))
    if not of:
        return ""
    shown = sorted(of)
    return _figure(
        lambda: _along([of[n] for n in shown], shown, [f"{n:,}" for n in shown], "real knees shown"),
        "Length of training curve",
        f"{title(name)} by how many real knees a training has shown; options may differ, see the table. Left: mean "
        "(line) and runs (dots). Right: difference with its 95 % interval.",
    )


def sampling(found: Findings) -> str:
    """Fig. 5: training loss and validation accuracy over the steps, for each N; of the classifier with the most N."""
    by_name: dict[str, list[Cell]] = {}
    for cell in found.of("sampling"):
        by_name.setdefault(cell.classifier, []).append(cell)
    name, of = max(by_name.items(), key=lambda item: len(item[1]))
    of = sorted(of, key=lambda cell: cell.variant.get("N") or 0)

    def draw() -> Figure:
        figure = Figure((WIDE, 3.3), layout="constrained")
        axes = figure.subplots(1, 2)
        for i, cell in enumerate(of):
            n = cell.variant.get("N") or 0
            colour = SERIES[f"series-{(i - 1) % len(SERIES)}"] if n else COLOURS["muted"]
            curves = _curves(cell)
            for axis, column, scale in zip(axes, (1, 2), (1, 100), strict=True):
                steps, values = curves[0, :, 0], scale * curves[:, :, column]
                axis.plot(steps, values.mean(0), "-" if n else "--", color=colour, label=f"N = {n:,}", lw=1.6)
                if len(values) > 1:
                    axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
        for axis, text in zip(axes, ("training loss", "validation accuracy, %"), strict=True):
            axis.set_xlabel("optimiser step")
            axis.set_ylabel(text)
        axes[1].legend(frameon=False, fontsize=8)
        return figure

    return _figure(
        draw,
        "Sampling size curves",
        f"{title(name)}, as the paper's Fig. 5: N exchanged pairs added to T. Mean over seeds, bands "
        "from the lowest to the highest.",
    )


def _along(of: Sequence[Comparison], at: Sequence[float], ticks: Sequence[str], what: str) -> Figure:
    """Test accuracy of T and T' along a logarithmic axis, and beside it what they differ by."""
    figure = Figure((WIDE, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for cells, colour, shift in (
        ([c.base for c in of], COLOURS["muted"], 0.98),
        ([c.cell for c in of], SERIES["series-0"], 1.02),
    ):
        one = len({cell.label for cell in cells}) == 1
        text = cells[0].label if one else cells[0].arm
        means = [100 * cell.test["accuracy"][0] for cell in cells]
        left.plot(at, means, "o-", color=colour, label=text, ms=4)
        for x, cell in zip(at, cells, strict=True):
            each = [100 * line["test"]["accuracy"] for line in cell.runs.values()]
            left.plot([x * shift] * len(each), each, ".", color=colour, ms=3, alpha=0.6)
    left.set_ylabel("test accuracy, %")
    figure.legend(loc="outside upper left", frameon=False, fontsize=8)
    for x, c in zip(at, of, strict=True):
        _whisker(right, c.differences["accuracy"], x, upright=True)
    right.axhline(0, color=COLOURS["ink"], lw=1)
    right.set_ylabel("T' − T, points of accuracy")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(at, ticks)
        axes.minorticks_off()
        axes.set_xlabel(what)
    return figure


def _curves(cell: Cell) -> Any:
    """(runs, looks, 4); of runs with unequal numbers of looks the first ones."""
    curves = [line["curve"] for line in cell.runs.values()]
    looks = min(map(len, curves))
    return np.array([curve[:looks] for curve in curves], dtype=float)


def _forest(rows: Sequence[Row], label: str) -> Figure:
    figure = Figure((WIDE, 0.9 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(rows):
        if row.difference is not None:
            _whisker(axes, row.difference, y, strong=row.strong)
        if row.paper is not None:
            axes.plot(100 * row.paper, y, "x", color=COLOURS["ink"], ms=5, mew=1)
    axes.axvline(0, color=COLOURS["ink"], lw=1)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    for text, row in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_fontweight("normal" if row.difference is not None and not row.strong else "bold")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label)
    return figure


def _whisker(axes: Any, d: Difference, at: float, upright: bool = False, strong: bool = False) -> None:
    """Interval, mean and seeds of a difference, in points."""
    colour = OF_VERDICT[verdict(d, ALL_METRICS["accuracy"])]
    ends, mid, dots = [100 * d.low, 100 * d.high], [100 * d.mean], [100 * value for value in d.by_seed]
    beside = at * 1.08 if upright else at + 0.24  # the seeds; an upright one stands on a logarithmic axis
    marks = [([at, at], ends, "-"), ([at], mid, "D" if strong else "o")]
    if len(dots) > 1 and not strong:
        marks.append(([beside] * len(dots), dots, "."))
    for across, along, mark in marks:
        x, y = (across, along) if upright else (along, across)
        axes.plot(x, y, mark, color=colour, ms=3.5 if mark == "." else 6, lw=2.4 if strong else 1.6)


def _figure(draw: Any, name: str, caption: str) -> str:
    """A <figure> with the drawing and its caption."""
    with mpl.rc_context(RULES):
        held = io.StringIO()
        draw().savefig(held, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = held.getvalue()
    svg = svg[svg.index("<svg") :]
    for word, colour in {**COLOURS, **SERIES}.items():
        svg = svg.replace(colour, f"var(--{word})")
    prefix = re.sub(r"\W+", "-", name.lower())  # ids are of one drawing each
    svg = re.sub(r'(id="|#)(?=[\w.-]+["\)])', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r' width="[\d.]+pt"| height="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1)
    return f'<figure><div class="scroll" tabindex="0">{svg.strip()}</div><figcaption>{escape(caption)}</figcaption></figure>'
