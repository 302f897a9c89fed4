"""How the discriminator is shown images: slightly moved, blurred and noisy, so that a pattern of single pixels
cannot fool it.

All images of a step that are compared with each other get the same view. Optional (``loss.discriminator_shift``,
``loss.discriminator_noise``, ``loss.discriminator_blur``); the paper's discriminator sees the images as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from kecae_training.discriminator import Discriminator
from kecae_training.losses import LossConfig, StepOutputs


@dataclass(frozen=True)
class View:
    """One draw: a shift in pixels for the whole batch, and noise for every image.

    Args:
        dx: to the right, in pixels; edges are repeated.
        dy: downwards.
        noise: (B, 1, S, S) added, or None.
        blur: sigma of a Gaussian blur, pixels; 0 for none.
    """

    dx: int = 0
    dy: int = 0
    noise: Tensor | None = None
    blur: float = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 1, S, S) as the discriminator is shown them."""
        if self.dx or self.dy:
            pad = (max(self.dx, 0), max(-self.dx, 0), max(self.dy, 0), max(-self.dy, 0))
            height, width = images.shape[-2:]
            top, left = max(-self.dy, 0), max(-self.dx, 0)
            images = F.pad(images, pad, mode="replicate")[..., top : top + height, left : left + width]
        if self.blur:
            size = 2 * int(3 * self.blur + 0.5) + 1
            images = gaussian_blur(images, [size, size], [self.blur, self.blur])
        return images if self.noise is None else images + self.noise

    def to(self, device: torch.device) -> View:
        """The same view for images on ``device``."""
        return self if self.noise is None else replace(self, noise=self.noise.to(device))


def draw_view(
    shape: torch.Size,
    shift: int,
    noise: float,
    generator: torch.Generator | None = None,
    blur: float = 0.0,
) -> View:
    """A view for a batch.

    Args:
        shape: (B, 1, S, S).
        shift: largest shift to each side, pixels.
        noise: largest standard deviation of the noise, in units of [-1, 1]; each image draws its own up to it.
        generator: of the draws, on the CPU; the global one if not given.
        blur: largest sigma of the blur, pixels.
    """
    dx, dy = (torch.randint(-shift, shift + 1, (2,), generator=generator)).tolist() if shift else (0, 0)
    soft = blur * float(torch.rand((), generator=generator)) if blur else 0.0
    soft = soft if soft > 0.2 else 0.0  # narrower than that a blur does nothing
    if not noise:
        return View(dx, dy, blur=soft)
    sigma = noise * torch.rand(shape[0], 1, 1, 1, generator=generator)
    return View(dx, dy, sigma * torch.randn(shape, generator=generator), soft)


def look_through(
    discriminator: Discriminator,
    outputs: StepOutputs,
    loss: LossConfig,
    panel: Sequence[Discriminator],
    generator: torch.Generator | None = None,
) -> None:
    """Fill in what the active terms read of the discriminator, in one pass through it.

    Args:
        discriminator: D of Eq. 5, frozen.
        outputs: of the step, with its images decoded.
        loss: says what is read, and how D looks.
        panel: all discriminators, whose mean posterior ``sup_target="posterior"`` asks for.
        generator: of the view, on the CPU; the global one if not given.
    """
    reads, half = loss.reads, len(outputs.images) // 2
    seen = max(1, round(loss.discriminator_fraction * half))
    # pairs stay pairs: the first ones of X_1 and their partners of X_2
    indices = torch.cat([torch.arange(seen), half + torch.arange(seen)]).to(outputs.images.device)
    X = outputs.images[indices]
    view = draw_view(
        X.shape, loss.discriminator_shift, loss.discriminator_noise, generator, loss.discriminator_blur
    ).to(X.device)
    shown = {
        name: getattr(outputs, name)[indices]
        for name, read in (
            ("exchanged", "exchanged_logits"),
            ("host", "host_logits"),
            ("reconstruction", "reconstruction_features"),
        )
        if read in reads
    }
    if shown:
        views = torch.cat([view(images) for images in shown.values()])
        all_logits, stages = discriminator.features(views.contiguous(memory_format=torch.channels_last))
        logits = dict(zip(shown, all_logits.split(len(X)), strict=True))
        outputs.exchanged_logits, outputs.host_logits = logits.get("exchanged"), logits.get("host")
        if "reconstruction" in shown:  # the last of them
            outputs.reconstruction_features = [stage[-len(X) :] for stage in stages]
    if "image_features" in reads:
        with torch.no_grad():
            outputs.image_features = discriminator.features(view(X))[1]
    if "donor_target" in reads:
        outputs.donor_target = donor_target(X, outputs.labels[indices], loss, panel)


@torch.no_grad()
def donor_target(images: Tensor, labels: Tensor, loss: LossConfig, panel: Sequence[Discriminator]) -> Tensor:
    """What J_SUP asks of the exchange of each image: (n,) int64 or (n, K) float32, of the other image of its pair.

    Args:
        images: (n, 1, S, S), X_1 of the pairs, then X_2.
        labels: (n,) of them.
        loss: ``sup_target`` is ``"label"`` or ``"posterior"``.
        panel: discriminators, whose mean posterior of the real image is taken; it is shown without a view.
    """
    target = labels
    if loss.sup_target == "posterior":
        target = torch.stack([discriminator(images).float().softmax(1) for discriminator in panel]).mean(0)
    return target.roll(len(images) // 2, 0)
