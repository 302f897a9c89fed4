"""The figures of a study as tables: plain text for the terminal, CSV and HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kecae_training.reader_study.agreement import kappas
from kecae_training.reader_study.formats import MATCHES, REAL
from kecae_training.reader_study.table_text import Figure, Table, ends_of, interval, number, pick, plain
from kecae_training.validity.tables import cell

Scores = Mapping[str, Any]


def all_tables(scores: Scores) -> list[Table]:
    """Every table that has rows, Table III first."""
    found = [table_3(scores)]
    found += [table_3(scores, arm) for arm in scores["arms"] if arm in scores["accuracy"]]
    found += [differences(scores), control(scores), agreement(scores), oneself(scores)]
    found += [*confusions(scores), confidence(scores), time(scores)]
    return [table for table in found if table.rows]


def text(scores: Scores) -> str:
    """Every table, for the terminal and ``table3.txt``."""
    return "\n\n".join(table.text() for table in all_tables(scores))


def table_3(scores: Scores, kind: str = "exchanged") -> Table:
    """Table III of all exchanged knees or of one arm; in brackets by label, as in the paper."""
    accuracy, realism = scores["accuracy"].get(kind, {}), scores["realism"].get(kind, {})
    of = "all exchanged knees" if kind == "exchanged" else f"arm {kind}"
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
    kappa = scores["agreement"].get(kind, {}).get("cohen_mean")
    rows = [
        (
            name,
            *_figures(scores, accuracy, name, 100, 1),
            *_realism(scores, realism, name),
            "-",
        )
        for name in _names(scores)
    ]
    rows.append(
        (
            "average",
            *_figures(scores, accuracy, None, 100, 2),
            *_realism(scores, realism, None),
            number(kappa, 2),
        )
    )
    n = accuracy["all"]["mean"]["images"] if accuracy else 0
    name = "Table III" if kind == "exchanged" else f"Table III, {kind}"
    caption = (
        f"{of}, {n} images in phase 1{_partial(scores)}. In brackets by the label that they should have."
    )
    return Table(name, caption, headers, rows, _notes(scores, kind) if kind == "exchanged" else [])


def table_3_rows(scores: Scores) -> list[list[Any]]:
    """Table III of every kind of image as numbers: shares, not percent; one row a kind and reader, and the average."""
    ends = ("", "_low", "_high")
    head = ["images", "reader", "n_phase1", "n_phase2", "partial"]
    head += [f"accuracy{e}" for e in ends] + [f"accuracy_{g}" for g in scores["grades"]]
    head += [f"srs{e}" for e in ends] + ["srs_sd"] + [f"srs_{g}" for g in scores["grades"]]
    head += [f"{k}{e}" for k in ("cohen_mean", "fleiss") for e in ends]
    rows: list[list[Any]] = [head]
    for kind, accuracy in scores["accuracy"].items():
        realism = scores["realism"].get(kind, {})
        for name in (*_names(scores), None):
            one, two = _of(accuracy, "all", name), _of(realism, "all", name)
            row: list[Any] = [
                kind,
                name or "average",
                one["images"],
                two.get("images", 0),
                bool(scores["partial"]),
            ]
            row += ends_of(one) + [_of(accuracy, g, name).get("mean") for g in scores["grades"]]
            row += [
                *ends_of(two),
                two.get("sd"),
                *(_of(realism, g, name).get("mean") for g in scores["grades"]),
            ]
            agreed = scores["agreement"].get(kind, {}) if name is None else {}
            row += [v for k in ("cohen_mean", "fleiss") for v in ends_of(agreed.get(k) or {})]
            rows.append(row)
    return rows


def differences(scores: Scores) -> Table:
    """Arms against each other."""
    headers = ("arms", "reader", "accuracy, points", "SRS")
    rows = []
    for pair, by in scores["arms"].items():
        for name in (*_names(scores), None):
            cells = (
                cell(pick(by.get(k), name), d, f) for k, d, f in (("accuracy", 1, 100), ("realism", 2, 1))
            )
            rows.append((pair, name or "average", *cells))
    return Table("Arms", "differences, with 95 % intervals; each arm has patients of its own", headers, rows)


def control(scores: Scores) -> Table:
    """Real knees: graded as their label says, rated, and waved through."""
    if REAL not in scores["accuracy"]:
        return Table("Control", "", ("",))
    accuracy, realism, matches = (scores[k].get(REAL, {}) for k in ("accuracy", "realism", "matches"))
    claimed = scores["matches"].get("exchanged", {})
    headers = (
        "reader",
        "real: accuracy, %",
        "X' less real, points",
        "real: SRS",
        "X' less real",
        "waved through, %",
        "X': yes / partly / no, %",
    )
    rows = []
    for name in (*_names(scores), None):
        shares = " / ".join(number(pick(claimed.get(m), name), 0, 100) for m in MATCHES)
        rows.append(
            (
                name or "average",
                cell(_of(accuracy, "all", name), 1, 100),
                cell(pick(scores["control"].get("accuracy"), name), 1, 100),
                cell(_of(realism, "all", name)),
                cell(pick(scores["control"].get("realism"), name)),
                cell(pick(matches.get("yes"), name), 1, 100),
                shares,
            )
        )
    note = (
        "Waved through: phase 2 showed a real knee beside itself and claimed another grade; the reader answered that the "
        "change is what the label says. A reader who does so often has not looked, or wants to please. Realism of real "
        "knees is the ceiling of that of exchanged ones."
    )
    n = accuracy["all"]["mean"]["images"]
    return Table("Control", f"{n} real knees among the others{_partial(scores)}", headers, rows, [note])


def agreement(scores: Scores) -> Table:
    """Kappas, by kind of image; and of the realism scores."""
    by = scores["agreement"]
    there = [kind for kind in by if by[kind]]
    if not there:
        return Table("Agreement", "", ("",))
    names = [name for name, _ in kappas(by[there[0]])]
    rows = [(name, *(cell(dict(kappas(by[kind]))[name]) for kind in there)) for name in names]
    rows.append(("all say the same, %", *(cell(by[kind]["same"], 1, 100) for kind in there)))
    realism = scores["realism_agreement"]
    rows.append(
        (
            "realism: Cohen, quadratic, mean",
            *(cell(realism.get(kind, {}).get("cohen_quadratic_mean")) for kind in there),
        )
    )
    note = (
        "Intervals: patients drawn with replacement, these readers. A dash: not defined, since all say the same grade. 1.00 "
        "has no interval: no draw of images on which all agree differs."
    )
    return Table("Agreement", f"between readers{_partial(scores)}", ("", *there), rows, [note])


def oneself(scores: Scores) -> Table:
    """Readers against themselves."""
    headers = (
        "reader",
        "images shown twice",
        "kappa",
        "same grade, %",
        "images between, least / median",
    )
    rows = [
        (
            name,
            str(found["images"]),
            cell(found["kappa"]),
            cell(found["same"], 1, 100),
            f"{found['apart']['least'] - 1} / {found['apart']['median'] - 1:g}",
        )
        for name, found in scores["oneself"].items()
        if found
    ]
    note = "Few images: read the share beside kappa, which is 0 or a dash where one look is all one grade, however alike."
    return Table("Agreement with oneself", "the same image twice in phase 1", headers, rows, [note])


def confusions(scores: Scores) -> list[Table]:
    """One table for each kind: label in rows, grade said in columns, readers beside one another."""
    grades, found = scores["grades"], []
    for kind, by in scores["confusion"].items():
        headers = ("should be", *(f"{name}: {g}" for name in by for g in grades))
        rows = [(g, *(str(n) for name in by for n in by[name][i])) for i, g in enumerate(grades)]
        what = (
            "real knees" if kind == REAL else "all exchanged knees" if kind == "exchanged" else f"arm {kind}"
        )
        found.append(Table(f"Confusion, {kind}", f"{what}: counts of what each reader said", headers, rows))
    return found


def confidence(scores: Scores) -> Table:
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
        cells = [f"{100 * a['right']:.0f} ({a['images']})" if a else "-" for a in at]
        rows.append((name, *(plain(by[k]) for k in ("right", "wrong", "auroc")), *cells))
    note = "AUROC of the confidence for being right: 0.5, it says nothing; 1, right answers are always the surer ones."
    return Table("Confidence", "1 to 5, on all images of phase 1", headers, rows, [note])


def time(scores: Scores) -> Table:
    """Of readers: how long, when."""
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
        spent = [plain(seconds[f"phase{n}"], 1) for n in (1, 2)]
        stamps = [str(facts[k] or "-")[:16].replace("T", " ") for k in ("started", "finished")]
        rows.append((facts["reader"], *spent, f"{facts['minutes']:.1f}", *stamps, str(facts["sha256"])[:12]))
    return Table(
        "Reading", "time spent on each image, and which file was scored (times in UTC)", headers, rows
    )


def _notes(scores: Scores, kind: str) -> list[str]:
    readers, images = len(_names(scores)), scores["accuracy"][kind]["all"]["mean"]["images"]
    found = [
        f"Intervals of one reader: Wilson, over {images} patients. Of the average: "
        + (
            "that reader's, since there is one."
            if readers == 1
            else f"readers ({readers}) and patients both drawn, t."
        )
    ]
    agreed = scores["agreement"].get(kind)
    if agreed:
        found.append(
            f"kappa is the mean of Cohen's over pairs of readers: {cell(agreed['cohen_mean'])}; Fleiss' kappa: "
            f"{cell(agreed['fleiss'])}."
        )
    control_ = scores["control"].get("accuracy")
    if control_:
        on_real = cell(scores["accuracy"][REAL]["all"]["mean"], 1, 100)
        found.append(f"Real knees: {on_real} %; exchanged less real {cell(control_['mean'], 1, 100)} points.")
    else:
        found.append(
            "No real knees were among the images: what these readers reach on real ones is not known."
        )
    if scores["allow_seen"]:
        found.append("The weights had seen patients of this study in training (--allow-seen).")
    if scores["partial"]:
        found.append(f"PARTIAL: {scores['partial']}.")
    return found


def _partial(scores: Scores) -> str:
    return " - PARTIAL" if scores["partial"] else ""


def _names(scores: Scores) -> list[str]:
    return [facts["reader"] for facts in scores["readers"]]


def _of(tree: Mapping[str, Any], part: str, name: str | None) -> Figure:
    """The figure of a part: of a reader, or None for the mean over readers."""
    return pick(tree.get(part), name)


def _figures(
    scores: Scores, tree: Mapping[str, Any], name: str | None, factor: float, digits: int
) -> tuple[str, str]:
    parts = " / ".join(number(_of(tree, g, name), 1, factor) for g in scores["grades"])
    whole = _of(tree, "all", name)
    return f"{number(whole, digits, factor)} ({parts})", interval(whole, 1, factor)


def _realism(scores: Scores, tree: Mapping[str, Any], name: str | None) -> tuple[str, str, str]:
    parts = " / ".join(number(_of(tree, g, name), 2) for g in scores["grades"])
    whole = _of(tree, "all", name)
    return f"{number(whole, 2)} ({parts})", plain(whole.get("sd")), interval(whole, 2, 1)
