"""How a batch comes in and goes out: arguments, lists, tuples, dicts or any nesting of them, with images and labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from kecae_aug.names import patient_id

IMAGE_KEYS = ("image", "images", "img", "pixel_values")
LABEL_KEYS = ("label", "labels", "target", "targets")
PATIENT_KEYS = (
    "patient",
    "patients",
    "patientid",
    "patientids",
    "subject",
    "subjects",
    "subjectid",
    "subjectids",
    "pid",
)
WHAT_IS_ACCEPTED = (
    "accepted are (images, labels), [images, labels, patients] and {'image': images, 'label': labels}; for other nestings "
    "give labels_getter"
)


@dataclass
class Batch:
    """A parsed batch.

    ``rebuild(images, labels)`` puts new ones into the structure that came; ``rebuild(images, labels, rows)``
    also adds these rows again to every other entry that has a row for each image.

    Attributes:
        images: (B, C, H, W), as it came.
        labels: (B,) or (B, K), as it came.
        patients: one id a row, or None.
        ambiguous: two names of entries that would be the patients and group the rows differently, or None.
        unread: name and kind of an entry that is called like patients and has not one id a row, where none has; or None.
    """

    images: Tensor
    labels: Tensor
    patients: Any
    rebuild: Callable[..., Any]
    ambiguous: tuple[str, str] | None = None
    unread: str | None = None


def parse(
    inputs: tuple[Any, ...], patients: Any = None, labels_getter: Callable[[Any], Any] | None = None
) -> Batch:
    """Find images, labels and patients in what a transform was called with.

    Patients are what is given; in a list or tuple the third entry, where it has one id a row; else the entry, of a dict or a
    namedtuple at any depth, whose name is one of :data:`PATIENT_KEYS` (in any case, with or without ``_`` and ``-``).

    Raises:
        TypeError: another structure, or entries that are not tensors.
        ValueError: keys that are missing or ambiguous.
    """
    structure = inputs[0] if len(inputs) == 1 else inputs
    if labels_getter is not None:
        images, labels = _by_getter(structure, labels_getter)
    elif len(inputs) == 1 and isinstance(structure, Mapping):
        image, label = find_key(structure, "image", IMAGE_KEYS), find_key(structure, "label", LABEL_KEYS)
        images, labels = _tensor(image, structure[image]), _tensor(label, structure[label])
    elif len(inputs) == 2 or (len(inputs) == 1 and isinstance(structure, (list, tuple))):
        if len(structure) < 2:
            raise TypeError(
                f"batch: got a {type(structure).__name__} of {len(structure)}; {WHAT_IS_ACCEPTED}"
            )
        images, labels = _tensor("images", structure[0]), _tensor("labels", structure[1])
    elif len(inputs) == 1:
        raise TypeError(
            f"KeyExchangeAugment got a {type(structure).__name__} alone: it exchanges keys between knees of different "
            f"labels and needs the labels too; {WHAT_IS_ACCEPTED}"
        )
    else:
        raise TypeError(
            f"KeyExchangeAugment got {len(inputs)} arguments (patients go into patients=); {WHAT_IS_ACCEPTED}"
        )
    n = len(images) if images.ndim else 0
    ambiguous = unread = None
    if patients is None:
        patients, ambiguous, unread = _patients(structure, n)

    def rebuild(new_images: Tensor, new_labels: Tensor, rows: Tensor | None = None) -> Any:
        new = {id(images): new_images, id(labels): new_labels}
        if rows is None:
            return _replaced(structure, new)
        return _extended(structure, rows, n, new)

    return Batch(images, labels, patients, rebuild, ambiguous, unread)


def _by_getter(structure: Any, getter: Callable[[Any], Any]) -> tuple[Tensor, Tensor]:
    labels = _tensor("labels_getter", getter(structure))
    leaves = list(_leaves(structure))
    if not any(leaf is labels for leaf in leaves):
        raise ValueError(
            "labels_getter: gave a tensor that is not in the batch; accepted is one that returns an entry of it"
        )
    images = [leaf for leaf in leaves if isinstance(leaf, tv_tensors.Image)] or [
        leaf
        for leaf in leaves
        if isinstance(leaf, Tensor)
        and not isinstance(leaf, tv_tensors.TVTensor)
        and leaf.ndim == 4
        and leaf is not labels
    ]
    if len(images) != 1:
        raise ValueError(
            f"labels_getter: the batch has {len(images)} tensors (B, C, H, W) that could be its images, accepted is one; "
            "mark it as a tv_tensors.Image"
        )
    return images[0], labels


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _leaves(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _patients(structure: Any, n: int) -> tuple[Any, tuple[str, str] | None, str | None]:
    """The entry that has the patients, the names of two that disagree, and of one that cannot be read."""
    third = None if isinstance(structure, Mapping) else _ids(structure[2:3], n)
    if third is not None:
        return third, None, None
    named = [(name, value) for name, value in _named_patients(structure) if value is not None]
    found = [(name, ids) for name, value in named if (ids := _ids([value], n)) is not None]
    if not found:
        return None, None, f"{named[0][0]!r} ({_kind(named[0][1])})" if named and n else None
    first, *others = found
    wrong = next((name for name, ids in others if _groups(ids) != _groups(first[1])), None)
    return first[1], None if wrong is None else (first[0], wrong), None


def _ids(values: Any, n: int) -> Any:
    """The one entry of a list as n ids: (n,); (n, 1), as default_collate makes of ids in tensors, or one list in a list."""
    for value in values:
        if is_one_a_row(value, n):
            return value
        if isinstance(value, (Tensor, np.ndarray)) and tuple(value.shape) == (n, 1):
            return _ids([value.reshape(-1)], n)
        if isinstance(value, (list, tuple)) and len(value) == 1:
            return _ids(value, n)
    return None


def _kind(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    return type(value).__name__ + shape


def is_patient_key(name: Any) -> bool:
    """Whether an entry or attribute of this name holds patients, in any case, with or without ``_`` and ``-``."""
    return isinstance(name, str) and name.casefold().replace("_", "").replace("-", "") in PATIENT_KEYS


def _named_patients(batch: Any) -> Iterator[tuple[str, Any]]:
    """Entries with a name of a patient's, those of the top first."""
    named = batch._asdict() if hasattr(batch, "_asdict") else batch
    if isinstance(named, Mapping):
        yield from ((str(name), value) for name, value in named.items() if is_patient_key(name))
        for value in named.values():
            yield from _named_patients(value)
    elif isinstance(named, (list, tuple)):
        for value in named:
            if isinstance(value, (Mapping, list, tuple)):
                yield from _named_patients(value)


def is_one_a_row(value: Any, n: int) -> bool:
    """Whether a value has one id for each of n rows: (n,) integers or whole numbers, or n texts, integers or 0-d tensors."""
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        kind = getattr(value, "dtype", None)
        if tuple(value.shape) != (n,) or kind in (torch.bool, np.dtype(bool)):
            return False
        return not _is_float(kind) or all(v != v or float(v).is_integer() for v in value.tolist())
    if not isinstance(value, (list, tuple)) or hasattr(value, "_fields") or len(value) != n:
        return False
    return all(
        isinstance(v, (str, bytes, int, float, type(None), np.generic)) or getattr(v, "ndim", 1) == 0
        for v in value
    )


def _is_float(kind: Any) -> bool:
    return kind.is_floating_point if isinstance(kind, torch.dtype) else getattr(kind, "kind", "") == "f"


def _groups(values: Any) -> list[int]:
    """The rows by first occurrence of their id: equal where two columns group the rows alike."""
    known: dict[Any, int] = {}
    return [
        known.setdefault(patient_id(v), len(known))
        for v in (values.tolist() if hasattr(values, "tolist") else values)
    ]


def _replaced(value: Any, new: Mapping[int, Any]) -> Any:
    """The structure with some of its tensors replaced; what holds none of them is as it came."""
    if id(value) in new:
        return new[id(value)]
    if not any(id(leaf) in new for leaf in _leaves(value)):
        return value
    if isinstance(value, Mapping):
        return _mapping(value, {k: _replaced(v, new) for k, v in value.items()})
    return _sequence(value, [_replaced(v, new) for v in value])


def _extended(value: Any, rows: Tensor, n: int, new: Mapping[int, Any]) -> Any:
    """The structure with some tensors replaced, and `rows` added to whatever else has one for each of the n images."""
    if id(value) in new:
        return new[id(value)]
    if isinstance(value, Tensor):
        return with_rows(value, rows) if value.ndim and len(value) == n else value
    if isinstance(value, np.ndarray):
        # by index, not np.concatenate: masked and structured arrays stay what they are
        return value[np.r_[:n, rows.numpy()]] if value.ndim and len(value) == n else value
    if hasattr(value, "iloc"):  # pandas
        return value.iloc[[*range(n), *rows.tolist()]] if len(value) == n else value
    if isinstance(value, Mapping):
        return _mapping(value, {k: _extended(v, rows, n, new) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        holds = any(id(leaf) in new for leaf in _leaves(value))  # the images or labels: no list of rows
        if len(value) == n and not (holds or hasattr(value, "_fields") or _is_columns(value, n)):
            return _sequence(value, [*value, *(copy.copy(value[i]) for i in rows.tolist())])
        return _sequence(value, [_extended(v, rows, n, new) for v in value])
    return value


def _is_columns(values: Any, n: int) -> bool:
    """Whether n entries are columns of n rows each, as default_collate makes of n numbers or texts an image."""
    if all(isinstance(v, tuple) and len(v) == n and all(isinstance(s, str) for s in v) for v in values):
        return True
    return all(isinstance(v, (Tensor, np.ndarray)) and tuple(v.shape) == (n,) for v in values)


def _mapping(like: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    if type(like) is dict or not isinstance(like, MutableMapping):
        return values
    other = copy.copy(like)  # an OrderedDict, a BatchEncoding: with whatever else it holds
    other.update(values)
    return other


def _sequence(like: Any, values: list[Any]) -> Any:
    if hasattr(like, "_fields"):  # a namedtuple takes its fields one by one
        return type(like)(*values)
    return values if type(like) is list else type(like)(values)


def with_rows(value: Tensor, rows: Tensor) -> Tensor:
    """A tensor of B rows with these added, in the type, memory format and metadata that it came in."""
    plain = value.as_subclass(Tensor)
    return like(joined(plain, plain[rows.to(plain.device, non_blocking=True)]), value, rows)


def joined(first: Tensor, second: Tensor) -> Tensor:
    """``torch.cat`` that keeps channels_last."""
    out = torch.cat([first, second])
    last = torch.channels_last
    if first.ndim == 4 and first.is_contiguous(memory_format=last) and not first.is_contiguous():
        out = out.contiguous(memory_format=last)
    return out


def like(out: Tensor, value: Tensor, rows: Tensor | None = None) -> Tensor:
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
    if rows is not None:
        facts = {k: _extended(v, rows, len(value), {}) for k, v in facts.items()}
    other.__dict__.update(facts)
    return other


def find_key(batch: Mapping[str, Any], what: str, accepted: tuple[str, ...]) -> str:
    """The one key of a dict that is among those accepted."""
    found = [k for k in accepted if k in batch]
    if len(found) != 1:
        raise ValueError(
            f"{what}: the dict has the keys {list(batch)}, of which exactly one must be among {accepted}; found {found}. "
            "For other names give labels_getter, or rename the entries"
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


def to_cpu(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors of one device on the CPU by one transfer; floats as float32, everything else as int64."""
    if all(t.device.type == "cpu" for t in tensors):
        return tensors
    bits = [
        t.float().view(torch.int32) if t.is_floating_point() else t for t in (t.contiguous() for t in tensors)
    ]
    flat = torch.cat([b.flatten().long() for b in bits]).cpu()
    parts = flat.split([t.numel() for t in tensors])
    return [
        (part.to(torch.int32).view(torch.float32) if t.is_floating_point() else part).view(t.shape)
        for part, t in zip(parts, tensors, strict=True)
    ]
