"""The command line ``kecae-aug reader-study``: build a study, serve it to readers, plan its size, score the answers.

    kecae-aug reader-study plan -n 100 --readers 3
    kecae-aug reader-study build --data DIR --weights knee-kl02 -n 100 --out study
    kecae-aug reader-study serve study
    kecae-aug reader-study score study-answers --key study-key.json --out results

docs/reader-study.md has them in order.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kecae_aug.device import DEVICES, PRECISIONS
from kecae_aug.errors import reporting

PROG = "kecae-aug reader-study"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with a message and status 1 on errors of the user's input."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    interrupted = "interrupted" + ("; nothing was written" if options.command == "build" else "")
    with reporting(f"{PROG} {options.command}", interrupted):
        try:
            options.run(options)
        except ModuleNotFoundError as error:
            if not error.name or error.name.startswith("kecae"):
                raise
            raise ImportError(f"{error.name} is not installed; pip install 'kecae-aug[train]'") from None


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        """With the default, where there is one to name."""
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for run, add_flags, text in (
        (_build, _add_build, "write a study for readers, and apart from it its key"),
        (_serve, _add_serve, "serve a study on this computer, and keep the answers safe"),
        (_score, _add_score, "Table III from the readers' answers"),
        (_plan, _add_plan, "how wide the intervals of a study will be"),
    ):
        command = commands.add_parser(
            run.__name__.strip("_"),
            help=text,
            description=run.__doc__,
            formatter_class=_Help,
        )
        add_flags(command)
        command.set_defaults(run=run)
    return parser


def _add_build(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, required=True, help="radiographs: DIR/split/grade/name.png, or a table.csv")
    add("--split", default="val", help="subfolder; '' where grades are directly below --data")
    add("--weights", nargs="+", required=True, help="bundled names, folders or Hub ids; several are arms")
    add("--detail", nargs="+", default=["decoder"], help="kinds of X': decoder, host; both are arms")
    add("-n", "--pairs", type=int, default=100, help="pairs in all")
    add("--real", type=int, help="real knees as control; without it a fifth of the pairs")
    add("--repeat", type=int, help="items of phase 1 shown twice; without it a tenth of the pairs")
    add("--strength", type=float, default=1.0, help="of the exchange, in whole percent")
    add("--image-size", type=int, default=512, help="side of the pictures in pixels")
    add("--seed", type=int, default=0, help="of the draw")
    add("--title", default="Reader study", help="on the page; it must not reveal what is shown")
    add(
        "--allow-seen",
        action="store_true",
        help="take patients whom the weights saw in training; the key says so",
    )
    add("--device", choices=DEVICES, default="auto", help="where the weights run")
    add("--precision", choices=PRECISIONS, default="32-true", help="of the weights")
    add("--out", type=Path, required=True, help="folder for the readers; absent or empty")
    add("--key", type=Path, help="file of the key, outside --out; without it <out>-key.json")


def _build(options: argparse.Namespace) -> None:
    """Write a study for readers, and apart from it its key."""
    from kecae_training.reader_study.build import BuildConfig, build

    values = {k: v for k, v in vars(options).items() if k not in ("command", "run", "out", "key", "pairs")}
    values["split"] = options.split or None
    built = build(BuildConfig(n=options.pairs, **values), options.out, options.key)
    study = built.study
    print(
        f"{built.folder}: for the readers; {len(study['phase1'])} images in phase 1, "
        f"{len(study['phase2']['items'])} pairs in phase 2. Open index.html, or: {PROG} serve {built.folder}"
    )
    print(f"{built.key_file}: the key. Keep it from the readers until the last has finished.")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="of the study")
    parser.add_argument("--answers", type=Path, help="folder of the answers; without it <folder>-answers")
    parser.add_argument("--port", type=int, default=8765, help="of 127.0.0.1; 0 takes a free one")


def _serve(options: argparse.Namespace) -> None:
    """Serve a study on this computer, and keep each answer on disk before it is confirmed."""
    from kecae_training.reader_study.serve import serve

    answers = options.answers or options.folder.with_name(f"{options.folder.name}-answers")
    serve(options.folder, answers, options.port)


def _add_score(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "answers", type=Path, nargs="+", help="files that readers exported, or folders of them, or of `serve`"
    )
    add("--key", type=Path, required=True, help="that `build` wrote beside the study")
    add(
        "--out",
        type=Path,
        help="folder for table3.csv, scores.json, scores.html, answers.csv; absent or empty",
    )
    add("--partial", action="store_true", help="take readers who have not finished; the tables then say so")


def _score(options: argparse.Namespace) -> None:
    """Print Table III of the paper (Section V-E) from the readers' answers and the key.

    Answers that are incomplete, edited, of another study or there twice are refused with the reason.
    """
    from kecae_training.reader_study.formats import read_key
    from kecae_training.reader_study.ratings import load_answers
    from kecae_training.reader_study.score import check_free, score, write_scores
    from kecae_training.reader_study.tables import text

    if options.out is not None:
        check_free(options.out)
    key = read_key(options.key)
    answers, left_out = load_answers(options.answers, key, partial=options.partial)
    scores = score(key, answers, left_out)
    print(text(scores))
    if options.out is not None:
        write_scores(scores, key, answers, options.out)
        print(f"\n{options.out}: scores.html, scores.json, table3.csv, table3.txt, answers.csv")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-n", "--pairs", type=int, nargs="+", default=[100], help="exchanged knees")
    add("--readers", type=int, nargs="+", default=[3], help="how many")
    add("--accuracy", type=float, default=0.86, help="expected of readers on X'; the paper's")
    add("--kappa", type=float, default=0.78, help="expected between two readers; the paper's")
    add("--reader-sd", type=float, default=0.03, help="of accuracy between readers, assumed")
    add("--real", type=int, help="real knees as control; without it a fifth of the pairs")
    add("--real-accuracy", type=float, default=0.9, help="expected of real knees, assumed")
    add("--studies", type=int, default=1000, help="simulated a row")
    add("--seed", type=int, default=0, help="of all draws")


def _plan(options: argparse.Namespace) -> None:
    """Print half-widths of the 95 % intervals that a study would give, in points of accuracy (kappa: as it is).

    In brackets: how many of the simulated studies' intervals held the truth.
    """
    from kecae_training.reader_study.plan import Readers, table

    assumed = Readers(options.accuracy, options.kappa, options.reader_sd, options.real_accuracy)
    found = table(assumed, options.pairs, options.readers, options.real, options.studies, options.seed)
    print(
        f"Assumed: accuracy {assumed.accuracy:.0%} (real knees {assumed.real_accuracy:.0%}), kappa {assumed.kappa}, readers "
        f"differ by {100 * assumed.reader_sd:g} points (SD). {options.studies} simulated studies a row, seed {options.seed}."
    )
    print(found)


if __name__ == "__main__":
    main()
