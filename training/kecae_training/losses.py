"""The terms of the hybrid loss, each a pure function (Section III-B), and the optional terms beside it.

Shapes: images (B, 1, S, S) in [-1, 1]; latents (B, C, h, w); labels (B,) int64. The first half of a batch
is X_1 (grade 0 of a pair), the second half X_2, so that one mean over the batch is the half of the
paper's sum over the two images of a pair; the functions return the paper's sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kecae_aug.engine.model import Latents


def j_mse(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Eq. 3 and 4: MSE(X_1, X^_1) + MSE(X_2, X^_2), both halves in one batch."""
    return 2 * F.mse_loss(reconstruction, images)


def j_sup(logits: Tensor, donor_labels: Tensor) -> Tensor:
    """Eq. 5: CE(D(X1'), Y_2) + CE(D(X2'), Y_1).

    Args:
        logits: (B, K) of the frozen discriminator on the exchanged images.
        donor_labels: labels of the knees that gave the key.
    """
    return 2 * F.cross_entropy(logits.float(), donor_labels)


def j_lda(latents: Latents, eps: float = 0.0) -> Tensor:
    """Eq. 6 and 7: (var hN + var hK) / ((mean hN - mean hK)^2 + eps), summed over the two images of a pair.

    Mean and biased variance are over the elements of each latent, then the ratio is averaged over the
    batch. Computed in float32 outside autocast: near the crossing of the means it exceeds bfloat16.

    It can be driven to zero without separating anything: hK + c and hN - c decode to the same images for
    every constant c (a gauge freedom), while the ratio falls as 1 / c^2. Never read it as separation.

    Args:
        latents: of both images of the pairs.
        eps: bound of the denominator; 0 is the paper, which reaches 1e6 and more at the start.
    """
    with torch.autocast(latents.key.device.type, enabled=False):
        var_k, mean_k = torch.var_mean(latents.key.float().flatten(1), dim=1, correction=0)
        var_n, mean_n = torch.var_mean(latents.non_key.float().flatten(1), dim=1, correction=0)
        return 2 * ((var_n + var_k) / ((mean_n - mean_k).square() + eps)).mean()


def j_same_grade(exchanged: Tensor, hosts: Tensor) -> Tensor:
    """Same-grade exchange: MSE(D(hN_i + hK_j), X_i) for Y_i = Y_j, summed over the two grades.

    Whatever differs between two knees of one grade may then not live in the key.
    """
    return 2 * F.mse_loss(exchanged, hosts)


def j_classify(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a head that reads the grade from a latent.

    Grade in the key: a linear head on hK. Grade-free non-key: a head on ``reverse_gradient(hN)``.
    """
    return F.cross_entropy(logits.float(), labels)


def j_feature_match(features: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """What the discriminator sees in X^ against what it sees in X: squared error over the reference's own power,
    mean of stages.

    PSNR hardly notices an osteophyte of a few pixels; a network that reads grades does.

    Args:
        features: stages of the discriminator on X^, each (B, C, h, w).
        reference: the same of X; no gradient flows into it.
    """
    errors = [
        F.mse_loss(f.float(), r.detach().float()) / r.detach().float().square().mean().clamp_min(1e-8)
        for f, r in zip(features, reference, strict=True)
    ]
    return 2 * torch.stack(errors).mean()


def j_fisher(key: Tensor, labels: Tensor, eps: float = 1e-3) -> Tensor:
    """Class-aware Fisher criterion on hK: scatter within the grades over scatter between their means.

    What J_LDA is named after: it compares knees of different grades, not the two halves of one knee.

    Args:
        key: (B, C, h, w), two grades or more among them.
        labels: (B,) int64.
        eps: bound of the denominator.
    """
    with torch.autocast(key.device.type, enabled=False):
        x = key.float().flatten(1)
        groups = [x[labels == label] for label in labels.unique()]
        within = torch.stack([(g - g.mean(0)).square().mean() for g in groups]).mean()
        between = (torch.stack([g.mean(0) for g in groups]) - x.mean(0)).square().mean()
        return within / (between + eps)


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * grads[0], None


def reverse_gradient(x: Tensor, scale: float = 1.0) -> Tensor:
    """Identity whose gradient is multiplied by ``-scale``: the head learns, what feeds it unlearns."""
    reversed_: Tensor = _Reversal.apply(x, scale)
    return reversed_


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
