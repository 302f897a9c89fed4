"""KeyExchangeMixup as timm's Mixup, with timm's loaders, and the launcher of timm's train.py."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

timm = pytest.importorskip("timm")
from timm.data import Mixup, create_dataset, create_loader  # noqa: E402
from timm.loss import SoftTargetCrossEntropy  # noqa: E402

from kecae_aug import KECAE, load_weights  # noqa: E402
from kecae_aug.integrations.timm import KeyExchangeMixup  # noqa: E402
from kecae_aug.integrations.timm.__main__ import exchanging, main  # noqa: E402
from kecae_aug.phantom import write_phantoms  # noqa: E402

torch.manual_seed(0)
MODEL = KECAE.from_preset("tiny").eval()
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORM = {"mean": MEAN, "std": STD}

# Makes timm's objects in the order in which its train.py does, and calls them as it does.
SCRIPT = """
import argparse
import torch
from timm.data import FastCollateMixup, Mixup, create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import create_model

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data_dir")
    parser.add_argument("--mixup", type=float, default=0.0)
    parser.add_argument("--no-prefetcher", action="store_true")
    parser.add_argument("--scale", type=float, nargs="+", default=[1.0, 1.0])
    parser.add_argument("--reprob", type=float, default=0.0)
    parser.add_argument("--aa", default=None)
    parser.add_argument("--vflip", type=float, default=0.0)
    parser.add_argument("--fail", action="store_true")
    args = parser.parse_args()
    model = create_model("test_resnet", num_classes=2, in_chans=3)
    dataset = create_dataset("", root=args.data_dir, split="train", is_training=True)
    mixing = dict(mixup_alpha=args.mixup, label_smoothing=0.1, num_classes=2)
    collate_fn = mixup_fn = None
    if args.mixup > 0 and args.no_prefetcher:
        mixup_fn = Mixup(**mixing)
    elif args.mixup > 0:
        collate_fn = FastCollateMixup(**mixing)
    device = torch.device("cpu")
    common = dict(input_size=(3, 64, 64), batch_size=6, device=device, use_prefetcher=not args.no_prefetcher,
                  persistent_workers=False)
    train = create_loader(dataset, is_training=True, collate_fn=collate_fn, num_workers=1, scale=args.scale,
                          ratio=(1, 1), re_prob=args.reprob, hflip=0.0, vflip=args.vflip, color_jitter=0.0,
                          auto_augment=args.aa, **common)
    val = create_loader(create_dataset("", root=args.data_dir, split="val"), num_workers=1, **common)
    assert type(val).__name__ in ("PrefetchLoader", "DataLoader")
    loss_fn = SoftTargetCrossEntropy() if args.mixup > 0 else LabelSmoothingCrossEntropy()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for epoch in range(2):
        if epoch and train.mixup_enabled:
            train.mixup_enabled = False
        for x, y in train:
            if mixup_fn is not None:
                x, y = mixup_fn(x.to(device), y.to(device))
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            if args.fail:
                raise KeyboardInterrupt
    with torch.no_grad():
        assert all(y.dtype == torch.int64 for x, y in val)
    print("steps", len(train), "labels", tuple(y.shape), y.dtype, "loss", round(loss.item(), 3))

if __name__ == "__main__":
    main()
"""


def batch(n: int = 8):
    """Grey knees as a timm loader gives them: three channels, normalised."""
    unit = torch.rand(n, 1, 64, 64).expand(-1, 3, -1, -1)
    return (unit - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), torch.arange(n) % 2


@pytest.fixture(scope="module")
def knees(tmp_path_factory) -> Path:
    """train/{0,2} and val/{0,2} of 64 px phantoms."""
    return write_phantoms(
        tmp_path_factory.mktemp("timm") / "knees", train_patients=8, val_patients=3, image_size=64
    )


def test_with_no_exchange_it_is_timms_mixup():
    """A drop-in: for the same numpy seed the mixing and the targets are timm's own, bit by bit."""
    for options in ({}, {"mode": "elem", "cutmix_alpha": 1.0}, {"mode": "pair", "label_smoothing": 0.0}):
        x, y = batch()
        ours = KeyExchangeMixup(num_classes=2, weights=MODEL, p=0.0, **NORM, **options)
        np.random.seed(3)
        wanted = Mixup(num_classes=2, **options)(x.clone(), y)
        np.random.seed(3)
        assert all(torch.equal(a, b) for a, b in zip(ours(x, y), wanted, strict=True))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("n", [0, 1, 7, 8])
def test_batches_of_any_size_become_soft_and_the_callers_stay(mode, n):
    """Odd, single and empty batches; distributions over classes; nothing of the caller's is changed in place."""
    x, y = batch(n)
    before = x.clone(), y.clone()
    mixup = KeyExchangeMixup(mode=mode, num_classes=2, weights=MODEL, **NORM)
    new_x, soft = mixup(x, y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert new_x.shape == x.shape
    assert soft.shape == (n, 2)
    torch.testing.assert_close(soft.sum(1), torch.ones(n))
    if n == 7:
        assert soft[-1].max() == pytest.approx(0.95)  # smoothed, mixed with nobody


def test_labels_follow_the_key_with_mixing_off():
    """Without mixing every row is the donor's label, smoothed; mixup_enabled is timm's switch of the mixing only."""
    x, y = batch()
    for options in ({"mixup_alpha": 0.0}, {"mixup_alpha": 1.0}):
        mixup = KeyExchangeMixup(**options, num_classes=2, weights=MODEL, p=1.0, **NORM)
        mixup.mixup_enabled = False
        new_x, soft = mixup(x, y)
        assert torch.equal(soft.argmax(1), 1 - y)
        assert not torch.equal(new_x, x)
        assert SoftTargetCrossEntropy()(torch.zeros(8, 2), soft).item() == pytest.approx(np.log(2), abs=1e-4)
        mixup.exchange.enabled = False
        assert torch.equal(mixup(x, y)[1].argmax(1), y)


def test_one_hot_targets_are_not_flattened():
    """timm reads (B, K) one-hot rows as B * K labels; here they are B labels, and with multi_label they stay dense."""
    x, y = batch()
    one_hot = torch.nn.functional.one_hot(y, 2)
    mixup = KeyExchangeMixup(mixup_alpha=0.0, num_classes=2, weights=MODEL, p=1.0, **NORM)
    assert torch.equal(mixup(x, one_hot)[1].argmax(1), 1 - y)
    if "multi_label" not in inspect.signature(Mixup.__init__).parameters:
        with pytest.raises(ValueError, match="installed timm"):
            KeyExchangeMixup(num_classes=2, multi_label=True, weights=MODEL)
        return
    dense = KeyExchangeMixup(num_classes=2, multi_label=True, weights=MODEL, p=1.0, **NORM)
    assert dense(x, one_hot.float())[1].shape == (8, 2)


@pytest.mark.parametrize(
    ("options", "call", "says"),
    [
        ({"num_classes": 5}, None, "num_classes=5 with 2 classes"),
        ({"num_classes": 2, "classes": ("0", "1", "2")}, None, "num_classes=2 with 3 classes"),
        ({"num_classes": 2, "mode": "half"}, None, "mode='half'"),
        ({"num_classes": 2, "label_mode": "key"}, None, "soft in any case"),
        ({"num_classes": 2}, lambda m, x, y: m(x, y), "mean and std"),
        ({"num_classes": 2}, lambda m, x, y: m((x * 50).byte(), y), "torch.uint8"),
        ({"num_classes": 2, **NORM}, lambda m, x, y: m(x, torch.full((8, 2), 0.5)), "before MixUp"),
    ],
)
def test_errors_name_the_argument_and_the_way_out(options, call, says):
    """Class counts that do not fit would read KL 1 as KL 2, and normalised images taken for [0, 1] are no knees."""
    with pytest.raises(ValueError, match=says):
        call(KeyExchangeMixup(weights=MODEL, **options), *batch())


@pytest.mark.parametrize("prefetcher", [False, True])
def test_with_timms_loader_and_workers(knees, prefetcher):
    """create_loader's own batches: workers, with its prefetcher on the CPU and without."""
    dataset = create_dataset("", root=str(knees), split="train", is_training=True)
    loader = create_loader(dataset, (3, 64, 64), 8, is_training=True, scale=(1, 1), ratio=(1, 1), color_jitter=0.4,
                           num_workers=2, use_prefetcher=prefetcher, device=torch.device("cpu"), **NORM)  # fmt: skip
    mixup = KeyExchangeMixup(num_classes=2, weights="phantom", p=1.0, **NORM)
    for x, y in loader:
        new_x, soft = mixup(x, y)
        assert new_x.shape == (8, 3, 64, 64)
        assert soft.shape == (8, 2)
        assert torch.isfinite(new_x).all()


def launch(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kecae_aug.integrations.timm", str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize("prefetcher", [(), ("--no-prefetcher",)], ids=["prefetcher", "no prefetcher"])
@pytest.mark.parametrize("mixup", [(), ("--mixup", "0.2")], ids=["no mixup", "mixup"])
def test_the_launcher_runs_a_script_of_train_pys_kind(knees, script, prefetcher, mixup, capfd):
    """All four ways in which train.py can load and mix, without a change to the script or its arguments."""
    argv, path, create = sys.argv, list(sys.path), timm.data.create_loader
    main([str(script), "--key-exchange-weights", "phantom", str(knees), *mixup, *prefetcher])
    said = capfd.readouterr()
    assert "steps 2 labels" in said.out
    assert ("torch.float32" if mixup else "torch.int64") in said.out
    mixes_itself = mixup and not prefetcher  # timm would have mixed while collating, before the exchange
    augment = "KeyExchangeMixup(KeyExchangeAugment" if mixes_itself else "KeyExchangeAugment"
    assert f"key exchange in the training loader: {augment}('phantom', mean=(0.48" in said.err
    assert (sys.argv, sys.path, timm.data.create_loader) == (argv, path, create)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--key-exchange-weights", "phantom", "--key-exchange-classes", "a,b"), "classes="),
        (("--key-exchange-weights", "phantm"), "Did you mean 'phantom'"),
    ],
)
def test_the_launcher_refuses_by_name(knees, script, arguments, says):
    """Classes that the weights do not know, mistyped weights."""
    create = timm.data.create_loader
    with pytest.raises(ValueError, match=says):
        main([str(script), *arguments, str(knees)])
    assert timm.data.create_loader is create


def test_the_launchers_command_line(knees, script, tmp_path, capsys):
    """Mistyped options are not handed to train.py, crops are warned of, and nothing goes unexchanged in silence."""
    with pytest.raises(SystemExit):
        main([str(script), "--key-exchange-weight", "phantom", str(knees)])
    assert "--key-exchange-weight: accepted are" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--key-exchange-weights", "phantom", str(script)])
    assert "before all options" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["no/train.py", "--key-exchange-weights", "phantom"])
    assert "is no file" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="whole, upright knees"):
        main([str(script), "--key-exchange-weights", "phantom", str(knees), "--scale", "0.3", "1"])
    assert re.search(r"exchanged [1-9]\d* of \d+ images", capsys.readouterr().err)
    with pytest.raises(SystemExit, match=r"no image was exchanged: --key-exchange-p is 0\.0"):
        main([str(script), "--key-exchange-weights", "phantom", "--key-exchange-p", "0", str(knees)])
    assert re.search(r"exchanged 0 of [1-9]\d* images", capsys.readouterr().err)
    plain = tmp_path / "plain.py"
    plain.write_text("print('trained')\n")
    done = launch(plain, "--key-exchange-weights", "phantom")
    assert done.returncode != 0
    assert "nothing was exchanged" in done.stderr


def test_the_launcher_adds_knees(knees, script, capsys):
    """Every option of the transform that a command line can say: here T' = T and X', a fixed number a step."""
    options = [
        "--key-exchange-append",
        "2",
        "--key-exchange-detail",
        "host",
        "--key-exchange-precision",
        "bf16-mixed",
    ]
    main([str(script), "--key-exchange-weights", "phantom", *options, str(knees)])
    told = capsys.readouterr().err
    assert "append=2" in told
    assert re.search(r"exchanged [1-9]\d* of", told)


def test_an_interrupted_run_says_what_it_did(knees, script, capsys):
    """Whoever stops a run wants to know whether it exchanged; the interrupt itself goes on."""
    with pytest.raises(KeyboardInterrupt):
        main([str(script), "--key-exchange-weights", "phantom", str(knees), "--fail"])
    assert re.search(r"exchanged [1-6] of 6 images", capsys.readouterr().err)


@pytest.mark.parametrize("prefetcher", [(), ("--no-prefetcher",)], ids=["prefetcher", "no prefetcher"])
def test_rows_are_added_before_timm_mixes(knees, script, prefetcher, capfd):
    """timm's Mixup asserts even batches; 6 knees and 3 added ones are mixed too, in train.py or by the launcher."""
    main([str(script), "--key-exchange-weights", "phantom", "--key-exchange-append", "3", "--mixup", "0.2", str(knees),
          *prefetcher])  # fmt: skip
    said = capfd.readouterr()
    assert "labels (9, 2) torch.float32" in said.out
    assert re.search(r"exchanged [1-9]\d* of 24 images", said.err)


@pytest.mark.parametrize("prefetcher", [(), ("--no-prefetcher",)], ids=["prefetcher", "no prefetcher"])
def test_what_comes_before_the_exchange_is_in_one_warning(knees, script, prefetcher, recwarn):
    """Crops, flips and --aa by their flags; random erasing only where timm does it before, without its prefetcher."""
    more = ("--scale", "0.3", "1", "--vflip", "0.5", "--aa", "3a", "--reprob", "0.2")
    main([str(script), "--key-exchange-weights", "phantom", str(knees), *more, *prefetcher])
    (said,) = (str(w.message) for w in recwarn if "timm does these" in str(w.message))
    assert all(flag in said for flag in ("--scale 1 1", "--vflip 0", "--aa 3a"))
    assert ("--reprob 0" in said) == bool(prefetcher)


def test_the_documented_command_warns_of_nothing(knees, script, recwarn):
    """Whole, upright knees: there is nothing to say, and a warning would be read as one."""
    main([str(script), "--key-exchange-weights", "phantom", str(knees)])
    assert not [w for w in recwarn if "exchange" in str(w.message)]


def test_the_prefetchers_batches_are_exchanged_as_its_workers_made_them(knees):
    """Before timm moves and normalises them, so that CUDA is not waited for; the result is timm's own, but for the keys."""
    dataset = create_dataset("", root=str(knees), split="train", is_training=True)
    options = {
        "is_training": True,
        "no_aug": True,
        "num_workers": 0,
        "persistent_workers": False,
        "device": torch.device("cpu"),
        **NORM,
    }
    given = create_loader(dataset, (3, 64, 64), 8, **options)
    create = exchanging(create_loader, load_weights("phantom"), {"p": 0.5}, None)
    ours = create(dataset, (3, 64, 64), 8, **options)
    ours.augment.register_forward_pre_hook(lambda *_: pytest.fail("called, not planned on the CPU"))
    planned = []
    plan = ours.augment.plan_batch
    ours.augment.__dict__["plan_batch"] = lambda batch: planned.append(batch[0].dtype) or plan(batch)
    torch.manual_seed(1)
    wanted = {x.numpy().tobytes(): int(label) for batch in given for x, label in zip(*batch, strict=True)}
    x, y = next(iter(ours))
    kept = [i for i in range(len(x)) if i not in ours.augment.params.rows]
    assert planned == [torch.uint8]
    assert 0 < len(kept) < 8
    assert all(wanted[x[i].numpy().tobytes()] == int(y[i]) for i in kept)
    assert all(x[i].numpy().tobytes() not in wanted for i in ours.augment.params.rows)
    assert (ours.exchanged, ours.seen) == (len(ours.augment.params.rows), 8)
    assert ours.dataset is dataset
    assert torch.equal(ours.mean, given.mean)


@pytest.mark.slow
def test_timms_own_train_py(knees, tmp_path):
    """The real script, which neither timm's wheel nor its sdist has: KECAE_TIMM_TRAIN says where it is."""
    script = os.environ.get("KECAE_TIMM_TRAIN")
    if not script:
        pytest.skip("timm's train.py is in no package on PyPI; set KECAE_TIMM_TRAIN to that of a checkout")
    done = launch(
        Path(script), "--key-exchange-weights", "phantom", "--data-dir", str(knees), "--val-split", "val",
        "--model", "test_resnet", "--num-classes", "2", "--img-size", "64", "--device", "cpu", "--epochs", "1",
        "--batch-size", "6", "--workers", "1", "--scale", "1", "1", "--ratio", "1", "1", "--mixup", "0.2",
        "--warmup-epochs", "0", "--output", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "key exchange in the training loader" in done.stderr
