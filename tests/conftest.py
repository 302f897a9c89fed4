"""What several test files share: where the real knees are, and small folders of phantom-like images."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

PROJECT = Path(__file__).parents[1]
if "PYTEST_XDIST_WORKER" in os.environ:  # each of the processes has one core
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of what they start: other numbers of threads give other last bits
# A shell's background job ignores Ctrl-C, and so would the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def knee_data() -> Path:
    """The real radiographs, by KECAE_KNEE_DATA or beside the checkout; skips where they are not."""
    path = Path(os.environ.get("KECAE_KNEE_DATA") or PROJECT.parent / "shared" / "data" / "knee")
    if not (path / "train").is_dir():
        pytest.skip(f"no radiographs at {path}; set KECAE_KNEE_DATA")
    return path


@pytest.fixture(scope="session")
def blob_data(tmp_path_factory) -> Path:
    """train/{0,2}/<patient><side>.png: 64 px smooth noise, the second grade with a dark bar in the middle."""
    root = tmp_path_factory.mktemp("blobs")
    rng = np.random.default_rng(0)
    for grade in ("0", "2"):
        folder = root / "train" / grade
        folder.mkdir(parents=True)
        for i in range(24):
            small = rng.integers(60, 200, (6, 6)).astype(np.uint8)
            image = np.asarray(Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)).copy()
            if grade == "2":
                image[28:36] //= 3
            Image.fromarray(image).save(folder / f"{9_000_000 + 100 * int(grade) + i // 2}{'LR'[i % 2]}.png")
    return root
