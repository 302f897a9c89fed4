"""Figures as Markdown tables, for the card and the terminal; :mod:`kecae_training.evaluate.page` has the same as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kecae_training.evaluate.criteria import at

Row = tuple[str, ...]


def cell(value: Mapping[str, Any] | None, digits: int = 2, factor: float = 1.0) -> str:
    """``0.81 (0.78 to 0.84)``; without an interval where it has no width, a dash where there is no figure."""
    if not value or value.get("mean") is None:
        return "-"
    if value["low"] == value["high"] == value["mean"]:
        return f"{factor * value['mean']:.{digits}f}"
    ends = [f"{factor * v:.{digits}f}" if v is not None else "?" for v in (value["low"], value["high"])]
    return f"{factor * value['mean']:.{digits}f} ({' to '.join(ends)})"


def markdown(head: Row, rows: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def oracle_rows(
    figures: Mapping[str, Any], classes: Sequence[str], intervals: bool = True
) -> tuple[Row, list[Row]]:
    """What every oracle predicts for real knees, X^ and each X': head and rows.

    Args:
        figures: of one weights file (oracles of several are not the same).
        classes: names of the grades.
        intervals: whether the fractions have theirs; the single figure always has.
    """
    names = list(figures["real"])
    single = "AUROC" if len(classes) == 2 else "kappa"
    head = ("images", *(f"{n}: predicted {' / '.join(classes)}, {single}" for n in names))
    kinds = [("real", figures["real"]), ("X^ (reconstructed, own label)", figures["reconstructed"])]
    kinds += [
        (f"X' ({kind}, donor's label)", value["oracles"]) for kind, value in figures["exchanged"].items()
    ]
    rows = []
    for kind, by in kinds:
        cells = []
        for name in names:
            fractions = [by[name][f"predicted_{c}"] for c in classes]
            predicted = " / ".join(cell(f) if intervals else cell(f).split(" ")[0] for f in fractions)
            one = by[name].get(single.lower())
            cells.append(predicted + (f", {cell(one)}" if one else ""))
        rows.append((kind, *cells))
    return head, rows


def table(figures: Mapping[str, Any], classes: Sequence[str]) -> str:
    """:func:`oracle_rows` as Markdown."""
    return markdown(*oracle_rows(figures, classes))


def criterion_rows(figures: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Every criterion with its figure and verdict."""
    rows: list[Row] = []
    group = ""
    for c in figures.get("criteria", []):
        first = c["group"] if c["group"] != group else ""
        rows.append(
            (first, c["criterion"], c["accepted"], figure_cell(c["figure"], c["accepted"]), c["verdict"])
        )
        group = c["group"]
    return ("", "criterion", "accepted", "measured (95 % interval)", "verdict"), rows


def figure_cell(figure: Mapping[str, Any], accepted: str) -> str:
    """:func:`cell` of a criterion's figure, with the digits that its range calls for."""
    mean = abs(figure["mean"])
    digits = (
        1 if accepted.endswith("dB") or mean > 10 else 4 if 0 < mean < 0.005 else 2
    )  # one copy in 540 is not 0.00
    return cell(figure, digits)


def headline_rows(figures: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Means over the oracles at every strength; and how far the discriminator certifies itself."""
    exchanged = figures["exchanged"]
    keys = list(
        dict.fromkeys(k for v in exchanged.values() for k, f in at(v, "headline").items() if "mean" in f)
    )
    keys = [k for k in keys if k.endswith("over_real")]
    names = [k.removesuffix("_over_real").replace("auroc", "AUROC").replace("flip_", "flip ") for k in keys]
    gaps = list(dict.fromkeys(k for v in exchanged.values() for k in v.get("discriminator_gap", {})))
    head = (
        "X'",
        *(f"{n} over real" for n in names),
        *(f"discriminator {g.replace('_', ' ')} less oracles" for g in gaps),
    )
    rows = [
        (
            kind,
            *(cell(v["headline"].get(k)) for k in keys),
            *(cell(at(v, "discriminator_gap", g)) for g in gaps),
        )
        for kind, v in exchanged.items()
    ]
    return head, rows


def anatomy_rows(figures: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """The JSW measurement: fraction of the gap that is moved, by kind and direction, and what it could not measure."""
    part = figures.get("anatomy") or {}
    names = list(part.get("gap", {}))
    head = ("X'", *(f"{n}: moved, of a gap of {cell(part['gap'][n])} %" for n in names), "not measured")
    rows = [
        (kind, *(cell(by.get(n)) for n in names), cell(at(part, "not_measured", kind), 3))
        for kind, by in part.get("moved", {}).items()
    ]
    rows += [
        (f"{detail}: rank correlation with strength", *(cell(by.get(n)) for n in names), "")
        for detail, by in part.get("follows_strength", {}).items()
    ]
    return head, rows


def phantom_rows(figures: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """X' of phantoms against the drawn truth."""
    keys = ("joint_space", "osteophytes", "joint_space_and_sclerosis", "whole", "explained")
    head = (
        "X'",
        "direction",
        "joint space (jsw)",
        "osteophytes",
        "rest of the key",
        "whole",
        "fraction explained",
    )
    rows = [
        (kind, direction, *(cell(by.get(k)) for k in keys))
        for kind, directions in (figures.get("phantoms") or {}).items()
        if kind != "gap"
        for direction, by in directions.items()
    ]
    return head, rows


def identity_rows(figures: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Nearest knee, PSNR outside the joint, near copies."""
    head = (
        "images",
        "host is nearest, L1",
        "host is nearest, SSIM",
        "donor is nearest, L1",
        "PSNR outside the joint, dB",
        "copies of donor",
        "of others",
        "of training images",
    )
    rows = []
    for kind, by in (figures.get("identity") or {}).items():
        nearest = [
            cell(at(by, *path))
            for path in (("host_is_nearest", "l1"), ("host_is_nearest", "ssim"), ("donor_is_nearest", "l1"))
        ]
        copies = [cell(at(by, "copies", f"of_{whom}"), 3) for whom in ("donor", "other", "training")]
        rows.append((kind, *nearest, cell(by.get("psnr_outside"), 1), *copies))
    return head, rows


def robustness_rows(figures: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Mean over the oracles of AUROC (kappa for more grades) as it is, and what each degradation takes from it."""
    part = figures.get("robustness") or {}
    kinds = list(next(iter(part.values()))["lost"]) if part else []
    head = ("images", "as they are", *(f"lost after {k}; accuracy" for k in kinds))
    rows = [
        (
            name,
            cell(by["undegraded"]),
            *(f"{cell(by['lost'][k], 3)}; {cell(at(by, 'balanced_lost', k), 3)}" for k in kinds),
        )
        for name, by in part.items()
    ]
    return head, rows


def probe_rows(figures: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """What can be read from the latents, beside chance."""
    part = figures.get("probes") or {}
    rows: list[Row] = []
    for name, by in part.items():
        chance = at(part, "chance", name.split("_")[0])
        if name == "chance":
            continue
        if name == "paper_svm":
            rows.append(("grade in key, plain accuracy of the SVM (the paper's figure)", cell(by), "-", ""))
        elif "mean" in by:
            rows.append((name.replace("_", " ") + " (likeness)", cell(by), "-", f"{chance}"))
        else:
            rows.append((name.replace("_", " "), cell(by.get("svm")), cell(by.get("linear")), f"{chance}"))
    return ("probe", "SVM (Gaussian kernel)", "linear", "chance"), rows


def realism_rows(figures: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Distances to real knees, and balanced accuracy of two-sample classifiers."""
    part = figures.get("realism") or {}
    distances, two_sample = part.get("distances") or {}, part.get("two_sample") or {}
    keys = list(dict.fromkeys(k for by in distances.values() for k in by if not k.endswith("_over_floor")))
    ways = list(dict.fromkeys(k for by in two_sample.values() for k in by))
    head = ("images", *(k.replace("_", " ") for k in keys), *(f"two-sample accuracy, {w}" for w in ways))
    rows = [
        (kind, *(cell(by.get(k), 3) for k in keys), *(cell(at(two_sample, kind, w)) for w in ways))
        for kind, by in distances.items()
    ]
    return head, rows
