"""The report as one HTML page that needs nothing else, and as a Markdown section."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from kecae_bench.report import figures as figures
from kecae_bench.report import tables as tables
from kecae_bench.report.answer import answer, missing
from kecae_bench.report.data import ABSENT, OWN, short, usual
from kecae_bench.report.findings import Findings, title
from kecae_bench.report.format import Table

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1c2126; --muted: #6b757f; --rule: #dfe3e7; --band: #f5f7f9;
  --better: #0b6fb8; --worse: #b4450c;
  --series-0: #0b6fb8; --series-1: #c05a00; --series-2: #2b8a57; --series-3: #8a4fb5;
  --series-4: #a88400; --series-5: #b8336a; }
@media (prefers-color-scheme: dark) { :root { --page: #15181b; --ink: #e4e8eb; --muted: #98a3ad; --rule: #333a41;
  --band: #1e2327;
  --better: #62b4f0; --worse: #f09055;
  --series-0: #62b4f0; --series-1: #f09055; --series-2: #6cc795; --series-3: #c39be8;
  --series-4: #d9bb4a; --series-5: #ee82ad; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 1.2rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: .2rem 0 .6rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
p, li { max-width: 78ch; } nav { font-size: .9rem; } nav a { margin-right: 1em; white-space: nowrap; }
a { color: var(--better); }
.answer { background: var(--band); border-left: 4px solid var(--better); padding: .7rem 1rem; border-radius: 4px; }
.answer p { margin: .35rem 0; } .answer p:first-child { font-weight: 600; font-size: 1.08rem; }
.caption { margin: 1.4rem 0 .4rem; font-size: .9rem; color: var(--muted); } .caption b { color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .45rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
thead th { border-bottom: 2px solid var(--muted); vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 500; position: sticky; left: 0; background: var(--page); } tbody th, .name { text-align: left; }
 tbody th, tbody .name { white-space: normal; max-width: 15rem; }
 tbody td.arm { min-width: 6rem; } /* beside classifier and share */
 tbody tr:hover { background: var(--band); }
td.better, td.worse, td.not { text-align: left; } td.better { color: var(--better); } td.worse { color: var(--worse); }
td.not { color: var(--muted); }
figure { margin: 1.2rem 0; } figure svg { display: block; width: 100%; min-width: 520px; max-width: 860px; height: auto; }
figcaption { font-size: .9rem; color: var(--muted); max-width: 78ch; }
dt { font-weight: 600; margin-top: .5rem; } dd { margin: 0 0 0 1.2rem; max-width: 76ch; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--rule); font-size: .88rem; color: var(--muted); }
"""

WORDS = {  # what a newcomer asks
    "T, T'": "the training set of real knees, and the same with exchanged knees X' added: a knee that was given "
    "the grade of another one.",
    "X^": "a knee that was only taken apart and put together again: what blur alone does.",
    "better, worse, not told apart": "the 95 % interval lies above 0, below 0, or holds 0. Not told apart is "
    "not equal: the true difference may be anything in the interval.",
    "interval": "mean over seeds ± t times the standard error; its parts are from drawing patients (all knees "
    "of one together) and from how much more seeds differ than the number of patients explains. Of one seed "
    "there is no such second part.",
    "p (Holm)": "of no difference, from the same error, corrected for the number of rows: of many comparisons "
    "one is below 0.05 by chance soon.",
    "McNemar": "an exact test of the majority votes of the seeds. It takes every knee for a patient of its own, "
    "so where it disagrees the interval counts.",
    "patients needed": "so many that four of five studies would tell a true difference of the size that was "
    "seen; a guess, since that size is itself uncertain.",
}


def page(found: Findings, source: str) -> str:
    """The whole page.

    Args:
        found: of :func:`report_findings.find`.
        source: the file of runs, named in the footer.
    """
    parts = [section for section in _sections(found) if section[2]]
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a> ' for anchor, name, _ in parts)
    body = "\n".join(f'<h2 id="{anchor}">{escape(name)}</h2>\n{inner}' for anchor, name, inner in parts)
    said = "".join(f"<p>{escape(text)}</p>" for text in [*answer(found), *setting(found)])
    words = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in WORDS.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Does T' beat T?</title><style>{STYLE}</style></head>
<body><h1>Does T' beat T?</h1>
<section class="answer" aria-label="Answer">{said}</section>
<nav aria-label="Contents">{links}<a href="#words">What the words mean</a></nav>
{body}
<h2 id="words">What the words mean</h2><dl>{words}</dl>
<footer>{_list(provenance(found, source))}<p>No picture of a patient is on this page. Nothing here is a medical device.</p>
</footer>
</body></html>
"""


def markdown(found: Findings, source: str) -> str:
    """Answer, tables and what is missing, for docs/benchmark.md."""
    parts = ["### Answer\n", *_bullets([*answer(found), *setting(found)])]
    if found.headline:
        parts += ["", tables.table_2(found).markdown(), "", "### In words\n"]
        parts += [f"- **{name}.** {text}" for name, text in tables.sentences(found)]
        parts += ["", tables.other_metrics(found).markdown()]
    for table in _more(found):
        parts += ["", table.markdown()]
    gone = [*missing(found), *found.problems]
    parts += ["", "### Not there\n", *_bullets(gone or ["nothing"]), "", "### Made with\n"]
    return "\n".join([*parts, *_bullets(provenance(found, source))])


def setting(found: Findings) -> list[str]:
    """On what it was measured, in one sentence."""
    rows = [*found.headline, *found.few]
    if not rows:
        return []
    on: dict[str, list[str]] = {}
    for c in rows:
        line = next(iter(c.cell.runs.values()))
        text = (
            f"{_counted(line, 'test')} (classes {', '.join(line['classes'])}), images of "
            f"{line['settings'].get('image_size')} px"
        )
        on.setdefault(text, []).append(title(c.cell.classifier))
    where = (
        text + (f" ({', '.join(dict.fromkeys(names))})" if len(on) > 1 else "") for text, names in on.items()
    )
    return [
        f"Measured on {'; '.join(where)}; the same real knees and as many optimiser steps in both "
        "arms; the checkpoint of each was chosen by validation patients.",
        *_unsaid(found),
    ]


def _unsaid(found: Findings) -> list[str]:
    """What the arms' names leave out."""
    most = {key: value for key, value in usual(found.cells).items() if key != "data" and value != ABSENT}
    texts = [
        f"{key.replace('_', ' ')} {OWN[key] if value is None else short(value)}"
        for key, value in most.items()
    ]
    return [f"Where an arm's name says nothing else: {', '.join(texts)}."] if texts else []


def provenance(found: Findings, source: str) -> list[str]:
    """What the figures were made from."""
    lines = list({line["id"]: line for line in found.lines}.values())  # one that two studies share is one run
    if not lines:
        return [f"no runs in {source}"]
    codes = sorted({line["code"] for line in lines})
    weights = sorted({f"{w['name']} {w['sha256'][:12]}" for line in lines if (w := line.get("weights"))})
    return [
        f"{len(lines)} runs of {source}, {min(line['date'] for line in lines)} to "
        f"{max(line['date'] for line in lines)}, {sum(line['seconds'] for line in lines) / 3600:.1f} hours",
        f"weights: {', '.join(weights) or 'none'}",
        f"code: {', '.join(codes)} (+: with changes that were not committed)",
    ]


def _sections(found: Findings) -> list[tuple[str, str, str]]:
    """(anchor, heading, inside); an empty inside is left out."""
    first = ""
    if found.headline:
        words = "".join(f"<li><b>{escape(n)}.</b> {escape(text)}</li>" for n, text in tables.sentences(found))
        first = figures.forest_of_classifiers(found) + tables.table_2(found).html() + f"<ul>{words}</ul>"
        first += tables.other_metrics(found).html()
    arms = [figures.forest_of_arms(found, name) for name in tables.with_all_arms(found)]
    arms += [table.html() for table in tables.all_arms(found)]
    controls = tables.control_table(found).html() if found.controls else ""
    lengths = tables.length_table(found)
    scarce = figures.scarcity(found) + tables.scarcity_table(found).html() if found.scarcity else ""
    sizes = figures.sampling(found) + tables.sampling_table(found).html() if found.of("sampling") else ""
    gone = [*missing(found), *found.problems]
    return [
        ("classifiers", "Every classifier", first),
        ("controls", "Is it the exchange?", controls),
        ("arms", "All arms", "".join(arms)),
        ("length", "Length of training", figures.length(found) + lengths.html() if lengths.rows else ""),
        ("scarcity", "Few labels", scarce),
        ("sampling", "How many exchanged knees", sizes),
        ("missing", "Not there", _list(gone)),
    ]


def _more(found: Findings) -> list[Table]:
    found_tables = [tables.control_table(found)] if found.controls else []
    found_tables += tables.all_arms(found)
    lengths = tables.length_table(found)
    found_tables += [lengths] if lengths.rows else []
    found_tables += [tables.scarcity_table(found)] if found.scarcity else []
    return found_tables + ([tables.sampling_table(found)] if found.of("sampling") else [])


def _counted(line: dict[str, object], part: str) -> str:
    counts = line.get("counts")
    if not isinstance(counts, dict) or part not in counts:
        return "knees"
    return f"{counts[part]['images']} knees of {counts[part]['patients']} patients"


def _bullets(texts: Sequence[str]) -> list[str]:
    return [f"- {text}" for text in texts]


def _list(texts: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>" if texts else ""
