"""The readers' answers: which files are taken and which refused, and their join with the key as arrays.

Arrays have a row for each reader and a column for each image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kecae_training.reader_study.formats import MATCHES, REAL, Answers, Key, KeyItem1, read_answers

COPIED = 10  # images: so many equal ratings of two readers are a copy, whatever the times

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Phase:
    """What R readers said of N images of one phase, repeats left out.

    Attributes:
        items: N ids. patients: N ids, all different. arms: (N,) names, "real" for the control.
        labels: (N,) class index that each should have. before: (N,) that of the host, of a real knee its own.
        values: (R, N) the class index given (phase 1) or the realism (phase 2: 1 to 5).
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

    @property
    def exchanged(self) -> Bools:
        """(N,) which images are exchanged knees."""
        found: Bools = self.arms != REAL
        return found


@dataclass(frozen=True)
class Repeats:
    """One reader's two readings of the same images, in the order in which they came.

    Attributes:
        first, second: (K,) class indices given. patients: K ids.
        between: (K,) how many images this reader saw between the two.
    """

    first: Ints
    second: Ints
    patients: list[str]
    between: list[int]


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


def load_answers(
    paths: Sequence[Path], key: Key, *, partial: bool = False
) -> tuple[list[Answers], list[str]]:
    """Answers of one or more readers, each once.

    Args:
        paths: files of answers, or folders: of `serve` (``<reader>/answers.json``), or of exported ``*.json``.
        key: of the study.
        partial: take incomplete answers, too.

    Returns:
        The answers by the readers' names, and sentences about readers who were left out (with ``partial`` only).

    Raises:
        FileNotFoundError: a path that is not there.
        ValueError: answers that are incomplete, edited, foreign, of one reader twice, or copied from another's; a folder
            without answers.
    """
    files, left_out = _find_files(paths, partial)
    found: list[tuple[Path, Answers]] = []
    for path in files:
        answers = read_answers(path, key, partial=partial)
        for other_path, other in found:
            if other["reader"].casefold() == answers["reader"].casefold():
                raise ValueError(
                    f"{path}: duplicate: reader {answers['reader']!r} is also that of {other_path}; give one of them"
                )
            if _is_copy(answers, other):
                raise ValueError(
                    f"{path}: duplicate: reader {answers['reader']!r} has the same answers as {other['reader']!r} "
                    f"({other_path}); give the one that is genuine"
                )
        found.append((path, answers))
    return sorted((a for _, a in found), key=lambda a: a["reader"].casefold()), left_out


def _find_files(paths: Sequence[Path], partial: bool) -> tuple[list[Path], list[str]]:
    files: list[Path] = []
    left_out: list[str] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder of answers")
        if not path.is_dir():
            files.append(path)
            continue
        here = sorted([*path.glob("*.json"), *path.glob("*/answers.json")])
        unfinished = sorted(
            log.parent for log in path.glob("*/answers.jsonl") if not (log.parent / "answers.json").exists()
        )
        if unfinished and not partial:
            raise ValueError(
                f"{unfinished[0]}: incomplete: reader {unfinished[0].name!r} has not finished; let the reader finish, or "
                "give the files of the others, or --partial to leave out"
            )
        left_out += [f"reader {folder.name!r} has not finished and was left out" for folder in unfinished]
        if not here and not unfinished:
            raise ValueError(f"{path}: no answers in this folder; accepted are *.json and */answers.json")
        files += here
    return files, left_out


def _is_copy(one: Answers, other: Answers) -> bool:
    """The same answers at the same times; or, of ten images and more, the same ratings throughout."""
    if (one["phase1"], one["phase2"]) == (other["phase1"], other["phase2"]) and one["phase1"]:
        return True

    def ratings(given: Answers) -> list[Any]:
        first = {i: (a["grade"], a["confidence"]) for i, a in given["phase1"].items()}
        return [first, {i: (a["realism"], a["matches"], a["remark"]) for i, a in given["phase2"].items()}]

    return len(one["phase1"]) >= COPIED and ratings(one) == ratings(other)


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
    graded = _join_phase(first, [a["phase1"] for a in answers], grade, {"grade": grade, "confidence": None})
    if not graded.items:
        raise ValueError(
            "answers: there is no image of phase 1 that all readers have graded; score them later"
        )
    match = {name: i for i, name in enumerate(MATCHES)}
    rated = _join_phase(
        key["phase2"], [a["phase2"] for a in answers], grade, {"realism": None, "matches": match}
    )
    repeats = [_join_repeats(key["phase1"], a, grade) for a in answers]
    return Ratings([a["reader"] for a in answers], key["grades"], key["arms"], graded, rated, repeats)


def _join_phase(
    entries: Mapping[str, Any],
    answers: Sequence[Mapping[str, Any]],
    grade: Mapping[str, int],
    fields: Mapping[str, Mapping[str, int] | None],
) -> Phase:
    """``fields``: the answer's two fields, and the number of each of their values where they are text."""
    items = sorted(item for item in entries if all(item in given for given in answers))
    of = [entries[item] for item in items]

    def table(name: str, code: Mapping[str, int] | None) -> Ints:
        values = [
            [given[i][name] if code is None else code[given[i][name]] for i in items] for given in answers
        ]
        return np.array(values, np.int64).reshape(len(answers), len(items))

    values, others = (table(name, code) for name, code in fields.items())
    return Phase(
        items,
        [entry["patient"] for entry in of],
        np.array([entry["arm"] for entry in of], np.str_),
        np.array([grade[entry["label"]] for entry in of], np.int64),
        np.array([grade[entry["before"] or entry["label"]] for entry in of], np.int64),
        values,
        others,
        table("milliseconds", None) / 1000,
        len(entries),
    )


def _join_repeats(entries: Mapping[str, KeyItem1], answers: Answers, grade: Mapping[str, int]) -> Repeats:
    given = answers["phase1"]
    position = {item: i for i, item in enumerate(answers["order"]["phase1"])}
    twice = [
        sorted((item, entry["repeat_of"]), key=position.__getitem__)
        for item, entry in sorted(entries.items())
        if entry["repeat_of"] is not None and item in given and entry["repeat_of"] in given
    ]
    first, second = (np.array([grade[given[two[n]]["grade"]] for two in twice], np.int64) for n in (0, 1))
    between = [position[two[1]] - position[two[0]] - 1 for two in twice]
    return Repeats(first, second, [entries[two[0]]["patient"] for two in twice], between)
