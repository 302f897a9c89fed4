"""One step's computation: every optional term is off by default, and on by its own name alone."""

from dataclasses import asdict, fields, replace

import pytest
import torch

from kecae_aug.engine.model import KECAE, KECAEConfig, Latents
from kecae_training.augment import augment
from kecae_training.config import LossConfig
from kecae_training.discriminator import Discriminator, DiscriminatorConfig
from kecae_training.losses import reverse_gradient, same_grade_permutation
from kecae_training.step import KeyExchange, adversary, hybrid_loss
from kecae_training.views import View, draw_view

VIEWS = (
    "lda_eps",
    "discriminator_shift",
    "discriminator_noise",
    "discriminator_blur",
    "discriminator_from",
    "discriminator_fraction",
)  # no terms of their own
OFF = {f.name: 0 for f in fields(LossConfig) if f.name not in VIEWS}
LOGGED = {"lambda1": "sup", "lambda1_host": "sup_host", "lambda2": "lda"}


@pytest.fixture(scope="module")
def discriminator() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(DiscriminatorConfig(network="vgg", image_size=64), ("0", "2")).freeze()


def step(config: LossConfig, discriminator: Discriminator) -> tuple[KeyExchange, dict]:
    torch.manual_seed(0)
    model = KECAE.from_preset("tiny")
    modules = KeyExchange(model, config).train()
    images = torch.rand(8, 1, 64, 64, generator=torch.Generator().manual_seed(1)) - 0.5
    labels = torch.tensor([0] * 4 + [1] * 4)
    generator = torch.Generator().manual_seed(2)
    outputs = modules(images, same_grade_permutation(labels, generator))
    return modules, hybrid_loss(outputs, images, labels, config, discriminator, generator)


@pytest.mark.parametrize("name", sorted(OFF))
def test_each_term_is_switched_by_its_weight_alone(name, discriminator):
    """Off, it is not computed; on, it is logged, enters the total with its weight, and teaches the network."""
    config = LossConfig(**{**OFF, name: 0.5, "lda_eps": 0.1})
    modules, terms = step(config, discriminator)
    logged = LOGGED.get(name, name)
    assert set(terms) - {"discriminator_flip", "discriminator_flip_host"} == {
        "mse",
        "lda",
        "change",
        "total",
        logged,
    }
    torch.testing.assert_close(terms["total"].detach(), terms["mse"] + 0.5 * terms[logged])
    _, plain = step(LossConfig(**OFF), discriminator)
    (terms["total"] - terms["mse"]).backward()
    learns = [p.grad for p in modules.model.parameters() if p.grad is not None]
    assert any(g.abs().sum() > 0 for g in learns), "no gradient reaches the KECAE"
    torch.testing.assert_close(plain["total"].detach(), plain["mse"])


def test_guided_terms_together_are_those_apart(discriminator):
    """One pass through the discriminator for all of them changes none."""
    names = ("lambda1", "lambda1_host", "feature_match")
    _, together = step(LossConfig(**{**OFF, **dict.fromkeys(names, 0.1)}), discriminator)
    for name in names:
        _, alone = step(LossConfig(**{**OFF, name: 0.1}), discriminator)
        torch.testing.assert_close(together[LOGGED.get(name, name)], alone[LOGGED.get(name, name)])


def test_a_share_of_the_pairs_is_judged_as_those_pairs_alone(discriminator):
    """The discriminator's terms of half a batch are those of its first pairs: hosts keep their donors' labels."""
    config = LossConfig(**{**OFF, "lambda1": 1.0, "lambda1_host": 1.0, "feature_match": 1.0})
    _, half = step(replace(config, discriminator_fraction=0.5), discriminator)
    images = torch.rand(8, 1, 64, 64, generator=torch.Generator().manual_seed(1)) - 0.5
    torch.manual_seed(0)
    modules = KeyExchange(KECAE.from_preset("tiny"), config).train()
    outputs = modules(images, torch.arange(8))
    rows = [0, 1, 4, 5]
    outputs = outputs._replace(
        **{k: getattr(outputs, k)[rows] for k in ("reconstruction", "exchanged")},
        latents=Latents(outputs.latents.key[rows], outputs.latents.non_key[rows]),
    )
    alone = hybrid_loss(outputs, images[rows], torch.tensor([0, 0, 1, 1]), config, discriminator)
    for name in ("sup", "sup_host", "feature_match"):
        torch.testing.assert_close(half[name], alone[name])


def test_the_discriminator_begins_at_its_step():
    """Before discriminator_from its weights are 0 and nothing else differs."""
    config = LossConfig(
        **{**OFF, "lambda1": 1.0, "feature_match": 0.5, "same_grade": 0.2, "discriminator_from": 10}
    )
    assert config.at(10) == config
    assert asdict(config.at(9)) == {**asdict(config), "lambda1": 0.0, "feature_match": 0.0}


def test_a_discriminator_that_is_missing_is_asked_for_by_every_term_that_needs_it():
    """The property that the config's check and the training both read."""
    for name in ("lambda1", "lambda1_host", "feature_match"):
        assert LossConfig(**{**OFF, name: 0.1}).needs_discriminator
    assert not LossConfig(**{**OFF, "same_grade": 1.0, "fisher_key": 1.0}).needs_discriminator
    assert asdict(LossConfig())["feature_match"] == 0  # off unless asked for


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
