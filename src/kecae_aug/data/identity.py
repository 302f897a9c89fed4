"""What a data set is, part by part, so that a cache of another one is refused with what differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from kecae_aug.data.parts import (
    find_link,
    find_parts,
    image_of,
    is_plain,
    name_of,
    targets_of,
    to_scalar,
    unwrap,
)


def identity(dataset: Any) -> dict[str, str]:
    """What a cache of a data set depends on, by name.

    A data set's own ``identity()`` or ``fingerprint()`` is taken where it has one; of others hashes of their labels and
    of three images. A Subset adds its rows, a ConcatDataset has those of its parts, and a wrapper of somebody's own adds
    labels and images as they come out of it.
    """
    if callable(own := getattr(dataset, "identity", None)):
        return {str(k): v if isinstance(v, str) else json.dumps(v, default=str) for k, v in own().items()}
    if callable(own := getattr(dataset, "fingerprint", None)):
        return {"fingerprint": str(own())}
    if isinstance(dataset, ConcatDataset):
        each = enumerate(dataset.datasets)
        return {f"part {i} {name}": value for i, part in each for name, value in identity(part).items()}
    inner = unwrap(dataset)
    found = {} if inner is None else identity(inner)
    if inner is not None and (link := find_link(dataset, inner)) is not None and not isinstance(link, range):
        found["rows"] = _digest([*_texts(found.get("rows")), json.dumps(link)])
    if is_plain(dataset):
        return found
    known = targets_of(dataset)
    labels = None if known is None else [str(to_scalar(value)) for value in known]
    if (way := preprocessing_of(dataset)) is not None:
        found["preprocessing"] = json.dumps(way)
    own_hashes = {
        "labels": _digest([json.dumps([len(dataset), labels])]),
        "images": _digest(_three_images(dataset)),
    }
    return found | ({} if inner is None else {"wrapper": name_of(dataset)}) | own_hashes


def preprocessing_of(dataset: Any) -> dict[str, Any] | None:
    """Its ``preprocessing`` by field, as this package's sets have one."""
    way = getattr(dataset, "preprocessing", None)
    return asdict(way) if is_dataclass(way) and not isinstance(way, type) else None


def other_preprocessing(old: Mapping[str, str] | None, new: Any) -> str:
    """What differs in the preprocessing of an :func:`identity`, and of another one or of a data set; no file is read.

    Empty where nothing differs, or one of them has none to compare.
    """
    ways = []
    for one in (old or {}, new):
        if isinstance(one, Mapping):
            ways.append(next((_parse_dict(v) for k, v in one.items() if k.endswith("preprocessing")), None))
        else:
            found = (part.value for part in find_parts(one, preprocessing_of))
            ways.append(_parse_dict(json.dumps(next((way for way in found if way is not None), None))))
    before, after = ways
    return "" if before is None or after is None else differences(before, after)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """``preprocessing: mirror_right was False, now True; ...``; empty where nothing differs."""
    said = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        inside = (_parse_dict(before), _parse_dict(after))
        if inside[0] is not None and inside[1] is not None:
            said.append(f"{key}: {differences(inside[0], inside[1])}")
        else:
            said.append(f"{key} was {_short(before)}, now {_short(after)}")
    return "; ".join(said)


def _parse_dict(value: object) -> dict[str, Any] | None:
    """A dict, also as the JSON of one."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _short(value: object) -> str:
    """A hash is cut, everything else is shown whole."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else repr(value)


def _three_images(dataset: Any) -> Iterable[bytes]:
    n = len(dataset)
    for row in sorted({0, n // 2, n - 1}) if n else ():
        image = image_of(dataset[row])
        if not isinstance(image, Tensor):  # under a wrapper that makes tensors of them
            yield np.asarray(image).tobytes() if hasattr(image, "__array__") else repr(image).encode()
            continue
        image = image.as_subclass(Tensor).detach().cpu().contiguous()
        yield f"{image.dtype} {tuple(image.shape)}".encode()
        yield image.view(-1).view(torch.uint8).numpy().tobytes()


def _texts(value: str | None) -> list[str]:
    return [] if value is None else [value]


def _digest(pieces: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.encode() if isinstance(piece, str) else piece)
    return digest.hexdigest()
