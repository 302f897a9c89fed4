"""The files of a LatentBank: its manifest, and the shards that a build writes and goes on with."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from kecae_aug.data.attributes import patient_names
from kecae_aug.data.classes import labels_of
from kecae_aug.data.identity import differences, identity, other_preprocessing
from kecae_aug.data.parts import split_item, stack_images
from kecae_aug.data.splits import PatientOverlapError, check_disjoint
from kecae_aug.device import cpu_by_default
from kecae_aug.engine.exchange import Exchanger
from kecae_aug.engine.intensity import Intensity
from kecae_aug.engine.model import KECAE
from kecae_aug.files import list_visible, save_tensors, write_whole

FORMAT = "kecae-aug-bank"
VERSION = 1
MANIFEST = "bank.json"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class BankError(ValueError):
    """A bank that cannot be opened, trusted or built; the message says why, and the way out."""


@dataclass(frozen=True)
class BankPart:
    """Rows that one data set gave.

    Attributes:
        data: hash of ``identity``; of banks of before, the data set's own fingerprint.
        rows_a_shard: rows of every shard but the last.
        labels: class name of every row.
        patients: id of every row, None for one without; or None where the set has none.
        identity: what the rows depend on (:func:`kecae_aug.data.identity.identity`); None in banks of before.
    """

    data: str
    rows_a_shard: int
    labels: list[str]
    patients: list[str | None] | None
    identity: dict[str, str] | None = None

    @property
    def shards(self) -> int:
        """How many files."""
        return -(-len(self.labels) // self.rows_a_shard)

    def indices(self, shard: int) -> range:
        """Indices in this part of the images of a shard."""
        first = shard * self.rows_a_shard
        return range(first, min(first + self.rows_a_shard, len(self.labels)))


def shard_path(folder: Path, part: int, shard: int) -> Path:
    """File of a shard."""
    return folder / f"shard-{part:03d}-{shard:05d}.safetensors"


def missing_shards(folder: Path, parts: Sequence[BankPart]) -> list[Path]:
    """Files that a bank of these parts still lacks."""
    paths = (shard_path(folder, p, s) for p, part in enumerate(parts) for s in range(part.shards))
    return [path for path in paths if not path.is_file()]


def read_manifest(folder: Path) -> dict[str, Any]:
    """``bank.json``, checked."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BankError(
            f"bank {str(folder)!r}: no {MANIFEST} there; accepted is a folder that LatentBank.build wrote"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = (manifest["format"], manifest["version"])
        parts_of(manifest)
        for key in ("weights_sha256", "classes", "exchangeable", "dtype", "residual", "intensity"):
            manifest[key]
    except (ValueError, KeyError, TypeError) as error:
        raise BankError(
            f"bank {str(folder)!r}: {MANIFEST} is not one that LatentBank.build wrote ({type(error).__name__}: {error})"
        ) from error
    if found != (FORMAT, VERSION):
        raise BankError(
            f"bank {str(folder)!r}: format {found}, accepted is {(FORMAT, VERSION)}; build it with this version"
        )
    return manifest


def parts_of(manifest: dict[str, Any]) -> list[BankPart]:
    """The parts of a manifest."""
    return [BankPart(**part) for part in manifest["parts"]]


def fingerprint(manifest: dict[str, Any]) -> str:
    """Hash of everything that decides what the rows are."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


@dataclass
class BuildConfig:
    """Arguments of :meth:`LatentBank.build <kecae_aug.LatentBank.build>` that are not the data or the model."""

    classes: Sequence[str | int] | None
    patients: Sequence[Hashable] | None
    exclude_patients: Iterable[Hashable]
    intensity: Intensity
    dtype: torch.dtype
    residual: bool
    shard_rows: int
    batch_size: int
    num_workers: int
    device: torch.device
    rank: int
    world_size: int
    wait: float
    append: bool
    progress: bool

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype}: accepted are {', '.join(map(str, DTYPES))}")
        for name in ("shard_rows", "batch_size", "world_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: accepted is 1 or more")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank={self.rank}: accepted are 0 to world_size - 1 = {self.world_size - 1}")


def build(folder: Path, dataset: Any, model: KECAE, config: BuildConfig) -> None:
    """Plan, or find the plan again, and write the shards of this rank that are not there yet."""
    if len(dataset) == 0:
        raise ValueError("dataset: is empty; a bank needs at least one image")
    exchanger = Exchanger(model)
    names, targets = labels_of(dataset, config.classes)
    part = _part(dataset, names, targets, config)
    if not set(part.labels) & set(exchanger.config.classes):
        raise BankError(
            f"classes: the data set's rows are of {sorted(set(part.labels))}, and these weights exchange "
            f"{exchanger.config.classes}: no row could ever be given. If they are the same grades by other names, give "
            "classes= in the order of the label indices"
        )
    refuse_patients(str(folder), part.patients, config.exclude_patients)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "weights_sha256": exchanger.sha256,
        "weights": exchanger.metadata.get("weights", {}).get("source", ""),
        "classes": list(names),
        "exchangeable": [c for c in exchanger.config.classes if c in names],
        "dtype": str(config.dtype).removeprefix("torch."),
        "residual": config.residual,
        "intensity": asdict(config.intensity),
        "image_size": exchanger.config.image_size,
        "latent_shape": exchanger.config.latent_shape,
    }
    manifest = json.loads(json.dumps(manifest))  # tuples become lists, as in the file it is compared with
    number = _plan(folder, manifest, part, config.append)
    exchanger.fast.to(config.device)
    for shard in range(config.rank, part.shards, config.world_size):
        path = shard_path(folder, number, shard)
        if path.is_file():
            continue
        with cpu_by_default():
            tensors = _encode(dataset, part.indices(shard), exchanger, config)
        save_tensors(tensors, path, {"format": FORMAT, "weights_sha256": exchanger.sha256})
        if config.progress:
            print(f"{path.name}: {shard + 1} of {part.shards} shards", flush=True)
    end = time.monotonic() + config.wait
    paths = [shard_path(folder, number, shard) for shard in range(part.shards)]
    while time.monotonic() < end and not all(path.is_file() for path in paths):  # other processes make them
        time.sleep(0.2)


def refuse_patients(where: str, patients: Sequence[str | None] | None, excluded: Iterable[Hashable]) -> None:
    """An excluded patient in a bank, or a bank that cannot tell, is an error."""
    if isinstance(excluded, (str, bytes)):
        raise ValueError(f"exclude_patients={excluded!r}: accepted is a list of ids, such as [{excluded!r}]")
    names = list(excluded)
    if not names:
        return
    if patients is None or None in patients:
        missing = (
            "have no patients" if patients is None else f"have no patients in {patients.count(None)} cases"
        )
        raise BankError(
            f"bank {where!r}: exclude_patients was given, but its rows {missing}, so that no overlap could be "
            "seen; build it with patients="
        )
    try:
        check_disjoint(bank=[str(p) for p in patients], excluded=names)
    except PatientOverlapError as error:
        raise BankError(f"bank {where!r}: {error}") from error


def _part(dataset: Any, names: tuple[str, ...], targets: list[int], config: BuildConfig) -> BankPart:
    patients = patient_names(dataset, config.patients, warn=False)  # the bank warns when it is opened
    facts = identity(dataset)
    data = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return BankPart(data, config.shard_rows, [names[t] for t in targets], patients, facts)


def _plan(folder: Path, manifest: dict[str, Any], part: BankPart, append: bool) -> int:
    """Write the manifest, or see that the one that is there is ours; the number of our part."""
    path = folder / MANIFEST
    if not path.exists():
        if found := list_visible(folder):
            raise BankError(
                f"bank {str(folder)!r}: the folder holds {found[:5]} and no {MANIFEST}; nothing of others is written to, "
                "take an empty folder"
            )
        write_whole(path, json.dumps({**manifest, "parts": [asdict(part)]}))
        return 0
    there = read_manifest(folder)
    parts = parts_of(there)
    if any(p.identity is None for p in parts):
        raise BankError(
            f"bank {str(folder)!r}: was built before banks wrote down their data's preprocessing, so that no build can "
            "go on with it; LatentBank(folder) opens it as it is, or take another folder"
        )
    differ = [k for k, v in manifest.items() if there.get(k) != v]
    if differ:
        shown = "; ".join(f"{k} is {_short(there.get(k))}, asked for {_short(manifest[k])}" for k in differ)
        raise BankError(
            f"bank {str(folder)!r}: is another one: {shown}; take another folder, or the same arguments to go on"
        )
    if part in parts:
        number = parts.index(part)
        if append and not missing_shards(folder, parts):
            raise BankError(
                f"bank {str(folder)!r}: this data set is in it already (part {number}); nothing was added"
            )
        return number
    if not append:
        what = find_difference(parts, part)
        raise BankError(
            f"bank {str(folder)!r}: is of other data ({what}); take another folder, or append=True to add to it"
        )
    if what := other_preprocessing(parts[0].identity, part.identity or {}):
        raise BankError(
            f"bank {str(folder)!r}: its images were preprocessed differently ({what}); prepare the new ones alike, or build "
            "another bank"
        )
    if missing := missing_shards(folder, parts):
        raise BankError(
            f"bank {str(folder)!r}: {len(missing)} shards of an earlier build are not there yet; finish that one first"
        )
    write_whole(path, json.dumps({**there, "parts": [*there["parts"], asdict(part)]}))
    return len(parts)


def find_difference(parts: Sequence[BankPart], part: BankPart) -> str:
    """What tells a part from the nearest of those that are there."""
    new = _facts(part)
    old = min(map(_facts, parts), key=lambda facts: sum(facts.get(k) != v for k, v in new.items()))
    return differences(old, new) or "other shard_rows"


def _facts(part: BankPart) -> dict[str, str]:
    hashed = {name: getattr(part, name) for name in ("labels", "patients")}
    digests = {k: hashlib.sha256(json.dumps(v).encode()).hexdigest() for k, v in hashed.items()}
    return {"number of rows": str(len(part.labels)), **(part.identity or {}), **digests}


@torch.no_grad()
def _encode(dataset: Any, rows: range, exchanger: Exchanger, config: BuildConfig) -> dict[str, Tensor]:
    """Tensors of a shard."""
    parts: dict[str, list[Tensor]] = {"key": [], "non_key": []}
    for images in _read_batches(dataset, rows, config):
        config.intensity.check(images)
        knees = config.intensity.to_engine(images.to(config.device))
        key, non_key = exchanger.encode_key(knees), exchanger.encode_non_key(knees)
        parts["key"].append(_to_stored(key, config.dtype))
        parts["non_key"].append(_to_stored(non_key, config.dtype))
        if config.residual:
            reconstruction = exchanger.on(knees.device).decode(key + non_key)
            residual = exchanger.fit(knees) - reconstruction
            parts.setdefault("residual", []).append(_to_stored(residual, config.dtype))
    return {name: torch.cat(values) for name, values in parts.items()}


def _read_batches(dataset: Any, rows: range, config: BuildConfig) -> Iterator[Tensor]:
    loader: DataLoader[Any] = DataLoader(
        Subset(dataset, rows), config.batch_size, num_workers=config.num_workers, collate_fn=_collate_images
    )
    yield from loader


def _collate_images(items: list[Any]) -> Tensor:
    return stack_images([split_item(row, i)[0] for i, row in enumerate(items)])


def _to_stored(values: Tensor, dtype: torch.dtype) -> Tensor:
    stored = values.cpu().to(dtype).contiguous()
    if not bool(stored.isfinite().all()):
        raise ValueError(f"dtype={dtype}: a latent is beyond its range; take bfloat16 or float32")
    return stored


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
