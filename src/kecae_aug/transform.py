"""The drop-in: :class:`KeyExchangeAugment` exchanges keys between the differently labelled knees of a batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from kecae_aug._batch import class_indices, parse
from kecae_aug._exchanger import Exchanger, needs_own_key, taken
from kecae_aug._intensity import Intensity
from kecae_aug._params import ExchangeParams, rank_generator, strength_range
from kecae_aug.model import KECAE
from kecae_aug.pairing import random_donors
from kecae_aug.weights import load_weights

if TYPE_CHECKING:
    from kecae_aug.bank import LatentBank
    from kecae_aug.gate import Gate


class KeyExchangeAugment(v2.Transform):
    """Exchange keys between knees of different labels: X' = decode(hN + hK'), with the donor's label.

    Call it on a batch, after collating: ``images, labels = augment(images, labels)``.

    Convention:
        images: (B, C, H, W), C = 1, or 3 equal channels; uint8, or floats in ``value_range``. Any H, W: they
            are resized to the weights' size and back, so whole, square knees fit best. Exchange before you
            crop, and before MixUp or CutMix.
        labels: (B,) integer class indices, or (B, K) one-hot. The label follows the key.
        Container, shape, dtype, device and memory format stay; rows that are not chosen stay bit-identical;
        nothing is changed in place; no gradient passes. A batch without two classes passes through.
        Random numbers come from torch's global CPU generator, which DataLoaders seed for each worker and
        epoch; under torch.distributed each rank draws its own, even if all were seeded alike.
        In eval mode (``augment.eval()``, or of a module that holds it) everything passes through.

    Args:
        model: a trained KECAE; it is copied, and is invisible to ``parameters()``, ``state_dict()`` and
            ``train()`` of whatever holds the transform.
        p: chance of each row to become an exchanged knee.
        strength: share of the donor's key (Section III-A: 1), or a range (low, high) to draw it from.
        detail: ``"decoder"`` returns X' as decoded (the paper); ``"host"`` returns X + (X' - X^), which keeps
            the host's own sharpness and resolution and adds only what the exchange changed.
        append: False replaces the chosen rows; True adds the exchanged knees after the batch's own rows
            (T' = T and X'), so that a batch of B grows by about p * B. Other entries of a list or dict that
            have B rows (tensors, lists) get the hosts' rows.
        classes: names of the caller's classes in the order of their indices, for instance
            ``dataset.classes``; by default the weights' own. Rows of classes that the weights do not know
            pass through.
        value_range: of float images; (0, 1) by default.
        mean: of images that are already normalised, per channel, with ``std``; they are taken to be in
            [0, 1] before normalisation.
        std: see ``mean``.
        label_mode: ``"key"`` gives the donor's label (for strength below 0.5 the host's own), ``"soft"``
            gives (B, K) floats with min(strength, 1) on the donor's class.
        donors: a :class:`~kecae_aug.LatentBank` that the keys are drawn from, so that a batch of one class
            can exchange too and no donor is encoded; by default the batch itself.
        same_patient: whether the two knees of a patient may exchange, where patients are given.
        gate: a :class:`~kecae_aug.Gate`; rows it rejects stay as they came.
        amp_dtype: precision inside: ``torch.bfloat16`` or ``torch.float16`` for devices that are faster in
            it; float32 by default. The loop's own autocast changes nothing.
        channels_last: memory format inside; never of what comes out.
        chunk_size: knees that go through the network at once; all by default.
        compile: pass the network to ``torch.compile``.
    """

    def __init__(
        self,
        model: KECAE,
        *,
        p: float = 0.5,
        strength: float | tuple[float, float] = 1.0,
        detail: Literal["decoder", "host"] = "decoder",
        append: bool = False,
        classes: Sequence[str | int] | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        label_mode: Literal["key", "soft"] = "key",
        donors: LatentBank | None = None,
        same_patient: bool = False,
        gate: Gate | None = None,
        amp_dtype: torch.dtype | None = None,
        channels_last: bool = True,
        chunk_size: int | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p={p}: accepted is a probability from 0 to 1")
        strength_range(strength)
        if detail not in ("decoder", "host"):
            raise ValueError(f"detail={detail!r}: accepted are 'decoder' and 'host'")
        if label_mode not in ("key", "soft"):
            raise ValueError(f"label_mode={label_mode!r}: accepted are 'key' and 'soft'")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size}: accepted is 1 or more, or None")
        self.intensity = Intensity.of(value_range, mean, std)
        exchanger = Exchanger(model, amp_dtype, channels_last, compile)
        self.p, self.strength, self.detail = float(p), strength, detail
        self.append, self.label_mode, self.same_patient = append, label_mode, same_patient
        self.classes = tuple(str(c) for c in (model.config.classes if classes is None else classes))
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes={self.classes}: accepted are different names")
        known = [c for c in model.config.classes if c in self.classes]
        if len(known) < 2:
            raise ValueError(
                f"classes={self.classes}: these weights exchange {model.config.classes}; at least two of them must be "
                "among your classes, by name"
            )
        if donors is not None:
            donors.check_weights(exchanger.sha256)
        self.donors, self.gate = donors, gate
        self.amp_dtype, self.channels_last, self.compile_model = amp_dtype, channels_last, compile
        self.chunk_size = chunk_size
        self.enabled = True
        self.params: ExchangeParams | None = None
        self.__dict__["_exchanger"] = exchanger  # not a submodule, whatever nn.Module.__setattr__ thinks

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> KeyExchangeAugment:
        """With trained weights: a bundled name, a folder, or a Hub id (see :func:`kecae_aug.load_weights`)."""
        model = load_weights(
            name, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
        )
        return cls(model, **options)

    @torch.compiler.disable
    @torch.no_grad()
    def forward(self, *inputs: Any, patients: Any = None) -> Any:
        """Exchange keys within a batch.

        Args:
            *inputs: ``images, labels``, or one list, tuple or dict that holds both.
            patients: (B,) integers or B ids, so that no patient gives a key to himself; in a dict, the entry
                ``"patient"``.

        Returns:
            What came, with the chosen rows exchanged.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is accepted.
        """
        batch = parse(inputs, patients)
        indices, one_hot = self._check(batch.images, batch.labels)
        if not (self.enabled and self.training):
            return batch.rebuild(batch.images, batch.labels)
        params = self.make_params([indices, batch.patients])
        return self._run(batch, indices, one_hot, params, gate=self.gate)

    @torch.compiler.disable
    @torch.no_grad()
    def replay(self, *inputs: Any, params: ExchangeParams) -> Any:
        """Repeat a call: the same batch with the ``params`` of that call gives the same result."""
        batch = parse(inputs)
        indices, one_hot = self._check(batch.images, batch.labels)
        if params.bank != (self.donors.fingerprint if self.donors is not None else None):
            raise ValueError(
                f"params: their donors are rows of {_from(params.bank)}, this transform's are of "
                f"{_from(self.donors.fingerprint if self.donors is not None else None)}; replay with the same donors"
            )
        last = int(params.rows.max()) if len(params.rows) else -1
        if last >= len(batch.images):
            raise ValueError(
                f"params: row {last} of a batch of {len(batch.images)}; replay with the same batch"
            )
        return self._run(batch, indices, one_hot, params, gate=None)

    def make_params(self, flat_inputs: list[Any]) -> ExchangeParams:
        """Draw hosts, donors and strengths.

        Args:
            flat_inputs: class indices (B,), and patients or None.
        """
        indices, patients = flat_inputs
        names = self._exchanger.config.classes
        eligible = torch.tensor([c in names for c in self.classes])[indices.cpu()]
        generator = rank_generator()
        chosen = torch.rand(len(indices), generator=generator) < self.p
        if self.donors is None:
            donors = random_donors(
                indices.cpu(),
                patients=patients,
                same_patient=self.same_patient,
                eligible=eligible,
                generator=generator,
            )
        else:
            labels = [self.classes[i] if e else None for i, e in zip(indices.tolist(), eligible, strict=True)]
            ids = None if self.same_patient else patients
            donors = self.donors.random_donors(labels, self.classes, ids, generator)
        rows = (chosen & (donors >= 0)).nonzero()[:, 0]
        low, high = strength_range(self.strength)
        strengths = low + (high - low) * torch.rand(len(indices), generator=generator)[rows]
        bank = None if self.donors is None else self.donors.fingerprint
        return ExchangeParams(rows, donors[rows], strengths, bank)

    def _run(self, batch: Any, indices: Tensor, one_hot: bool, params: ExchangeParams, gate: Any) -> Any:
        images = batch.images.as_subclass(Tensor)
        given = self._given_labels(indices, params)
        if len(params.rows):
            new = self._exchanged(images, params)
            if gate is not None:
                unit, hosts = (
                    self.intensity.to_unit(x) for x in (new, images[params.rows.to(images.device)])
                )
                names = [self.classes[i] for i in self._hard(indices, given, params).tolist()]
                accepted = gate(unit, hosts, names)
                new, given = new[accepted], given[accepted.to(given.device)]
                params = params.where(accepted.cpu())
        self.params = params
        labels = self._labels(batch.labels, indices, one_hot, params, given)
        if len(params.rows) == 0:
            return batch.rebuild(batch.images, labels)
        if self.append:
            out = torch.cat([images, new])
            return batch.rebuild(_like(out, batch.images), labels, params.rows)
        out = images.clone()  # keeps the memory format
        out[params.rows.to(out.device)] = new
        return batch.rebuild(_like(out, batch.images), labels)

    def _exchanged(self, images: Tensor, params: ExchangeParams) -> Tensor:
        """(k, C, H, W) exchanged knees in the images' dtype and scale."""
        rows, donors = params.rows.to(images.device), params.donors.to(images.device)
        size = self.chunk_size or len(rows)
        own = needs_own_key(params.strengths, self.detail)
        sources = [rows] * own + [donors] * (self.donors is None)
        encoded = torch.cat(sources).unique() if sources else rows[:0]
        groups = encoded.split(size) if len(encoded) else ()  # none with the keys of a bank alone
        parts = [self._exchanger.keys(self.intensity.to_unit(images[group])) for group in groups]
        keys = torch.cat(parts) if parts else images.new_empty(0)
        new = []
        for part in torch.arange(len(rows), device=images.device).split(size):
            host = rows[part]
            own_key = taken(keys, encoded, host) if own else None
            if self.donors is None:
                key = taken(keys, encoded, donors[part])
            else:
                key = self.donors.keys(params.donors[part.cpu()]).to(images.device)
            strengths = params.strengths[part.cpu()].to(images.device)
            unit = self.intensity.to_unit(images[host])
            made = self._exchanger.exchange(unit, key, own_key, strengths, self.detail)
            new.append(self.intensity.from_unit(made, images.dtype))
        return torch.cat(new)

    def _given_labels(self, indices: Tensor, params: ExchangeParams) -> Tensor:
        """(k,) class indices of the donors, on the labels' device."""
        if self.donors is None:
            return indices[params.donors.to(indices.device)]
        names = [self.donors.label(row) for row in params.donors.tolist()]
        return torch.tensor([self.classes.index(n) for n in names], dtype=torch.int64, device=indices.device)

    def _hard(self, indices: Tensor, given: Tensor, params: ExchangeParams) -> Tensor:
        """(k,) one class each: the key's, unless most of the key is still the host's own."""
        strengths = params.strengths.to(indices.device)
        return torch.where(strengths >= 0.5, given, indices[params.rows.to(indices.device)])

    def _labels(
        self, labels: Tensor, indices: Tensor, one_hot: bool, params: ExchangeParams, given: Tensor
    ) -> Tensor:
        rows, k = params.rows.to(indices.device), len(self.classes)
        if self.label_mode == "soft":
            old = F.one_hot(indices, k).float()
            share = params.strengths.to(indices.device).clamp(max=1)[:, None]
            new = (1 - share) * old[rows] + share * F.one_hot(given, k).float()
        else:
            hard = self._hard(indices, given, params)
            old = F.one_hot(indices, k).to(labels.dtype) if one_hot else indices.to(labels.dtype)
            new = (F.one_hot(hard, k) if one_hot else hard).to(labels.dtype)
        if self.append:
            return torch.cat([old, new])
        return old.index_put((rows,), new)

    def _check(self, images: Tensor, labels: Tensor) -> tuple[Tensor, bool]:
        if isinstance(images, (tv_tensors.Mask, tv_tensors.BoundingBoxes)):
            raise TypeError(f"images: got a {type(images).__name__}, accepted are images")
        self.intensity.check(images)
        return class_indices(labels, len(images), len(self.classes))

    def extra_repr(self) -> str:
        """Options that differ from their defaults."""
        shown = {**vars(self), **vars(self.intensity), "compile": self.compile_model}
        source = self._exchanger.metadata.get("weights", {}).get("source")
        defaults = {**_DEFAULTS, "classes": self._exchanger.config.classes}
        parts = [repr(source)] if source else []
        return ", ".join(parts + [f"{k}={shown[k]!r}" for k, v in defaults.items() if shown[k] != v])


_DEFAULTS: dict[str, Any] = {
    **(KeyExchangeAugment.__init__.__kwdefaults__ or {}),
    "enabled": True,
}


def _like(out: Tensor, images: Tensor) -> Tensor:
    """In the container that came: a tv_tensor, MONAI's MetaTensor with its meta data, another subclass."""
    if isinstance(images, tv_tensors.TVTensor):
        wrapped: Tensor = tv_tensors.wrap(out, like=images)
        return wrapped
    if type(images) is Tensor:
        return out
    other: Tensor = out.as_subclass(type(images))
    other.__dict__.update(images.__dict__)
    return other


def _from(bank: str | None) -> str:
    return "the batch" if bank is None else f"bank {bank[:12]}"
