"""The drop-in: :class:`KeyExchangeAugment` exchanges keys between the differently labelled knees of a batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from kecae_aug._batch import class_indices, parse
from kecae_aug.model import KECAE
from kecae_aug.pairing import random_donors
from kecae_aug.weights import load_weights

GREY_TOLERANCE = 0.02  # largest difference of the channels of a grey RGB image, of the full range


@dataclass(frozen=True)
class ExchangeParams:
    """What one call did; ``replay`` repeats it.

    Attributes:
        rows: (k,) int64, the rows that became exchanged knees (hosts).
        donors: (k,) int64, the rows that gave them the key.
        strengths: (k,) float32, share of the donor's key.
    """

    rows: Tensor
    donors: Tensor
    strengths: Tensor


class _Models:
    """Keeps the model out of the module tree of whoever holds the transform, one copy a device."""

    def __init__(self, model: KECAE) -> None:
        self.original = copy.deepcopy(model).eval().requires_grad_(False)
        self._copies: dict[torch.device, KECAE] = {}

    def on(self, device: torch.device) -> KECAE:
        if next(self.original.parameters()).device == device:
            return self.original
        if device not in self._copies:
            self._copies[device] = copy.deepcopy(self.original).to(device)
        return self._copies[device]

    def __getstate__(self) -> dict[str, Any]:
        return {"original": self.original, "_copies": {}}  # a spawned worker makes its own copies


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
        Random numbers are of torch's global CPU generator, which DataLoaders seed for each worker and epoch.

    Args:
        model: a trained KECAE; it is copied, and is invisible to ``parameters()``, ``state_dict()`` and
            ``train()`` of whatever holds the transform.
        p: chance of each row to become an exchanged knee.
        strength: share of the donor's key (Section III-A: 1), or a range (low, high) to draw it from.
        detail: ``"decoder"`` returns X' as decoded (the paper); ``"host"`` returns X + (X' - X^), which keeps
            the host's own sharpness and resolution and adds only what the exchange changed.
        classes: names of the caller's classes in the order of their indices, for instance
            ``dataset.classes``; by default the weights' own. Rows of classes that the weights do not know
            pass through.
        value_range: of float images; (0, 1) by default.
        mean: of images that are already normalised, per channel, with ``std``; they are taken to be in
            [0, 1] before normalisation.
        std: see ``mean``.
        label_mode: ``"key"`` gives the donor's label (for strength below 0.5 the host's own), ``"soft"``
            gives (B, K) floats with min(strength, 1) on the donor's class.
        same_patient: whether the two knees of a patient may exchange, where patients are given.
        chunk_size: knees that go through the network at once; all by default.
    """

    def __init__(
        self,
        model: KECAE,
        *,
        p: float = 0.5,
        strength: float | tuple[float, float] = 1.0,
        detail: Literal["decoder", "host"] = "decoder",
        classes: Sequence[str | int] | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        label_mode: Literal["key", "soft"] = "key",
        same_patient: bool = False,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, KECAE):
            raise TypeError(
                f"model: got {type(model).__name__}, accepted is a KECAE; for a name or folder use "
                "KeyExchangeAugment.from_pretrained(name)"
            )
        low, high = (strength, strength) if isinstance(strength, (int, float)) else strength
        if not 0 <= p <= 1:
            raise ValueError(f"p={p}: accepted is a probability from 0 to 1")
        if not 0 <= low <= high:
            raise ValueError(f"strength={strength}: accepted is a number of 0 or more, or (low, high)")
        if detail not in ("decoder", "host"):
            raise ValueError(f"detail={detail!r}: accepted are 'decoder' and 'host'")
        if label_mode not in ("key", "soft"):
            raise ValueError(f"label_mode={label_mode!r}: accepted are 'key' and 'soft'")
        if (mean is None) != (std is None):
            raise ValueError(f"mean={mean}, std={std}: give both, or neither")
        if std is not None and min(std) <= 0:
            raise ValueError(f"std={std}: accepted are positive numbers")
        if not value_range[0] < value_range[1]:
            raise ValueError(f"value_range={value_range}: accepted is (low, high) with low < high")
        if mean is not None and tuple(value_range) != (0.0, 1.0):
            raise ValueError(
                "value_range is of images that are not normalised: leave it out where mean and std are given"
            )
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size}: accepted is 1 or more, or None")
        self.p, self.strength, self.detail = float(p), strength, detail
        self.classes = tuple(str(c) for c in (model.config.classes if classes is None else classes))
        known = [c for c in model.config.classes if c in self.classes]
        if len(known) < 2:
            raise ValueError(
                f"classes={self.classes}: these weights exchange {model.config.classes}; at least two of them must be "
                "among your classes, by name"
            )
        self.value_range = (float(value_range[0]), float(value_range[1]))
        self.mean = None if mean is None else tuple(float(m) for m in mean)
        self.std = None if std is None else tuple(float(s) for s in std)
        self.label_mode, self.same_patient, self.chunk_size = label_mode, same_patient, chunk_size
        self.enabled = True
        self.params: ExchangeParams | None = None
        self.__dict__["_models"] = _Models(model)  # not a submodule, whatever nn.Module.__setattr__ thinks

    @classmethod
    def from_pretrained(
        cls, name: str, *, revision: str | None = None, local_files_only: bool = False, **options: Any
    ) -> KeyExchangeAugment:
        """With trained weights: a bundled name, a folder, or a Hub id (see :func:`kecae_aug.load_weights`)."""
        return cls(load_weights(name, revision=revision, local_files_only=local_files_only), **options)

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
        self._check_images(batch.images)
        indices, one_hot = class_indices(batch.labels, len(batch.images), len(self.classes))
        if not self.enabled:
            return batch.rebuild(batch.images, batch.labels)
        self.params = self.make_params([indices, batch.patients])
        return batch.rebuild(*self._exchange(batch.images, batch.labels, indices, one_hot, self.params))

    @torch.compiler.disable
    @torch.no_grad()
    def replay(self, *inputs: Any, params: ExchangeParams) -> Any:
        """Repeat a call: the same batch with the ``params`` of that call gives the same result."""
        batch = parse(inputs)
        self._check_images(batch.images)
        indices, one_hot = class_indices(batch.labels, len(batch.images), len(self.classes))
        return batch.rebuild(*self._exchange(batch.images, batch.labels, indices, one_hot, params))

    def make_params(self, flat_inputs: list[Any]) -> ExchangeParams:
        """Draw hosts, donors and strengths from the global CPU generator.

        Args:
            flat_inputs: class indices (B,), and patients or None.
        """
        indices, patients = flat_inputs
        known = torch.tensor([c in self._models.original.config.classes for c in self.classes])
        eligible = known[indices.cpu()]
        chosen = torch.rand(len(indices)) < self.p
        donors = random_donors(
            indices.cpu(), patients=patients, same_patient=self.same_patient, eligible=eligible
        )
        rows = (chosen & (donors >= 0)).nonzero()[:, 0]
        low, high = (self.strength,) * 2 if isinstance(self.strength, (int, float)) else self.strength
        strengths = low + (high - low) * torch.rand(len(rows))
        return ExchangeParams(rows, donors[rows], strengths)

    def _exchange(
        self, images: Tensor, labels: Tensor, indices: Tensor, one_hot: bool, params: ExchangeParams
    ) -> tuple[Tensor, Tensor]:
        new_labels = self._labels(labels, indices, one_hot, params)
        if len(params.rows) == 0:
            return images, new_labels
        plain = images.as_subclass(Tensor)
        out = plain.clone()  # keeps the memory format
        size = self.chunk_size or len(params.rows)
        for part in torch.arange(len(params.rows)).split(size):
            rows, donors = params.rows[part].to(plain.device), params.donors[part].to(plain.device)
            out[rows] = self._decode(plain[rows], plain[donors], params.strengths[part].to(plain.device))
        wrapped = tv_tensors.wrap(out, like=images) if isinstance(images, tv_tensors.TVTensor) else out
        return wrapped, new_labels

    def _decode(self, hosts: Tensor, donors: Tensor, strengths: Tensor) -> Tensor:
        """X' of hosts and donors as they came -> the same shape, dtype and range."""
        model = self._models.on(hosts.device)
        with torch.autocast(hosts.device.type, enabled=False):
            unit = self._to_unit(hosts)
            host, donor = (self._to_model(u, model) for u in (unit, self._to_unit(donors)))
            own, key = model.encode(host), model.key_encoder(donor)
            s = strengths.view(-1, 1, 1, 1)
            new = model.decode(own.non_key + (1 - s) * own.key + s * key)
            if self.detail == "decoder":
                result = (_resize(new, unit.shape[-2:]) + 1) / 2
                result = result.expand(-1, unit.shape[1], -1, -1)
            else:
                result = unit + _resize(new - model.decode(own.sum), unit.shape[-2:]) / 2
            return self._from_unit(result.clamp(0, 1), hosts.dtype)

    def _to_model(self, unit: Tensor, model: KECAE) -> Tensor:
        size = model.config.image_size
        return _resize(unit.mean(1, keepdim=True), torch.Size((size, size))) * 2 - 1

    def _to_unit(self, images: Tensor) -> Tensor:
        """(B, C, H, W) as they came -> float32 in [0, 1]."""
        if images.dtype == torch.uint8:
            return images.float() / 255
        x = images.float()
        if self.mean is not None and self.std is not None:
            return x * _channels(self.std, x) + _channels(self.mean, x)
        low, high = self.value_range
        return (x - low) / (high - low)

    def _from_unit(self, unit: Tensor, dtype: torch.dtype) -> Tensor:
        if dtype == torch.uint8:
            return (unit * 255).round().to(torch.uint8)
        if self.mean is not None and self.std is not None:
            return ((unit - _channels(self.mean, unit)) / _channels(self.std, unit)).to(dtype)
        low, high = self.value_range
        return (unit * (high - low) + low).to(dtype)

    def _labels(self, labels: Tensor, indices: Tensor, one_hot: bool, params: ExchangeParams) -> Tensor:
        rows, donors = params.rows.to(indices.device), params.donors.to(indices.device)
        strengths = params.strengths.to(indices.device)
        k = len(self.classes)
        if self.label_mode == "soft":
            soft = F.one_hot(indices, k).float()
            share = strengths.clamp(max=1)[:, None]
            soft[rows] = (1 - share) * soft[rows] + share * F.one_hot(indices[donors], k).float()
            return soft
        new = indices.clone()
        new[rows] = torch.where(strengths >= 0.5, indices[donors], indices[rows])
        return F.one_hot(new, k).to(labels.dtype) if one_hot else new.to(labels.dtype)

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images: got shape {tuple(images.shape)}, accepted is (B, 1, H, W) or (B, 3, H, W) with equal channels; "
                "call the transform on a batch, after collating"
            )
        if isinstance(images, (tv_tensors.Mask, tv_tensors.BoundingBoxes)):
            raise TypeError(f"images: got a {type(images).__name__}, accepted are images")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"images: got {images.dtype}, accepted are uint8 and floats")
        if self.mean is not None and len(self.mean) not in (1, images.shape[1]):
            raise ValueError(
                f"mean: {len(self.mean)} values for {images.shape[1]} channels, accepted is one each"
            )
        if images.numel() == 0:
            return
        unit = self._to_unit(images.as_subclass(Tensor))
        low, high = float(unit.min()), float(unit.max())
        if not (low >= -0.01 and high <= 1.01):  # also refuses NaN
            given = (float(images.min()), float(images.max()))
            what = f"mean={self.mean}, std={self.std}" if self.mean else f"value_range={self.value_range}"
            raise ValueError(
                f"images: floats from {given[0]:.3g} to {given[1]:.3g} do not fit {what}. For [-1, 1] give "
                "value_range=(-1, 1), for 0-255 floats value_range=(0, 255), for normalised images their mean and std; "
                "NaN and infinity are not accepted"
            )
        if images.shape[1] == 3 and float((unit.amax(1) - unit.amin(1)).max()) > GREY_TOLERANCE:
            raise ValueError(
                "images: 3 channels that differ; a KECAE knows grey radiographs, so all three must be the same grey "
                "(for normalised images give their mean and std per channel)"
            )

    def extra_repr(self) -> str:
        """Options that differ from their defaults."""
        defaults: dict[str, Any] = {
            "p": 0.5,
            "strength": 1.0,
            "detail": "decoder",
            "classes": self._models.original.config.classes,
            "value_range": (0.0, 1.0),
            "mean": None,
            "std": None,
            "label_mode": "key",
            "same_patient": False,
            "chunk_size": None,
            "enabled": True,
        }
        source = self._models.original.metadata.get("weights", {}).get("source")
        shown = [repr(source)] if source else []
        shown += [f"{k}={getattr(self, k)!r}" for k, v in defaults.items() if getattr(self, k) != v]
        return ", ".join(shown)


def _resize(images: Tensor, size: torch.Size) -> Tensor:
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=tuple(size), mode="bilinear", antialias=True, align_corners=False)


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)
