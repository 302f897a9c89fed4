"""Append a benchmark's figures to benchmarks/results, with what they were made with."""

import json
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
        "commit": _git("rev-parse", "--short", "HEAD")
        + ("+" if _git("status", "--porcelain", "src", "training", "benchmarks/*.py") else ""),
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


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
