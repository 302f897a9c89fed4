"""Weights in files: a folder with ``model.safetensors`` and ``config.json``, strict in both directions.

A name is looked for among the bundled weights, then as a local folder, then on the Hugging Face Hub.
A pickle is never loaded, and a file that does not fit is an error, not a half-loaded model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kecae_aug.engine.model import KECAE, KECAEConfig
from kecae_aug.files import save_tensors, write_whole
from kecae_aug.names import class_names
from kecae_aug.weights.sources import CONFIG_FILE, WEIGHTS_FILE, WeightsError, bundled_weights, find_weights

__all__ = ["WeightsError", "bundled_weights", "load_weights", "save_weights", "weights_sha256"]

FORMAT = "kecae-aug"
FORMAT_VERSION = 1
VALUE_RANGE = (-1.0, 1.0)  # of the images that every KECAE reads and writes
STORED_DTYPES = (torch.float32, torch.float16)
_AS_FLOAT32 = (torch.float32, torch.float16, torch.bfloat16)


def weights_sha256(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """The one hash of weights: SHA-256 (hex) over sorted tensor names, dtypes, shapes and bytes, as they are stored.

    It depends on the values only: not on the device, on the order of the tensors, or on where they came from. Kernels that
    float16 holds without a change are hashed as float16, all else as float32, so that weights have one hash in their file,
    in memory, and in banks, manifests, cards and figures; one changed weight gives another.

    Args:
        weights: a module (its state dict) or a mapping from names to tensors.
    """
    return _sha256(_as_hashed(weights.state_dict() if isinstance(weights, nn.Module) else weights))


def hashes(model: nn.Module) -> tuple[str, str]:
    """:func:`weights_sha256`, and the hash of the float32 tensors, which banks of before hold in its place."""
    tensors = model.state_dict()
    changed = _as_hashed(tensors)
    same = all(changed[name].dtype == tensor.dtype for name, tensor in tensors.items())
    first = _sha256(changed)
    return first, first if same else _sha256(tensors)


def _as_hashed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    floats = {name: t.detach().float() for name, t in tensors.items() if t.dtype in _AS_FLOAT32}
    kernels = {name: t for name, t in floats.items() if t.ndim > 1}
    if all(torch.equal(kernel.half().float(), kernel) for kernel in kernels.values()):
        floats |= {name: kernel.half() for name, kernel in kernels.items()}
    return {**tensors, **floats}


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {_dtype_name(tensor.dtype)} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(
    model: KECAE,
    folder: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> Path:
    """Write ``model.safetensors`` and ``config.json`` into ``folder``, which is made if need be.

    Each file is written beside its place and then moved there; ``config.json`` repeats the tensors' hash,
    so that a pair torn by a crash is refused by :func:`load_weights`.

    Args:
        model: the model; not changed.
        folder: where to write.
        metadata: JSON-able facts about the weights (preprocessing, losses, data fingerprint, ...).
        dtype: ``torch.float32``, or ``torch.float16`` for half the size: then convolution kernels are
            stored as float16, while the vectors (biases, BatchNorm statistics) stay float32.
        overwrite: whether weights that are already in ``folder`` may be replaced.

    Returns:
        The folder.

    Raises:
        FileExistsError: there are weights in ``folder`` already.
        ValueError, TypeError: an argument that cannot be stored, or weights that are not finite.
    """
    if not isinstance(model, KECAE):
        raise TypeError(
            f"model: got {type(model).__name__}, accepted is a KECAE (unwrap DDP or torch.compile)"
        )
    if dtype not in STORED_DTYPES:
        raise ValueError(f"dtype={dtype}: accepted are {', '.join(map(str, STORED_DTYPES))}")
    folder = Path(folder)
    present = [name for name in (WEIGHTS_FILE, CONFIG_FILE) if (folder / name).exists()]
    if present and not overwrite:
        raise FileExistsError(
            f"folder={str(folder)!r} already holds {' and '.join(present)}: "
            "take another folder, or pass overwrite=True to replace them"
        )
    tensors = {name: _stored(name, tensor, dtype) for name, tensor in model.state_dict().items()}
    sha256 = weights_sha256(tensors)
    config = {"format_version": FORMAT_VERSION, "sha256": sha256, "model": model.config.to_dict()}
    try:
        text = json.dumps({**config, "metadata": dict(metadata)}, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"metadata: {error}; accepted is what JSON can hold, NaN and infinity excluded"
        ) from error

    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder / WEIGHTS_FILE, _header(model.config, sha256, dtype))
    write_whole(folder / CONFIG_FILE, text + "\n")
    return folder


def load_weights(
    weights: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    device: str | torch.device = "cpu",
) -> KECAE:
    """A model with trained weights: in eval mode, float32, without gradients.

    Args:
        weights: a bundled name (:func:`bundled_weights` lists them), a local folder as written by
            :func:`save_weights`, or a Hub id ``owner/name``; looked for in this order. A ``Path`` is
            always local, and so is a string that starts with ``.``, ``/`` or ``~``.
        revision: branch, tag or commit of the Hub repository; a commit is the reproducible choice.
        cache_dir: where the Hub client keeps what it downloads; its own default otherwise.
        token: for private Hub repositories.
        local_files_only: take the Hub files from the cache only, without network.
        force_download: fetch the Hub files again, although they are in the cache.
        device: where the model goes.

    Returns:
        The model. ``model.metadata`` is what :func:`save_weights` was given, and under ``"weights"`` the
        source, the stored dtype and the hash (and for the Hub the commit).

    Raises:
        WeightsError: nothing of this name, or files that are missing, truncated, of another format,
            altered, or that do not fit the model. No random number is drawn, no pickle is read.
    """
    with find_weights(weights, revision, cache_dir, token, local_files_only, force_download) as (
        config,
        tensors,
        source,
    ):
        return _read(config, tensors, device, source)


def _read(config_path: Path, weights_path: Path, device: str | torch.device, source: dict[str, str]) -> KECAE:
    """Both files -> model, or a :class:`WeightsError` that says what is wrong with which file."""
    where = f"weights {source['source']!r}"
    for path in (config_path, weights_path):
        if not path.is_file():
            found = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
            raise WeightsError(
                f"{where}: {path.name} is missing; accepted is a folder with {WEIGHTS_FILE} and {CONFIG_FILE}, "
                f"as written by save_weights; found here: {found[:8]}. Pickles (.pt, .bin, .ckpt) are never loaded."
            )
    try:
        document = json.loads(config_path.read_text(encoding="utf-8"))
        version, sha256 = document["format_version"], document["sha256"]
        values, metadata = document["model"], dict(document["metadata"])
        if "preparation" in metadata:  # its name in weights of before
            metadata["preprocessing"] = metadata.pop("preparation")
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{where}: {CONFIG_FILE} is not one that save_weights wrote ({type(error).__name__}: {error}); "
            "get the folder again, or save the model with save_weights"
        ) from error
    _check_version(where, CONFIG_FILE, version)
    try:
        config = KECAEConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{where}: {CONFIG_FILE}: {error}") from error

    tensors, header = _read_tensors(where, weights_path)
    _check_version(where, WEIGHTS_FILE, header.get("format_version"))
    stored = {t.dtype for t in tensors.values() if t.ndim > 1}
    expected = _header(config, sha256, *stored) if len(stored) == 1 else {"dtype": "of one kind"}
    for key in sorted(expected):
        there = header.get(key)
        if key == "classes":
            there = _spelt_as_now(there)
        if there != expected[key]:
            raise WeightsError(
                f"{where}: the header of {WEIGHTS_FILE} has {key}={header.get(key)!r}, its tensors and {CONFIG_FILE} "
                f"have {expected[key]!r}: the two files are not from the same save, or damaged; get or save both again"
            )
    actual = weights_sha256(tensors)
    again = (
        " with force_download=True, since the Hub client's cache has kept it" if "revision" in source else ""
    )
    if sha256 not in (actual, _sha256(tensors)):  # the latter in float32 files of before that hold halves
        raise WeightsError(
            f"{where}: the tensors in {WEIGHTS_FILE} have sha256 {actual[:12]}..., its header says "
            f"{sha256[:12]}...: the file was altered or damaged; get it again{again}"
        )
    with torch.device("meta"):  # shapes only: no memory, no random numbers
        model = KECAE(config)
    _check_tensors(where, tensors, model.state_dict())
    model.load_state_dict({name: _loaded(t, device) for name, t in tensors.items()}, strict=True, assign=True)
    model.metadata = {**metadata, "weights": {**source, "sha256": actual, "dtype": header["dtype"]}}
    return model.eval().requires_grad_(False)


def _read_tensors(where: str, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{where}: {path.name} ({path.stat().st_size} bytes) is not a whole safetensors file ({error}): "
            "truncated, or of another format; get it again. Pickles are never loaded, whatever their name."
        ) from error


def _check_version(where: str, file: str, version: object) -> None:
    if str(version) != str(FORMAT_VERSION):
        raise WeightsError(
            f"{where}: {file} has format_version={version!r}, accepted is {FORMAT_VERSION}: "
            "written by another version of kecae-aug (upgrade it), or not by save_weights"
        )


def _check_tensors(where: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    problems = [f"missing {name}" for name in sorted(set(wanted) - set(found))]
    problems += [f"unexpected {name}" for name in sorted(set(found) - set(wanted))]
    for name in sorted(set(wanted) & set(found)):
        have, want = found[name], wanted[name]
        if have.shape != want.shape:
            problems.append(f"{name} has shape {tuple(have.shape)}, the model's is {tuple(want.shape)}")
        elif have.is_floating_point() != want.is_floating_point():
            problems.append(f"{name} is {have.dtype}, the model's is {want.dtype}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(
            f"{where}: {WEIGHTS_FILE} does not fit the model of {CONFIG_FILE}: "
            f"{'; '.join(problems[:5])}{more}"
        )


def _header(config: KECAEConfig, sha256: str, dtype: torch.dtype) -> dict[str, str]:
    """Metadata of the safetensors file, which holds strings only."""
    return {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "classes": json.dumps(list(config.classes)),
        "value_range": json.dumps(VALUE_RANGE),
        "image_size": str(config.image_size),
        "sha256": sha256,
        "dtype": _dtype_name(dtype),
    }


def _spelt_as_now(classes: str | None) -> str | None:
    """The header's class names as :mod:`kecae_aug.names` spells them; what is no such list as it is, to be refused."""
    try:
        return json.dumps(list(class_names(json.loads(str(classes)))))
    except (ValueError, TypeError):
        return classes


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """What goes into the file: CPU, contiguous, kernels in ``dtype``, other floats in float32."""
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return tensor
    stored = tensor.to(dtype if tensor.ndim > 1 else torch.float32)
    if not bool(stored.isfinite().all()):
        raise ValueError(f"model: {name} is not finite as {stored.dtype}; a diverged run has nothing to save")
    return stored


def _loaded(tensor: Tensor, device: str | torch.device) -> Tensor:
    # copy: what safetensors returns may still be mapped to the file
    return tensor.to(device, torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
