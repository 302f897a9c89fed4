"""Figures of an evaluation against cases whose answer is known."""

import numpy as np
import pytest
import torch
from torch import nn

from kecae_aug.model import KECAE
from kecae_training.evaluate import evaluate, exchange_all, table
from kecae_training.judging import Bench, balanced_threshold
from kecae_training.measures import Knees, psnr, ssim, with_interval


class Bar(nn.Module):
    """A judge that reads the darkness of the middle rows."""

    classes = ("0", "2")

    def forward(self, x):
        bar = -8 * (x[:, 0, 28:36].mean((1, 2)) + 0.2)
        return torch.stack([-bar, bar], 1)


class Swap(KECAE):
    """A perfect KECAE for bars: the key is the middle rows, the rest the non-key."""

    def __init__(self):
        super().__init__(KECAE.from_preset("tiny").config)

    def encode(self, images):
        from kecae_aug.model import Latents

        key = torch.zeros_like(images)
        key[:, :, 28:36] = images[:, :, 28:36]
        return Latents(key, images - key)

    def decode(self, latent):
        return latent


def knees(n: int = 40) -> Knees:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    images = torch.rand(n, 1, 64, 64, generator=g) * 0.6
    images[:, :, 28:36] -= 0.9 * labels.view(-1, 1, 1, 1)
    return Knees(images.clamp(-1, 1), labels, [str(i // 2) for i in range(n)])


def test_psnr_and_ssim_of_known_images():
    """A constant error of 0.2 in a range of 2 is 20 dB; an image is wholly similar to itself."""
    x = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(psnr(x + 0.2, x), torch.full((3,), 20.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(ssim(x, x), torch.ones(3))


def test_perfect_exchange_is_judged_perfect():
    """Judges read the donor's grade in X', the own grade in X^, and an exchange follows its host."""
    result = evaluate(Swap(), knees(), {"bar": Bar()}, strengths=(0.0, 1.0))
    assert result["real"]["bar"]["auroc"]["mean"] == 1
    assert result["reconstructed"]["bar"]["says_2"]["mean"] == 1
    assert result["exchanged"]["decoder 1"]["judges"]["bar"]["auroc"]["mean"] == 1
    assert result["exchanged"]["host 1"]["judges"]["bar"]["says_0"]["mean"] == 1
    assert result["exchanged"]["decoder 0"]["judges"]["bar"]["auroc"]["mean"] == 0  # nothing was exchanged
    assert result["follows"]["host"] > 2 * result["follows"]["donor"]
    assert "X' (decoder 1, donor's label)" in table(result, ("0", "2"))


def test_exchange_all_keeps_hosts_at_strength_zero():
    """Host detail at strength 0 is the host itself: only what the exchange changes is added."""
    torch.manual_seed(0)
    model, data = KECAE.from_preset("tiny").eval(), knees(8)
    decoder, host = exchange_all(model, data.images, torch.arange(8).roll(1), 0.0)
    torch.testing.assert_close(host, data.images, atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(decoder, model(data.images), atol=1e-5, rtol=0)


def test_interval_is_over_patients():
    """Fifty copies of a patient are one patient: the interval stays as wide as that of one image each."""
    values = np.array([0.0, 1.0] * 10)
    one = with_interval(lambda r: float(values[r].mean()), [str(i) for i in range(20)])
    copied = with_interval(
        lambda r: float(np.repeat(values, 50)[r].mean()), [str(i) for i in range(20) for _ in range(50)]
    )
    assert one["mean"] == copied["mean"] == 0.5
    assert one["high"] - one["low"] == pytest.approx(copied["high"] - copied["low"], abs=0.05)


def test_a_judge_that_guesses_is_at_chance():
    """No label leaks into the judgement: a blind judge has an AUROC of one half."""

    class Blind(Bar):
        def forward(self, x):
            return torch.zeros(len(x), 2)

    data = knees()
    bench = Bench({"blind": Blind()}, data.images, data.labels, data.patients)
    result = bench.judged(bench.see(data.images), data.labels)["blind"]
    assert result["auroc"]["mean"] == 0.5
    assert result["auroc_over_real"]["mean"] == 1


def test_a_shy_judge_is_balanced_before_its_flips_are_counted():
    """A judge that calls nearly all knees KL-0 at its own threshold still ranks them: the balanced flip shows it."""

    class Shy(Bar):
        def forward(self, x):
            return super().forward(x) - torch.tensor([0.0, 12.0])

    data = knees()
    donors = torch.arange(len(data.labels)).roll(1)
    _, exchanged = exchange_all(Swap(), data.images, donors, 1.0)
    bench = Bench({"shy": Shy()}, data.images, data.labels, data.patients)
    judged = bench.judged(bench.see(exchanged), data.labels[donors])["shy"]
    assert judged["says_2"]["mean"] < 0.5 < judged["balanced_2"]["mean"]
    head = bench.headline(bench.see(exchanged), data.labels[donors])
    assert head["auroc_over_real"]["mean"] == 1
    assert head["flip_0->2_over_real"]["mean"] == head["flip_2->0_over_real"]["mean"] == 1
    unchanged = bench.headline(bench.see(data.images), data.labels[donors])
    assert unchanged["flip_0->2_over_real"]["mean"] == 0


def test_balanced_threshold_makes_both_grades_equally_right():
    """Its definition, on scores of two shifted normal distributions."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 2000)
    scores = (rng.normal(size=4000) + labels).astype(np.float32)
    cut = balanced_threshold(scores, labels)
    assert cut == pytest.approx(0.5, abs=0.1)
    assert abs((scores[labels == 1] >= cut).mean() - (scores[labels == 0] < cut).mean()) < 0.002


def test_more_than_two_grades_give_a_confusion_matrix():
    """Rows are the wanted grade: a judge of three grades that always says the first."""

    class Always(nn.Module):
        classes = ("0", "2", "3")

        def forward(self, x):
            return torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(x), 1)

    labels = torch.arange(12) % 3
    bench = Bench({"always": Always()}, torch.zeros(12, 1, 64, 64), labels, [str(i) for i in range(12)])
    assert (
        bench.judged(bench.see(torch.zeros(12, 1, 64, 64)), labels)["always"]["confusion"] == [[1, 0, 0]] * 3
    )
