"""One step's computation: encode once, decode reconstructions and exchanges together, weigh the terms."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kecae_aug.engine.model import KECAE, KECAEConfig, Latents
from kecae_training import losses
from kecae_training.config import LossConfig
from kecae_training.discriminator import Discriminator
from kecae_training.views import draw_view


class Outputs(NamedTuple):
    """What a step makes of a batch of pairs; images (2B, 1, S, S), None where no term asks for them."""

    latents: Latents
    reconstruction: Tensor
    exchanged: Tensor
    same_grade: Tensor | None = None
    key_logits: Tensor | None = None
    non_key_logits: Tensor | None = None


def adversary(config: KECAEConfig) -> nn.Module:
    """Reads the grade from hN: (B, C, h, w) -> (B, classes). For maps it is convolutional, as what it must find is local."""
    channels, side, _ = config.latent_shape
    classes = len(config.classes)
    if side == 1:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(channels, 128), nn.LeakyReLU(0.2), nn.Linear(128, classes)
        )
    return nn.Sequential(
        *(nn.Conv2d(channels, 64, 3, 1, 1), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(64, 64, 3, 2, 1), nn.LeakyReLU(0.2)),
        *(nn.Flatten(), nn.Linear(64 * ((side + 1) // 2) ** 2, classes)),
    )


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
        self.adversary = adversary(model.config) if loss.grade_free_non_key else None

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
        reconstruction, exchanged = decoded[:2]
        return Outputs(
            latents,
            reconstruction,
            exchanged,
            decoded[2] if self.loss.same_grade else None,
            self.key_head(key.flatten(1)) if self.key_head is not None else None,
            self.adversary(losses.reverse_gradient(non_key)) if self.adversary is not None else None,
        )


def hybrid_loss(
    outputs: Outputs,
    images: Tensor,
    labels: Tensor,
    config: LossConfig,
    discriminator: Discriminator | None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Eq. 8 and the optional terms: every term unweighted under its name, and their weighted ``total``.

    Args:
        outputs: of :class:`KeyExchange`.
        images: (2B, 1, S, S), as given to it.
        labels: (2B,) int64 class indices.
        config: the weights; a term of weight 0 is not computed, but for J_LDA, which is always logged.
        discriminator: D of Eq. 5, frozen.
        generator: of the discriminator's views, on the CPU; the global one if not given.
    """
    reconstruction, exchanged = outputs.reconstruction, outputs.exchanged
    weighted = {"mse": (1.0, losses.j_mse(reconstruction, images))}
    lda = losses.j_lda(outputs.latents, config.lda_eps)
    weighted["lda"] = (config.lambda2, lda if config.lambda2 else lda.detach())
    logged: dict[str, Tensor] = {}
    if config.needs_discriminator:
        assert discriminator is not None
        by_discriminator, logged = _discriminator_terms(
            outputs, images, labels, config, discriminator, generator
        )
        weighted |= by_discriminator
    if outputs.same_grade is not None:
        weighted["same_grade"] = (config.same_grade, losses.j_same_grade(outputs.same_grade, images))
    if outputs.key_logits is not None:
        weighted["grade_in_key"] = (config.grade_in_key, losses.j_classify(outputs.key_logits, labels))
    if outputs.non_key_logits is not None:
        term = losses.j_classify(outputs.non_key_logits, labels)
        weighted["grade_free_non_key"] = (config.grade_free_non_key, term)
    if config.fisher_key:
        weighted["fisher_key"] = (config.fisher_key, losses.j_fisher(outputs.latents.key, labels))
    logged["change"] = (exchanged - reconstruction).detach().abs().mean()
    total = torch.stack([weight * term for weight, term in weighted.values() if weight]).sum()
    return {**{k: term.detach() for k, (_, term) in weighted.items()}, **logged, "total": total}


def _discriminator_terms(
    outputs: Outputs,
    images: Tensor,
    labels: Tensor,
    config: LossConfig,
    discriminator: Discriminator,
    generator: torch.Generator | None,
) -> tuple[dict[str, tuple[float, Tensor]], dict[str, Tensor]]:
    """The terms that look through the discriminator, in one pass through it; and how often it is convinced."""
    half = len(images) // 2
    seen = max(1, round(config.discriminator_fraction * half))
    rows = torch.cat([torch.arange(seen), half + torch.arange(seen)]).to(images.device)  # pairs stay pairs
    x, exchanged, reconstruction = (t[rows] for t in (images, outputs.exchanged, outputs.reconstruction))
    donor_labels = labels[rows].roll(seen)
    view = draw_view(
        x.shape, config.discriminator_shift, config.discriminator_noise, generator, config.discriminator_blur
    )
    view = view.to(images.device)
    shown = {}
    if config.lambda1:
        shown["exchanged"] = exchanged
    if config.lambda1_host:
        shown["host"] = (x + exchanged - reconstruction).clamp(-1, 1)
    if config.feature_match:
        shown["reconstruction"] = reconstruction
    views = torch.cat([view(part) for part in shown.values()]).contiguous(memory_format=torch.channels_last)
    logits, features = discriminator.features(views)
    parts = dict(zip(shown, logits.split(len(x)), strict=True))
    terms: dict[str, tuple[float, Tensor]] = {}
    logged: dict[str, Tensor] = {}
    for name, weight, kind in (
        ("sup", config.lambda1, "exchanged"),
        ("sup_host", config.lambda1_host, "host"),
    ):
        if weight:
            terms[name] = (weight, losses.j_sup(parts[kind], donor_labels))
            flipped = (parts[kind].argmax(1) == donor_labels).float().mean()
            logged[name.replace("sup", "discriminator_flip")] = flipped  # certifies itself: not a result
    if config.feature_match:
        with torch.no_grad():
            _, reference = discriminator.features(view(x))
        last = [stage[-len(x) :] for stage in features]
        terms["feature_match"] = (config.feature_match, losses.j_feature_match(last, reference))
    return terms, logged
