"""Between the CPU and a device, without waiting where there is nothing to wait for."""

from __future__ import annotations

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """From the CPU to the device without waiting for it: of memory that is not pinned a copy may wait."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def fetch(tensors: list[Tensor]) -> list[Tensor]:
    """The same values on the CPU, by one transfer from each device; those that are there already stay."""
    out = list(tensors)
    for device in {t.device for t in tensors if t.device.type != "cpu"}:
        there = [i for i, t in enumerate(tensors) if t.device == device]
        raw = [tensors[i].contiguous().flatten().view(torch.uint8) for i in there]
        parts = torch.cat(raw).cpu().split([len(r) for r in raw])
        for i, part in zip(there, parts, strict=True):
            out[i] = part.clone().view(tensors[i].dtype).view(tensors[i].shape)  # cloned to be aligned
    return out
