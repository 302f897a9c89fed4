"""KeyExchangeCallback in real Trainers, and KeyExchangeAugment used by hand inside a LightningModule."""

import copy
import importlib
from typing import Any

import pytest
import torch
import yaml
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


def test_a_name_stands_for_a_transform_and_anything_else_is_refused():
    """What a YAML file can say; the error says how to make one."""
    callback = KeyExchangeCallback(
        "phantom", {"p": 0.25, "append": True, "engine": {"amp_dtype": "bf16-mixed"}}
    )
    augment = callback.augment
    assert (augment.p, augment.append, augment.engine.amp_dtype) == (0.25, True, torch.bfloat16)
    with pytest.raises(TypeError, match="from_pretrained"):
        KeyExchangeCallback(MODEL)
    with pytest.raises(ValueError, match="options="):
        KeyExchangeCallback(callback.augment, {"p": 1.0})


def test_a_step_that_fetches_its_own_batches_is_refused():
    """Lightning's hooks do not see them: it would train on T and be taken for T'."""

    class Own(Lit):
        def training_step(self, dataloader_iter):
            (x, y), *_ = next(dataloader_iter)
            return super().training_step((x, y), 0)

    with pytest.raises(ValueError, match="fetches its batches itself"):
        trainer(KeyExchangeCallback(KeyExchangeAugment(MODEL))).fit(Own(), loader())


@pytest.mark.parametrize("several", [lambda: {"a": loader(), "b": loader()}, lambda: [loader(), loader()]])
def test_batches_of_several_loaders_are_named(several):
    """The error says CombinedLoader, not that a dict lacks an image."""
    lit = Lit()
    with pytest.raises((TypeError, ValueError), match=r"2 batches.*CombinedLoader"):
        trainer(KeyExchangeCallback(exchange())).fit(lit, several())
    assert HOOK not in vars(lit)


def test_from_the_yaml_of_a_lightning_cli(tmp_path, monkeypatch):
    """docs/integrations.md's block: class_path and init_args alone put the exchange into a fit."""
    cli = pytest.importorskip("lightning.pytorch.cli")
    text = yaml.safe_dump(
        {
            "trainer": {
                "max_steps": 2,
                "accelerator": "cpu",
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "callbacks": [
                    {
                        "class_path": "kecae_aug.integrations.lightning.KeyExchangeCallback",
                        "init_args": {"augment": "phantom", "options": {"p": 1.0}},
                    }
                ],
            }
        }
    )
    (tmp_path / "config.yaml").write_text(text)
    monkeypatch.setattr(Lit, "train_dataloader", lambda self: loader(), raising=False)
    made = cli.LightningCLI(
        Lit,
        seed_everything_default=0,
        args=["fit", "--config", str(tmp_path / "config.yaml")],
        save_config_callback=None,
    )
    exchange = next(c for c in made.trainer.callbacks if isinstance(c, KeyExchangeCallback))
    assert len(exchange.augment.params.rows)
    assert all(exchanged == (stage == "train") for stage, exchanged in made.model.seen)


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
