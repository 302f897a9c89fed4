"""Benchmarks: --device and --precision, and that runs stored before there was a choice stay what they are."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_study_training import PROTOCOL, SPEC, Recipe, ground, of, small  # noqa: F401 - fixtures
from test_study_training import Small as Network

from kecae_bench import machine
from kecae_bench.checks import gpu_overlap, throughput
from kecae_bench.tvt import run as study_run
from kecae_bench.tvt.arms import ARMS
from kecae_bench.tvt.batches import Batches
from kecae_bench.tvt.draws import seeded
from kecae_bench.tvt.flags import add_arguments, protocol_of
from kecae_bench.tvt.run import Protocol, id_of, identity
from kecae_bench.tvt.training import Loop, train

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def flags(*given):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([*given])


@pytest.mark.parametrize("name", ["bf16-mixed", "bfloat16"])
def test_precisions_have_the_projects_names_and_lines_the_old_ones(name, capsys):
    """A line that says bfloat16 is a run of --precision bf16-mixed; float16 is refused with its reason."""
    assert protocol_of(flags("--precision", name, "--device", "cpu")).loop.precision == "bfloat16"
    assert flags().precision == "float32"
    with pytest.raises(SystemExit):
        flags("--precision", "16-mixed")
    assert "accepted are 32-true, bf16-mixed" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_refused(capsys):
    """By what there is."""
    assert protocol_of(flags("--device", "cpu")).loop.device == torch.device("cpu")
    with pytest.raises(SystemExit):
        flags("--device", "gpu")
    assert "accepted are auto, cpu, cuda, mps" in capsys.readouterr().err


def test_stored_runs_are_those_of_a_cpu(ground, monkeypatch):  # noqa: F811
    """Nothing of a run's identity has changed on a CPU; on another device it is another run."""
    lines = (BENCHMARKS / "results" / "t_vs_tprime.jsonl").read_text().splitlines()
    stored = {name for line in lines for name in json.loads(line)["settings"]} - {"known_patients"}
    assert set(identity(SPEC, ground, PROTOCOL)["settings"]) == stored
    on_cuda = Protocol(steps=4, loop=Loop(validations=2, progress=False, device=torch.device("cuda", 1)))
    known = identity(SPEC, ground, on_cuda)
    assert known["settings"]["device"] == "cuda"
    assert id_of(known) != id_of(identity(SPEC, ground, PROTOCOL))


def test_all_that_computes_is_moved(of):  # noqa: F811
    """Images, labels and network go to the device; meta, which has no memory, stands for CUDA."""
    meta = torch.device("meta")
    batches = Batches(ARMS["T + further real"], of.select(range(20)), 0, 6, 4)
    here = batches.batch(0)
    assert here.images.device.type == here.labels.device.type == "cpu"
    batches.tools = study_run.Tools(device=meta)
    batches._adds.tools = batches.tools
    there = batches.batch(0)
    assert there.images.device.type == there.labels.device.type == "meta"
    assert (there.images.shape, there.labels.shape) == (here.images.shape, here.labels.shape)
    with pytest.raises(
        RuntimeError, match="meta tensors"
    ):  # a loss has no value there; up to it all was moved
        train(
            Network,
            study_run.training_loss,
            Recipe(),
            batches,
            of,
            Loop(validations=1, progress=False, device=meta),
        )


def test_draws_leave_the_generators_of_gpus_alone(monkeypatch):
    """What is seeded for a step on the CPU may not begin a GPU's dropout anew in every step."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("CUDA was seeded"))
    before = torch.get_rng_state()
    with seeded(1, "a"):
        first = torch.rand(3)
    with seeded(1, "a"):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_benchmark_names_a_device_for_itself():
    """autocast("cpu") made --device useless once."""
    for path in BENCHMARKS.rglob("*.py"):
        text = path.read_text()
        assert 'autocast("cpu"' not in text, path
        assert '.to("cuda' not in text, path


def test_overlap_is_measured(tmp_path):
    """The figure of a loop that hides nothing is near 0; one line with every loop."""
    loader = [(torch.zeros(1), torch.zeros(1))] * 3
    step = (loader, lambda x, y: None)
    found = gpu_overlap.overlap(
        dict.fromkeys(("step", "exchange", "in_turn", "ahead"), step), 2, machine.CPU, 3
    )
    assert set(found) == {"step_ms", "exchange_ms", "in_turn_ms", "ahead_ms", "hidden"}


@pytest.mark.slow
def test_compiled_and_half_variants_are_compared_with_the_baseline(monkeypatch):
    """Every variant has a ratio to the plain network of the same process."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compile(*args, **options, backend="eager"))
    torch.manual_seed(0)
    with torch.no_grad():
        found = throughput.compare(throughput.trained_like("tiny"), 2, 1, compiled=True)
    names = {"", "_compiled", "_bfloat16", "_bfloat16_compiled", "_float16"}
    assert set(found) == {"baseline"} | {f"from_{x}{name}" for x in ("images", "bank") for name in names}
    assert all(each["ratio"] > 0 for each in found.values())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_script_for_a_gpu_runs_on_a_cpu(tmp_path):
    """All its parts, tiny, from the wheel; only the device is another one, and nothing is compiled."""
    out = tmp_path / "out.jsonl"
    env = {**os.environ, "KECAE_GPU_SH_DEVICE": "cpu", "SMALL": "1", "PYTHON": sys.executable}
    env["TORCH_COMPILE_DISABLE"] = "1"
    done = subprocess.run(
        [str(BENCHMARKS / "gpu.sh"), str(out)], env=env, capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert done.returncode == 0, (done.stderr, [line for line in lines if line.get("exit")])
    parts = ["tests", "throughput", "overlap", "training", "training_bf16", "compiled"]
    assert [line["part"] for line in lines if "part" in line] == parts
