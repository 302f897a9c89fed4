"""What benchmarks share: where the radiographs are, what code ran, and the file that figures are appended to."""

import json
import os
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from kecae_training.checkpoint import environment

PROJECT = Path(__file__).parents[1]


def record(name: str, figures: dict[str, Any]) -> None:
    """Print the figures and append them as one JSON line to benchmarks/results/<name>.jsonl."""
    line = {
        "date": date.today().isoformat(),
        "commit": commit("src", "training", "benchmarks/*.py"),
        "command": shlex.join(["python", *sys.argv]),
        **figures,
        "environment": environment(),
    }
    path = PROJECT / "benchmarks" / "results" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=2))
    print(f"appended to {path.relative_to(PROJECT)}")


def knee_data() -> Path:
    """The folder of radiographs: ``KECAE_KNEE_DATA``, or ``shared/data/knee`` beside the checkout."""
    return Path(os.environ.get("KECAE_KNEE_DATA") or PROJECT.parent / "shared" / "data" / "knee")


def commit(*paths: str) -> str:
    """Short git hash, with a + where something under ``paths`` (of the project) has been changed since."""
    return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "--", *paths) else "")


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
