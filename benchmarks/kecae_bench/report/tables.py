"""The report's tables: two full ones as CSV, and what a page shows of them.

``build`` makes the rows from runs; everything below it reads rows only, as they stand in the CSV files, so that a page can
be written, and checked, without the runs.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kecae_bench.classifiers import CLASSIFIERS, TABLE_2
from kecae_bench.record import RESULTS
from kecae_bench.report.cells import INSIDE, Cell, Comparison, Study, pool_classifiers
from kecae_bench.stats import METRICS, Difference, detectable, format_points, holm, patients_needed

Row = dict[str, Any]
Progress = Callable[[Sequence[Cell]], Iterable[Cell]]
FOLDER = RESULTS / "report"  # of the project's own runs
MEAN = "mean over"
PAPER = {s.title: (s.paper[1] - s.paper[0]) / 100 for s in CLASSIFIERS.values() if s.paper}
WORDS = {
    "T": "real images alone",
    "T'": "real images, and exchanged ones with their new labels beside them",
    "control": "what adds as many images without a changed grade: reconstructions X^ with their own labels (blur), X' of "
    "the same grade (exchanging as such), X' with permuted labels (noise), further real images (larger batches); or "
    "MixUp and CutMix. The best one is the one with the highest AUROC, whichever that is",
    "images": "real images shown in a training, each as often as it came",
    "interval": "of 95 %, over patients and seeds; of one seed over patients only",
}


class Case(NamedTuple):
    """A row of README's table: words, and which row of the differences it shows."""

    words: str
    fraction: float
    images: int
    known_patients: str = "kept"
    inside: bool = False
    arm: str = "T'"


WHEN = (
    Case("few labels; the weights were trained with many more", 0.1, 32_000),
    Case("few labels, and unlabelled images to put the keys into", 0.1, 32_000, arm="T' unlabelled hosts"),
    Case("few labels, and all your images are new to the weights", 0.2, 32_000, "left out"),
    Case("few labels, and weights trained on these alone", 0.1, 32_000, inside=True),
    Case("as many labels as the weights, a short training", 1.0, 4_000),
    Case("as many labels as the weights, trained to convergence", 1.0, 32_000),
)
WHEN_CLASSIFIER = "compact VGG"


# --- from runs to rows


def build(study: Study, progress: Progress = lambda cells: cells) -> tuple[list[Row], list[Row]]:
    """Rows of arms.csv and of differences.csv; those of the page have ``page`` 1.

    Of each setting and classifier the page shows one T': the plain arm, with the options that most classifiers of the
    setting were run with, then most runs, then the usual way of training; never the one that did best.
    """
    arms = [_describe_arm(cell) for cell in study.cells]
    made: list[tuple[Row, Comparison]] = []
    for cell in progress(study.cells):
        for base in (study.base_of(cell), *study.rivals_of(cell)):
            found = study.try_to_compare(cell, base)
            if found is not None:
                made.append((_describe_difference(found), found))
    pooled = []
    for setting, of in _group(made, lambda pair: pair[0]["setting"]).items():
        shown = _choose([pair for pair in of if pair[0]["base"] == "T" and pair[1].cell.exchanges])
        for row, _ in shown:
            row["page"] = 1
        pooled += _pool(setting, shown)
    return arms, [row for row, _ in made] + pooled


def _describe_cell(cell: Cell) -> Row:
    return {
        "setting": cell.setting,
        "classifier": cell.title,
        "arm": cell.arm,
        "options": cell.options,
        "fraction": cell.fraction,
        "images": cell.images,
        "known_patients": cell.settings.get("known_patients", "kept"),
        "weights": cell.variant.get("weights") or "",
    }


def _describe_arm(cell: Cell) -> Row:
    row = _describe_cell(cell) | {"seeds": len(cell.seeds), "runs": len(cell.runs)}
    for part in ("validation", "test"):
        for metric, (mean, sd) in cell.summarise(part).items():
            row |= {f"{part}_{metric}": _round(mean), f"{part}_{metric}_sd": _round(sd)}
    seconds = [line.get("seconds", float("nan")) for line in cell.runs.values()]
    return row | {"minutes_a_run": round(sum(seconds) / len(seconds) / 60, 1)}


def _describe_difference(c: Comparison) -> Row:
    row = _describe_cell(c.cell) | {"base": c.base.arm, "base_options": c.base.options, "page": 0}
    row |= {
        "seeds": len(c.seeds),
        "folds": c.folds,
        "test_patients": next(iter(c.differences.values())).patients,
    }
    for metric in METRICS:
        row |= {
            f"{metric}_base": _round(c.base_mean[metric][0]),
            f"{metric}_arm": _round(c.arm_mean[metric][0]),
        }
        row |= _describe_interval(metric, c.differences.get(metric))
        if metric in ("accuracy", "auroc"):
            row |= _describe_power(metric, c.differences.get(metric))
    return row | {
        "vote_only_arm": c.vote.only_arm,
        "vote_only_base": c.vote.only_base,
        "vote_p": _round(c.vote.p),
    }


def _describe_interval(metric: str, d: Difference | None) -> Row:
    if d is None:
        return dict.fromkeys((f"{metric}{end}" for end in ("", "_low", "_high", "_p", "_by_seed")), "")
    figures = {"": d.mean, "_low": d.low, "_high": d.high, "_p": d.p}
    by_seed = " ".join(str(_round(value)) for value in d.by_seed)
    return {f"{metric}{end}": _round(value) for end, value in figures.items()} | {
        f"{metric}_by_seed": by_seed
    }


def _describe_power(metric: str, d: Difference | None) -> Row:
    """From which size on such a study finds a difference, and how many patients it takes for the one that was seen."""
    found = {"detectable": _round(detectable(d)), "patients_needed": patients_needed(d) or ""} if d else {}
    return {f"{metric}_{name}": found.get(name, "") for name in ("detectable", "patients_needed")}


def _choose(candidates: Sequence[tuple[Row, Comparison]]) -> list[tuple[Row, Comparison]]:
    """One of each classifier: see :func:`build`."""
    spread = {
        options: len({c.cell.classifier for _, c in of})
        for options, of in _group(candidates, lambda pair: (pair[0]["arm"], pair[0]["options"])).items()
    }

    def rank(pair: tuple[Row, Comparison]) -> tuple[bool, int, int, bool]:
        row, cell = pair[0], pair[1].cell
        usual = "(" not in row["classifier"]
        return row["arm"] == "T'", spread[row["arm"], row["options"]], len(cell.runs), usual

    by_classifier = _group(candidates, lambda pair: pair[1].cell.classifier)
    return [max(of, key=rank) for of in by_classifier.values()]


def _pool(setting: str, shown: Sequence[tuple[Row, Comparison]]) -> list[Row]:
    """The mean over the paper's classifiers, where a setting has three of them; else over all, where it has three."""
    of_paper = [pair for pair in shown if pair[1].cell.classifier in TABLE_2]
    of = of_paper if len(of_paper) > 2 else list(shown)
    found = {metric: pool_classifiers([c for _, c in of], metric) for metric in METRICS}
    if found["accuracy"] is None:
        return []
    row = {**of[0][0], "classifier": f"{MEAN} {len(of)}{' of the paper' * (of is of_paper)}"}
    seeds = set.intersection(*(set(c.seeds) for _, c in of))
    row |= dict.fromkeys(
        (name for name in row if name.endswith(("_arm", "_base", "vote_p", "_needed", "_detectable"))), ""
    )
    row |= {"seeds": len(seeds), "page": 1, "setting": setting}
    for metric, difference in found.items():
        row |= _describe_interval(metric, difference)
    return [row]


# --- CSV


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Rows that all have the same columns."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]) if rows else ["setting"], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def read_csv(path: Path) -> list[Row]:
    """Rows as :func:`build` made them: numbers as numbers, nothing as ``""``.

    Raises:
        FileNotFoundError: with the command that makes it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; python -m kecae_bench.report makes it")
    with path.open(newline="") as file:
        return [{name: _parse(name, text) for name, text in row.items()} for row in csv.DictReader(file)]


def _parse(name: str, text: str) -> Any:
    if name in (
        "setting",
        "classifier",
        "arm",
        "options",
        "base",
        "base_options",
        "known_patients",
        "weights",
    ):
        return text
    if name.endswith("_by_seed") or not text:
        return text
    return float(text) if any(c in text for c in ".en") else int(text)


# --- what a page shows


def select_page(rows: Sequence[Row]) -> list[Row]:
    """The page's rows: a T' of each setting and classifier beside T, by setting; the shortest training first."""
    shown = [row for row in rows if row["page"]]
    order = list(dict.fromkeys(row["setting"] for row in sorted(shown, key=_order)))
    return sorted(shown, key=lambda row: (order.index(row["setting"]), row["classifier"].startswith(MEAN)))


def _order(row: Row) -> tuple[Any, ...]:
    inside = row["weights"] == INSIDE
    return row["known_patients"] != "kept", inside, -float(row["fraction"]), row["images"], row["setting"]


def find_rivals(row: Row, rows: Sequence[Row]) -> list[Row]:
    """The same T' beside each of its controls."""
    same = ("setting", "classifier", "arm", "options", "weights")
    return [r for r in rows if r["base"] != "T" and all(r[name] == row[name] for name in same)]


def render_results(rows: Sequence[Row]) -> str:
    """The page's table and sentences.

    Args:
        rows: of differences.csv.
    """
    shown = select_page(rows)
    if not shown:
        return "No T' has been run beside its T yet, so nothing can be said."
    adjusted = dict(zip(map(id, shown), holm([row["auroc_p"] for row in shown]), strict=True))
    header = ["setting", "classifier", "seeds", "T", "best control", "T + X^", "T'", "T' − T", "p (Holm)"]
    header += ["T' − best control", "accuracy, T' − T"]
    lines, last = [], ""
    for row in shown:
        rivals = find_rivals(row, rows)
        best = max(rivals, key=lambda r: r["auroc_base"], default=None)
        x_hat = next((r["auroc_base"] for r in rivals if r["base"] == "T + X^"), "")
        cells = ["" if row["setting"] == last else row["setting"], row["classifier"], str(row["seeds"])]
        cells += [
            _percent(row["auroc_base"]),
            f"{_percent(best['auroc_base'])} ({best['base']})" if best else "-",
        ]
        cells += [
            _percent(x_hat),
            _percent(row["auroc_arm"]),
            spell(row, "auroc"),
            spell_p(adjusted[id(row)]),
        ]
        cells += [spell(best, "auroc") if best else "-", spell(row, "accuracy")]
        lines.append(cells)
        last = row["setting"]
    test = sorted({row["test_patients"] for row in shown}, reverse=True)
    caption = (
        "AUROC in percent on test patients whom neither weights nor classifier have seen "
        f"({' or '.join(f'{n:,}' for n in test)} of them); differences in points with 95 % intervals; p of T' − T, "
        f"corrected over the {len(shown)} rows of the table."
    )
    said = "\n".join(f"- {text}" for text in describe_settings(rows))
    return f"{said}\n\n{caption}\n\n{render_table(header, lines)}"


def describe_settings(rows: Sequence[Row]) -> list[str]:
    """One sentence on each setting with a control: with which classifiers T' is above T, and above its best control."""
    said = []
    for setting, of in _group(select_page(rows), lambda row: row["setting"]).items():
        single = [row for row in of if not row["classifier"].startswith(MEAN)]
        against = [
            (row["classifier"], max(rivals, key=lambda r: r["auroc_base"]))
            for row in single
            if (rivals := find_rivals(row, rows))
        ]
        if against:
            text = f"{setting}: AUROC of T' is {_list_verdicts([(row['classifier'], row) for row in single], 'T')}"
            said.append(f"{text}; {_list_verdicts(against, 'the best control')}.")
    return said


def _list_verdicts(found: Sequence[tuple[str, Row]], base: str) -> str:
    words = {
        1: f"above {base} with",
        0: f"not significantly different from {base} with",
        -1: f"below {base} with",
    }
    by_side = _group(found, lambda pair: _side(pair[1], "auroc"))
    return ", ".join(
        f"{word} {_enumerate([name for name, _ in by_side[side]])}"
        for side, word in words.items()
        if side in by_side
    )


def render_when(rows: Sequence[Row]) -> str:
    """README's table: when T' helps, and when it does not.

    Raises:
        ValueError: a case of :data:`WHEN` has no row, or several.
    """
    lines = []
    for case in WHEN:
        found = [row for row in rows if _matches(row, case)]
        if len(found) != 1:
            raise ValueError(f"WHEN: {case.words!r} has {len(found)} rows of differences.csv, one is needed")
        verdict = {1: "better", 0: "no significant difference", -1: "worse"}[_side(found[0], "auroc")]
        lines.append([case.words, verdict, spell(found[0], "auroc")])
    return render_table(["you have", "T' against T", "AUROC, points"], lines)


def _matches(row: Row, case: Case) -> bool:
    wanted = {
        "classifier": WHEN_CLASSIFIER,
        "arm": case.arm,
        "base": "T",
        "fraction": case.fraction,
        "images": case.images,
        "known_patients": case.known_patients,
    }
    plain = row["page"] or (case.arm != "T'" and not row["options"])
    return (
        bool(plain)
        and all(row[k] == v for k, v in wanted.items())
        and (row["weights"] == INSIDE) == case.inside
    )


def render_short(shown: Sequence[Row], rows: Sequence[Row], first: str) -> str:
    """Some of the page's rows with six columns, as docs/results.md shows them.

    Args:
        shown: what is in the table, in its order.
        rows: all of differences.csv, for controls and for Holm's correction.
        first: what tells the rows apart, ``"setting"`` or ``"classifier"``.
    """
    page = select_page(rows)
    adjusted = dict(zip(map(id, page), holm([row["auroc_p"] for row in page]), strict=True))
    lines = []
    for row in shown:
        best = max(find_rivals(row, rows), key=lambda r: r["auroc_base"], default=None)
        against = f"{spell(best, 'auroc')}, {best['base']}" if best else "-"
        arms = [_percent(row["auroc_base"]), _percent(row["auroc_arm"])]
        difference = [spell(row, "auroc"), spell_p(adjusted[id(row)])]
        lines.append([row[first], str(row["seeds"]), *arms, *difference, against])
    return render_table([first, "seeds", "T", "T'", "T' − T", "p (Holm)", "T' − best control"], lines)


def make_classifiers_block() -> str:
    """Every classifier of the setting that has most of them."""
    rows = read_csv(FOLDER / "differences.csv")
    of = max(_group(select_page(rows), lambda row: row["setting"]).values(), key=len)
    return render_short(of, rows, "classifier")


def make_settings_block() -> str:
    """The classifier of README's table in every setting with three seeds or more."""
    rows = read_csv(FOLDER / "differences.csv")
    of = [row for row in select_page(rows) if row["classifier"] == WHEN_CLASSIFIER and row["seeds"] > 2]
    return render_short(of, rows, "setting")


def make_when_block() -> str:
    """README's table of the project's own runs."""
    return render_when(read_csv(FOLDER / "differences.csv"))


# --- words and tables


def spell(row: Row, metric: str) -> str:
    """A difference in points with its interval."""
    if row[metric] == "":
        return "-"
    mean, low, high = (format_points(row[f"{metric}{end}"]) for end in ("", "_low", "_high"))
    return f"{mean} ({low} to {high})"


def spell_p(p: float) -> str:
    """Two digits; no zero."""
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def render_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _side(row: Row, metric: str) -> int:
    """1 where the whole interval is above 0, -1 where it is below, else 0."""
    return int(row[f"{metric}_low"] > 0) - int(row[f"{metric}_high"] < 0)


def _enumerate(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _percent(value: float | str) -> str:
    return "-" if isinstance(value, str) else f"{100 * value:.1f}"


def _round(value: float) -> float | str:
    return "" if value != value else round(value, 6)  # NaN


def _group(of: Iterable[Any], by: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for one in of:
        groups.setdefault(by(one), []).append(one)
    return groups
