"""The page of a reader study in a real browser: whole studies, and what a reader may see when."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kecae_training.reader_study import formats
from kecae_training.reader_study.canonical import digest

pytest.importorskip("playwright", reason="playwright is not installed: pip install .[dev]")
import reader_browser
from playwright import sync_api as playwright
from reader_browser import Reader, url
from reader_studies import write_study

pytest_plugins = ["reader_browser"]
pytestmark = reader_browser.needed


def test_a_study_by_keyboard_from_a_folder_with_the_page_closed_in_between(context, folder, tmp_path):
    """Nothing given is lost when the tab is closed, half an answer included, and the scorer takes the file."""
    path, _, key = folder
    reader = Reader(context, url(path), "Rad-1")
    reader.begin()
    reader.grade(1, 2)
    reader.at("Image 3 of")
    reader.keys("0")  # half an answer
    reader.close()

    reader = Reader(context, url(path), "rad-1")
    reader.at("Image 3 of 4")
    assert reader.page.locator("input[value='0'][name=grade]").is_checked()
    reader.keys("Enter")
    reader.see("#missing", "how certain")
    reader.keys("g", "Enter")
    reader.at("Image 4 of")
    reader.keys("Backspace")
    reader.at("Image 3 of")
    reader.keys("2", "Enter")  # changed
    reader.grade(4, 4)
    reader.open2()
    reader.rate(1, 1, remark="ä ü")
    reader.at("Pair 2 of")
    reader.keys("Escape")
    reader.see("#paused")
    reader.close()

    reader = Reader(context, url(path), "rad-1")
    reader.rate(2, 3)
    reader.finish(tmp_path / "a.json")
    sum_shown = reader.page.locator("#sum").inner_text()
    reader.close()

    answers = formats.read_answers(tmp_path / "a.json", key)
    assert answers["reader"] == "rad-1"
    assert answers["sha256"] == sum_shown
    assert [answers["phase1"][i]["grade"] for i in answers["order"]["phase1"]] == ["2"] * 4
    assert [answers["phase1"][i]["confidence"] for i in answers["order"]["phase1"]] == [4, 4, 5, 4]
    assert [answers["phase2"][i]["remark"] for i in answers["order"]["phase2"]] == ["ä ü", "", ""]
    assert {a["realism"] for a in answers["phase2"].values()} == {4}

    again = Reader(context, url(path), "rad-1")  # finished: nothing can be changed any more
    again.see("#done")
    assert again.page.locator("#sum").inner_text() == sum_shown
    again.close()


def test_phase_2_is_not_there_before_phase_1_is_closed_and_phase_1_not_after(context, folder):
    path, study, _ = folder
    reader = Reader(context, url(path), "order")
    reader.begin()
    assert reader.page.evaluate("window.PHASE2") is None
    reader.grade(1, 4)
    reader.see("#gate")
    assert reader.page.evaluate("window.PHASE2") is None
    reader.page.click("#review")
    reader.at("Image 4 of")  # before it is closed, grades may be looked at again
    reader.keys("0", "Enter")
    reader.open2()
    assert reader.page.locator("#back").is_disabled()
    reader.keys("Backspace", "0", "Enter")
    reader.see("#missing", "how realistic")
    stored = reader.page.evaluate("id => Store.peek(id, 'order')", study["id"])
    assert stored["opened"]
    assert sorted(a["grade"] for a in stored["phase1"].values()) == ["0", "2", "2", "2"]
    reader.close()
    back = Reader(context, url(path), "order")
    back.at("Pair 1 of")  # not the gate, whose way leads back
    back.close()


def test_nothing_on_the_page_tells_which_image_it_is(context, folder):
    path, _, key = folder
    reader = Reader(context, url(path), "blind")
    reader.begin()
    secrets = [*key["phase1"], *key["phase2"], *(e["file"] for e in key["phase1"].values())]
    secrets += [e["patient"] for e in key["phase1"].values()]
    for n in range(1, 5):
        reader.at(f"Image {n} of")
        # all that is read out or shown: text, and the attributes that hold text
        said = reader.page.evaluate(
            """() => document.body.innerText + [...document.querySelectorAll('*')].map(
                 (e) => [...e.attributes].filter((a) => a.name !== 'src').map((a) => a.value).join(' ')).join(' ')"""
        )
        assert not [s for s in secrets if s in said]
        reader.keys("2", "a", "Enter")
    reader.close()


def test_two_readers_see_other_orders_which_python_can_repeat(context, folder):
    path, study, _ = folder
    reader = Reader(context, url(path))
    items = [format(i, "032x") for i in range(40)]
    orders = {}
    for name in ("rad-1", "rad-2"):
        orders[name] = reader.page.evaluate("([r, i]) => Order.of(window.STUDY, r, 1, i)", [name, items])
        by_hash = [
            (hashlib.sha256(f"{study['order_seed']}/{name}/1/{i}".encode()).hexdigest(), i) for i in items
        ]
        assert orders[name] == [i for _, i in sorted(by_hash)]
    assert orders["rad-1"] != orders["rad-2"]
    reader.close()


@pytest.fixture(scope="module")
def hashing(browser, folder):
    page = browser.new_page()
    page.goto(url(folder[0]))
    yield page
    page.close()


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(st.lists(plain, min_size=1, max_size=8))
def test_hashes_of_the_page_are_those_of_python(hashing, values):
    """To the byte: else honest answers are refused as edited. As text, since the wire would change surrogates."""
    texts = [json.dumps(v) for v in values]
    got = hashing.evaluate("(texts) => Promise.all(texts.map((t) => Hash.digest(JSON.parse(t))))", texts)
    assert got == [digest(v) for v in values]


def test_the_page_hashes_no_float(hashing):
    assert (
        hashing.evaluate("() => { try { Hash.canonical([0.5]) } catch (e) { return e.message } }") is not None
    )


@pytest.mark.parametrize("file", ["study.js", "phase2.js"])
def test_an_edited_study_does_not_open(context, tmp_path, file):
    path = tmp_path / "readers"
    write_study(path, pairs=1, reals=0)
    edited = (path / file).read_text().replace('"0"', '"1"')
    (path / file).write_text(edited)
    page = context.new_page()
    page.goto(url(path))
    if file == "phase2.js":
        page.keyboard.type("r")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#intro")).to_be_visible()
        page.keyboard.press("Enter")
        for n in (1, 2):
            playwright.expect(page.locator("#item-title")).to_contain_text(f"{n} of 2")
            playwright.expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")
            for key in ("2", "a", "Enter"):
                page.keyboard.press(key)
        playwright.expect(page.locator("#gate")).to_be_visible()
        page.keyboard.press("Enter")
    playwright.expect(page.locator("#fatal")).to_contain_text("changed after it was made")
