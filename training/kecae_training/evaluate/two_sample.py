"""Can a classifier tell generated from real images of patients that it has not seen? 50 % is perfect realism.

A host and what was made of it are always on the same side, so that content tells nothing: half of the
patients train, the others are judged, and the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from kecae_training.discriminator import device_of
from kecae_training.discriminator.networks import build
from kecae_training.evaluate.measures import with_interval

Rows = NDArray[np.intp]
Oracle = Callable[[Rows, Rows], NDArray[np.float64]]  # trained on the first rows, scores (2, n) of the second


def halves(patients: Sequence[str], seed: int = 0) -> tuple[Rows, Rows]:
    """Rows of two halves that share no patient, of about equally many rows.

    Raises:
        ValueError: fewer than four patients.
    """
    ids, inverse, counts = np.unique(np.asarray(patients, dtype=str), return_inverse=True, return_counts=True)
    if len(ids) < 4:
        raise ValueError(f"patients: {len(ids)} different ones; four or more are needed for two halves")
    order = np.random.default_rng(seed).permutation(len(ids))
    first = np.zeros(len(ids), dtype=bool)
    first[order[: 1 + int(np.searchsorted(counts[order].cumsum(), len(inverse) / 2))]] = True
    if first.all():
        first[order[-1]] = False
    return np.flatnonzero(first[inverse]), np.flatnonzero(~first[inverse])


def accuracy(oracle: Oracle, patients: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Balanced accuracy over all hosts, each evaluated by the classifier that has not seen its patient.

    Args:
        oracle: see :data:`Oracle`; scores above 0 say "generated"; first row of the real images, second of the others.
        patients: (N,) ids of the hosts.
        seed: of the halves and the bootstrap.
    """
    right = np.empty(len(patients))
    one, two = halves(patients, seed)
    for train, test in ((one, two), (two, one)):
        real, other = oracle(train, test)
        right[test] = (_share(-real) + _share(other)) / 2
    return with_interval(lambda rows: float(right[rows].mean()), patients, seed)


def _share(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where the classifier is right, one half where it cannot say."""
    return (np.sign(score) + 1) / 2


def by_features(real: NDArray[np.float64], other: NDArray[np.float64]) -> Oracle:
    """Logistic regression on features (N, D) of both kinds, row by row of the same hosts."""

    def oracle(train: Rows, test: Rows) -> NDArray[np.float64]:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=500))
        model.fit(np.concatenate([real[train], other[train]]), np.repeat([0, 1], len(train)))
        return np.stack([model.decision_function(real[test]), model.decision_function(other[test])])

    return oracle


def by_network(
    real: Tensor,
    other: Tensor,
    seed: int = 0,
    steps: int = 200,
    pairs: int = 16,
    *,
    device: str | torch.device = "cpu",
) -> Oracle:
    """A small VGG from scratch, on random crops of half the side, which make few images go further.

    It looks for what is local: blur, noise, patterns. It oracles an image by the mean of five crops.

    Args:
        real: (N, 1, S, S) in [-1, 1].
        other: what was made of the same hosts.
        seed: of initialisation, order and crops.
        steps: of the optimiser.
        pairs: hosts a step; both of their images are in it.
        device: of the network; images stay where they are.
    """
    place = torch.device(device)
    side = max(32, real.shape[-1] // 2)
    room = real.shape[-1] - side

    def oracle(train: Rows, test: Rows) -> NDArray[np.float64]:
        draw = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
            torch.manual_seed(seed)
            net = build("vgg", 2).to(place).to(memory_format=torch.channels_last)
            optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
            of, targets = torch.from_numpy(train), torch.arange(2).repeat_interleave(pairs).to(place)
            for _ in range(steps):
                rows = of[torch.randint(len(of), (pairs,), generator=draw)]
                top, left = torch.randint(room + 1, (2,), generator=draw).tolist()
                x = torch.cat([real[rows], other[rows]])[:, :, top : top + side, left : left + side]
                if torch.rand((), generator=draw) < 0.5:
                    x = x.flip(-1)
                loss = F.cross_entropy(_seen(net, x.to(place)), targets)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
        net.eval()
        corners = [(t, c) for t in (0, room) for c in (0, room)] + [(room // 2, room // 2)]
        with torch.no_grad():
            return np.stack(
                [
                    sum(
                        _margin(net, images[torch.from_numpy(test), :, t : t + side, c : c + side])
                        for t, c in corners
                    )
                    for images in (real, other)
                ]
            )

    return oracle


def _seen(net: torch.nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = net(images.contiguous(memory_format=torch.channels_last))
    return logits


def _margin(net: torch.nn.Module, images: Tensor) -> NDArray[np.float64]:
    logits = torch.cat([_seen(net, part.to(device_of(net))) for part in images.split(128)])
    margin: NDArray[np.float64] = (logits[:, 1] - logits[:, 0]).double().cpu().numpy()
    return margin
