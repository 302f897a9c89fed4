"""Score a reader study: all figures from the readers' answers and the key, and the files that hold them.

The figures are a tree of dicts that is JSON as it is. Leaves are ``{"mean", "low", "high", ...}``, the interval 95 %
(:mod:`kecae_training.reader_study.intervals`).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kecae_training.reader_study import tables
from kecae_training.reader_study.formats import MATCHES, REAL, SCALE, Answers, Key
from kecae_training.reader_study.intervals import difference, inter_reader, intra_reader, mean_over_readers
from kecae_training.reader_study.ratings import Bools, Ints, Phase, Ratings, join

FORMAT = "kecae-aug reader study score"
VERSION = 2
BOUNDS = {"accuracy": (0.0, 1.0), "realism": (1.0, float(SCALE))}

Tree = dict[str, Any]
Floats = NDArray[np.float64]


def score(key: Key, answers: Sequence[Answers], left_out: Sequence[str] = ()) -> Tree:
    """All figures, as ``scores.json`` has them.

    Args:
        key: of the study.
        answers: of :func:`ratings.load_answers`.
        left_out: sentences about readers whose answers were not taken.

    Returns:
        The tree of :func:`figures`, with what it was made from: ``study``, ``title``, ``weights``, ``grades``,
        ``arms``, ``readers``, ``images`` (``used`` and ``of``, by phase) and ``partial`` (None, or why it is).

    Raises:
        ValueError: see :func:`ratings.join`.
    """
    ratings = join(key, answers)
    images = {
        f"phase{n}": {"used": len(phase.items), "of": phase.of}
        for n, phase in ((1, ratings.phase1), (2, ratings.phase2))
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "study": key["study"],
        "title": key["title"],
        "created": key["created"],
        "weights": key["weights"],
        "allow_seen": key["allow_seen"],
        "grades": key["grades"],
        "arms": key["arms"],
        "readers": [_describe_reader(a) for a in answers],
        "images": images,
        "partial": _explain_partial(answers, images, left_out),
        **figures(ratings),
    }


def figures(ratings: Ratings) -> Tree:
    """All figures.

    Returns:
        ``accuracy``, ``realism``: by kind of image ("exchanged", each arm where there are several, "real") and part ("all",
        each label, with more than two grades also the direction): ``{"mean": over readers, "readers": {name: ...}}``;
        realism also ``sd``. ``matches``: by kind and answer. ``exchanged_minus_real``, ``arm_differences``: of accuracy and
        realism. ``inter_reader``, ``inter_reader_realism``, ``intra_reader``: agreement. ``confusion``, ``confidence``,
        ``seconds``: by reader.
    """
    graded, rated = ratings.phase1, ratings.phase2
    right = (graded.values == graded.labels).astype(np.float64)
    realism = rated.values.astype(np.float64)
    kinds1, kinds2 = _kinds(ratings, graded), _kinds(ratings, rated)
    scores = {"accuracy": (graded, right, kinds1), "realism": (rated, realism, kinds2)}
    n, readers = len(ratings.grades), ratings.readers

    def subtract(one: str, other: str) -> Tree:
        """One kind of image minus another; empty where one of them is not there."""
        return {
            name: _by_reader(readers, BOUNDS[name], values[:, of[one]], values[:, of[other]])
            for name, (_, values, of) in scores.items()
            if one in of and other in of
        }

    def agreement(phase: Phase, mask: Bools, steps: int, least: int = 0) -> Tree:
        patients = [patient for patient, there in zip(phase.patients, mask, strict=True) if there]
        return inter_reader(phase.values[:, mask] - least, readers, patients, steps)

    return {
        **{
            name: {
                kind: {
                    part: _by_reader(readers, BOUNDS[name], values[:, mask & of])
                    for part, of in _parts(ratings, phase).items()
                }
                for kind, mask in kinds.items()
            }
            for name, (phase, values, kinds) in scores.items()
        },
        "matches": {
            kind: {
                answer: _by_reader(readers, (0.0, 1.0), (rated.others[:, mask] == i).astype(np.float64))
                for i, answer in enumerate(MATCHES)
            }
            for kind, mask in kinds2.items()
        },
        "exchanged_minus_real": subtract("exchanged", REAL),
        "arm_differences": {
            f"{one} - {other}": subtract(one, other) for one, other in combinations(ratings.arms, 2)
        },
        "inter_reader": {kind: agreement(graded, mask, n) for kind, mask in kinds1.items()},
        "inter_reader_realism": {kind: agreement(rated, mask, SCALE, 1) for kind, mask in kinds2.items()},
        "intra_reader": {
            name: intra_reader(r.first, r.second, r.patients, n, r.between)
            for name, r in zip(readers, ratings.repeats, strict=True)
        },
        "confusion": {
            kind: {
                name: _count_confusion(graded.labels[mask], graded.values[i, mask], n)
                for i, name in enumerate(readers)
            }
            for kind, mask in kinds1.items()
        },
        "confidence": {
            name: _summarise_confidence(right[i], graded.others[i]) for i, name in enumerate(readers)
        },
        "seconds": {
            name: {
                f"phase{p}": round(float(np.median(phase.seconds[i])), 1) if phase.items else None
                for p, phase in ((1, graded), (2, rated))
            }
            for i, name in enumerate(readers)
        },
    }


def _kinds(ratings: Ratings, phase: Phase) -> dict[str, Bools]:
    """Masks of each kind of image that is there: exchanged, each arm (of several), real."""
    found = {"exchanged": phase.exchanged}
    if len(ratings.arms) > 1:
        found |= {arm: phase.arms == arm for arm in ratings.arms}
    found[REAL] = ~phase.exchanged
    return {kind: mask for kind, mask in found.items() if mask.any()}


def _parts(ratings: Ratings, phase: Phase) -> dict[str, Bools]:
    """Masks of all, of each label; with more than two grades of each direction, too (of two, the label says it)."""
    found = {"all": np.ones(len(phase.items), np.bool_)}
    found |= {grade: phase.labels == i for i, grade in enumerate(ratings.grades)}
    if len(ratings.grades) > 2:
        found |= {
            "to a higher grade": phase.labels > phase.before,
            "to a lower grade": phase.labels < phase.before,
        }
    return found


def _by_reader(readers: Sequence[str], bounds: tuple[float, float], *values: Floats) -> Tree:
    """Mean of (R, N) values, or the difference of two, over readers and of each; of realism also the standard deviation."""

    def one(*tables: Floats) -> Tree:
        if len(tables) == 2:
            return difference(*tables, bounds).figure()
        found = mean_over_readers(tables[0], bounds).figure()
        if bounds == BOUNDS["realism"]:
            found["sd"] = round(float(tables[0].std(ddof=1)), 4) if tables[0].size > 1 else None
        return found

    by = {name: one(*(table[i : i + 1] for table in values)) for i, name in enumerate(readers)}
    return {"mean": one(*values), "readers": by}


def _count_confusion(labels: Ints, given: Ints, grades: int) -> list[list[int]]:
    """Label in rows, grade given in columns."""
    counts = np.bincount(labels * grades + given, minlength=grades * grades)
    return [[int(n) for n in row] for row in counts.reshape(grades, grades)]


def _summarise_confidence(right: Floats, confidence: Ints) -> Tree:
    """Is a reader surer where right? AUROC of the confidence for being right: 0.5 is no, 1 always."""
    from sklearn.metrics import roc_auc_score

    levels = {
        str(level): {"images": int(at.sum()), "accuracy": round(float(right[at].mean()), 4)}
        for level in range(1, SCALE + 1)
        if (at := confidence == level).any()
    }
    found: Tree = {"by_level": levels, "mean_right": None, "mean_wrong": None, "auroc": None}
    for name, of in (("mean_right", right == 1), ("mean_wrong", right == 0)):
        if of.any():
            found[name] = round(float(confidence[of].mean()), 4)
    if 0 < right.mean() < 1:
        found["auroc"] = round(float(roc_auc_score(right, confidence)), 4)
    return found


def _describe_reader(answers: Answers) -> Tree:
    """Who, with which page, when, and the hash that the file carries."""
    days = None
    if answers["finished"] is not None:
        spent = datetime.fromisoformat(answers["finished"]) - datetime.fromisoformat(answers["started"])
        days = round(spent.total_seconds() / 86400, 2)
    worked = sum(
        a["milliseconds"] for phase in (answers["phase1"], answers["phase2"]) for a in phase.values()
    )
    return {
        "reader": answers["reader"],
        "software": answers["software"],
        "started": answers["started"],
        "finished": answers["finished"],
        "days": days,
        "minutes": round(worked / 60000, 1),
        "complete": answers["complete"],
        "sha256": answers.get("sha256"),
    }


def _explain_partial(
    answers: Sequence[Answers], images: dict[str, dict[str, int]], left_out: Sequence[str]
) -> str | None:
    unfinished = [a["reader"] for a in answers if not a["complete"]]
    if not unfinished and not left_out:
        return None
    why = [f"not finished: {', '.join(unfinished)}"] if unfinished else []
    counts = ", ".join(f"{n['used']} of {n['of']} of phase {p[-1]}" for p, n in images.items())
    return "; ".join([*why, *left_out, f"only images that all readers answered: {counts}"])


def check_free(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        FileExistsError: it does, or it is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"--out {out} exists already and is not an empty folder; nothing is overwritten"
        )


def write_scores(scores: Tree, key: Key, answers: Sequence[Answers], out: Path) -> None:
    """Write ``scores.json``, ``scores.html``, ``table3.csv``, ``table3.txt`` and ``answers.csv`` into a new or empty folder.

    Raises:
        FileExistsError: the folder holds something.
    """
    check_free(out)
    out.mkdir(parents=True, exist_ok=True)
    page = tables.write_html(scores, list_remarks(key, answers))
    written = json.dumps(scores, indent=1, ensure_ascii=False)
    for name, text in (("scores.json", written), ("scores.html", page), ("table3.txt", tables.text(scores))):
        (out / name).write_text(text + "\n", encoding="utf-8")
    for name, rows in (("table3", tables.table_3_rows(scores)), ("answers", list_answers(key, answers))):
        with (out / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)


def list_answers(key: Key, answers: Sequence[Answers]) -> list[list[Any]]:
    """Every answer with what its image was, for statistics of your own; no patient, no file: the key has those."""
    facts = ("arm", "before", "label", "repeat_of")
    given = ("grade", "confidence", "realism", "matches", "remark", "milliseconds", "at")
    rows: list[list[Any]] = [["reader", "phase", "item", *facts, "position", *given]]
    for by in answers:
        entries: tuple[tuple[int, Any, Any, list[str]], ...] = (
            (1, by["phase1"], key["phase1"], by["order"]["phase1"]),
            (2, by["phase2"], key["phase2"], by["order"]["phase2"]),
        )
        for phase, answered, known, order in entries:
            position = {item: i for i, item in enumerate(order, 1)}
            for item, answer in sorted(answered.items()):
                answer = {**answer, "remark": _escape_formula(answer.get("remark"))}
                about = [known[item].get(name) for name in facts]
                said = [answer.get(name) for name in given]
                rows.append([by["reader"], phase, item, *about, position[item], *said])
    return rows


def list_remarks(key: Key, answers: Sequence[Answers]) -> list[tuple[str, ...]]:
    """Readers' remarks as (arm, grades, reader, realism, matches, remark); of real knees the second grade is the claim."""
    found = []
    for given in answers:
        for item, two in given["phase2"].items():
            if remark := two["remark"].strip():
                entry = key["phase2"][item]
                grades = f"{entry['before']} to {entry['label']}"
                found.append(
                    (entry["arm"], grades, given["reader"], str(two["realism"]), two["matches"], remark)
                )
    return sorted(found, key=lambda row: (row[0], row[1], MATCHES.index(row[4]), row[2]))


def _escape_formula(remark: str | None) -> str | None:
    """A remark that no spreadsheet takes for a formula."""
    return "'" + remark if remark and remark[0] in "=+-@\t\r" else remark
