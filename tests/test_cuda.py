"""What a GPU changes: transform, loader, bank, training, resuming, evaluation and torch.compile, on CUDA and on the CPU.

    python -m pytest -m cuda        # skipped where there is none

Each body runs on the CPU too, so that only the device has not been tried where there is no GPU.
"""

import contextlib
import functools
import json
import time

import pytest
import torch
from evaluation_models import Bar, Swap, knees
from test_bank import Knees, images_of
from test_training import Tensors, config
from torch.utils.data import DataLoader

from kecae_aug import (
    KECAE,
    EngineOptions,
    KeyExchangeAugment,
    KeyExchangeDataset,
    KeyExchangeLoader,
    LatentBank,
)
from kecae_aug.weights.io import load_weights
from kecae_training.evaluate.entrants import Entrant
from kecae_training.evaluate.evaluation import evaluate
from kecae_training.train import train

torch.manual_seed(0)
MODEL = KECAE.from_preset("tiny").eval()
NEEDS_CUDA = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs CUDA: torch.cuda.is_available() is False"
    ),
]


ON_CUDA = pytest.param("cuda", marks=NEEDS_CUDA)
slow_on_cpus = pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), ON_CUDA], indirect=True
)


@pytest.fixture(params=["cpu", ON_CUDA])
def device(request):
    """Either device; float32 on CUDA without TF32, so that it can be compared."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield torch.device(request.param)
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


def batch(dtype, n=16):
    g = torch.Generator().manual_seed(1)
    small = torch.rand(n, 1, 8, 8, generator=g)
    images = torch.nn.functional.interpolate(small, size=(70, 60), mode="bilinear").expand(-1, 3, -1, -1)
    return (images * 255).round().to(dtype) if dtype == torch.uint8 else images, torch.arange(n) % 2


# --- the transform ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("detail", ["decoder", "host"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_an_exchange_is_that_of_the_cpu(device, dtype, detail, append):
    """Same draws for one seed, same labels, the same images but for rounding; dtype and device stay."""
    images, labels = batch(dtype)
    augment = KeyExchangeAugment(MODEL, p=0.6, strength=(0.5, 1.5), detail=detail, append=append)
    torch.manual_seed(3)
    wanted, wanted_labels = augment(images, labels)
    params = augment.params
    torch.manual_seed(3)
    got, got_labels = augment(images.to(device), labels.to(device))
    assert (got.device.type, got.dtype, got_labels.device.type) == (device.type, dtype, device.type)
    for name in ("rows", "donors", "strengths"):
        assert torch.equal(getattr(augment.params, name).cpu(), getattr(params, name))
    assert torch.equal(got_labels.cpu(), wanted_labels)
    tolerance = 1.01 if dtype == torch.uint8 else 1e-3
    torch.testing.assert_close(got.cpu().float(), wanted.float(), atol=tolerance, rtol=0)
    assert augment._exchanger.fast.device.type == "cpu"  # the copy on the device is not the caller's


@pytest.mark.parametrize("amp_dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(device, amp_dtype):
    """Above 35 dB against float32 on the same device, finite, and float32 outside."""
    images, labels = (t.to(device) for t in batch(torch.float32))
    exact = KeyExchangeAugment(MODEL, p=1.0)
    wanted, _ = exact(images, labels)
    got, _ = KeyExchangeAugment(MODEL, engine=EngineOptions(amp_dtype=amp_dtype)).replay(
        images, labels, params=exact.params
    )
    assert got.dtype == torch.float32
    assert -10 * torch.log10((got - wanted).square().mean()) > 35


@slow_on_cpus
def test_compiled_networks_give_the_same(device, monkeypatch):
    """The model is on the CPU; it is its compiled copy on the device that runs."""
    if device.type == "cpu":  # inductor on a CPU: tests/test_transform_clients.py
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    images, labels = (t.to(device) for t in batch(torch.float32))
    plain, compiled = (
        KeyExchangeAugment(MODEL, p=1.0),
        KeyExchangeAugment(MODEL, p=1.0, engine=EngineOptions(compile=True)),
    )
    wanted, _ = plain(images, labels)
    got, _ = compiled.replay(images, labels, params=plain.params)
    torch.testing.assert_close(got, wanted, atol=1e-3, rtol=0)
    assert compiled._exchanger.on(images.device).decoder.large._compiled_call_impl is not None


# --- the loader -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [True, False])
def test_the_loader_gives_what_it_gives_on_the_cpu(device, prefetch):
    """One batch ahead or not: same draws, labels and images, on the device, and each batch with its own params."""

    def epoch(where, ahead):
        torch.manual_seed(5)
        augment = KeyExchangeAugment(MODEL, p=0.7)
        loader = KeyExchangeLoader(
            DataLoader(Knees(), batch_size=6),
            augment,
            device=where,
            post=lambda x: x[..., 3:-3, 3:-3].flip(-1),
            prefetch=ahead,
        )
        return [(x, y, augment.params.donors.cpu()) for x, y in loader]

    got, wanted = epoch(device, prefetch), epoch("cpu", False)
    assert len(got) == len(wanted) == 4
    for (x, y, donors), (a, b, expected) in zip(got, wanted, strict=True):
        assert (x.device.type, y.device.type) == (device.type, device.type)
        torch.testing.assert_close(x.cpu(), a, atol=1e-3, rtol=0)
        assert torch.equal(y.cpu(), b)
        assert torch.equal(donors, expected)


@contextlib.contextmanager
def no_synchronisation(device):
    """In the block everything that makes the CPU wait for CUDA is an error."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("options", [{}, {"append": True}, {"detail": "host", "strength": (0.5, 1.5)}])
def test_a_step_of_the_loader_waits_for_nothing(device, options):
    """From the second batch on, when the model is on the device: no copy back, no blocking copy there."""
    loader = KeyExchangeLoader(
        DataLoader(Knees(), batch_size=5), KeyExchangeAugment(MODEL, p=0.7, **options), device=device
    )
    batches = iter(loader)
    next(batches)
    with no_synchronisation(device):
        assert len(list(batches)) == 3


def busy(device, milliseconds):
    """Keeps the current stream, or the CPU, at work for so long; the streams of a GPU can do it at once."""
    if device.type == "cuda":
        torch.cuda._sleep(int(milliseconds * 1e6))  # cycles: at least as long below 1 GHz, longer above
    else:
        time.sleep(milliseconds / 1e3)


def seconds_of(device, run):
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def test_exchange_and_step_overlap_on_the_device(device):
    """By the device's own events: as long as the longer of both, and less than three quarters of both in turn."""
    data = [(torch.rand(2, 1, 8, 8), torch.arange(2)) for _ in range(20 if device.type == "cuda" else 4)]

    def exchange(batch):
        busy(device, 2)
        return batch

    def loop(prefetch):
        for _ in KeyExchangeLoader(data, exchange, device=device, prefetch=prefetch):
            busy(device, 2)

    loop(True)  # streams, events and pinned memory are made
    in_turn, ahead = (seconds_of(device, functools.partial(loop, on)) for on in (False, True))
    assert ahead < (0.75 if device.type == "cuda" else 2) * in_turn


def test_handed_out_memory_stays_the_loops(device):
    """While slow steps read their batches, later exchanges reuse none of that memory."""
    data = [(torch.full((64, 1, 64, 64), float(i)), torch.arange(64) % 2) for i in range(12)]
    sums = []
    for x, _ in KeyExchangeLoader(data, lambda batch: (batch[0] + 1, batch[1]), device=device):
        busy(device, 3)
        sums.append(x.mean())
    assert torch.stack(sums).tolist() == [i + 1 for i in range(12)]


# --- bank and data set ------------------------------------------------------------------------------------------


def test_a_bank_is_built_and_served(device, tmp_path):
    """Encoded on the device it holds what the CPU encodes; its keys exchange on the device."""
    bank, wanted = (
        LatentBank.build(Knees(), MODEL, tmp_path / str(where), dtype=torch.float32, device=where)
        for where in (device, "cpu")
    )
    rows = torch.tensor([19, 0, 5, 5])
    torch.testing.assert_close(bank.keys(rows), wanted.keys(rows), atol=1e-3, rtol=1e-3)
    images, labels = images_of(Knees()).to(device), torch.tensor(Knees().targets, device=device)
    augment = KeyExchangeAugment(MODEL, p=1.0, bank=bank)
    got, _ = augment(images, labels)
    on_cpu, _ = augment.replay(images.cpu(), labels.cpu(), params=augment.params)
    assert got.device.type == device.type
    torch.testing.assert_close(got.cpu(), on_cpu, atol=1e-3, rtol=0)


def test_a_dataset_exchanges_on_the_device(device):
    """Items come on the CPU, and are those that the CPU makes."""
    here, there = (KeyExchangeDataset(Knees(), MODEL, 6, device=where) for where in ("cpu", device))
    for i in (20, 25):
        (a, label), (b, same) = here[i], there[i]
        assert b.device.type == "cpu"
        assert label == same
        torch.testing.assert_close(b, a, atol=1e-3, rtol=0)


# --- training and evaluation ------------------------------------------------------------------------------------


def trained(out, device, steps, *flags):
    """Weights and log of a run of so many steps."""
    flags = ("--optim.max_steps", str(steps), "--run.log_every", "1", "--optim.ema", "0.9", *flags)
    made = train(config(out, *flags, "--run.accelerator", device.type), Tensors())
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return load_weights(str(made)).state_dict(), log


@slow_on_cpus
def test_a_training_step_is_that_of_the_cpu(device, tmp_path):
    """From one seed the same pairs and the same losses but for rounding, two steps long; the export is on the CPU."""
    (state, log), (_, wanted) = (
        trained(tmp_path / str(where), where, 2) for where in (device, torch.device("cpu"))
    )
    assert {tensor.device.type for tensor in state.values()} == {"cpu"}
    for now, then in zip(log, wanted, strict=True):
        for name in ("mse", "same_grade", "total"):
            assert now[name] == pytest.approx(then[name], rel=1e-2), name


@slow_on_cpus
def test_a_run_goes_on_on_another_device(device, tmp_path):
    """CPU, then the device, then the CPU: one run, whose log has every step once."""
    cpu = torch.device("cpu")
    for where, steps in ((cpu, 2), (device, 4), (cpu, 6)):
        state, log = trained(tmp_path / "run", where, steps)
        assert [line["step"] for line in log] == list(range(1, steps + 1))
        assert all(torch.isfinite(tensor).all() for tensor in state.values())


@slow_on_cpus
def test_mixed_precision_trains(device, tmp_path):
    """bf16-mixed: finite float32 weights."""
    state, _ = trained(tmp_path, device, 2, "--run.precision", "bf16-mixed")
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


@slow_on_cpus
def test_an_evaluation_is_that_of_the_cpu(device):
    """Networks on the device, figures on the CPU."""
    options = {"strengths": (0.0, 1.0), "with_probes": False, "robustness": False}
    got, wanted = (
        evaluate({"it": Entrant(Swap(), {"bar": Bar()})}, knees(), device=where, **options).figures
        for where in (device, "cpu")
    )
    for figures in (got, wanted):
        assert figures["exchanged"]["decoder 1"]["headline"]["auroc_over_real"]["mean"] == 1
    assert got["real"]["bar"] == wanted["real"]["bar"]
