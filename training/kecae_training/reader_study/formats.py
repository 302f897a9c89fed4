"""The files of a reader study: the fields of study, key and answers, and what is checked of them.

A hash shows that a file changed after it was written. It is no signature: whoever edits a file can hash it again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict, cast

from kecae_training.reader_study.canonical import FormatError, abbreviate, add_hash, parse_json

STUDY, KEY, ANSWERS = (f"kecae-aug reader {name}" for name in ("study", "study key", "answers"))
VERSION = 2  # of all three formats; page/record.js and page/app.js name it, too
REAL = "real"  # the arm of the control, which is never listed among the arms
SCALE = 5  # of confidence and realism, from 1
MATCHES = ("yes", "partly", "no")
READER = re.compile(r"[A-Za-z0-9_-]{1,40}")
ITEM = re.compile(r"[0-9a-f]{32}")
_SHA = re.compile(r"[0-9a-f]{64}")
_LARGEST = 64 * 2**20  # bytes of a file that is read
_JSON = {list: "a list", dict: "an object"}


# The objects of the files


class StudyItem(TypedDict):
    """An image of phase 1: ``item`` 32 hex, ``image`` its file below the study, ``sha256`` of the file."""

    item: str
    image: str
    sha256: str


class Phase2Item(TypedDict):
    """A pair of phase 2, in ``phase2.js``: two files and their hashes, the grades of both as they are claimed."""

    item: str
    original: str
    exchanged: str
    before: str
    after: str
    sha256: list[str]


class Phase2(TypedDict):
    """Phase 2 as phase 1 may know it: its items, its file and the hash of its canonical object."""

    items: list[str]
    file: str
    sha256: str


class Study(TypedDict):
    """``study.json``, what the page shows; ``id`` is the hash of the rest."""

    format: str
    version: int
    id: str
    title: str
    created: str
    order_seed: int
    grades: list[str]
    phase1: list[StudyItem]
    phase2: Phase2


class KeyItem1(TypedDict):
    """What an image of phase 1 is: ``label`` the grade it should have, ``before`` the host's (None: real)."""

    arm: str
    label: str
    before: str | None
    patient: str
    file: str
    donor: str | None
    strength_percent: int | None
    repeat_of: str | None


class KeyItem2(TypedDict):
    """What a pair of phase 2 is: ``label`` the grade shown for the right image; ``phase1`` its item there."""

    arm: str
    label: str
    before: str
    patient: str
    phase1: str


class Weights(TypedDict):
    """A weights file: as it was named, and its hash where it carries one."""

    name: str
    sha256: str | None


class Key(TypedDict):
    """The key: which image is what; ``study`` is the id of the study."""

    format: str
    version: int
    study: str
    title: str
    created: str
    seed: int
    weights: list[Weights]
    data: str
    allow_seen: bool
    grades: list[str]
    arms: list[str]
    phase1: dict[str, KeyItem1]
    phase2: dict[str, KeyItem2]


class Answer1(TypedDict):
    """An answer of phase 1: grade, confidence 1 to 5, time taken, when (ISO 8601 UTC)."""

    grade: str
    confidence: int
    milliseconds: int
    at: str


class Answer2(TypedDict):
    """An answer of phase 2: realism 1 to 5, whether the change matches the label, remark, time taken, when."""

    realism: int
    matches: Literal["yes", "partly", "no"]
    remark: str
    milliseconds: int
    at: str


class Order(TypedDict):
    """The order in which a reader saw the items."""

    phase1: list[str]
    phase2: list[str]


class Answers(TypedDict):
    """What a reader hands in; ``sha256`` is the hash of the rest."""

    format: str
    version: int
    study: str
    reader: str
    software: str
    started: str
    finished: str | None
    complete: bool
    order: Order
    phase1: dict[str, Answer1]
    phase2: dict[str, Answer2]
    sha256: NotRequired[str]


class Scope(NamedTuple):
    """What answers may refer to: the study's id, the items of both phases, the grades."""

    study: str
    phase1: Collection[str]
    phase2: Collection[str]
    grades: Sequence[str]


# Whole files


def read_study(path: str | Path) -> Study:
    """A study by its folder or its ``study.json``.

    Raises:
        FileNotFoundError, FormatError: with the reason.
    """
    path = Path(path)
    path = path / "study.json" if path.is_dir() else path
    return check_study(_read(path), str(path))


def read_key(path: str | Path) -> Key:
    """A key, as `reader-study build` wrote it.

    Raises:
        FileNotFoundError, FormatError: with the reason.
    """
    return check_key(_read(Path(path)), str(path))


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
    return check_answers(_read(Path(path)), scope, partial=partial, where=str(path))


def scope_of(study: Study) -> Scope:
    """What answers to a study may refer to."""
    return Scope(
        study["id"], {i["item"] for i in study["phase1"]}, set(study["phase2"]["items"]), study["grades"]
    )


def check_study(value: Any, where: str = "study") -> Study:
    """The value, if it is a study whose id is its hash; else FormatError."""
    _check_head(value, STUDY, Study, where)
    if value != add_hash(value, "id"):
        raise FormatError(f"{where}: edited: its id is not the hash of its content; take the original folder")
    _check_grades(value["grades"], where)
    _check_text(value["title"], f"{where}: title")
    _check_integer(value["order_seed"], 0, 2**31 - 1, f"{where}: order_seed")
    for entry in value["phase1"]:
        check_fields(entry, StudyItem, f"{where}: phase1")
        _check_pattern(entry["item"], ITEM, f"{where}: phase1: item")
        _check_choice(entry["image"], (f"images/{entry['item']}.png",), f"{where}: phase1: image")
        _check_pattern(entry["sha256"], _SHA, f"{where}: phase1: sha256")
    second = check_fields(value["phase2"], Phase2, f"{where}: phase2")
    _check_choice(second["file"], ("phase2.js",), f"{where}: phase2: file")
    _check_pattern(second["sha256"], _SHA, f"{where}: phase2: sha256")
    for item in second["items"]:
        _check_pattern(item, ITEM, f"{where}: phase2: items")
    for name, items in (("phase1", [e["item"] for e in value["phase1"]]), ("phase2", second["items"])):
        if not items or len(set(items)) < len(items):
            raise FormatError(f"{where}: {name}: accepted are one or more items, each once")
    return cast(Study, value)


def check_key(value: Any, where: str = "key") -> Key:
    """The value, if it is a key; else FormatError."""
    _check_head(value, KEY, Key, where)
    _check_grades(value["grades"], where)
    _check_pattern(value["study"], _SHA, f"{where}: study")
    if not value["arms"] or REAL in value["arms"]:
        raise FormatError(f"{where}: arms={value['arms']}: accepted are one or more names, without {REAL!r}")
    grades, arms, first = value["grades"], [*value["arms"], REAL], value["phase1"]
    for name, shape in (("phase1", KeyItem1), ("phase2", KeyItem2)):
        for item, entry in value[name].items():
            place = f"{where}: {name} {item}"
            _check_pattern(item, ITEM, place)
            check_fields(entry, shape, place)
            _check_choice(entry["arm"], arms, f"{place}: arm")
            _check_choice(entry["label"], grades, f"{place}: label")
            _check_text(entry["patient"], f"{place}: patient")
            if name == "phase2" or entry["arm"] != REAL:
                _check_choice(entry["before"], grades, f"{place}: before")
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
        check_fields(value, Answer1, where)
        _check_choice(value["grade"], grades, f"{where}: grade")
        _check_integer(value["confidence"], 1, SCALE, f"{where}: confidence")
    else:
        check_fields(value, Answer2, where)
        _check_integer(value["realism"], 1, SCALE, f"{where}: realism")
        _check_choice(value["matches"], MATCHES, f"{where}: matches")
        if not isinstance(value["remark"], str):
            raise FormatError(f"{where}: remark={abbreviate(value['remark'])}: accepted is text")
    _check_integer(value["milliseconds"], 0, 2**53 - 1, f"{where}: milliseconds")
    _check_time(value["at"], f"{where}: at")


def check_answers(value: Any, scope: Scope, *, partial: bool = False, where: str = "answers") -> Answers:
    """The value, if it is answers to the study of ``scope``; the reasons are those of :func:`read_answers`."""
    _check_head(value, ANSWERS, Answers, where)
    if value != add_hash(value):
        raise FormatError(
            f"{where}: edited: its sha256 is not the hash of its content; ask the reader for the exported file"
        )
    if value["study"] != scope.study:
        raise FormatError(
            f"{where}: foreign: answers study {abbreviate(value['study'])}, the key is of {scope.study!r}"
        )
    _check_pattern(value["reader"], READER, f"{where}: reader")
    _check_text(value["software"], f"{where}: software")
    _check_time(value["started"], f"{where}: started")
    check_fields(value["order"], Order, f"{where}: order")
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
        _check_time(value["finished"], f"{where}: finished")
    return cast(Answers, value)


def _read(path: Path) -> Any:
    if path.stat().st_size > _LARGEST:
        raise FormatError(f"{path}: larger than {_LARGEST // 2**20} MiB; no file of a reader study is")
    return parse_json(path.read_bytes(), str(path))


# Single values: each check says where, what was found and what is accepted


def check_fields(value: Any, shape: type, where: str) -> dict[str, Any]:
    """The value, if it is an object with exactly the fields of a TypedDict, its containers being containers."""
    if not isinstance(value, dict):
        raise FormatError(f"{where}: {abbreviate(value)}: accepted is an object")
    wanted = set(shape.__annotations__)
    missing, unknown = sorted(wanted - set(value)), sorted(set(value) - wanted)
    if missing or unknown:
        raise FormatError(
            f"{where}: fields missing: {missing}, unknown: {unknown}; another version, or edited"
        )
    for name, kind in shape.__annotations__.items():
        written = str(getattr(kind, "__forward_arg__", kind))
        container = list if written.startswith("list[") else dict if written.startswith("dict[") else None
        if container is not None and not isinstance(value[name], container):
            raise FormatError(f"{where}: {name}={abbreviate(value[name])}: accepted is {_JSON[container]}")
        if written == "bool" and not isinstance(value[name], bool):
            raise FormatError(f"{where}: {name}={abbreviate(value[name])}: accepted are true and false")
    return value


def _check_head(value: Any, name: str, shape: type, where: str) -> None:
    if not isinstance(value, dict) or value.get("format") != name:
        found = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise FormatError(f"{where}: format is {abbreviate(found)}, accepted is {name!r}")
    if value.get("version") != VERSION or isinstance(value["version"], bool):
        raise FormatError(
            f"{where}: version is {abbreviate(value.get('version'))}, accepted is {VERSION}: written by another "
            "version of kecae-aug"
        )
    check_fields(value, shape, where)


def _check_grades(grades: Any, where: str) -> None:
    names = isinstance(grades, list) and all(isinstance(g, str) and g for g in grades)
    if not names or not len(set(grades)) == len(grades) >= 2:
        raise FormatError(f"{where}: grades={abbreviate(grades)}: accepted are two or more different names")


def _check_integer(value: Any, low: int, high: int, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise FormatError(f"{where}={abbreviate(value)}: accepted are integers from {low} to {high}")


def _check_choice(value: Any, accepted: Sequence[str], where: str) -> None:
    if not isinstance(value, str) or value not in accepted:
        raise FormatError(f"{where}={abbreviate(value)}: accepted are {', '.join(map(repr, accepted))}")


def _check_text(value: Any, where: str) -> None:
    if not isinstance(value, str) or not value:
        raise FormatError(f"{where}={abbreviate(value)}: accepted is text that is not empty")


def _check_pattern(value: Any, accepted: re.Pattern[str], where: str) -> None:
    if not isinstance(value, str) or not accepted.fullmatch(value):
        raise FormatError(f"{where}={abbreviate(value)}: accepted is {accepted.pattern}")


def _check_time(value: Any, where: str) -> None:
    try:
        offset = datetime.fromisoformat(value).utcoffset()
    except (TypeError, ValueError):
        offset = None
    if offset != timedelta(0):
        raise FormatError(f"{where}={abbreviate(value)}: accepted is a time such as 2026-01-31T12:00:00Z")
