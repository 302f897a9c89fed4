"""LatentBank: hK and hN of a training set, encoded once; an exchanged knee then costs one decode and no image.

    bank = LatentBank.build(train_set, model, "bank/", exclude_patients=val_set.patients)
    augment = KeyExchangeAugment(model, bank=bank)

A bank is a folder: ``bank.json`` says what it is of (weights, data, classes), ``shard-*.safetensors`` hold the
rows. A shard is written beside its place and moved there when it is whole, so an interrupted build goes on
where it stopped, and several processes can share one build. Tensors are memory-mapped.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Hashable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import ConcatDataset

from kecae_aug._bank_files import (
    FORMAT,
    BankError,
    BuildConfig,
    build,
    fingerprint,
    missing_shards,
    parts_of,
    read_manifest,
    refuse_patients,
    shard_path,
)
from kecae_aug.data.attributes import value_range_of
from kecae_aug.data.identity import differences, identity
from kecae_aug.device import cpu_by_default
from kecae_aug.engine.intensity import Intensity
from kecae_aug.engine.model import KECAE
from kecae_aug.names import by_value, class_name, class_names, patient_ids, warn_of_missing
from kecae_aug.weights.io import hashes

__all__ = ["BankError", "LatentBank"]


class LatentBank:
    """Latents of a training set, opened for reading; made by :meth:`build`.

    Args:
        folder: a whole bank.
        model: the weights it must be of; by default they are not checked here, but by whoever decodes.
        exclude_patients: patients that must not be in it, such as those of the validation and test splits.

    Attributes:
        labels: class name of every row.
        patients: patient id of every row, None for one without (a patient of its own, of which a warning tells); or None
            where the set has none.
        classes: class names of the set.
        weights_sha256: of the weights, see :func:`kecae_aug.weights.io.weights_sha256`.
        exchangeable: class names among them that the weights exchange.
        intensity: how the grey values of its images were scaled.
        fingerprint: hex digest of weights, data (its files, preprocessing and classes) and options; a bank that is
            appended to has another one.

    Raises:
        BankError: not a bank, incomplete, damaged, of other weights, or with an excluded patient.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: KECAE | None = None,
        *,
        exclude_patients: Iterable[Hashable] = (),
    ) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        self.manifest = manifest
        self.classes: tuple[str, ...] = class_names(manifest["classes"])
        self.has_residuals: bool = manifest["residual"]
        self.weights_sha256: str = manifest["weights_sha256"]
        self.fingerprint = fingerprint(manifest)
        self.intensity = Intensity(**{k: v and tuple(v) for k, v in manifest["intensity"].items()})
        parts = parts_of(manifest)
        if missing := missing_shards(self.folder, parts):
            raise BankError(
                f"bank {str(self.folder)!r}: {len(missing)} shards are not there yet (first: {missing[0].name}); build it "
                "again with the same arguments, it goes on where it stopped"
            )
        shards = [(p, s) for p, part in enumerate(parts) for s in range(part.shards)]
        self._paths = [shard_path(self.folder, p, s) for p, s in shards]
        self._starts = [0, *accumulate(len(parts[p].indices(s)) for p, s in shards)][:-1]
        self.labels = [str(class_name(label)) for part in parts for label in part.labels]
        self.exchangeable = {str(class_name(c)) for c in manifest["exchangeable"]}
        if not self.exchangeable & set(self.labels):
            raise BankError(
                f"bank {str(self.folder)!r}: its rows are of {sorted(set(self.labels), key=by_value)}, of which its weights "
                f"exchange {sorted(self.exchangeable)}: no row could ever be given; build it again, with "
                "classes= that the weights know"
            )
        self.patients: list[str | None] | None = None
        if any(part.patients is not None for part in parts):
            self.patients = patient_ids(i for p in parts for i in (p.patients or [None] * len(p.labels)))
            warn_of_missing(self.patients, f"bank {str(self.folder)!r}")
        if model is not None:
            self.check_weights(*hashes(model))
        refuse_patients(str(self.folder), self.patients, exclude_patients)

    @classmethod
    def build(
        cls,
        dataset: Any,
        model: KECAE,
        folder: str | os.PathLike[str],
        *,
        classes: Sequence[str | int] | None = None,
        patients: Sequence[Hashable] | None = None,
        exclude_patients: Iterable[Hashable] = (),
        value_range: tuple[float, float] | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        dtype: torch.dtype = torch.float16,
        residual: bool = True,
        shard_rows: int = 1024,
        batch_size: int = 64,
        num_workers: int = 0,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world_size: int = 1,
        wait: float = 1800.0,
        append: bool = False,
        progress: bool = False,
    ) -> LatentBank:
        """Encode a data set, or go on with a build that was interrupted.

        Args:
            dataset: any map-style Dataset of (image, label) items: images (1 or 3, H, W) uint8 or float,
                labels integer class indices. Without random transforms: each image is read once.
            model: trained weights.
            folder: of the bank; absent, empty, or an unfinished build of the same arguments.
            classes: class names, see :class:`~kecae_aug.KeyExchangeDataset`; by default ``dataset.classes``.
            patients: one id a row; by default ``dataset.patients`` where it has them.
            exclude_patients: see the class; checked before anything is encoded.
            value_range: of float images; by default ``dataset.value_range``, which this package's sets have, or (0, 1).
            mean: see :class:`~kecae_aug.KeyExchangeAugment`.
            std: see ``mean``.
            dtype: of the stored latents: float16, bfloat16 or float32.
            residual: also store x - x^ at the model's size, so that ``detail="host"`` of a data set needs no image either;
                False saves that space where the bank only gives keys.
            shard_rows: rows a file.
            batch_size: images encoded at once.
            num_workers: of the DataLoader that reads them.
            device: that encodes.
            rank: of this process, which makes every ``world_size``-th shard; start one process for each.
            world_size: how many processes share the build.
            wait: seconds to wait for the shards of the other processes, once this one's are written.
            append: add this data set to a bank that is whole. No image may be in it twice, which is for the
                caller to see to; the classes must be the bank's.
            progress: print a line a shard.

        Returns:
            The bank.

        Raises:
            BankError: another bank, one of other data or preprocessing, or files of someone else's, in ``folder``; an
                excluded patient; classes none of which the weights know; shards of other processes that are missing
                after ``wait``.
            ValueError, TypeError: items or arguments that cannot be used.
        """
        config = BuildConfig(
            classes=classes, patients=patients, exclude_patients=exclude_patients,
            intensity=Intensity.of(value_range_of(dataset, value_range) if mean is None else (0.0, 1.0), mean, std),
            dtype=dtype, residual=residual, shard_rows=shard_rows, batch_size=batch_size, num_workers=num_workers,
            device=torch.device(device), rank=rank, world_size=world_size, wait=wait, append=append,
            progress=progress,
        )  # fmt: skip
        with cpu_by_default():  # the DataLoader's own draw too
            build(Path(folder), dataset, model, config)
        return cls(folder, model)

    def check_weights(self, sha256: str, *also: str) -> None:
        """Refuse to serve other weights than those it was encoded with.

        Args:
            sha256: of :func:`kecae_aug.weights.io.weights_sha256`.
            also: other hashes of the same weights, that older banks hold.
        """
        if self.weights_sha256 in also:
            self.weights_sha256 = sha256
        if self.weights_sha256 != sha256:
            raise BankError(
                f"bank {str(self.folder)!r}: encoded with weights {self.weights_sha256[:12]}, asked for {sha256[:12]}; "
                "latents of other weights decode to nonsense: build a bank with these weights"
            )

    def check_patients(self) -> None:
        """Refuse a bank without patients, where donors of other patients are wanted."""
        if self.patients is None:
            raise BankError(
                f"bank {str(self.folder)!r}: the batch has patients, the bank's rows have none, so that a patient could be "
                "its own donor unseen; build it with patients=, or give same_patient=True"
            )

    def check_data(self, dataset: Any) -> None:
        """Refuse a data set that is not the one that was encoded: other files, preprocessing or classes."""
        known = [part.get("identity") for part in self.manifest["parts"]]
        parts = dataset.datasets if len(known) > 1 and isinstance(dataset, ConcatDataset) else [dataset]
        now = [identity(part) for part in parts]
        if None in known:
            what = "it was built before banks wrote down their data's preprocessing"
        elif len(known) != len(now):
            what = f"it has {len(known)} parts, this one {len(now)}"
        else:
            what = "; ".join(
                said for old, new in zip(known, now, strict=True) if (said := differences(old, new))
            )
        if what:
            raise BankError(
                f"bank {str(self.folder)!r}: encoded from other data ({what}): the files, their split, their grades or "
                "their preprocessing have changed since; build the bank anew"
            )

    def keys(self, indices: Tensor) -> Tensor:
        """HK of indices (k,), (k, C, h, w) float32 on the CPU."""
        return self._read("key", indices)

    def non_keys(self, indices: Tensor) -> Tensor:
        """HN of indices (k,), (k, C, h, w) float32 on the CPU."""
        return self._read("non_key", indices)

    def residuals(self, indices: Tensor) -> Tensor:
        """X - x^ of indices (k,), (k, 1, S, S) float32 on the CPU, in the range -2 to 2."""
        if not self.has_residuals:
            raise BankError(f"bank {str(self.folder)!r}: has no residuals; build it with residual=True")
        return self._read("residual", indices)

    def label(self, index: int) -> str:
        """Class name of an image."""
        return self.labels[index]

    def _read(self, name: str, indices: Tensor) -> Tensor:
        at = indices.tolist()
        if at and not (min(at) >= 0 and max(at) < len(self)):
            raise IndexError(f"indices: got {min(at)} to {max(at)}, accepted are 0 to {len(self) - 1}")
        shape = self._tensor(0, name).shape[1:]
        out = torch.empty(len(at), *shape, dtype=torch.float32, device="cpu")
        for i, index in enumerate(at):
            shard = bisect.bisect_right(self._starts, index) - 1
            out[i] = self._tensor(shard, name)[index - self._starts[shard]]
        return out

    def _tensor(self, shard: int, name: str) -> Tensor:
        """A shard's tensor, mapped from its file; opened once in each process."""
        if not hasattr(self, "_open"):
            self._open: dict[tuple[int, str], Tensor] = {}
        if (shard, name) not in self._open:
            path = self._paths[shard]
            try:
                with safe_open(path, framework="pt") as file:
                    if (file.metadata() or {}).get("format") != FORMAT:
                        raise BankError(f"{path}: not a shard of a LatentBank; build the bank anew")
                    self._open[shard, name] = file.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise BankError(
                    f"{path}: not a whole safetensors file ({error}); delete it and build again, only it is made anew"
                ) from error
        return self._open[shard, name]

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_open"}  # workers map the files themselves

    def __repr__(self) -> str:
        counts = {c: self.labels.count(c) for c in self.classes}
        return (
            f"LatentBank({str(self.folder)!r}: {len(self)} rows {counts}, weights {self.weights_sha256[:12]})"
        )
