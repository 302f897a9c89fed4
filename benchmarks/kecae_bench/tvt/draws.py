"""Every random number of a run is a function of (seed, step, what it is for).

So all arms of a seed see the same real knees with the same standard augmentation, whatever else they draw, and
nothing depends on what ran before in the process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from kecae_aug.permutation import permute


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything with a stable text."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator of its own."""
    return torch.Generator().manual_seed(seed_of(*parts))


@contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Torch's global CPU generator seeded, for what draws from it (dropout, kecae_aug, v2); restored after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*parts))  # not that of a GPU, which nothing would restore
        yield


class BalancedIndices:
    """An endless order of indices with equally many of every class, each class in passes without repetition.

    Slots go through the classes in turn, so that every prefix of a batch is balanced too. Rarer classes are repeated
    more often, as the paper bootstraps KL 2 up to KL 0 (Section V).

    Args:
        members: indices of every class, none empty.
        parts: what the order depends on.
    """

    def __init__(self, members: Sequence[Sequence[int]], *parts: object) -> None:
        empty = [c for c, indices in enumerate(members) if not indices]
        if empty:
            raise ValueError(f"members: no knees of class {empty[0]}; every class needs some")
        self.members, self.key = members, "/".join(map(str, parts))

    def batch(self, step: int, size: int) -> Tensor:
        """(size,) int64 indices of step ``step``, of batches of ``size``."""
        return torch.tensor([self._draw(step * size + i) for i in range(size)], dtype=torch.int64)

    def _draw(self, slot: int) -> int:
        indices = self.members[slot % len(self.members)]
        turn, at = divmod(slot // len(self.members), len(indices))
        return indices[permute(at, len(indices), f"{self.key}/{slot % len(self.members)}/{turn}")]
