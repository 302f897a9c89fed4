"""Which files hold the readers' answers, and which of them are refused: edited, foreign, incomplete, there twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kecae_training.reader_study.formats import Answers, Key, read_answers

SAME_JUDGEMENTS = 10  # images: so many equal answers of two readers are a copy, whatever the times


def load(paths: Sequence[Path], key: Key, *, partial: bool = False) -> tuple[list[Answers], list[str]]:
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
    files, left_out = _files(paths, partial)
    found: list[tuple[Path, Answers]] = []
    for path in files:
        answers = read_answers(path, key, partial=partial)
        for other_path, other in found:
            if other["reader"].casefold() == answers["reader"].casefold():
                raise ValueError(
                    f"{path}: duplicate: reader {answers['reader']!r} is also that of {other_path}; give one of them"
                )
            if _copied(answers, other):
                raise ValueError(
                    f"{path}: duplicate: reader {answers['reader']!r} has the same answers as {other['reader']!r} "
                    f"({other_path}); give the one that is genuine"
                )
        found.append((path, answers))
    return sorted((a for _, a in found), key=lambda a: a["reader"].casefold()), left_out


def _files(paths: Sequence[Path], partial: bool) -> tuple[list[Path], list[str]]:
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


def _copied(one: Answers, other: Answers) -> bool:
    """The same answers at the same times; or, of ten images and more, the same judgements throughout."""
    both = (one["phase1"], one["phase2"]), (other["phase1"], other["phase2"])
    if both[0] == both[1] and one["phase1"]:
        return True
    if len(one["phase1"]) < SAME_JUDGEMENTS:
        return False

    def judgements(given: Answers) -> list[Any]:
        first = {i: (a["grade"], a["confidence"]) for i, a in given["phase1"].items()}
        return [first, {i: (a["realism"], a["matches"], a["remark"]) for i, a in given["phase2"].items()}]

    return judgements(one) == judgements(other)
