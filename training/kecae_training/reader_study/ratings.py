"""Answers of all readers joined with the key, as arrays: rows are readers, columns images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kecae_training.reader_study.formats import MATCHES, REAL, Answers, Key, KeyItem1

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Phase:
    """What R readers said of N images of one phase, repeats left out.

    Attributes:
        items: N ids. patients: N ids, all different. arms: (N,) names, "real" for the control.
        labels: (N,) index of the grade that each should have. before: (N,) that of the host, of a real knee its own.
        values: (R, N) the grade said (phase 1: index) or the realism (phase 2: 1 to 5).
        others: (R, N) the confidence, 1 to 5 (phase 1), or the index in ``MATCHES`` (phase 2).
        seconds: (R, N) time taken.
        of: how many images there are, of which N were answered by all readers.
    """

    items: list[str]
    patients: list[str]
    arms: NDArray[np.str_]
    labels: Ints
    before: Ints
    values: Ints
    others: Ints
    seconds: NDArray[np.float64]
    of: int


@dataclass(frozen=True)
class Repeats:
    """One reader's two looks at the same images, in the order in which they came.

    Attributes:
        first, second: (K,) grades said. patients: K ids.
        apart: (K,) places from the one to the other in this reader's order; 1 is the next image.
    """

    first: Ints
    second: Ints
    patients: list[str]
    apart: list[int]


@dataclass(frozen=True)
class Ratings:
    """A study's answers.

    Attributes:
        readers: R names. grades: names. arms: names, without "real".
        phase1, phase2: see :class:`Phase`. repeats: of every reader.
    """

    readers: list[str]
    grades: list[str]
    arms: list[str]
    phase1: Phase
    phase2: Phase
    repeats: list[Repeats]


def join(key: Key, answers: Sequence[Answers]) -> Ratings:
    """Answers as arrays. Images that not all readers have answered are left out of both phases' arrays.

    Args:
        key: of the study.
        answers: one or more readers', checked by :func:`formats.read_answers`.

    Raises:
        ValueError: no answers, no image that all have answered, or a patient who is there twice.
    """
    if not answers:
        raise ValueError("answers: none; accepted are the files of one or more readers")
    first = {item: entry for item, entry in key["phase1"].items() if entry["repeat_of"] is None}
    patients = [entry["patient"] for entry in first.values()]
    if len(set(patients)) < len(patients):
        raise ValueError(
            "key: a patient occurs twice among the images of phase 1; the intervals take each image for another patient, as "
            "`reader-study build` draws them"
        )
    grade = {name: i for i, name in enumerate(key["grades"])}
    graded = _phase(first, [a["phase1"] for a in answers], grade, ("grade", "confidence"), [grade, None])
    if not graded.items:
        raise ValueError(
            "answers: there is no image of phase 1 that all readers have graded; score them later"
        )
    match = {name: i for i, name in enumerate(MATCHES)}
    judged = _phase(
        key["phase2"], [a["phase2"] for a in answers], grade, ("realism", "matches"), [None, match]
    )
    repeats = [_repeats(key["phase1"], a, grade) for a in answers]
    return Ratings([a["reader"] for a in answers], key["grades"], key["arms"], graded, judged, repeats)


def _phase(
    entries: Mapping[str, Any],
    answers: Sequence[Mapping[str, Any]],
    grade: Mapping[str, int],
    names: tuple[str, str],
    codes: Sequence[Mapping[str, int] | None],
) -> Phase:
    items = sorted(item for item in entries if all(item in given for given in answers))
    rows = [entries[item] for item in items]

    def values(name: str, code: Mapping[str, int] | None) -> Ints:
        table = [
            [given[i][name] if code is None else code[given[i][name]] for i in items] for given in answers
        ]
        return np.array(table, np.int64).reshape(len(answers), len(items))

    before = [row["label"] if row["before"] is None else row["before"] for row in rows]
    return Phase(
        items,
        [row["patient"] for row in rows],
        np.array([row["arm"] for row in rows], np.str_),
        np.array([grade[row["label"]] for row in rows], np.int64),
        np.array([grade[b] for b in before], np.int64),
        values(names[0], codes[0]),
        values(names[1], codes[1]),
        values("milliseconds", None) / 1000,
        len(entries),
    )


def _repeats(entries: Mapping[str, KeyItem1], answers: Answers, grade: Mapping[str, int]) -> Repeats:
    place = {item: i for i, item in enumerate(answers["order"]["phase1"])}
    looks = []
    for item, entry in sorted(entries.items()):
        other = entry["repeat_of"]
        if other is not None and item in answers["phase1"] and other in answers["phase1"]:
            looks.append((*sorted((item, other), key=place.__getitem__), entry["patient"]))

    def said(which: int) -> Ints:
        return np.array([grade[answers["phase1"][look[which]]["grade"]] for look in looks], np.int64)

    apart = [place[second] - place[first] for first, second, _ in looks]
    return Repeats(said(0), said(1), [patient for *_, patient in looks], apart)


def exchanged(phase: Phase) -> Bools:
    """(N,) which images are exchanged knees."""
    found: Bools = phase.arms != REAL
    return found
