"""The demo's result as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

from PIL import Image

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1f; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .35rem .8rem; border-bottom: 1px solid #ccc; }
th { text-align: left; } td { font-variant-numeric: tabular-nums; } img { max-width: 100%; }
code { background: #f1f1f3; padding: .1rem .3rem; } .note { color: #55555c; }
"""


def write_report(result: dict[str, Any], sheet: Image.Image, path: Path) -> Path:
    """Write the page.

    Args:
        result: as of :func:`kecae_aug.phantom.demo.run_demo`.
        sheet: the contact sheet; it is put into the page.
        path: of the HTML file.

    Returns:
        ``path``.
    """
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    config = result["config"]
    arms = [
        _arm(name, value, result["difference_to_T"].get(name)) for name, value in result["accuracy"].items()
    ]
    joints = [
        (
            html.escape(direction),
            *(f"{row[k]:.2f}" for k in ("real", "donor", "X^", "decoder", "host")),
            f"{row['moved_decoder']:.0%}",
            f"{row['moved_host']:.0%}",
        )
        for direction, row in result["joint_space"].items()
    ]
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>kecae-aug demo</title><style>{_STYLE}</style>
<h1>kecae-aug demo: exchanged knees in a training loop</h1>
<p>{config["train_patients"]} labelled patients to learn from, {
        config["test_patients"]
    } others to be tested on,
{config["steps"]} optimiser steps of {config["batch_size"]} real knees in every arm, {
        config["seeds"]
    } repetitions.
All knees are phantoms: drawings whose truth is known, so nothing here says how it works on your images.
For that: <code>python examples/existing_loop.py --data DIR</code>.</p>
<h2>Does the classifier gain?</h2>
{_html_table(("trained on", "accuracy", "95 % interval", "difference to T", "reading"), arms)}
<p class="note">X^ are reconstructions with their own labels: the same extra images without an exchange. Only what
T&prime; gains beyond that arm comes from exchanging keys. Intervals: bootstrap over seeds and test patients.</p>
<h2>Does it move the joint space?</h2>
<p>Medial joint-space width as measured on the image by a JSW measurement, in percent of the image's height.
&ldquo;Moved&rdquo; is the fraction of the gap between the two grades that the exchange covers; 100 % is exactly right.</p>
{
        _html_table(
            ("direction", "hosts", "donors", "X^", "X' decoder", "X' host", "moved, decoder", "moved, host"),
            joints,
        )
    }
<h2>Look at them</h2>
<p>Each row: a host, its reconstruction, the exchanged knee in both details, and the knee that gave the key.</p>
<img alt="Contact sheet of phantom knees before and after the exchange" src="data:image/png;base64,{picture}">
<p class="note">Weights: {html.escape(str(result["weights"].get("source", "")))}; reconstruction error
{result["psnr_of_reconstruction_db"]} dB PSNR; {
        result["seconds"]
    } s in all. The figures are in results.json.</p>
"""
    path.write_text(page, encoding="utf-8")
    return path


def verdict(difference: dict[str, float]) -> str:
    """A plain word for a difference with its interval."""
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "not significant"


def _arm(name: str, value: dict[str, float], difference: dict[str, float] | None) -> tuple[str, ...]:
    row = (html.escape(name), f"{value['mean']:.1%}", f"{value['low']:.1%} to {value['high']:.1%}")
    if difference is None:
        return (*row, "", "")
    span = f"{100 * difference['mean']:+.1f} ({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f}) points"
    return (*row, span, verdict(difference))


def _html_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>\n" for row in rows)
    return f"<table><tr>{cells}</tr>\n{body}</table>"
