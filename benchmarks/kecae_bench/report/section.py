"""The part of a document between ``<!-- NAME -->`` and ``<!-- /NAME -->``: written anew by a benchmark, the rest stays."""

from __future__ import annotations

from pathlib import Path


def markers(name: str) -> tuple[str, str]:
    """The lines that a section stands between."""
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def around(doc: Path, name: str) -> tuple[str, str]:
    """What stands before and after a section, with its markers.

    Raises:
        ValueError: ``doc`` lacks the markers.
    """
    opening, closing = markers(name)
    text = doc.read_text() if doc.exists() else ""
    start, end = text.find(opening), text.find(closing)
    if not 0 <= start < end:
        raise ValueError(f"{doc}: accepted is a file with the lines {opening} and {closing}")
    return text[: start + len(opening)], text[end:]


def write(doc: Path, name: str, content: str) -> None:
    """Put ``content`` between the markers. Errors: as of :func:`around`; nothing is written then."""
    before, after = around(doc, name)
    doc.write_text(f"{before}\n{content}\n{after}")
