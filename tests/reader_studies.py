"""A small reader study of knees whose grade can be read off the picture: a dark bar in the middle."""

from pathlib import Path

import numpy as np
from evaluation_models import Swap
from PIL import Image

from kecae_training.reader_study import build as build_module
from kecae_training.reader_study.build import BuildConfig, Built, build
from kecae_training.reader_study.formats import ANSWERS, sealed

SECRET = b"0123456789abcdef"
NOW = "2026-01-31T12:00:00.000Z"


def write_knees(root: Path, patients: int = 24, grades=("0", "2")) -> Path:
    """val/<grade>/<patient><side>.png, 64 px: the patients of each grade in turn, two knees each."""
    rng = np.random.default_rng(0)
    for i in range(patients):
        grade = grades[i % len(grades)]
        folder = root / "val" / grade
        folder.mkdir(parents=True, exist_ok=True)
        for side in "LR":
            image = rng.integers(120, 220, (64, 64)).astype(np.uint8)
            image[28:36] = 20 if grade == grades[-1] else image[28:36]
            Image.fromarray(image).save(folder / f"{7_000_000 + i}{side}.png")
    return root


def build_study(monkeypatch, data: Path, out: Path, *, key=None, secret=SECRET, say=print, **config) -> Built:
    """A study whose exchange is perfect: the donor's bar in the host."""
    monkeypatch.setattr(build_module, "load_weights", lambda name: Swap().eval())
    values = {"weights": ["swap"], "n": 8, "image_size": 64, **config}
    return build(BuildConfig(data, **values), out, key, secret=secret, created="2026-01-31", say=say)


def answers_to(shown, reader="anna", **changes):
    """Complete answers, all the same, hashed; ``changes`` replace fields before that."""
    first = [e["item"] for e in shown["phase1"]]
    second = shown["phase2"]["items"]
    value = {
        "format": ANSWERS,
        "version": 1,
        "study": shown["id"],
        "reader": reader,
        "software": "test",
        "started": NOW,
        "finished": NOW,
        "complete": True,
        "order": {"phase1": first, "phase2": second},
        "phase1": {item: answer1() for item in first},
        "phase2": {item: answer2() for item in second},
    }
    return sealed({**value, **changes})


def answer1(grade="2", confidence=3):
    return {"grade": grade, "confidence": confidence, "milliseconds": 1200, "at": NOW}


def answer2(realism=4, matches="yes", remark=""):
    return {"realism": realism, "matches": matches, "remark": remark, "milliseconds": 900, "at": NOW}
