"""The pairs of Section IV-B: every image of one grade with every image of another, sampled.

A step's pairs are a function of (seed, step): nothing is stored, so a resumed run, another number of
processes or another machine sees the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from kecae_aug.donors import pair_at


class PairSampler:
    """Rows of the training set for each step.

    With more than two grades the pairs of a batch go round the pairs of grades in turn (0-1, 0-2, ..., 3-4), each
    with a grid of its own, so a rare grade is in as many pairs as a frequent one.

    Args:
        targets: class index of every image, 0 to K - 1.
        n_pairs: N, pairs of an epoch without replacement; None for all grids.
        batch_size: pairs a step over all processes; what is left of an epoch's end is dropped.
        seed: chooses the N pairs and, with the epoch, their order.
        bootstrap: draw images of the smaller grades with replacement until each is as large as the largest.
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
        classes = max(2, int(labels.max()) + 1) if len(labels) else 2
        self.rows = [(labels == c).nonzero()[:, 0] for c in range(classes)]
        if not all(len(rows) for rows in self.rows):
            raise ValueError(
                f"targets: {[len(r) for r in self.rows]} images of the classes; each of them needs some"
            )
        if bootstrap:
            generator = torch.Generator().manual_seed(seed)
            largest = max(len(rows) for rows in self.rows)
            for c, rows in enumerate(self.rows):
                extra = torch.randint(len(rows), (largest - len(rows),), generator=generator)
                self.rows[c] = torch.cat([rows, rows[extra]])
        self.grades = list(combinations(range(classes), 2))  # (a, b): X_1 is of grade a, X_2 of grade b
        grids = [len(self.rows[a]) * len(self.rows[b]) for a, b in self.grades]
        largest_n = len(grids) * min(grids)  # in turn: no grid may be used up before the others
        self.n_pairs = largest_n if n_pairs is None else min(n_pairs, largest_n)
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = self.n_pairs // batch_size
        if not self.steps_per_epoch:
            raise ValueError(
                f"batch_size={batch_size}: {self.n_pairs} pairs do not fill one batch; lower --optim.batch_size"
            )

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Pairs of a step for one process: (rows (2b,), labels (2b,)), X_1 of all pairs, then X_2.

        The batches of all ranks together are the batch of one process.
        """
        epoch, within = divmod(step, self.steps_per_epoch)
        local = self.batch_size // world_size
        start = within * self.batch_size + rank * local
        positions = torch.arange(start, start + local)
        turn, place = positions % len(self.grades), positions // len(self.grades)
        a, b = torch.tensor(self.grades)[turn].unbind(1)
        first, second = torch.empty_like(positions), torch.empty_like(positions)
        for g, (i, j) in enumerate(self.grades):
            mine = turn == g
            n = -(-self.n_pairs // len(self.grades))  # of this grid's pairs in an epoch, rounded up
            x, y = pair_at(place[mine], len(self.rows[i]), len(self.rows[j]), self.seed, epoch, n)
            first[mine], second[mine] = self.rows[i][x], self.rows[j][y]
        return torch.cat([first, second]), torch.cat([a, b])


def same_grade_permutation(labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A random permutation of the rows (B,) int64 that keeps the label of every row.

    Args:
        labels: (B,) on any device; the draw is on the CPU, so that it is the same everywhere.
        generator: of the draw; the global one if not given.
    """
    permutation = torch.arange(len(labels))
    on_cpu = labels.cpu()
    for label in on_cpu.unique():
        rows = (on_cpu == label).nonzero()[:, 0]
        permutation[rows] = rows[torch.randperm(len(rows), generator=generator)]
    return permutation.to(labels.device)
