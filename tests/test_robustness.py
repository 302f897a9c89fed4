"""Small degradations: anatomy survives them, noise that fools an oracle does not."""

import pytest
import torch
from evaluation_models import Bar
from kecae_training.evaluate.robustness import DEGRADATIONS, after_degradation, blur, eight_bits, jpeg, shift
from torch import nn

from kecae_training.evaluate.oracles import Bench


def smooth(n=6):
    small = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    return nn.functional.interpolate(small, size=(64, 64), mode="bicubic").clamp(-1, 1)


def test_each_is_small_and_does_what_it_says():
    """Shape and range stay; rounding is within half a grey; a shift moves every pixel; none changes its input."""
    images = smooth()
    before = images.clone()
    for name, degrade in DEGRADATIONS.items():
        out = degrade(images)
        assert out.shape == images.shape, name
        assert out.abs().max() <= 1
        assert (out - images).abs().mean() < 0.2, name
        assert torch.equal(images, before)
    assert (eight_bits(images) - images).abs().max() <= 0.5 / 127.5 + 1e-6
    assert torch.equal(eight_bits(eight_bits(images)), eight_bits(images))
    assert torch.equal(shift(images, 3)[..., 3:, 3:], images[..., :-3, :-3])
    assert 0 < (jpeg(images) - images).abs().mean() < 0.03
    noise = torch.rand(2, 1, 64, 64) - 0.5
    assert blur(noise).var() < 0.2 * noise.var()


class Checkerboard(Bar):
    """Reads a pattern that nobody sees, at the level of single pixels."""

    def forward(self, x):
        rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        sign = 1 - 2 * ((rows + columns) % 2)
        found = 500 * (x[:, 0] * sign).mean((1, 2)) - 5
        return torch.stack([-found, found], 1)


def test_a_true_change_survives_and_noise_dies():
    """Both oracles are sure of the pattern; after a blur only the one that reads anatomy still is."""
    labels = torch.arange(40) % 2
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    sign = (1 - 2 * ((rows + columns) % 2)).float()
    images = torch.zeros(40, 1, 64, 64)
    images[:, :, 28:36] -= 0.6 * labels.view(-1, 1, 1, 1)
    images += 0.02 * sign * (2 * labels - 1).view(-1, 1, 1, 1)
    bench = Bench({"anatomy": Bar(), "noise": Checkerboard()}, images, labels, [str(i) for i in range(40)])
    result = after_degradation(bench, images, labels)
    for kind in DEGRADATIONS:
        assert result["oracles"][kind]["anatomy"][0] == 1, kind
    assert result["oracles"]["undegraded"]["noise"][0] == result["oracles"]["8 bits"]["noise"][0] == 1
    assert result["balanced_lost"]["8 bits"][0] == result["lost"]["8 bits"][0] == 0
    assert result["balanced_lost"]["blur 1 px"][0] == pytest.approx(0.25)  # one oracle of two is at chance
