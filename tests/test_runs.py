"""benchmarks/runs.sh and benchmarks/results/t_vs_tprime.jsonl hold the same runs, and the tables are theirs."""

import json
import subprocess
from types import SimpleNamespace

import pytest
import torch

from kecae_bench.record import PROJECT, RESULTS
from kecae_bench.report.cells import Study
from kecae_bench.report.tables import FOLDER, build, read_csv
from kecae_bench.stats import measure
from kecae_bench.tvt.__main__ import parse, plan_runs
from kecae_bench.tvt.flags import protocol_of
from kecae_bench.tvt.run import id_of, identity
from kecae_bench.tvt.store import Store

STORE = Store(RESULTS / "t_vs_tprime.jsonl")
# notes its arguments instead of running; makes the folders that the script waits for
STUB = """#!/bin/sh
for word in "$@"; do printf '%s\\0' "$word"; done >> "$COMMANDS"; printf '\\n' >> "$COMMANDS"
while [ $# -gt 0 ]; do [ "$1" = --out ] && mkdir -p "$2/weights"; shift; done
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> list[list[str]]:
    """The arguments of every run of kecae_bench.tvt in runs.sh."""
    folder = tmp_path_factory.mktemp("stubs")
    for name in ("python", "kecae-aug"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    held = folder / "commands"
    env = {"PATH": f"{folder}:/usr/bin:/bin", "COMMANDS": str(held)}
    subprocess.run(["bash", PROJECT / "benchmarks" / "runs.sh", "DIR", folder / "out"], env=env, check=True)
    found = [text.split("\0")[:-1] for text in held.read_text().split("\n") if text]
    return [
        words[2:] for words in found if words[:2] == ["-m", "kecae_bench.tvt"] and "--export" not in words
    ]


def name_run(known: dict) -> str:
    """What a run is known by, but for the images and for weights and oracles themselves: those are not here."""
    settings = {k: v for k, v in known["settings"].items() if k != "data"}
    options = {k: v for k, v in known["options"].items() if k != "oracles"}
    weights = known["weights"] and known["weights"]["name"]
    parts = [known[k] for k in ("classifier", "arm", "seed", "fold", "fraction", "n_pairs")]
    return json.dumps([*parts, weights, options, settings], sort_keys=True)


def plan(words: list[str]) -> set[str]:
    args = parse(words)
    ground = SimpleNamespace(
        knees=SimpleNamespace(images=torch.zeros(0, 1, 1, args.image_size)),
        oracles={},
        fingerprints={},
        new=args.new_patients,
        model=SimpleNamespace(metadata={"weights": {"sha256": "of the weights"}}),
        name=args.weights[0],
    )
    return {name_run(identity(spec, ground, protocol_of(args))) for spec in plan_runs(args)}


def test_every_run_is_in_the_script_and_every_run_of_the_script_is_there(commands):
    wanted = set.union(*(plan(words) for words in commands))
    there = {name_run(line) for line in STORE.lines()}
    assert wanted - there == set()
    assert there - wanted == set()


def test_ids_are_those_of_the_settings():
    """So that a run with the same settings is found in the file, and not made again."""
    names = ("classifier", "arm", "seed", "fold", "fraction", "n_pairs", "options", "settings", "weights")
    for line in STORE.lines():
        assert line["id"] == id_of({name: line[name] for name in names}), line["id"]


def test_predictions_are_packed_and_give_the_figures_of_the_lines():
    lines = STORE.finished()
    assert len(lines) == len(STORE.lines())
    assert not STORE.unpacked.exists()
    for part in ("test", "validation"):
        said = STORE.predictions(part)
        assert set(said) == set(lines)
        for ident in list(lines)[::40]:
            assert measure(said[ident].scores.astype(float), said[ident].labels) == lines[ident][part]


def test_tables_are_of_the_runs():
    """Of one classifier all that the report says: its arms and differences, without the mean over classifiers."""
    lines = [line for line in STORE.lines() if line["classifier"] == "compact_densenet"]
    made = build(Study(lines, STORE.predictions()))
    for name, rows in zip(("arms", "differences"), made, strict=True):
        there = [row for row in read_csv(FOLDER / f"{name}.csv") if row["classifier"] == "compact DenseNet"]
        assert [{k: str(v) for k, v in row.items()} for row in rows] == [
            {k: str(v) for k, v in row.items()} for row in there
        ]
