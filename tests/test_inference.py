"""FastKECAE is the same function as the KECAE it was made of, for every geometry."""

import copy
import functools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kecae_aug.engine.exchange import Exchanger
from kecae_aug.engine.inference import FastKECAE
from kecae_aug.engine.model import KECAE, KECAEConfig
from kecae_aug.engine.options import EngineOptions


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
    fast = FastKECAE(model, EngineOptions(channels_last=channels_last))
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
    fast = FastKECAE(model, EngineOptions(amp_dtype=torch.bfloat16))
    out = fast.decode(fast.encode(x).sum)
    assert out.dtype == torch.float32
    assert 10 * torch.log10(4 / (out - model(x)).square().mean()) > 40


def test_another_dtype_is_refused():
    """Integers and float64 are no inference types here."""
    with pytest.raises(ValueError, match="amp_dtype=torch"):
        EngineOptions(amp_dtype=torch.int8)


def compiled(fast: FastKECAE) -> list[bool]:
    """Of each part that compile=True compiles, whether its calls go through torch.compile."""
    staged = [fast.non_key.large, fast.non_key.small, fast.decoder.large, fast.decoder.small]
    keys = [fast.key] if isinstance(fast.key, nn.Sequential) else [fast.key.large, fast.key.small]
    return [part._compiled_call_impl is not None for part in (*staged, *keys)]


@pytest.mark.parametrize("key_size", [None, 5])
@torch.no_grad()
def test_compile_survives_copies_pickles_and_devices(monkeypatch, key_size):
    """nn.Module drops what it compiled whenever it is copied, and an Exchanger copies for every other device."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model = used(KECAEConfig(image_size=32, width=4, latent_channels=8, key_size=key_size))
    exchanger = Exchanger(model, EngineOptions(compile=True))
    fast = exchanger.fast
    copies = {
        "itself": fast,
        "deepcopy": copy.deepcopy(fast),
        "a copy of a copy": copy.deepcopy(copy.deepcopy(fast)),
        "pickle": pickle.loads(pickle.dumps(fast)),
        "to": copy.deepcopy(fast).to(torch.float64).to(torch.float32),
        "deepcopy of an exchanger": copy.deepcopy(exchanger).fast,
        "pickle of an exchanger": pickle.loads(pickle.dumps(exchanger)).fast,
        "on another device": exchanger.on(torch.device("meta")),  # stands for CUDA
    }
    assert {name: set(compiled(of)) for name, of in copies.items()} == {name: {True} for name in copies}
    x = torch.rand(2, 1, 32, 32) * 2 - 1
    for name in ("itself", "deepcopy", "pickle"):
        torch.testing.assert_close(copies[name].encode_key(x), model.encode(x).key, atol=1e-4, rtol=1e-4)
    plain = pickle.loads(pickle.dumps(copy.deepcopy(FastKECAE(model))))
    assert not any(compiled(plain))


@torch.no_grad()
def test_small_groups_are_for_cpus_alone():
    """On another device large maps go through the network in one batch; on a CPU in groups that fit its memory."""
    model = KECAE(KECAEConfig(image_size=128, width=16, latent_channels=8))
    for device, largest in (("cpu", 6), ("meta", 40)):
        fast = FastKECAE(model).to(device)
        sizes = []
        fast.non_key.large.register_forward_pre_hook(lambda _, args, to=sizes: to.append(len(args[0])))
        fast.decoder.large.register_forward_pre_hook(lambda _, args, to=sizes: to.append(len(args[0])))
        fast.non_key.group = fast.decoder.group = 6
        x = torch.zeros(40, 1, 128, 128, device=device)
        assert fast.decode(fast.encode_non_key(x)).shape == x.shape
        assert max(sizes) == largest
