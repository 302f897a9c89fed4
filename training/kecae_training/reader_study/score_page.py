"""The figures of a study as one HTML page that needs nothing else: no picture, no script, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kecae_training.reader_study.table_text import Table
from kecae_training.reader_study.tables import all_tables

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c2126; --muted: #59636d; --rule: #d5dadf; --band: #f3f5f7;
  --warn: #9c2f10; }
@media (prefers-color-scheme: dark) { :root { --page: #15181b; --ink: #e4e8eb; --muted: #a3adb6; --rule: #3a424a;
  --band: #1e2327; --warn: #ffab8a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 1.2rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: .2rem 0 .6rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
p, li { max-width: 78ch; } .scroll { overflow-x: auto; } code { overflow-wrap: anywhere; }
.warning { border-left: 4px solid var(--warn); background: var(--band); padding: .5rem 1rem; color: var(--warn);
  font-weight: 600; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: 1.2rem 0 .3rem; }
caption { text-align: left; color: var(--muted); padding-bottom: .3rem; } caption b { color: var(--ink); }
th, td { padding: .32rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); }
thead th { border-bottom: 2px solid var(--muted); vertical-align: bottom; }
th:first-child { text-align: left; } tbody th { font-weight: 500; white-space: nowrap; }
tbody tr:hover { background: var(--band); } td { white-space: nowrap; }
.remarks td, .remarks th { text-align: left; white-space: normal; }
.note { color: var(--muted); font-size: .9rem; margin: .2rem 0; }
"""


def page(scores: Mapping[str, Any], remarks: Sequence[tuple[str, ...]] = ()) -> str:
    """The whole page.

    Args:
        scores: of :func:`score.score`.
        remarks: of :func:`score.remarks`.
    """
    first, *others = all_tables(scores)
    warning = f"<p class='warning'>Partial: {escape(scores['partial'])}.</p>" if scores["partial"] else ""
    weights = ", ".join(f"{escape(w['name'])} ({str(w['sha256'])[:12]})" for w in scores["weights"])
    wrote = Table(
        "Remarks",
        "as the readers wrote them; of real knees the second grade is the one that was claimed",
        ("images", "grades", "reader", "realism", "as the label says", "remark"),
        [tuple(row) for row in remarks],
    )
    more = [table.html() for table in others]
    if remarks:
        more.append(f"<div class='remarks'>{wrote.html()}</div>")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(scores["title"])}: scores</title><style>{STYLE}</style></head>
<body><main><h1>{escape(scores["title"])}: what the readers said</h1>
<p>{_count(scores)} graded exchanged knees without knowing what they were (phase 1) and then saw each
beside its original (phase 2). Accuracy: share graded as the label that the exchange should give. SRS: realism, 1 to 5.</p>
{warning}
{first.html()}
<h2>More</h2>
{"".join(more)}
<footer><p class="note">Study <code>{escape(scores["study"])}</code> of {escape(scores["created"])}; weights {weights}.
No picture of a patient is on this page. Nothing here is a medical device.</p></footer>
</main></body></html>
"""


def _count(scores: Mapping[str, Any]) -> str:
    readers = len(scores["readers"])
    return "One reader" if readers == 1 else f"{readers} readers"
