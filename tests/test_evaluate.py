"""Figures of an evaluation against cases whose answer is known."""

import numpy as np
import pytest
import torch
from evaluation_models import Bar, Copy, Nothing, Swap, knees
from torch import nn

from kecae_aug.engine.model import KECAE
from kecae_training.bootstrap import Bootstrap, pool, summary
from kecae_training.evaluate.entrants import Entrant
from kecae_training.evaluate.evaluation import evaluate
from kecae_training.evaluate.exchanges import Exchanges, Kind, draw_stratified, psnr, ssim
from kecae_training.evaluate.tables import table


def figures_of(model, data=None, **options):
    return evaluate({"it": Entrant(model, {"bar": Bar()})}, data or knees(), **options).figures


def test_psnr_and_ssim_of_known_images():
    """A constant error of 0.2 in a range of 2 is 20 dB; an image is wholly similar to itself."""
    x = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(psnr(x + 0.2, x), torch.full((3,), 20.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(ssim(x, x), torch.ones(3))


def test_a_perfect_exchange_has_perfect_figures():
    """Oracles read the donor's grade in X', the own grade in X^, and an exchange follows its host."""
    result = figures_of(Swap(), strengths=(0.0, 1.0))
    assert result["real"]["bar"]["auroc"]["mean"] == 1
    assert result["reconstructed"]["bar"]["predicted_2"]["mean"] == 1
    assert result["exchanged"]["decoder 1"]["headline"]["auroc_over_real"]["mean"] == 1
    assert result["exchanged"]["host 1"]["oracles"]["bar"]["predicted_0"]["mean"] == 1
    assert result["exchanged"]["decoder 0"]["oracles"]["bar"]["auroc"]["mean"] == 0  # nothing was exchanged
    assert result["kept"]["balanced_0_over_real"]["mean"] == 1
    assert result["follows"]["host_over_donor"]["mean"] > 2
    assert result["selected"] == {"decoder": "decoder 1", "host": "host 1"}
    assert "X' (decoder 1, donor's label)" in table(result, ("0", "2"))


def test_oracles_of_other_classes_are_refused():
    """Logits in another order, or of more grades than the exchange has, would be read as another grade."""
    for classes in (("2", "0"), ("0", "2", "3")):
        oracle = Bar()
        oracle.classes = classes
        with pytest.raises(ValueError, match=r"bar: its logits are of classes .*it exchanges \('0', '2'\)"):
            evaluate({"it": Entrant(Swap(), {"bar": oracle})}, knees(8))


def test_another_default_device_changes_nothing():
    """evaluate() in a process with torch.set_default_device ("meta" stands for "cuda"): the same figures."""
    options = {"strengths": (1.0,), "robustness": False, "with_probes": False}
    data, model = knees(16), Swap()
    plain = figures_of(model, data, **options)
    torch.set_default_device("meta")
    try:
        other = figures_of(model, data, **options)
    finally:
        torch.set_default_device("cpu")
    assert other == plain


def test_half_precision_is_of_the_networks_alone():
    """Figures are of float32 images, near those of float32 networks."""
    torch.manual_seed(0)
    model, data = KECAE.from_preset("tiny").eval(), knees(8)
    whole, half = (
        Exchanges(model, data.images, torch.arange(8).roll(1), precision)
        for precision in ("32-true", "bf16-mixed")
    )
    assert half.reconstruction.dtype == half.key.dtype == torch.float32
    assert not torch.equal(half.reconstruction, whole.reconstruction)
    torch.testing.assert_close(half.reconstruction, whole.reconstruction, atol=0.05, rtol=0)


def test_an_exchange_that_does_nothing_fails_its_criteria():
    """The oracles still predict the host's grade, nothing moves, and the page must say "not met"."""
    result = figures_of(Nothing(), with_probes=False, robustness=False)
    verdicts = {criterion["criterion"]: criterion["verdict"] for criterion in result["criteria"]}
    assert verdicts["flip 0->2 over accuracy on real knees, decoder 1"] == "not met"
    assert verdicts["AUROC, X' over real knees, decoder 1"] == "not met"
    assert result["exchanged"]["decoder 2"]["change"]["mean"] == 0
    assert result["follows"]["donor"]["mean"] == 0


def test_exchanges_keep_hosts_at_strength_zero():
    """Host detail at strength 0 is the host itself: only what the exchange changes is added."""
    torch.manual_seed(0)
    model, data = KECAE.from_preset("tiny").eval(), knees(8)
    exchanges = Exchanges(model, data.images, torch.arange(8).roll(1))
    torch.testing.assert_close(exchanges.of(Kind("host", 0.0)), data.images, atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(exchanges.of(Kind("decoder", 0.0)), model(data.images), atol=1e-5, rtol=0)
        expected = model.exchange(data.images, data.images.roll(1, 0), 1.5)
    torch.testing.assert_close(exchanges.of(Kind("decoder", 1.5)), expected, atol=1e-5, rtol=0)


def test_interval_is_over_patients():
    """Fifty copies of a patient are one patient: the interval stays as wide as that of one image each."""
    values = np.array([0.0, 1.0] * 10)
    few, many = [str(i) for i in range(20)], [str(i) for i in range(20) for _ in range(50)]
    one, copied = summary(Bootstrap(few).mean(values)), summary(Bootstrap(many).mean(np.repeat(values, 50)))
    assert one["mean"] == copied["mean"] == 0.5
    assert one["high"] - one["low"] == pytest.approx(copied["high"] - copied["low"], abs=0.05)


class OtherBar(Bar):
    """The same oracle, trained by others."""


def test_cross_fit_pools_inside_the_same_draws():
    """Two weights, each with its own oracles: the headline is the mean, and each fold keeps its own figures."""
    entrants = {"a": Entrant(Swap(), {"j1": Bar()}), "b": Entrant(Nothing(), {"j2": OtherBar()})}
    result = evaluate(entrants, knees(), strengths=(1.0,), with_probes=False, robustness=False).figures
    heads = [
        f["exchanged"]["decoder 1"]["headline"] for f in (result["folds"]["a"], result["folds"]["b"], result)
    ]
    a, b, pooled = (h["flip_0->2_over_real"]["mean"] for h in heads)
    assert (a, b, pooled) == (1, 0, 0.5)
    assert set(result["folds"]["a"]["real"]) == {"j1"}
    assert result["images"] == 40
    assert pool(
        [{"x": np.array([1.0, 2.0]), "n": 3, "m": 1}, {"x": np.array([3.0, 4.0]), "n": 3, "m": 2}]
    ) == {
        "x": pytest.approx(np.array([2.0, 3.0])),
        "n": 3,
    }


class Bands(Swap):
    """Like Swap, for three grades."""

    def __init__(self):
        super().__init__()
        from dataclasses import replace

        self.config = replace(self.config, classes=("0", "2", "3"))


class Level(nn.Module):
    """Reads one of three darknesses of the middle rows."""

    classes = ("0", "2", "3")

    def forward(self, x):
        dark = (0.3 - x[:, 0, 28:36].mean((1, 2))) / 0.5
        return -8 * (dark[:, None] - torch.arange(3.0)) ** 2


def test_many_grades_have_a_confusion_matrix_and_one_figure():
    """Rows are the target grade. A perfect exchange has the identity and kappa 1, none at all a kappa below 0."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % 3
    data = knees(48)
    data.labels, data.images = labels, torch.rand(48, 1, 64, 64, generator=g) * 0.6
    data.images[:, :, 28:36] -= 0.5 * labels.view(-1, 1, 1, 1)
    oracles = {"level": Level()}
    result = evaluate({"it": Entrant(Bands(), oracles)}, data, strengths=(0.0, 1.0)).figures
    assert result["exchanged"]["decoder 1"]["headline"]["confusion"] == np.eye(3).tolist()
    assert result["exchanged"]["decoder 1"]["headline"]["kappa_over_real"]["mean"] == 1
    assert result["exchanged"]["decoder 0"]["headline"]["kappa"]["mean"] < 0
    assert result["real"]["level"]["confusion"] == np.eye(3).tolist()
    assert list(result["anatomy"]["gap"]) == ["to a higher grade", "to a lower grade"]


def test_a_quick_evaluation_keeps_every_grade():
    """Stratified, seeded, in order, and never more than asked by rounding of a grade each."""
    labels = [0] * 90 + [1] * 8 + [2] * 2
    rows = draw_stratified(labels, 20, 0)
    assert rows == sorted(set(rows)) == draw_stratified(labels, 20, 0) != draw_stratified(labels, 20, 1)
    assert {labels[i] for i in rows} == {0, 1, 2}
    assert draw_stratified(labels, 100, 0) == list(range(100))


def test_copying_the_donor_is_no_exchange():
    """It satisfies every oracle, and is found out by identity."""
    result = figures_of(Copy(), with_probes=False, robustness=False)
    assert result["exchanged"]["decoder 1"]["headline"]["auroc_over_real"]["mean"] == 1
    own = result["identity"]["decoder 1"]
    assert own["copies"]["of_donor"]["mean"] == 1
    assert len(own["copies"]["files"]["of_donor"]) == 40
    assert own["host_is_nearest"]["l1"]["mean"] == own["host_is_nearest"]["ssim"]["mean"] == 0
    assert own["donor_is_nearest"]["l1"]["mean"] == 1
    assert result["follows"]["host"]["mean"] == 0
    verdicts = {criterion["criterion"]: criterion["verdict"] for criterion in result["criteria"]}
    assert verdicts["fraction of near copies of donors, decoder 1"] == "not met"
