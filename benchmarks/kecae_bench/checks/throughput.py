"""How fast is the exchange, against a plain implementation of the paper's inference, in one process run?

    python -m kecae_bench.checks.throughput                     # paper size, batch 64; ten minutes on 2 cores
    python -m kecae_bench.checks.throughput --preset compact
    python -m kecae_bench.checks.throughput --device cuda --compile      # TF32 and torch.compile too

The baseline is the network as the paper describes it: both encoders on each image of a batch, the decoder made of
ConvTranspose2d, float32, the whole batch at once. Every figure is a median over repetitions that alternate between
the variants, so that a machine that gets slower hits all of them; outputs are compared with the baseline's. On CUDA
float32 is without TF32, the baseline's too, and `_tf32` is with it; clocks are read when the device is done.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.models import resnet18

from kecae_aug import KECAE, EngineOptions, KeyExchangeAugment, LatentBank
from kecae_aug.engine.inference import FastKECAE
from kecae_aug.engine.model import PRESETS, PointConvTranspose2d
from kecae_bench.machine import CPU, add_device, synchronize
from kecae_bench.record import record

TOLERANCE = 1e-4  # float32, images of range 2
LEAST_PSNR = 40.0  # dB, half precision


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), default="paper")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--matrix", type=int, default=3072, help="side of the matrices of the peak")
    add_device(parser)
    parser.add_argument(
        "--compile", action="store_true", help="float32 and bfloat16 through torch.compile too"
    )
    parser.add_argument("--out", type=Path, help="JSON lines; by default benchmarks/results/throughput.jsonl")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = trained_like(args.preset).to(args.device)
    tf32(False)
    peak = matrix_product_peak(args.device, args.matrix)
    with torch.no_grad():
        exchange = compare(model, args.batch_size, args.repetitions, compiled=args.compile)
        sizes = {n: compare(model, n, 5, halves=False) for n in (1, 4, 16) if n < args.batch_size}
    flops = operations(model)
    for name, kind in (("from_images", "images"), ("from_bank", "bank")):
        speed = exchange[name]["images_a_second"]
        exchange[name]["fraction_of_peak"] = round(speed * flops[kind] / peak, 3)
    record(
        "throughput",
        {
            "preset": args.preset,
            "device": args.device.type,
            "batch_size": args.batch_size,
            "repetitions": args.repetitions,
            "threads": torch.get_num_threads(),
            "matrix_product_peak_gflops": {
                "float32": round(peak / 1e9),
                **half_peaks(args.device, args.matrix),
            },
            "gflop_an_image": {k: round(v / 1e9, 3) for k, v in flops.items()},
            "exchange": exchange,
            "ratio_by_batch_size": {n: {k: v["ratio"] for k, v in rows.items()} for n, rows in sizes.items()},
            "memory": memory(model),
            "resnet18_step": training_step(model, args.batch_size, args.repetitions),
        },
        args.out,
    )


def trained_like(preset: str) -> KECAE:
    """Fresh weights whose BatchNorms have seen data, so that activations have the size that trained ones have."""
    model = KECAE.from_preset(preset).train()
    with torch.no_grad():
        for _ in range(3):
            model(smooth(8, model.config.image_size))
    return model.eval()


@contextlib.contextmanager
def tf32_inside() -> Iterator[None]:
    """TF32 in the block; :func:`tf32` switches it for good."""
    tf32(True)
    yield
    tf32(False)


def tf32(on: bool) -> None:
    """Whether CUDA may round float32 to TF32 inside products and convolutions; elsewhere it changes nothing."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def smooth(n: int, size: int) -> Tensor:
    """(n, 1, S, S) in [-1, 1], low frequencies as in a radiograph."""
    return nn.functional.interpolate(
        torch.rand(n, 1, 12, 12) * 2 - 1, size=(size, size), mode="bicubic"
    ).clamp(-1, 1)


def plain(model: KECAE) -> Callable[[Tensor, Tensor], Tensor]:
    """The paper's inference: X' of each image with the key of another image of the batch."""
    decoder = nn.Sequential(*model.decoder)
    for i, layer in enumerate(decoder):
        if isinstance(layer, PointConvTranspose2d):  # ours; the paper's is a deconvolution like the others
            sizes: dict[str, Any] = {"padding": layer.padding, "output_padding": layer.output_padding}
            kept = nn.ConvTranspose2d(layer.in_channels, layer.out_channels, 4, 2, bias=False, **sizes)
            kept.weight = layer.weight
            decoder[i] = kept

    def exchange(images: Tensor, donors: Tensor) -> Tensor:
        key, non_key = model.key_encoder(images), model.non_key_encoder(images)
        out: Tensor = decoder(non_key + key[donors])
        return out

    return exchange


def exchange_images(model: FastKECAE, images: Tensor, donors: Tensor) -> Tensor:
    """X' of images, each encoded once."""
    return model.decode(model.encode_non_key(images) + model.encode_key(images)[donors])


def exchange_latents(model: FastKECAE, keys: Tensor, non_keys: Tensor, donors: Tensor) -> Tensor:
    """X' of latents in half precision, as a bank holds them."""
    return model.decode(non_keys.float() + keys[donors].float())


def compare(
    model: KECAE, n: int, repetitions: int, halves: bool = True, compiled: bool = False
) -> dict[str, Any]:
    """Images a second of every variant, its ratio to the baseline, and how far its images are from the baseline's."""
    device = next(model.parameters()).device
    images = smooth(n, model.config.image_size).to(device)
    donors = torch.roll(torch.arange(n, device=device), 1)
    baseline = plain(model)
    variants: dict[str, Callable[[], Tensor]] = {"baseline": lambda: baseline(images, donors)}
    ways = [(torch.float32, False, False)] + [(torch.float32, False, True)] * compiled
    ways += [(torch.float32, True, False)] * (halves and device.type == "cuda")
    ways += [(torch.bfloat16, False, False), (torch.float16, False, False)] * halves
    ways += [(torch.bfloat16, False, True)] * compiled
    for dtype, short, compile in ways:
        fast = FastKECAE(model, EngineOptions(amp_dtype=dtype, compile=compile))
        suffix = "_tf32" * short + f"_{str(dtype).removeprefix('torch.')}" * (dtype != torch.float32)
        suffix += "_compiled" * compile
        keys, non_keys = fast.encode(images)
        half = (keys.half(), non_keys.half())
        found: dict[str, Callable[[], Tensor]] = {
            "from_images": partial(exchange_images, fast, images, donors),
            "from_bank": partial(exchange_latents, fast, *half, donors),
        }
        for name, run in found.items():
            variants[name + suffix] = tf32_inside()(run) if short else run
    wanted = variants["baseline"]()
    out: dict[str, Any] = {}
    for name, run in variants.items():
        error = (run() - wanted).abs().max().item()
        psnr = float(10 * torch.log10(4 / (run() - wanted).square().mean())) if error else float("inf")
        exact = name in ("from_images", "from_images_compiled")
        if (exact and error > TOLERANCE) or (not exact and psnr < LEAST_PSNR):
            raise SystemExit(
                f"{name}: largest difference {error:.2e}, {psnr:.1f} dB: not the baseline's images"
            )
        out[name] = {"largest_difference": error, "psnr_db": min(round(psnr, 1), 999.0)}
    seconds = timed(variants, repetitions, device)
    for name, value in seconds.items():
        out[name] |= {
            "images_a_second": round(n / value, 1),
            "ratio": round(seconds["baseline"] / value, 2),
        }
    return out


def timed(
    variants: dict[str, Callable[[], Any]], repetitions: int, device: torch.device = CPU
) -> dict[str, float]:
    """Median seconds of each, taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    for _ in range(repetitions):
        for name, run in variants.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def operations(model: KECAE) -> dict[str, float]:
    """Floating-point operations for one exchanged image (a multiply-add is two)."""
    config = model.config
    before = (1, *config.channels[:-1])
    blocks = list(zip(config.blocks, before, config.channels, strict=True))
    encoder = sum(2 * 9 * i * o * b.size_out**2 for b, i, o in blocks)
    decoder = sum(2 * 16 * i * o * b.size_out**2 for b, i, o in blocks)
    if config.blocks[-1].size_out == 1:  # of the first kernel only what lands in the map
        last, inner, outer = blocks[-1]
        decoder += 2 * inner * outer * (min(last.size_in, 4) ** 2 - 16)
    return {"images": 2 * encoder + decoder, "bank": decoder}


def matrix_product_peak(device: torch.device, side: int, dtype: torch.dtype = torch.float32) -> float:
    """Operations a second of a large square matrix product, the best of five."""
    a, b = (torch.randn(side, side).to(device, dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def half_peaks(device: torch.device, side: int) -> dict[str, int]:
    return {
        str(d).removeprefix("torch."): round(matrix_product_peak(device, side, d) / 1e9)
        for d in (torch.bfloat16, torch.float16)
    }


def memory(model: KECAE) -> dict[str, Any]:
    """Bytes: of the weights, of an image in a bank, and of the largest activation of an image."""
    config = model.config
    latent = 2 * torch.Size(config.latent_shape).numel()
    return {
        "weights_mb": round(sum(p.numel() for p in FastKECAE(model).parameters()) * 4 / 2**20, 1),
        "bank_kb_an_image_float16": round(2 * latent / 2**10, 2),
        "bank_kb_an_image_with_residual": round(2 * (latent + config.image_size**2) / 2**10, 1),
        "largest_activation_mb_an_image": round(
            max(4 * c * b.size_out**2 for b, c in zip(config.blocks, config.channels, strict=True)) / 2**20, 2
        ),
    }


def training_step(model: KECAE, n: int, repetitions: int) -> dict[str, Any]:
    """Seconds that the exchange at p = 0.5 adds to a ResNet-18 step, with keys from the batch and from a bank."""
    torch.manual_seed(0)
    network = resnet18(num_classes=2)
    network.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    device = next(model.parameters()).device
    network.to(device)
    optimiser = torch.optim.SGD(network.parameters(), 1e-3)
    images = (smooth(n, model.config.image_size) + 1) / 2
    labels = torch.arange(n) % 2
    known = TensorDataset(images, labels)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank"
        bank = LatentBank.build(
            known, model, path, classes=model.config.classes, residual=False, device=device
        )
        images, labels = images.to(device), labels.to(device)
        augment = KeyExchangeAugment(model, p=0.5, detail="decoder")
        banked = KeyExchangeAugment(model, p=0.5, detail="decoder", bank=bank)

        def step(exchange: Callable[[Tensor, Tensor], Any] | None) -> None:
            x, y = (images, labels) if exchange is None else exchange(images, labels)
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimiser.step()

        seconds = timed(
            {
                "step": lambda: step(None),
                "step_with_exchange": lambda: step(augment),
                "step_with_bank": lambda: step(banked),
                "exchange": lambda: augment(images, labels),
                "exchange_with_bank": lambda: banked(images, labels),
            },
            repetitions,
            device,
        )
    added = {
        "added_percent": round(100 * seconds["exchange"] / seconds["step"], 1),
        "added_percent_with_bank": round(100 * seconds["exchange_with_bank"] / seconds["step"], 1),
    }
    return {k: round(v, 3) for k, v in seconds.items()} | added


if __name__ == "__main__":
    main()
