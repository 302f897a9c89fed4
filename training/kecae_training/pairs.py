"""The pairs of Section IV-B: every image of the first grade with every image of the second, sampled.

A step's pairs are a function of (seed, step): nothing is stored, so a resumed run, another number of
processes or another machine sees the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kecae_aug.pairing import pair_at


class PairSampler:
    """Rows of the training set for each step.

    Args:
        targets: class index (0 or 1) of every image.
        n_pairs: N, pairs of an epoch without replacement; None for the whole grid.
        batch_size: pairs a step over all processes; what is left of an epoch's end is dropped.
        seed: chooses the N pairs and, with the epoch, their order.
        bootstrap: draw images of the smaller grade with replacement until it is as large as the other.
    """

    def __init__(
        self,
        targets: Sequence[int],
        n_pairs: int | None,
        batch_size: int,
        seed: int = 0,
        bootstrap: bool = False,
    ) -> None:
        labels = torch.as_tensor(targets)
        self.rows = [(labels == c).nonzero()[:, 0] for c in (0, 1)]
        if not len(self.rows[0]) or not len(self.rows[1]):
            raise ValueError(
                f"targets: {[len(r) for r in self.rows]} images of the two classes; both need some"
            )
        if bootstrap:
            generator = torch.Generator().manual_seed(seed)
            small = min((0, 1), key=lambda c: len(self.rows[c]))
            missing = len(self.rows[1 - small]) - len(self.rows[small])
            extra = torch.randint(len(self.rows[small]), (missing,), generator=generator)
            self.rows[small] = torch.cat([self.rows[small], self.rows[small][extra]])
        grid = len(self.rows[0]) * len(self.rows[1])
        self.n_pairs = grid if n_pairs is None else min(n_pairs, grid)
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = self.n_pairs // batch_size
        if not self.steps_per_epoch:
            raise ValueError(
                f"batch_size={batch_size}: {self.n_pairs} pairs do not fill one batch; lower --optim.batch_size"
            )

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Pairs of a step for one process: (rows (2b,), labels (2b,)), first grades, then second ones.

        The batches of all ranks together are the batch of one process.
        """
        epoch, within = divmod(step, self.steps_per_epoch)
        local = self.batch_size // world_size
        start = within * self.batch_size + rank * local
        positions = torch.arange(start, start + local)
        first, second = pair_at(
            positions, len(self.rows[0]), len(self.rows[1]), self.seed, epoch, self.n_pairs
        )
        labels = torch.arange(2).repeat_interleave(local)
        return torch.cat([self.rows[0][first], self.rows[1][second]]), labels
