"""The drop-in: :class:`KeyExchangeAugment` exchanges keys between the differently labelled knees of a batch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from kecae_aug.donors import draw_donors, draw_from_bank, ids_of
from kecae_aug.engine.batch import (
    Batch,
    Ids,
    chosen,
    class_indices,
    joined,
    like,
    parse,
    patient_entries,
    sent,
    to_cpu,
)
from kecae_aug.engine.exchange import Exchanger, needs_own_key
from kecae_aug.engine.intensity import Intensity
from kecae_aug.engine.model import KECAE
from kecae_aug.engine.params import ExchangeParams, rank_generator, strength_range
from kecae_aug.names import class_names, warn_of_missing, warn_of_zeros
from kecae_aug.weights.io import load_weights

IDLE = 20  # batches without an exchange, for a warning

if TYPE_CHECKING:
    from kecae_aug.bank import LatentBank
    from kecae_aug.gate import Gate


@dataclass(frozen=True)
class Plan:
    """What a call will do, worked out on the CPU before any image need be on its device.

    Attributes:
        indices: (B,) int64 class indices, on the CPU.
        one_hot: whether the labels came as one-hot rows.
        params: hosts, donors and strengths; None where the transform is switched off.
        given: (k,) int64 class index of each donor, on the CPU; the host's own where there is none.
        encoded: rows whose keys are needed, sorted.
        hosts_at, donors_at: (k,) where each host's and donor's key stands among them.
    """

    indices: Tensor
    one_hot: bool
    params: ExchangeParams | None = None
    given: Tensor | None = None
    encoded: Tensor | None = None
    hosts_at: Tensor | None = None
    donors_at: Tensor | None = None


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
            Channels that differ in a marker or a fill, and values up to 0.05 of the range beyond it, are mended for the
            exchange, with a warning; colour images and other ranges are refused.
        patients: one id a row, so that nobody exchanges with himself: ``patients=``; else an entry, at any depth, called
            patient, patient_id, subject_id, PatientID or alike; else a third entry of the list or tuple that has one
            text or whole number a row. A row without an id counts as a patient of its own, and a warning says so.
        Random numbers come from torch's global CPU generator, which DataLoaders seed for each worker and
        epoch; under torch.distributed each rank draws its own, even if all were seeded alike.
        In eval mode (``augment.eval()``, or of a module that holds it) everything passes through.

    Args:
        model: a trained KECAE; it is copied, and is invisible to ``parameters()``, ``state_dict()`` and
            ``train()`` of whatever holds the transform.
        p: chance of each row to become an exchanged knee.
        strength: fraction of the donor's key (Section III-A: 1), or a range (low, high) to draw it from.
        detail: ``"decoder"`` returns X' as decoded (the paper); ``"host"`` returns X + (X' - X^), which keeps
            the host's own sharpness and resolution and adds only what the exchange changed.
        append: False replaces the chosen rows; True adds the exchanged knees after the batch's own rows
            (T' = T and X'), so that a batch of B grows by about p * B. A number adds just so many rows to every batch,
            whatever ``p``, as DDP and compiled steps want it; where fewer rows can exchange, rows are repeated as they are.
            Whatever else in the batch has B rows (tensors, masks, arrays, lists, nested dicts) gets the hosts' rows.
        classes: names of the caller's classes in the order of their indices, for instance
            ``dataset.classes``; by default the weights' own. Rows of classes that the weights do not know
            pass through.
        value_range: of float images; (0, 1) by default.
        mean: of images that are already normalised, per channel, with ``std``; they are taken to be in
            [0, 1] before normalisation.
        std: see ``mean``.
        label_mode: ``"key"`` gives the donor's label (for strength below 0.5 the host's own), ``"soft"``
            gives (B, K) floats with min(strength, 1) on the donor's class, also where nothing is exchanged.
        donors: a :class:`~kecae_aug.LatentBank` that the keys are drawn from, so that a batch of one class
            can exchange too and no donor is encoded; by default the batch itself.
        same_patient: whether the two knees of a patient may exchange, where patients are given.
        labels_getter: finds the labels in batches of other nestings, as of torchvision's CutMix; the images are then the one
            ``tv_tensors.Image``, or the one tensor (B, C, H, W).
        gate: a :class:`~kecae_aug.Gate`; rows it rejects stay as they came. On a GPU its verdict is waited for.
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
        append: bool | int = False,
        classes: Sequence[str | int] | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        label_mode: Literal["key", "soft"] = "key",
        donors: LatentBank | None = None,
        same_patient: bool = False,
        labels_getter: Callable[[Any], Any] | None = None,
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
        if not isinstance(append, bool) and (not isinstance(append, int) or append < 1):
            raise ValueError(
                f"append={append!r}: accepted are True, False, and 1 or more rows to add to every batch"
            )
        if labels_getter is not None and not callable(labels_getter):
            raise ValueError(
                f"labels_getter={labels_getter!r}: accepted is a function from a batch to its labels, or None"
            )
        self.intensity = Intensity.of(value_range, mean, std)
        exchanger = Exchanger(model, amp_dtype, channels_last, compile)
        self.p, self.strength, self.detail = float(p), strength, detail
        self.append, self.label_mode, self.same_patient = append, label_mode, same_patient
        self.labels_getter = labels_getter
        self.classes = class_names(model.config.classes if classes is None else classes)
        known = [c for c in model.config.classes if c in self.classes]
        if len(known) < 2:
            raise ValueError(
                f"classes={self.classes}: these weights exchange {model.config.classes}; at least two of them must be "
                "among your classes, by name"
            )
        if donors is not None:
            donors.check_weights(*exchanger.hashes)
            if not set(donors.labels) & set(known):
                raise ValueError(
                    f"donors: the bank has rows of {sorted(set(donors.labels))}, none of which weights of "
                    f"{model.config.classes} exchange between your classes={self.classes}; build it of these classes"
                )
        if gate is not None and set(known) - set(gate.classes):
            raise ValueError(
                f"gate: its oracles know {gate.classes}, not {sorted(set(known) - set(gate.classes))}, which are exchanged; "
                "give its classes by name, of oracles that know all of them"
            )
        self.donors, self.gate = donors, gate
        self._said: set[str] = set()  # kinds of warnings, each of which is given once
        self._acted, self._idle = (
            False,
            0,
        )  # whether a batch could exchange; batches before the first that could
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
            patients: (B,) numbers or B ids, so that no patient gives a key to himself; by default the batch's own, see
                the class.

        Returns:
            What came, with the chosen rows exchanged.

        Raises:
            TypeError, ValueError: naming the argument, what came and what is accepted.
        """
        return self._execute(self._plan(*inputs, patients=patients), *inputs)

    @torch.compiler.disable
    @torch.no_grad()
    def replay(self, *inputs: Any, params: ExchangeParams) -> Any:
        """Repeat a call: the same batch with the ``params`` of that call gives the same result."""
        if params.bank != (self.donors.fingerprint if self.donors is not None else None):
            raise ValueError(
                f"params: their donors are rows of {_from(params.bank)}, this transform's are of "
                f"{_from(self.donors.fingerprint if self.donors is not None else None)}; replay with the same donors"
            )
        batch = parse(inputs, labels_getter=self.labels_getter)
        indices, one_hot = self._check(batch)
        last = int(params.rows.max()) if len(params.rows) else -1
        if last >= len(batch.images):
            raise ValueError(
                f"params: row {last} of a batch of {len(batch.images)}; replay with the same batch"
            )
        return self._execute(self._planned(indices, one_hot, params), *inputs, gated=False)

    def make_params(self, flat_inputs: list[Any]) -> ExchangeParams:
        """Draw hosts, donors and strengths.

        Args:
            flat_inputs: class indices (B,), and patients or None.
        """
        indices, patients = flat_inputs[0].cpu(), flat_inputs[1]
        known = torch.tensor([c in self._exchanger.config.classes for c in self.classes], device="cpu")
        eligible = known[indices]
        generator = rank_generator()
        chosen = torch.rand(len(indices), generator=generator, device="cpu") < self.p
        donors = self._draw(indices, patients, eligible, generator)
        if isinstance(self.append, bool):
            rows = (chosen & (donors >= 0)).nonzero()[:, 0]
            donors = donors[rows]
        else:
            rows, donors = self._so_many(
                self.append, donors, lambda: self._draw(indices, patients, eligible, generator), generator
            )
        low, high = strength_range(self.strength)
        strengths = low + (high - low) * torch.rand(
            max(len(indices), len(rows)), generator=generator, device="cpu"
        )
        strengths = strengths[rows] if isinstance(self.append, bool) else strengths[: len(rows)]
        bank = None if self.donors is None else self.donors.fingerprint
        return ExchangeParams(rows, donors, strengths, bank)

    def _draw(self, indices: Tensor, patients: Any, eligible: Tensor, generator: torch.Generator) -> Tensor:
        """(B,) a donor for each row, -1 where there is none."""
        if self.donors is None:
            return draw_donors(
                indices,
                patients=patients,
                same_patient=self.same_patient,
                eligible=eligible,
                generator=generator,
            )
        labels = [
            self.classes[i] if e else None for i, e in zip(indices.tolist(), eligible.tolist(), strict=True)
        ]
        ids = None if self.same_patient else patients
        return draw_from_bank(self.donors, labels, self.classes, ids, generator)

    def _so_many(
        self, k: int, donors: Tensor, again: Callable[[], Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Just k rows and their donors: every row once before any comes again; where none can exchange, repeats."""
        rows: list[Tensor] = []
        given: list[Tensor] = []
        while len(donors) and sum(len(r) for r in rows) < k:
            able = (donors >= 0).nonzero()[:, 0]
            if not len(able):
                self._say(
                    "repeats",
                    f"append={k}: this batch has no two rows that can exchange, so rows of it are repeated as they are; "
                    "more images a batch, or donors= from a bank, give exchanged knees",
                )
                able = torch.arange(len(donors), device="cpu")
            able = able[torch.randperm(len(able), generator=generator, device="cpu")]
            rows.append(able)
            given.append(donors[able])
            donors = again()
        empty = torch.empty(0, dtype=torch.int64, device="cpu")
        return torch.cat([*rows, empty])[:k], torch.cat([*given, empty])[:k]

    @torch.no_grad()
    def _plan(self, *inputs: Any, patients: Any = None) -> Plan:
        """Check a batch and draw what will be done with it: one transfer from a GPU, none from the CPU."""
        batch = parse(inputs, self.labels_getter)
        acts = self.enabled and self.training
        entries: list[Ids] = []
        if acts and not self.same_patient:
            entries = patient_entries(batch) if patients is None else [Ids("patients", patients)]
        indices, one_hot = self._check(batch, entries)
        if not acts:
            return Plan(indices, one_hot)
        ids = self._ids(entries, len(indices), given=patients is not None)
        params = self.make_params([indices, ids])
        if self.p > 0 or not isinstance(self.append, bool):
            self._say_if_idle(indices, ids)
        return self._planned(indices, one_hot, params)

    def _ids(self, entries: list[Ids], n: int, given: bool) -> list[str | None] | None:
        """The id of each row; None for a batch without patients."""
        values: Any = entries[0].values if given and entries else None
        if not given:
            values, said = chosen(entries, n)
            for kind, sentence in said.items():
                self._say(kind, sentence)
        if values is None:
            return None
        ids = ids_of(values, n)
        if "zeros" not in self._said and warn_of_zeros(ids):
            self._said.add("zeros")
        if None in ids and "missing" not in self._said:
            self._said.add("missing")
            warn_of_missing(ids, "patients")
        return ids

    def _say_if_idle(self, indices: Tensor, ids: list[str | None] | None) -> None:
        """A word, once, about batches of one patient, and about a loop none of whose first batches could exchange."""
        known = [self.classes[i] in self._exchanger.config.classes for i in indices.tolist()]
        found = {i for i, known_too in zip(indices.tolist(), known, strict=True) if known_too}
        able = self._acted or len(found) > (self.donors is None)
        if able and ids is not None and self.donors is None:
            whose = [who for who, known_too in zip(ids, known, strict=True) if known_too]
            if len(found) > 1 and None not in whose and len(set(whose)) == 1:
                self._say(
                    "one patient",
                    f"patients: all {len(whose)} rows that could exchange are of patient {whose[0]!r}, so none does. If "
                    "these are not the patients (the third entry of a tuple is taken for them), give patients= or "
                    "same_patient=True",
                )
        self._acted = able
        self._idle += not able
        if self._idle == IDLE:
            self._say(
                "idle",
                f"the first {IDLE} batches had no two rows of different classes among {self._exchanger.config.classes}, so "
                "nothing was exchanged: shuffle the loader, take larger batches, or give donors= from a bank",
            )

    def _say(self, kind: str, sentence: str) -> None:
        """A warning, once in the life of the transform."""
        if kind not in self._said:
            self._said.add(kind)
            warnings.warn(sentence, stacklevel=6)

    def _planned(self, indices: Tensor, one_hot: bool, params: ExchangeParams) -> Plan:
        """With everything that needs a look at numbers, for which a GPU would have to be waited for."""
        has = params.donors >= 0
        given = indices[params.rows]
        if self.donors is None:
            given = torch.where(has, indices[params.donors.clamp_min(0)], given)
        else:
            known = [
                self.classes.index(self.donors.label(row)) if row >= 0 else -1
                for row in params.donors.tolist()
            ]
            given = torch.where(has, torch.tensor(known, dtype=torch.int64, device="cpu"), given)
        rows, donors = params.rows[has], params.donors[has]
        sources = [rows] * needs_own_key(params.strengths[has], self.detail) + [donors] * (
            self.donors is None
        )
        encoded = torch.cat(sources).unique() if sources else rows[:0]
        at = [
            torch.searchsorted(encoded, r) if any(r is s for s in sources) else None for r in (rows, donors)
        ]
        return Plan(indices, one_hot, params, given, encoded, *at)

    @torch.no_grad()
    def _execute(self, plan: Plan, *inputs: Any, gated: bool = True) -> Any:
        """Do what was planned, with the batch on its device; nothing here waits for a GPU but a gate's verdict.

        Args:
            plan: of the same batch, wherever that was.
            inputs: as they came to :meth:`forward`.
            gated: whether to ask the gate.
        """
        batch = parse(inputs, labels_getter=self.labels_getter)
        images = batch.images.as_subclass(Tensor)
        if plan.params is None:
            soft = (
                self._labels(batch.labels, plan, plan.indices[:0])
                if self.label_mode == "soft"
                else batch.labels
            )
            return batch.rebuild(batch.images, soft)
        params, given = plan.params, plan.given
        assert given is not None
        new = self._exchanged(images, plan)
        if gated and self.gate is not None and bool((params.donors >= 0).any()):
            new, params, given = self._gated(images, new, plan)
        self.params = params
        labels = self._labels(batch.labels, plan, given, params)
        if not len(params.rows):
            # a MetaTensor's metadata must not be the caller's, whether or not a row was drawn
            facts = type(batch.images) is not Tensor and bool(vars(batch.images))
            return batch.rebuild(like(images, batch.images) if facts else batch.images, labels)
        if self.append:
            out = like(joined(images, new), batch.images, params.rows, batch.left)
            made = batch.rebuild(out, labels, params.rows)
            for kind in batch.left:
                self._say(
                    f"left {kind}",
                    f"append={self.append}: the batch has a {kind} of {batch.n}, which cannot be extended and stays as it "
                    "is; accepted are tensors, arrays, lists, tuples, dicts and pandas' columns",
                )
            return made
        out = images.clone()  # keeps the memory format
        out[sent(params.rows, out.device)] = new
        return batch.rebuild(like(out, batch.images), labels)

    def _exchanged(self, images: Tensor, plan: Plan) -> Tensor:
        """(k, C, H, W) exchanged knees in the images' dtype and scale; repeats of rows that have no donor."""
        assert plan.params is not None
        assert plan.encoded is not None
        params, device = plan.params, images.device
        has = params.donors >= 0
        rows, strengths = params.rows[has], params.strengths[has]
        size = self.chunk_size or max(1, len(rows))
        groups = plan.encoded.split(size) if len(plan.encoded) else ()  # none with the keys of a bank alone
        parts = [
            self._exchanger.keys(self.intensity.to_unit(images[sent(group, device)])) for group in groups
        ]
        keys = torch.cat(parts) if parts else images.new_empty(0)
        new = []
        for part in torch.arange(len(rows), device="cpu").split(size) if len(rows) else ():
            own_key = None if plan.hosts_at is None else keys[sent(plan.hosts_at[part], device)]
            if self.donors is None:
                assert plan.donors_at is not None
                key = keys[sent(plan.donors_at[part], device)]
            else:
                key = sent(self.donors.keys(params.donors[has][part]), device)
            unit = self.intensity.to_unit(images[sent(rows[part], device)])
            made = self._exchanger.exchange(unit, key, own_key, sent(strengths[part], device), self.detail)
            new.append(self.intensity.from_unit(made, images.dtype))
        made = torch.cat(new) if new else images[:0]
        if bool(has.all()):
            return made
        out = images[sent(params.rows, device)]
        out[sent(has.nonzero()[:, 0], device)] = made
        return out

    def _gated(self, images: Tensor, new: Tensor, plan: Plan) -> tuple[Tensor, ExchangeParams, Tensor]:
        """Without the rows that the gate rejects; a fixed number of rows keeps them, as their hosts."""
        assert plan.params is not None
        assert plan.given is not None
        params, given, device = plan.params, plan.given, images.device
        assert self.gate is not None
        hosts = images[sent(params.rows, device)]
        names = [self.classes[i] for i in self._hard(plan.indices, given, params).tolist()]
        offered = (params.donors >= 0).nonzero()[:, 0]  # repeats are not
        there = sent(offered, device)
        unit, host = (self.intensity.to_unit(x[there]) for x in (new, hosts))
        verdict = torch.ones(len(names), dtype=torch.bool, device=device)
        verdict[there] = self.gate(unit, host, [names[i] for i in offered.tolist()])
        accepted = verdict.cpu()
        if isinstance(self.append, bool):
            return new[verdict], params.where(accepted), given[accepted]
        new = torch.where(verdict[:, None, None, None], new, hosts)
        donors = torch.where(accepted, params.donors, -1)
        given = torch.where(accepted, given, plan.indices[params.rows])
        return new, ExchangeParams(params.rows, donors, params.strengths, params.bank), given

    def _hard(self, indices: Tensor, given: Tensor, params: ExchangeParams) -> Tensor:
        """(k,) one class each: the key's, unless most of the key is still the host's own."""
        return torch.where(params.strengths >= 0.5, given, indices[params.rows])

    def _labels(
        self, labels: Tensor, plan: Plan, given: Tensor, params: ExchangeParams | None = None
    ) -> Tensor:
        """The batch's new labels in the form of ``label_mode``, on the labels' device."""
        indices, k = plan.indices, len(self.classes)
        rows = indices[:0] if params is None else params.rows
        if self.label_mode == "soft":
            old = F.one_hot(indices, k).float()
            share = (
                torch.ones(0, 1, device="cpu") if params is None else params.strengths.clamp(max=1)[:, None]
            )
            new = (1 - share) * old[rows] + share * F.one_hot(given, k).float()
        else:
            hard = given if params is None else self._hard(indices, given, params)
            old = F.one_hot(indices, k).to(labels.dtype) if plan.one_hot else indices.to(labels.dtype)
            new = (F.one_hot(hard, k) if plan.one_hot else hard).to(labels.dtype)
        out = torch.cat([old, new]) if self.append else old.index_put((rows,), new)
        return sent(out, labels.device)

    def _check(self, batch: Batch, entries: Sequence[Ids] = ()) -> tuple[Tensor, bool]:
        """Class indices on the CPU, and whether labels came one-hot; images are refused, or what was let pass is said.

        Whatever must be known of a batch on a GPU comes over in one transfer: labels, statistics of the images, and
        the patients' entries, whose values are then on the CPU.
        """
        images, labels = batch.images, batch.labels.as_subclass(Tensor)
        if isinstance(images, (tv_tensors.Mask, tv_tensors.BoundingBoxes)):
            raise TypeError(f"images: got a {type(images).__name__}, accepted are images")
        self.intensity.check_shape(images)
        ids = [entry for entry in entries if isinstance(entry.values, Tensor)]
        wanted = [self.intensity.statistics(images), labels, *(e.values.as_subclass(Tensor) for e in ids)]
        statistics, labels, *values = to_cpu(wanted)
        for entry, value in zip(ids, values, strict=True):
            entry.values = value
        for kind, sentence in self.intensity.oracle(images, statistics).items():
            self._say(kind, sentence)
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


def _from(bank: str | None) -> str:
    return "the batch" if bank is None else f"bank {bank[:12]}"
