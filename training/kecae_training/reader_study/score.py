"""Score a reader study: Table III of the paper (Section V-E) from the readers' answers and the key.

    kecae-aug reader-study score study-answers --key study-key.json --out results

Answers are files that the page exported or the server wrote, or folders of them. Answers that are incomplete, edited, of
another study or there twice are refused with the reason; ``--partial`` takes incomplete ones and says so in every table.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kecae_training.reader_study.collect import load
from kecae_training.reader_study.figures import figures
from kecae_training.reader_study.formats import MATCHES, Answers, Key, read_key
from kecae_training.reader_study.ratings import join

FORMAT = "kecae-aug reader study score"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; raises ValueError and OSError, which the command turns into a message."""
    parser = argparse.ArgumentParser(prog="kecae-aug reader-study score", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "answers",
        type=Path,
        nargs="+",
        help="files that readers exported, or folders (of `serve`, or of such files)",
    )
    add("--key", type=Path, required=True, help="that `build` wrote beside the study")
    add(
        "--out",
        type=Path,
        default=None,
        help="folder for table3.csv, scores.json, scores.html, answers.csv; absent or empty",
    )
    add("--partial", action="store_true", help="take readers who have not finished; the tables then say so")
    options = parser.parse_args(argv)
    if options.out is not None:
        _check_free(options.out)
    key = read_key(options.key)
    answers, left_out = load(options.answers, key, partial=options.partial)
    scores = score(key, answers, left_out)
    from kecae_training.reader_study import tables

    print(tables.text(scores))
    if options.out is not None:
        write(scores, key, answers, options.out)
        print(f"\n{options.out}: scores.html, scores.json, table3.csv, table3.txt, answers.csv")


def score(key: Key, answers: Sequence[Answers], left_out: Sequence[str] = ()) -> dict[str, Any]:
    """All figures, as ``scores.json`` has them.

    Args:
        key: of the study.
        answers: of :func:`load`.
        left_out: sentences about readers whose answers were not taken.

    Returns:
        The tree of :func:`figures.figures`, with what it was made from: ``study``, ``title``, ``weights``, ``grades``,
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
        "version": 1,
        "study": key["study"],
        "title": key["title"],
        "created": key["created"],
        "weights": key["weights"],
        "allow_seen": key["allow_seen"],
        "grades": key["grades"],
        "arms": key["arms"],
        "readers": [_reader(a) for a in answers],
        "images": images,
        "partial": _partial(answers, images, left_out),
        **figures(ratings),
    }


def write(scores: dict[str, Any], key: Key, answers: Sequence[Answers], out: Path) -> None:
    """Write ``scores.json``, ``scores.html``, ``table3.csv``, ``table3.txt`` and ``answers.csv`` into a new or empty folder.

    Raises:
        FileExistsError: the folder holds something.
    """
    from kecae_training.reader_study import tables
    from kecae_training.reader_study.score_page import page

    _check_free(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "scores.json").write_text(
        json.dumps(scores, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (out / "scores.html").write_text(page(scores, remarks(key, answers)), encoding="utf-8")
    (out / "table3.txt").write_text(tables.text(scores) + "\n", encoding="utf-8")
    for name, rows in (("table3", tables.table_3_rows(scores)), ("answers", answer_rows(key, answers))):
        with (out / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)


def answer_rows(key: Key, answers: Sequence[Answers]) -> list[list[Any]]:
    """Every answer with what its image was, for statistics of your own; no patient, no file: the key has those."""
    head = ["reader", "phase", "item", "arm", "before", "label", "repeat_of", "place", "grade", "confidence"]
    rows: list[list[Any]] = [[*head, "realism", "matches", "remark", "milliseconds", "at"]]
    for given in answers:
        places = [
            {item: i for i, item in enumerate(order, 1)}
            for order in (given["order"]["phase1"], given["order"]["phase2"])
        ]
        for item, one in sorted(given["phase1"].items()):
            e = key["phase1"][item]
            facts = [e["arm"], e["before"], e["label"], e["repeat_of"], places[0][item]]
            told = [one["grade"], one["confidence"], None, None, None, one["milliseconds"], one["at"]]
            rows.append([given["reader"], 1, item, *facts, *told])
        for item, two in sorted(given["phase2"].items()):
            f = key["phase2"][item]
            facts = [f["arm"], f["before"], f["label"], None, places[1][item]]
            told = [
                None,
                None,
                two["realism"],
                two["matches"],
                _cell(two["remark"]),
                two["milliseconds"],
                two["at"],
            ]
            rows.append([given["reader"], 2, item, *facts, *told])
    return rows


def remarks(key: Key, answers: Sequence[Answers]) -> list[tuple[str, ...]]:
    """Readers' remarks as (arm, grades, reader, realism, matches, remark); of real knees the second grade is the claim."""
    found = []
    for given in answers:
        for item, two in given["phase2"].items():
            if two["remark"].strip():
                e = key["phase2"][item]
                facts = (
                    e["arm"],
                    f"{e['before']} to {e['label']}",
                    given["reader"],
                    str(two["realism"]),
                    two["matches"],
                )
                found.append((*facts, two["remark"].strip()))
    return sorted(found, key=lambda row: (row[0], row[1], MATCHES.index(row[4]), row[2]))


def _cell(remark: str) -> str:
    """A remark that no spreadsheet takes for a formula."""
    return "'" + remark if remark[:1] in ("=", "+", "-", "@", "\t", "\r") else remark


def _reader(answers: Answers) -> dict[str, Any]:
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


def _partial(
    answers: Sequence[Answers], images: dict[str, dict[str, int]], left_out: Sequence[str]
) -> str | None:
    unfinished = [a["reader"] for a in answers if not a["complete"]]
    if not unfinished and not left_out:
        return None
    why = [f"not finished: {', '.join(unfinished)}"] if unfinished else []
    counts = ", ".join(f"{n['used']} of {n['of']} of phase {p[-1]}" for p, n in images.items())
    return "; ".join([*why, *left_out, f"only images that all readers answered: {counts}"])


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"--out {out} exists already and is not an empty folder; nothing is overwritten"
        )
