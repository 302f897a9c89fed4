"""The frozen discriminator: what it must learn, keep, refuse, and never do to the KECAE's gradients."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from kecae_aug._files import save_tensors
from kecae_training.adversarial import l2_attack, radius_at
from kecae_training.augment import augment
from kecae_training.guide import (
    Guide,
    GuideConfig,
    in_fold,
    load_guide,
    main,
    predict,
    save_guide,
    train_guide,
)
from kecae_training.networks import NETWORKS

CONFIG = GuideConfig(network="resnet", image_size=64, grades=("0", "2", "3"), epochs=25, batch_size=24)

RADIUS = 2.0  # of the attack that the toy knees' guides are tested with


def knees(n: int = 48):
    """Three grades as a bar of three darknesses."""
    g = torch.Generator().manual_seed(0)
    targets = torch.arange(n) % 3
    images = torch.randint(120, 200, (n, 1, 64, 64), generator=g)
    images[:, :, 28:36] -= 50 * targets.view(-1, 1, 1, 1)
    return images.to(torch.uint8), targets


@pytest.fixture(scope="module")
def trained() -> Guide:
    images, targets = knees()
    return train_guide(images, targets.tolist(), CONFIG, progress=False)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_any_size_from_32(name):
    """Guide and judges are fully convolutional up to their pooling: 32, 64, 128 and odd sizes."""
    net = NETWORKS[name](3).eval()
    for size in (32, 64, 101, 128):
        assert net(torch.zeros(2, 1, size, size)).shape == (2, 3)


def test_training_learns_the_grades(trained):
    """A guide that learned nothing would make J_SUP noise."""
    images, targets = knees()
    assert (predict(trained, images / 127.5 - 1).argmax(1) == targets).float().mean() > 0.8


def test_saved_guide_is_the_guide(trained, tmp_path):
    """Load gives the same logits, restricted to the classes asked for, with the patients it has seen."""
    save_guide(trained, tmp_path / "g", patients=["7", "7", "9"], data={"split": "train"})
    loaded = load_guide(tmp_path / "g", ("0", "2"))
    x = torch.rand(4, 1, 64, 64) * 2 - 1
    torch.testing.assert_close(loaded(x), trained(x)[:, :2])
    assert loaded.metadata["patients"] == ["7", "9"]
    with pytest.raises(FileExistsError, match="already holds a guide"):
        save_guide(trained, tmp_path / "g", patients=[], data={})


def test_guide_is_frozen_but_lets_gradients_through(trained):
    """Eq. 5 trains the KECAE through D: gradients reach the image, D itself and its BatchNorm never change."""
    state = {k: v.clone() for k, v in trained.state_dict().items()}
    x = torch.zeros(4, 1, 64, 64, requires_grad=True)
    trained.train()  # what fabric or a parent module would do
    trained(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert not trained.training
    assert all(torch.equal(v, state[k]) for k, v in trained.state_dict().items())
    assert all(p.grad is None for p in trained.parameters())


def test_what_is_no_guide_is_refused(trained, tmp_path):
    """Missing, truncated, foreign and pickled files each get a message with the way out."""
    with pytest.raises(FileNotFoundError, match="kecae-aug guide"):
        load_guide(tmp_path / "nowhere")
    path = save_guide(trained, tmp_path / "g", patients=[], data={})
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match="damaged"):
        load_guide(tmp_path / "g")
    torch.save({"a": 1}, path)
    with pytest.raises(ValueError, match="damaged or not a safetensors"):
        load_guide(tmp_path / "g")
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"\['4'\] are not among the grades"):
        load_guide(tmp_path / "g", ("0", "4"))


def test_folds_divide_patients_by_their_id_alone():
    """Guide and judges of different folds share no patient, on any list and in any order."""
    patients = [str(9_000_000 + i) for i in range(500)]
    folds = [[p for p in patients if in_fold(p, k, 3)] for k in range(3)]
    assert sorted(p for fold in folds for p in fold) == patients
    assert min(map(len, folds)) > 120
    with pytest.raises(ValueError, match="fold=3"):
        in_fold("1", 3, 3)


def test_every_grade_needs_images():
    """A grade without images is named instead of a silent class that never occurs."""
    images, targets = knees(12)
    with pytest.raises(ValueError, match="every grade needs some"):
        train_guide(images, (targets % 2).tolist(), CONFIG, progress=False)


def test_without_an_attack_it_is_the_training_of_before(trained):
    """Radius 0 and float32: bit for bit what this plain loop learns, which is the one from before these options."""
    images, targets = knees(24)
    config = replace(CONFIG, epochs=2, batch_size=12)
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    plain = Guide(config).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=4)
    weights = 1.0 / torch.bincount(targets)[targets].double().sqrt()
    for _ in range(2):
        order = torch.multinomial(weights, 24, replacement=True, generator=generator)
        for rows in order.split(12):
            x = augment(images[rows].float() / 127.5 - 1, generator)
            logits = plain(x.contiguous(memory_format=torch.channels_last))
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(logits, targets[rows], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    guide = train_guide(images, targets.tolist(), config, progress=False)
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in guide.state_dict().items())


def test_attack_stays_in_its_ball_and_works(trained):
    """L2 norm of each image's change at most the radius, and used up; the loss rises; guide and images untouched."""
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
def test_robust_guide_withstands_what_breaks_a_plain_one(trained, precision, tmp_path):
    """Pre-trained plainly, then under attack: right more often under an attack, and where the grade is it looks."""
    save_guide(trained, tmp_path / "plain", patients=[], data={})
    config = replace(
        CONFIG, epochs=10, adversarial_radius=RADIUS * 2, init=tmp_path / "plain", precision=precision
    )
    images, targets = knees()
    robust = train_guide(images, targets.tolist(), config, progress=False)
    x = images / 127.5 - 1

    def right(guide, radius):
        attacked = l2_attack(guide, x, targets, radius, 8)
        return (predict(guide, attacked).argmax(1) == targets).float().mean().item()

    def on_the_bar(guide):
        """Share of the gradient's energy that lies within 4 px of the bar, a quarter of the image."""
        y = x.clone().requires_grad_(True)
        F.cross_entropy(guide(y), targets).backward()
        energy = y.grad.square()
        return (energy[:, :, 24:40].sum() / energy.sum()).item()

    assert on_the_bar(robust) > on_the_bar(trained) + 0.15
    assert right(robust, 0.0) > 0.8
    assert right(robust, RADIUS) > right(trained, RADIUS) + 0.2
    assert all(v.dtype != torch.bfloat16 for v in robust.state_dict().values())


def test_start_from_another_guide(trained, tmp_path):
    """The same grades: all of it; other grades: all but the last layer. Its patients are this one's as well."""
    save_guide(trained, tmp_path / "first", patients=["1", "2"], data={})
    images, targets = knees()
    still = replace(CONFIG, epochs=1, lr=0.0, weight_decay=0.0, init=tmp_path / "first")
    parameters = dict(trained.named_parameters())
    same = train_guide(images, targets.tolist(), still, progress=False)
    assert all(torch.equal(v, parameters[k]) for k, v in same.named_parameters())
    other = train_guide(images, targets.tolist(), replace(still, grades=("0", "3", "4")), progress=False)
    new = {k for k, v in other.named_parameters() if not torch.equal(v, parameters[k])}
    assert len(new) == 2
    assert new == set(list(parameters)[-2:])
    save_guide(other, tmp_path / "second", patients=["3"], data={})
    loaded = load_guide(tmp_path / "second")
    assert loaded.metadata["patients"] == ["1", "2", "3"]
    assert loaded.config == other.config
    with pytest.raises(ValueError, match="network='resnet', or no init"):
        train_guide(images, targets.tolist(), replace(still, network="vgg"), progress=False)
    with pytest.raises(FileNotFoundError, match="no guide"):
        train_guide(images, targets.tolist(), replace(still, init=tmp_path / "none"), progress=False)


def test_guides_of_before_these_options_load(trained, tmp_path):
    """Their metadata has none of the new fields: off."""
    path = save_guide(trained, tmp_path / "g", patients=[], data={})
    old = {k: getattr(CONFIG, k) for k in ("network", "image_size", "grades", "folds", "fold", "epochs")}
    metadata = {"format": "kecae-guide-1", "config": json.dumps(old), "patients": "[]", "data": "{}"}
    tensors = load_file(path)
    path.unlink()
    save_tensors(tensors, path, metadata)
    assert load_guide(tmp_path / "g").config == replace(CONFIG, batch_size=GuideConfig().batch_size)


@pytest.mark.parametrize(
    "wrong",
    [
        {"adversarial_radius": -0.1},
        {"adversarial_radius": float("nan")},
        {"adversarial_steps": 0},
        {"precision": "16"},
    ],
)
def test_options_out_of_range(wrong):
    """Named when the config is made, before any image is read."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GuideConfig(**wrong)


def test_command_line_names_what_is_wrong(tmp_path):
    """A wrong option or start ends in one line, before the images are looked for."""
    given = ["--data", str(tmp_path / "no-data"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="adversarial_radius=-1"):
        main([*given, "--adversarial_radius", "-1"])
    with pytest.raises(SystemExit, match=r"no guide\.safetensors"):
        main([*given, "--init", str(tmp_path / "none")])
