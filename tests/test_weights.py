"""Weights in files: what is saved is what is loaded, and nothing that does not fit is loaded in part."""

import json
import os
import shutil
import stat

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kecae_aug import KeyExchangeDataset, LatentBank
from kecae_aug.bank import BankError
from kecae_aug.cli import main
from kecae_aug.donors import draw_from_bank
from kecae_aug.engine.model import KECAE, KECAEConfig
from kecae_aug.generate import generate
from kecae_aug.phantom import PhantomKnees
from kecae_aug.weights.hub import save_with_card
from kecae_aug.weights.io import WeightsError, bundled_weights, load_weights, save_weights, weights_sha256

SHAPE = KECAEConfig(image_size=16, width=2, latent_channels=4)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return KECAE(SHAPE)


@pytest.fixture
def saved(model, tmp_path):
    return save_weights(model, tmp_path / "w", metadata={"note": "a test"})


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip_is_exact_and_ready_for_use(model, saved):
    """float32 comes back to the bit, in eval mode, without gradients, with its metadata."""
    loaded = load_weights(saved)
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in model.state_dict().items())
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.config == SHAPE
    assert loaded.metadata["note"] == "a test"
    assert loaded.metadata["weights"]["sha256"] == weights_sha256(model)
    assert loaded.metadata["weights"]["source"] == str(saved)


def test_half_precision_keeps_vectors_and_finite_kernels(model, tmp_path):
    """float16 halves the kernels only: BatchNorm statistics would lose what matters."""
    folder = save_weights(model, tmp_path / "half", metadata={}, dtype=torch.float16)
    for name, tensor in load_file(folder / "model.safetensors").items():
        wanted = torch.float16 if tensor.ndim > 1 else torch.float32
        assert tensor.dtype == (wanted if tensor.is_floating_point() else torch.int64), name
    loaded = load_weights(folder).state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        torch.testing.assert_close(loaded[name], tensor, rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        next(model.parameters()).fill_(1e9)
    with pytest.raises(ValueError, match="not finite as"):
        save_weights(model, tmp_path / "over", metadata={}, dtype=torch.float16)


def test_loading_draws_no_random_number(saved):
    """A seeded training must not change because weights were loaded in it."""
    before = torch.get_rng_state()
    load_weights(saved)
    assert torch.equal(before, torch.get_rng_state())


def test_the_hash_follows_values_only(model):
    """Not the order of the tensors; but one bit of one value."""
    state = model.state_dict()
    assert weights_sha256(state) == weights_sha256(dict(reversed(state.items())))
    changed = {n: t.clone() for n, t in state.items()}
    next(iter(changed.values())).view(-1)[0] += 1e-6
    assert weights_sha256(changed) != weights_sha256(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_hash_wherever_it_is_shown(model, tmp_path, dtype, capsys):
    """In the file, in memory, in a bank, a data set, a manifest, a card and `info`; another after a change in memory."""
    folder = save_with_card(model, tmp_path / "w", license="mit", dtype=dtype)
    loaded = load_weights(folder)
    sha256 = weights_sha256(loaded)
    knees = PhantomKnees(4, image_size=32)
    bank = LatentBank.build(knees, loaded, tmp_path / "bank")
    train = KeyExchangeDataset(knees, loaded, 2, real=False, bank=bank)
    generate(train, tmp_path / "out", say=lambda line: None)
    card = (folder / "README.md").read_text()
    main(["info", str(folder)])
    shown = [
        json.loads((folder / "config.json").read_text())["sha256"],
        loaded.metadata["weights"]["sha256"],
        weights_sha256(loaded.state_dict()),
        weights_sha256(
            load_weights(save_weights(loaded, tmp_path / "again", metadata={}))
        ),  # float32 of the same values
        bank.weights_sha256,
        bank.manifest["weights_sha256"],
        train.weights_sha256,
        json.loads((tmp_path / "out" / "generate.json").read_text())["weights"],
        json.loads((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[0])["weights"],
        card[card.index("SHA-256") :].split("`")[1],
        json.loads(capsys.readouterr().out)["metadata"]["weights"]["sha256"],
    ]
    assert set(shown) == {sha256}
    assert (sha256 == weights_sha256(model)) == (dtype == torch.float32)
    assert f"stored as {str(dtype)[6:]}" in card
    for value in (0.5, 1e9):  # which a half can hold, and which it cannot
        with torch.no_grad():
            next(loaded.parameters()).view(-1)[0] = value
        assert weights_sha256(loaded) != sha256
        assert KeyExchangeDataset(knees, loaded, 2).weights_sha256 == weights_sha256(loaded)
        with pytest.raises(BankError, match="of other weights"):
            bank.check_weights(weights_sha256(loaded))


def test_bundled_weights_keep_the_hash_that_figures_have():
    """It stands in model cards and in committed results."""
    assert weights_sha256(load_weights("phantom")).startswith("cc08c889c3e7")


def test_class_names_of_older_files_are_spelt_as_now(model, tmp_path):
    """A header of before with "0.0" and "2.0" is that of 0 and 2; one of other classes is not."""
    folder = save_weights(model, tmp_path / "w", metadata={})
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors, header = {n: file.get_tensor(n) for n in file.keys()}, file.metadata()  # noqa: SIM118
    edit(folder, model={**SHAPE.to_dict(), "classes": ["0.0", "2.0"]})
    save_file(tensors, path, {**header, "classes": '["0.0", "2.0"]'})
    assert load_weights(folder).config.classes == ("0", "2")
    save_file(tensors, path, {**header, "classes": '["0", "3"]'})
    with pytest.raises(WeightsError, match="not from the same save"):
        load_weights(folder)


@pytest.mark.parametrize("classes", [("0", "0.0"), ("0", None), ("0", float("nan")), ("0",), "02"])
def test_classes_that_are_none_are_refused(classes):
    """Double, missing, too few, and one text in place of several."""
    with pytest.raises(ValueError, match="classes="):
        KECAEConfig(classes=classes)
    assert KECAEConfig(classes=(0.0, "2.0")).classes == ("0", "2")


def test_a_default_device_changes_nothing(saved, tmp_path):
    """Weights, banks, data sets and files stand on the CPU, whatever torch.set_default_device says."""
    knees = PhantomKnees(4, image_size=32)
    with torch.device("meta"):
        loaded = load_weights(saved)
        bank = LatentBank.build(knees, loaded, tmp_path / "bank", residual=True)
        train = KeyExchangeDataset(knees, loaded, 2, bank=bank, strength=(0.5, 1))
        items = [train[i][0] for i in (0, 8, 9)]
        donors = draw_from_bank(bank, ["0", "2"], ("0", "2"), ["x", "y"])
        assert weights_sha256(loaded) == loaded.metadata["weights"]["sha256"]
        generate(KeyExchangeDataset(knees, loaded, 2, real=False), tmp_path / "out", say=lambda line: None)
    assert all(x.device.type == "cpu" for x in [*loaded.parameters(), *items, donors])


def test_nothing_is_overwritten_unasked(model, saved):
    """A second save into the folder is refused, and leaves it as it was."""
    before = (saved / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_weights(model, saved, metadata={})
    assert (saved / "model.safetensors").read_bytes() == before
    save_weights(model, saved, metadata={}, overwrite=True)
    assert weights_sha256(load_weights(saved)) == weights_sha256(model)
    assert not list(saved.glob(".*tmp"))


def test_others_may_read_what_was_saved(saved):
    """Both files get the mode that the user's umask asks for; safetensors alone would write 0600."""
    modes = {stat.S_IMODE((saved / n).stat().st_mode) for n in ("model.safetensors", "config.json")}
    assert len(modes) == 1


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 4000) | st.integers(0, 10**9), st.integers(0, 7))
def test_no_altered_byte_is_loaded(tmp_path_factory, where, bit):
    """Any flipped bit, and any truncation, of the tensors' file is an error that says so."""
    torch.manual_seed(0)
    folder = save_weights(KECAE(SHAPE), tmp_path_factory.mktemp("w"), metadata={})
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[where % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(WeightsError):
        load_weights(folder)
    path.write_bytes(data[: where % len(data)])
    with pytest.raises(WeightsError):
        load_weights(folder)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "config.json").write_text("{"), "not one that save_weights wrote"),
        (lambda f: edit(f, format_version=99), "format_version=99"),
        (lambda f: edit(f, model={**SHAPE.to_dict(), "colour": 1}), "colour"),
        (lambda f: edit(f, model={**SHAPE.to_dict(), "width": 4}), "has shape"),
        (lambda f: edit(f, model={**SHAPE.to_dict(), "classes": ["0", "3"]}), "not from the same save"),
        (lambda f: torch.save({}, f / "model.safetensors"), "Pickles are never loaded"),
        (
            lambda f: save_file({"x": torch.ones(2)}, f / "model.safetensors", {"format_version": "1"}),
            "dtype=None",
        ),
    ],
)
def test_files_that_do_not_fit_are_named(saved, damage, says):
    """Each kind of damage has its own message, with the file's name and the way out."""
    damage(saved)
    with pytest.raises(WeightsError, match=says):
        load_weights(saved)


def test_tensors_of_two_saves_do_not_mix(model, saved, tmp_path):
    """A pair torn by a crash between the two files is refused."""
    with torch.no_grad():
        next(model.parameters()).add_(1)
    other = save_weights(model, tmp_path / "other", metadata={})
    shutil.copy(other / "model.safetensors", saved / "model.safetensors")
    with pytest.raises(WeightsError, match="not from the same save"):
        load_weights(saved)


def test_mistyped_names_and_paths(saved, monkeypatch):
    """A path is not asked of the Hub, and the message has a guess."""
    with pytest.raises(WeightsError, match="Did you mean"):
        load_weights(saved.parent / "ww")
    with pytest.raises(WeightsError, match="is a file"):
        load_weights(saved / "config.json")
    with pytest.raises(WeightsError, match="Did you mean 'knee-kl02'"):
        load_weights("knee_kl02")
    with pytest.raises(WeightsError, match="only Hub repositories"):
        load_weights(saved, revision="main")
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="Hub did not give it"):
        load_weights("nobody/nothing", local_files_only=True)


@pytest.mark.parametrize(("name", "grades"), [("knee-kl02", "02"), ("knee-kl04", "01234"), ("phantom", "02")])
def test_bundled_weights_know_what_they_are(name, grades):
    """They load offline, and say range, classes, data and losses."""
    assert name in bundled_weights()
    model = load_weights(name)
    assert model.config.classes == tuple(grades)
    assert {"preprocessing", "training", "data", "environment"} <= set(model.metadata)
    assert model.metadata["data"]["split"] == "train"
    x = torch.zeros(2, 1, model.config.image_size, model.config.image_size)
    with torch.no_grad():
        assert model(x).abs().max() <= 1
