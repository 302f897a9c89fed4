"""The figures of a study, from its ratings: a tree of dicts that is JSON as it is.

Leaves are ``{"mean", "low", "high", ...}``, the interval 95 %. Means over readers and single readers' means are those of
:mod:`kecae_training.reader_study.intervals`, kappas those of :mod:`kecae_training.reader_study.agreement`.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kecae_training.reader_study.agreement import agreement, with_oneself
from kecae_training.reader_study.formats import MATCHES, REAL, SCALE
from kecae_training.reader_study.intervals import difference, mean_over_readers
from kecae_training.reader_study.ratings import Bools, Phase, Ratings, exchanged

Tree = dict[str, Any]
Floats = NDArray[np.float64]
SCORES = (1.0, float(SCALE))  # bounds of realism


def figures(ratings: Ratings) -> Tree:
    """All figures.

    Returns:
        ``accuracy``, ``realism``: by kind of image ("exchanged", each arm where there are several, "real") and part ("all",
        each label, with more than two grades also the direction): ``{"mean": over readers, "readers": {name: ...}}``;
        realism also ``sd``. ``matches``: by kind and answer. ``control``: exchanged less real. ``arms``: differences of
        arms. ``agreement``, ``realism_agreement``, ``oneself``, ``confusion``, ``confidence``, ``seconds``.
    """
    graded, judged = ratings.phase1, ratings.phase2
    right = (graded.values == graded.labels).astype(np.float64)
    realism = judged.values.astype(np.float64)
    in1, in2 = kinds(ratings, graded), kinds(ratings, judged)
    return {
        "accuracy": {
            kind: {
                part: _by_reader(ratings, right[:, rows & of]) for part, of in parts(ratings, graded).items()
            }
            for kind, rows in in1.items()
        },
        "realism": {
            kind: {
                part: _by_reader(ratings, realism[:, rows & of], SCORES)
                for part, of in parts(ratings, judged).items()
            }
            for kind, rows in in2.items()
        },
        "matches": {
            kind: {
                answer: _by_reader(ratings, (judged.others[:, rows] == i).astype(np.float64))
                for i, answer in enumerate(MATCHES)
            }
            for kind, rows in in2.items()
        },
        "control": _control(ratings, right, realism),
        "arms": _arms(ratings, right, realism),
        "agreement": {kind: _agree(ratings, graded, rows, len(ratings.grades)) for kind, rows in in1.items()},
        "realism_agreement": {kind: _agree(ratings, judged, rows, SCALE, 1) for kind, rows in in2.items()},
        "oneself": {
            name: with_oneself(r.first, r.second, r.patients, len(ratings.grades), r.apart)
            for name, r in zip(ratings.readers, ratings.repeats, strict=True)
        },
        "confusion": {
            kind: {
                name: _confusion(graded.labels[rows], graded.values[i, rows], len(ratings.grades))
                for i, name in enumerate(ratings.readers)
            }
            for kind, rows in in1.items()
        },
        "confidence": {
            name: _confidence(right[i], graded.others[i]) for i, name in enumerate(ratings.readers)
        },
        "seconds": {
            name: {
                f"phase{n}": round(float(np.median(phase.seconds[i])), 1) if phase.items else None
                for n, phase in ((1, graded), (2, judged))
            }
            for i, name in enumerate(ratings.readers)
        },
    }


def kinds(ratings: Ratings, phase: Phase) -> dict[str, Bools]:
    """Rows of each kind of image that is there: exchanged, each arm (of several), real."""
    found = {"exchanged": exchanged(phase)}
    if len(ratings.arms) > 1:
        found |= {arm: phase.arms == arm for arm in ratings.arms}
    found[REAL] = phase.arms == REAL
    return {kind: rows for kind, rows in found.items() if rows.any()}


def parts(ratings: Ratings, phase: Phase) -> dict[str, Bools]:
    """Rows of all, of each label; with more than two grades also of each direction (of two, label and direction are one)."""
    found = {"all": np.ones(len(phase.items), np.bool_)}
    found |= {grade: phase.labels == i for i, grade in enumerate(ratings.grades)}
    if len(ratings.grades) > 2:
        found |= {
            "to a higher grade": phase.labels > phase.before,
            "to a lower grade": phase.labels < phase.before,
        }
    return found


def _by_reader(ratings: Ratings, values: Floats, bounds: tuple[float, float] = (0.0, 1.0)) -> Tree:
    """Of (R, N) values; a score of other bounds than 0 and 1 also has its standard deviation."""

    def one(table: Floats) -> Tree:
        found = mean_over_readers(table, bounds).figure()
        if bounds != (0.0, 1.0):
            found["sd"] = round(float(table.std(ddof=1)), 4) if table.size > 1 else None
        return found

    by = {name: one(values[i : i + 1]) for i, name in enumerate(ratings.readers)}
    return {"mean": one(values), "readers": by}


def _differences(
    ratings: Ratings, first: Floats, second: Floats, bounds: tuple[float, float] = (0.0, 1.0)
) -> Tree:
    by = {
        name: difference(first[i : i + 1], second[i : i + 1], bounds).figure()
        for i, name in enumerate(ratings.readers)
    }
    return {"mean": difference(first, second, bounds).figure(), "readers": by}


def _control(ratings: Ratings, right: Floats, realism: Floats) -> Tree:
    """Exchanged less real knees; empty where there are none."""
    found: Tree = {}
    for name, phase, values, bounds in (
        ("accuracy", ratings.phase1, right, (0.0, 1.0)),
        ("realism", ratings.phase2, realism, SCORES),
    ):
        rows = exchanged(phase)
        if rows.any() and not rows.all():
            found[name] = _differences(ratings, values[:, rows], values[:, ~rows], bounds)
    return found


def _arms(ratings: Ratings, right: Floats, realism: Floats) -> Tree:
    found: Tree = {}
    for one, other in combinations(ratings.arms, 2):
        entry: Tree = {}
        for name, phase, values, bounds in (
            ("accuracy", ratings.phase1, right, (0.0, 1.0)),
            ("realism", ratings.phase2, realism, SCORES),
        ):
            a, b = values[:, phase.arms == one], values[:, phase.arms == other]
            if a.size and b.size:
                entry[name] = _differences(ratings, a, b, bounds)
        found[f"{one} - {other}"] = entry
    return found


def _agree(ratings: Ratings, phase: Phase, rows: Bools, steps: int, least: int = 0) -> Tree:
    patients = [patient for patient, there in zip(phase.patients, rows, strict=True) if there]
    return agreement(phase.values[:, rows] - least, ratings.readers, patients, steps)


def _confusion(labels: NDArray[np.int64], said: NDArray[np.int64], grades: int) -> list[list[int]]:
    """Label in rows, grade said in columns."""
    counts = np.bincount(labels * grades + said, minlength=grades * grades)
    return [[int(n) for n in row] for row in counts.reshape(grades, grades)]


def _confidence(right: Floats, confidence: NDArray[np.int64]) -> Tree:
    """Is a reader surer where right? AUROC of the confidence for being right: 0.5 is no, 1 always."""
    from sklearn.metrics import roc_auc_score

    levels = {
        str(level): {"images": int(at.sum()), "right": round(float(right[at].mean()), 4)}
        for level in range(1, SCALE + 1)
        if (at := confidence == level).any()
    }
    found: Tree = {"by_level": levels, "right": None, "wrong": None, "auroc": None}
    for name, of in (("right", right == 1), ("wrong", right == 0)):
        if of.any():
            found[name] = round(float(confidence[of].mean()), 4)
    if 0 < right.mean() < 1:
        found["auroc"] = round(float(roc_auc_score(right, confidence)), 4)
    return found
