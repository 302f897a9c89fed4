"""What a map-style Dataset of somebody else's says about itself: targets, patients, classes, items."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from kecae_aug._batch import IMAGE_KEYS, LABEL_KEYS, find_key


def attribute(dataset: Any, name: str) -> list[Any] | None:
    """A list with an entry a row (``targets``, ``patients``), also through Subset and ConcatDataset."""
    if isinstance(dataset, Subset):
        inner = attribute(dataset.dataset, name)
        return None if inner is None else [inner[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [attribute(part, name) for part in dataset.datasets]
        return None if any(p is None for p in parts) else [v for p in parts for v in p or []]
    values = getattr(dataset, name, None)
    if values is None:
        return None
    return values.tolist() if hasattr(values, "tolist") else list(values)


def innermost(dataset: Any) -> Any:
    """The data set under Subset and ConcatDataset (the first of these)."""
    while isinstance(dataset, (Subset, ConcatDataset)):
        dataset = dataset.dataset if isinstance(dataset, Subset) else dataset.datasets[0]
    return dataset


def class_names(dataset: Any, classes: Sequence[str | int] | None) -> tuple[str, ...]:
    """Names of the classes, in the order of their indices."""
    found = getattr(innermost(dataset), "classes", None) if classes is None else classes
    if found is None:
        raise ValueError(
            f"classes: {type(dataset).__name__} has no .classes; give their names in the order of the label indices, "
            "for instance classes=('0', '2')"
        )
    return tuple(str(c) for c in found)


def targets(dataset: Any, n_classes: int) -> list[int]:
    """Class index of every row: ``dataset.targets``, or read item by item where it has none."""
    found = attribute(dataset, "targets")
    rows = [item(dataset, i)[1] for i in range(len(dataset))] if found is None else found
    out = []
    for i, value in enumerate(rows):
        label = value.item() if isinstance(value, Tensor) and value.ndim == 0 else value
        if not hasattr(label, "__index__") or isinstance(label, bool) or not 0 <= int(label) < n_classes:
            raise ValueError(
                f"labels: row {i} has {value!r}, accepted are class indices from 0 to {n_classes - 1}"
            )
        out.append(int(label))
    if len(out) != len(dataset):
        raise ValueError(f"targets: {len(out)} for {len(dataset)} rows, accepted is one a row")
    return out


def patient_names(dataset: Any, patients: Sequence[Hashable] | None) -> list[str] | None:
    """Patient id of every row as text: as given, or ``dataset.patients``, or None."""
    found = attribute(dataset, "patients") if patients is None else list(patients)
    if found is not None and len(found) != len(dataset):
        raise ValueError(f"patients: got {len(found)} ids for {len(dataset)} rows, accepted is one id a row")
    return None if found is None else [str(p) for p in found]


def value_range_of(dataset: Any, given: tuple[float, float] | None) -> tuple[float, float]:
    """As given; what the data set declares, as those of this package do; (0, 1) otherwise."""
    if given is not None:
        return given
    declared: tuple[float, float] = getattr(innermost(dataset), "value_range", (0.0, 1.0))
    return declared


def item(dataset: Any, index: int) -> tuple[Tensor, Any]:
    """Image (C, H, W) and label of a row.

    Raises:
        TypeError: an item that is no pair, or whose image is no tensor.
        ValueError: an image of another rank.
    """
    return split_item(dataset[index], index)


def split_item(row: Any, index: int) -> tuple[Tensor, Any]:
    """Image and label of an item: (image, label, ...) or a dict."""
    if isinstance(row, Mapping):
        image, label = row[find_key(row, "image", IMAGE_KEYS)], row[find_key(row, "label", LABEL_KEYS)]
    elif isinstance(row, (tuple, list)) and len(row) >= 2:
        image, label = row[0], row[1]
    else:
        raise TypeError(
            f"dataset[{index}]: got {type(row).__name__}, accepted are (image, label) and "
            "{'image': image, 'label': label}"
        )
    if not isinstance(image, Tensor):
        raise TypeError(
            f"dataset[{index}]: its image is a {type(image).__name__}, accepted is a torch.Tensor (C, H, W); put "
            "v2.PILToTensor() (uint8) or v2.ToImage() into the data set's transform"
        )
    if image.ndim != 3:
        raise ValueError(
            f"dataset[{index}]: image of shape {tuple(image.shape)}, accepted is (1, H, W) or (3, H, W)"
        )
    return image.as_subclass(Tensor), label


def stacked(images: Sequence[Tensor]) -> Tensor:
    """Images of one shape as a batch."""
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(
            f"dataset: images of different shapes ({', '.join(map(str, sorted(shapes)))}); resize them in its transform"
        )
    return torch.stack(list(images))
