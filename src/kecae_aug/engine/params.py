"""What one call of the transform drew, and where its random numbers come from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExchangeParams:
    """What one call did; ``replay`` repeats it.

    Attributes:
        rows: (k,) int64, the rows that became exchanged knees (hosts).
        donors: (k,) int64, the rows, of the batch or of the bank, that gave them the key; -1 for a row that a fixed number
            of added rows repeats as it is.
        strengths: (k,) float32, fraction of the donor's key.
        bank: fingerprint of the bank that the donors are rows of; None for the batch itself.
    """

    rows: Tensor
    donors: Tensor
    strengths: Tensor
    bank: str | None = None

    def where(self, mask: Tensor) -> ExchangeParams:
        """Those of ``mask``, (k,) bool."""
        return replace(self, rows=self.rows[mask], donors=self.donors[mask], strengths=self.strengths[mask])


def strength_range(strength: float | tuple[float, float]) -> tuple[float, float]:
    """(low, high) of a strength, checked."""
    low, high = (strength, strength) if isinstance(strength, (int, float)) else strength
    if not 0 <= low <= high < float("inf"):
        raise ValueError(f"strength={strength}: accepted is a number of 0 or more, or (low, high)")
    return float(low), float(high)


def rank_generator() -> torch.Generator:
    """Seeded by one draw from the global CPU generator, and by the rank.

    The same loop with the same seed draws the same; ranks that were all seeded alike draw differently; and
    what the transform draws does not depend on how much randomness a batch needs.
    """
    seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
    rank = torch.distributed.get_rank() if _distributed() else 0
    return torch.Generator("cpu").manual_seed((seed + rank * 0x9E3779B97F4A7C15) % 2**63)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
