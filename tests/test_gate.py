"""Gate: accepts what oracles agree with and what is near its host, counts what it rejects, and changes nothing else."""

import pytest
import torch
from torch import nn

from kecae_aug import KECAE, Gate, KeyExchangeAugment

torch.manual_seed(0)
MODEL = KECAE.from_preset("tiny").eval()


def batch(n=12):
    return torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 2


def always(which):
    def oracle(images):
        return nn.functional.one_hot(torch.full((len(images),), which), 2).float() * 8

    return oracle


def test_rejected_rows_are_the_originals():
    """An oracle that always says 2 keeps exchanges towards 2, and leaves the others bit-identical with their label."""
    images, labels = batch()
    gate = Gate([always(1)], classes=("0", "2"))
    augment = KeyExchangeAugment(MODEL, p=1.0, gate=gate)
    new, new_labels = augment(images, labels)
    assert torch.equal(new[labels == 1], images[labels == 1])
    assert (new_labels == 1).all()
    assert not torch.equal(new[labels == 0], images[labels == 0])
    assert augment.params.rows.tolist() == (labels == 0).nonzero()[:, 0].tolist()
    assert gate.counts["offered"] == 12
    assert gate.counts["accepted"] == gate.counts["accepted as 2"] == 6
    assert gate.counts["rejected by the oracles"] == 6
    assert "6 of 12 accepted (as 0 0/6, as 2 6/6)" in gate.report()
    again, _ = augment.replay(images, labels, params=augment.params)
    torch.testing.assert_close(again, new, atol=1e-5, rtol=0)  # 6 rows round other than 12 on some processors
    assert torch.equal(again[labels == 1], images[labels == 1])
    assert gate.counts["offered"] == 12  # a replay is not offered anew


def test_distance_and_agreement():
    """A tiny distance rejects all, a large one none; of three oracles two are enough where that is asked for."""
    images, labels = batch()
    near = Gate([], classes=("0", "2"), max_distance=1e-6)
    assert torch.equal(KeyExchangeAugment(MODEL, p=1.0, gate=near)(images, labels)[0], images)
    assert near.counts["rejected by distance"] == 12
    oracles = [always(1), always(1), always(0)]
    strict = Gate(oracles, classes=("0", "2"))
    lenient = Gate(oracles, classes=("0", "2"), min_agreement=2 / 3)
    wanted = ["2"] * 12
    assert not strict(images, images, wanted).any()
    assert lenient(images, images, wanted).all()


def test_append_takes_only_what_passed():
    """T' = T and those X' that the gate accepted."""
    images, labels = batch()
    augment = KeyExchangeAugment(
        MODEL, p=1.0, append=True, gate=Gate([always(1)], classes=("0", "2")), classes=("0", "1", "2")
    )
    new, new_labels = augment(images, labels * 2)
    assert torch.equal(new[:12], images)
    assert new_labels.tolist() == (labels * 2).tolist() + [2] * 6


def test_oracles_see_their_own_size_and_range():
    """An oracle trained at another size gets that size, in [-1, 1], whatever the caller's scale is."""
    seen = []

    def oracle(images):
        seen.append((images.shape, float(images.min()), float(images.max())))
        return torch.zeros(len(images), 2)

    images, labels = batch()
    gate = Gate([oracle], classes=("0", "2"), image_size=32)
    augment = KeyExchangeAugment(MODEL, p=1.0, gate=gate, value_range=(0, 255))
    augment((images * 255).repeat(1, 3, 1, 1), labels)
    assert seen[0][0] == (12, 1, 32, 32)
    assert -1 <= seen[0][1] <= seen[0][2] <= 1


def test_a_module_oracle_is_not_trained():
    """Modules are put into eval mode and are no submodules of the transform."""
    oracle = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(4096, 2))
    augment = KeyExchangeAugment(MODEL, p=1.0, gate=Gate([oracle], classes=("0", "2")))
    augment(*batch())
    assert not oracle.training
    assert not list(augment.parameters())
    assert not augment.state_dict()


def test_a_fixed_number_of_rows_whatever_the_gate_says():
    """Rejected rows become their hosts, with their own labels; rows that are repeated as they are, are not offered."""
    images, labels = batch()
    gate = Gate([always(1)], classes=(0.0, "2.0"))  # one spelling: the weights' are "0" and "2"
    augment = KeyExchangeAugment(MODEL, append=10, gate=gate)
    new, new_labels = augment(images, labels)
    rows, donors = augment.params.rows, augment.params.donors
    assert len(new) == len(new_labels) == 22
    assert (new_labels[12:] == 1).all()  # exchanged towards 2, or a 2 that stays
    assert torch.equal(donors >= 0, labels[rows] == 0)
    kept = donors < 0
    assert torch.equal(new[12:][kept], images[rows[kept]])
    assert not torch.equal(new[12:][~kept], images[rows[~kept]])
    assert gate.counts["offered"] == 10
    again, again_labels = augment.replay(images, labels, params=augment.params)
    torch.testing.assert_close(again, new, atol=1e-5, rtol=0)
    assert torch.equal(again_labels, new_labels)
    augment(images, labels * 0)
    assert gate.counts["offered"] == 10


def test_oracles_and_gate_have_the_same_classes():
    """In the same order: logits of (0, 2) read as (2, 0) would accept what should be rejected."""
    oracle = always(1)
    oracle.classes = ("2", "0")
    with pytest.raises(ValueError, match="oracles\\[0\\]"):
        Gate([oracle], classes=("0", "2"))
    oracle.classes = (0, 2.0)
    assert Gate([oracle], classes=("0", "2")).classes == Gate([oracle]).classes == ("0", "2")
    with pytest.raises(ValueError, match=r"no oracle has \.classes"):
        Gate([always(1)])
    with pytest.raises(ValueError, match=r"not \['2'\], which are exchanged"):
        KeyExchangeAugment(MODEL, gate=Gate([always(0)], classes=("0", "1")))
