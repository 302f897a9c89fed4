"""The loop of Algorithm 1 as a user runs it: real processes, killed, resumed, doubled."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file

from kecae_aug.data import Preprocessing
from kecae_aug.engine.model import KECAE
from kecae_aug.weights.io import load_weights
from kecae_training.checkpoint import RunFolder
from kecae_training.config import OptimConfig, parse
from kecae_training.discriminator import Discriminator, DiscriminatorConfig, predict, save_discriminator
from kecae_training.images import to_bytes
from kecae_training.losses import LossConfig
from kecae_training.pairs import PairSampler
from kecae_training.step import KeyExchange, draw_discriminator, learning_rate
from kecae_training.train import main, open_data, train
from kecae_training.warmup import teach, warm_up_keys

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(data: Path, out: Path, *flags: str) -> list[str]:
    return [
        *(sys.executable, "-m", "kecae_training.train", "--config", "tiny"),
        *("--data.root", str(data), "--out", str(out), "--run.accelerator", "cpu", "--run.progress", "false"),
        *("--optim.batch_size", "4", "--optim.ema", "0.9", *flags),
    ]


def run(args: list[str]) -> str:
    done = subprocess.run(args, env=ENV, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def steps(out: Path) -> list[int]:
    log = out / "log.jsonl"
    return [json.loads(line)["step"] for line in log.read_text().splitlines()] if log.exists() else []


class Tensors:
    """A dataset in memory: 64 px, the second grade with a dark bar."""

    def __init__(self, n: int = 20, scale: float = 1.0) -> None:
        g = torch.Generator().manual_seed(0)
        self.targets = [0] * n + [1] * n
        self.images = (
            torch.nn.functional.interpolate(torch.rand(2 * n, 1, 2, 2, generator=g), 64, mode="bilinear")
            - 0.5
        )
        self.images[n:, :, 28:36] = -1
        self.images *= scale

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int):
        return self.images[i], self.targets[i]


def config(out: Path, *flags: str):
    return parse(
        ["--config", "tiny", "--out", str(out), "--run.accelerator", "cpu", "--run.progress", "false", *flags]
    )


@pytest.mark.slow
def test_killed_run_ends_bit_identical(blob_data, tmp_path):
    """SIGKILL in the key's warm-up and again in mid-epoch: the weights are those of a run that was never killed.

    The steps of the warm-up that were saved are not done again.
    """
    flags = ("--optim.key_warmup", "60", "--optim.max_steps", "60", "--run.checkpoint_every", "8")
    flags += ("--run.log_every", "1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(command(blob_data, whole, *flags))
    assert not (whole / "warmup.pt").exists()  # the first checkpoint took its place

    def kill_when(reached: Callable[[], bool]) -> None:
        process = subprocess.Popen(command(blob_data, killed, *flags), env=ENV, stderr=subprocess.DEVNULL)
        deadline = time.time() + 120
        while not reached() and time.time() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "weights").exists()

    saved = killed / "warmup.pt"
    kill_when(saved.exists)
    assert 8 <= torch.load(saved, weights_only=True)["step"] < 60, "the kill came too late to test anything"
    kill_when(lambda: len(steps(killed)) >= 20)
    assert 20 <= len(steps(killed)) < 60, "the kill came too late to test anything"
    run(command(blob_data, killed, *flags))

    first, second = (load_file(p / "weights" / "model.safetensors") for p in (whole, killed))
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert steps(killed) == steps(whole) == list(range(1, 61))  # lines after the checkpoint are not doubled


@pytest.mark.slow
def test_two_processes_train(blob_data, tmp_path):
    """DDP on two CPU processes: one log, one export, and both halves of the batch are learned from."""
    flags = ("--run.devices", "2", "--run.strategy", "ddp", "--optim.max_steps", "12", "--run.log_every", "1")
    run(command(blob_data, tmp_path / "ddp", *flags))
    assert steps(tmp_path / "ddp") == list(range(1, 13))
    model = load_weights(str(tmp_path / "ddp" / "weights"))
    assert torch.isfinite(model(torch.zeros(1, 1, 64, 64))).all()


class StoppedError(Exception):
    """In place of a kill."""


def test_warm_up_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """The steps before the last saved state are not done again, and the weights are the same to the bit."""
    flags = ("--optim.key_warmup", "7", "--optim.max_steps", "2", "--run.checkpoint_every", "3")
    whole = train(config(tmp_path / "whole", *flags), Tensors())
    save = RunFolder.save_warmup

    def save_and_stop(self, state):
        save(self, state)
        if state["step"] == 6:
            raise StoppedError

    monkeypatch.setattr(RunFolder, "save_warmup", save_and_stop)
    stopped = config(tmp_path / "stopped", *flags)
    with pytest.raises(StoppedError):
        train(stopped, Tensors())
    done = []
    monkeypatch.setattr(RunFolder, "save_warmup", lambda self, state: done.append(state["step"]))
    resumed = train(stopped, Tensors())
    assert done == [7]  # 3 and 6 are not passed again
    first, second = (load_file(p / "model.safetensors") for p in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)

    shutil.rmtree(tmp_path / "stopped" / "weights")
    (tmp_path / "stopped" / "checkpoint.pt").unlink()
    (tmp_path / "stopped" / "warmup.pt").write_text("torn")
    with pytest.raises(ValueError, match=r"warmup.pt: damaged, or not a checkpoint.*begins anew"):
        train(stopped, Tensors())


def test_training_learns_to_reconstruct_and_to_move_only_the_key(tmp_path):
    """On a set whose grade is a bar: the error falls, and an exchange moves the bar, not the rest."""
    data = Tensors()
    flags = ("--optim.max_steps", "160", "--optim.batch_size", "8", "--loss.terms.grade_in_key", "0.1")
    model = load_weights(str(train(config(tmp_path / "run", *flags), data)))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["mse"] < log[0]["mse"] / 3
    with torch.no_grad():
        hosts, donors = data.images[:8], data.images[20:28]
        change = (model.exchange(hosts, donors) - model(hosts)).abs()
    assert change[:, :, 28:36].mean() > 2 * change[:, :, list(range(20)) + list(range(44, 64))].mean()


def test_warm_keys_know_the_grade_and_nothing_else_has_moved(tmp_path):
    """Before the first pair the key's branch alone has learned: the head reads the grade, decoder and hN are as drawn."""
    data = Tensors()
    torch.manual_seed(0)
    made = config(tmp_path, "--optim.key_warmup", "40", "--run.seed", "1")
    modules = KeyExchange(KECAE.from_preset("tiny", key_size=8), made.loss)
    before = {k: v.clone() for k, v in modules.model.state_dict().items()}
    images, labels = to_bytes(data.images), torch.tensor(data.targets)
    fabric = Fabric(accelerator="cpu", devices=1)
    warm_up_keys(made, modules, images, labels, fabric)
    moved = {k.split(".")[0] for k, v in modules.model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"key_encoder", "spread"}
    with torch.no_grad():
        logits = modules.eval().key_head(modules.model.encode(data.images).key.flatten(1))
    assert (logits.argmax(1) == labels).float().mean() > 0.9


def test_warm_keys_learn_what_their_teacher_says(tmp_path):
    """A teacher who is sure of the other grade outvotes the labels: what he says is what the key learns."""
    data = Tensors()
    torch.manual_seed(0)
    made = config(tmp_path, "--optim.key_warmup", "60")
    modules = KeyExchange(KECAE.from_preset("tiny", key_size=8), made.loss)
    images, labels = to_bytes(data.images), torch.tensor(data.targets)
    posterior = torch.eye(2)[1 - labels]
    fabric = Fabric(accelerator="cpu", devices=1)
    warm_up_keys(made, modules, images, labels, fabric, posterior=posterior)
    with torch.no_grad():
        logits = modules.eval().key_head(modules.model.encode(data.images).key.flatten(1))
    assert (logits.argmax(1) == 1 - labels).float().mean() > 0.8


def test_a_teacher_reads_images_of_his_own_size_and_of_these_patients_alone(blob_data, tmp_path):
    """A network of 96 px teaches a key of 64 px from the same files; one who knows other patients is refused."""
    made = config(
        tmp_path / "run", "--data.root", str(blob_data), "--optim.key_warmup", "2", "--optim.max_steps", "1"
    )
    data = open_data(made, 64)
    teacher = Discriminator(DiscriminatorConfig(network="vgg", image_size=96, grades=("0", "2"))).freeze()
    seen = {"preprocessing": data.preprocessing.to_dict() | {"image_size": 96}}
    for name, patients in {"own": data.patients, "other": [*data.patients, "stranger"]}.items():
        save_discriminator(teacher, tmp_path / name, patients=patients, data=seen)
    made.key_teacher = tmp_path / "own"
    posterior = teach(made, data, ("0", "2"), torch.device("cpu"))
    large = open_data(made, 96)
    want = predict(teacher, torch.stack([large[i][0] for i in range(len(large))]))
    torch.testing.assert_close(posterior, want, atol=0.01, rtol=0)  # the images in between are of eight bits
    assert train(made).is_dir()
    made.key_teacher = tmp_path / "other"
    with pytest.raises(ValueError, match="has seen 1 patients that are not of split 'train', fold 0 of 1"):
        teach(made, data, ("0", "2"), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"key_teacher=.* would have no effect.*--optim.key_warmup"):
        config(tmp_path, "--key_teacher", str(tmp_path / "own"))


def test_warm_keys_need_a_head_to_learn_with(tmp_path):
    """The option without its term is refused before anything is read."""
    with pytest.raises(ValueError, match=r"key_warmup=5 needs the head of loss.terms.grade_in_key"):
        config(tmp_path, "--optim.key_warmup", "5", "--loss.terms.grade_in_key", "0")


def test_a_frozen_key_is_the_warm_one_to_the_end(tmp_path):
    """Neither gradients nor BatchNorm move the key's branch once pairs begin; all else learns."""
    flags = ("--optim.key_warmup", "4", "--optim.freeze_key", "true", "--model.key_size", "5")
    models = [
        load_weights(str(train(config(tmp_path / str(n), "--optim.max_steps", str(n), *flags), Tensors())))
        for n in (1, 5)
    ]
    first, last = (m.state_dict() for m in models)
    fixed = {k for k in first if torch.equal(first[k], last[k])}
    assert {k for k in first if k.startswith("key_encoder")} | {"spread.1.weight"} <= fixed
    assert {"spread.2.weight", "decoder.0.weight", "non_key_encoder.0.weight"}.isdisjoint(fixed)
    with pytest.raises(ValueError, match="freeze_key would keep a key that has learned nothing"):
        config(tmp_path, "--optim.freeze_key", "true")


def test_remembered_keys_are_those_that_would_be_warmed_up_again(tmp_path):
    """Many short trainings share a warm-up: the weights are the same to the bit, and another seed warms up its own."""
    flags = ("--optim.key_warmup", "3", "--optim.max_steps", "2", "--model.key_size", "5")
    remembered = {}
    states = []
    for n, (keys, seed) in enumerate([(None, 1), (remembered, 1), (remembered, 1), (remembered, 2)]):
        made = config(tmp_path / str(n), *flags, "--run.seed", str(seed))
        states.append(load_weights(str(train(made, Tensors(), keys))).state_dict())
    assert len(remembered) == 2
    for state in states[1:3]:
        assert all(torch.equal(state[k], v) for k, v in states[0].items())


@pytest.mark.slow  # with TensorBoard
def test_run_leaves_what_is_needed_to_repeat_it(blob_data, tmp_path):
    """Resolved config, file hashes, environment and fingerprint stand beside and inside the weights."""
    out = tmp_path / "run"
    flags = ("--optim.max_steps", "4", "--run.samples_every", "2", "--run.tensorboard", "true")
    main(command(blob_data, out, *flags)[3:])
    record = json.loads((out / "config.json").read_text())
    assert record["config"]["optim"]["batch_size"] == 4
    assert record["environment"]["torch"] == torch.__version__
    data = json.loads((out / "data.json").read_text())
    assert len(data["files"]) == 48
    assert data["per_class"] == {"0": 24, "2": 24}
    assert data["patients"] == sorted({path.stem[:-1] for path in (blob_data / "train").rglob("*.png")})
    assert (out / "samples" / "step_000004.png").exists()
    assert list((out / "tensorboard").iterdir())
    metadata = load_weights(str(out / "weights")).metadata
    assert metadata["data"]["fingerprint"] == data["fingerprint"]
    assert metadata["preprocessing"]["image_size"] == 64


def test_resume_refuses_another_configuration(tmp_path):
    """A run is never continued with other losses or other data by accident; the error says what differs."""
    train(config(tmp_path / "run", "--optim.max_steps", "2"), Tensors())
    with pytest.raises(ValueError, match=r"loss.terms.same_grade was 1.0, is 0.5"):
        train(config(tmp_path / "run", "--optim.max_steps", "4", "--loss.terms.same_grade", "0.5"), Tensors())
    with pytest.raises(ValueError, match="data: other images"):
        train(config(tmp_path / "run", "--optim.max_steps", "4"), Tensors(scale=0.5))
    train(config(tmp_path / "run", "--optim.max_steps", "4"), Tensors())  # longer is the same run
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    with pytest.raises(ValueError, match="not empty and not a run"):
        train(config(tmp_path / "mine", "--optim.max_steps", "2"), Tensors())


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of two steps with averaged weights, to be copied."""
    out = tmp_path_factory.mktemp("begun") / "run"
    train(config(out, "--optim.max_steps", "2", "--optim.ema", "0.9"), Tensors())
    return out


def go_on(begun, tmp_path, change, *flags):
    """The same run with another checkpoint, four steps long."""
    shutil.copytree(begun, tmp_path / "run")
    change(tmp_path / "run" / "checkpoint.pt")
    flags = flags or ("--optim.ema", "0.9")
    return train(config(tmp_path / "run", "--optim.max_steps", "4", *flags), Tensors())


def rewritten(**changes):
    def change(path):
        state = torch.load(path, weights_only=True)
        for key, value in changes.items():
            state[key] = value(state.get(key))
        torch.save({k: v for k, v in state.items() if v is not None}, path)

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (rewritten(averaged=lambda _: None), "it has no averaged weights, and optim.ema asks for them"),
        (rewritten(optimizer=lambda _: None), "it has no optimizer"),
        (rewritten(rng=lambda _: None), "it has no rng"),
        (rewritten(modules=lambda m: dict(list(m.items())[1:])), "modules: model.* is missing"),
        (rewritten(modules=lambda m: {**m, "extra": m["model.decoder.0.weight"]}), "extra is not of this"),
        (
            rewritten(averaged=lambda a: {k: v[:1] if v.ndim == 4 else v for k, v in a.items()}),
            r"averaged: module.*\[1, .*here",
        ),
        (
            rewritten(optimizer=lambda o: {"state": {}, "param_groups": [{"params": [0]}]}),
            r"of \[1\] tensors",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "damaged, or not a checkpoint"),
        (lambda path: path.write_bytes(b""), "damaged, or not a checkpoint"),
        (lambda path: path.write_text("not a checkpoint"), "damaged, or not a checkpoint"),
        (lambda path: torch.save([1, 2], path), "it holds no modules"),
    ],
)
def test_only_its_own_checkpoint_is_gone_on_with(begun, tmp_path, change, told):
    """Of another network, torn, or without its averaged weights: refused by name, kept, and the way out is said."""
    with pytest.raises(ValueError, match=f"checkpoint.pt: .*{told}") as caught:
        go_on(begun, tmp_path, change)
    assert "begins anew" in str(caught.value)
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_checkpoint_of_other_settings_is_refused_though_config_json_agrees(begun, tmp_path):
    """A checkpoint copied into a run of another network, or of none averaged."""
    flags = {"plain": (), "wide": ("--optim.ema", "0.9", "--model.width", "24")}
    for name, more in flags.items():
        out = tmp_path / name
        train(config(out, "--optim.max_steps", "2", *more), Tensors())
        shutil.copy(begun / "checkpoint.pt", out / "checkpoint.pt")
        told = "it has averaged weights, and optim.ema is null" if name == "plain" else "modules: model.*here"
        with pytest.raises(ValueError, match=told):
            train(config(out, "--optim.max_steps", "4", *more), Tensors())


def test_a_checkpoint_that_was_moved_away_begins_anew(begun, tmp_path):
    """The way out that the message names: the log starts at step 1 again."""
    go_on(begun, tmp_path, Path.unlink)
    assert (tmp_path / "run" / "weights" / "model.safetensors").exists()


def test_a_resumed_run_is_that_which_was_not_stopped(begun, tmp_path):
    """Batches of a thread are those of the step, wherever the run starts: bit for bit."""
    resumed = go_on(begun, tmp_path, lambda path: None)
    whole = train(config(tmp_path / "w", "--optim.max_steps", "4", "--optim.ema", "0.9"), Tensors())
    first, second = (load_file(p / "model.safetensors") for p in (resumed, whole))
    assert all(torch.equal(first[k], second[k]) for k in second)


def test_a_discriminator_of_other_images_is_refused_before_they_are_read(blob_data, tmp_path):
    """Larger than the training's, preprocessed in another way, or of other grades; one that fits trains."""
    own = Preprocessing(64)
    for name, size, classes, data in (
        ("large", 128, ("0", "2"), {}),
        ("mirrored", 64, ("0", "2"), {"preprocessing": replace(own, mirror_right=True).to_dict()}),
        ("others", 64, ("0", "3"), {"preprocessing": own.to_dict()}),
        ("fits", 64, ("0", "2", "3"), {"preprocessing": own.to_dict()}),
    ):
        discriminator = Discriminator(
            DiscriminatorConfig(network="vgg", image_size=size, grades=classes)
        ).freeze()
        save_discriminator(discriminator, tmp_path / name, patients=["1"], data=data)

    def run_with(name):
        flags = (
            "--data.root",
            str(blob_data),
            "--discriminator",
            str(tmp_path / name),
            "--loss.terms.sup",
            "0.1",
        )
        return train(config(tmp_path / f"run-{name}", *flags, "--optim.max_steps", "1"))

    for name, told in {
        "large": "trained on images of 128 px, these have 64 px",
        "mirrored": "trained on images with mirror_right=True, these have mirror_right=False",
        "others": r"classes \['2'\] are not among the grades \('0', '3'\)",
    }.items():
        with pytest.raises(ValueError, match=told):
            run_with(name)
        assert not (tmp_path / f"run-{name}").exists()
    run_with("fits")


def test_a_discriminator_without_a_term_is_refused(tmp_path):
    """tiny.yaml has no term that looks through one: an hour later nobody would know that it was not used."""
    with pytest.raises(SystemExit, match=r"would have no effect.*--loss\.terms\.sup"):
        main(["--config", "tiny", "--discriminator", str(tmp_path), "--out", str(tmp_path / "run")])


def test_device_and_precision_as_in_every_command(tmp_path):
    """Short names for the fields; two that contradict each other, or what the machine has not got, are refused."""
    made = config(tmp_path, "--device", "cpu", "--precision=bf16-mixed")
    assert (made.run.accelerator, made.run.precision) == ("cpu", "bf16-mixed")
    with pytest.raises(ValueError, match=r"--device auto and --run\.accelerator cpu"):
        config(tmp_path, "--device", "auto")
    with pytest.raises(ValueError, match=r"--precision 16-mixed and --run\.precision 32-true"):
        config(tmp_path, "--precision", "16-mixed", "--run.precision", "32-true")
    with pytest.raises(ValueError, match="--device tpu: accepted are"):
        config(tmp_path, "--device", "tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="--device cuda: this machine"):
            config(tmp_path, "--device", "cuda")
    (tmp_path / "run.yaml").write_text("device: cpu\n")
    with pytest.raises(ValueError, match="in a file device and precision are run"):
        parse(["--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path)])


@pytest.mark.parametrize("classes", [["0.0", "2.0"], ['["0", "2"]'], ["[0, 2]"]])
def test_classes_have_one_spelling(tmp_path, classes):
    """On the command line as in tables: grade 2.0 is "2"."""
    assert config(tmp_path, "--model.classes", *classes).model.classes == ("0", "2")


def test_another_default_device_changes_nothing(tmp_path):
    """torch.set_default_device in the user's process ("meta" stands for "cuda"): the same weights to the bit."""
    flags = ("--optim.max_steps", "2", "--optim.augment", "0.5", "--optim.key_warmup", "2")
    plain = train(config(tmp_path / "a", *flags), Tensors())
    data = Tensors()
    torch.set_default_device("meta")
    try:
        other = train(config(tmp_path / "b", *flags), data)
    finally:
        torch.set_default_device("cpu")
    first, second = (load_file(p / "model.safetensors") for p in (plain, other))
    assert all(torch.equal(first[k], second[k]) for k in second)


def test_non_finite_gradients_stop_the_run_with_the_reason(tmp_path):
    """Steps whose gradient is not finite are skipped and counted; a run of them ends with the way out."""
    flags = ("--optim.max_steps", "40", "--loss.terms.same_grade", "3e38", "--run.log_every", "1")
    with pytest.raises(ValueError, match="not finite in 20 steps"):
        train(config(tmp_path / "run", *flags), Tensors())
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["skipped"] >= 10


def test_pair_sampler_covers_every_pair_once():
    """An epoch of the whole grid meets every KL-0 x KL-2 pair once; N pairs are a subset that does not drift."""
    targets = [0] * 5 + [1] * 4
    sampler = PairSampler(targets, None, 4, seed=3)
    assert sampler.steps_per_epoch == 5
    for epoch in range(3):
        seen = set()
        for step in range(epoch * 5, epoch * 5 + 5):
            rows, labels = sampler.batch(step)
            assert labels.tolist() == [0] * 4 + [1] * 4
            assert [targets[r] for r in rows] == labels.tolist()
            seen |= {(int(a), int(b)) for a, b in zip(rows[:4], rows[4:], strict=True)}
        assert len(seen) == 20
    subset = PairSampler(targets, 8, 4, seed=3)
    pairs = [
        {
            (int(a), int(b))
            for s in (2 * e, 2 * e + 1)
            for r in [subset.batch(s)[0]]
            for a, b in zip(r[:4], r[4:], strict=True)
        }
        for e in range(3)
    ]
    assert len(pairs[0]) == 8
    assert pairs[0] == pairs[1] == pairs[2]


def test_pairs_of_many_grades_are_of_two_different_ones_and_equally_many():
    """Any two grades exchange, a rare one as often as a frequent one, no pair twice in an epoch, all from its labels."""
    targets = [0] * 9 + [1] * 3 + [2] * 5
    sampler = PairSampler(targets, None, 5, seed=2)
    assert sampler.n_pairs == 3 * 15  # three pairs of grades, the smallest grid of which has 3 x 5
    seen, met = set(), {}
    for step in range(sampler.steps_per_epoch):
        rows, labels = sampler.batch(step)
        assert [targets[r] for r in rows] == labels.tolist()
        for a, b in zip(rows[:5].tolist(), rows[5:].tolist(), strict=True):
            seen.add((a, b))
            grades = (targets[a], targets[b])
            met[grades] = met.get(grades, 0) + 1
    assert len(seen) == 45
    assert met == {(0, 1): 15, (0, 2): 15, (1, 2): 15}
    parts = [sampler.batch(1, rank, 5)[0] for rank in range(5)]
    assert torch.equal(torch.cat([p[:1] for p in parts] + [p[1:] for p in parts]), sampler.batch(1)[0])


def test_several_discriminators_take_turns_by_the_step_alone(tmp_path):
    """A resumed run looks through the same discriminator at the same step; every discriminator has its share."""
    several = config(tmp_path, "--discriminator", '["a", "b", "c"]')
    assert [str(g) for g in several.discriminators] == ["a", "b", "c"]
    assert [str(g) for g in config(tmp_path, "--discriminator", "a").discriminators] == ["a"]
    drawn = [draw_discriminator(several, step, 3) for step in range(300)]
    assert drawn == [draw_discriminator(several, step, 3) for step in range(300)]
    assert min(drawn.count(i) for i in range(3)) > 70


def test_ranks_share_one_batch():
    """All processes together see the pairs that one process would have seen."""
    sampler = PairSampler([0] * 9 + [1] * 7, 40, 8, seed=1)
    for step in range(12):
        rows = sampler.batch(step)[0]
        parts = [sampler.batch(step, rank, 4)[0] for rank in range(4)]
        assert torch.equal(torch.cat([p[:2] for p in parts]), rows[:8])
        assert torch.equal(torch.cat([p[2:] for p in parts]), rows[8:])


def test_bootstrap_balances_the_grades():
    """The smaller grade is oversampled to the size of the larger; no image of it is lost."""
    sampler = PairSampler([0] * 50 + [1] * 20, None, 4, bootstrap=True)
    assert len(sampler.rows[1]) == len(sampler.rows[0]) == 50
    assert set(sampler.rows[1].tolist()) == set(range(50, 70))


def test_schedule_is_constant_or_a_warmed_cosine(tmp_path):
    """The paper's rate is constant; the default one rises, peaks at lr and ends at 1 % of it."""
    flat = config(tmp_path)
    assert {learning_rate(flat, s, 100) for s in range(100)} == {flat.optim.lr}
    cosine = config(tmp_path, "--optim.schedule", "cosine")
    rates = [learning_rate(cosine, s, 1000) for s in range(1001)]
    assert max(rates) == pytest.approx(cosine.optim.lr)
    assert rates[-1] == pytest.approx(0.01 * cosine.optim.lr)
    assert rates[0] < 0.05 * cosine.optim.lr


def test_a_discriminator_that_would_never_come_is_refused(tmp_path):
    """A search over the weight of sup with default.yaml's late discriminator and short trials once searched nothing."""
    flags = [
        "--config",
        "default",
        "--discriminator",
        str(tmp_path),
        "--data.root",
        str(tmp_path),
        "--loss.discriminator_from",
        "30",
    ]
    with pytest.raises(ValueError, match=r"loss\.discriminator_from=30: .*optim\.max_steps=30"):
        parse([*flags, "--optim.max_steps", "30"]).check()
    parse([*flags, "--optim.max_steps", "31"]).check()


def test_config_lists_all_problems_at_once(tmp_path):
    """One error for a discriminator that is missing, a batch that does not divide and a negative weight."""
    flags = ["--loss.terms.sup", "0.1", "--run.devices", "3", "--loss.terms.lda", "-1", "--optim.lr", "0"]
    with pytest.raises(
        ValueError, match=r"(?s)discriminator is missing.*terms.lda=-1.*multiple of 3.*optim.lr=0"
    ):
        parse(["--config", "tiny", "--out", str(tmp_path), *flags])


def test_paper_yaml_turns_every_deviation_off():
    """paper.yaml is the paper: Eq. 8 with its lambdas, Adam at 1e-4, 100 k pairs, no option of ours."""
    paper = parse(["--config", "paper", "--discriminator", "somewhere"])
    assert paper.loss.active == {"mse": 1, "sup": 1e-2, "lda": 1e-3}
    assert (paper.loss.lda_eps, paper.loss.sup_target) == (0, "label")
    assert (paper.optim.lr, paper.optim.batch_size, paper.optim.n_pairs, paper.optim.epochs) == (
        1e-4,
        32,
        100_000,
        1000,
    )
    assert paper.optim.schedule == "constant"
    assert paper.optim.gradient_clip is paper.optim.ema is None
    assert (paper.data.mirror_right, paper.data.fix_inverted, paper.data.contrast) == (False, False, None)
    assert (paper.loss, paper.optim) == (LossConfig(), OptimConfig())  # what paper.yaml does not name is off
    default = parse(["--config", "default", "--discriminator", "somewhere"])
    assert {"same_grade", "grade_free_non_key", "grade_in_key"} < set(default.loss.active)
    assert default.loss.sup_target == "label"


def test_a_weight_is_a_flag_on_top_of_the_file(tmp_path):
    """It changes that term alone; a name that is none, or no number, is refused with the way out."""
    loss = config(tmp_path, "--loss.terms.fisher_key", "0.5", "--loss.terms.same_grade=2").loss
    tiny = config(tmp_path).loss
    assert loss == tiny.weighing(fisher_key=0.5, same_grade=2)
    with pytest.raises(ValueError, match=r"'fisher' is no term.*accepted are mse, "):
        config(tmp_path, "--loss.terms.fisher", "0.5")
    with pytest.raises(ValueError, match=r"--loss.sup: the weight of a term is --loss.terms.sup"):
        config(tmp_path, "--loss.sup=0.5")
    off = [f"--loss.terms.{name}=0" for name in tiny.active]
    with pytest.raises(ValueError, match=r"every weight is 0.*--loss.terms.mse 1"):
        config(tmp_path, *off)


def test_a_run_of_before_there_was_a_term_goes_on(begun, tmp_path):
    """A weight of 0 is no part of what is learned: the record does not name it."""
    record = json.loads((begun / "config.json").read_text())
    assert set(record["learned_by"]["loss"]["terms"]) == set(config(tmp_path).loss.active)
