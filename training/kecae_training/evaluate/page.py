"""The figures of an evaluation as one self-contained HTML page, with pictures of the knees: no network, no script."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from kecae_aug.files import write_whole
from kecae_aug.phantom.report import _STYLE
from kecae_training.evaluate import tables
from kecae_training.evaluate.criteria import at
from kecae_training.evaluate.evaluation import Evaluation
from kecae_training.evaluate.exchanges import DETAILS, Kind
from kecae_training.evaluate.pictures import Sheet, draw_sheets, line_chart

MORE_STYLE = """
body { max-width: 76rem; } table { display: block; overflow-x: auto; font-size: .85rem; }
th, td { padding: .25rem .6rem; vertical-align: top; }
.met { color: #1d6b32; } .not { color: #a32020; font-weight: 600; } svg text { font: 11px system-ui, sans-serif; }
svg text.t { font-weight: 600; font-size: 13px; } .charts { display: flex; flex-wrap: wrap; gap: 1rem; }
.warning { border-left: 4px solid #a32020; padding: .4rem 1rem; background: #faf3f3; }
"""


def write_page(
    line: Mapping[str, Any],
    runs: Mapping[str, Evaluation],
    kinds: Mapping[str, Kind],
    path: Path,
    per_direction: int = 4,
) -> Path:
    """Write the page.

    Args:
        line: the JSON line of `evaluate`.
        runs: the evaluation of each weights file, whose knees are drawn.
        kinds: of X' that the sheets show, by detail.
        path: of the HTML file; one that is there is replaced.
        per_direction: rows of each direction on a sheet.
    """
    folds: Mapping[str, Any] = line.get("folds") or {str(line["weights"]): line}
    several = len(folds) > 1
    classes, parts = line["classes"], [_head(line, folds), _criteria(line)]
    drawn = {name: draw_sheets(run, kinds, per_direction, int(line["seed"])) for name, run in runs.items()}
    for name in runs:
        parts.append(f"<h2>Examples{': ' + html.escape(name) if several else ''}</h2><p>{_PICTURES}</p>")
        parts.append(_sheet(drawn[name][0]))
    parts.append(_curves(line, classes))
    for name, fold in folds.items():
        title = f"Oracles: {name}" if several else "Oracles"
        parts.append(_section(title, tables.oracle_rows(fold, classes, intervals=False), _ORACLES))
        if len(classes) > 2:
            parts.append(_confusions(fold, classes))
    for title, rows, text in (
        ("Joint-space width", tables.anatomy_rows(line), _jsw(line)),
        ("Phantoms against the drawn truth", tables.phantom_rows(line), _TRUTH),
        ("Identity of the host", tables.identity_rows(line), _identity(line)),
        ("Robustness", tables.robustness_rows(line), _ROBUST),
        ("Probes of the latents", tables.probe_rows(line), _PROBES),
        ("Realism", tables.realism_rows(line), _REALISM),
    ):
        parts.append(_section(title, rows, text))
    for name in runs:
        parts.append(f"<h2>The worst{': ' + html.escape(name) if several else ''}</h2>")
        parts += [_sheet(sheet) for sheet in drawn[name][1:]]
    parts.append(f"<p class='note'>{html.escape(json.dumps(line['environment']))}, {line['seconds']} s.</p>")
    write_whole(path, "\n".join(parts))
    return path


_ORACLES = """
Of the images that should have a grade, the fraction for which an oracle predicts it (for two grades specificity and
sensitivity). X' should have the donor's, so that the second grade is the direction from the first to the second. Compare X'
with X^ and with the real knees of the same oracle. The discriminator's own figures only show how far it certifies itself."""
_TRUTH = """All figures are fractions of the true change, which the phantom lets us draw: 1 is exactly right, 0
nothing. "Joint space" is measured by the JSW measurement on both, so that its own error cancels; "osteophytes" and
"rest of the key" are least squares of the image's change on the two true changes; "explained" is the part of the
image's change that lies along the true one."""
_ROBUST = """
Mean over the oracles, for the label that the images should have. What is lost under rounding, JPEG, a blur of 1 px
or a shift of 2 px was no anatomy. A loss below 0 is a gain; what real knees lose is the oracles' own weakness."""
_PROBES = """Classifiers on the latents, tested on patients they have not seen. The grade should be readable in the key and
at chance in the non-key; side and patient at chance in the key. "Likeness": how often the patient's other knee,
of the same grade, is more similar than other knees."""
_REALISM = """Distances of features of the first oracle between the images and real knees of other patients: compare with
"real" (the floor) and "reconstruction". Two-sample accuracy: balanced accuracy of a classifier that separates them
from real knees; 0.5 is perfect."""
_PICTURES = """The pictures show images of the data folder: treat this file as you treat them. In differences, mid-grey is no
change, brighter is brighter."""


def _jsw(line: Mapping[str, Any]) -> str:
    note = (
        "These are phantoms."
        if "phantoms" in line
        else "On real knees the JSW measurement is a proxy: no reader has checked it."
    )
    return f""""Moved" is the mean change of the medial joint-space width over the gap between the grades, both by the
same JSW measurement: 0 is nothing, 1 exactly right. Gap in percent of the image's height. The rank correlation is 1 where a
knee's width moves in the right direction at every step of the strength. {note}"""


def _identity(line: Mapping[str, Any]) -> str:
    follows = line["follows"]
    host, donor = tables.cell(follows["host"], 3), tables.cell(follows["donor"], 4)
    times, variance = tables.cell(follows["host_over_donor"], 1), tables.cell(follows["variance_ratio"], 0)
    return f"""Among up to 500 knees, outside the joint region. "reconstructed" is the control: X^, without an exchange.
X' changes by {host} when its host is another knee of the same grade and by {donor} when its donor is: {times} times; as
variance {variance} times. A near copy is nearer to that image than to its host and as near as a reconstruction is to
its original; their names are in the JSON."""


def _head(line: Mapping[str, Any], folds: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{n} of grade {g}" for g, n in line["per_class"].items())
    names = ", ".join(
        f"<code>{html.escape(n)}</code> ({str(f.get('sha256'))[:12]})" for n, f in folds.items()
    )
    oracles = "; ".join(
        f"{html.escape(n)}: {html.escape(str(j['network']))}, {j['patients']} patients"
        for fold in folds.values()
        for n, j in fold["oracles"].items()
    )
    warned = [
        f"<p class='warning'>{html.escape((f'{name}: ' if len(folds) > 1 else '') + w)}</p>"
        for name, fold in folds.items()
        for w in [*fold["warnings"], *_at_chance(fold)]
    ]
    several = (
        " Each half's weights are evaluated by oracles of the other half; figures are means over the halves."
        if len(folds) > 1
        else ""
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>kecae-aug evaluate</title><style>{_STYLE}{MORE_STYLE}</style>
<h1>Evaluation of exchanged knees</h1>
<p>Weights {names}. A KECAE takes the key (what makes the grade) of a donor and puts it into a host: X'. X^ is the host
reconstructed without an exchange. <code>decoder</code> is X' as decoded, <code>host</code> adds only its change to
the host; the number is the strength, 1 the plain exchange. Oracles are classifiers that have
seen none of these patients.</p>
<p>{line["images"]} images ({counts}) of {line["patients"]} patients of split
<code>{html.escape(line["split"])}</code>, each a host once with a random donor of another grade and patient.{several}
Oracles: {oracles}. Intervals: 95 %, bootstrap over patients; what another training run would give is not in them.</p>
{"".join(warned)}"""


def _at_chance(fold: Mapping[str, Any]) -> list[str]:
    names = ", ".join(fold["oracles_at_chance"])
    return (
        [
            f"No better than chance on real knees: {names}. No figure that depends on such an oracle means anything; "
            "train it longer."
        ]
        if names
        else []
    )


def _criteria(line: Mapping[str, Any]) -> str:
    met = sum(b["verdict"].startswith("met") for b in line["criteria"])
    head, rows = tables.criterion_rows(line)
    cells = [
        (
            *map(html.escape, row[:-1]),
            f'<span class="{"met" if row[-1].startswith("met") else "not"}">{html.escape(row[-1])}</span>',
        )
        for row in rows
    ]
    missing = "".join(f"<li>{html.escape(m)}</li>" for m in line["not_measured"])
    return f"""<h2>{met} of {len(rows)} criteria met</h2>
<p class="note">The criteria were set for knees of KL 0 and 2. "host" is shown at the
strength at which its AUROC is best on these same knees.</p>
{_table(head, cells)}<p>Not measured here:</p><ul>{missing}</ul>"""


def _curves(line: Mapping[str, Any], classes: Sequence[str]) -> str:
    def points(detail: str, *where: str) -> list[tuple[float, Any]]:
        rows = [(k.split(" "), at(v, *where)) for k, v in line["exchanged"].items()]
        return [(float(k[1]), f) for k, f in rows if k[0] == detail and f]

    charts = []
    if len(classes) == 2:
        charts.append(
            line_chart(
                "oracles' AUROC over that on real knees",
                {d: points(d, "headline", "auroc_over_real") for d in DETAILS},
                0.95,
            )
        )
        for a, b in (classes, classes[::-1]):
            curve = {d: points(d, "headline", f"flip_{a}->{b}_over_real") for d in DETAILS}
            charts.append(line_chart(f"flip {a} -> {b} over accuracy on real knees", curve, 0.8))
    else:
        charts.append(line_chart("oracles' kappa", {d: points(d, "headline", "kappa") for d in DETAILS}))
    for name in at(line, "anatomy", "gap") or {}:
        moved = at(line, "anatomy", "moved")
        curve = {
            d: [(float(k.split(" ")[1]), v[name]) for k, v in moved.items() if k.split(" ")[0] == d]
            for d in DETAILS
        }
        charts.append(line_chart(f"joint space {name}, 1 is the gap", curve, 1.0))
    head, rows = tables.headline_rows(line)
    return (
        "<h2>Strength</h2><div class='charts'>" + "".join(charts) + "</div>"
        "<p class='note'>Means over the oracles; bands are 95 % intervals. A flip counts at the threshold at "
        "which an oracle is equally right on both grades of the real knees. At strength 0 nothing is exchanged.</p>"
        + _escaped(head, rows)
    )


def _confusions(fold: Mapping[str, Any], classes: Sequence[str]) -> str:
    kinds = {"real": fold["real"], "X^": fold["reconstructed"]}
    kinds |= {f"X' {k}": fold["exchanged"][k]["oracles"] for k in fold["selected"].values()}
    out = ["<h3>Confusion: target grade (rows), predicted grade (columns)</h3>"]
    for name in fold["oracles"]:
        blocks = []
        for kind, by in kinds.items():
            head = (kind, *classes)
            rows = [
                (c, *(f"{v:.2f}" for v in r)) for c, r in zip(classes, by[name]["confusion"], strict=True)
            ]
            blocks.append(
                f"<div>{_escaped(head, rows)}<p class='note'>kappa {tables.cell(by[name]['kappa'])}</p></div>"
            )
        out.append(f"<h4>{html.escape(name)}</h4><div class='charts'>{''.join(blocks)}</div>")
    return "".join(out)


def _section(title: str, table: tuple[tables.Row, list[tables.Row]], text: str) -> str:
    head, rows = table
    if not rows:
        return ""
    return f"<h2>{html.escape(title)}</h2><p class='note'>{text}</p>{_escaped(head, rows)}"


def _escaped(head: tables.Row, rows: Sequence[tables.Row]) -> str:
    return _table(head, [tuple(map(html.escape, row)) for row in rows])


def _table(head: tables.Row, rows: Sequence[tables.Row]) -> str:
    top = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>\n" for row in rows)
    return f"<table><tr>{top}</tr>\n{body}</table>"


def _sheet(sheet: Sheet) -> str:
    return (
        f"<h3>{html.escape(sheet.title)}</h3><p class='note'>{html.escape(sheet.text)}</p>"
        f'<img alt="{html.escape(sheet.title)}" src="data:image/png;base64,{_png(sheet.image)}">'
    )


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("L").save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
