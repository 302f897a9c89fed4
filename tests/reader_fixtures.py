"""Fixtures of the page's tests, which take them by `pytest_plugins = ["reader_fixtures"]`."""

import socket

import pytest
from playwright import sync_api as playwright
from reader_browser import ARGS, CHROMIUM, SIZE, WAIT
from reader_folder import write_study


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
