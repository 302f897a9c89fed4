"""What the runs of T against T' say: tables, figures and one page. Nothing is trained.

    python -m kecae_bench.report --runs mine/runs.jsonl     # yours: mine/report/
    python -m kecae_bench.report                            # the project's own, and the generated blocks of README and docs

In --out (default: ``report`` beside the runs): ``report.md`` (sentences, the table), ``differences.csv`` (every arm
beside T, every T' beside its controls; all metrics with intervals), ``arms.csv`` (every arm alone), and the figures.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from kecae_aug.errors import reporting
from kecae_bench.record import PROJECT, RESULTS
from kecae_bench.report import blocks, figures, tables
from kecae_bench.report.cells import Cell, Study
from kecae_bench.tvt.store import Store

RUNS = RESULTS / "t_vs_tprime.jsonl"
TITLE = "# Does T' beat T?"


def report(runs: Path, out: Path) -> list[str]:
    """Write tables, figures and page; comparisons that could not be made.

    Args:
        runs: JSON lines of ``python -m kecae_bench.tvt``, with their predictions beside them.
        out: folder.

    Raises:
        FileNotFoundError: there is no such file of runs.
        FileExistsError: ``out`` has a report.md that is none of ours.
    """
    if not runs.is_file():
        raise FileNotFoundError(
            f"{runs}: not there; python -m kecae_bench.tvt makes it, --runs names another"
        )
    page = out / "report.md"
    if page.exists() and not page.read_text(errors="replace").startswith(TITLE):
        raise FileExistsError(
            f"{page}: is there and no report; nothing is overwritten, --out names another folder"
        )
    store = Store(runs)
    study = Study(store.finished().values(), store.predictions())
    arms, differences = tables.build(study, _show_progress)
    out.mkdir(parents=True, exist_ok=True)
    tables.write_csv(arms, out / "arms.csv")
    tables.write_csv(differences, out / "differences.csv")
    drawn = figures.draw_all(tables.read_csv(out / "differences.csv"), study.cells, out)
    words = [f"- **{word}**: {text}." for word, text in tables.WORDS.items()]
    parts = [
        TITLE,
        tables.render_results(differences),
        *(f"![{name}]({name})" for name in drawn),
        "\n".join(words),
    ]
    parts += (
        ["Not compared:\n\n" + "\n".join(f"- {text}" for text in study.problems)] if study.problems else []
    )
    parts += ["Full tables: [differences.csv](differences.csv), [arms.csv](arms.csv)."]
    page.write_text("\n\n".join(parts) + "\n")
    return study.problems


def _show_progress(cells: Sequence[Cell]) -> Iterable[Cell]:
    bar: Iterable[Cell] = tqdm(cells, desc="comparing", leave=False)
    return bar


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=RUNS, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="folder; default: report beside the runs")
    args = parser.parse_args(argv)
    out = args.out or args.runs.parent / "report"
    with reporting("report"):
        problems = report(args.runs, out)
    print("\n".join([*problems, (out / "report.md").read_text()]))
    if out == tables.FOLDER:
        shutil.copy(out / "forest.svg", PROJECT / "docs" / "images" / "forest.svg")
        blocks.main()


if __name__ == "__main__":
    main()
