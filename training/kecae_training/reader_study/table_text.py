"""A table as plain text and as HTML, and how a figure is written in its cells."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Figure = Mapping[str, Any]


@dataclass
class Table:
    """Text cells under headers; the first column names the row.

    Attributes:
        name, caption: above it. notes: sentences below it.
    """

    name: str
    caption: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]] = ()
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Aligned columns."""
        lines = [self.headers, *self.rows]
        widths = [max(len(row[i]) for row in lines) for i in range(len(self.headers))]
        pad = [
            "  ".join(
                c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in lines
        ]
        rule = "-" * len(pad[0])
        notes = [textwrap.fill(note, max(80, len(rule))) for note in self.notes]
        return "\n".join(
            [
                f"{self.name}. {self.caption}",
                rule,
                pad[0].rstrip(),
                rule,
                *map(str.rstrip, pad[1:]),
                rule,
                *notes,
            ]
        )

    def html(self) -> str:
        """A table that scrolls in itself where the window is narrower."""
        head = "".join(f'<th scope="col">{escape(text)}</th>' for text in self.headers)
        body = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(c)}</td>" for c in row[1:])}</tr>\n'
            for row in self.rows
        )
        notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in self.notes)
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(self.name)}"><table>'
            f"<caption><b>{escape(self.name)}.</b> {escape(self.caption)}</caption>"
            f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>{notes}"
        )


def pick(entry: Mapping[str, Any] | None, name: str | None) -> Figure:
    """The figure of a reader, or with None of the mean over readers; empty where there is none."""
    if not entry:
        return {}
    found: Figure = entry["mean"] if name is None else entry["readers"][name]
    return found


def number(figure: Figure | None, digits: int, factor: float = 1) -> str:
    """``86.3``; a dash where there is none."""
    return "-" if not figure or figure.get("mean") is None else f"{factor * figure['mean']:.{digits}f}"


def interval(figure: Figure, digits: int, factor: float) -> str:
    """``79.6 to 91.2``; a dash where it is not defined."""
    ends = [figure.get("low"), figure.get("high")]
    return (
        "-" if None in ends else " to ".join(f"{factor * float(v):.{digits}f}" for v in ends if v is not None)
    )


def plain(value: float | None, digits: int = 2) -> str:
    """A number that has no interval."""
    return "-" if value is None else f"{value:.{digits}f}"


def ends_of(figure: Figure) -> list[Any]:
    """Mean, low and high as numbers, None where there is none."""
    return [figure.get(name) for name in ("mean", "low", "high")]
