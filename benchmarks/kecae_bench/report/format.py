"""How the report writes figures and tables: one table, as Markdown and as HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from kecae_bench.stats import ALL_METRICS, Difference
from kecae_bench.stats import points, verdict

SIGNS = {"better": "▲ better", "worse": "▼ worse", "not told apart": "· not told apart"}
INTERVAL = re.compile(r"^(\S+) \((\S+ to \S+)\)$")
NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision",
    "recall": "recall",
    "auroc": "AUROC",
    "ece": "calibration error",
}


@dataclass
class Table:
    """Text cells under headers, a line break for two lines; the first ``heads`` columns name the row."""

    name: str
    caption: str
    headers: list[str]
    rows: list[list[str]] = field(default_factory=list)
    heads: int = 1

    def markdown(self) -> str:
        """A bold caption and a pipe table."""
        lines = [f"**{self.name}.** {self.caption}\n", _pipe(self.headers), "|---" * len(self.headers) + "|"]
        return "\n".join([*lines, *(_pipe(row) for row in self.rows)])

    def html(self) -> str:
        """A table that scrolls in itself where the window is narrower."""
        left = [i < self.heads or text == "verdict" for i, text in enumerate(self.headers)]
        head = "".join(
            f'<th scope="col"{" class=name" * at_left}>{escape(text)}</th>'
            for text, at_left in zip(self.headers, left, strict=True)
        )
        body = "".join(f"<tr>{''.join(map(self._cell, range(len(row)), row))}</tr>\n" for row in self.rows)
        name = escape(self.name)
        return (
            f'<p class="caption"><b>{name}.</b> {escape(self.caption)}</p>\n'
            f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table aria-label="{name}">'
            f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
        )

    def _cell(self, column: int, text: str) -> str:
        lines = INTERVAL.sub(r"\1\n(\2)", text)  # narrow, so that the verdict stays in sight
        inside = escape(lines).replace("\n", "<br>")
        if column == 0:
            return f'<th scope="row">{inside}</th>'
        sign = next((sign.split()[1] for sign in SIGNS.values() if text.startswith(sign)), "")
        name = "name arm" if self.headers[column] == "arm" else "name"
        kind = name if column < self.heads else sign
        return f'<td class="{kind}">{inside}</td>' if kind else f"<td>{inside}</td>"


def percent(mean: float, sd: float) -> str:
    """A share in percent, with its SD if there is one."""
    if math.isnan(mean):
        return "-"
    return f"{100 * mean:.1f}" + ("" if math.isnan(sd) else f" ± {100 * sd:.1f}")


def interval(d: Difference | None) -> str:
    """Points, with the 95 % interval."""
    return spanned(d.mean, d.low, d.high) if d is not None else "-"


def spanned(mean: float, low: float, high: float) -> str:
    """Shares as points, a mean and its interval."""
    return f"{points(mean)} ({points(low)} to {points(high)})"


def p_value(p: float) -> str:
    """Two digits; no zero."""
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def judged(d: Difference, metric: str = "accuracy") -> str:
    """The verdict with its sign; of a single seed it is of two networks, which is said."""
    return SIGNS[verdict(d, ALL_METRICS[metric])] + (" (1 seed)" if len(d.by_seed) == 1 else "")


def _pipe(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|").replace("\n", "; ") for text in texts) + " |"
