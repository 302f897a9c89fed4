"""The objects of a reader study's files, field by field; what is checked of them is in formats.py."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


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
    confidence: int
    realism: int
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
    """An answer of phase 2: realism 1 to 5, whether the change is what the label says, remark, time taken, when."""

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
