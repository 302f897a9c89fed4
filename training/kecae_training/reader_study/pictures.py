"""Pictures of a study, written so that nothing but what they show tells them apart."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize


class Secret:
    """Random names and numbers of a study, from its seed and a secret that is not written down.

    Whoever knows the seed and has this package must not be able to derive which file is what.

    Args:
        seed: of the study.
        secret: 16 to 64 bytes of the operating system's randomness.
    """

    def __init__(self, seed: int, secret: bytes) -> None:
        if not 16 <= len(secret) <= 64:
            raise ValueError(f"secret: {len(secret)} bytes, accepted are 16 to 64")
        self._seed, self._secret = seed, secret

    def name(self, purpose: str) -> str:
        """32 hex digits, others for every purpose."""
        text = f"{self._seed}/{purpose}".encode()
        return hashlib.blake2b(text, key=self._secret, digest_size=16).hexdigest()

    def number(self, purpose: str) -> int:
        """An integer of 128 bit, as :meth:`name`."""
        return int(self.name(purpose), 16)


def png(image: Tensor, size: int, noise: int) -> bytes:
    """An 8-bit grey PNG.

    Grey values are dithered (triangular, of one grey level) before they are rounded, so that a knee which is shown twice
    gives files of different hashes, and real knees, whose values are whole in their files, are rounded like exchanged
    ones. A narrow window shows no bands in an enlarged image then. The pixels are stored, not compressed, so all files have
    the same length: smooth images, as a decoder makes, would be shorter.

    Args:
        image: (1, S, S) in [-1, 1].
        size: side of the picture in pixels (bicubic, antialiased).
        noise: seed of the dither.
    """
    enlarged = resize(image.float(), [size, size], InterpolationMode.BICUBIC, antialias=True)[0]
    grey = (enlarged.clamp(-1, 1).double().numpy() + 1) * 127.5
    rounded = (grey + np.random.default_rng(noise).triangular(-1, 0, 1, grey.shape)).round()
    buffer = io.BytesIO()
    Image.fromarray(rounded.clip(0, 255).astype(np.uint8)).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()
