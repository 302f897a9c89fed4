"""What a call of the transform will do, worked out on the CPU before any image need be on its device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kecae_aug.engine.params import ExchangeParams, rank_generator
from kecae_aug.engine.warn import WarnOnce


@dataclass(frozen=True)
class Plan:
    """Hosts, donors and classes of one batch; every tensor is on the CPU.

    Attributes:
        indices: (B,) int64 class indices.
        one_hot: whether the labels came as one-hot rows.
        params: hosts, donors and strengths; of no row where the transform is switched off.
        given: (k,) int64 class index of each donor; the host's own where there is none.
        acts: whether the transform is switched on.
    """

    indices: Tensor
    one_hot: bool
    params: ExchangeParams
    given: Tensor
    acts: bool = True

    @classmethod
    def empty(cls, indices: Tensor, one_hot: bool) -> Plan:
        """Of a transform that is switched off."""
        none = indices[:0]
        return cls(indices, one_hot, ExchangeParams(none, none, none.float()), none, acts=False)

    @property
    def key_class(self) -> Tensor:
        """(k,) one class each: the key's, unless most of the key is still the host's own."""
        return torch.where(self.params.strengths >= 0.5, self.given, self.indices[self.params.rows])

    def drop(self, accepted: Tensor) -> Plan:
        """Without the rows that are not ``accepted``, (k,) bool."""
        return replace(self, params=self.params.where(accepted), given=self.given[accepted])

    def repeat_hosts(self, accepted: Tensor) -> Plan:
        """As many rows, of which those that are not ``accepted`` repeat their hosts as they are."""
        donors = torch.where(accepted, self.params.donors, -1)
        given = torch.where(accepted, self.given, self.indices[self.params.rows])
        return replace(self, params=replace(self.params, donors=donors), given=given)


def draw_params(
    n: int,
    draw_donors: Callable[[torch.Generator], Tensor],
    *,
    p: float,
    append: bool | int,
    strength: tuple[float, float],
    bank: str | None,
    warn: WarnOnce,
) -> ExchangeParams:
    """Hosts, donors and strengths of a batch.

    Args:
        n: its rows.
        draw_donors: a donor for each row, (n,) int64, -1 where there is none.
        p: chance of each row to become a host.
        append: as of the transform.
        strength: (low, high).
        bank: fingerprint of the donors' bank.
        warn: of a fixed number of rows where none can exchange.
    """
    generator = rank_generator()
    drawn = torch.rand(n, generator=generator, device="cpu") < p
    donors = draw_donors(generator)
    fixed = not isinstance(append, bool)
    if fixed:
        rows, donors = _draw_fixed(append, donors, draw_donors, generator, warn)
    else:
        rows = (drawn & (donors >= 0)).nonzero()[:, 0]
        donors = donors[rows]
    low, high = strength
    draws = torch.rand(max(n, len(rows)), generator=generator, device="cpu")
    strengths = low + (high - low) * (draws[: len(rows)] if fixed else draws[rows])
    return ExchangeParams(rows, donors, strengths, bank)


def _draw_fixed(
    k: int,
    donors: Tensor,
    draw_donors: Callable[[torch.Generator], Tensor],
    generator: torch.Generator,
    warn: WarnOnce,
) -> tuple[Tensor, Tensor]:
    """Just k rows and their donors: every row once before any comes again; where none can exchange, repeats."""
    rows: list[Tensor] = []
    given: list[Tensor] = []
    while len(donors) and sum(len(r) for r in rows) < k:
        able = (donors >= 0).nonzero()[:, 0]
        if not len(able):
            warn(
                "repeats",
                f"append={k}: this batch has no two rows that can exchange, so rows of it are repeated as they are; "
                "more images a batch, or a bank, give exchanged knees",
            )
            able = torch.arange(len(donors), device="cpu")
        able = able[torch.randperm(len(able), generator=generator, device="cpu")]
        rows.append(able)
        given.append(donors[able])
        donors = draw_donors(generator)
    empty = torch.empty(0, dtype=torch.int64, device="cpu")
    return torch.cat([*rows, empty])[:k], torch.cat([*given, empty])[:k]
