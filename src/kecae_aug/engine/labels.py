"""Labels of a batch: read as class indices, written in the caller's form."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kecae_aug.engine.plan import Plan
from kecae_aug.engine.transfer import send

LabelMode = Literal["key", "one_hot", "soft"]
LABEL_MODES = ("key", "one_hot", "soft")


def read_labels(labels: Tensor, rows: int, n_classes: int) -> tuple[Tensor, bool]:
    """Labels as (B,) int64 indices, and whether they came one-hot.

    Args:
        labels: on the CPU.
        rows: B.
        n_classes: K.

    Raises:
        ValueError: another shape or dtype, soft labels, or indices outside the classes.
    """
    if labels.ndim == 2:
        ones = (labels == 1).sum(1)
        if labels.shape != (rows, n_classes) or not bool(((ones == 1) & ((labels != 0).sum(1) == 1)).all()):
            raise ValueError(
                f"labels: got {tuple(labels.shape)} {labels.dtype} that are not one-hot rows of {n_classes} classes for "
                f"{rows} images; soft labels cannot be exchanged: put KeyExchangeAugment before MixUp and CutMix"
            )
        return labels.argmax(1), True
    if labels.ndim != 1 or len(labels) != rows:
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)} for {rows} images, accepted is ({rows},) or one-hot"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels: got {labels.dtype}, accepted are integer class indices, or one-hot rows")
    indices = labels.long()
    if rows and not (int(indices.min()) >= 0 and int(indices.max()) < n_classes):
        raise ValueError(
            f"labels: got values from {int(indices.min())} to {int(indices.max())}, accepted are 0 to {n_classes - 1}, "
            "indices into classes; for a data set with other labels give classes=dataset.classes"
        )
    return indices, False


def write_labels(plan: Plan, labels: Tensor, n_classes: int, mode: LabelMode, append: bool) -> Tensor:
    """The labels of a batch after its exchange, on the labels' device.

    Args:
        plan: of the batch.
        labels: as they came.
        n_classes: K.
        mode: ``"key"`` keeps the form and dtype that came, ``"one_hot"`` and ``"soft"`` give (B, K) float32.
        append: whether the exchanged knees come after the batch's own rows, or in the place of their hosts.
    """
    if not plan.acts and mode == "key":
        return labels
    indices, rows = plan.indices, plan.params.rows
    if mode == "soft":
        fraction = plan.params.strengths.clamp(max=1)[:, None]
        old = F.one_hot(indices, n_classes).float()
        new = (1 - fraction) * old[rows] + fraction * F.one_hot(plan.given, n_classes).float()
    elif mode == "one_hot" or plan.one_hot:
        dtype = torch.float32 if mode == "one_hot" else labels.dtype
        old, new = (F.one_hot(i, n_classes).to(dtype) for i in (indices, plan.key_class))
    else:
        old, new = indices.to(labels.dtype), plan.key_class.to(labels.dtype)
    out = torch.cat([old, new]) if append else old.index_put((rows,), new)
    return send(out, labels.device)
