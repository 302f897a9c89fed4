"""Generated blocks of README and docs: what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``.

    python -m kecae_bench.report.blocks      # writes all of them anew, from the files of benchmarks/results

A block's maker reads committed files only and trains nothing, so tests/test_blocks.py compares every block of every page
with what its maker says. A new block is a line of :data:`MAKERS` and two marker lines in a page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from kecae_bench.record import PROJECT

MAKERS = {  # by the block's name, its maker as module:function
    "when": "kecae_bench.report.tables:make_when_block",
    "classifiers": "kecae_bench.report.tables:make_classifiers_block",
    "settings": "kecae_bench.report.tables:make_settings_block",
    "key-probe": "kecae_bench.key_probe:make_block",
    "ladder": "kecae_bench.ladder:make_block",
    "deviations": "kecae_bench.ablation.deviations:make_block",
}
_BLOCK = re.compile(r"<!-- (?P<name>[\w-]+) -->\n(?P<content>.*?)<!-- /(?P=name) -->", re.DOTALL)


def find_pages() -> list[Path]:
    """README and the pages of docs."""
    return [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]


def find_blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(name, content) of every block."""
    for found in _BLOCK.finditer(page.read_text()):
        yield found["name"], found["content"]


def make_block(name: str) -> str:
    """What should stand between a block's markers.

    Raises:
        ValueError: nobody makes it.
    """
    if name not in MAKERS:
        raise ValueError(f"block {name}: no such one in MAKERS; there are {', '.join(MAKERS)}")
    module, function = MAKERS[name].split(":")
    text: str = getattr(import_module(module), function)()
    return f"{text.strip()}\n"


def write_blocks(page: Path) -> list[str]:
    """Write every block of a page anew, the rest stays; their names."""
    text = page.read_text()
    new = _BLOCK.sub(
        lambda found: f"<!-- {found['name']} -->\n{make_block(found['name'])}<!-- /{found['name']} -->", text
    )
    if new != text:
        page.write_text(new)
    return [name for name, _ in find_blocks(page)]


def main() -> None:
    for page in find_pages():
        if names := write_blocks(page):
            print(f"{page.relative_to(PROJECT)}: {', '.join(names)}")


if __name__ == "__main__":
    main()
