"""Retrieval, copies and the joint region, on images whose answer is known."""

import numpy as np
import pytest
import torch
from evaluation_models import Swap, knees, phantoms

from kecae_aug.phantom import joint_region
from kecae_aug.phantom.jsw import JointSpace
from kecae_training.bootstrap import Bootstrap, summarise
from kecae_training.evaluate.anatomy import read
from kecae_training.evaluate.exchanges import Exchanges, HeldOutKnees
from kecae_training.evaluate.identity import (
    ShrunkImages,
    joint_band,
    measure_following,
    measure_identity,
    nearest_knee,
    psnr_outside,
    shrink,
)


def test_the_band_holds_what_a_key_may_change():
    """Nearly all of the phantom's own joint region, and not the whole image."""
    data, truths = phantoms(6)
    band = joint_band(read(data.images, data.medial), 64)
    true = torch.stack([torch.from_numpy(joint_region(t, 64).copy()) for t in truths.truths])
    assert (band & true).sum() / true.sum() > 0.97
    assert band.float().mean() < 0.6
    change = (truths.exchanged(torch.arange(12).roll(2)) - truths.own()).abs()
    assert change[~band[:, None]].sum() / change.sum() < 0.01


def test_a_line_that_was_not_found_is_where_these_crops_have_it():
    """A level band about 0.585 of the height."""
    none = JointSpace(np.nan, np.nan, "no joint line", np.nan, np.full(100, np.nan))
    rows = joint_band([none], 100)[0].any(1).nonzero()[:, 0]
    assert (int(rows[0]), int(rows[-1])) == (31, 85)


def test_psnr_outside_ignores_the_joint():
    """An error of 0.2 outside is 20 dB, whatever happens inside."""
    host = torch.zeros(1, 1, 10, 10)
    joint = torch.zeros(1, 10, 10, dtype=torch.bool)
    joint[:, 5:] = True
    image = host + 0.2
    image[..., 5:, :] = 1
    torch.testing.assert_close(psnr_outside(image, host, joint), torch.tensor([20.0]))


def test_the_nearest_knee_is_found_outside_the_joint():
    """Host, donor or a third knee: whoever's surroundings these are, whatever the joint shows."""
    images = torch.rand(6, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    joint = torch.zeros(6, 64, 64, dtype=torch.bool)
    joint[:, 28:36] = True
    donors = torch.arange(6).roll(1)
    of = torch.tensor([0, 1, 1, 3, 3, 5])  # whose knee it is
    exchanged = images[of] * 0.9
    exchanged[:, :, 28:36] = images[donors][:, :, 28:36]
    for found in nearest_knee(exchanged, images, donors, joint, torch.arange(6)):
        assert found.tolist() == of.tolist()


def test_copies_of_training_images_are_counted_and_listed():
    """Exchanged images that are training images; the other knee of the host's own patient is no copy."""
    data = knees(12)
    training = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(5)) * 2 - 1
    exchanges = Exchanges(Swap(), data.images, torch.arange(12).roll(1))
    joint = torch.zeros(12, 64, 64, dtype=torch.bool)
    exchanged = training[torch.arange(12) % 3]
    album = ShrunkImages(shrink(training), ["t0", "t1", "t2"])
    boot = Bootstrap(data.patients)
    copies = summarise(measure_identity(boot, data, exchanges, exchanged, joint, album))["copies"]
    assert copies["of_training"]["mean"] == 1
    assert copies["files"]["of_training"][4] == ["4", "t1"]
    assert copies["of_donor"]["mean"] == copies["of_other"]["mean"] == 0
    partner = data.images.view(6, 2, 1, 64, 64).flip(1).flatten(0, 1)
    far = Exchanges(Swap(), data.images, torch.arange(12).roll(4))
    assert summarise(measure_identity(boot, data, far, partner, joint))["copies"]["of_other"]["mean"] == 0


def test_variance_ratio_of_known_parts():
    """Hosts differ by noise of sd 2 outside, donors by noise of sd 1 inside the joint rows: by areas, 28 times."""
    g = torch.Generator().manual_seed(0)
    images = 2 * torch.randn(64, 1, 64, 64, generator=g)
    images[:, :, 28:36] /= 2
    data = HeldOutKnees(images, torch.arange(64) % 2, [str(i) for i in range(64)])
    found = summarise(measure_following(data, Exchanges(Swap(), images, torch.arange(64).roll(1))))
    assert found["variance_ratio"]["mean"] == pytest.approx(4 * 56 / 8, rel=0.05)
    assert found["host_over_donor"]["mean"] == pytest.approx(2 * 56 / 8, rel=0.05)
