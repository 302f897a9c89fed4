"""How X' is used: the options of the arms that exchange keys."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class ExchangeOptions:
    """What is the same in all T' arms of a study, and what a line's ``options`` hold.

    Args:
        added: exchanged knees that are added to each batch; None for a third of it.
        p: None adds; a number replaces each real knee with this chance instead (``append=False``).
        strength: share of the donor's key, or a range.
        detail: ``"host"`` keeps the host's own sharpness, ``"decoder"`` is the paper's X'.
        labels: of X': ``"key"`` the donor's, ``"soft"`` by the strength, ``"judges"`` what held-out judges say.
        smoothing: of X' labels only, towards equal chances.
        early: share of the steps, from the first, that have X'; the rest is T alone. With ``p=1`` it is pre-training.
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
    labels: Literal["key", "soft", "judges"] = "key"
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
            "labels": (self.labels in ("key", "soft", "judges"), "key, soft, judges"),
            "smoothing": (0 <= self.smoothing < 1, "0 or more, below 1"),
            "early": (0 < self.early <= 1, "a share above 0, up to 1"),
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

    def beside(self, batch: int) -> int:
        """X' beside a batch of so many real knees."""
        return min(self.added or max(1, batch // 3), batch)

    def used_by(self, added: str) -> dict[str, Any]:
        """What plays a part in an arm that adds ``added``: two runs that differ in the rest only are the same run."""
        values = asdict(self)
        values["strength"] = list(self.strengths)
        return {name: values[name] for name in USED[added]}


_EXCHANGE = ("strength", "detail")
_ALL = tuple(f.name for f in fields(ExchangeOptions))
_GATE = ("min_probability", "min_agreement", "max_distance")
_ONLINE = tuple(name for name in _ALL if name not in _GATE)
USED: dict[str, tuple[str, ...]] = {
    "none": (),
    "real": ("added", "early"),
    "x_hat": ("added", "early"),
    "same_grade": ("added", "early", *_EXCHANGE),
    "shuffled": ("added", "early", *_EXCHANGE, "donors"),
    "online": _ONLINE,
    "gate": tuple(name for name in _ALL if name != "p"),
    "unlabelled": ("added", "early", *_EXCHANGE),
    "shuffled_unlabelled": ("added", "early", *_EXCHANGE),
    "offline": ("added", "early", *_EXCHANGE, "labels", "smoothing"),
    "paper": (),
}
