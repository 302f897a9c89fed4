"""The frozen discriminator: what it must learn, keep, refuse, and never do to the KECAE's gradients."""

import pytest
import torch

from kecae_training.guide import Guide, GuideConfig, in_fold, load_guide, predict, save_guide, train_guide
from kecae_training.networks import NETWORKS

CONFIG = GuideConfig(network="resnet", image_size=64, grades=("0", "2", "3"), epochs=25, batch_size=24)


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
