"""The command line ``kecae-aug reader-study``: build a study, serve it to readers, plan its size, score the answers.

    kecae-aug reader-study build --data DIR --weights knee-kl02 -n 100 --out study
    kecae-aug reader-study serve study
    kecae-aug reader-study score study-answers/*/answers.json --key study-key.json --out results

docs/reader-study.md tells how to run one in an afternoon.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from kecae_aug.device import DEVICES, PRECISIONS
from kecae_aug.errors import reporting

HERE = "kecae_training.reader_study"
OTHERS = {"score": "Table III from the readers' answers", "plan": "how wide intervals of a study will be"}
PROG = "kecae-aug reader-study"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with a message and status 1 on errors of the user's input."""
    args = list(sys.argv[1:] if argv is None else argv)
    command = args[0] if args else ""
    interrupted = "interrupted" + ("; nothing was written" if command == "build" else "")
    with reporting(f"{PROG} {command}", interrupted):
        try:
            if command in OTHERS:
                importlib.import_module(f"{HERE}.{command}").main(args[1:])
                return
            options = _parser().parse_args(args)
            options.run(options)
        except ModuleNotFoundError as error:
            if not error.name or error.name.startswith("kecae"):
                raise
            raise ImportError(
                f"{error.name} is not installed; pip install 'kecae-aug[reader-study]'"
            ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="write a study for readers, and apart from it its key")
    build.set_defaults(run=_build)
    _add_build(build)
    serve = commands.add_parser("serve", help="serve a study on this computer, and keep the answers safe")
    serve.set_defaults(run=_serve)
    serve.add_argument("folder", type=Path, help="of the study")
    serve.add_argument(
        "--answers", type=Path, default=None, help="folder of the answers (default: <folder>-answers)"
    )
    serve.add_argument(
        "--port", type=int, default=8765, help="of 127.0.0.1; 0 takes a free one (default: %(default)s)"
    )
    for name, text in OTHERS.items():
        commands.add_parser(name, help=text, add_help=False)  # they have their own --help
    return parser


def _add_build(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, required=True, help="radiographs: DIR/split/grade/name.png, or a table.csv")
    add(
        "--split",
        default="val",
        help="subfolder; '' where grades are directly below --data (default: %(default)s)",
    )
    add(
        "--weights",
        nargs="+",
        required=True,
        help="bundled names, folders or Hub ids; more than one are arms",
    )
    add(
        "--detail",
        nargs="+",
        default=["decoder"],
        help="kinds of X': decoder, host; both are arms (default: decoder)",
    )
    add("-n", "--pairs", type=int, default=100, help="pairs in all (default: %(default)s)")
    add("--real", type=int, default=None, help="real knees as control (default: a fifth of the pairs)")
    add(
        "--repeat",
        type=int,
        default=None,
        help="items of phase 1 shown twice (default: a tenth of the pairs)",
    )
    add(
        "--strength", type=float, default=1.0, help="of the exchange, in whole percent (default: %(default)s)"
    )
    add("--image-size", type=int, default=512, help="side of the pictures in pixels (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    add(
        "--title",
        default="Reader study",
        help="on the page; it must not tell what is shown (default: %(default)s)",
    )
    add(
        "--allow-seen",
        action="store_true",
        help="take patients whom the weights saw in training; the key says so",
    )
    add("--device", choices=DEVICES, default="auto", help="where the weights run (default: %(default)s)")
    add("--precision", choices=PRECISIONS, default="32-true", help="of the weights (default: %(default)s)")
    add("--out", type=Path, required=True, help="folder for the readers; absent or empty")
    add("--key", type=Path, default=None, help="file of the key, outside --out (default: <out>-key.json)")


def _build(options: argparse.Namespace) -> None:
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


def _serve(options: argparse.Namespace) -> None:
    from kecae_training.reader_study.serve import serve

    answers = options.answers or options.folder.with_name(f"{options.folder.name}-answers")
    serve(options.folder, answers, options.port)


if __name__ == "__main__":
    main()
