"""The network against the sizes that the paper fixes, and the identities that make an exchange one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kecae_aug.engine.model import KECAE, PRESETS, Decoder, Encoder, KECAEConfig, PointConvTranspose2d


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def tiny() -> KECAE:
    torch.manual_seed(0)
    return KECAE.from_preset("tiny").eval()


def test_paper_preset_has_the_papers_parameters_to_the_unit():
    """Seven blocks from 32 to 2048 channels without a bias, no BatchNorm after the first."""
    config = PRESETS["paper"]
    with torch.device("meta"):
        encoder, decoder, model = Encoder(config), Decoder(config), KECAE(config)
    assert count(encoder) == 25_168_032
    assert count(decoder) == 44_732_864
    assert count(model) == 2 * 25_168_032 + 44_732_864
    assert config.channels == (32, 64, 128, 256, 512, 1024, 2048)
    kinds = [type(m) for m in encoder]
    assert len(encoder) == 20  # the paper's "20 layers": 7 convolutions, 6 BatchNorms, 7 activations
    assert kinds.count(nn.Conv2d) == 7
    assert kinds.count(nn.BatchNorm2d) == 6
    assert isinstance(decoder[-1], nn.Tanh)


def test_paper_preset_has_the_papers_geometry():
    """The sizes of every block, and the padding of every deconvolution, as in the table of the spec."""
    blocks = PRESETS["paper"].blocks
    assert [b.size_in for b in blocks] + [blocks[-1].size_out] == [299, 149, 74, 36, 17, 8, 3, 1]
    mirrored = [(b.size_out, b.size_in, b.mirror_padding, b.mirror_output_padding) for b in reversed(blocks)]
    assert mirrored == [
        (1, 3, 1, 1),
        (3, 8, 0, 0),
        (8, 17, 1, 1),
        (17, 36, 0, 0),
        (36, 74, 0, 0),
        (74, 149, 1, 1),
        (149, 299, 1, 1),
    ]


def test_paper_preset_runs_at_its_size():
    """A real forward pass at 299 px: 2048-vectors in between, an image of the same size in [-1, 1] out."""
    model = KECAE.from_preset("paper").eval()
    image = torch.rand(1, 1, 299, 299) * 2 - 1
    with torch.no_grad():
        latents = model.encode(image)
        out = model.decode(latents.sum)
    assert latents.key.shape == latents.non_key.shape == (1, 2048, 1, 1)
    assert out.shape == image.shape
    assert out.abs().max() <= 1


@pytest.mark.parametrize("latent", ["vector", "spatial"])
def test_mirror_rule_gives_back_every_size(latent):
    """Every size from 64 to 320 comes back exactly, through real layers, with legal output padding."""
    for size in range(64, 321):
        config = KECAEConfig(image_size=size, width=1, latent_channels=2, latent=latent, latent_size=8)
        assert all(b.mirror_output_padding in (0, 1) and b.mirror_padding >= 0 for b in config.blocks)
        assert config.latent_shape[1] <= (8 if latent == "spatial" else 1)
        model = KECAE(config).eval()
        with torch.no_grad():
            assert model(torch.zeros(1, 1, size, size)).shape == (1, 1, size, size), size


def test_spatial_latents_are_maps_of_the_asked_size():
    """128 px and 8x8 maps take four blocks, as in the notes on the loss."""
    model = KECAE.from_preset("compact", latent="spatial", latent_channels=48).eval()
    assert len(model.config.blocks) == 4
    assert model.encode(torch.zeros(2, 1, 128, 128)).key.shape == (2, 48, 8, 8)


def test_point_deconvolution_is_the_deconvolution():
    """The matrix product that replaces the first deconvolution has its values and its gradients."""
    for padding, extra in ((0, 0), (1, 0), (1, 1)):
        fast = PointConvTranspose2d(5, 3, 4, 2, padding, extra, bias=False)
        x = torch.randn(2, 5, 1, 1)
        slow = nn.ConvTranspose2d.forward(fast, x)
        torch.testing.assert_close(fast(x), slow)
        grad = torch.autograd.grad(slow.square().sum(), fast.weight)[0]
        torch.testing.assert_close(torch.autograd.grad(fast(x).square().sum(), fast.weight)[0], grad)


def test_initialisation_keeps_the_decoders_range_open():
    """Kaiming by the true fan-in of a deconvolution: the last Tanh is not saturated at the start."""
    torch.manual_seed(0)
    model = KECAE.from_preset("tiny").train()
    out = model(torch.rand(16, 1, 64, 64) * 2 - 1)
    assert 0.1 < out.detach().std() < 0.9


def test_forward_is_the_decoded_sum(tiny):
    """X^ = decode(hN + hK), and nothing else."""
    x = torch.rand(3, 1, 64, 64) * 2 - 1
    latents = tiny.encode(x)
    assert torch.equal(tiny(x), tiny.decode(latents.non_key + latents.key))


def test_exchange_with_oneself_is_the_reconstruction(tiny):
    """An exchange of equal keys changes nothing, at whatever strength."""
    x = torch.rand(3, 1, 64, 64) * 2 - 1
    for strength in (0.0, 0.3, 1.0, 1.7):
        torch.testing.assert_close(tiny.exchange(x, x, strength), tiny(x), atol=1e-4, rtol=0)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_exchange_twice_undoes_itself_in_the_latents(tiny, seed):
    """Exchange is decode(hN_host + hK_donor); at strength 0 the reconstruction, at 1 free of the host's key."""
    g = torch.Generator().manual_seed(seed)
    host, donor = torch.rand(2, 2, 1, 64, 64, generator=g) * 2 - 1
    a, b = tiny.encode(host), tiny.encode(donor)
    torch.testing.assert_close(tiny.exchange(host, donor), tiny.decode(a.non_key + b.key), atol=1e-4, rtol=0)
    torch.testing.assert_close(tiny.exchange(host, donor, 0.0), tiny(host), atol=1e-4, rtol=0)
    mixed = tiny.exchange(host, donor, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(mixed[:1], tiny(host)[:1], atol=1e-4, rtol=0)
    torch.testing.assert_close(mixed[1:], tiny.exchange(host, donor)[1:], atol=1e-4, rtol=0)


def test_wrong_shapes_name_what_is_accepted(tiny):
    """A user who gives RGB or another size learns what these weights take and what resizes."""
    with pytest.raises(ValueError, match=r"images: got shape \(1, 3, 64, 64\).*\(B, 1, 64, 64\)"):
        tiny.encode(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="latent: got shape"):
        tiny.decode(torch.zeros(1, 3, 1, 1))


def test_bad_configs_say_all_that_is_wrong():
    """One error for several bad fields; unknown and missing keys of a config.json are named."""
    with pytest.raises(ValueError, match=r"classes.*image_size=2"):
        KECAEConfig(image_size=2, classes=("0", "0"))
    values = {**KECAEConfig().to_dict(), "colour": 1}
    del values["width"]
    with pytest.raises(ValueError, match=r"unknown keys \['colour'\], missing keys \['width'\]"):
        KECAEConfig.from_dict(values)
    with pytest.raises(ValueError, match="preset='huge'"):
        KECAE.from_preset("huge")


def test_config_survives_json():
    """What is written beside weights rebuilds the same shape."""
    import json

    for config in PRESETS.values():
        assert KECAEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("latent", ["vector", "spatial"])
def test_a_narrow_key_has_so_many_degrees_of_freedom(latent):
    """Keys of any images span key_size dimensions at most, in the latent's own shape, so sums and banks need no change."""
    model = KECAE.from_preset("tiny", latent=latent, latent_channels=32, key_size=3).eval()
    images = torch.rand(20, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        key, non_key = model.encode(images)
    assert key.shape == non_key.shape == (20, *model.config.latent_shape)
    assert torch.linalg.matrix_rank(key.flatten(1)) == 3
    assert torch.linalg.matrix_rank(non_key.flatten(1)) > 3


def test_a_config_from_before_the_narrow_key_is_one_without_it():
    """Weights saved by an earlier version load; what is off by default stays off."""
    values = PRESETS["tiny"].to_dict()
    del values["key_size"]
    assert KECAEConfig.from_dict(values) == PRESETS["tiny"]
    with pytest.raises(ValueError, match="key_size=0"):
        KECAEConfig(key_size=0)
