"""Key exchange with timm: :class:`KeyExchangeMixup` in your loop, or a launcher for timm's own ``train.py``.

    python -m kecae_aug.integrations.timm train.py --key-exchange-weights knee-kl02 \
        --data-dir DIR --model resnet18 --num-classes 2 --scale 1 1 --ratio 1 1 --hflip 0 \
        --color-jitter 0   # train.py's own

timm's wheel has no ``train.py``: take it from its repository, at the tag of the installed version.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kecae_aug.engine.exchange import Detail
from kecae_aug.engine.model import KECAE
from kecae_aug.transform import KeyExchangeAugment
from kecae_aug.weights.io import load_weights

try:
    import timm.data
except ImportError as error:
    raise ImportError("kecae_aug.integrations.timm needs timm: pip install 'kecae-aug[timm]'") from error

_Mixup: Any = timm.data.__dict__["Mixup"]  # timm is annotated in part only


class AnyBatchMixup(_Mixup):
    """``timm.data.Mixup`` for odd batches and one-hot targets too, as an exchange may leave them, and for both alphas 0."""

    multi_label = False  # older timm has none

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """As timm's, in place."""
        return self.mix(x, target)

    def mix(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Rows mixed in place, the last one of an odd batch with nobody, and their soft targets."""
        if target.ndim == 2 and not self.multi_label:
            target = target.argmax(1)  # timm would flatten one-hot rows into B * K labels
        even = len(x) // 2 * 2
        mixed, soft = self._mix(x[:even], target[:even])
        if even == len(x):
            return mixed, soft
        return torch.cat([mixed, x[even:]]), torch.cat([soft, self._smooth(target[even:])])

    def _mix(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if len(x) == 0 or (self.mixup_alpha <= 0 and self.cutmix_alpha <= 0):
            return x, self._smooth(target)  # timm asserts that an alpha is above 0
        mixed: tuple[Tensor, Tensor] = super().__call__(x, target)
        return mixed

    def _smooth(self, target: Tensor) -> Tensor:
        """Soft targets of rows that are mixed with nobody, smoothed as timm does."""
        if self.multi_label:
            return target * (1 - float(self.label_smoothing)) + 0.5 * float(self.label_smoothing)
        soft = torch.full(
            (len(target), self.num_classes), self.label_smoothing / self.num_classes, device=target.device
        )
        soft[torch.arange(len(target), device=target.device), target] += 1 - self.label_smoothing
        return soft


class KeyExchangeMixup(AnyBatchMixup):
    """``timm.data.Mixup`` that exchanges keys first: ``x, target = mixup(x, target)``.

    Convention:
        x: (B, C, H, W) floats on any device, C = 1 or 3 equal channels, as timm's loaders give them:
            normalised, so ``mean`` and ``std`` are needed.
        target: (B,) class indices, or (B, K) one-hot rows.
        returns: new tensors, x and (B, num_classes) float soft targets for ``SoftTargetCrossEntropy``. The
            label follows the key, is then smoothed and mixed. Neither argument is changed, unlike with timm.
        An odd batch is taken: its last row is exchanged and smoothed, but mixed with nobody.
        ``mixup_enabled = False`` switches the mixing off, as in timm; ``exchange.enabled = False`` the exchange.

    Args:
        mixup_alpha: of ``timm.data.Mixup``, like every argument up to ``multi_label``. With both alphas 0 nothing is mixed.
        weights: a bundled name, a folder, a Hub id, or a KECAE.
        p: chance of each row to become an exchanged knee; ``prob`` is that of mixing.
        strength: see :class:`~kecae_aug.KeyExchangeAugment`.
        detail: see :class:`~kecae_aug.KeyExchangeAugment`.
        classes: names of the ``num_classes`` classes in the order of their indices, for timm's folders
            ``list(dataset.reader.class_to_idx)``; by default the weights' own, where their number fits.
        mean: of the normalisation, as given to timm's ``create_loader``; None for images in [0, 1].
        std: see ``mean``.
        **options: further ones of :class:`~kecae_aug.KeyExchangeAugment`.

    Raises:
        ValueError: naming the argument, what came and what is accepted.
    """

    def __init__(
        self,
        mixup_alpha: float = 1.0,
        cutmix_alpha: float = 0.0,
        cutmix_minmax: Sequence[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        correct_lam: bool = True,
        label_smoothing: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
        *,
        weights: str | os.PathLike[str] | KECAE,
        p: float = 0.5,
        strength: float | tuple[float, float] = 1.0,
        detail: Detail = "host",
        classes: Sequence[str | int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        for name, value in options.items():
            if name == "label_mode":
                raise ValueError(f"{name}={value!r}: not taken here; targets are soft in any case")
        if mode not in ("batch", "pair", "elem"):
            raise ValueError(f"mode={mode!r}: accepted are 'batch', 'pair' and 'elem'")
        if multi_label and "multi_label" not in inspect.signature(_Mixup.__init__).parameters:
            raise ValueError(
                "multi_label=True: the installed timm flattens dense targets; accepted is a timm whose Mixup has multi_label"
            )
        mixing = (mixup_alpha, cutmix_alpha, cutmix_minmax, prob, switch_prob, mode, correct_lam)
        super().__init__(*mixing, label_smoothing=label_smoothing, num_classes=num_classes)
        self.multi_label = multi_label  # not an argument of older timm
        model = weights if isinstance(weights, KECAE) else load_weights(weights)
        names = tuple(model.config.classes if classes is None else classes)
        if len(names) != num_classes:
            raise ValueError(
                f"num_classes={num_classes} with {len(names)} classes {names}"
                f"{' of the weights' if classes is None else ''}: give num_classes={len(names)}, or the names of "
                f"all {num_classes} classes in classes"
            )
        options |= {"strength": strength, "detail": detail, "classes": names, "mean": mean, "std": std}
        self.exchange = KeyExchangeAugment(model, p=p, **options)

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Exchange, then mix; see the class for shapes and errors."""
        if not x.is_floating_point():
            raise ValueError(
                f"x: got {x.dtype}, accepted are floats: timm mixes after the images were normalised"
            )
        new_x, target = self.exchange(x, target)
        return self.mix(x.clone() if new_x is x else new_x, target)  # timm mixes in place

    def __repr__(self) -> str:
        return f"KeyExchangeMixup({self.exchange!r}, mixup_alpha={self.mixup_alpha}, cutmix_alpha={self.cutmix_alpha})"
