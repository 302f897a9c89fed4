"""Realism against cases whose answer is known: the same images, and ever blurrier ones."""

import numpy as np
import pytest
import torch

from kecae_aug.phantom import PhantomKnees
from kecae_training.discriminator import Discriminator, DiscriminatorConfig
from kecae_training.evaluate.oracles import blur, eight_bits
from kecae_training.evaluate.realism import (
    accuracy,
    by_features,
    by_network,
    frechet,
    kernel,
    measure_realism,
    penultimate,
    split_patients,
)

SIDE = 64


@pytest.fixture(scope="module")
def hosts():
    data = PhantomKnees(40, image_size=SIDE)
    return torch.stack([data[i][0] for i in range(len(data))]), list(data.patients)


@pytest.fixture(scope="module")
def extractor():
    """Random filters are features too; without a mean, they see detail rather than exposure."""
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(network="resnet", image_size=SIDE), ("0", "2"))
    with torch.no_grad():
        discriminator.network[0].weight -= discriminator.network[0].weight.mean((2, 3), keepdim=True)
    return discriminator.freeze()


def briefly(real, other, seed, **options):
    return by_network(real, other, seed, steps=120, pairs=8, **options)


@pytest.fixture(scope="module")
def measured(hosts, extractor):
    real, patients = hosts
    others = {"same": real, "slight": blur(real, 0.6), "strong": blur(real, 3)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kecae_training.evaluate.realism.by_network", briefly)
        return measure_realism(real, blur(real, 1.5), others, extractor, patients)


@pytest.mark.slow
def test_the_same_images_are_at_the_floor_and_at_chance(measured):
    assert measured["distances"]["same"] == measured["distances"]["real"]
    for by in ("features", "network"):
        assert measured["two_sample"]["same"][by]["mean"] == 0.5
    assert 36 <= measured["images"] <= 40


@pytest.mark.slow
def test_distances_grow_with_blur(measured):
    """Over the floor, which is left behind at every division of the patients once the blur is strong."""
    kinds = [measured["distances"][k] for k in ("same", "slight", "reconstruction", "strong")]
    for figure in ("frechet_over_floor", "kernel_x1000_over_floor"):
        values = [d[figure]["mean"] for d in kinds]
        assert values[0] == 0
        assert values == sorted(values), figure
        assert kinds[-1][figure]["low"] > 0


@pytest.mark.slow
def test_a_strong_blur_is_found_by_both_classifiers(measured):
    strong = measured["two_sample"]["strong"]
    assert strong["features"]["mean"] > 0.9
    assert strong["network"]["mean"] > 0.9
    assert strong["network"]["low"] > 0.65


@pytest.mark.slow
def test_noise_is_found_by_the_network(hosts):
    """A noise of 0.1 that no eye would miss."""
    real, patients = hosts
    noisy = (real + 0.1 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    assert accuracy(briefly(real, eight_bits(noisy), 0), patients)["mean"] > 0.95


def test_others_of_the_same_kind_are_at_chance(hosts):
    """Labels without meaning: two draws of the same features, whose differences are chance."""
    rng = np.random.default_rng(0)
    patients = [str(i // 2) for i in range(400)]
    a, b = rng.normal(size=(2, 400, 24))
    found = accuracy(by_features(a, b), patients)
    assert found["low"] < 0.5 < found["high"]
    apart = accuracy(by_features(a, b + 1), patients)
    assert apart["low"] > 0.9


def test_the_classifier_is_tested_on_other_patients(hosts):
    """Features that only name their patient and kind: known by heart in training, worth nothing on others."""
    n = 120
    patients = [str(i) for i in range(n)]
    rng = np.random.default_rng(1)
    real, other = rng.normal(size=(2, n, 400))
    assert accuracy(by_features(real, other), patients)["mean"] < 0.65


def test_halves_have_no_patient_in_common():
    patients = [str(i // 3) for i in range(60)] + ["a"] * 9
    one, two = split_patients(patients, 3)
    assert sorted([*one, *two]) == list(range(69))
    assert not {patients[i] for i in one} & {patients[i] for i in two}
    assert abs(len(one) - len(two)) <= 9
    assert not np.array_equal(one, split_patients(patients, 4)[0])


def test_frechet_of_known_gaussians():
    """|mu|^2 + (s - 1)^2 a dimension; the kernel distance of two samples of one distribution is about 0."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(20000, 4, generator=g, dtype=torch.float64)
    b = torch.randn(20000, 4, generator=g, dtype=torch.float64)
    assert frechet(a, 3 * b + 2) == pytest.approx(4 * 4 + 4 * 4, rel=0.02)
    assert abs(frechet(a, a)) < 1e-6
    assert abs(kernel(a[:500], b[:500])) < 0.05 < kernel(a[:500], b[:500] + 1)


def test_small_samples_have_larger_distances():
    """Why all figures are of equally many images: the same distribution, fewer samples, a larger distance."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 2000, 32, generator=g, dtype=torch.float64)
    assert frechet(a[:100], b[:100]) > 5 * frechet(a, b)


def test_penultimate_is_what_the_last_layer_reads(hosts, extractor):
    real = hosts[0][:5]
    features = torch.from_numpy(penultimate(extractor, real)).float()
    last = extractor.network[-1]
    expected = extractor.network(real)
    torch.testing.assert_close(last(features), expected, atol=1e-5, rtol=1e-5)


def test_global_random_state_is_left_alone(hosts, extractor):
    real, patients = hosts
    torch.manual_seed(7)
    before = torch.get_rng_state()
    kernel(torch.rand(8, 3).double(), torch.rand(8, 3).double())
    torch.set_rng_state(before)
    accuracy(by_network(real[:16], real[:16], steps=2), patients[:16])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patients": ["1"] * 3}, "one a host"),
        ({"patients": ["1", "2", "3"] * 2}, "four or more"),
        ({"exchanged": {"real": torch.zeros(6, 1, 64, 64)}}, "are taken"),
        ({"exchanged": {"decoder 1": torch.zeros(5, 1, 64, 64)}}, "decoder 1: got"),
        ({"reconstruction": torch.full((6, 1, 64, 64), 1.5)}, "outside"),
        ({"real": torch.zeros(6, 1, 64, 64, dtype=torch.uint8)}, "accepted is float"),
        ({}, "measure nothing"),
    ],
)
def test_bad_input_is_named(change, message, extractor):
    good = {
        "real": torch.zeros(6, 1, 64, 64),
        "reconstruction": torch.zeros(6, 1, 64, 64),
        "exchanged": {},
        "patients": list("abcdef"),
    }
    with pytest.raises(ValueError, match=message):
        measure_realism(**{**good, **change}, extractor=extractor)
