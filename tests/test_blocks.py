"""Every generated block of README and docs says what the files it comes from say; numbers stand in such blocks."""

import re

import pytest

from kecae_bench.record import PROJECT
from kecae_bench.report import blocks

BLOCKS = [(page, *block) for page in blocks.find_pages() for block in blocks.find_blocks(page)]


@pytest.mark.parametrize(("page", "name", "content"), BLOCKS, ids=[name for _, name, _ in BLOCKS])
def test_a_block_is_what_its_maker_makes(page, name, content):
    assert content == blocks.make_block(name), f"{page}: run python -m kecae_bench.report.blocks"


def test_every_maker_makes_something():
    """Also of blocks that no page shows yet."""
    assert all(blocks.make_block(name).count("\n|") > 1 for name in blocks.MAKERS)


PAGES = [page for page in blocks.find_pages() if page.name != "README.md"]


def read_prose(page):
    """A page without generated blocks, code, addresses and the numbers of list items."""
    text = page.read_text()
    for _, content in blocks.find_blocks(page):
        text = text.replace(content, "")
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`|\]\([^)]*\)|^ *\d\. ", "", text, flags=re.MULTILINE)


def count_numbers(text):
    """Figures and sizes: not KL grades, names of things (ResNet-18, Eq. 5, Fig. 3, CC BY 4.0) or the 95 % of an interval."""
    text = re.sub(
        r"KL \d( (and|to|against|x) (KL )?\d)?|(Eq|Fig)\. \d( to \d)?|CC BY 4.0|95 %|\w+-\d+", "", text
    )
    return len(re.findall(r"(?<!\w)\d[\d.,]*", text))


def test_figures_of_the_results_stand_in_blocks_only():
    """No difference, interval or percentage in the text around the tables: they would be forgotten when runs change."""
    text = read_prose(PROJECT / "docs/results.md")
    assert re.findall(r"[+-]\d+\.\d|\d\.\d|\d %", text.replace("95 %", "")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_read_not_decoded(page):
    """Fewer than thirty numbers outside generated tables."""
    assert count_numbers(read_prose(page)) < 30


def test_the_readme_is_short():
    """600 words and 30 numbers, its table of results included."""
    page = PROJECT / "README.md"
    table = dict(blocks.find_blocks(page))["when"]
    assert len(page.read_text().split()) <= 600
    assert count_numbers(read_prose(page) + table) <= 30


def test_the_docs_are_short():
    """At most 9,000 words in all, with their tables and code; the bars of a table are none."""
    words = [word for page in PAGES for word in page.read_text().split() if re.search(r"\w", word)]
    assert len(words) <= 9_000


def test_blocks_are_written_and_the_rest_stays(tmp_path, monkeypatch):
    monkeypatch.setitem(blocks.MAKERS, "numbers", "kecae_bench.record:__name__")
    monkeypatch.setattr(blocks, "make_block", lambda name: f"new {name}\n")
    page = tmp_path / "page.md"
    page.write_text("# Mine\n\n<!-- numbers -->\nold\n<!-- /numbers -->\n\nkept <!-- a comment -->\n")
    for _ in range(2):
        assert blocks.write_blocks(page) == ["numbers"]
        assert page.read_text() == (
            "# Mine\n\n<!-- numbers -->\nnew numbers\n<!-- /numbers -->\n\nkept <!-- a comment -->\n"
        )


def test_a_block_that_nobody_makes_is_named(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- nosuch -->\n<!-- /nosuch -->\n")
    with pytest.raises(ValueError, match="block nosuch"):
        blocks.write_blocks(page)
