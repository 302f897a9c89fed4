"""A small study folder for the page, to the formats, without weights: pictures are given as 8-bit grey arrays."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import kecae_training.reader_study
from kecae_training.reader_study import formats

PAGE = Path(kecae_training.reader_study.__file__).parent / "page"
Picture = Callable[[int], np.ndarray]


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
    for file in PAGE.iterdir():
        shutil.copy(file, folder)
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
    study = formats.sealed(
        {
            "format": formats.STUDY, "version": 1, "title": title, "created": "2026-01-31", "order_seed": 7,
            "grades": list(grades), "confidence": 5, "realism": 5, "phase1": phase1,
            "phase2": {
                "items": [entry["item"] for entry in phase2],
                "file": "phase2.js",
                "sha256": formats.digest(second_part),
            },
        },
        "id",
    )  # fmt: skip
    (folder / "study.json").write_bytes(formats.canonical(study))
    (folder / "study.js").write_bytes(b"window.STUDY = " + formats.canonical(study) + b";\n")
    (folder / "phase2.js").write_bytes(b"window.PHASE2 = " + formats.canonical(second_part) + b";\n")
    key = {
        "format": formats.KEY, "version": 1, "study": study["id"], "title": title, "created": "2026-01-31",
        "seed": 0, "weights": [{"name": "none", "sha256": None}], "data": "none", "allow_seen": False,
        "grades": list(grades), "arms": ["host"], "phase1": key1, "phase2": key2,
    }  # fmt: skip
    checked = formats.check_key(json.loads(formats.canonical(key)))
    return formats.check_study(study), checked
