"""How a batch comes in and goes out: arguments, lists, tuples or dicts of images and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IMAGE_KEYS = ("image", "images")
LABEL_KEYS = ("label", "labels", "target", "targets")
PATIENT_KEYS = ("patient", "patients")
WHAT_IS_ACCEPTED = "accepted are (images, labels), [images, labels] and {'image': images, 'label': labels}"


@dataclass
class Batch:
    """A parsed batch.

    ``rebuild(images, labels)`` puts new ones into the structure that came; ``rebuild(images, labels, rows)``
    also adds these rows again to every other entry that has a row for each image.
    """

    images: Tensor
    labels: Tensor
    patients: Any
    rebuild: Callable[..., Any]


def parse(inputs: tuple[Any, ...], patients: Any = None) -> Batch:
    """Find images, labels and patients in what a transform was called with.

    Raises:
        TypeError: another structure, or entries that are not tensors.
        ValueError: keys that are missing or ambiguous.
    """
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        return _parse_mapping(inputs[0], patients)
    if len(inputs) == 1 and isinstance(inputs[0], (list, tuple)):
        return _parse_sequence(inputs[0], patients)
    if len(inputs) == 2:
        images, labels = _tensor("images", inputs[0]), _tensor("labels", inputs[1])
        return Batch(images, labels, patients, lambda x, y, rows=None: (x, y))
    if len(inputs) == 1:
        raise TypeError(
            f"KeyExchangeAugment got a {type(inputs[0]).__name__} alone: it exchanges keys between knees of different "
            f"labels and needs the labels too; {WHAT_IS_ACCEPTED}"
        )
    raise TypeError(f"KeyExchangeAugment got {len(inputs)} arguments; {WHAT_IS_ACCEPTED}")


def _parse_sequence(batch: Any, patients: Any) -> Batch:
    if len(batch) < 2:
        raise TypeError(f"batch: got a {type(batch).__name__} of {len(batch)}; {WHAT_IS_ACCEPTED}")
    n = len(batch[0]) if isinstance(batch[0], Tensor) and batch[0].ndim else 0

    def rebuild(images: Tensor, labels: Tensor, rows: Tensor | None = None) -> Any:
        items = [images, labels, *(_extended(v, rows, n) for v in batch[2:])]
        if hasattr(batch, "_fields"):  # a namedtuple takes its fields one by one
            return type(batch)(*items)
        return items if isinstance(batch, list) else tuple(items)

    return Batch(_tensor("images", batch[0]), _tensor("labels", batch[1]), patients, rebuild)


def _parse_mapping(batch: Mapping[str, Any], patients: Any) -> Batch:
    image, label = find_key(batch, "image", IMAGE_KEYS), find_key(batch, "label", LABEL_KEYS)
    if patients is None:
        patients = next((batch[k] for k in PATIENT_KEYS if k in batch), None)

    images = _tensor(image, batch[image])

    def rebuild(new_images: Tensor, labels: Tensor, rows: Tensor | None = None) -> Any:
        new = {image: new_images, label: labels}
        # a new dict, in the order that came
        return {k: new[k] if k in new else _extended(v, rows, len(images)) for k, v in batch.items()}

    return Batch(images, _tensor(label, batch[label]), patients, rebuild)


def _extended(value: Any, rows: Tensor | None, n: int) -> Any:
    """An entry with `rows` of it added, if it has one for each of the n images; otherwise as it came."""
    if rows is None:
        return value
    if isinstance(value, Tensor) and value.ndim and len(value) == n:
        return torch.cat([value, value[rows.to(value.device)]])
    if isinstance(value, (list, tuple)) and len(value) == n and not hasattr(value, "_fields"):
        return type(value)([*value, *(value[i] for i in rows.tolist())])
    return value


def find_key(batch: Mapping[str, Any], what: str, accepted: tuple[str, ...]) -> str:
    found = [k for k in accepted if k in batch]
    if len(found) != 1:
        raise ValueError(
            f"{what}: the dict has the keys {list(batch)}, of which exactly one must be among {accepted}; found {found}"
        )
    return found[0]


def _tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name}: got {type(value).__name__}, accepted is a batched torch.Tensor; call the transform on a batch, "
            "after collating (in the loop, or as collate_fn), not on single PIL or numpy images"
        )
    return value


def class_indices(labels: Tensor, rows: int, n_classes: int) -> tuple[Tensor, bool]:
    """Labels as (B,) int64 indices, and whether they came one-hot.

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
