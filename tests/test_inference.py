"""FastKECAE is the same function as the KECAE it was made of, for every geometry."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kecae_aug.inference import FastKECAE
from kecae_aug.model import KECAE, KECAEConfig


def used(config: KECAEConfig) -> KECAE:
    """A model whose BatchNorms are not the identity, as after training."""
    torch.manual_seed(0)
    model = KECAE(config).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(8, 140),
    latent=st.sampled_from(["vector", "spatial"]),
    channels_last=st.booleans(),
    batch=st.integers(1, 3),
    key_size=st.sampled_from([None, 5]),
)
@torch.no_grad()
def test_same_outputs_for_every_geometry(size, latent, channels_last, batch, key_size):
    """Folding and the rewritten deconvolutions change nothing beyond rounding, whatever paddings the size needs."""
    model = used(
        KECAEConfig(
            image_size=size,
            width=4,
            latent_channels=8,
            latent=latent,
            latent_size=3,
            key_size=key_size,
        )
    )
    fast = FastKECAE(model, channels_last=channels_last)
    x = torch.rand(batch, 1, size, size) * 2 - 1
    wanted, latents = model.encode(x), fast.encode(x)
    for ours, theirs in (
        (latents.key, wanted.key),
        (latents.non_key, wanted.non_key),
        (fast.encode_key(x), wanted.key),
        (fast.encode_non_key(x), wanted.non_key),
        (fast.decode(wanted.sum), model.decode(wanted.sum)),
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        assert ours.shape == theirs.shape


@torch.no_grad()
def test_half_precision_stays_near():
    """bfloat16 inside, float32 outside, above 40 dB against float32 in images of range 2."""
    model = used(KECAEConfig(image_size=64, width=8, latent_channels=32))
    x = torch.rand(4, 1, 64, 64) * 2 - 1
    fast = FastKECAE(model, torch.bfloat16)
    out = fast.decode(fast.encode(x).sum)
    assert out.dtype == torch.float32
    assert 10 * torch.log10(4 / (out - model(x)).square().mean()) > 40


def test_another_dtype_is_refused():
    """Integers and float64 are no inference types here."""
    with pytest.raises(ValueError, match="amp_dtype=torch"):
        FastKECAE(KECAE.from_preset("tiny"), torch.int8)
