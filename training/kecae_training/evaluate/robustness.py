"""Small changes that a true change of anatomy survives: a flip of the oracles that dies under them was noise.

Each takes and gives (N, 1, S, S) in [-1, 1].
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from kecae_training.evaluate.oracles import Bench, mean_of
from kecae_training.images import to_bytes, to_float


def eight_bits(images: Tensor) -> Tensor:
    """Rounded to 256 greys, as in a PNG."""
    return to_float(to_bytes(images))


def jpeg(images: Tensor, quality: int = 75) -> Tensor:
    """Through a JPEG file of this quality."""
    out = []
    for image in to_bytes(images)[:, 0].numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(buffer)))
    return to_float(torch.from_numpy(np.stack(out))[:, None]) if out else images


def blur(images: Tensor, sigma: float = 1.0) -> Tensor:
    """Gaussian blur, sigma in pixels."""
    size = 2 * int(3 * sigma + 0.5) + 1
    blurred: Tensor = F.gaussian_blur(images, [size, size], [sigma, sigma])
    return blurred


def shift(images: Tensor, pixels: int = 2) -> Tensor:
    """Right and down by this many pixels; the edges are repeated."""
    padded = torch.nn.functional.pad(images, (pixels, 0, pixels, 0), mode="replicate")
    return padded[..., : images.shape[-2], : images.shape[-1]]


DEGRADATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "8 bits": eight_bits,
    "JPEG 75": jpeg,
    "blur 1 px": blur,
    "shift 2 px": shift,
}


def after_degradation(bench: Bench, images: Tensor, wanted: Tensor) -> dict[str, Any]:
    """What is left of the oracles' figure after each of :data:`DEGRADATIONS`, as draws.

    Args:
        bench: the oracles. The figure is their AUROC for two grades, their kappa for more.
        images: (N, 1, S, S) in [-1, 1], before any degradation.
        wanted: (N,) the grades that the images should be of.

    Returns:
        ``undegraded`` and each kind, means over the oracles; ``lost``: by kind, undegraded minus degraded; ``oracles``: by
        kind and oracle. For two grades also ``balanced_lost``: the same of the accuracy at the threshold that is balanced
        on undegraded real knees, since a change that only fades keeps its AUROC; compare it with that of the real
        knees, whose threshold moves too. A loss below 0 is a gain.
    """
    figure = "auroc" if bench.binary else "kappa"
    kinds = {"undegraded": images} | {kind: degrade(images) for kind, degrade in DEGRADATIONS.items()}
    by = {kind: bench.tree(bench.see(x), wanted) for kind, x in kinds.items()}
    means = {kind: mean_of(oracles, figure) for kind, oracles in by.items()}
    result: dict[str, Any] = {
        **means,
        "lost": {kind: means["undegraded"] - means[kind] for kind in DEGRADATIONS},
        "oracles": {
            kind: {name: oracle[figure] for name, oracle in oracles.items()} for kind, oracles in by.items()
        },
    }
    if bench.binary:
        low, high = bench.classes
        both = {
            kind: (mean_of(oracles, f"balanced_{low}") + mean_of(oracles, f"balanced_{high}")) / 2
            for kind, oracles in by.items()
        }
        result["balanced_lost"] = {kind: both["undegraded"] - both[kind] for kind in DEGRADATIONS}
    return result
