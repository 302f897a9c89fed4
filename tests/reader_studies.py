"""Small reader studies: built of knees whose grade is a dark bar in the middle, or written without weights."""

import hashlib
import io
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from evaluation_models import Swap
from PIL import Image

from kecae_training.reader_study import build as build_module
from kecae_training.reader_study import formats
from kecae_training.reader_study.build import BuildConfig, Built, build
from kecae_training.reader_study.canonical import add_hash, canonical_json, digest
from kecae_training.reader_study.folder import read_page, write_texts

Picture = Callable[[int], np.ndarray]
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
        "format": formats.ANSWERS,
        "version": formats.VERSION,
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
    return add_hash({**value, **changes})


def answer1(grade="2", confidence=3):
    return {"grade": grade, "confidence": confidence, "milliseconds": 1200, "at": NOW}


def answer2(realism=4, matches="yes", remark=""):
    return {"realism": realism, "matches": matches, "remark": remark, "milliseconds": 900, "at": NOW}


def ramp(index: int) -> np.ndarray:
    """256 greys from left to right, each one pixel wide; the lower half is what tells images apart."""
    image = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    image[128:] = (37 * index) % 256
    return image


def write_study(
    folder: Path,
    pairs: int = 4,
    reals: int = 1,
    grades: tuple[str, ...] = ("0", "2"),
    picture: Picture = ramp,
    title: str = "Test study",
) -> tuple[formats.Study, formats.Key]:
    """Write a study and return it with its key: `pairs` exchanged knees, `reals` real ones, one repeat."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def image(where: str, index: int, name: str | None = None) -> tuple[str, str]:
        name = name or rng.bytes(16).hex()
        buffer = io.BytesIO()
        Image.fromarray(picture(index)).save(buffer, "PNG")
        path = folder / where / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(buffer.getvalue())
        return f"{where}/{name}.png", hashlib.sha256(buffer.getvalue()).hexdigest()

    phase1, key1, phase2, key2 = [], {}, [], {}
    for i in range(pairs + reals + 1):
        arm, repeat = ("real" if pairs <= i < pairs + reals else "host"), i == pairs + reals
        before, after = grades[i % len(grades)], grades[(i + 1) % len(grades)]
        item = rng.bytes(16).hex()
        path, sha = image("images", 0 if repeat else i, item)
        phase1.append({"item": item, "image": path, "sha256": sha})
        key1[item] = {
            "arm": arm, "label": after, "before": None if arm == "real" else before, "patient": str(9_000_000 + i),
            "file": f"{i}.png", "donor": None if arm == "real" else "d.png",
            "strength_percent": None if arm == "real" else 100,
            "repeat_of": next(iter(key1)) if repeat else None,
        }  # fmt: skip
        if repeat:
            continue
        second = rng.bytes(16).hex()
        (left, a), (right, b) = image("images2", i + 20), image("images2", i)
        phase2.append(
            {
                "item": second,
                "original": left,
                "exchanged": right,
                "before": before,
                "after": after,
                "sha256": [a, b],
            }
        )
        key2[second] = {
            "arm": arm, "label": after, "before": before, "patient": str(9_000_000 + i), "phase1": item,
        }  # fmt: skip
    phase1.sort(key=lambda entry: entry["item"])
    phase2.sort(key=lambda entry: entry["item"])
    second_part = {"items": phase2}
    study = add_hash(
        {
            "format": formats.STUDY, "version": formats.VERSION, "title": title, "created": "2026-01-31",
            "order_seed": 7, "grades": list(grades), "phase1": phase1,
            "phase2": {
                "items": [entry["item"] for entry in phase2],
                "file": "phase2.js",
                "sha256": digest(second_part),
            },
        },
        "id",
    )  # fmt: skip
    write_texts(folder, read_page(), formats.check_study(study), second_part)
    key = {
        "format": formats.KEY, "version": formats.VERSION, "study": study["id"], "title": title, "created": "2026-01-31",
        "seed": 0, "weights": [{"name": "none", "sha256": None}], "data": "none", "allow_seen": False,
        "grades": list(grades), "arms": ["host"], "phase1": key1, "phase2": key2,
    }  # fmt: skip
    return study, formats.check_key(json.loads(canonical_json(key)))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_server(folder: Path, answers: Path, port: int) -> subprocess.Popen:
    """`reader-study serve` in a process of its own, which loads no torch; it is ready when this returns."""
    code = (
        "import sys; from pathlib import Path; from kecae_training.reader_study.serve import serve; "
        "serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(folder), str(answers), str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline().startswith(f"http://127.0.0.1:{port}/")
    return server
