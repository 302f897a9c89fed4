"""One step's computation: the numbers of each configuration, and every term on by its own name alone."""

from dataclasses import replace

import pytest
import torch

from kecae_aug.engine.model import KECAE, KECAEConfig
from kecae_training.augment import augment
from kecae_training.config import parse
from kecae_training.discriminator import Discriminator, DiscriminatorConfig
from kecae_training.heads import adversary, reverse_gradient
from kecae_training.losses import TERMS, LossConfig, StepOutputs, hybrid_loss
from kecae_training.pairs import same_grade_permutation
from kecae_training.step import KeyExchange, measures
from kecae_training.views import View, draw_view, look_through

OFF = dict.fromkeys(TERMS, 0.0) | {"mse": 1.0}
OPTIONAL = sorted(set(TERMS) - {"mse"})


def only(**weights: float) -> LossConfig:
    """J_MSE and these terms."""
    return LossConfig(terms={**OFF, **weights}, lda_eps=0.1)


@pytest.fixture(scope="module")
def discriminator() -> Discriminator:
    torch.manual_seed(0)
    config = DiscriminatorConfig(network="vgg", image_size=64, grades=("0", "2", "3", "4"))
    return Discriminator(config, ("0", "2")).freeze()


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(8, 1, 64, 64, generator=torch.Generator().manual_seed(1)) - 0.5
    return images, torch.tensor([0] * 4 + [1] * 4)


def step(loss: LossConfig, *panel: Discriminator, key_size: int | None = None):
    """A new network, what it computes of :func:`pairs`, and the terms."""
    torch.manual_seed(0)
    modules = KeyExchange(KECAE.from_preset("tiny", key_size=key_size), loss).train()
    images, labels = pairs()
    generator = torch.Generator().manual_seed(2)
    made = modules(images, same_grade_permutation(labels, generator))
    outputs = StepOutputs(images, labels, **made, lda_eps=loss.lda_eps)
    if loss.by_discriminator:
        look_through(panel[0], outputs, loss, panel, generator)
    return modules, outputs, hybrid_loss(outputs, loss)


# of the code before a term was a registered function: total, and the norms of the gradients
BEFORE = {
    ("default", 0): (
        1.2541635,
        {
            "key_encoder": 0.207316,
            "spread": 0.10334928,
            "non_key_encoder": 0.61043695,
            "decoder": 0.81648232,
            "key_head": 0.010910058,
            "adversary": 0.060713017,
        },
    ),
    ("default", 800): (
        1.6838423,
        {
            "key_encoder": 0.32521369,
            "spread": 0.15822567,
            "non_key_encoder": 1.0695517,
            "decoder": 1.4372082,
            "key_head": 0.010910058,
            "adversary": 0.060713017,
        },
    ),
    ("paper", 0): (
        104.65891,
        {"key_encoder": 376419.26, "non_key_encoder": 367747.34, "decoder": 0.62283578},
    ),
}


@pytest.mark.parametrize(("name", "at"), list(BEFORE))
def test_the_packaged_configurations_learn_what_they_learned(name, at, discriminator):
    """The same total and gradients as when the terms were a list in the step, before and after the discriminator begins."""
    loss = parse(["--config", name, "--discriminator", "made here"]).loss
    modules, _, terms = step(loss.at(at), discriminator, key_size=8 if name == "default" else None)
    total, norms = BEFORE[name, at]
    # Eq. 7 without a bound divides by a difference of means near 0
    tolerance = 1e-2 if name == "paper" else 1e-4
    assert float(terms["total"].detach()) == pytest.approx(total, rel=tolerance)
    terms["total"].backward()
    squares: dict[str, float] = {}
    for parameter, p in modules.named_parameters():
        part = parameter.removeprefix("model.").split(".")[0]
        squares[part] = squares.get(part, 0) + float(p.grad.double().square().sum())
    assert {k: v**0.5 for k, v in squares.items()} == pytest.approx(norms, rel=10 * tolerance)


@pytest.mark.parametrize("name", OPTIONAL)
def test_each_term_is_switched_by_its_weight_alone(name, discriminator):
    """Off, it is not computed; on, it is logged, enters the total with its weight, and teaches the network."""
    modules, _, terms = step(only(**{name: 0.5}), discriminator)
    assert set(terms) == {"mse", "total", name}
    assert terms[name].dtype == torch.float32
    torch.testing.assert_close(terms["total"].detach(), terms["mse"] + 0.5 * terms[name])
    (terms["total"] - terms["mse"]).backward()
    learns = [p.grad for p in modules.model.parameters() if p.grad is not None]
    assert any(g.abs().sum() > 0 for g in learns), "no gradient reaches the KECAE"


def test_what_no_term_reads_is_not_computed(discriminator):
    """No head, no decode and no pass through the discriminator without a term of a weight that asks for it."""
    modules, outputs, terms = step(only())
    assert set(terms) == {"mse", "total"}
    torch.testing.assert_close(terms["total"].detach(), terms["mse"])
    optional = [v for k, v in vars(outputs).items() if k not in ("images", "labels", "lda_eps")]
    assert [v is None for v in optional] == [False] * 4 + [True] * 8
    assert modules.key_head is modules.adversary is None
    _, outputs, _ = step(only(sup_host=0.1), discriminator)
    assert outputs.exchanged_logits is outputs.image_features is outputs.same_grade is None
    assert outputs.host_logits is not None


def test_terms_of_the_discriminator_together_are_those_apart(discriminator):
    """One pass through the discriminator for all of them changes none."""
    names = ("sup", "sup_host", "feature_match")
    _, _, together = step(only(**dict.fromkeys(names, 0.1)), discriminator)
    for name in names:
        _, _, alone = step(only(**{name: 0.1}), discriminator)
        torch.testing.assert_close(together[name], alone[name])


def test_a_fraction_of_the_pairs_is_looked_at_as_those_pairs_alone(discriminator):
    """The discriminator's terms of half a batch are those of its first pairs: hosts keep their donors' labels."""
    loss = only(sup=1.0, sup_host=1.0, feature_match=1.0)
    _, outputs, half = step(replace(loss, discriminator_fraction=0.5), discriminator)
    indices = [0, 1, 4, 5]
    images = {
        k: getattr(outputs, k)[indices] for k in ("images", "reconstruction", "exchanged", "key", "non_key")
    }
    few = StepOutputs(labels=torch.tensor([0, 0, 1, 1]), **images)
    look_through(discriminator, few, loss, [discriminator])
    alone = hybrid_loss(few, loss)
    for name in loss.by_discriminator:
        torch.testing.assert_close(half[name], alone[name])
    assert measures(outputs)["discriminator_flip"] == measures(few)["discriminator_flip"]


def test_the_discriminator_begins_at_its_step():
    """Before discriminator_from its weights are 0 and nothing else differs."""
    loss = replace(only(sup=1.0, feature_match=0.5, same_grade=0.2), discriminator_from=10)
    assert loss.at(10) == loss
    assert loss.at(9) == loss.weighing(sup=0.0, feature_match=0.0)


def test_a_discriminator_that_is_missing_is_asked_for_by_every_term_that_needs_it():
    """The property that the config's check and the training both read."""
    assert only(**dict.fromkeys(OPTIONAL, 1.0)).by_discriminator == ["sup", "sup_host", "feature_match"]
    assert not only(same_grade=1.0, fisher_key=1.0).by_discriminator
    assert LossConfig().active == {
        "mse": 1,
        "sup": 1e-2,
        "lda": 1e-3,
    }  # Eq. 8; all else is off unless asked for


class OneHot(torch.nn.Module):
    """A discriminator that is certain: of the first four images class 0, of the others 1."""

    def forward(self, images):
        return 1e4 * torch.eye(2).repeat_interleave(len(images) // 2, 0)


def test_a_posterior_that_is_certain_is_the_label(discriminator):
    """J_SUP with soft targets agrees with Eq. 5 where the posterior is one-hot, in value and gradient."""
    results = []
    for target, panel in (("label", [discriminator]), ("posterior", [discriminator, OneHot()])):
        loss = replace(only(sup=1.0, sup_host=1.0), sup_target=target)
        modules, outputs, _ = step(replace(loss, sup_target="label"), discriminator)
        look_through(discriminator, outputs, loss, panel[-1:])
        terms = hybrid_loss(outputs, loss)
        terms["total"].backward()
        results.append((terms["total"].detach(), [p.grad for p in modules.model.parameters()]))
    torch.testing.assert_close(results[0], results[1])


def test_the_posterior_is_the_mean_of_all_discriminators_on_the_real_donor(discriminator):
    """Whichever of them the step looks through; no gradient flows into it, and no view stands before it."""
    loss = replace(only(sup=1.0), sup_target="posterior", discriminator_noise=0.5)
    _, outputs, terms = step(loss, discriminator, OneHot())
    target = outputs.donor_target
    with torch.no_grad():
        own = discriminator(outputs.images).softmax(1)
    expected = (own + torch.eye(2).repeat_interleave(4, 0)) / 2
    torch.testing.assert_close(target, expected.roll(4, 0))
    assert not target.requires_grad
    by_hand = -(target * outputs.exchanged_logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(terms["sup"], (by_hand[:4].mean() + by_hand[4:].mean()).detach())


@pytest.mark.parametrize("latent", ["vector", "spatial"])
def test_the_adversary_reads_latents_of_any_shape(latent):
    """Vectors and maps: one logit a class, and its gradient reaches hN reversed (head learns, encoder unlearns)."""
    config = KECAEConfig(64, 8, 12, latent, 6, classes=("0", "2", "4"))
    net = adversary(config)
    hN = torch.randn(5, *config.latent_shape, requires_grad=True)
    loss = net(hN).square().sum()
    (plain,) = torch.autograd.grad(loss, hN)
    (turned,) = torch.autograd.grad(net(reverse_gradient(hN)).square().sum(), hN)
    assert net(hN).shape == (5, 3)
    torch.testing.assert_close(turned, -plain)


def test_a_view_moves_all_images_alike():
    """What is compared is seen alike; nothing is lost but what leaves the frame, and 0 is the image itself."""
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(View()(images), images)
    moved = View(dx=2, dy=-1)(images)
    assert torch.equal(moved[..., :-1, 2:], images[..., 1:, :-2])
    view = draw_view(images.shape, 2, 0.1, torch.Generator().manual_seed(0), 1.0)
    again = draw_view(images.shape, 2, 0.1, torch.Generator().manual_seed(0), 1.0)
    assert torch.equal(view(images), again(images))
    assert abs(view.dx) <= 2
    assert abs(view.dy) <= 2
    assert view.noise.std() < 0.1
    soft = View(blur=0.8)(images)
    assert soft.diff(dim=-1).abs().mean() < 0.7 * images.diff(dim=-1).abs().mean()


def test_augment_of_nothing_changes_nothing():
    """amount=0 without noise is the identity, so the option is off where it says 0; noise keeps its bound."""
    images = torch.rand(4, 1, 32, 32) - 0.5
    same = augment(images, torch.Generator().manual_seed(0), 0.0, noise=0.0)
    torch.testing.assert_close(same, images, atol=1e-5, rtol=0)
    changed = augment(images, torch.Generator().manual_seed(0))
    assert (changed - images).abs().mean() > 0.02
