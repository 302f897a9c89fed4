"""What benchmarks share: where the radiographs are, what code ran, and the files that figures and runs are appended to."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from kecae_training.checkpoint import environment

PROJECT = Path(__file__).parents[2]
RESULTS = PROJECT / "benchmarks" / "results"
CODE = ("src", "training", "benchmarks/kecae_bench")


def record(name: str, figures: dict[str, Any], out: Path | None = None) -> None:
    """Print the figures and append them as one JSON line to ``out``, or else to benchmarks/results/<name>.jsonl."""
    module = sys.modules["__main__"].__spec__
    command = ["python", "-m", module.name] if module else ["python", sys.argv[0]]
    line = {
        **({} if out is None else {"benchmark": name}),  # such a file may hold lines of several
        "date": date.today().isoformat(),
        "commit": find_commit(*CODE),
        "command": shlex.join([*command, *sys.argv[1:]]),
        **figures,
        "environment": environment(),
    }
    path = out or RESULTS / f"{name}.jsonl"
    append_line(path, line)
    print(json.dumps(line, indent=2))
    print(f"appended to {path if out else path.relative_to(PROJECT)}")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a file of JSON lines; none where it is not there."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            print(f"{path}: a broken line (of an interrupted write?) is passed over: {text[:60]}...")
    return lines


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add a line; a broken last one is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
            file.write(b"\n")
        file.write((json.dumps(line) + "\n").encode())


def knee_data() -> Path:
    """The folder of radiographs: ``KECAE_KNEE_DATA``, or ``shared/data/knee`` beside the checkout."""
    return Path(os.environ.get("KECAE_KNEE_DATA") or PROJECT.parent / "shared" / "data" / "knee")


def find_commit(*paths: str) -> str:
    """Short git hash, with a + where something under ``paths`` (of the project) has been changed since."""
    return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "--", *paths) else "")


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
