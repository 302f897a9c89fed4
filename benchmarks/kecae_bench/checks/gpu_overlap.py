"""Is the exchange hidden behind the step? A ResNet-18 step with the loader's prefetching on and off, in one process.

    python -m kecae_bench.checks.gpu_overlap --device cuda                  # paper size, batch 64

`step` is a step on batches that are only moved, `exchange` the loader without a step, `in_turn` and `ahead` both, with
prefetch=False and True. `hidden` is the fraction of the shorter of the two that prefetching saves; on a CPU there is no
stream, so nothing is. Medians over repetitions that alternate. Appends a JSON line to benchmarks/results/gpu_overlap.jsonl.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from kecae_aug import KECAE, EngineOptions, KeyExchangeAugment, KeyExchangeLoader
from kecae_aug.engine.model import PRESETS
from kecae_bench.machine import add_device, synchronize
from kecae_bench.record import record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), default="paper")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=30, help="of an epoch")
    parser.add_argument("--repetitions", type=int, default=5)
    add_device(parser)
    parser.add_argument(
        "--out", type=Path, help="JSON lines; by default benchmarks/results/gpu_overlap.jsonl"
    )
    args = parser.parse_args()
    torch.manual_seed(0)
    model = KECAE.from_preset(args.preset).eval()
    side = model.config.image_size
    labels = torch.arange(args.batch_size) % 2
    batches = [(torch.rand(args.batch_size, 1, side, side), labels)] * args.batches
    step = resnet_step(args.device)
    figures = {}
    for name, amp_dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        augment = KeyExchangeAugment(
            model, p=0.5, detail="decoder", engine=EngineOptions(amp_dtype=amp_dtype)
        )
        ahead, in_turn = (
            KeyExchangeLoader(batches, augment, device=args.device, prefetch=on) for on in (True, False)
        )
        as_it_is: Any = lambda batch: batch  # noqa: E731
        moved = KeyExchangeLoader(batches, as_it_is, device=args.device, prefetch=False)
        loops: dict[str, tuple[Iterable[Any], Callable[[Tensor, Tensor], Any]]] = {
            "step": (moved, step),
            "exchange": (in_turn, lambda x, y: None),
            "in_turn": (in_turn, step),
            "ahead": (ahead, step),
        }
        figures[name] = overlap(loops, args.repetitions, args.device, args.batches)
    facts = {"preset": args.preset, "device": args.device.type, "batch_size": args.batch_size}
    record("gpu_overlap", {**facts, "batches": args.batches, "exchange_in": figures}, args.out)


def resnet_step(device: torch.device) -> Callable[[Tensor, Tensor], None]:
    """A training step of a ResNet-18 for one channel and two classes."""
    network = resnet18(num_classes=2)
    network.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    network.to(device)
    optimiser = torch.optim.SGD(network.parameters(), 1e-3)

    def step(images: Tensor, labels: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(network(images), labels).backward()
        optimiser.step()

    return step


def overlap(
    loops: dict[str, tuple[Iterable[Any], Callable[[Tensor, Tensor], Any]]],
    repetitions: int,
    device: torch.device,
    batches: int,
) -> dict[str, float]:
    """Median milliseconds a batch of each loop, and what of the shorter part is hidden."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for repetition in range(repetitions + 1):
        for name, (loader, step) in loops.items():
            synchronize(device)
            start = time.perf_counter()
            for images, labels in loader:
                step(images, labels)
            synchronize(device)
            if repetition:  # the first one chooses kernels and reserves memory
                seconds[name].append(time.perf_counter() - start)
    found = {name: 1e3 * statistics.median(values) / batches for name, values in seconds.items()}
    shorter = min(found["step"], found["exchange"])
    hidden = (found["in_turn"] - found["ahead"]) / shorter
    return {f"{name}_ms": round(value, 3) for name, value in found.items()} | {"hidden": round(hidden, 3)}


if __name__ == "__main__":
    main()
