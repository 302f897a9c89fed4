"""Draw the pictures of docs/reader-study.md: the page in Chromium, with phantoms.

python tests/reader_pictures.py
"""

import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from reader_browser import ARGS, CHROMIUM, SIZE, Reader, url

from kecae_aug.cli import main as kecae_aug
from kecae_training.reader_study.build import BuildConfig, build

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main() -> None:
    with tempfile.TemporaryDirectory() as work, sync_playwright() as p:
        data, folder = Path(work, "phantoms"), Path(work, "study")
        size = ("--train-patients", "4", "--val-patients", "40", "--image-size", "128")
        kecae_aug(["phantoms", "--out", str(data), *size, "--seed", "90"])
        config = BuildConfig(
            data,
            ["phantom"],
            detail=["host"],
            n=10,
            real=2,
            repeat=2,
            seed=1,
            title="Exchanged knees (phantoms)",
        )
        build(config, folder, secret=bytes(16))  # the same names, and so the same order, each time
        browser = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        reader = Reader(browser.new_context(viewport=SIZE), url(folder), "rad-1")
        reader.begin()
        reader.grade(1, 5, "0")
        reader.at("Image 6 of")
        reader.keys("2", "f")
        reader.page.screenshot(path=IMAGES / "reader-phase1.png")
        reader.keys("Enter")
        reader.grade(7, 14)
        reader.open2()
        reader.rate(1, 2)
        reader.at("Pair 3 of")
        reader.keys("4", "y")
        reader.page.screenshot(path=IMAGES / "reader-phase2.png")
        reader.close()
        browser.close()


if __name__ == "__main__":
    main()
