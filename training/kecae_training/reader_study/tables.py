"""The figures of a study as tables: plain text for the terminal, CSV, and one HTML page that needs nothing else."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from kecae_aug.phantom.report import _STYLE
from kecae_training.evaluate.tables import cell
from kecae_training.reader_study.formats import MATCHES, REAL
from kecae_training.reader_study.intervals import list_kappas

Scores = Mapping[str, Any]
Figure = Mapping[str, Any]

STYLE = (
    _STYLE
    + """
body { max-width: 76rem; } .scroll { overflow-x: auto; } code { overflow-wrap: anywhere; }
.warning { border-left: 4px solid #a32020; padding: .4rem 1rem; background: #faf3f3; font-weight: 600; }
table { font-size: .9rem; } caption { text-align: left; color: #55555c; } caption b { color: #1c1c1f; }
td, thead th { text-align: right; white-space: nowrap; } thead th { vertical-align: bottom; }
th:first-child { text-align: left; } tbody th { font-weight: 500; }
.remarks td, .remarks th { text-align: left; white-space: normal; }
"""
)


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
        widths = [max(map(len, column)) for column in zip(self.headers, *self.rows, strict=True)]
        lines = []
        for row in (self.headers, *self.rows):
            cells = [
                c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        rule = "-" * (sum(widths) + 2 * len(widths) - 2)
        notes = [textwrap.fill(note, max(80, len(rule))) for note in self.notes]
        return "\n".join([f"{self.name}. {self.caption}", rule, lines[0], rule, *lines[1:], rule, *notes])

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


def text(scores: Scores) -> str:
    """Every table, for the terminal and ``table3.txt``."""
    return "\n\n".join(table.text() for table in all_tables(scores))


def write_html(scores: Scores, remarks: Sequence[tuple[str, ...]] = ()) -> str:
    """Every table as one page: no picture, no script, no network.

    Args:
        scores: of :func:`score.score`.
        remarks: of :func:`score.list_remarks`.
    """
    first, *others = all_tables(scores)
    readers = "One reader" if len(scores["readers"]) == 1 else f"{len(scores['readers'])} readers"
    warning = f"<p class='warning'>Partial: {escape(scores['partial'])}.</p>" if scores["partial"] else ""
    weights = ", ".join(f"{escape(w['name'])} ({str(w['sha256'])[:12]})" for w in scores["weights"])
    more = [table.html() for table in others]
    if remarks:
        written = Table(
            "Remarks",
            "as the readers wrote them; of real knees the second grade is the one that was claimed",
            ("images", "grades", "reader", "realism", "as the label says", "remark"),
            remarks,
        )
        more.append(f"<div class='remarks'>{written.html()}</div>")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(scores["title"])}: scores</title><style>{STYLE}</style></head>
<body><main><h1>{escape(scores["title"])}: scores</h1>
<p>{readers} graded exchanged knees without knowing what they were (phase 1) and then saw each beside its
original (phase 2). Accuracy: fraction graded as the label that the exchange should give. SRS: realism, 1 to 5.</p>
{warning}
{first.html()}
<h2>More</h2>
{"".join(more)}
<footer><p class="note">Study <code>{escape(scores["study"])}</code> of {escape(scores["created"])}; weights {weights}.
No picture of a patient is on this page. Nothing here is a medical device.</p></footer>
</main></body></html>"""


def all_tables(scores: Scores) -> list[Table]:
    """Every table that has rows, Table III first."""
    found = [table_3(scores, kind) for kind in scores["accuracy"] if kind != REAL]
    found += [_arm_differences(scores), control(scores), _inter_reader(scores), _intra_reader(scores)]
    found += [*_confusions(scores), _confidence(scores), _time(scores)]
    return [table for table in found if table.rows]


def table_3(scores: Scores, kind: str = "exchanged") -> Table:
    """Table III of all exchanged knees or of one arm; in brackets by label, as in the paper."""
    accuracy, realism = scores["accuracy"].get(kind, {}), scores["realism"].get(kind, {})
    labels = " / ".join(scores["grades"])
    headers = (
        "reader",
        f"accuracy, % ({labels})",
        "95 % interval",
        f"SRS ({labels})",
        "SRS SD",
        "95 % interval",
        "kappa",
    )
    kappa = scores["inter_reader"].get(kind, {}).get("cohen_mean")
    rows = []
    for name, reader in _rows(scores):
        one, two = _pick(accuracy, "all", reader), _pick(realism, "all", reader)
        of_labels = [
            " / ".join(_number(_pick(tree, grade, reader), digits, factor) for grade in scores["grades"])
            for tree, digits, factor in ((accuracy, 1, 100), (realism, 2, 1))
        ]
        rows.append(
            (
                name,
                f"{_number(one, 1 if reader else 2, 100)} ({of_labels[0]})",
                _interval(one, 1, 100),
                f"{_number(two, 2)} ({of_labels[1]})",
                _plain(two.get("sd")),
                _interval(two, 2, 1),
                "-" if reader else _number(kappa, 2),
            )
        )
    n = accuracy["all"]["mean"]["images"] if accuracy else 0
    caption = f"{_name(kind)}, {n} images in phase 1{_mark(scores)}. In brackets by the label that they should have."
    if kind == "exchanged":
        return Table("Table III", caption, headers, rows, _notes(scores))
    return Table(f"Table III, {kind}", caption, headers, rows)


def table_3_rows(scores: Scores) -> list[list[Any]]:
    """Table III of every kind of image as numbers: fractions, not percent; one row a kind and reader, and the average."""
    ends = ("", "_low", "_high")
    head = ["kind", "reader", "n_phase1", "n_phase2", "partial"]
    head += [f"accuracy{e}" for e in ends] + [f"accuracy_{g}" for g in scores["grades"]]
    head += [f"srs{e}" for e in ends] + ["srs_sd"] + [f"srs_{g}" for g in scores["grades"]]
    head += [f"{k}{e}" for k in ("cohen_mean", "fleiss") for e in ends]
    rows: list[list[Any]] = [head]

    def ends_of(figure: Figure) -> list[Any]:
        return [figure.get(name) for name in ("mean", "low", "high")]

    for kind, accuracy in scores["accuracy"].items():
        realism = scores["realism"].get(kind, {})
        for name, reader in _rows(scores):
            one, two = _pick(accuracy, "all", reader), _pick(realism, "all", reader)
            by_label = [
                [_pick(tree, g, reader).get("mean") for g in scores["grades"]] for tree in (accuracy, realism)
            ]
            row = [kind, name, one["images"], two.get("images", 0), bool(scores["partial"])]
            row += [*ends_of(one), *by_label[0], *ends_of(two), two.get("sd"), *by_label[1]]
            agreed = {} if reader else scores["inter_reader"].get(kind, {})
            rows.append(row + [v for k in ("cohen_mean", "fleiss") for v in ends_of(agreed.get(k) or {})])
    return rows


def control(scores: Scores) -> Table:
    """Real knees: graded as their label says, rated, and accepted as what phase 2 falsely claims."""
    if REAL not in scores["accuracy"]:
        return Table("Control", "", ("",))
    accuracy, realism, matches = (scores[k].get(REAL, {}) for k in ("accuracy", "realism", "matches"))
    claimed = scores["matches"].get("exchanged", {})
    minus = scores["exchanged_minus_real"]
    headers = (
        "reader",
        "real: accuracy, %",
        "X' minus real, points",
        "real: SRS",
        "X' minus real",
        "false claims accepted, %",
        "X': yes / partly / no, %",
    )
    rows = [
        (
            name,
            cell(_pick(accuracy, "all", reader), 1, 100),
            cell(_pick(minus, "accuracy", reader), 1, 100),
            cell(_pick(realism, "all", reader)),
            cell(_pick(minus, "realism", reader)),
            cell(_pick(matches, "yes", reader), 1, 100),
            " / ".join(_number(_pick(claimed, m, reader), 0, 100) for m in MATCHES),
        )
        for name, reader in _rows(scores)
    ]
    note = (
        "False claims accepted: phase 2 showed a real knee beside itself and claimed another grade; the reader answered "
        "that the change matches the label. A reader who does so often does not look, or wants to please. Realism of real "
        "knees is the ceiling of that of exchanged ones."
    )
    n = accuracy["all"]["mean"]["images"]
    return Table("Control", f"{n} real knees among the others{_mark(scores)}", headers, rows, [note])


def _arm_differences(scores: Scores) -> Table:
    headers = ("arms", "reader", "accuracy, points", "SRS")
    rows = [
        (
            pair,
            name,
            cell(_pick(by, "accuracy", reader), 1, 100),
            cell(_pick(by, "realism", reader)),
        )
        for pair, by in scores["arm_differences"].items()
        for name, reader in _rows(scores)
    ]
    return Table("Arms", "differences, with 95 % intervals; each arm has patients of its own", headers, rows)


def _inter_reader(scores: Scores) -> Table:
    """Kappas, by kind of image; and of the realism scores."""
    by = {kind: found for kind, found in scores["inter_reader"].items() if found}
    kappas = {kind: dict(list_kappas(found)) for kind, found in by.items()}
    rows = [(name, *(cell(of[name]) for of in kappas.values())) for name in next(iter(kappas.values()), {})]
    if rows:
        rows.append(("all readers agree, %", *(cell(found["observed"], 1, 100) for found in by.values())))
        realism = [scores["inter_reader_realism"].get(kind, {}) for kind in by]
        rows.append(
            ("realism: Cohen, quadratic, mean", *(cell(r.get("cohen_quadratic_mean")) for r in realism))
        )
    note = (
        "Intervals: patients drawn with replacement, these readers. A dash: not defined, since all give the same grade. "
        "1.00 has no interval: no draw of images on which all agree differs."
    )
    return Table("Inter-reader agreement", f"between readers{_mark(scores)}", ("", *by), rows, [note])


def _intra_reader(scores: Scores) -> Table:
    headers = (
        "reader",
        "images shown twice",
        "kappa",
        "same grade, %",
        "images between, min / median",
    )
    rows = [
        (
            name,
            str(found["images"]),
            cell(found["kappa"]),
            cell(found["observed"], 1, 100),
            f"{found['between']['min']} / {found['between']['median']:g}",
        )
        for name, found in scores["intra_reader"].items()
        if found
    ]
    note = "Few images: read kappa beside the same grades; it is 0 or a dash where one of the readings is all one grade."
    return Table("Intra-reader agreement", "the same image twice in phase 1", headers, rows, [note])


def _confusions(scores: Scores) -> list[Table]:
    """One table for each kind: label in rows, grade given in columns, readers beside one another."""
    grades, found = scores["grades"], []
    for kind, by in scores["confusion"].items():
        headers = ("label", *(f"{name}: {g}" for name in by for g in grades))
        rows = [(g, *(str(n) for name in by for n in by[name][i])) for i, g in enumerate(grades)]
        caption = f"{_name(kind)}: counts of the grades that each reader gave"
        found.append(Table(f"Confusion, {kind}", caption, headers, rows))
    return found


def _confidence(scores: Scores) -> Table:
    """Is a reader surer where right?"""
    levels = sorted({level for by in scores["confidence"].values() for level in by["by_level"]})
    headers = (
        "reader",
        "mean if right",
        "mean if wrong",
        "AUROC",
        *(f"right at {level}, % (of)" for level in levels),
    )
    rows = []
    for name, by in scores["confidence"].items():
        at = [by["by_level"].get(level) for level in levels]
        cells = [f"{100 * a['accuracy']:.0f} ({a['images']})" if a else "-" for a in at]
        rows.append((name, *(_plain(by[k]) for k in ("mean_right", "mean_wrong", "auroc")), *cells))
    note = "AUROC of the confidence for being right: 0.5, it says nothing; 1, right answers are always the surer ones."
    return Table("Confidence", "1 to 5, on all images of phase 1", headers, rows, [note])


def _time(scores: Scores) -> Table:
    headers = (
        "reader",
        "median s, phase 1",
        "median s, phase 2",
        "minutes in all",
        "started",
        "finished",
        "file, sha256",
    )
    rows = []
    for facts in scores["readers"]:
        seconds = scores["seconds"][facts["reader"]]
        spent = [_plain(seconds[f"phase{n}"], 1) for n in (1, 2)]
        stamps = [str(facts[k] or "-")[:16].replace("T", " ") for k in ("started", "finished")]
        rows.append((facts["reader"], *spent, f"{facts['minutes']:.1f}", *stamps, str(facts["sha256"])[:12]))
    return Table(
        "Reading", "time spent on each image, and which file was scored (times in UTC)", headers, rows
    )


def _notes(scores: Scores) -> list[str]:
    readers, images = len(scores["readers"]), scores["accuracy"]["exchanged"]["all"]["mean"]["images"]
    average = (
        "that reader's, since there is one"
        if readers == 1
        else f"readers ({readers}) and patients both drawn, t"
    )
    found = [f"Intervals of one reader: Wilson, over {images} patients. Of the average: {average}."]
    agreed = scores["inter_reader"].get("exchanged")
    if agreed:
        found.append(
            f"kappa is the mean of Cohen's over pairs of readers: {cell(agreed['cohen_mean'])}; Fleiss' kappa: "
            f"{cell(agreed['fleiss'])}."
        )
    minus = scores["exchanged_minus_real"].get("accuracy")
    if minus:
        on_real = cell(scores["accuracy"][REAL]["all"]["mean"], 1, 100)
        found.append(f"Real knees: {on_real} %; exchanged minus real {cell(minus['mean'], 1, 100)} points.")
    else:
        found.append(
            "No real knees were among the images: these readers' accuracy on real ones is not known."
        )
    if scores["allow_seen"]:
        found.append("The weights had seen patients of this study in training (--allow-seen).")
    if scores["partial"]:
        found.append(f"PARTIAL: {scores['partial']}.")
    return found


def _name(kind: str) -> str:
    return {"exchanged": "all exchanged knees", REAL: "real knees"}.get(kind, f"arm {kind}")


def _mark(scores: Scores) -> str:
    return " - PARTIAL" if scores["partial"] else ""


def _rows(scores: Scores) -> list[tuple[str, str | None]]:
    """(name, reader) of each reader, then ("average", None) for the mean over readers."""
    return [*((facts["reader"], facts["reader"]) for facts in scores["readers"]), ("average", None)]


def _pick(tree: Mapping[str, Any], part: str, reader: str | None) -> Figure:
    """The figure of a part: of a reader, or with None of the mean over readers; empty where there is none."""
    entry = tree.get(part)
    if not entry:
        return {}
    found: Figure = entry["mean"] if reader is None else entry["readers"][reader]
    return found


def _number(figure: Figure | None, digits: int, factor: float = 1) -> str:
    """``86.3``; a dash where there is none."""
    return "-" if not figure or figure.get("mean") is None else f"{factor * figure['mean']:.{digits}f}"


def _interval(figure: Figure, digits: int, factor: float) -> str:
    """``79.6 to 91.2``; a dash where it is not defined."""
    low, high = figure.get("low"), figure.get("high")
    if low is None or high is None:
        return "-"
    return f"{factor * low:.{digits}f} to {factor * high:.{digits}f}"


def _plain(value: float | None, digits: int = 2) -> str:
    """A number that has no interval."""
    return "-" if value is None else f"{value:.{digits}f}"
