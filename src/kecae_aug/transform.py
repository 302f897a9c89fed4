"""The drop-in: :class:`KeyExchangeAugment` exchanges keys between the differently labelled knees of a batch."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from kecae_aug.donors import draw_donors, draw_from_bank
from kecae_aug.engine.apply import ask_gate, exchange_rows, put_rows
from kecae_aug.engine.arguments import AugmentOptions, check_classes, check_values
from kecae_aug.engine.batch import Batch, LabelsGetter, parse
from kecae_aug.engine.exchange import Detail, Exchanger
from kecae_aug.engine.intensity import Intensity
from kecae_aug.engine.labels import LabelMode, read_labels, write_labels
from kecae_aug.engine.model import KECAE
from kecae_aug.engine.options import EngineOptions
from kecae_aug.engine.params import ExchangeParams, strength_range
from kecae_aug.engine.patients import Ids, find_ids, read_ids
from kecae_aug.engine.plan import Plan, draw_params
from kecae_aug.engine.rows import add_rows
from kecae_aug.engine.transfer import fetch
from kecae_aug.engine.warn import IdleWatch, WarnOnce
from kecae_aug.weights.io import load_weights

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
        detail: ``"host"`` returns X + X' - X^, the host's own sharpness and resolution with what the exchange changed, and
            is the setting that was measured to do best; ``"decoder"`` returns X' as decoded (the paper).
        append: False replaces the chosen rows; True adds the exchanged knees after the batch's own rows
            (T' = T and X'), so that a batch of B grows by about p * B. A number adds just so many rows to every batch,
            whatever ``p``, as DDP and compiled steps want it; where fewer rows can exchange, rows are repeated as they are.
            Whatever else in the batch has B rows (tensors, masks, arrays, lists, nested dicts) gets the hosts' rows.
        classes: names of the caller's classes in the order of their indices, for instance
            ``dataset.classes``; by default the bank's, or the weights' own. Rows of classes that the weights do not know
            pass through.
        value_range: of float images; by default the bank's, or (0, 1).
        mean: of images that are already normalised, per channel, with ``std``; they are taken to be in
            [0, 1] before normalisation.
        std: see ``mean``.
        label_mode: ``"key"`` gives the donor's label (for strength below 0.5 the host's own) in the form that came;
            ``"one_hot"`` the same as (B, K) floats, ``"soft"`` floats with min(strength, 1) on the donor's class; both also
            where nothing is exchanged, so that ``v2.RandomChoice([augment, v2.MixUp(num_classes=K)])`` gives one form.
        bank: a :class:`~kecae_aug.LatentBank` that the keys are drawn from, so that a batch of one class
            can exchange too and no donor is encoded; by default the batch itself.
        same_patient: whether the two knees of a patient may exchange, where patients are given.
        labels_getter: as of torchvision's MixUp. ``"default"`` finds images and labels in pairs, in dicts with ``image``,
            ``images``, ``img`` or ``pixel_values`` and ``label``, ``labels``, ``target`` or ``targets``, and in any nesting
            of these; a function finds the labels in a batch, whose images are then the one ``tv_tensors.Image``, or the one
            tensor (B, C, H, W). With None every call is refused, as MixUp refuses it.
        gate: a :class:`~kecae_aug.Gate`; rows it rejects stay as they came. On a GPU its verdict is waited for.
        engine: precision, memory format, chunks and compilation of the network, see
            :class:`~kecae_aug.EngineOptions`.

    The paper's reading is ``p=1.0, strength=1.0, detail="decoder", same_patient=True``.
    """

    def __init__(
        self,
        model: KECAE,
        *,
        p: float = 0.5,
        strength: float | tuple[float, float] = 1.0,
        detail: Detail = "host",
        append: bool | int = False,
        classes: Sequence[str | int] | None = None,
        value_range: tuple[float, float] | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        label_mode: LabelMode = "key",
        bank: LatentBank | None = None,
        same_patient: bool = False,
        labels_getter: LabelsGetter = "default",
        gate: Gate | None = None,
        engine: EngineOptions | None = None,
    ) -> None:
        super().__init__()
        check_values(p, strength, detail, append, label_mode, labels_getter)
        if value_range is None:
            value_range = (0.0, 1.0) if bank is None or mean is not None else bank.intensity.value_range
        self.intensity = Intensity.of(value_range, mean, std)
        exchanger = Exchanger(model, engine)
        self.classes = check_classes(classes, exchanger, bank, gate)
        self.p, self.strength, self.detail = float(p), strength, detail
        self.append, self.label_mode, self.same_patient = append, label_mode, same_patient
        self.labels_getter, self.bank, self.gate = labels_getter, bank, gate
        self.engine = exchanger.engine
        self.enabled = True
        self.params: ExchangeParams | None = None
        self._warn = WarnOnce()
        self._idle = IdleWatch(exchanger.config.classes, bank is None, self._warn)
        self.__dict__["_exchanger"] = exchanger  # not a submodule, whatever nn.Module.__setattr__ thinks

    @classmethod
    def from_pretrained(
        cls,
        weights: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **options: Unpack[AugmentOptions],
    ) -> KeyExchangeAugment:
        """With trained weights: a bundled name, a folder, or a Hub id (see :func:`kecae_aug.load_weights`)."""
        model = load_weights(
            weights, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
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
            ValueError: naming the argument, what came and what is accepted.
        """
        return self.apply_plan(self.plan_batch(*inputs, patients=patients), *inputs)

    @torch.compiler.disable
    @torch.no_grad()
    def replay(self, *inputs: Any, params: ExchangeParams) -> Any:
        """Repeat a call: the same batch with the ``params`` of that call gives the same result."""
        bank = None if self.bank is None else self.bank.fingerprint
        if params.bank != bank:
            theirs, ours = ("the batch" if b is None else f"bank {b[:12]}" for b in (params.bank, bank))
            raise ValueError(
                f"params: their donors are rows of {theirs}, this transform's are of {ours}; replay with the same bank"
            )
        batch = parse(inputs, self.labels_getter)
        indices, one_hot = self._check(batch, [])
        last = int(params.rows.max()) if len(params.rows) else -1
        if last >= len(batch.images):
            raise ValueError(
                f"params: row {last} of a batch of {len(batch.images)}; replay with the same batch"
            )
        return self.apply_plan(self._complete(indices, one_hot, params), *inputs, gated=False)

    @torch.no_grad()
    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw what :meth:`transform` will do, as of every ``v2.Transform``.

        Args:
            flat_inputs: images (B, C, H, W), labels, and the patients' ids if there are any: the leaves of such a batch.

        Returns:
            ``plan``, and the ``labels`` that :meth:`transform` tells from other entries, as MixUp does.
        """
        return {"plan": self.plan_batch(list(flat_inputs)), "labels": flat_inputs[1]}

    @torch.no_grad()
    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """One entry of a batch. With a gate, whose verdict the labels need, transform the images first.

        Args:
            inpt: images (B, C, H, W), which are exchanged; the labels of :meth:`make_params`; or anything else, which
                gets the hosts' rows where ``append`` adds rows.
            params: of :meth:`make_params`; ``plan`` is replaced by what a gate accepts.
        """
        plan: Plan = params["plan"]
        if inpt is params["labels"]:
            return write_labels(plan, inpt, len(self.classes), self.label_mode, bool(self.append))
        if isinstance(inpt, Tensor) and inpt.ndim == 4 and not isinstance(inpt, tv_tensors.Mask):
            images, params["plan"] = self._exchange(inpt, plan, gated=True, left=[])
            return images
        return add_rows(inpt, plan.params.rows, len(plan.indices), []) if self.append else inpt

    def draw(self, indices: Tensor, patients: Any = None) -> ExchangeParams:
        """Hosts, donors and strengths for class indices (B,) and their patients, as a call would draw them."""
        indices = indices.cpu()
        known = torch.tensor([c in self._exchanger.config.classes for c in self.classes], device="cpu")
        eligible = known[indices]

        def draw(generator: torch.Generator) -> Tensor:
            if self.bank is None:
                return draw_donors(
                    indices,
                    patients=patients,
                    same_patient=self.same_patient,
                    eligible=eligible,
                    generator=generator,
                )
            pairs = zip(indices.tolist(), eligible.tolist(), strict=True)
            labels = [self.classes[i] if is_known else None for i, is_known in pairs]
            ids = None if self.same_patient else patients
            return draw_from_bank(self.bank, labels, self.classes, ids, generator)

        return draw_params(
            len(indices),
            draw,
            p=self.p,
            append=self.append,
            strength=strength_range(self.strength),
            bank=None if self.bank is None else self.bank.fingerprint,
            warn=self._warn,
        )

    @torch.no_grad()
    def plan_batch(self, *inputs: Any, patients: Any = None) -> Plan:
        """Check a batch and draw what will be done with it: one transfer from a GPU, none from the CPU."""
        batch = parse(inputs, self.labels_getter)
        acts = self.enabled and self.training
        entries: list[Ids] = []
        if acts and not self.same_patient:
            entries = find_ids(batch) if patients is None else [Ids("patients", patients)]
        indices, one_hot = self._check(batch, entries)
        if not acts:
            return Plan.empty(indices, one_hot)
        ids = read_ids(entries, len(indices), self._warn, given=patients is not None)
        params = self.draw(indices, ids)
        if self.p > 0 or not isinstance(self.append, bool):
            self._idle.see([self.classes[i] for i in indices.tolist()], ids)
        return self._complete(indices, one_hot, params)

    @torch.no_grad()
    def apply_plan(self, plan: Plan, *inputs: Any, gated: bool = True) -> Any:
        """Do what was planned, with the batch on its device; nothing here waits for a GPU but a gate's verdict.

        Args:
            plan: of the same batch, wherever that was.
            inputs: as they came to :meth:`forward`.
            gated: whether to ask the gate.
        """
        batch = parse(inputs, self.labels_getter)
        images = batch.images
        if plan.acts:
            images, plan = self._exchange(images, plan, gated, batch.left)
        labels = write_labels(plan, batch.labels, len(self.classes), self.label_mode, bool(self.append))
        rows = plan.params.rows
        out = batch.rebuild(images, labels, rows if self.append and len(rows) else None)
        for kind in batch.left:
            self._warn(
                f"left {kind}",
                f"append={self.append}: the batch has a {kind} of {batch.n}, which cannot be extended and stays as it "
                "is; accepted are tensors, arrays, lists, tuples, dicts and pandas' columns",
            )
        return out

    def _exchange(self, given: Tensor, plan: Plan, gated: bool, left: list[str]) -> tuple[Tensor, Plan]:
        """The images after the exchange, and the plan that the gate has left."""
        if not plan.acts:
            return given, plan
        images = given.as_subclass(Tensor)
        new = exchange_rows(
            images,
            plan,
            self._exchanger,
            detail=self.detail,
            intensity=self.intensity,
            bank=self.bank,
        )
        if gated and self.gate is not None:
            new, plan = ask_gate(
                self.gate,
                images,
                new,
                plan,
                classes=self.classes,
                intensity=self.intensity,
                fixed=not isinstance(self.append, bool),
            )
        self.params = plan.params
        return put_rows(given, new, plan.params.rows, bool(self.append), left), plan

    def _complete(self, indices: Tensor, one_hot: bool, params: ExchangeParams) -> Plan:
        """With the donors' classes."""
        has, given = params.donors >= 0, indices[params.rows]
        if self.bank is None:
            theirs = indices[params.donors.clamp_min(0)]
        else:
            names = [self.bank.label(row) if row >= 0 else None for row in params.donors.tolist()]
            known = [-1 if name is None else self.classes.index(name) for name in names]
            theirs = torch.tensor(known, dtype=torch.int64, device="cpu")
        return Plan(indices, one_hot, params, torch.where(has, theirs, given))

    def _check(self, batch: Batch, entries: Sequence[Ids]) -> tuple[Tensor, bool]:
        """Class indices on the CPU, and whether labels came one-hot; images are refused, or what was let pass is said.

        Whatever must be known of a batch on a GPU comes over in one transfer: labels, statistics of the images, and
        the patients' entries, whose values are then on the CPU.
        """
        images, labels = batch.images, batch.labels.as_subclass(Tensor)
        if isinstance(images, (tv_tensors.Mask, tv_tensors.BoundingBoxes)):
            raise ValueError(f"images: got a {type(images).__name__}, accepted are images")
        self.intensity.check_shape(images)
        ids = [entry for entry in entries if isinstance(entry.values, Tensor)]
        wanted = [self.intensity.statistics(images), labels, *(e.values.as_subclass(Tensor) for e in ids)]
        statistics, labels, *values = fetch(wanted)
        for entry, value in zip(ids, values, strict=True):
            entry.values = value
        self._warn.each(self.intensity.assess(images, statistics))
        return read_labels(labels, len(images), len(self.classes))

    def extra_repr(self) -> str:
        """Options that differ from their defaults."""
        shown = {**vars(self), **vars(self.intensity)}
        source = self._exchanger.metadata.get("weights", {}).get("source")
        defaults = {
            **_DEFAULTS,
            "classes": self._exchanger.config.classes,
            "engine": EngineOptions(),
            "value_range": (0.0, 1.0),
        }
        parts = [repr(source)] if source else []
        return ", ".join(parts + [f"{k}={shown[k]!r}" for k, v in defaults.items() if shown[k] != v])


_DEFAULTS: dict[str, Any] = {
    **(KeyExchangeAugment.__init__.__kwdefaults__ or {}),
    "enabled": True,
}


def _show_options() -> None:
    """``help`` and ``inspect.signature`` of from_pretrained list the options; an editor reads AugmentOptions."""
    method: Any = KeyExchangeAugment.__dict__["from_pretrained"].__func__
    loading = [v for v in inspect.signature(method).parameters.values() if v.kind != v.VAR_KEYWORD]
    options = [
        v
        for v in inspect.signature(KeyExchangeAugment.__init__).parameters.values()
        if v.kind == v.KEYWORD_ONLY
    ]
    method.__signature__ = inspect.signature(method).replace(parameters=[*loading, *options])


_show_options()
