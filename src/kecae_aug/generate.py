"""X' on disk: exchanged knees as a folder for each grade, or as WebDataset shards, with a manifest.

    kecae-aug generate --data DIR --split train --out exchanged/ -n 100000

The pairs are cut into units of work. What a unit holds depends on the plan (``generate.json``) alone, and a
unit is done when its manifest is there, which is written last. So a killed run goes on with nothing lost and
nothing doubled, and any number of processes can share one run.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from kecae_aug.data.attributes import attribute, roots_of
from kecae_aug.data.identity import differences, identity
from kecae_aug.dataset import KeyExchangeDataset, Provenance
from kecae_aug.engine.intensity import Intensity
from kecae_aug.files import list_visible, remove_abandoned, replacing, write_whole
from kecae_aug.gate import Gate

PLAN = "generate.json"
MANIFEST = "manifest.jsonl"
VERSION = 1


class GenerateError(ValueError):
    """A folder that is not ours, or of another plan; the message says which, and the way out."""


@dataclass(frozen=True)
class Entry:
    """One line of the manifest.

    Attributes:
        index: of the pair.
        file: below the output folder (for WebDataset ``shard.tar/name``); None if the gate rejected it.
        host, donor: file, or row where the set has no files, that gave the non-key and the key.
        host_label, donor_label: their class names.
        label: class name of the exchanged knee.
        strength: fraction of the donor's key.
        oracles: probability of the new label by each oracle of the gate.
        distance: mean absolute difference to the host, of the full grey range; None without a gate. Of a bank
            alone without residuals, to what the weights make of the host (X^).
        weights: hash of the weights, see :func:`kecae_aug.weights.io.weights_sha256`.
    """

    index: int
    file: str | None
    host: str | int
    donor: str | int
    host_label: str
    donor_label: str
    label: str
    strength: float
    oracles: list[float]
    distance: float | None
    weights: str


def generate(
    dataset: KeyExchangeDataset,
    out: str | os.PathLike[str],
    *,
    format: Literal["folder", "webdataset"] = "folder",
    gate: Gate | None = None,
    unit: int = 1000,
    batch_size: int = 64,
    rank: int = 0,
    world_size: int = 1,
    facts: dict[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> Path | None:
    """Write the exchanged knees of a data set, or go on with a run that was interrupted.

    Args:
        dataset: with ``real=False``; its ``n_pairs`` are made. 8-bit PNGs of its images are written.
        out: absent, empty, or the folder of an unfinished run of the same plan.
        format: ``"folder"`` writes ``<grade>/<index>.png``, which torchvision's ImageFolder reads;
            ``"webdataset"`` writes ``shard-<unit>.tar`` with ``<index>.png``, ``.cls`` (class index) and
            ``.json`` (the manifest's line).
        gate: rejected knees are not written; the manifest lists them with ``file`` null.
        unit: pairs a unit of work, and a shard.
        batch_size: knees decoded at once.
        rank: of this process, which makes every ``world_size``-th unit.
        world_size: how many processes share the run.
        facts: anything JSON-able that must be equal when a run goes on.
        say: gets a line of progress a unit.

    Returns:
        The manifest, or None where other ranks still work.

    Raises:
        GenerateError: a folder with other files, or another plan.
    """
    if dataset.n_pairs < 1 or len(dataset) != dataset.n_pairs:
        raise ValueError(
            "dataset: accepted is a KeyExchangeDataset(..., real=False) with n_pairs of 1 or more"
        )
    if dataset.transform is not None:
        raise ValueError(
            f"dataset: has a transform ({dataset.transform!r}), and the 8-bit files must hold the knees' own range: give "
            "transform=None here, and crop, flip and normalise where the files are read"
        )
    if format not in ("folder", "webdataset"):
        raise ValueError(f"format={format!r}: accepted are 'folder' and 'webdataset'")
    if unit < 1 or batch_size < 1 or not 0 <= rank < world_size:
        raise ValueError(
            f"unit={unit}, batch_size={batch_size}, rank={rank}, world_size={world_size}: accepted are 1 or more, and "
            "ranks below world_size"
        )
    if format == "folder":
        _check_folder_names(dataset.classes)
    run = _Run(dataset, Path(out), format, gate, unit, batch_size)
    run.plan(facts or {})
    mine = [u for u in range(rank, run.units, world_size) if not run.is_done(u)]
    start, made = time.monotonic(), 0
    for i, number in enumerate(mine):
        run.make(number)
        made += len(run.pairs(number))
        rate = made / (time.monotonic() - start)
        left = sum(len(run.pairs(u)) for u in mine[i + 1 :]) / rate
        say(f"unit {i + 1} of {len(mine)}: {made} pairs, {rate:.1f} a second, {left / 60:.1f} min left")
    if gate is not None and mine:
        say(gate.report())
    return run.merge()


def _check_folder_names(classes: Sequence[str]) -> None:
    """Refuse class names that would be other folders, or ones that readers pass over."""
    unsafe = [c for c in classes if c.startswith((".", "__")) or set(c) & set("/\\\0")]
    lower = [c.casefold() for c in classes]
    if unsafe or len(set(lower)) < len(lower):
        raise ValueError(
            f"dataset: its classes {unsafe or list(classes)} cannot be names of folders beside each other; rename them with "
            "classes=, or take format='webdataset'"
        )


class _Run:
    """One process's fraction of a run."""

    def __init__(
        self,
        dataset: KeyExchangeDataset,
        out: Path,
        format: str,
        gate: Gate | None,
        unit: int,
        batch_size: int,
    ) -> None:
        self.dataset, self.out, self.format, self.gate = dataset, out, format, gate
        self.unit, self.batch_size = unit, batch_size
        self.units = -(-dataset.n_pairs // unit)
        data = dataset.dataset
        self.paths = None if data is None else attribute(data, "paths")
        self.roots = [] if data is None else roots_of(data)

    def plan(self, facts: dict[str, Any]) -> None:
        """Write down what is made; or see that the plan that is there is this one."""
        data = self.dataset.dataset
        plan = {
            "kecae_aug_generate": VERSION,
            "pairs": self.dataset.n_pairs,
            "unit": self.unit,
            "format": self.format,
            **self.dataset.facts(),
            **{f"data: {k}": v for k, v in ({} if data is None else identity(data)).items()},
            "bank": None if self.dataset.bank is None else self.dataset.bank.fingerprint,
            "weights": self.dataset.weights_sha256,
            "gate": None if self.gate is None else repr(self.gate),
            **facts,
        }
        path = self.out / PLAN
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            wanted = json.loads(json.dumps(plan))
            if shown := differences(there, wanted):
                raise GenerateError(
                    f"out={str(self.out)!r}: holds another run: {shown}. Take another folder, or the same arguments to "
                    "go on"
                )
            return
        if found := list_visible(self.out):
            raise GenerateError(
                f"out={str(self.out)!r}: holds {found[:5]} and no {PLAN}; nothing of others is written to, take an empty "
                "folder"
            )
        write_whole(path, json.dumps(plan, indent=2))

    def pairs(self, number: int) -> range:
        """Indices of a unit."""
        return range(number * self.unit, min((number + 1) * self.unit, self.dataset.n_pairs))

    def part(self, number: int) -> Path:
        """Manifest of a unit; it is there when the unit is done."""
        return self.out / f"manifest-{number:05d}.jsonl"

    def is_done(self, number: int) -> bool:
        """Whether a unit, or the whole run, is finished."""
        return self.part(number).is_file() or (self.out / MANIFEST).is_file()

    def make(self, number: int) -> None:
        """Write a unit's images, then its manifest."""
        entries: list[Entry] = []
        if self.format == "folder":
            for entry, png in self._make_images(number):
                entries.append(entry)
                if entry.file is not None:
                    write_whole(self.out / entry.file, png)
        else:
            shard = self.out / f"shard-{number:05d}.tar"
            with replacing(shard) as temporary, tarfile.open(temporary, "w") as tar:
                for entry, png in self._make_images(number):
                    entries.append(entry)
                    if entry.file is not None:
                        _add_sample(tar, entry, png, self.dataset.classes.index(entry.label))
        write_whole(self.part(number), "".join(json.dumps(asdict(e)) + "\n" for e in entries))

    def merge(self) -> Path | None:
        """One manifest in place of the units', by whichever process finds all of them."""
        path = self.out / MANIFEST
        parts = [self.part(n) for n in range(self.units)]
        if not path.is_file():
            try:
                text = b"".join(part.read_bytes() for part in parts)
            except FileNotFoundError:  # others are at work, or another process has just merged
                return path if path.is_file() else None
            write_whole(path, text)
        for part in parts:  # their lines are in the manifest
            part.unlink(missing_ok=True)
        remove_abandoned(self.out)
        return path

    def _make_images(self, number: int) -> Iterator[tuple[Entry, bytes]]:
        """Entries and PNGs of a unit."""
        pairs = self.pairs(number)
        for first in range(pairs.start, pairs.stop, self.batch_size):
            indices = list(range(first, min(first + self.batch_size, pairs.stop)))
            images = torch.stack([item[0] for item in self.dataset.__getitems__(indices)])
            knees = self.dataset.to_engine(images)
            origins = [self.dataset.origin(i) for i in indices]
            labels = [self.dataset.classes[self.dataset.targets[i]] for i in indices]
            verdict = None
            if self.gate is not None:
                hosts = self.dataset.hosts([o.host for o in origins])
                verdict = self.gate.assess(knees, self.dataset.to_engine(hosts), labels)
                self.gate.count(verdict, labels)
            for j, (index, origin, label) in enumerate(zip(indices, origins, labels, strict=True)):
                entry = self._entry(number, index, origin, label)
                if verdict is not None:
                    entry["oracles"] = [round(float(p), 4) for p in verdict.probability[:, j]]
                    entry["distance"] = round(float(verdict.distance[j]), 5)
                    entry["file"] = entry["file"] if bool(verdict.accepted[j]) else None
                yield Entry(**entry), _png(knees[j])

    def _entry(self, number: int, index: int, origin: Provenance, label: str) -> dict[str, Any]:
        name = f"{index:08d}.png"
        file = f"{label}/{name}" if self.format == "folder" else f"shard-{number:05d}.tar/{name}"
        targets = self.dataset.class_indices
        return {
            "index": index,
            "file": file,
            "host": self._name(origin.host),
            "donor": self._name(origin.donor),
            "host_label": self.dataset.classes[targets[origin.host]],
            "donor_label": self.dataset.classes[targets[origin.donor]],
            "label": label,
            "strength": round(origin.strength, 6),
            "oracles": [],
            "distance": None,
            "weights": self.dataset.weights_sha256,
        }

    def _name(self, row: int) -> str | int:
        if self.paths is None:
            return row
        path = Path(self.paths[row])
        if len(self.roots) == 1 and path.is_relative_to(self.roots[0]):
            path = path.relative_to(self.roots[0])
        return path.as_posix()


def _png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    grey = Intensity().from_engine(
        image.mean(0).clamp(-1, 1), torch.uint8
    )  # a byte beyond its range would wrap
    Image.fromarray(grey.cpu().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def _add_sample(tar: tarfile.TarFile, entry: Entry, png: bytes, label: int) -> None:
    values = {"png": png, "cls": str(label).encode(), "json": json.dumps(asdict(entry)).encode()}
    for suffix, value in values.items():
        # no time, no owner: the same bytes in every run
        info = tarfile.TarInfo(f"{entry.index:08d}.{suffix}")
        info.size = len(value)
        tar.addfile(info, io.BytesIO(value))
