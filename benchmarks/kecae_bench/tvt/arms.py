"""What is compared: the arms, and how X' is used in those that have one.

Every arm of a seed begins a step with the same real knees, class-balanced. What an arm adds stands *beside* them, made by
the product's own public API from the step's own real knees, and is never given back: no real knee leaves for it (but
with ``p``, which replaces, and in "paper", which is the paper's protocol).

    T                         real knees alone
    T + further real          further real knees in the place of what is added: the control for larger batches
    T + MixUp, T + CutMix     torchvision's
    T + X^                    reconstructions with their own labels: the control for blur and for decoding
    T + X' same grade         X' whose key is of the same grade, own label: the control for exchanging as such
    T + X' permuted labels    X' with permuted labels: the control for noise
    T'                        X' made in the step (KeyExchangeAugment)
    T' from pairs             X' out of N pairs that are drawn once (KeyExchangeDataset)
    T' gated                  T' of those that held-out oracles accept (Gate)
    T' unlabelled hosts       T' of hosts that are training knees outside T, with T's keys: their own labels are not used
    T + X' unlabelled hosts, permuted labels
                              the same with permuted labels: its control for noise
    paper                     batches out of T' = T and N pairs, as many epochs of it as the others have of T

Standard augmentation is no arm but a setting of all arms alike: real and added knees have it, after the exchange.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class Arm:
    """An arm by its parts.

    Attributes:
        added: what stands beside the real knees, a key of :data:`USED`.
        mix: ``"mixup"``, ``"cutmix"`` or None.
    """

    name: str
    added: str = "none"
    mix: str | None = None

    @property
    def uses_weights(self) -> bool:
        """Whether weights play a part; runs of arms without are those of any weights with the same split."""
        return self.added not in ("none", "real")

    @property
    def uses_pairs(self) -> bool:
        """Whether N, the number of pairs, plays a part."""
        return self.added in ("pairs", "paper")

    @property
    def permutes(self) -> bool:
        """Whether the labels of what is added are permuted."""
        return self.added in ("permuted", "unlabelled_permuted")

    @property
    def uses_others(self) -> bool:
        """Whether training knees outside T play a part, so that T must be a fraction of the training patients."""
        return self.added in ("unlabelled", "unlabelled_permuted")


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("T"),
        Arm("T + further real", "real"),
        Arm("T + MixUp", mix="mixup"),
        Arm("T + CutMix", mix="cutmix"),
        Arm("T + X^", "x_hat"),
        Arm("T + X' same grade", "same_grade"),
        Arm("T + X' permuted labels", "permuted"),
        Arm("T'", "exchanged"),
        Arm("T' from pairs", "pairs"),
        Arm("T' gated", "gated"),
        Arm("T' unlabelled hosts", "unlabelled"),
        Arm("T + X' unlabelled hosts, permuted labels", "unlabelled_permuted"),
        Arm("paper", "paper"),
    )
}


@dataclass(frozen=True)
class ExchangeOptions:
    """How X' is used: the same in all T' arms of a command, and what a line's ``options`` hold.

    Args:
        added: exchanged knees that are added to each batch; None for a third of it.
        p: None adds; a number replaces each real knee with this chance instead (``append=False``).
        strength: fraction of the donor's key, or a range.
        detail: ``"host"`` keeps the host's own sharpness, ``"decoder"`` is the paper's X'.
        labels: of X': ``"key"`` the donor's, ``"soft"`` by the strength, ``"oracles"`` what held-out oracles predict.
        smoothing: of X' labels only, towards equal chances.
        early: fraction of the steps, from the first, that have X'; the rest is T alone. With ``p=1`` it is pre-training.
        donors: ``"batch"``, or ``"bank"`` for keys of the whole training set (:class:`kecae_aug.LatentBank`).
        min_probability: of the gate, see :class:`kecae_aug.Gate`.
        min_agreement: of the gate.
        max_distance: of the gate.

    Raises:
        ValueError: naming the option.
    """

    added: int | None = None
    p: float | None = None
    strength: float | tuple[float, float] = 1.0
    detail: Literal["host", "decoder"] = "host"
    labels: Literal["key", "soft", "oracles"] = "key"
    smoothing: float = 0.0
    early: float = 1.0
    donors: Literal["batch", "bank"] = "batch"
    min_probability: float = 0.5
    min_agreement: float = 1.0
    max_distance: float | None = None

    def __post_init__(self) -> None:
        low, high = self.strengths
        checks = {
            "added": (self.added is None or self.added >= 1, "1 or more, or none for a third of the batch"),
            "p": (self.p is None or 0 < self.p <= 1, "a chance above 0, up to 1, or none to add"),
            "strength": (0 <= low <= high < float("inf"), "a number of 0 or more, or a range"),
            "detail": (self.detail in ("host", "decoder"), "host, decoder"),
            "labels": (self.labels in ("key", "soft", "oracles"), "key, soft, oracles"),
            "smoothing": (0 <= self.smoothing < 1, "0 or more, below 1"),
            "early": (0 < self.early <= 1, "a fraction above 0, up to 1"),
            "donors": (self.donors in ("batch", "bank"), "batch, bank"),
        }
        for name, (fine, accepted) in checks.items():
            if not fine:
                raise ValueError(f"{name}={getattr(self, name)!r}: accepted: {accepted}")
        if self.p is not None and (self.added is not None or self.labels != "key" or self.smoothing):
            raise ValueError(
                "p: replaces real knees, so that added, labels and smoothing play no part; give either"
            )

    @property
    def strengths(self) -> tuple[float, float]:
        """(low, high)."""
        if isinstance(self.strength, (int, float)):
            return float(self.strength), float(self.strength)
        low, high = self.strength
        return float(low), float(high)

    def count_beside(self, batch: int) -> int:
        """X' beside a batch of so many real knees."""
        return min(self.added or max(1, batch // 3), batch)

    def select_used(self, added: str) -> dict[str, Any]:
        """What plays a part in an arm that adds ``added``: two runs that differ in the rest only are the same run."""
        values = asdict(self)
        values["strength"] = list(self.strengths)
        return {name: values[name] for name in USED[added]}


_EXCHANGE = ("strength", "detail")
_ALL = tuple(f.name for f in fields(ExchangeOptions))
_GATE = ("min_probability", "min_agreement", "max_distance")
USED: dict[str, tuple[str, ...]] = {  # which options play a part, by what an arm adds
    "none": (),
    "real": ("added", "early"),
    "x_hat": ("added", "early"),
    "same_grade": ("added", "early", *_EXCHANGE),
    "permuted": ("added", "early", *_EXCHANGE, "donors"),
    "exchanged": tuple(name for name in _ALL if name not in _GATE),
    "gated": tuple(name for name in _ALL if name != "p"),
    "unlabelled": ("added", "early", *_EXCHANGE),
    "unlabelled_permuted": ("added", "early", *_EXCHANGE),
    "pairs": ("added", "early", *_EXCHANGE, "labels", "smoothing"),
    "paper": (),
}
