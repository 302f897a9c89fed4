"""The files of a reader study: what a study, a key and answers must be; canonical JSON is in canonical.py.

A hash shows that a file changed after it was written. It is no signature: whoever edits a file can hash it again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from kecae_training.reader_study.canonical import canonical, digest, parse, sealed
from kecae_training.reader_study.checking import (
    FormatError,
    fields,
    instant,
    one_of,
    pattern,
    shown,
    text,
    whole,
)
from kecae_training.reader_study.shapes import (
    Answer1,
    Answer2,
    Answers,
    Key,
    KeyItem1,
    KeyItem2,
    Order,
    Phase2,
    Phase2Item,
    Study,
    StudyItem,
    Weights,
)

__all__ = [
    "ANSWERS",
    "ITEM",
    "KEY",
    "MATCHES",
    "READER",
    "REAL",
    "SCALE",
    "STUDY",
    "VERSION",
    "Answer1",
    "Answer2",
    "Answers",
    "FormatError",
    "Key",
    "KeyItem1",
    "KeyItem2",
    "Order",
    "Phase2",
    "Phase2Item",
    "Scope",
    "Study",
    "StudyItem",
    "Weights",
    "canonical",
    "check_answer",
    "check_answers",
    "check_key",
    "check_study",
    "digest",
    "parse",
    "read_answers",
    "read_key",
    "read_study",
    "scope_of",
    "sealed",
]

STUDY, KEY, ANSWERS = (f"kecae-aug reader {name}" for name in ("study", "study key", "answers"))
VERSION = 1
REAL = "real"  # the arm of the control, which is never listed among the arms
SCALE = 5  # of confidence and realism, from 1
MATCHES = ("yes", "partly", "no")
READER = re.compile(r"[A-Za-z0-9_-]{1,40}")
ITEM = re.compile(r"[0-9a-f]{32}")
_SHA = re.compile(r"[0-9a-f]{64}")
_LARGEST = 64 * 2**20  # bytes of a file that is read


class Scope(NamedTuple):
    """What answers may refer to: the study's id, the items of both phases, the grades."""

    study: str
    phase1: Collection[str]
    phase2: Collection[str]
    grades: Sequence[str]


def read_study(path: str | Path) -> Study:
    """A study by its folder or its ``study.json``.

    Raises:
        FileNotFoundError, FormatError: with the reason.
    """
    path = Path(path)
    path = path / "study.json" if path.is_dir() else path
    return check_study(parse(_read(path), str(path)), str(path))


def read_key(path: str | Path) -> Key:
    """A key, as `reader-study build` wrote it.

    Raises:
        FileNotFoundError, FormatError: with the reason.
    """
    return check_key(parse(_read(Path(path)), str(path)), str(path))


def read_answers(path: str | Path, key: Key, *, partial: bool = False) -> Answers:
    """A reader's answers, checked against the key.

    Args:
        path: of the exported file.
        key: of the study that they must answer.
        partial: take answers that are not complete, too.

    Raises:
        FileNotFoundError: no such file.
        FormatError: edited, of another study, incomplete, with items missing or unknown, values out of range.
    """
    scope = Scope(key["study"], key["phase1"].keys(), key["phase2"].keys(), key["grades"])
    return check_answers(parse(_read(Path(path)), str(path)), scope, partial=partial, where=str(path))


def scope_of(study: Study) -> Scope:
    """What answers to a study may refer to."""
    return Scope(
        study["id"], {i["item"] for i in study["phase1"]}, set(study["phase2"]["items"]), study["grades"]
    )


def check_study(value: Any, where: str = "study") -> Study:
    """The value, if it is a study whose id is its hash; else FormatError."""
    _head(value, STUDY, Study, where)
    if value["id"] != digest({k: v for k, v in value.items() if k != "id"}):
        raise FormatError(f"{where}: edited: its id is not the hash of its content; take the original folder")
    _grades(value["grades"], where)
    text(value["title"], f"{where}: title")
    whole(value["order_seed"], 0, 2**31 - 1, f"{where}: order_seed")
    for name in ("confidence", "realism"):
        whole(value[name], SCALE, SCALE, f"{where}: {name}")
    for entry in value["phase1"]:
        fields(entry, StudyItem, f"{where}: phase1")
        pattern(entry["item"], ITEM, f"{where}: phase1: item")
        one_of(entry["image"], (f"images/{entry['item']}.png",), f"{where}: phase1: image")
        pattern(entry["sha256"], _SHA, f"{where}: phase1: sha256")
    second = fields(value["phase2"], Phase2, f"{where}: phase2")
    one_of(second["file"], ("phase2.js",), f"{where}: phase2: file")
    pattern(second["sha256"], _SHA, f"{where}: phase2: sha256")
    for item in second["items"]:
        pattern(item, ITEM, f"{where}: phase2: items")
    for name, items in (
        ("phase1", [e["item"] for e in value["phase1"]]),
        ("phase2", second["items"]),
    ):
        if not items or len(set(items)) < len(items):
            raise FormatError(f"{where}: {name}: accepted are one or more items, each once")
    return cast(Study, value)


def check_key(value: Any, where: str = "key") -> Key:
    """The value, if it is a key; else FormatError."""
    _head(value, KEY, Key, where)
    _grades(value["grades"], where)
    pattern(value["study"], _SHA, f"{where}: study")
    if not value["arms"] or REAL in value["arms"]:
        raise FormatError(f"{where}: arms={value['arms']}: accepted are one or more names, without {REAL!r}")
    grades, arms, first = value["grades"], [*value["arms"], REAL], value["phase1"]
    for name, shape in (("phase1", KeyItem1), ("phase2", KeyItem2)):
        for item, entry in value[name].items():
            place = f"{where}: {name} {item}"
            pattern(item, ITEM, place)
            fields(entry, shape, place)
            one_of(entry["arm"], arms, f"{place}: arm")
            one_of(entry["label"], grades, f"{place}: label")
            text(entry["patient"], f"{place}: patient")
            if name == "phase2" or entry["arm"] != REAL:
                one_of(entry["before"], grades, f"{place}: before")
            elsewhere = entry["phase1"] if name == "phase2" else entry["repeat_of"]
            if not (str(elsewhere) in first or (elsewhere is None and name == "phase1")):
                raise FormatError(f"{place}: points to {elsewhere!r}, which is no item of phase 1")
    return cast(Key, value)


def check_answer(phase: int, value: Any, grades: Sequence[str], where: str) -> None:
    """Refuse an answer to one item of phase 1 or 2 that is not as the page writes it.

    Raises:
        FormatError: a field missing, unknown or out of range.
    """
    if phase == 1:
        fields(value, Answer1, where)
        one_of(value["grade"], grades, f"{where}: grade")
        whole(value["confidence"], 1, SCALE, f"{where}: confidence")
    else:
        fields(value, Answer2, where)
        whole(value["realism"], 1, SCALE, f"{where}: realism")
        one_of(value["matches"], MATCHES, f"{where}: matches")
        if not isinstance(value["remark"], str):
            raise FormatError(f"{where}: remark={shown(value['remark'])}: accepted is text")
    whole(value["milliseconds"], 0, 2**53 - 1, f"{where}: milliseconds")
    instant(value["at"], f"{where}: at")


def check_answers(value: Any, scope: Scope, *, partial: bool = False, where: str = "answers") -> Answers:
    """The value, if it is answers to the study of ``scope``; the reasons are those of :func:`read_answers`."""
    _head(value, ANSWERS, Answers, where)
    if value.get("sha256") != digest({k: v for k, v in value.items() if k != "sha256"}):
        raise FormatError(
            f"{where}: edited: its sha256 is not the hash of its content; ask the reader for the exported file"
        )
    if value["study"] != scope.study:
        raise FormatError(
            f"{where}: foreign: answers study {shown(value['study'])}, the key is of {scope.study!r}"
        )
    pattern(value["reader"], READER, f"{where}: reader")
    text(value["software"], f"{where}: software")
    instant(value["started"], f"{where}: started")
    fields(value["order"], Order, f"{where}: order")
    counts = []
    for phase, items in ((1, scope.phase1), (2, scope.phase2)):
        name, known = f"phase{phase}", set(items)
        given, order = value[name], value["order"][name]
        unknown = sorted(set(given) - known)
        if unknown:
            raise FormatError(f"{where}: {name}: {len(unknown)} unknown items, the first {unknown[0]!r}")
        if sorted(map(str, order)) != sorted(known):
            raise FormatError(f"{where}: order: {name}: accepted is every item of the study once")
        for item, answer in given.items():
            check_answer(phase, answer, scope.grades, f"{where}: {name} {item}")
        counts.append((len(given), len(known)))
    missing = "; ".join(f"phase {p}: {n} of {all_}" for p, (n, all_) in enumerate(counts, 1) if n < all_)
    if counts[1][0] and counts[0][0] < counts[0][1]:
        raise FormatError(f"{where}: answers of phase 2 before phase 1 was complete ({missing})")
    if value["complete"] and (missing or value["finished"] is None):
        raise FormatError(f"{where}: says it is complete, but is not ({missing or 'no time of its end'})")
    if not value["complete"] and not partial:
        raise FormatError(f"{where}: incomplete ({missing or 'not finished'}); let the reader finish it")
    if value["finished"] is not None:
        instant(value["finished"], f"{where}: finished")
    return cast(Answers, value)


def _head(value: Any, name: str, shape: type, where: str) -> None:
    if not isinstance(value, dict) or value.get("format") != name:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise FormatError(f"{where}: format is {shown(found)}, accepted is {name!r}")
    if value.get("version") != VERSION or isinstance(value["version"], bool):
        raise FormatError(
            f"{where}: version is {shown(value.get('version'))}, accepted is {VERSION}: written by another "
            "version of kecae-aug"
        )
    fields(value, shape, where)


def _grades(grades: Any, where: str) -> None:
    names = isinstance(grades, list) and all(isinstance(g, str) and g for g in grades)
    if not names or not len(set(grades)) == len(grades) >= 2:
        raise FormatError(f"{where}: grades={shown(grades)}: accepted are two or more different names")


def _read(path: Path) -> bytes:
    if path.stat().st_size > _LARGEST:
        raise FormatError(f"{path}: larger than {_LARGEST // 2**20} MiB; no file of a reader study is")
    return path.read_bytes()
