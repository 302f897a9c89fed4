"""KeyExchangeAugment against the contract of a batch transform; random weights do, what they draw is not judged."""

import copy
import pickle
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from kecae_aug import KECAE, EngineOptions, KeyExchangeAugment

torch.manual_seed(0)
MODEL = KECAE.from_preset("tiny").eval()


def batch(n: int = 12, channels: int = 1, size: tuple[int, int] = (64, 64), seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 1, *size, generator=g).repeat(1, channels, 1, 1)
    return images, torch.arange(n) % 2


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(0, 9),
    channels=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(16, 90), st.integers(16, 90)),
    uint8=st.booleans(),
    detail=st.sampled_from(["decoder", "host"]),
    p=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_laws_of_the_batch(n, channels, size, uint8, detail, p, seed):
    """Shape and dtype stay, rows that are not chosen are bit-identical, chosen ones carry their donor's label."""
    images, labels = batch(n, channels, size, seed)
    images = (images * 255).round().to(torch.uint8) if uint8 else images
    before = images.clone(), labels.clone()
    augment = KeyExchangeAugment(MODEL, p=p, detail=detail)
    torch.manual_seed(seed)
    new_images, new_labels = augment(images, labels)

    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    assert (new_images.shape, new_images.dtype, new_labels.dtype) == (
        images.shape,
        images.dtype,
        labels.dtype,
    )
    if not uint8 and n:
        assert 0 <= new_images.min() <= new_images.max() <= 1
    params = augment.params
    kept = torch.ones(n, dtype=torch.bool)
    kept[params.rows] = False
    assert torch.equal(new_images[kept], images[kept])
    assert torch.equal(new_labels[kept], labels[kept])
    assert torch.equal(new_labels[params.rows], labels[params.donors])
    assert (labels[params.donors] != labels[params.rows]).all()
    if p == 1 and n >= 2:
        assert len(params.rows) == n
    if p == 0:
        assert len(params.rows) == 0


def test_it_is_the_models_exchange():
    """In the model's own size and range the transform is decode(hN + hK'); host detail adds X' - X^ to X."""
    images, labels = batch()
    images = images * 2 - 1
    augment = KeyExchangeAugment(MODEL, p=1.0, value_range=(-1, 1), detail="decoder")
    new, _ = augment(images, labels)
    with torch.no_grad():
        wanted = MODEL.exchange(images, images[augment.params.donors])
        reconstruction = MODEL(images)
    torch.testing.assert_close(new, wanted, atol=1e-5, rtol=0)
    host = KeyExchangeAugment(MODEL, p=1.0, value_range=(-1, 1), detail="host")
    torch.testing.assert_close(
        host.replay(images, labels, params=augment.params)[0],
        (images + wanted - reconstruction).clamp(-1, 1),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize(
    ("encode", "options", "tolerance"),
    [
        pytest.param(lambda u: (u * 255).round().to(torch.uint8), {}, 2.0, id="uint8"),
        pytest.param(lambda u: u * 2 - 1, {"value_range": (-1, 1)}, 1e-4, id="minus one to one"),
        pytest.param(lambda u: u * 255, {"value_range": (0, 255)}, 1e-2, id="0-255 floats"),
        pytest.param(
            lambda u: (u - 0.449) / 0.226, {"mean": (0.449,), "std": (0.226,)}, 1e-4, id="normalised"
        ),
        pytest.param(lambda u: u.double(), {}, 1e-4, id="float64"),
    ],
)
def test_every_declared_range_gives_the_same_knee(encode, options, tolerance):
    """How a loop scales its images changes nothing but the scale of what comes back."""
    images, labels = batch(6)
    plain = KeyExchangeAugment(MODEL, p=1.0)
    wanted, _ = plain(images, labels)
    x = encode(images)
    new, _ = KeyExchangeAugment(MODEL, **options).replay(x, labels, params=plain.params)
    assert new.dtype == x.dtype
    torch.testing.assert_close(new.double(), encode(wanted).double(), atol=tolerance, rtol=0)


def test_structures_come_back_as_they_came():
    """Arguments, list, tuple, and dicts with the label first or last and other entries; the dict is not changed."""
    images, labels = batch(4)
    augment = KeyExchangeAugment(MODEL, p=1.0)
    assert isinstance(augment(images, labels), tuple)
    assert isinstance(augment([images, labels]), list)
    assert isinstance(augment((images, labels, "extra")), tuple)
    given_ = {"label": labels, "name": ["a", "b", "c", "d"], "image": images}
    new = augment(given_)
    assert list(new) == ["label", "name", "image"]
    assert new["name"] is given_["name"]
    assert torch.equal(new["label"], 1 - labels)
    assert not torch.equal(new["image"], images)
    assert given_["image"] is images


def test_tv_tensors_memory_format_and_one_hot_stay():
    """torchvision's Image stays one, channels_last stays, one-hot labels stay one-hot and follow the key."""
    images, labels = batch(4, 3)
    wrapped = tv_tensors.Image(images)
    augment = KeyExchangeAugment(MODEL, p=1.0)
    new, _ = augment(wrapped, labels)
    assert isinstance(new, tv_tensors.Image)
    last = images.contiguous(memory_format=torch.channels_last)
    assert augment(last, labels)[0].is_contiguous(memory_format=torch.channels_last)
    one_hot = torch.nn.functional.one_hot(labels, 2).float()
    new_labels = augment(images, one_hot)[1]
    assert new_labels.dtype == torch.float32
    assert torch.equal(new_labels.argmax(1), 1 - labels)


def test_grades_without_weights_pass_through():
    """A loop over KL 0-4 with weights for KL 0 and 2: the others are never hosts, donors or changed labels."""
    images, _ = batch(20)
    labels = torch.arange(20) % 5
    augment = KeyExchangeAugment(MODEL, p=1.0, classes=("0", "1", "2", "3", "4"))
    new, new_labels = augment(images, labels)
    known = (labels == 0) | (labels == 2)
    assert torch.equal(new[~known], images[~known])
    assert torch.equal(new_labels[~known], labels[~known])
    assert torch.equal(new_labels[known], 2 - labels[known])


def test_batches_without_two_classes_pass_through():
    """A batch of one, of none, or of one class has nobody to exchange with."""
    augment = KeyExchangeAugment(MODEL, p=1.0)
    for images, labels in (batch(1), batch(0), (batch(4)[0], torch.zeros(4, dtype=torch.int64))):
        new, new_labels = augment(images, labels)
        assert torch.equal(new, images)
        assert torch.equal(new_labels, labels)


def test_patients_do_not_give_to_themselves():
    """The two knees of one person are not exchanged, given as argument or in the dict."""
    images, labels = batch(8)
    patients = ["a", "a", "b", "b", "c", "c", "d", "d"]
    augment = KeyExchangeAugment(MODEL, p=1.0)
    for seed in range(20):
        torch.manual_seed(seed)
        augment({"image": images, "label": labels, "patient": patients})
        assert all(
            patients[r] != patients[d]
            for r, d in zip(augment.params.rows, augment.params.donors, strict=True)
        )


def test_strength_and_soft_labels():
    """Soft labels say how much of the key came; weak exchanges keep the host's integer label."""
    images, labels = batch(8)
    soft = KeyExchangeAugment(MODEL, p=1.0, strength=(0.2, 0.9), label_mode="soft")
    _, y = soft(images, labels)
    torch.testing.assert_close(y.sum(1), torch.ones(8))
    torch.testing.assert_close(y[torch.arange(8), 1 - labels], soft.params.strengths)
    weak = KeyExchangeAugment(MODEL, p=1.0, strength=0.4)
    assert torch.equal(weak(images, labels)[1], labels)
    nothing, _ = KeyExchangeAugment(MODEL, p=1.0, strength=0.0, detail="host")(images, labels)
    torch.testing.assert_close(nothing, images, atol=1e-5, rtol=0)


def test_chunks_change_nothing():
    """chunk_size bounds memory, not the result."""
    images, labels = batch(9)
    whole = KeyExchangeAugment(MODEL, p=1.0)
    wanted = whole(images, labels)[0]
    parts = KeyExchangeAugment(MODEL, p=1.0, engine=EngineOptions(chunk_size=2)).replay(
        images, labels, params=whole.params
    )[0]
    torch.testing.assert_close(parts, wanted, atol=1e-5, rtol=0)


def test_replay_repeats_a_call():
    """The recorded parameters give the same images and labels again; torch's seed gives the same parameters."""
    images, labels = batch()
    augment = KeyExchangeAugment(MODEL, p=0.5, strength=(0.5, 1.5))
    torch.manual_seed(7)
    first = augment(images, labels)
    again = augment.replay(images, labels, params=augment.params)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    torch.manual_seed(7)
    assert torch.equal(augment(images, labels)[0], first[0])


def test_model_is_invisible_and_stays_as_it_is():
    """Held by a module that trains, the weights are in no parameter list, state dict or train() call."""

    class Lit(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64 * 64, 2))
            self.augment = KeyExchangeAugment(MODEL, p=1.0)

    lit = Lit().train()
    assert len(list(lit.parameters())) == 2
    assert all(not name.startswith("augment") for name in lit.state_dict())
    assert not any(isinstance(m, KECAE) for m in lit.modules())
    inner = lit.augment._exchanger.fast
    before = copy.deepcopy(inner.state_dict())
    optimizer = torch.optim.SGD(lit.parameters(), 0.1)
    for _ in range(3):
        x, y = lit.augment(*batch())
        assert not x.requires_grad
        torch.nn.functional.cross_entropy(lit.net(x), y).backward()
        optimizer.step()
    assert not inner.training
    for name, value in before.items():
        assert torch.equal(value, inner.state_dict()[name])


def test_autocast_around_it_changes_nothing():
    """Inside it is float32 whatever the loop's precision, and dtypes of chosen and other rows agree."""
    images, labels = batch()
    augment = KeyExchangeAugment(MODEL, p=0.5)
    plain = augment(images, labels)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = augment.replay(images, labels, params=augment.params)[0]
    assert torch.equal(plain, inside)


def test_pickle_repr_and_switch():
    """Spawned workers can be sent one; repr shows what differs from the defaults; enabled=False is off."""
    augment = KeyExchangeAugment(MODEL, p=0.25, detail="decoder", engine=EngineOptions(chunk_size=3))
    assert repr(augment) == (
        "KeyExchangeAugment(p=0.25, detail='decoder', engine=EngineOptions(chunk_size=3))"
    )
    copied = pickle.loads(pickle.dumps(augment))
    assert repr(copied) == repr(augment)
    images, labels = batch()
    copied.enabled = False
    assert copied(images, labels)[0] is images
    assert "enabled=False" in repr(copied)


def test_inside_compose_and_a_compiled_step():
    """An element of v2.Compose; and a step around it compiles with the exchange left outside the graph."""
    images, labels = batch(8)
    out, y = v2.Compose([KeyExchangeAugment(MODEL, p=1.0), v2.RandomHorizontalFlip(p=1.0)])(images, labels)
    assert out.shape == images.shape
    assert torch.equal(y, 1 - labels)
    augment = KeyExchangeAugment(MODEL, p=1.0)

    def step(x, y):
        x, y = augment(x, y)
        return x.mean() + y.float().mean()

    assert torch.isfinite(torch.compile(step, backend="eager")(images, labels))


class Items(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, i):
        return torch.full((1, 64, 64), i / 32), i % 2


def collate(augment, items):
    images, labels = default_collate(items)
    new, new_labels = augment(images, labels)
    return new, new_labels, augment.params.donors


def test_workers_and_epochs_draw_differently():
    """As collate_fn in a real DataLoader: no two workers and no two epochs repeat the same draws."""
    augment = KeyExchangeAugment(MODEL, p=1.0)
    loader = DataLoader(Items(), batch_size=8, num_workers=2, collate_fn=partial(collate, augment))
    draws = [tuple(donors.tolist()) for _ in range(2) for *_, donors in loader]
    assert len(draws) == 8
    assert len(set(draws)) == 8


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda a, x, y: a(x), "needs the labels too"),
        (lambda a, x, y: a(x[0], y), r"images: got shape \(1, 64, 64\)"),
        (lambda a, x, y: a(x.repeat(1, 2, 1, 1), y), r"images: got shape \(12, 2, 64, 64\)"),
        (lambda a, x, y: a(x.numpy(), y), "images: got ndarray"),
        (lambda a, x, y: a(x * 255, y), "value_range=\\(0, 255\\)"),
        (lambda a, x, y: a(x * 2 - 1, y), "value_range=\\(-1, 1\\)"),
        (lambda a, x, y: a(x * float("nan"), y), "NaN"),
        (lambda a, x, y: a(x.long(), y), "images: got torch.int64"),
        (lambda a, x, y: a(torch.rand(12, 3, 64, 64), y), "channels that differ"),
        (lambda a, x, y: a(x, y[:5]), r"labels: got shape \(5,\) for 12 images"),
        (lambda a, x, y: a(x, y.float()), "labels: got torch.float32"),
        (lambda a, x, y: a(x, y + 3), "classes=dataset.classes"),
        (lambda a, x, y: a(x, torch.full((12, 2), 0.5)), "before MixUp"),
        (lambda a, x, y: a(x, list(y)), "labels: got list"),
        (lambda a, x, y: a({"image": x}), "label: the dict has the keys"),
        (lambda a, x, y: a({"image": x, "label": y, "labels": y}), "exactly one"),
        (lambda a, x, y: a(x, y, patients=["a"]), "patients: got 1 ids for 12 rows"),
        (lambda a, x, y: a(tv_tensors.Mask(x), y), "got a Mask"),
    ],
)
def test_bad_calls_name_what_came_and_the_way_out(call, says):
    """Nothing that is not a batch of grey images with labels goes through in silence."""
    images, labels = batch()
    with pytest.raises((ValueError, TypeError), match=says):
        call(KeyExchangeAugment(MODEL, p=1.0), images, labels)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"p": 1.5}, "p=1.5"),
        ({"strength": -1}, "strength=-1"),
        ({"strength": (1, 0)}, r"strength=\(1, 0\)"),
        ({"detail": "both"}, "detail='both'"),
        ({"label_mode": "hard"}, "label_mode='hard'"),
        ({"mean": (0.5,)}, "give both"),
        ({"mean": (0.5,), "std": (0.0,)}, "std="),
        ({"mean": (0.5,), "std": (0.2,), "value_range": (-1, 1)}, "leave it out"),
        ({"value_range": (1, 0)}, "value_range="),
        ({"classes": ("normal", "sick")}, "these weights exchange"),
    ],
)
def test_bad_options_are_refused_when_it_is_made(options, says):
    """A wrong option fails at once, not in the middle of an epoch."""
    with pytest.raises(ValueError, match=says):
        KeyExchangeAugment(MODEL, **options)
    with pytest.raises(TypeError, match="from_pretrained"):
        KeyExchangeAugment("knee-kl02")
