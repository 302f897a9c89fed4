"""One step's computation: encode once, decode reconstructions and exchanges together, weigh the terms."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kecae_aug.model import KECAE, Latents
from kecae_training import losses
from kecae_training.config import LossConfig
from kecae_training.guide import Guide


class Outputs(NamedTuple):
    """What a step makes of a batch of pairs; images (2B, 1, S, S)."""

    latents: Latents
    reconstruction: Tensor
    exchanged: Tensor
    same_grade: Tensor | None
    key_logits: Tensor | None
    non_key_logits: Tensor | None


class KeyExchange(nn.Module):
    """The trained modules in one, so that DDP sees every use of them in one forward.

    Args:
        model: the KECAE.
        loss: decides which heads and which decodes are needed.
    """

    def __init__(self, model: KECAE, loss: LossConfig) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        features, classes = int(torch.tensor(model.config.latent_shape).prod()), len(model.config.classes)
        self.key_head = nn.Linear(features, classes) if loss.grade_in_key else None
        self.adversary = (
            nn.Sequential(nn.Linear(features, 128), nn.LeakyReLU(0.2), nn.Linear(128, classes))
            if loss.grade_free_non_key
            else None
        )

    def forward(self, images: Tensor, same_grade: Tensor) -> Outputs:
        """Encode a batch of pairs and decode all of its sums in one pass.

        One pass, since BatchNorm normalises what it sees together: reconstructions and exchanges decoded
        apart would each have statistics that evaluation mode has for neither.

        Args:
            images: (2B, 1, S, S), X_1 of all pairs, then X_2 of all pairs.
            same_grade: (2B,) int64, a permutation within each grade.
        """
        latents = self.model.encode(images)
        key, non_key = latents
        n = len(images)
        sums = [non_key + key, non_key + key.roll(n // 2, 0)]  # row i of X_1 and of X_2 are a pair
        if self.loss.same_grade:
            sums.append(non_key + key[same_grade])
        decoded = self.model.decode(torch.cat(sums)).split(n)
        return Outputs(
            latents,
            decoded[0],
            decoded[1],
            decoded[2] if self.loss.same_grade else None,
            self.key_head(key.flatten(1)) if self.key_head is not None else None,
            self.adversary(losses.reverse_gradient(non_key).flatten(1))
            if self.adversary is not None
            else None,
        )


def hybrid_loss(
    outputs: Outputs, images: Tensor, labels: Tensor, config: LossConfig, guide: Guide | None
) -> dict[str, Tensor]:
    """Eq. 8 and the optional terms: every term unweighted under its name, and their weighted ``total``.

    Args:
        outputs: of :class:`KeyExchange`.
        images: (2B, 1, S, S), as given to it.
        labels: (2B,) int64 class indices.
        config: the weights; a term of weight 0 is not computed, but for J_LDA, which is always logged.
        guide: D of Eq. 5, frozen.
    """
    terms = {"mse": losses.j_mse(outputs.reconstruction, images)}
    total = terms["mse"]
    terms["lda"] = losses.j_lda(outputs.latents, config.lda_eps)
    if config.lambda2:
        total = total + config.lambda2 * terms["lda"]
    else:
        terms["lda"] = terms["lda"].detach()
    if config.lambda1:
        assert guide is not None
        donor_labels = labels.roll(len(labels) // 2)
        logits = guide(outputs.exchanged)
        terms["sup"] = losses.j_sup(logits, donor_labels)
        terms["guide_flip"] = (
            (logits.argmax(1) == donor_labels).float().mean()
        )  # certifies itself: not a result
        total = total + config.lambda1 * terms["sup"]
    if outputs.same_grade is not None:
        terms["same_grade"] = losses.j_same_grade(outputs.same_grade, images)
        total = total + config.same_grade * terms["same_grade"]
    if outputs.key_logits is not None:
        terms["grade_in_key"] = losses.j_classify(outputs.key_logits, labels)
        total = total + config.grade_in_key * terms["grade_in_key"]
    if outputs.non_key_logits is not None:
        terms["grade_free_non_key"] = losses.j_classify(outputs.non_key_logits, labels)
        total = total + config.grade_free_non_key * terms["grade_free_non_key"]
    change = (outputs.exchanged - outputs.reconstruction).detach()
    terms["change"] = change.abs().mean()
    return {**{k: v.detach() for k, v in terms.items()}, "total": total}
