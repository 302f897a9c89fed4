"""Key exchange in a Lightning Trainer without touching the module: :class:`KeyExchangeCallback`.

Trainer(callbacks=[KeyExchangeCallback(KeyExchangeAugment.from_pretrained("knee-kl02"))])

In a LightningCLI's YAML, under ``trainer.callbacks``:

    - class_path: kecae_aug.integrations.lightning.KeyExchangeCallback
      init_args: {augment: knee-kl02, options: {p: 0.33, append: true}}
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from kecae_aug.device import amp_dtype
from kecae_aug.engine.options import EngineOptions
from kecae_aug.transform import KeyExchangeAugment

HOOK = "on_after_batch_transfer"


def _callback_class() -> Any:
    """Of ``lightning``, or of the older ``pytorch_lightning``; either's Trainer takes either's callbacks."""
    errors = []
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(name).Callback
        except ImportError as error:
            errors.append(error)
    raise ImportError(
        "kecae_aug.integrations.lightning needs Lightning: pip install 'kecae-aug[lightning]'"
    ) from errors[0]


_Callback: Any = _callback_class()


class KeyExchangeCallback(_Callback):
    """Exchange keys within each training batch, on the device it was moved to.

    The batch is what the train dataloader gives: ``(images, labels)``, ``[images, labels, ...]`` or a dict; see
    :class:`~kecae_aug.KeyExchangeAugment` for what is accepted. While ``Trainer.fit`` runs, the callback wraps
    ``on_after_batch_transfer`` of the module, or of the datamodule where that one overrides it; an override of
    yours is called first, so normalising there needs ``mean`` and ``std`` in the transform. Sanity check,
    validation, test and prediction see their batches as they are. At the end, and after an exception, the hook
    is as it was. Nothing goes into parameters, checkpoints or ``state_dict()``.

    Args:
        augment: the transform, used as it is (``augment.enabled = False`` switches it off); or a name or folder of weights.
        options: of the transform, where ``augment`` is a name. Plain values do, as a YAML file holds them: lists for tuples,
            and for ``engine`` its fields, ``amp_dtype`` as Lightning's ``"bf16-mixed"`` or ``"16-mixed"``.

    Raises:
        TypeError: ``augment`` is something else.
        ValueError: in ``setup``, a module whose ``training_step`` takes ``dataloader_iter`` and so fetches its
            batches itself.
    """

    def __init__(self, augment: KeyExchangeAugment | str, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        if isinstance(augment, str):
            given = dict(options or {})
            if isinstance(given.get("engine"), Mapping):
                given["engine"] = _read_engine(given["engine"])
            augment = KeyExchangeAugment.from_pretrained(augment, **given)
        elif options:
            raise ValueError(
                f"options={options}: are of a transform that is made here; give them to the one in augment"
            )
        if not isinstance(augment, KeyExchangeAugment):
            raise TypeError(
                f"augment: got {type(augment).__name__}, accepted is a KeyExchangeAugment; for a name or folder "
                "KeyExchangeAugment.from_pretrained(name)"
            )
        self.augment = augment
        self._undo: Callable[[], None] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Wrap the hook; in the process that trains, so that a spawning strategy need not pickle it."""
        self._restore()
        if stage == "fit":
            if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
                raise ValueError(
                    f"{type(pl_module).__name__}.training_step takes dataloader_iter: it fetches its batches itself, and "
                    "Lightning's hooks never see them, so nothing would be exchanged. Call the transform in training_step "
                    "(images, labels = augment(images, labels)), or take training_step(self, batch, batch_idx)"
                )
            datamodule = getattr(trainer, "datamodule", None)
            self._wrap(datamodule if _overrides_hook(datamodule) else pl_module, trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the hook back."""
        self._restore()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the hook back; Lightning does not call ``teardown`` then."""
        self._restore()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_undo": None}

    def _wrap(self, owner: Any, trainer: Any) -> None:
        own = getattr(owner, HOOK)

        @functools.wraps(own)  # Lightning looks through it, and sees no override where there is none
        def hook(batch: Any, dataloader_idx: int) -> Any:
            batch = own(batch, dataloader_idx)
            done = vars(hook)["kecae_done"]
            return self._exchange(batch) if trainer.training and not done else batch

        under = vars(owner).get(HOOK)  # an attribute of the instance, if the user or another callback set one
        vars(hook).update(kecae_done=False, kecae_under=under)
        setattr(owner, HOOK, hook)

        def undo() -> None:
            vars(hook)["kecae_done"] = True
            # callbacks are torn down in the order in which they wrapped: whoever comes last unwraps all
            while vars(top := vars(owner).get(HOOK, _nothing)).get("kecae_done"):
                delattr(owner, HOOK)
                if vars(top)["kecae_under"] is not None:
                    setattr(owner, HOOK, vars(top)["kecae_under"])

        self._undo = undo

    def _exchange(self, batch: Any) -> Any:
        try:
            return self.augment(batch)
        except (TypeError, ValueError) as error:
            if not _of_several_loaders(batch):
                raise
            names = list(batch) if isinstance(batch, Mapping) else [f"number {i}" for i in range(len(batch))]
            raise type(error)(
                f"batch: a {type(batch).__name__} of {len(batch)} batches, {names}, as Lightning's CombinedLoader makes of "
                "several train dataloaders; KeyExchangeCallback takes those of one. Without the callback, call a "
                "KeyExchangeAugment on the batch that you mean in your training_step"
            ) from error

    def _restore(self) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None


def _read_engine(values: Mapping[str, Any]) -> EngineOptions:
    """Fields as a YAML file holds them."""
    accepted = [f.name for f in fields(EngineOptions)]
    if unknown := sorted(set(values) - set(accepted)):
        raise ValueError(f"options: engine has {unknown}, accepted are {accepted}")
    dtype = values.get("amp_dtype")
    return EngineOptions(**{**values, "amp_dtype": amp_dtype(dtype) if isinstance(dtype, str) else dtype})


def _nothing() -> None:
    """Stands for no attribute."""


def _of_several_loaders(batch: Any) -> bool:
    """Whether every part is a batch of its own; None stands for a loader that has ended."""
    if not isinstance(batch, (Mapping, list, tuple)):
        return False
    parts = list(batch.values()) if isinstance(batch, Mapping) else list(batch)
    return bool(parts) and all(part is None or isinstance(part, (Mapping, list, tuple)) for part in parts)


def _overrides_hook(datamodule: Any) -> bool:
    """Whether Lightning would call the datamodule's hook; by its name, for both of Lightning's packages."""
    if datamodule is None:
        return False
    if HOOK in vars(datamodule):
        return True
    owner = next(c for c in type(datamodule).__mro__ if HOOK in vars(c))
    return owner.__name__ != "DataHooks"
