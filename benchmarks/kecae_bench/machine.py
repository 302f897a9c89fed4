"""--device and --precision of the benchmarks, and the generators that go with a device."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import torch
from torch import Tensor

from kecae_aug import device as project
from kecae_aug.loader import _move

CPU = torch.device("cpu")
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}  # what results' lines say: the project's name


def add_device(parser: Any) -> None:
    """``--device``, which ``parse_args`` turns into a torch.device."""
    parser.add_argument(
        "--device",
        type=_device,
        default="auto",
        metavar="{" + ",".join(project.DEVICES) + "}",
        help="where networks run: auto takes CUDA or MPS where there is one (default: %(default)s)",
    )


def add_precision(parser: Any, default: str = "float32", help: str = "") -> None:
    """``--precision`` by the project's names, or as results' lines have it, which is what ``parse_args`` gives."""
    accepted = ",".join(PRECISIONS.values())
    parser.add_argument(
        "--precision", type=_precision, default=default, metavar="{" + accepted + "}", help=help
    )


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """Autocast of a device to a precision as lines have it."""
    return project.autocast(device, PRECISIONS[precision])


def of_device(device: torch.device) -> dict[str, str]:
    """What a run's settings say of its device: nothing of a CPU, so that earlier runs stay what they are."""
    return {} if device.type == "cpu" else {"device": device.type}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; to CUDA by pinned memory, so that the copy waits for no step that is still at work."""
    moved: Tensor = _move(tensor, device)
    return moved


def forked(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The global generators of the CPU and of the device are afterwards as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _device(name: str) -> torch.device:
    try:
        return project.choose_device(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix(f"--device {name}: ")) from None


def _precision(name: str) -> str:
    names = {v: k for k, v in PRECISIONS.items()} | {k: k for k in PRECISIONS}
    if name not in names:
        raise argparse.ArgumentTypeError(
            f"got {name!r}, accepted are {', '.join(PRECISIONS.values())} (in results: {', '.join(PRECISIONS)}); float16 "
            "would need a scaled loss, whose skipped steps differ between arms"
        )
    return names[name]
