"""A whole reader study as a research group runs it: build, serve, two readers at a real browser, score."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reader_studies import build_study, write_knees

from kecae_training.reader_study import formats
from kecae_training.reader_study.command import main

pytest.importorskip("playwright", reason="playwright is not installed: pip install .[dev]")
from reader_browser import SIZE, Reader, needed

pytest_plugins = ["reader_browser"]
pytestmark = [pytest.mark.slow, needed]


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A study of a perfect exchange, and `reader-study serve` as a process of its own."""
    data = write_knees(tmp_path / "knees")
    built = build_study(monkeypatch, data, tmp_path / "study", n=4, real=2, repeat=1, image_size=256)
    command = [sys.executable, "-m", "kecae_training.reader_study.command", "serve", str(built.folder)]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        yield built, process.stdout.readline().split()[0]
    finally:
        process.kill()
        process.communicate()


def has_bar(page, frame):
    """Whether the screen shows a knee with a dark bar in the middle: what a reader of these knees sees."""
    pixels = np.asarray(Image.open(io.BytesIO(page.locator(frame).screenshot())).convert("L")).astype(float)
    rows, columns = pixels.shape
    side = min(rows, columns)
    inside = pixels[:, columns // 2 - side // 4 : columns // 2 + side // 4]
    middle, above = inside[rows // 2 - side // 40 : rows // 2 + side // 40], inside[rows // 2 - side // 4]
    return middle.mean() < 0.6 * above.mean()


def read(reader, grade_of):
    """Read the whole study by keyboard; ``grade_of`` says what the reader makes of seeing a bar or none."""
    page = reader.page
    reader.begin()
    for n in range(1, 8):
        reader.at(f"Image {n} of 7")
        reader.keys(grade_of(has_bar(page, "#left .frame")), "f", "Enter")
    reader.open2()
    for n in range(1, 7):
        reader.at(f"Pair {n} of 6")
        changed = has_bar(page, "#left .frame") != has_bar(page, "#right .frame")
        reader.keys("4", "y" if changed else "n", "Enter")
    reader.see("#finish")
    reader.keys("Enter")
    reader.see("#done")


def test_from_radiographs_to_table_iii(served, browser, tmp_path, capsys):
    """Who sees the bar is right on every knee, on the claims too; who always says 2 is right on half. The table says so:
    no image, item, key, answer or claim was mixed up on the way, through the screen itself."""
    built, url = served
    readers = {"anna": lambda bar: "2" if bar else "0", "eve": lambda bar: "2"}
    for name, grade_of in readers.items():
        context = browser.new_context(viewport=SIZE)
        reader = Reader(context, url, name)
        reader.page.on("console", lambda m, said=reader.errors: m.type == "error" and said.append(m.text))
        read(reader, grade_of)
        shown = reader.page.locator("#sum").inner_text()
        reader.close()  # there were no errors, nor anything that the Content-Security-Policy refused
        context.close()
        handed_in = tmp_path / "study-answers" / name / "answers.json"
        assert formats.read_answers(handed_in, built.key)["sha256"] == shown
    files = sorted(str(path) for path in (tmp_path / "study-answers").glob("*/answers.json"))
    orders = [json.loads(Path(path).read_text())["order"]["phase1"] for path in files]
    assert orders[0] != orders[1]
    main(["score", *files, "--key", str(built.key_file), "--out", str(tmp_path / "results")])
    table = capsys.readouterr().out
    assert re.search(r"anna +100\.0 \(100\.0 / 100\.0\)", table)
    assert re.search(r"eve +50\.0 \(0\.0 / 100\.0\)", table)
    scores = json.loads((tmp_path / "results" / "scores.json").read_text())
    assert scores["matches"]["exchanged"]["yes"]["mean"]["mean"] == 1
    assert scores["matches"]["real"]["yes"]["mean"]["mean"] == 0
