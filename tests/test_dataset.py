"""KeyExchangeDataset: what stands at an index is a function of (seed, epoch, index), and is what it says it is."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bank import MODEL, Knees, images_of
from torch.utils.data import ConcatDataset, DataLoader, Subset, WeightedRandomSampler
from torchvision.transforms import v2

from kecae_aug import KeyExchangeAugment, KeyExchangeDataset, LatentBank


class Uneven(Knees):
    """Fifteen of one class, five of the other, one image a patient."""

    def __init__(self):
        super().__init__(20)
        self.targets = [0] * 15 + [1] * 5
        self.patients = list(range(20))


def everything(dataset, **options):
    loader = DataLoader(dataset, batch_size=7, **options)
    images, labels = zip(*[(x, y) for x, y, *_ in loader], strict=True)
    return torch.cat(images), torch.cat(labels)


def test_real_images_come_first_and_as_they_are():
    """T is in T' untouched, and targets tell every label without decoding."""
    knees = Knees()
    train = KeyExchangeDataset(knees, MODEL, n_pairs=10)
    assert len(train) == 30
    knees.reads = 0
    assert len(train.targets) == 30
    assert knees.reads == 0
    for i in (0, 7, 19):
        image, label = train[i]
        assert torch.equal(image, knees[i][0])
        assert label == knees.targets[i]
    images, labels = everything(train)
    assert images.shape == (30, 1, 70, 60)
    assert labels.tolist() == train.targets


@pytest.mark.parametrize("detail", ["decoder", "host"])
def test_an_exchanged_item_is_the_transforms_exchange(detail):
    """Host, donor and strength of the provenance give the same image through KeyExchangeAugment."""
    knees = Knees()
    train = KeyExchangeDataset(knees, MODEL, 6, provenance=True, detail=detail, strength=(0.6, 1.4))
    augment = KeyExchangeAugment(MODEL, p=1.0, detail=detail)
    for i in range(20, 26):
        image, label, origin = train[i]
        assert origin == train.origin(i)
        pair = images_of(knees)[[origin.host, origin.donor]]
        labels = torch.tensor([knees.targets[origin.host], knees.targets[origin.donor]])
        augment(pair, labels)
        params = type(augment.params)(torch.tensor([0]), torch.tensor([1]), torch.tensor([origin.strength]))
        wanted, new = augment.replay(pair, labels, params=params)
        torch.testing.assert_close(image, wanted[0], atol=1e-5, rtol=0)
        assert label == new[0] == labels[1]


@settings(max_examples=40, deadline=None)
@given(
    n_pairs=st.integers(0, 300),
    seed=st.integers(-5, 5),
    epoch=st.integers(0, 4),
    fresh=st.booleans(),
    balanced=st.booleans(),
    strength=st.sampled_from([1.0, 0.3, (0.2, 1.5)]),
)
def test_laws_of_the_pairs(n_pairs, seed, epoch, fresh, balanced, strength):
    """Hosts and donors differ in label and patient, labels follow the key, no pair comes twice before all have."""
    knees = Uneven()
    train = KeyExchangeDataset(
        knees, MODEL, n_pairs, seed=seed, fresh_pairs=fresh, balanced=balanced, strength=strength
    )
    train.set_epoch(epoch)
    origins = [train.origin(20 + k) for k in range(n_pairs)]
    for k, o in enumerate(origins):
        assert knees.targets[o.host] != knees.targets[o.donor]
        assert knees.patients[o.host] != knees.patients[o.donor]
        key = o.donor if o.strength >= 0.5 else o.host
        assert train.targets[20 + k] == knees.targets[key]
    for direction in (0, 1):
        pairs = Counter((o.host, o.donor) for o in origins if knees.targets[o.host] == direction)
        if pairs and not fresh:
            assert max(pairs.values()) - (min(pairs.values()) if len(pairs) == 75 else 0) <= 1
    again = KeyExchangeDataset(
        Uneven(), MODEL, n_pairs, seed=seed, fresh_pairs=fresh, balanced=balanced, strength=strength
    )
    again.set_epoch(epoch)
    assert origins == [again.origin(20 + k) for k in range(n_pairs)]


def test_classes_are_even_or_levelled():
    """By default every new label is equally frequent in X'; balanced=True makes T' even instead."""
    even = KeyExchangeDataset(Uneven(), MODEL, 12)
    assert Counter(even.targets[20:]) == {0: 6, 1: 6}
    level = KeyExchangeDataset(Uneven(), MODEL, 12, balanced=True)
    assert Counter(level.targets) == {0: 16, 1: 16}


def test_epochs():
    """The same T' every epoch by default; other pairs with fresh_pairs, without repetition until the grid is through."""
    fixed, fresh = (KeyExchangeDataset(Uneven(), MODEL, 30, fresh_pairs=f) for f in (False, True))
    seen = []
    for epoch in range(5):
        fixed.set_epoch(epoch)
        fresh.set_epoch(epoch)
        assert [fixed.origin(i) for i in range(20, 50)] == [
            KeyExchangeDataset(Uneven(), MODEL, 30).origin(i) for i in range(20, 50)
        ]
        seen += [fresh.origin(i)[:2] for i in range(20, 50)]
    assert len(set(seen)) == 150  # 75 pairs in each direction


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_any_number_of_workers_gives_the_same(context):
    """0 workers, 2 workers, and persistent ones after set_epoch; items alone equal items in batches."""
    train = KeyExchangeDataset(Knees(), MODEL, 16, fresh_pairs=True, strength=(0.5, 1))
    wanted = everything(train)
    options = {"num_workers": 2, "multiprocessing_context": context}
    got = everything(train, **options)
    torch.testing.assert_close(got[0], wanted[0], atol=1e-5, rtol=0)
    assert torch.equal(got[1], wanted[1])
    single = torch.stack([train[i][0] for i in range(len(train))])
    torch.testing.assert_close(single, wanted[0], atol=1e-5, rtol=0)
    if context == "fork":
        loader = DataLoader(train, batch_size=7, persistent_workers=True, **options)
        first = torch.cat([x for x, _ in loader])
        train.set_epoch(1)
        second = torch.cat([x for x, _ in loader])
        torch.testing.assert_close(first, wanted[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(second, everything(train)[0], atol=1e-5, rtol=0)
        assert not torch.equal(first[20:], second[20:])


@pytest.mark.parametrize(
    ("detail", "value_range"), [("decoder", (0, 1)), ("host", (0, 1)), ("decoder", (-1, 1))]
)
def test_from_a_bank_no_image_is_read(tmp_path, detail, value_range):
    """The same knees as from images (at the weights' size), and not one image read for them."""
    knees = Knees()
    knees.__class__ = type("Square", (Knees,), {"__getitem__": square_item, "value_range": value_range})
    bank = LatentBank.build(knees, MODEL, tmp_path / "b", dtype=torch.float32, residual=True, shard_rows=6)
    options = {"n_pairs": 12, "detail": detail, "strength": (0.5, 1.0)}
    images = KeyExchangeDataset(knees, MODEL, **options)
    banked = KeyExchangeDataset(None, MODEL, bank=bank, **options)
    knees.reads = 0
    got, labels = everything(banked, num_workers=2)
    assert knees.reads == 0
    wanted = torch.stack([images[20 + k][0] for k in range(12)])
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=0)
    assert labels.tolist() == images.targets[20:]
    both = KeyExchangeDataset(knees, MODEL, bank=bank, **options)
    torch.testing.assert_close(both[25][0], wanted[5], atol=2e-4, rtol=0)


def square_item(self, i):
    self.reads += 1
    image = Knees(self.n, self.offset)[i][0]
    square = torch.nn.functional.interpolate(image[None], size=(64, 64))[0]
    low, high = self.value_range
    return square * (high - low) + low, self.targets[i]


def test_torchs_own_wrappers_work():
    """Subset below and above, ConcatDataset, WeightedRandomSampler on the targets, a transform after the exchange."""
    part = KeyExchangeDataset(Subset(Knees(), range(3, 15)), MODEL, 8, provenance=True)
    assert all(o.host < 12 and o.donor < 12 for *_, o in part)
    train = KeyExchangeDataset(
        ConcatDataset([Knees(), Knees(6, 30)]), MODEL, 8, transform=v2.Normalize([0.5], [0.2])
    )
    assert len(train) == 34
    torch.testing.assert_close(train[0][0], (Knees()[0][0] - 0.5) / 0.2)
    weights = [1.0 if t else 0.0 for t in train.targets]
    sampler = WeightedRandomSampler(weights, 20)
    assert all((y == 1).all() for _, y in DataLoader(train, batch_size=5, sampler=sampler))
    last = Subset(train, [33, 2])
    assert torch.equal(DataLoader(last, batch_size=2).__iter__().__next__()[0][0], train[33][0])


def test_collated_provenance():
    """Provenance survives default_collate as tensors, for a log of what was trained on."""
    train = KeyExchangeDataset(Knees(), MODEL, 4, provenance=True, real=False)
    _, _, origin = next(iter(DataLoader(train, batch_size=4)))
    assert origin.host.shape == (4,)
    assert (origin.donor >= 0).all()


def test_three_classes_and_a_class_without_weights():
    """KL 1 images stay in T and never exchange."""
    knees = Knees(30)
    knees.classes, knees.targets = ["0", "1", "2"], [i % 3 for i in range(30)]
    train = KeyExchangeDataset(knees, MODEL, 20, provenance=True, real=False)
    assert {knees.targets[r] for *_, o in train for r in o[:2]} == {0, 2}


def far_from_even(counts, options):
    """Chi-square over its degrees of freedom; near 1 where every option is equally likely."""
    wanted = sum(counts.values()) / len(options)
    return sum((counts[o] - wanted) ** 2 / wanted for o in options) / (len(options) - 1)


@pytest.mark.parametrize("fresh", [False, True])
def test_donors_are_uniform_over_the_other_patients(fresh):
    """The row after one of the host's own is no likelier than any other."""
    knees = Knees(24)
    knees.patients = ["a", "a", "b", "b", *"cccccccc", *(f"p{i}" for i in range(12))]
    train = KeyExchangeDataset(knees, MODEL, 12_000, real=False, fresh_pairs=fresh)
    train.set_epoch(3)
    by_host = {}
    for k in range(12_000):
        host, donor, _ = train.origin(k)
        by_host.setdefault(host, Counter())[donor] += 1
    for host in range(24):
        options = [d for d in range(24) if (d - host) % 2 and knees.patients[d] != knees.patients[host]]
        assert set(by_host[host]) == set(options)
        assert far_from_even(by_host[host], options) < 4


def test_an_index_of_an_origin_is_that_of_an_item():
    """From the end, or refused."""
    train = KeyExchangeDataset(Knees(), MODEL, 10, provenance=True)
    for index in (-1, -30, 0, 29, torch.tensor(25), True):
        assert train.origin(index) == train[index][2]
    for index in (30, -31):
        with pytest.raises(IndexError, match="accepted are 0 to 29"):
            train.origin(index)
    for index in (1.0, "1", None):
        with pytest.raises(TypeError):
            train.origin(index)


def test_classes_that_the_weights_do_not_know_are_named():
    """Both lists, and the way out."""
    knees = Knees()
    knees.classes = ["healthy", "ill"]
    with pytest.raises(ValueError, match=r"\('0', '2'\).*Its classes are \('healthy', 'ill'\).*classes="):
        KeyExchangeDataset(knees, MODEL, 4)
    assert KeyExchangeDataset(knees, MODEL, 4, classes=(0.0, 2.0)).classes == ("0", "2")


def test_a_bank_alone(tmp_path):
    """Patients given or the bank's, one a row; classes by name."""
    bank = LatentBank.build(Knees(), MODEL, tmp_path / "b")
    assert KeyExchangeDataset(None, MODEL, 2, bank=bank, classes=("2", "0")).class_indices == [1, 0] * 10
    with pytest.raises(ValueError, match=r"bank has rows of \['2'\]"):
        KeyExchangeDataset(None, MODEL, 2, bank=bank, classes=("0", "1"))
    with pytest.raises(ValueError, match="patients: got"):
        KeyExchangeDataset(None, MODEL, 2, bank=bank, patients=["a"])
    nameless = Knees(patients=False)
    train = KeyExchangeDataset(nameless, MODEL, 200, bank=bank, real=False)  # whose patients count then
    assert all(bank.patients[o.host] != bank.patients[o.donor] for o in map(train.origin, range(200)))
