"""``--device`` and ``--precision``, the same in every command."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch

Device = Literal["auto", "cpu", "cuda", "mps"]
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda", "mps")
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]  # Lightning Fabric's names
PRECISIONS: tuple[Precision, ...] = ("32-true", "bf16-mixed", "16-mixed")
_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def choose_device(name: str = "auto", index: int | None = None) -> torch.device:
    """The device of a ``--device`` flag.

    Args:
        name: ``"auto"`` takes CUDA where there is one, else Apple's MPS, else the CPU; or one of them by name (``"cuda:1"``
            too).
        index: which CUDA device, for one process of several; torchrun's ``LOCAL_RANK``.

    Raises:
        ValueError: another name, or a device that this machine has not got.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = name.partition(":")[0]
    if kind == "auto":
        kind = name = next(k for k in ("cuda", "mps", "cpu") if there[k])
    if kind not in there:
        raise ValueError(f"--device {name}: accepted are {', '.join(DEVICES)}")
    if not there[kind]:
        found = ", ".join(k for k, v in there.items() if v)
        raise ValueError(f"--device {name}: this machine (or this build of torch) has none; it has {found}")
    if kind == "cuda" and index is not None and ":" not in name:
        name = f"cuda:{index}"
    return torch.device(name)


def amp_dtype(precision: str) -> torch.dtype | None:
    """What a ``--precision`` computes in, None for float32.

    Raises:
        ValueError: naming what is accepted.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"--precision {precision}: accepted are {', '.join(PRECISIONS)}")
    return _DTYPES.get(precision)


def cpu_by_default() -> contextlib.AbstractContextManager[Any]:
    """Draws, rows and figures are made on the CPU, whatever ``torch.set_default_device`` says."""
    return contextlib.nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """Autocast of a device to a ``--precision``; nothing for float32."""
    dtype = amp_dtype(precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)
