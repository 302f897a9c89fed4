"""KeyExchangeCallback in real Trainers, and KeyExchangeAugment used by hand inside a LightningModule."""

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pl = pytest.importorskip("lightning.pytorch")

from kecae_aug import KECAE, KeyExchangeAugment  # noqa: E402 - after the skip
from kecae_aug.integrations.lightning import KeyExchangeCallback  # noqa: E402

torch.manual_seed(0)
MODEL = KECAE.from_preset("tiny").eval()
IMAGES, LABELS = torch.rand(8, 1, 64, 64), torch.arange(8) % 2
HOOK = "on_after_batch_transfer"


def loader() -> DataLoader:
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4)


def given(images: torch.Tensor) -> bool:
    """Whether a batch is of the given images, or was exchanged."""
    return all(any(torch.equal(x, y) for y in IMAGES) for x in images)


def module_of(package: Any) -> type:
    class Lit(package.LightningModule):
        """Notes in each stage whether batches came exchanged."""

        def __init__(self, fail: bool = False):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64 * 64, 2))
            self.seen: list[tuple[str, bool]] = []
            self.fail = fail

        def note(self, stage: str, batch: Any) -> torch.Tensor:
            images, labels = batch
            self.seen.append((stage, not given(images)))
            if self.fail and stage == "train":
                raise RuntimeError("a step that fails")
            return nn.functional.cross_entropy(self.net(images), labels)

        def training_step(self, batch, batch_idx):
            return self.note("train", batch)

        def validation_step(self, batch, batch_idx):
            self.note("sanity" if self.trainer.sanity_checking else "validate", batch)

        def test_step(self, batch, batch_idx):
            self.note("test", batch)

        def predict_step(self, batch, batch_idx):
            self.note("predict", batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return Lit


Lit = module_of(pl)


class Hooked(Lit):
    """With a hook of the user's own, which counts."""

    calls = 0

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.calls += 1
        images, labels = batch
        assert given(images)  # it is called before the exchange
        return images * 2 - 1, labels


def trainer(callback=None, package=pl, **options):
    options = {
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
    } | options
    return package.Trainer(
        callbacks=[callback] if callback else None,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def exchange(**options) -> KeyExchangeAugment:
    return KeyExchangeAugment(MODEL, p=1.0, **options)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_only_training_batches_are_exchanged(package):
    """Sanity check, validation, test and prediction see their images as they are, with either of the packages."""
    if importlib.util.find_spec(package.split(".")[0]) is None:
        pytest.skip(f"{package} is not installed")
    package = importlib.import_module(package)
    lit, callback = module_of(package)(), KeyExchangeCallback(exchange())
    run = trainer(callback, package)
    run.fit(lit, loader(), loader())
    run.validate(lit, loader(), verbose=False)
    run.test(lit, loader(), verbose=False)
    run.predict(lit, loader())
    stages = {stage for stage, _ in lit.seen}
    assert stages == {"sanity", "train", "validate", "test", "predict"}
    assert all(exchanged == (stage == "train") for stage, exchanged in lit.seen)
    assert HOOK not in vars(lit)


def test_the_hook_comes_back_after_an_exception():
    """A step that fails leaves the module as it was, and the next fit works."""
    lit, callback = Lit(fail=True), KeyExchangeCallback(exchange())
    with pytest.raises(RuntimeError, match="a step that fails"):
        trainer(callback).fit(lit, loader())
    assert HOOK not in vars(lit)
    lit.fail, lit.seen = False, []
    trainer(callback).fit(lit, loader())
    assert lit.seen == [("train", True)] * 2


def test_the_users_hook_is_called_first():
    """An override of the module's: its normalisation comes before, and the transform is told of it."""
    lit = Hooked()
    trainer(KeyExchangeCallback(exchange(value_range=(-1, 1)))).fit(lit, loader(), loader())
    assert lit.calls == 6  # 2 batches each of sanity check, training and validation
    assert HOOK not in vars(lit)
    assert [s for s in lit.seen if s[0] == "train"] == [("train", True)] * 2


def test_two_callbacks_and_an_attribute_of_the_users():
    """Wrapped twice, unwrapped twice; a hook that was set on the instance is there again."""
    lit = Lit()

    def mine(batch, dataloader_idx):
        return batch

    lit.on_after_batch_transfer = mine
    first, second = KeyExchangeCallback(exchange()), KeyExchangeCallback(exchange())
    pl.Trainer(
        callbacks=[first, second],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
    ).fit(lit, loader())
    lit.on_after_batch_transfer([IMAGES, LABELS], 0)
    assert vars(lit)[HOOK] is mine


@pytest.mark.parametrize("overrides", [False, True])
def test_with_a_datamodule(overrides, recwarn):
    """Lightning calls the hook of the datamodule where it has one of its own, and of the module otherwise."""

    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return loader()

    class HookedData(Data):
        calls = 0

        def on_after_batch_transfer(self, batch, dataloader_idx):
            self.calls += 1
            return batch

    data, lit = HookedData() if overrides else Data(), Lit()
    trainer(KeyExchangeCallback(exchange())).fit(lit, datamodule=data)
    assert lit.seen == [("train", True)] * 2
    assert HOOK not in vars(data)
    assert HOOK not in vars(lit)
    assert not [w for w in recwarn if "You have overridden" in str(w.message)]
    if overrides:
        assert data.calls == 2


def test_weights_stay_and_are_in_no_checkpoint(tmp_path):
    """Nothing of the KECAE is trained, put into train mode or saved."""
    lit, callback = Lit(), KeyExchangeCallback(exchange())
    inner = callback.augment._exchanger.fast
    before = copy.deepcopy(inner.state_dict())
    run = trainer(callback, enable_checkpointing=True, default_root_dir=tmp_path)
    run.fit(lit, loader())
    run.save_checkpoint(tmp_path / "c.ckpt")
    saved = torch.load(tmp_path / "c.ckpt", weights_only=False)
    assert set(saved["state_dict"]) == {"net.1.weight", "net.1.bias"}
    assert not any("KeyExchange" in key for key in saved["callbacks"])
    assert not inner.training
    assert all(torch.equal(value, inner.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("where", ["attribute", "global"])
def test_by_hand_in_the_modules_own_hook(where):
    """Without the callback: as an attribute of the module it follows train() and eval(), and is no part of the weights."""
    augment = exchange()

    class ByHand(Lit):
        def __init__(self):
            super().__init__()
            if where == "attribute":
                self.augment = augment

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return augment(batch) if self.trainer.training else batch

    lit = ByHand()
    before = copy.deepcopy(augment._exchanger.fast.state_dict())
    trainer().fit(lit, loader(), loader())
    assert all(exchanged == (stage == "train") for stage, exchanged in lit.seen)
    assert set(lit.state_dict()) == {"net.1.weight", "net.1.bias"}
    assert all(torch.equal(v, augment._exchanger.fast.state_dict()[k]) for k, v in before.items())


def test_a_name_and_plain_options_make_the_transform():
    """What a YAML file can hold; options beside a finished transform would be dropped, and are refused."""
    augment = KeyExchangeCallback(
        "phantom", {"p": 0.3, "strength": [0.5, 1], "amp_dtype": "bf16-mixed"}
    ).augment
    assert (augment.p, augment.strength, augment.amp_dtype) == (0.3, [0.5, 1], torch.bfloat16)
    with pytest.raises(ValueError, match="Did you mean 'phantom'"):
        KeyExchangeCallback("phantm")
    with pytest.raises(TypeError, match="augment: got int"):
        KeyExchangeCallback(3)
    with pytest.raises(TypeError, match="options="):
        KeyExchangeCallback(exchange(), {"p": 0.3})


class Iterates(Lit):
    """Takes its batches itself."""

    def training_step(self, dataloader_iter):
        batch, *_ = next(dataloader_iter)
        return self.note("train", batch)


def test_a_step_that_takes_its_batches_itself_is_refused():
    """training_step(dataloader_iter) goes past the hook: training would run without one exchange, and say nothing."""
    lit = Iterates()
    with pytest.raises(
        TypeError, match=r"Iterates.training_step\(dataloader_iter\).*past on_after_batch_transfer"
    ):
        trainer(KeyExchangeCallback(exchange())).fit(lit, loader())
    assert not lit.seen
    assert HOOK not in vars(lit)
    trainer().fit(lit, loader())  # and is left alone without the callback


@pytest.mark.parametrize("several", [lambda: {"a": loader(), "b": loader()}, lambda: [loader(), loader()]])
def test_batches_of_several_loaders_are_named(several):
    """The error says CombinedLoader, not that a dict lacks an image."""
    lit = Lit()
    with pytest.raises((TypeError, ValueError), match=r"2 batches.*CombinedLoader"):
        trainer(KeyExchangeCallback(exchange())).fit(lit, several())
    assert HOOK not in vars(lit)


class Data(pl.LightningDataModule):
    """Its two batches, for the command line."""

    def train_dataloader(self):
        return loader()


YAML = """
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: kecae_aug.integrations.lightning.KeyExchangeCallback
      init_args:
        augment: phantom
        options: {p: 1.0, strength: [0.9, 1.1], classes: ["0", "2"], amp_dtype: bf16-mixed}
"""


def test_lightnings_command_line(tmp_path):
    """LightningCLI builds the callback from YAML, and two steps train on exchanged batches."""
    cli = pytest.importorskip("lightning.pytorch.cli")
    if not cli._JSONARGPARSE_SIGNATURES_AVAILABLE:
        pytest.skip("LightningCLI needs jsonargparse[signatures]")
    (tmp_path / "config.yaml").write_text(YAML)
    run = cli.LightningCLI(
        Lit, Data, args=["fit", "--config", str(tmp_path / "config.yaml")], save_config_callback=None
    )
    assert run.model.seen == [("train", True)] * 2
    (callback,) = (c for c in run.trainer.callbacks if isinstance(c, KeyExchangeCallback))
    assert callback.augment.strength == [0.9, 1.1]


class Writes(Lit):
    """Says across processes what it saw."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_end(self):
        assert self.seen == [("train", True)] * len(self.seen)
        (self.folder / f"rank{self.global_rank}").write_text(str(len(self.seen)))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_two_processes(tmp_path, strategy):
    """Spawned processes get the callback by pickle, and exchange each their own half."""
    lit = Writes(tmp_path)
    trainer(KeyExchangeCallback(exchange()), strategy=strategy, devices=2).fit(
        lit, DataLoader(TensorDataset(IMAGES, LABELS), batch_size=2, shuffle=False)
    )
    assert {p.name for p in tmp_path.iterdir()} == {"rank0", "rank1"}
    assert HOOK not in vars(lit)
