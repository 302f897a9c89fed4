"""The page of a reader study when things go wrong: nothing is lost, and the reader is told."""

import contextlib
import json
import subprocess
import urllib.error
import urllib.request

import pytest

from kecae_training.reader_study import formats

pytest.importorskip("playwright", reason="playwright is not installed: pip install .[dev]")
import reader_browser
from playwright import sync_api as playwright
from reader_browser import SIZE, WAIT, Reader, kill_browser, persistent, served, url

pytest_plugins = ["reader_browser"]
pytestmark = reader_browser.needed


def test_answers_of_another_browser_go_on_from_their_file(context, browser, folder, tmp_path):
    path, _, _ = folder
    reader = Reader(context, url(path), "moved")
    reader.begin()
    reader.grade(1, 2)
    reader.at("Image 3 of")
    reader.keys("Escape")
    with reader.page.expect_download() as download:
        reader.page.click("#paused .download")
    download.value.save_as(tmp_path / "half.json")
    assert json.loads((tmp_path / "half.json").read_text())["complete"] is False
    other = browser.new_context(viewport=SIZE)
    try:
        there = Reader(other, url(path))
        edited = json.loads((tmp_path / "half.json").read_text())
        next(iter(edited["phase1"].values()))["grade"] = "0"
        (tmp_path / "edited.json").write_text(json.dumps(edited))
        there.page.click("summary")
        there.page.set_input_files("#import", tmp_path / "edited.json")
        there.see("#reader-error", "changed after it was written")
        there.page.set_input_files("#import", tmp_path / "half.json")
        there.at("Image 3 of 4")
        there.close()
    finally:
        other.close()


def test_full_storage_is_told_and_no_answer_is_passed_over(context, folder, tmp_path):
    """Both places refuse: the reader is told, stays where he is, and gets his answers as a file."""
    path, _, key = folder
    reader = Reader(context, url(path), "full")
    reader.begin()
    reader.grade(1, 1)
    reader.at("Image 2 of")
    reader.page.evaluate(
        """() => { const full = () => { throw new DOMException('full', 'QuotaExceededError') };
           window.room = [Storage.prototype.setItem, IDBObjectStore.prototype.put];
           Storage.prototype.setItem = IDBObjectStore.prototype.put = full; }"""
    )
    reader.keys("0", "a", "Enter")
    reader.see("#alert", "NOT saved")
    reader.see("#item-title", "Image 2 of")
    with reader.page.expect_download() as download:
        reader.page.click("#alert .download")
    download.value.save_as(tmp_path / "kept.json")
    kept = formats.read_answers(tmp_path / "kept.json", key, partial=True)
    assert [a["grade"] for a in kept["phase1"].values()] == ["2", "0"]
    reader.page.evaluate("() => { [Storage.prototype.setItem, IDBObjectStore.prototype.put] = window.room }")
    reader.keys("Enter")
    reader.at("Image 3 of")
    playwright.expect(reader.page.locator("#alert")).to_be_hidden()
    reader.close()
    back = Reader(context, url(path), "full")
    back.at("Image 3 of")
    back.close()


@pytest.mark.slow
def test_one_full_place_of_two_is_a_notice_and_the_other_one_keeps(context, folder):
    """localStorage is really filled up to its quota; IndexedDB still has room."""
    path, _, _ = folder
    reader = Reader(context, url(path), "half-full")
    reader.begin()
    reader.page.evaluate(
        """() => { for (let n = 1 << 20, i = 0; n >= 1; ) {
             try { localStorage.setItem('fill' + i++, 'x'.repeat(n)) } catch { n >>= 1 } } }"""
    )
    reader.grade(1, 1)
    reader.at("Image 2 of")
    reader.see("#notice", "is full")
    reader.close()
    back = Reader(context, url(path), "half-full")
    back.at("Image 2 of")
    back.close()


@pytest.mark.slow
def test_a_study_from_the_server_which_is_killed_in_between(context, folder, tmp_path, port):
    """Answers given while there is no server are kept, said to be, and sent when it is back."""
    path, _, key = folder
    answers = tmp_path / "answers"
    with served(path, answers, port) as address:
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{address}phase2.js?reader=net")
        reader = Reader(context, address, "Net")
        reader.begin()
        reader.grade(1, 2)
        reader.at("Image 3 of")
        reader.see("#saved", "at the server")
    reader.keys("2", "d", "Enter")
    reader.see("#notice", "1 not yet at the server")
    reader.see("#item-title", "Image 4 of")
    reader.see("#broken", "could not be loaded")
    with served(path, answers, port):  # the page finds it by itself
        reader.grade(4, 4)
        reader.open2()
        reader.see("#saved", "at the server")
        reader.rate(1, 3, remark="fine")
        reader.see("#finish")
        reader.keys("Enter")
        reader.see("#done", "at the server")
        sum_shown = reader.page.locator("#sum").inner_text()
        reader.close()
        elsewhere = Reader(context.browser.new_context(), address, "net")
        elsewhere.see("#done", "another browser")
        elsewhere.page.context.close()
    handed_in = formats.read_answers(answers / "net" / "answers.json", key)
    assert handed_in["sha256"] == sum_shown
    assert [handed_in["phase1"][i]["confidence"] for i in handed_in["order"]["phase1"]] == [4, 4, 3, 4]


@pytest.mark.slow
def test_a_browser_without_memory_goes_on_from_the_server(browser, folder, tmp_path, port):
    path, _, _ = folder
    with served(path, tmp_path / "answers", port) as address:
        for first, last in ((1, 2), (3, 4)):
            context = browser.new_context(viewport=SIZE)
            reader = Reader(context, address, "roaming")
            if first == 1:
                reader.begin()
            reader.grade(first, last)
            reader.see("#item-title" if last < 4 else "#gate")
            reader.see("#saved", "at the server")
            playwright.expect(reader.page.locator("#progress-text")).to_contain_text(
                f"{last} of 4", timeout=WAIT
            )
            reader.close()
            context.close()


@pytest.mark.slow
def test_a_killed_browser_loses_no_answer(driver, folder, tmp_path):
    """Killed right after the next image appears: localStorage alone had none of the answers then."""
    path, _, _ = folder
    profile = tmp_path / "profile"
    context = persistent(driver, profile)
    reader = Reader(context, url(path), "crash")
    reader.begin()
    reader.grade(1, 3, grade="0")
    reader.at("Image 4 of")
    kill_browser(profile)
    with contextlib.suppress(playwright.Error):
        context.close()
    context = persistent(driver, profile)
    reader = Reader(context, url(path), "crash")
    reader.at("Image 4 of")
    reader.see("#progress-text", "3 of 4")
    context.close()


@pytest.mark.slow
def test_a_full_disk_is_told(driver, folder, tmp_path):
    """A browser on a disk that really is full: no answer counts as saved, and what it says then saves them all.

    localStorage reports success all the while, and a Chromium that is killed afterwards may have thrown away its
    IndexedDB: so the page asks the reader to download, and the file goes on where it was.
    """
    path, _, _ = folder
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("no disk of its own: mounting is not allowed here")
    try:
        context = persistent(driver, disk / "profile")
        reader = Reader(context, url(path), "disk")
        reader.begin()
        reader.grade(1, 1)
        reader.at("Image 2 of")
        with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(2**12))
        reader.keys("0", "a", "Enter")
        reader.see("#alert", "NOT saved")
        reader.see("#item-title", "Image 2 of")
        (disk / "filler").unlink()
        reader.keys("Enter")
        reader.grade(3, 3)
        reader.at("Image 4 of")
        reader.see("#notice", "the disk was full before")  # from now on Chromium itself is not to be trusted
        with reader.page.expect_download() as download:
            reader.page.click("#notice .download")
        download.value.save_as(tmp_path / "kept.json")
        kill_browser(disk / "profile")
        with contextlib.suppress(playwright.Error):
            context.close()
        context = persistent(driver, disk / "profile")
        reader = Reader(context, url(path))
        reader.page.click("summary")
        reader.page.set_input_files("#import", tmp_path / "kept.json")
        reader.at("Image 4 of")
        reader.see("#progress-text", "3 of 4")
        context.close()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
