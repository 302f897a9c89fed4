"""Models whose exchange is known, and oracles that read one thing, for the tests of an evaluation."""

from dataclasses import astuple, replace

import numpy as np
import torch
from torch import nn

from kecae_aug.engine.model import KECAE, Latents
from kecae_aug.phantom import KneeKey, PhantomKnees, render
from kecae_training.evaluate.anatomy import Truths
from kecae_training.evaluate.exchanges import HeldOutKnees


class Bar(nn.Module):
    """An oracle that reads the darkness of the middle rows."""

    classes = ("0", "2")

    def forward(self, x):
        bar = -8 * (x[:, 0, 28:36].mean((1, 2)) + 0.2)
        return torch.stack([-bar, bar], 1)


class Swap(KECAE):
    """A perfect KECAE for bars: the key is the middle rows, the rest the non-key."""

    def __init__(self):
        super().__init__(KECAE.from_preset("tiny").config)

    def encode(self, images):
        key = torch.zeros_like(images)
        key[:, :, 28:36] = images[:, :, 28:36]
        return Latents(key, images - key)

    def decode(self, latent):
        return latent


class Copy(Swap):
    """The key is the whole knee: an exchange is the donor."""

    def encode(self, images):
        return Latents(images, torch.zeros_like(images))


class Nothing(Swap):
    """The key is empty: an exchange is the host."""

    def encode(self, images):
        return Latents(torch.zeros_like(images), images)


def knees(n: int = 40) -> HeldOutKnees:
    """Noise of 64 px, two knees a patient, the second grade with a dark bar."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    images = torch.rand(n, 1, 64, 64, generator=g) * 0.6
    images[:, :, 28:36] -= 0.9 * labels.view(-1, 1, 1, 1)
    return HeldOutKnees(images.clamp(-1, 1), labels, [str(i // 2) for i in range(n)])


def phantoms(n_patients: int = 20, size: int = 64, grades=(0, 3)) -> tuple[HeldOutKnees, Truths]:
    """Phantom knees, all drawn as left ones, and their truth."""
    data = PhantomKnees(n_patients, grades, size, seed=5, mirror_right=True)

    def draw(truth):
        return torch.from_numpy(render(truth, size)).mul(2).sub(1)[None]

    images = torch.stack([draw(t) for t in data.truths])
    n = len(images)
    found = HeldOutKnees(
        images, torch.tensor(data.targets), list(data.patients), sides=list(data.sides), medial=["L"] * n
    )
    return found, Truths(data.truths, draw)


class Oracle(Swap):
    """Renders the truth: the key is the phantom's key, the non-key the number of the knee."""

    def __init__(self, data: HeldOutKnees, truths: Truths):
        super().__init__()
        self.known, self.truths = data.images.flatten(1), truths

    def encode(self, images):
        rows = torch.cdist(images.flatten(1), self.known).argmin(1).tolist()
        keys = [[float(v) for v in astuple(self.truths.truths[r].key)] for r in rows]
        key = torch.tensor([[0.0, *k] for k in keys], dtype=torch.float64)
        non_key = torch.zeros_like(key)
        non_key[:, 0] = torch.tensor(rows)
        return Latents(key[:, :, None, None], non_key[:, :, None, None])

    def decode(self, latent):
        return torch.stack([self._draw(row) for row in latent[:, :, 0, 0]])

    def _draw(self, row):
        host = self.truths.truths[round(float(row[0]))]
        top = np.array([4.0, 0.12, 0.12, *[0.08] * 4, 1.0, 1.0])
        values = np.clip(row[1:].numpy(), 0, top)
        key = KneeKey(round(values[0]), *values[1:].tolist())
        return self.truths.draw(host.with_key(replace(key)))
