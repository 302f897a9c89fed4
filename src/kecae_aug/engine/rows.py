"""Rows added to whatever a batch holds, in the type, memory format and metadata that it came in."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from kecae_aug.engine.transfer import send
from kecae_aug.engine.tree import list_entries, map_leaves, rebuild_like


def add_rows(value: Any, rows: Tensor, n: int, left: list[str]) -> Any:
    """A structure with ``rows`` added to whatever in it has one for each of the n images.

    Args:
        value: tensors, arrays, pandas' columns, texts and numbers in Mappings, lists and tuples of any depth.
        rows: (k,) int64 on the CPU, rows to add again.
        n: rows of the batch.
        left: gets the types of entries of length n that cannot be extended.
    """
    if isinstance(value, Tensor):
        return _add_to_tensor(value, rows, left) if value.ndim and len(value) == n else value
    if isinstance(value, np.ndarray):
        if not value.ndim or len(value) != n:
            return value
        join = np.ma.concatenate if isinstance(value, np.ma.MaskedArray) else np.concatenate
        return join([value, value[rows.numpy()]])
    if isinstance(value, (Mapping, list, tuple)) and not isinstance(value, torch.Size):
        entries = dict(list_entries(value))
        is_rows = not isinstance(value, Mapping) and not hasattr(value, "_fields") and len(value) == n
        if is_rows and not _is_columns(value, n):
            copies = {n + i: map_leaves(_copy, value[row]) for i, row in enumerate(rows.tolist())}
            return rebuild_like(value, entries | copies)
        return rebuild_like(value, {key: add_rows(part, rows, n, left) for key, part in entries.items()})
    if isinstance(value, (str, bytes, torch.Size)) or not hasattr(value, "__len__") or len(value) != n:
        return value
    if hasattr(value, "iloc"):  # pandas
        return value.iloc[[*range(n), *rows.tolist()]]
    left.append(type(value).__name__)
    return value


def _is_columns(values: Any, n: int) -> bool:
    """Whether n entries are columns of n rows each, as default_collate makes of n numbers or texts an image, not n rows."""
    return all(
        tuple(v.shape) == (n,)
        if isinstance(v, (Tensor, np.ndarray))
        else isinstance(v, (list, tuple)) and len(v) == n and all(isinstance(text, str) for text in v)
        for v in values
    )


def _copy(value: Any) -> Any:
    """A leaf of its own, so that whoever writes to it does not write to the host's."""
    if isinstance(value, Tensor):
        return wrap_like(value.as_subclass(Tensor).clone(), value)
    return value.copy() if isinstance(value, np.ndarray) else value


def _add_to_tensor(value: Tensor, rows: Tensor, left: list[str]) -> Tensor:
    plain = value.as_subclass(Tensor)
    return wrap_like(concatenate(plain, plain[send(rows, plain.device)]), value, rows, left)


def concatenate(first: Tensor, second: Tensor) -> Tensor:
    """``torch.cat`` that keeps channels_last."""
    out = torch.cat([first, second])
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(first.ndim)
    if last is not None and first.is_contiguous(memory_format=last) and not first.is_contiguous():
        out = out.contiguous(memory_format=last)
    return out


def wrap_like(
    out: Tensor, value: Tensor, rows: Tensor | None = None, left: list[str] | None = None
) -> Tensor:
    """In the container that came: a tv_tensor, MONAI's MetaTensor with its metadata, another subclass.

    Metadata is copied, since whoever writes to it would write to the caller's; with ``rows`` it is extended as the batch is.
    """
    if isinstance(value, tv_tensors.TVTensor):
        wrapped: Tensor = tv_tensors.wrap(out, like=value)
        return wrapped
    if type(value) is Tensor:
        return out
    other: Tensor = out.as_subclass(type(value))
    facts = copy.deepcopy(value.__dict__)
    if rows is not None and getattr(value, "is_batch", True):  # MONAI's may have one for all images
        facts = {k: add_rows(v, rows, len(value), [] if left is None else left) for k, v in facts.items()}
    other.__dict__.update(facts)
    return other
