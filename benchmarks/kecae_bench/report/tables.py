"""The report's tables."""

from __future__ import annotations

from collections.abc import Sequence

from kecae_bench.classifiers import CLASSIFIERS
from kecae_bench.stats import ALL_METRICS
from kecae_bench.report.compare import Comparison
from kecae_bench.report.data import Cell, mean_sd
from kecae_bench.report.findings import Findings, by_length, mean_over, row_title, title
from kecae_bench.report.format import NAMES, Table, interval, judged, p_value, percent
from kecae_bench.stats import holm, sentence


def table_2(found: Findings) -> Table:
    """T -> T' of every classifier, as in the paper, with what is known of the difference."""
    rows = found.headline
    arm, base = rows[0].cell.shared, rows[0].base.shared
    table = Table(
        "Table II",
        f"Accuracy in percent, mean ± SD over runs (seeds{_folds(rows)}), trained on {base} (T) and on {arm} (T'). "
        "Difference in points with its 95 % interval over patients and seeds; p is Holm's, over these classifiers; "
        "McNemar's exact p is of the seeds' majority votes (knees that only T'/only T gets right). The "
        "paper's own figures: other images, one run each, no intervals.",
        ["classifier", "seeds", "T", "T'", "difference", "p (Holm)", "McNemar", "verdict", "paper T → T'"],
    )
    for c, p in zip(rows, found.adjusted, strict=True):
        d = c.differences["accuracy"]
        spec = CLASSIFIERS.get(c.cell.classifier)
        table.rows.append(
            [
                row_title(c.cell),
                str(len(c.seeds)),
                percent(*c.base_mean["accuracy"]),
                percent(*c.arm_mean["accuracy"]),
                interval(d),
                p_value(p),
                f"{p_value(c.vote.p)} ({c.vote.only_arm}/{c.vote.only_base})",
                judged(d),
                f"{spec.paper[0]:.2f} → {spec.paper[1]:.2f} ({spec.paper[1] - spec.paper[0]:+.2f})"
                if spec and spec.paper
                else "-",
            ]
        )
    if found.mean is not None:
        d = found.mean
        row = [f"mean over {mean_over(found)}", "", "", "", interval(d), p_value(d.p), "", judged(d), ""]
        table.rows.append(row)
    return table


def other_metrics(found: Findings) -> Table:
    """The same arms in the other metrics."""
    names = [name for name in ALL_METRICS if name != "accuracy"]
    table = Table(
        "Other metrics",
        "T → T' in percent and the difference in points with its 95 % interval (not corrected: six metrics were "
        "looked at). Precision and recall are of the higher grade where there are two, else means over grades. "
        "Of the calibration error (ten bins with equally many knees) less is better.",
        ["classifier", *(NAMES[name] for name in names)],
    )
    for c in found.headline:
        table.rows.append([row_title(c.cell), *(_change(c, name) for name in names)])
    return table


def sentences(found: Findings) -> list[tuple[str, str]]:
    """(classifier, what Table II says of it)."""
    family = len(found.headline)
    return [
        (
            row_title(c.cell),
            sentence(c.differences["accuracy"], ALL_METRICS["accuracy"], "accuracy", family, p),
        )
        for c, p in zip(found.headline, found.adjusted, strict=True)
    ]


def with_all_arms(found: Findings) -> list[str]:
    """Classifiers with more than the two arms of Table II."""
    names = [cell.classifier for cell in found.of("main")]
    return [name for name in dict.fromkeys(names) if names.count(name) > 2]


def all_arms(found: Findings) -> list[Table]:
    """For each of them a table for each base, which is its first row."""
    tables = []
    for name in with_all_arms(found):
        compared = [c for c in found.arms if c.cell.classifier == name]
        bases = {id(c.base): c.base for c in compared}
        tables += [_arms_of(base, [c for c in compared if c.base is base]) for base in bases.values()]
    return tables


def _arms_of(base: Cell, compared: Sequence[Comparison]) -> Table:
    table = Table(
        f"{title(base.classifier)}, arms against {base.label}",
        "Mean ± SD over runs, in percent. Differences in points from the first row, with equal augmentation and "
        "equal steps, over the seeds that both have; p is Holm's, over the arms of this table. Options of an arm "
        "are chosen by the validation patients, never by the rest of the row.",
        [
            "arm",
            "seeds",
            "validation AUROC",
            "accuracy",
            "AUROC",
            "calibration error",
            "accuracy − base",
            "AUROC − base",
            "p (Holm)",
            "verdict",
        ],
    )
    adjusted = holm([c.differences["accuracy"].p for c in compared])
    table.rows.append([*_figures_of(base), *["-"] * 4])
    for c, p in sorted(zip(compared, adjusted, strict=True), key=lambda pair: pair[0].cell.exchanges):
        d = c.differences
        row = [interval(d["accuracy"]), interval(d.get("auroc")), p_value(p), judged(d["accuracy"])]
        table.rows.append([*_figures_of(c.cell), *row])
    return table


def _figures_of(cell: Cell) -> list[str]:
    tested = (percent(*cell.test[m]) for m in ("accuracy", "auroc", "ece"))
    return [cell.label, str(len(cell.seeds)), percent(*cell.validation["auroc"]), *tested]


def control_table(found: Findings) -> Table:
    """T' against arms that add as much without a changed grade."""
    table = Table(
        "T' against controls",
        "T' minus a control with the same real knees, steps and augmentation: reconstructions X^ with their own "
        "labels (blur and decoding), X' of the same grade (exchanging as such), X' with shuffled labels (noise), "
        "further real knees (larger batches), T at as many steps (the paper's epochs of T'). Differences in points; a gain "
        "that a control has too is not of the new grade.",
        ["classifier", "patients", "T'", "control", "seeds", "accuracy", "AUROC", "verdict"],
        heads=4,
    )
    for c in found.controls:
        names = [title(c.cell.classifier), f"{c.cell.fraction:.0%}", c.cell.label, c.base.label]
        table.rows.append(_against(c, names))
    return table


def length_table(found: Findings) -> Table:
    """Whether a gain outlasts the training."""
    table = Table(
        "Length of training",
        "T' against T by how many real knees a training has shown (steps times batch, each knee as often as it came), of "
        "classifiers that were trained for several lengths on all training patients. Accuracy of the test patients in "
        "percent, mean ± SD over runs; differences in points. A gain that longer training takes away was speed.",
        ["classifier", "real knees", "arm", "seeds", "T", "with it", "accuracy", "AUROC", "verdict"],
        heads=3,
    )
    for c in by_length(found):
        names = [title(c.cell.classifier), f"{c.cell.shown:,}", c.cell.label]
        row = _against(c, names)
        row[4:4] = [percent(*c.base_mean["accuracy"]), percent(*c.arm_mean["accuracy"])]
        table.rows.append(row)
    return table


def scarcity_table(found: Findings) -> Table:
    """T, T' and its controls by the share of the training patients."""
    table = Table(
        "Few labels",
        "By the share of the training patients, of T and with what the arm adds: AUROC of the validation patients, by "
        "whom options are chosen; accuracy of the test patients in percent, mean ± SD over runs; differences in points, "
        "of which only those of accuracy make the verdict. Of the calibration error less is better. "
        "Weights may have seen the others' images: the last column says how many patients they know that T has not.",
        [
            "classifier",
            "patients",
            "arm",
            "seeds",
            "validation AUROC",
            "T",
            "with it",
            "accuracy",
            "AUROC",
            "calibration error",
            "verdict",
            "known to the weights only",
        ],
        heads=3,
    )
    order = sorted(
        found.scarcity, key=lambda c: (c.cell.classifier, c.cell.fraction, c.cell.exchanges, c.cell.label)
    )
    for c in order:
        d = c.differences
        table.rows.append(
            [
                title(c.cell.classifier),
                f"{c.cell.fraction:.0%}",
                c.cell.label,
                str(len(c.seeds)),
                " → ".join(f"{100 * _validation(of, c.seeds):.1f}" for of in (c.base, c.cell)),
                percent(*c.base_mean["accuracy"]),
                percent(*c.arm_mean["accuracy"]),
                interval(d["accuracy"]),
                interval(d.get("auroc")),
                interval(d.get("ece")),
                judged(d["accuracy"]),
                _outside(c.cell),
            ]
        )
    return table


def sampling_table(found: Findings) -> Table:
    """Fig. 5's question at the end of training."""
    table = Table(
        "Sampling size",
        "N exchanged pairs added to T, equal steps: test figures in percent, mean ± SD over seeds, and the "
        "difference from N = 0 in points.",
        ["classifier", "arm", "seeds", "accuracy", "AUROC", "accuracy − N = 0", "AUROC − N = 0", "verdict"],
        heads=2,
    )
    by_cell = {id(c.cell): c for c in found.sampling}
    for cell in sorted(found.of("sampling"), key=lambda cell: (cell.classifier, cell.variant.get("N") or 0)):
        row = [
            title(cell.classifier),
            cell.label,
            str(len(cell.seeds)),
            percent(*cell.test["accuracy"]),
            percent(*cell.test["auroc"]),
        ]
        c = by_cell.get(id(cell))
        table.rows.append([*row, *(_against(c, [])[1:] if c else ["-", "", ""])])
    return table


def _against(c: Comparison, names: Sequence[str]) -> list[str]:
    d = c.differences
    word = judged(d["accuracy"])
    return [*names, str(len(c.seeds)), interval(d["accuracy"]), interval(d.get("auroc")), word]


def _validation(cell: Cell, seeds: Sequence[int]) -> float:
    return mean_sd([line["validation"]["auroc"] for (seed, _), line in cell.runs.items() if seed in seeds])[0]


def _outside(cell: Cell) -> str:
    if not any(line.get("weights") for line in cell.runs.values()):
        return "-"
    counts = [(line.get("weights") or {}).get("patients_outside_T") for line in cell.runs.values()]
    known = [count for count in counts if count is not None]
    return (
        f"{min(known):,}" + (f" to {max(known):,}" if max(known) > min(known) else "")
        if known
        else "not known"
    )


def _change(c: Comparison, name: str) -> str:
    if name not in c.differences:
        return "-"
    first, second = c.base_mean[name][0], c.arm_mean[name][0]
    return f"{100 * first:.1f} → {100 * second:.1f}\n{interval(c.differences[name])}"


def _folds(rows: Sequence[Comparison]) -> str:
    most = max(c.folds for c in rows)
    return f" and {most} folds" if most > 1 else ""
