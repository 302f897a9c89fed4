"""Each term of the training's loss switched, one short training a row and seed, measured on patients it has not seen.

    python -m kecae_bench.ablation                                  # phantoms: all rows, seeds 0 1 2
    python -m kecae_bench.ablation --rows base paper --seeds 0 --steps 300
    python -m kecae_bench.ablation --study knee --data DIR --discriminator runs/resnet --oracles runs/vgg runs/densenet
    python -m kecae_bench.ablation table                            # all figures; those of deviations: docs/paper.md
    python -m kecae_bench.ablation --list

Studies and their rows: rows.yaml. One JSON line a run in benchmarks/results/ablation-STUDY.jsonl; what is there is not
run again, and a run that was cut off goes on from its checkpoint. Figures: kecae_training.search.short.figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, get_args

import yaml

from kecae_aug.errors import reporting
from kecae_bench.ablation.table import render_all
from kecae_bench.machine import add_device
from kecae_bench.record import CODE, PROJECT, RESULTS, append_line, find_commit, read_lines
from kecae_training.checkpoint import environment
from kecae_training.config import Precision, parse
from kecae_training.search.short import DivergedError, beside_defaults, run
from kecae_training.search.study import ROBUST, Study, folder_study, phantom_study
from kecae_training.train import model_config

ROWS = Path(__file__).with_name("rows.yaml")
DISCRIMINATOR = re.compile(r"\{discriminator:([^}]+)\}")
STUDIES = list(yaml.safe_load(ROWS.read_text()))
PHANTOM = "phantom"
Overrides = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A configuration: its name, what it changes, and what it comes to beside the dataclasses' defaults."""

    name: str
    overrides: Overrides
    config: Overrides


@dataclass(frozen=True)
class Table:
    """One study of the rows file."""

    kind: str
    config: str
    base: Overrides
    rows: dict[str, Overrides]

    @classmethod
    def read(cls, kind: str, path: Path = ROWS) -> Table:
        """The study ``kind`` of the rows file."""
        values = yaml.safe_load(path.read_text())[kind]
        return cls(kind, values["config"], values["base"], values["rows"])

    def flags(self, row: str, steps: int, discriminator: Callable[[str], Path] = Path) -> list[str]:
        """The command line of a row; ``discriminator`` gives the folder for a network's name."""
        merged = {**self.base, "optim.max_steps": steps, **self.rows[row]}
        return ["--config", self.config, *(f"--{k}={_flag(v, discriminator)}" for k, v in merged.items())]

    def resolve(self, row: str, steps: int) -> Row:
        """What a row comes to; the discriminator by its name, since folders differ between machines."""
        if any(flag.startswith("data.") for flag in self.rows[row]):
            raise SystemExit(f"{ROWS.name}: row {row!r} changes the data, which all rows of a study share")
        try:
            config = parse(self.flags(row, steps))
        except SystemExit:
            raise SystemExit(f"{ROWS.name}: row {row!r} is not accepted, see above") from None
        except ValueError as error:
            raise SystemExit(f"{ROWS.name}: row {row!r} is not accepted: {error}") from None
        return Row(row, self.rows[row], beside_defaults(config))


def _flag(value: Any, discriminator: Callable[[str], Path]) -> str:
    if isinstance(value, list):
        return json.dumps([_flag(v, discriminator) for v in value])
    if isinstance(value, str):
        return DISCRIMINATOR.sub(lambda found: str(discriminator(found[1])), value)
    return json.dumps(value)


def key(line: dict[str, Any]) -> str:
    """What makes two runs the same one: configuration, its base, seed, data (steps are in the configuration)."""
    return json.dumps([line[k] for k in ("config", "base", "seed", "data")], sort_keys=True)


def train_row(table: Table, row: Row, seed: int, study: Study, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one run, or why it has none."""
    line = {"config": row.config, "base": args.base.config, "seed": seed, "data": study.name}
    digest = hashlib.sha256(key(line).encode()).hexdigest()[:10]
    out = args.work / "ablation" / f"{re.sub(r'[^a-zA-Z0-9.]+', '-', row.name)}-seed{seed}-{digest}"
    discriminator = study.discriminator_of or args.discriminators.__getitem__
    config = parse([*table.flags(row.name, args.steps, discriminator), "--out", str(out)])
    config.run = replace(
        config.run,
        seed=seed,
        progress=False,
        samples_every=0,
        checkpoint_every=300,
        accelerator=args.device.type,
    )
    start = time.perf_counter()
    try:
        figures: dict[str, Any] = {k: None if math.isnan(v) else v for k, v in run(config, study).items()}
    except DivergedError as error:
        figures = {"failed": str(error)}
    return {
        "date": date.today().isoformat(),
        "commit": find_commit(*CODE),
        "study": table.kind,
        "row": row.name,
        "overrides": row.overrides,
        "steps": args.steps,
        **line,
        "figures": figures,
        "seconds": round(time.perf_counter() - start, 1),
        "environment": environment(args.device),
    }


def open_study(args: argparse.Namespace, table: Table) -> Study:
    if table.kind == PHANTOM:
        return phantom_study(args.work, args.patients, args.test_patients, device=args.device)
    config = parse([*table.flags("base", args.steps), "--data.root", str(args.data)])
    config.discriminator = list(
        args.discriminators.values()
    )  # of all rows: none of them may have seen a held-out patient
    return folder_study(args.work, config, model_config(config).image_size, args.oracles, device=args.device)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["run", "table"], default="run")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="names of the rows file; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--study", choices=STUDIES, default=PHANTOM, help="of the rows file (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=300, help="of each training (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="rows and what they change")
    add_device(parser)
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="of the trainings; by default the rows file's, bf16-mixed, which a CPU without AVX-512 BF16 or AMX"
        " does nine times slower. Another one begins a study of its own",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="radiographs: DIR/split/grade/name.png, or a table.csv; for studies of knees",
    )
    parser.add_argument(
        "--discriminator",
        type=Path,
        nargs="+",
        default=[],
        help=f"with --data: discriminators; the base has all but *{ROBUST}",
    )
    parser.add_argument("--oracles", type=Path, nargs="+", default=[], help="with --data: held-out oracles")
    parser.add_argument("--patients", type=int, default=800, help="phantoms of the trainings, and of oracles")
    parser.add_argument("--test-patients", type=int, default=150, help="held-out phantoms")
    parser.add_argument(
        "--work", type=Path, default=PROJECT / "runs" / "ablation", help="images, discriminators, runs"
    )
    parser.add_argument("--results", type=Path, help="by default benchmarks/results/ablation-<study>.jsonl")
    args = parser.parse_args(argv)
    if args.what == "table":
        lines = read_lines(args.results or RESULTS / f"ablation-{args.study}.jsonl")
        print(render_all(lines) if lines else f"no results of {args.study} yet")
        return
    if args.device.index is not None:
        parser.error(f"--device {args.device}: accepted is a kind; choose a card with CUDA_VISIBLE_DEVICES")
    table = Table.read(args.study)
    if args.precision:
        table = replace(table, base={**table.base, "run.precision": args.precision})
    names = args.rows or list(table.rows)
    unknown = [name for name in names if name not in table.rows]
    if unknown:
        parser.error(f"--rows {unknown}: accepted are {', '.join(table.rows)}")
    if args.list:
        print("\n".join(f"{name:<22} {table.rows[name]}" for name in table.rows))
        return
    args.discriminators = {path.name: path for path in args.discriminator}
    if args.study != PHANTOM:
        if not (args.data and args.discriminator and args.oracles):
            parser.error(
                "--study knee needs --data, and --discriminator and --oracles made by `kecae-aug discriminator`"
            )
        plain = [
            name for name in args.discriminators if not name.endswith(ROBUST)
        ]  # the others are for rows that name them
        table = replace(
            table, base={"discriminator": [f"{{discriminator:{name}}}" for name in plain], **table.base}
        )
        named = set(DISCRIMINATOR.findall(json.dumps([table.base, *(table.rows[name] for name in names)])))
        if named - set(args.discriminators):
            parser.error(
                f"--discriminator: rows name {sorted(named)}, given are {sorted(args.discriminators)}"
            )
    results = args.results or RESULTS / f"ablation-{args.study}.jsonl"
    rows = [table.resolve(name, args.steps) for name in names]  # all, before the first is trained
    args.base = table.resolve("base", args.steps)
    with reporting("ablation", "interrupted; the same command goes on where it stopped"):
        study = open_study(args, table)
        run_all(table, rows, study, args, results)


def run_all(table: Table, rows: list[Row], study: Study, args: argparse.Namespace, results: Path) -> None:
    """All runs that are not in the results yet; seed by seed, so that each row soon has one."""
    done = {key(line) for line in read_lines(results)}
    wanted = [(row, seed) for seed in args.seeds for row in rows]
    same = {"base": args.base.config, "data": study.name}
    left = [(r, s) for r, s in wanted if key({"config": r.config, "seed": s, **same}) not in done]
    print(f"{len(left)} of {len(wanted)} runs to do; {study.name}", flush=True)
    start = time.perf_counter()
    for n, (row, seed) in enumerate(left, 1):
        line = train_row(table, row, seed, study, args)
        append_line(results, line)
        shown = (
            "psnr",
            "reconstructed",
            "decoder",
            "host",
            "discriminator_gap",
            "host_fraction",
            "key",
            "non_key",
        )
        figures = "  ".join(f"{k} {line['figures'].get(k)}" for k in shown)
        minutes = (time.perf_counter() - start) / n * (len(left) - n) / 60
        print(f"[{n}/{len(left)}] seed {seed}  {row.name}: {figures}  ({line['seconds']} s)", flush=True)
        print(f"    about {minutes:.0f} min left", flush=True)


if __name__ == "__main__":
    main()
