"""What benchmarks share: where the radiographs are, what code ran, and the files that figures and runs are appended to."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from kecae_training.checkpoint import environment

PROJECT = Path(__file__).parents[1]


def record(name: str, figures: dict[str, Any], out: Path | None = None) -> None:
    """Print the figures and append them as one JSON line to ``out``, or else to benchmarks/results/<name>.jsonl."""
    line = {
        **({} if out is None else {"benchmark": name}),  # such a file may hold lines of several
        "date": date.today().isoformat(),
        "commit": commit("src", "training", "benchmarks/*.py"),
        "command": shlex.join(["python", *sys.argv]),
        **figures,
        "environment": environment(),
    }
    path = out or PROJECT / "benchmarks" / "results" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=2))
    print(f"appended to {path if out else path.relative_to(PROJECT)}")


@dataclass
class Log:
    """The file of runs: read at the start, one line more after each run."""

    path: Path
    lines: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for text in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                self.lines.append(json.loads(text))
            except json.JSONDecodeError:
                print(f"{self.path}: a broken line (of an interrupted write?) is passed over: {text[:60]}...")

    def run(self, arm: str, seed: int, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The line of this run, if it has been made."""
        wanted = {"kind": "run", "arm": arm, "seed": seed, "settings": settings}
        found = (line for line in self.lines if {name: line.get(name) for name in wanted} == wanted)
        return next(found, None)

    def append(self, line: dict[str, Any]) -> None:
        """Add a line; a broken last one is ended first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write((json.dumps(line) + "\n").encode())
        self.lines.append(json.loads(json.dumps(line)))


def knee_data() -> Path:
    """The folder of radiographs: ``KECAE_KNEE_DATA``, or ``shared/data/knee`` beside the checkout."""
    return Path(os.environ.get("KECAE_KNEE_DATA") or PROJECT.parent / "shared" / "data" / "knee")


def commit(*paths: str) -> str:
    """Short git hash, with a + where something under ``paths`` (of the project) has been changed since."""
    return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "--", *paths) else "")


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
