"""KeyExchangeDataset: T' = T and X' as a map-style Dataset (Section V-C).

    train = KeyExchangeDataset(knees, model, n_pairs=50_000)
    loader = DataLoader(train, batch_size=64, shuffle=True, num_workers=2)

What stands at an index is a function of (seed, epoch, index) alone, so it is the same for any number of
workers, ranks and restarts, and nothing has to be stored.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kecae_aug.bank import LatentBank
from kecae_aug.data.attributes import patient_names, value_range_of
from kecae_aug.data.classes import labels_of
from kecae_aug.data.identity import other_preprocessing
from kecae_aug.data.parts import read_item, stack_images
from kecae_aug.donors import PairPlan
from kecae_aug.engine.exchange import Detail, Exchanger, blend_keys, check_detail, host_detail, resize
from kecae_aug.engine.intensity import Intensity
from kecae_aug.engine.model import KECAE
from kecae_aug.engine.options import EngineOptions
from kecae_aug.engine.params import strength_range
from kecae_aug.names import by_value, class_names
from kecae_aug.permutation import unit_draw


class Provenance(NamedTuple):
    """Where an item of T' comes from.

    Attributes:
        host: row of T (or of the bank) that gave the non-key; of a real image, its own row.
        donor: row that gave the key; -1 for a real image.
        strength: fraction of the donor's key; 0 for a real image.
    """

    host: int
    donor: int
    strength: float


class KeyExchangeDataset(Dataset[Any]):
    """The images of T, then ``n_pairs`` exchanged knees X'.

    An item is (image, label), with ``provenance=True`` (image, label, Provenance). Real images come as
    ``dataset`` gives them; exchanged ones in the same shape, dtype and scale. Labels are ints. A batch of
    exchanged knees is decoded at once where the DataLoader asks for it (``__getitems__``).

    Exchanged knee k goes through the ordered pairs of classes in turn (0 -> 2, 2 -> 0, ...), so every new
    label and every old one is equally frequent, and the pair of knees is one of the grid "every image of
    one class with every image of the other" (Section IV), in pseudo-random order without repetition.

    Args:
        dataset: T: whole knees, not normalised, without random transforms; (image, label) items with
            ``.targets`` and ``.classes``. None for X' alone, from a bank.
        model: trained weights.
        n_pairs: how many exchanged knees.
        bank: a :class:`~kecae_aug.LatentBank` of the same knees: then no image is read for X'. With a
            ``dataset`` it must have a row for each of its images, preprocessed alike (``bank.check_data(dataset)`` compares
            every file).
        strength: fraction of the donor's key, or a range (low, high). Below 0.5 the label is the host's.
        detail: ``"host"`` or ``"decoder"``, see :class:`~kecae_aug.KeyExchangeAugment`; with a bank,
            ``"host"`` needs one with residuals, and is at the weights' size.
        real: False leaves T out, for X' alone.
        balanced: the exchanged knees level the classes of T' instead of all being equally frequent, as
            far as ``n_pairs`` go.
        fresh_pairs: other pairs in each epoch, until the grid is through; by default the same T'.
        same_patient: whether the two knees of a patient may exchange.
        patients: one id a row; by default ``dataset.patients`` or an attribute named alike (``patient_ids``,
            ``subject_id``, ``pid``, ...), or the bank's. A row without an id counts as a patient of
            its own, and a warning says so.
        classes: class names; by default ``dataset.classes``. Parts of a ConcatDataset that list other classes are brought
            together by name. Given are all names of the data set, and maybe more, in the order that ``targets`` shall have;
            or a new name for each; or, where it has none, the names of its label indices.
        value_range: of float images; by default ``dataset.value_range``, which this package's sets have, or (0, 1);
            of a bank alone, as it was built.
        transform: of every image, real or exchanged, after the exchange: crop, flip, normalise.
        provenance: return it with every item.
        seed: of the pairs.
        engine: precision, memory format, chunks and compilation, see :class:`~kecae_aug.EngineOptions`.
        device: that encodes and decodes; images come on the CPU. Only the CPU in DataLoader workers.

    Attributes:
        targets: class index of every item, of T and of X', for samplers. With ``fresh_pairs`` too, since
            the new label of knee k does not depend on the epoch.
        classes: class names.
        class_indices: class index of every image of T (or of the bank), which hosts and donors are.
        weights_sha256: hash of the weights, see :func:`kecae_aug.weights.io.weights_sha256`.
    """

    def __init__(
        self,
        dataset: Any,
        model: KECAE,
        n_pairs: int,
        *,
        bank: LatentBank | None = None,
        strength: float | tuple[float, float] = 1.0,
        detail: Detail = "host",
        real: bool = True,
        balanced: bool = False,
        fresh_pairs: bool = False,
        same_patient: bool = False,
        patients: Sequence[Hashable] | None = None,
        classes: Sequence[str | int] | None = None,
        value_range: tuple[float, float] | None = None,
        transform: Callable[[Tensor], Any] | None = None,
        provenance: bool = False,
        seed: int = 0,
        engine: EngineOptions | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if dataset is None and bank is None:
            raise ValueError("dataset: None without a bank; give the training set, a bank, or both")
        if n_pairs < 0:
            raise ValueError(f"n_pairs={n_pairs}: accepted is 0 or more")
        check_detail(detail)
        self.dataset, self.bank, self.n_pairs = dataset, bank, n_pairs
        self.strength, self.detail, self.seed = strength_range(strength), detail, seed
        self.transform, self.provenance, self.fresh_pairs = transform, provenance, fresh_pairs
        self.same_patient = same_patient
        if dataset is None and bank is not None and value_range is None:
            self._intensity = bank.intensity
        else:
            self._intensity = Intensity.of(value_range_of(dataset, value_range))
        self._exchanger = Exchanger(model, engine)
        self.weights_sha256: str = self._exchanger.sha256
        self.device = torch.device(device)
        self._epoch = torch.zeros(
            (), dtype=torch.int64, device="cpu"
        ).share_memory_()  # persistent workers see set_epoch
        if bank is not None:
            bank.check_weights(*self._exchanger.hashes)
            if detail == "host" and not bank.has_residuals:
                raise ValueError(
                    "detail='host' from a bank: build it with residual=True, or take detail='decoder'"
                )
            if dataset is not None and len(bank) != len(dataset):
                raise ValueError(
                    f"bank: has {len(bank)} rows for a dataset of {len(dataset)}; build it from this set, or give "
                    "dataset=None"
                )
        known: Sequence[str | None] | None
        if dataset is None:
            assert bank is not None
            self.classes = class_names(bank.classes if classes is None else classes)
            if unknown := sorted(set(bank.labels) - set(self.classes), key=by_value):
                raise ValueError(
                    f"classes={self.classes}: the bank has rows of {unknown} too; give all of its names"
                )
            self.class_indices = [self.classes.index(label) for label in bank.labels]
            known = bank.patients if patients is None else patient_names(bank, patients)
        else:
            self.classes, self.class_indices = labels_of(dataset, classes)
            known = patient_names(dataset, patients)
            known = bank.patients if known is None and bank is not None else known
        if bank is not None and bank.labels != [self.classes[t] for t in self.class_indices]:
            raise ValueError(
                "bank: its labels are not those of the dataset, row by row; build it from this set"
            )
        if bank is not None and dataset is not None:
            old = bank.manifest["parts"][0].get("identity")
            if what := other_preprocessing(old, dataset):
                raise ValueError(
                    f"bank: was encoded from images that were preprocessed differently ({what}); build it from this set"
                )
        self._patients = known
        self._real = len(self.class_indices) if real and dataset is not None else 0
        members = self._members()
        if n_pairs and len(members) < 2:
            raise ValueError(
                f"dataset: of the classes {self._exchanger.config.classes} that the weights exchange it holds "
                f"{list(members)}; at least two are needed. Its classes are {self.classes}; "
                "if they are the same grades by other names, give classes= in the order of its label indices"
            )
        self._plan = PairPlan(
            members,
            n_pairs,
            seed,
            patients=None if same_patient else known,
            counts={c: len(m) * bool(self._real) for c, m in members.items()} if balanced else None,
        )
        self.balanced = balanced
        self.targets = self.class_indices[: self._real] + [self._label(k) for k in range(n_pairs)]

    def set_epoch(self, epoch: int) -> None:
        """Which epoch's pairs to give, with ``fresh_pairs``, also in persistent workers; without, T' stays as it is."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """The epoch that was set; 0 at first."""
        return int(self._epoch)

    def __len__(self) -> int:
        return self._real + self.n_pairs

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """Several items; their exchanged knees are decoded in one batch."""
        at = [self._at(i) for i in indices]
        made = dict(
            zip(pairs := [i - self._real for i in at if i >= self._real], self._make(pairs), strict=True)
        )
        return [self._item(i, made) for i in at]

    def origin(self, index: int) -> Provenance:
        """Where an item comes from, without making it. Indices and errors are those of an item."""
        index = self._at(index)
        if index < self._real:
            return Provenance(index, -1, 0.0)
        return self._pair(index - self._real)

    def _at(self, index: Any) -> int:
        """An index from 0; negative ones count from the end."""
        n = len(self)
        at = operator.index(index)
        if not -n <= at < n:
            raise IndexError(f"index: got {index}, accepted are 0 to {n - 1}")
        return at % n

    def to_engine(self, images: Tensor) -> Tensor:
        """Images in T's scale, before ``transform`` -> float32 in [-1, 1]."""
        return self._intensity.to_engine(images)

    def facts(self) -> dict[str, Any]:
        """What X' depends on beside data, bank and weights, JSON-able; long lists as hashes."""
        shape, dtype = self._item_form()
        hashed = {"labels": self.targets, "patients": self._patients}
        return {
            "dataset": repr(self),
            "classes": list(self.classes),
            **{k: hashlib.sha256(json.dumps(v).encode()).hexdigest() for k, v in hashed.items()},
            "same_patient": self.same_patient,
            "balanced": self.balanced,
            "fresh_pairs": self.fresh_pairs,
            "images": f"{tuple(shape)} {dtype}",
            "intensity": asdict(self._intensity),
            "precision": str(self._exchanger.fast.dtype),
        }

    def _item(self, index: int, made: dict[int, Tensor]) -> Any:
        origin = self.origin(index)
        real = index < self._real
        image: Any = read_item(self.dataset, index)[0] if real else made[index - self._real]
        image = image if self.transform is None else self.transform(image)
        return (image, self.targets[index], origin) if self.provenance else (image, self.targets[index])

    def _members(self) -> dict[str, list[int]]:
        """Indices of every class that the weights exchange, in the order of the classes."""
        found: dict[str, list[int]] = {c: [] for c in self.classes if c in self._exchanger.config.classes}
        for index, target in enumerate(self.class_indices):
            if self.classes[target] in found:
                found[self.classes[target]].append(index)
        return {c: indices for c, indices in found.items() if indices}

    def _label(self, k: int) -> int:
        host, donor = self._plan.direction(k)
        return self.classes.index(donor if self._strength(k) >= 0.5 else host)

    def _strength(self, k: int) -> float:
        low, high = self.strength
        return low if low == high else low + (high - low) * unit_draw(k, f"strength/{self.seed}")

    def _pair(self, k: int) -> Provenance:
        """Host, donor and strength of exchanged knee k in this epoch."""
        host, donor = self._plan.pair(k, self.epoch if self.fresh_pairs else 0)
        return Provenance(host, donor, self._strength(k))

    @torch.no_grad()
    def _make(self, pairs: list[int]) -> list[Tensor]:
        """Exchanged knees, (C, H, W) each."""
        if not pairs:
            return []
        origins = [self._pair(k) for k in pairs]
        hosts, donors = ([getattr(o, name) for o in origins] for name in ("host", "donor"))
        strengths = torch.tensor([o.strength for o in origins], device="cpu")
        if self.bank is not None:
            host, donor = (torch.tensor(side, device="cpu") for side in (hosts, donors))
            return list(self._from_bank(host, donor, strengths, self.detail == "host"))
        rows = sorted({*hosts, *donors})
        images = [read_item(self.dataset, row)[0] for row in rows]
        batch = stack_images(images)
        self._intensity.check(batch)
        host, donor = (torch.tensor([rows.index(r) for r in side], device="cpu") for side in (hosts, donors))
        made = self._exchanger.exchange(
            batch.to(self.device), host, donor, strengths, detail=self.detail, intensity=self._intensity
        )
        return list(made.cpu())

    @torch.no_grad()
    def hosts(self, rows: Sequence[int]) -> Tensor:
        """(k, C, H, W) images of rows of T in its scale; of a bank alone what it holds of them: X^, or X with residuals."""
        if self.dataset is not None:
            batch = stack_images([read_item(self.dataset, row)[0] for row in rows])
            self._intensity.check(batch)
            return batch
        assert self.bank is not None
        at = torch.tensor(list(rows), device="cpu")
        return self._from_bank(at, at, torch.ones(len(at), device="cpu"), self.bank.has_residuals)

    def _from_bank(self, hosts: Tensor, donors: Tensor, strengths: Tensor, residual: bool) -> Tensor:
        """Decoded from latents alone, then brought to the shape of T's images."""
        bank, model = self.bank, self._exchanger.on(self.device)
        assert bank is not None
        own = bank.keys(hosts) if bool((strengths != 1).any()) else None
        latent = bank.non_keys(hosts) + blend_keys(bank.keys(donors), own, strengths)
        new = model.decode(latent.to(self.device)).cpu()
        if residual:
            new = host_detail(bank.residuals(hosts), new, None)
        shape, dtype = self._item_form()
        new = resize(new, (shape[1], shape[2])).clamp(-1, 1).expand(-1, shape[0], -1, -1)
        return self._intensity.from_engine(new, dtype)

    def _item_form(self) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of T's images, read from the first one."""
        if not hasattr(self, "_form"):
            if self.dataset is None:
                size = self._exchanger.config.image_size
                self._form: tuple[tuple[int, ...], torch.dtype] = ((1, size, size), torch.float32)
            else:
                first = read_item(self.dataset, 0)[0]
                self._form = (tuple(first.shape), first.dtype)
        return self._form

    def __repr__(self) -> str:
        given = "bank" if self.bank is not None else "images"
        return (
            f"KeyExchangeDataset({self._real} real and {self.n_pairs} exchanged from {given}, "
            f"strength={self.strength}, detail={self.detail!r}, seed={self.seed}, "
            f"epoch={self.epoch})"
        )
