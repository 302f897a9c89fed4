"""The report of T against T': docs/benchmark.md and one HTML page, from the runs that are there.

    python benchmarks/report.py
    python benchmarks/report.py --runs benchmarks/results/t_vs_tprime.jsonl --page report.html --doc none

Table II, every arm, the controls, the label-scarcity curve and Fig. 5, each as far as it has been run; what is missing is
listed. Nothing is trained. The text of --doc stays; only what stands between its markers is written anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from kecae_bench.record import PROJECT
from kecae_bench.report import section
from kecae_bench.report.answer import answer
from kecae_bench.report.data import Cell, read
from kecae_bench.report.findings import find
from kecae_bench.report.page import markdown, page

SECTION = "benchmark"
RESULTS = PROJECT / "benchmarks" / "results"


def report(runs: Path, out: Path, doc: Path | None) -> list[str]:
    """Write the page, and the section of ``doc``; the answer's sentences.

    Args:
        runs: JSON lines of benchmarks/t_vs_tprime.py; ``predictions`` stand beside it.
        out: the HTML page.
        doc: Markdown file with the markers; None for none.

    Raises:
        FileNotFoundError: there is no such file of runs.
        ValueError: ``doc`` lacks the markers, or ``out`` is a file that is not such a page.
    """
    if not runs.is_file():
        raise FileNotFoundError(
            f"{runs}: not there; python benchmarks/t_vs_tprime.py makes it, --runs names another"
        )
    if out.exists() and "<title>Does T' beat T?</title>" not in out.read_text(errors="replace"):
        raise ValueError(f"{out}: is there and no report; nothing is overwritten, --page names another file")
    if doc is not None:
        try:
            section.around(doc, SECTION)  # now, and not after a minute of comparisons
        except ValueError as error:
            raise ValueError(f"{error}; --doc none writes the page only") from None
    source = runs.relative_to(PROJECT).as_posix() if runs.is_relative_to(PROJECT) else runs.name
    found = find(read(runs), runs.parent, _bar)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(found, source))
    if doc is not None:
        section.write(doc, SECTION, markdown(found, source))
    return answer(found)


def _bar(pairs: Sequence[tuple[Cell, Cell]], title: str) -> Iterable[tuple[Cell, Cell]]:
    bar: Iterable[tuple[Cell, Cell]] = tqdm(pairs, desc=title, leave=False)
    return bar


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=RESULTS / "t_vs_tprime.jsonl")
    parser.add_argument("--page", type=Path, default=RESULTS / "t_vs_tprime.html")
    parser.add_argument(
        "--doc", default=str(PROJECT / "docs" / "benchmark.md"), help="Markdown file, or none"
    )
    args = parser.parse_args(argv)
    doc = None if args.doc == "none" else Path(args.doc)
    try:
        print("\n".join(report(args.runs.resolve(), args.page, doc)))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f"{args.page}" + (f", {doc}" if doc else ""))


if __name__ == "__main__":
    main()
