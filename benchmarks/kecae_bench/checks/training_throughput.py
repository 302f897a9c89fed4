"""Training steps of `compact` on this machine: pairs a second, where a step's time goes, what each choice is worth.

    python -m kecae_bench.checks.training_throughput
    python -m kecae_bench.checks.training_throughput --preset paper --device cuda --precision bf16-mixed

Every variant takes turns with the others in one process, a few steps at a time, so that a busy machine
slows all of them; each figure is the median over the turns, and ratios are those of the medians. The time of a
step is split by running its parts alone, and by operator with torch.profiler. Appends a JSON line to
benchmarks/results/training_throughput.jsonl.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from kecae_aug.engine.model import KECAE, PRESETS, PointConvTranspose2d
from kecae_bench.machine import add_device, add_precision, autocast, synchronize
from kecae_bench.record import record
from kecae_training.config import parse
from kecae_training.discriminator import Discriminator, DiscriminatorConfig
from kecae_training.losses import LossConfig, StepOutputs, hybrid_loss
from kecae_training.step import KeyExchange
from kecae_training.views import look_through


class Variant:
    """A model with its optimiser, and one training step of it."""

    def __init__(
        self,
        size: str,
        loss: LossConfig,
        discriminator: Discriminator,
        pairs: int,
        *,
        channels_last: bool = True,
        plain: bool = False,
        device: torch.device,
        precision: str,
    ) -> None:
        torch.manual_seed(0)
        self.device, self.precision = device, precision
        kecae = KECAE(PRESETS[size])
        if plain:
            for module in kecae.modules():
                if isinstance(module, PointConvTranspose2d):
                    module.__class__ = nn.ConvTranspose2d  # type: ignore[assignment]
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.modules = KeyExchange(kecae, loss).to(device).to(memory_format=self.format)
        self.adam = torch.optim.Adam(self.modules.parameters(), lr=1e-4)
        self.loss, self.discriminator = loss, discriminator
        side = kecae.config.image_size
        self.images = (torch.rand(2 * pairs, 1, side, side) * 2 - 1).to(device).to(memory_format=self.format)
        self.labels = torch.arange(2).repeat_interleave(pairs).to(device)
        self.permutation = torch.cat([torch.randperm(pairs), pairs + torch.randperm(pairs)]).to(device)

    def forward(self) -> Tensor:
        """Encode, decode and weigh: the total loss."""
        with autocast(self.device, self.precision):
            outputs = StepOutputs(
                self.images,
                self.labels,
                **self.modules(self.images, self.permutation),
                lda_eps=self.loss.lda_eps,
            )
            if self.loss.by_discriminator:
                look_through(self.discriminator, outputs, self.loss, [self.discriminator])
            return hybrid_loss(outputs, self.loss)["total"]

    def step(self) -> None:
        """A whole training step, without reading images and without logging."""
        self.adam.zero_grad(set_to_none=True)
        self.forward().backward()
        self.adam.step()


def in_turns(
    tasks: dict[str, Callable[[], Any]], turns: int, each: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of a call, the tasks taking turns."""
    for task in tasks.values():
        task()
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(turns):
        for name, task in tasks.items():
            synchronize(device)
            start = time.perf_counter()
            for _ in range(each):
                task()
            synchronize(device)
            seconds[name].append((time.perf_counter() - start) / each)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def operators(variant: Variant, n: int = 8) -> dict[str, float]:
    """Fraction of a step's time on the CPU, or on CUDA, of the n costliest operators."""
    on_cuda = variant.device.type == "cuda"
    with profile(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    ) as profiled:
        variant.step()
        synchronize(variant.device)
    name = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    times = {e.key: getattr(e, name) for e in profiled.key_averages()}
    costly = sorted(times, key=lambda key: -times[key])[:n]
    return {key: round(times[key] / sum(times.values()), 3) for key in costly}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="compact", choices=sorted(PRESETS))
    parser.add_argument("--pairs", type=int, default=32, help="pairs a step")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--each", type=int, default=3, help="steps of a variant in one turn")
    add_device(parser)
    add_precision(parser)
    parser.add_argument("--out", type=Path, help="JSON lines; by default in benchmarks/results")
    args = parser.parse_args()
    supervised = parse(["--config", "default", "--discriminator", "made here"]).loss
    loss = supervised.weighing(**dict.fromkeys(supervised.by_discriminator, 0.0))
    torch.manual_seed(0)
    discriminator = Discriminator(
        DiscriminatorConfig(image_size=PRESETS[args.preset].image_size), ("0", "2")
    ).freeze()
    discriminator.to(args.device)

    def variant(terms: LossConfig, **options: Any) -> Variant:
        machine = {"device": args.device, "precision": args.precision}
        return Variant(args.preset, terms, discriminator, args.pairs, **machine, **options)

    variants = {
        "default": variant(supervised),
        "without channels_last": variant(supervised, channels_last=False),
        "with the generic 1x1 deconvolution": variant(supervised, plain=True),
        "without the discriminator": variant(loss),
        "without the three optional terms": variant(
            supervised.weighing(same_grade=0.0, grade_free_non_key=0.0, grade_in_key=0.0)
        ),
    }
    seconds = in_turns({name: v.step for name, v in variants.items()}, args.turns, args.each, args.device)
    default = variants["default"]
    kecae, images = default.modules.model, default.images
    sums = kecae.encode(images).sum.detach()
    with torch.no_grad():
        sums = torch.cat([sums] * 3)
    parts = in_turns(
        {
            "two encoders, forward": lambda: kecae.encode(images),
            "decoder on three sums, forward": lambda: kecae.decode(sums),
            "discriminator, forward": lambda: discriminator(images),
            "forward and losses": default.forward,
            "forward and backward": lambda: default.forward().backward(),
            "Adam": default.adam.step,
            "whole step": default.step,
        },
        args.turns,
        args.each,
        args.device,
    )
    record(
        "training_throughput",
        {
            "preset": args.preset,
            "device": args.device.type,
            "precision": args.precision,
            "pairs": args.pairs,
            "threads": torch.get_num_threads(),
            "allocator": {k: v for k, v in os.environ.items() if k.startswith(("MALLOC_", "THP_"))},
            "pairs_per_second": {name: round(args.pairs / s, 1) for name, s in seconds.items()},
            "step_time_against_default": {
                name: round(s / seconds["default"], 2) for name, s in seconds.items()
            },
            "parts_of_a_step": {name: round(s / parts["whole step"], 3) for name, s in parts.items()},
            "operators": operators(default),
        },
        args.out,
    )


if __name__ == "__main__":
    main()
