"""A reader in front of the page of a reader study: Debian's Chromium, driven by Playwright.

Tests take the fixtures by `pytest_plugins = ["reader_browser"]`, after they have imported it: PYTEST_DONT_REWRITE.
"""

import contextlib
import os
import signal
from pathlib import Path

import pytest
from playwright import sync_api as playwright
from reader_studies import free_port, start_server, write_study

CHROMIUM = Path("/usr/bin/chromium")
needed = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}: apt-get install chromium")
_QUIET = ("gpu", "background-networking", "component-update", "sync")
ARGS = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in _QUIET)]
SIZE = {"width": 1280, "height": 800}
WAIT = 20_000  # ms; a busy machine is no error


class Reader:
    """A reader in front of a page, at the keyboard."""

    def __init__(self, context, url, name=None):
        self.page = context.new_page()
        self.errors = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.see("#start")
        if name:
            self.keys(*name, "Enter")

    def keys(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def see(self, where, text=""):
        self.page.locator(where).filter(has_text=text).wait_for(timeout=WAIT)

    def at(self, text):
        """Wait until an item is there to be answered."""
        self.see("#item-title", text)
        self.see("#stage[aria-busy=false]")

    def begin(self):
        self.see("#intro")
        self.keys("Enter")
        self.at("Image 1 of")

    def grade(self, first, last, grade="2", certain="f"):
        for n in range(first, last + 1):
            self.at(f"Image {n} of")
            self.keys(grade, certain, "Enter")

    def open2(self):
        self.see("#gate")
        self.keys("Enter")
        self.at("Pair 1 of")

    def rate(self, first, last, realism="4", matches="p", remark=""):
        for n in range(first, last + 1):
            self.at(f"Pair {n} of")
            self.keys(realism, matches, "r")
            self.page.keyboard.insert_text(remark)
            self.keys("Enter")

    def finish(self, to):
        self.see("#finish")
        with self.page.expect_download(timeout=WAIT) as download:
            self.keys("Enter")
        download.value.save_as(to)
        self.see("#done")

    def close(self):
        assert self.errors == []
        self.page.close()


def url(path):
    return (path / "index.html").as_uri()


@contextlib.contextmanager
def served(path, answers, port):
    """`reader-study serve` in a process of its own, which is killed at the end."""
    server = start_server(path, answers, port)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def kill_browser(profile):
    """SIGKILL to the browser of this profile, with all its processes: as if the computer lost its power."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if str(profile).encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)


def persistent(driver, profile):
    return driver.chromium.launch_persistent_context(
        profile, executable_path=CHROMIUM, args=ARGS, viewport=SIZE
    )


@pytest.fixture(scope="module")
def driver():
    with playwright.sync_playwright() as p:
        yield p


@pytest.fixture(scope="module")
def browser(driver):
    browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGS)
    yield browser
    browser.close()


@pytest.fixture
def context(browser):
    context = browser.new_context(viewport=SIZE)
    context.set_default_timeout(WAIT)
    yield context
    context.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pairs, one real knee, one repeat: four images, three pairs."""
    path = tmp_path_factory.mktemp("study") / "readers"
    study, key = write_study(path, pairs=2)
    return path, study, key


@pytest.fixture
def port():
    return free_port()
