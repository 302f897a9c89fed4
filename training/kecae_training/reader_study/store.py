"""Answers on disk as they come: one line each, on the disk before it is confirmed, whatever happens afterwards.

    ANSWERS/<reader>/answers.jsonl   a line for each answer; the later line of an item counts
    ANSWERS/<reader>/answers.json    what the reader handed in at the end; read-only

A crash can tear the last line only, which was never confirmed: it is dropped.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kecae_training.reader_study.canonical import FormatError, canonical_json, parse_json
from kecae_training.reader_study.formats import READER, Study, check_answer, check_answers, scope_of

if sys.platform == "win32":  # one process at a time there; elsewhere two servers may share a folder
    fcntl = None
else:
    import fcntl


class RefusedError(ValueError):
    """A request that cannot be granted; ``status`` is the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class State:
    """How far a reader is.

    Fields: phase1, phase2: item -> answer. started: time of the first answer, None before it.
    opened: whether phase 2 was shown, after which phase 1 stays as it is. finished: handed in.
    """

    phase1: dict[str, Any] = field(default_factory=dict)
    phase2: dict[str, Any] = field(default_factory=dict)
    started: str | None = None
    opened: bool = False
    finished: bool = False

    def answers(self, phase: int) -> dict[str, Any]:
        """Of a phase, 1 or 2."""
        return self.phase1 if phase == 1 else self.phase2

    def saved(self) -> int:
        """Answers in both phases."""
        return len(self.phase1) + len(self.phase2)


class AnswerStore:
    """The answers of all readers of a study.

    Nothing is held in memory: every request reads the reader's file, so that a second server, or whoever restores a
    file from a backup, does no harm.

    Args:
        folder: made if it is not there.
        study: whose answers they are.
        warn: gets a line for what was wrong in a file.

    Raises:
        ValueError: the folder holds answers to another study.
    """

    def __init__(self, folder: Path, study: Study, warn: Callable[[str], None]) -> None:
        self.folder, self.study, self.scope = folder, study, scope_of(study)
        folder.mkdir(parents=True, exist_ok=True)
        self._check_study()
        self._lock, self._warn, self._warned = threading.RLock(), warn, set[str]()

    def state(self, reader: str) -> State:
        """How far a reader is; an unknown one is at the beginning."""
        with self._locked():
            return self._read(self._place(reader))

    def save(self, reader: str, phase: int, item: str, answer: Any) -> int:
        """Save an answer; when this returns, it is on the disk.

        Returns:
            How many answers of the reader are saved.

        Raises:
            RefusedError: 400 for what is no answer; 409 for phase 2 before phase 1 is complete, for a change of phase 1
                after phase 2 was shown, or after the end. The same answer again is no change.
            OSError: it could not be written; nothing of it is left.
        """
        place = self._place(reader)
        if phase not in (1, 2) or isinstance(phase, bool):
            raise RefusedError(400, f"phase={phase!r}: accepted are 1 and 2")
        if not isinstance(item, str) or item not in (self.scope.phase1 if phase == 1 else self.scope.phase2):
            raise RefusedError(400, f"item={item!r}: not of phase {phase} of this study")
        try:
            check_answer(phase, answer, self.study["grades"], "answer")
        except FormatError as error:
            raise RefusedError(400, str(error)) from None
        with self._locked():
            state = self._read(place)
            if state.answers(phase).get(item) == answer:
                return state.saved()
            if state.finished:
                raise RefusedError(409, "the study was handed in; its answers stay as they are")
            if phase == 1 and state.opened:
                raise RefusedError(409, "phase 2 was shown; answers of phase 1 stay as they are")
            if phase == 2 and not self._complete(state):
                raise RefusedError(409, self._not_yet(state))
            self._append(place, {"phase": phase, "item": item, "answer": answer, "reader": reader})
            state.answers(phase)[item] = answer
            return state.saved()

    def open_phase2(self, reader: str) -> None:
        """Note that phase 2 is shown.

        Raises:
            RefusedError: 403 while phase 1 is not complete.
        """
        place = self._place(reader)
        with self._locked():
            state = self._read(place)
            if not self._complete(state):
                raise RefusedError(403, self._not_yet(state))
            if not state.opened:
                self._append(place, {"opened": datetime.now(UTC).isoformat(timespec="seconds")})

    def finish(self, reader: str, export: Any) -> int:
        """Keep what a reader hands in, if it is what was saved.

        Returns:
            How many answers it holds.

        Raises:
            RefusedError: 400 for what is no complete answers of this reader to this study, 409 where it differs from
                what was saved, or from what was handed in before.
        """
        place = self._place(reader)
        try:
            answers = check_answers(export, self.scope, where="export")
        except FormatError as error:
            raise RefusedError(400, str(error)) from None
        if answers["reader"].lower() != reader.lower():
            raise RefusedError(400, f"export: of reader {answers['reader']!r}, handed in by {reader!r}")
        raw, target = canonical_json(export), place / "answers.json"
        with self._locked():
            state = self._read(place)
            if state.finished:
                if target.read_bytes() == raw:
                    return state.saved()
                raise RefusedError(409, "the study was handed in before, with another content, which stays")
            pairs = ((state.phase1, answers["phase1"]), (state.phase2, answers["phase2"]))
            differ = sum(saved.get(item) != given for saved, all_ in pairs for item, given in all_.items())
            if differ:
                raise RefusedError(
                    409, f"export: {differ} answers are not what was saved; send them again, then finish"
                )
            _write_once(target, raw)
            return state.saved()

    def _check_study(self) -> None:
        """Keep apart the answers to a study that was built again under the same name."""
        path = self.folder / ".study"
        there = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not there:  # or torn by a crash
            path.write_text(self.study["id"], encoding="utf-8")
        elif there != self.study["id"]:
            raise ValueError(
                f"answers={str(self.folder)!r}: holds answers to another study (of id {there[:12]}...); give another "
                "folder (--answers), or move it away"
            )

    def _place(self, reader: Any) -> Path:
        if not isinstance(reader, str) or not READER.fullmatch(reader):
            raise RefusedError(400, f"reader={reader!r}: accepted are 1 to 40 letters, digits, '-' and '_'")
        return self.folder / reader.lower()

    def _complete(self, state: State) -> bool:
        return len(state.phase1) == len(self.scope.phase1)

    def _not_yet(self, state: State) -> str:
        return f"phase 1 is not complete: {len(state.phase1)} of {len(self.scope.phase1)}"

    def _read(self, place: Path) -> State:
        path = place / "answers.jsonl"
        state = State(finished=(place / "answers.json").is_file())
        if not path.is_file():
            return state
        *lines, torn = path.read_bytes().split(b"\n")
        if torn:
            self._warn_once(
                f"{path}: the last line was torn off by a crash, and is dropped; it was not confirmed"
            )
        for number, line in enumerate(lines, 1):
            try:
                self._take(state, parse_json(line, f"{path}, line {number}"))
            except (FormatError, KeyError, TypeError) as error:
                self._warn_once(f"{path}, line {number}: left out, cannot be read ({error})")
        return state

    def _take(self, state: State, line: Any) -> None:
        """Add a line to a state."""
        if "opened" in line:
            state.opened = True
            return
        phase, item, answer = line["phase"], line["item"], line["answer"]
        if item not in (self.scope.phase1 if phase == 1 else self.scope.phase2):
            raise FormatError(f"item {item!r} is of another study")
        check_answer(phase, answer, self.study["grades"], "answer")
        state.started = state.started or answer["at"]
        state.answers(phase)[item] = answer

    def _append(self, place: Path, line: dict[str, Any]) -> None:
        """Add a line, on the disk when this returns, or not at all."""
        path = place / "answers.jsonl"
        if not path.is_file():
            place.mkdir(exist_ok=True)
            _sync_folder(self.folder)
        with path.open("ab", buffering=0) as file:  # a buffer would be written again on closing
            end = path.read_bytes().rfind(b"\n") + 1  # what follows was torn
            try:
                file.truncate(end)
                _write_all(file.fileno(), canonical_json(line) + b"\n")
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file.fileno(), end)
                raise
        _sync_folder(place)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the answers, among this server's threads and other servers."""
        with self._lock, (self.folder / ".lock").open("w") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _write_all(handle: int, raw: bytes) -> None:
    while raw:
        raw = raw[os.write(handle, raw) :]


def _write_once(path: Path, raw: bytes) -> None:
    """A read-only file, whole and on the disk, or not there."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o444)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """A new name is on the disk when its folder is; Windows knows no such call."""
    if fcntl is not None:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
