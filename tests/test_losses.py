"""The terms of Eq. 3 to 8 against their definition, and the traps that are known of them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kecae_aug.engine.model import KECAE, Latents
from kecae_training import losses
from kecae_training.heads import reverse_gradient
from kecae_training.losses import LossConfig, StepOutputs, hybrid_loss, term
from kecae_training.pairs import same_grade_permutation


def latents(seed: int = 0, shift: float = 0.0) -> Latents:
    g = torch.Generator().manual_seed(seed)
    return Latents(torch.randn(6, 32, 1, 1, generator=g) + shift, torch.randn(6, 32, 1, 1, generator=g))


def test_j_mse_is_the_sum_over_the_two_images_of_a_pair():
    """Eq. 4 adds the two errors; a mean over the joined batch would halve J_MSE against the lambdas."""
    x, y = torch.randn(2, 8, 1, 5, 5)
    expected = F.mse_loss(x[:4], y[:4]) + F.mse_loss(x[4:], y[4:])
    torch.testing.assert_close(losses.j_mse(x, y), expected)
    torch.testing.assert_close(losses.j_same_grade(x, y), expected)


def test_j_sup_asks_for_the_donors_label():
    """Eq. 5: X1' is evaluated by Y_2 and X2' by Y_1, summed."""
    logits, donors = torch.randn(8, 2), torch.tensor([1] * 4 + [0] * 4)
    expected = F.cross_entropy(logits[:4], donors[:4]) + F.cross_entropy(logits[4:], donors[4:])
    torch.testing.assert_close(losses.j_sup(logits, donors), expected)


def test_j_lda_by_hand():
    """Eq. 6 and 7 with biased variances over the elements of each vector."""
    h = latents()
    ratios = []
    for key, non_key in zip(h.key.flatten(1), h.non_key.flatten(1), strict=True):
        var = key.var(correction=0) + non_key.var(correction=0)
        ratios.append(var / (non_key.mean() - key.mean()) ** 2)
    expected = torch.stack(ratios[:3]).mean() + torch.stack(ratios[3:]).mean()
    torch.testing.assert_close(losses.j_lda(*h), expected)


@settings(max_examples=20, deadline=None)
@given(c=st.floats(2.0, 50.0), seed=st.integers(0, 99))
def test_j_lda_has_a_gauge_freedom(c, seed):
    """hK + c and hN - c decode to the same images in every exchange, yet J_LDA falls: never read it as separation."""
    a = latents(seed)
    b = Latents(a.key + c, a.non_key - c)
    swapped = torch.arange(6).roll(3)
    torch.testing.assert_close(a.sum, b.sum, atol=1e-4, rtol=0)
    torch.testing.assert_close(a.non_key + a.key[swapped], b.non_key + b.key[swapped], atol=1e-4, rtol=0)
    far = Latents(a.key + 10 * c, a.non_key - 10 * c)
    assert losses.j_lda(*far) < losses.j_lda(*b)
    assert losses.j_lda(*far) < 0.1


def test_j_lda_blows_up_and_eps_bounds_it():
    """Equal means: the paper's ratio overflows, the bound of 0.1 keeps it below 2 (var + var) / 0.1."""
    h = latents()
    same = Latents(
        h.key - h.key.mean((1, 2, 3), keepdim=True), h.non_key - h.non_key.mean((1, 2, 3), keepdim=True)
    )
    assert losses.j_lda(*same) > 1e6
    bounded = losses.j_lda(*same, lda_eps=0.1)
    assert bounded < 2 * (same.key.var() + same.non_key.var() + 1) / 0.1


def test_j_lda_is_float32_under_autocast():
    """In bfloat16 the means coincide and the ratio is inf; the function leaves autocast by itself."""
    h = latents(shift=1e-3)
    low = Latents(h.key.bfloat16(), h.non_key.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = losses.j_lda(*low)
    assert value.dtype == torch.float32
    assert torch.isfinite(value)


def test_untrained_j_lda_is_large_in_the_paper_setting():
    """At Kaiming initialisation the two means nearly coincide: without a bound the first steps are wild."""
    torch.manual_seed(0)
    model = KECAE.from_preset("tiny").train()
    h = model.encode(torch.rand(16, 1, 64, 64) * 2 - 1)
    assert losses.j_lda(*h) > 10 * losses.j_lda(*h, lda_eps=0.1)


def test_reversed_gradient_is_reversed():
    """The adversary's head gets its own gradient, the encoder the opposite one, scaled."""
    x = torch.randn(4, 3, requires_grad=True)
    reverse_gradient(x, 0.5).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((4, 3), -0.5))


@settings(max_examples=30, deadline=None)
@given(labels=st.lists(st.integers(0, 2), max_size=20), seed=st.integers(0, 99))
def test_same_grade_permutation_keeps_grades(labels, seed):
    """A permutation (nothing doubled or lost) that never crosses a grade, and is a function of the seed."""
    y = torch.tensor(labels, dtype=torch.int64)
    one, two = (same_grade_permutation(y, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(one, two)
    assert sorted(one.tolist()) == list(range(len(labels)))
    assert torch.equal(y[one], y)


@pytest.mark.parametrize("term", [losses.j_mse, losses.j_same_grade])
def test_image_terms_are_zero_only_for_equal_images(term):
    """A perfect reconstruction costs nothing."""
    x = torch.randn(4, 1, 6, 6)
    assert term(x, x) == 0
    assert term(x, x + 0.1) > 0


def test_feature_match_is_zero_for_equal_features_and_ignores_their_scale():
    """Every stage counts the same, however large its activations are; the reference gets no gradient."""
    a = [torch.rand(2, 4, 8, 8), 100 * torch.rand(2, 8, 4, 4)]
    b = [x.clone().requires_grad_(True) for x in a]
    assert losses.j_feature_match(a, b) == 0
    twice = losses.j_feature_match([2 * x for x in a], b)
    torch.testing.assert_close(twice, torch.tensor(2.0))
    x = [f.clone().requires_grad_(True) for f in a]
    losses.j_feature_match(x, [f * 1.1 for f in b]).backward()
    assert x[0].grad is not None
    assert b[0].grad is None


def test_fisher_falls_as_the_grades_part():
    """Scatter within over scatter between; and no gauge freedom: a constant added to all keys changes nothing."""
    labels = torch.arange(16) % 2
    key = torch.randn(16, 8, 1, 1, generator=torch.Generator().manual_seed(0))
    apart = key + 4 * labels.view(-1, 1, 1, 1)
    assert losses.j_fisher(apart, labels) < 0.5 * losses.j_fisher(key, labels)
    torch.testing.assert_close(
        losses.j_fisher(apart + 50, labels), losses.j_fisher(apart, labels), rtol=1e-3, atol=1e-4
    )


def test_a_new_term_is_one_function_and_its_weight(monkeypatch):
    """Registered, it is weighed, logged and computed; without a weight it is not called."""
    monkeypatch.setattr(losses, "TERMS", dict(losses.TERMS))

    @term("darkness")
    def darkness(exchanged):
        return exchanged.mean()

    images = torch.rand(4, 1, 6, 6)
    h = Latents(torch.zeros(4, 2, 1, 1), torch.zeros(4, 2, 1, 1))
    outputs = StepOutputs(images, torch.tensor([0, 0, 1, 1]), *h, images, images)
    off = {"sup": 0, "lda": 0}
    terms = hybrid_loss(outputs, LossConfig(terms={**off, "darkness": 0.5}))
    assert set(terms) == {"mse", "darkness", "total"}
    torch.testing.assert_close(terms["total"], 0.5 * images.mean())
    assert set(hybrid_loss(outputs, LossConfig(terms=off))) == {"mse", "total"}


def test_a_term_that_reads_what_no_step_computes_is_refused(monkeypatch):
    """When it is registered, by the parameter's name; so is a name that is taken."""
    monkeypatch.setattr(losses, "TERMS", dict(losses.TERMS))
    with pytest.raises(ValueError, match=r"term 'new' reads imagse: a step computes .*images"):
        term("new")(lambda imagse: imagse.mean())
    with pytest.raises(ValueError, match=r"term 'mse' is registered already"):
        term("mse")(lambda images: images.mean())


def test_a_mistyped_term_is_told_the_near_name():
    with pytest.raises(
        ValueError, match=r"loss.terms: 'fisher_kye' is no term \(did you mean 'fisher_key'\?\)"
    ):
        LossConfig(terms={"fisher_kye": 1})
    with pytest.raises(ValueError, match=r"'lambda1' is no term.*; accepted are mse, sup, "):
        LossConfig(terms={"lambda1": 1})
