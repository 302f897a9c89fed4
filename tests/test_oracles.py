"""Oracles: figures of known predictions, balanced thresholds, and degradations that noise does not survive."""

import numpy as np
import pytest
import torch
from evaluation_models import Bar, Nothing, Swap, knees
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from torch import nn

from kecae_training.bootstrap import cohen_kappa, count_confusions, summarise, weighted_auroc
from kecae_training.evaluate.entrants import Entrant
from kecae_training.evaluate.evaluation import evaluate
from kecae_training.evaluate.exchanges import Exchanges, Kind
from kecae_training.evaluate.oracles import (
    DEGRADATIONS,
    Bench,
    balanced_threshold,
    blur,
    eight_bits,
    jpeg,
    measure_robustness,
    shift,
)


def figures_of(bench, images, target):
    return summarise(bench.tree(bench.predict(images), target))


def smooth(n=6):
    small = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    return nn.functional.interpolate(small, size=(64, 64), mode="bicubic").clamp(-1, 1)


def test_each_degradation_is_small_and_does_what_its_name_states():
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
    """Reads a pattern of single pixels."""

    def forward(self, x):
        rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        sign = 1 - 2 * ((rows + columns) % 2)
        found = 500 * (x[:, 0] * sign).mean((1, 2)) - 5
        return torch.stack([-found, found], 1)


def test_a_true_change_survives_and_noise_does_not():
    """Both oracles are sure of the pattern; after a blur only the one that reads anatomy still is."""
    labels = torch.arange(40) % 2
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    sign = (1 - 2 * ((rows + columns) % 2)).float()
    images = torch.zeros(40, 1, 64, 64)
    images[:, :, 28:36] -= 0.6 * labels.view(-1, 1, 1, 1)
    images += 0.02 * sign * (2 * labels - 1).view(-1, 1, 1, 1)
    bench = Bench({"anatomy": Bar(), "noise": Checkerboard()}, images, labels, [str(i) for i in range(40)])
    result = measure_robustness(bench, images, labels)
    for kind in DEGRADATIONS:
        assert result["oracles"][kind]["anatomy"][0] == 1, kind
    assert result["oracles"]["undegraded"]["noise"][0] == result["oracles"]["8 bits"]["noise"][0] == 1
    assert result["balanced_lost"]["8 bits"][0] == result["lost"]["8 bits"][0] == 0
    assert result["balanced_lost"]["blur 1 px"][0] == pytest.approx(0.25)  # one oracle of two is at chance


def test_weighted_auroc_and_kappa_are_those_of_scikit_learn():
    """A weight of two is a row that is there twice; ties count half."""
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 9, 60) / 9, rng.integers(0, 2, 60)
    target, predicted = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    weights = np.stack([np.ones(60), rng.integers(0, 4, 60)]).astype(float)
    counts = count_confusions(weights, target, predicted, 4)
    for w, area, agreement in zip(
        weights, weighted_auroc(scores, labels == 1, weights), cohen_kappa(counts), strict=True
    ):
        assert area == pytest.approx(roc_auc_score(labels, scores, sample_weight=w))
        expected = cohen_kappa_score(target, predicted, weights="quadratic", sample_weight=w, labels=range(4))
        assert agreement == pytest.approx(expected)


def test_an_oracle_that_guesses_is_at_chance_and_gives_no_verdict():
    """A blind oracle has an AUROC of one half; ratios to it are no evidence, however good they look."""

    class Blind(Bar):
        def forward(self, x):
            return torch.zeros(len(x), 2)

    data = knees()
    bench = Bench({"blind": Blind()}, data.images, data.labels, data.patients)
    result = figures_of(bench, data.images, data.labels)["blind"]
    assert result["auroc"]["mean"] == 0.5
    assert result["auroc_over_real"]["mean"] == 1
    assert bench.at_chance() == ["blind"]
    assert Bench({"bar": Bar()}, data.images, data.labels, data.patients).at_chance() == []
    entrant = Entrant(Swap(), {"blind": Blind()})
    figures = evaluate({"it": entrant}, data, strengths=(1.0,), with_probes=False).figures
    verdicts = [b["verdict"] for b in figures["criteria"] if b["group"] == "oracles"]
    assert verdicts
    assert all(v.startswith("no verdict") for v in verdicts)


def test_an_oracle_of_one_grade_is_balanced_before_its_flips_are_counted():
    """An oracle that calls nearly all knees KL-0 at its own threshold still ranks them: the balanced flip shows it."""

    class Shy(Bar):
        def forward(self, x):
            return super().forward(x) - torch.tensor([0.0, 12.0])

    data = knees()
    donors = torch.arange(len(data.labels)).roll(1)
    exchanged = Exchanges(Swap(), data.images, donors).of(Kind("host", 1.0))
    bench = Bench({"shy": Shy()}, data.images, data.labels, data.patients)
    found = figures_of(bench, exchanged, data.labels[donors])["shy"]
    assert found["predicted_2"]["mean"] < 0.5 < found["balanced_2"]["mean"]
    head = bench.headline(bench.predict(exchanged), data.labels[donors])
    assert head["auroc_over_real"][0] == 1
    assert head["flip_0->2_over_real"][0] == head["flip_2->0_over_real"][0] == 1
    unchanged = bench.headline(bench.predict(data.images), data.labels[donors])
    assert unchanged["flip_0->2_over_real"][0] == 0


def test_balanced_threshold_makes_both_grades_equally_right():
    """Its definition, on scores of two shifted normal distributions."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 2000)
    scores = (rng.normal(size=4000) + labels).astype(np.float32)
    cut = balanced_threshold(scores, labels)
    assert cut == pytest.approx(0.5, abs=0.1)
    assert abs((scores[labels == 1] >= cut).mean() - (scores[labels == 0] < cut).mean()) < 0.002


def test_the_discriminator_stands_apart_from_the_oracles():
    """Its figures are beside the oracles', its gap is reported, and it is in no mean over the oracles."""

    class Sure(Bar):
        def forward(self, x):  # predicts the second grade for every image
            return torch.tensor([[0.0, 5.0]]).repeat(len(x), 1)

    entrant = Entrant(Nothing(), {"bar": Bar()}, Sure())
    result = evaluate({"it": entrant}, knees(), strengths=(1.0,), with_probes=False).figures
    row = result["exchanged"]["decoder 1"]
    assert row["oracles"]["discriminator (certifies itself)"]["predicted_2"]["mean"] == 1
    assert row["discriminator_gap"]["predicted_2"]["mean"] == 1  # the oracles predict it for none
    assert row["headline"]["flip_0->2"]["mean"] == 0
