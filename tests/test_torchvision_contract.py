"""KeyExchangeAugment as users of torchvision's v2.Transform and MixUp know it; editors and the paper's reading too."""

import collections
import inspect
import pickle
from typing import NamedTuple

import pytest
import torch
from test_transform import MODEL, batch
from torch.utils.data import DataLoader, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from kecae_aug import EngineOptions, KeyExchangeAugment
from kecae_aug.engine.arguments import AugmentOptions


class Backwards(NamedTuple):
    label: torch.Tensor
    image: torch.Tensor


class Encoding(collections.UserDict):
    """As of transformers: a Mapping that is no dict."""


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda x, y: (x, y), lambda b: b),
        (lambda x, y: {"pixel_values": x, "labels": y}, lambda b: (b["pixel_values"], b["labels"])),
        (lambda x, y: Encoding(labels=y, pixel_values=x), lambda b: (b["pixel_values"], b["labels"])),
        (lambda x, y: Backwards(y, x), lambda b: (b.image, b.label)),
        (lambda x, y: [[x, y], ["a.png"]], lambda b: b[0]),
        (lambda x, y: {"epoch": 3, "data": {"image": x, "target": y}}, lambda b: tuple(b["data"].values())),
        (lambda x, y: {"batch": (x, y), "names": ["a"]}, lambda b: b["batch"]),
        (lambda x, y: (x, {"labels": y, "image_id": y + 7}), lambda b: (b[0], b[1]["labels"])),
        (lambda x, y: ({"pixel_values": x}, y), lambda b: (b[0]["pixel_values"], b[1])),
    ],
)
def test_any_nesting_of_images_and_labels(wrap, unwrap):
    """The same structure comes back, of the same types, exchanged."""
    images, labels = batch(6)
    given = wrap(images, labels)
    out = KeyExchangeAugment(MODEL, p=1.0)(given)
    assert type(out) is type(given)
    new, new_labels = unwrap(out)
    assert torch.equal(new_labels, 1 - labels)
    assert not torch.equal(new, images)
    assert torch.equal(unwrap(given)[1], labels)


def test_two_batches_in_one_are_refused():
    """Rather than one of them left with its old keys."""
    pair = batch(4)
    for given in ([pair, pair], {"a": pair, "b": pair}):
        with pytest.raises(ValueError, match="2 entries of it could each be the batch"):
            KeyExchangeAugment(MODEL)(given)


@pytest.mark.parametrize(
    "call",
    [
        lambda t, x, y: t(x),
        lambda t, x, y: t(x, y.tolist()),
        lambda t, x, y: t(v2.ToPILImage()(x[0]), y),
        lambda t, x, y: t(x, y[None, None]),
        lambda t, x, y: t(x, torch.zeros(len(x), 7)),
        lambda t, x, y: t(tv_tensors.Mask(x), y),
    ],
)
def test_valueerror_where_mixup_raises_one(call):
    """So that whoever catches MixUp's errors catches these."""
    images, labels = batch(4)
    for transform in (v2.MixUp(num_classes=2), KeyExchangeAugment(MODEL)):
        with pytest.raises(ValueError):  # noqa: PT011 - torchvision's own words differ
            call(transform, images, labels)


def test_labels_getter_takes_what_mixups_takes():
    """A function, "default", and None, with which a call is refused; another name when the transform is made."""
    images, labels = batch(4)
    for getter in ("default", lambda b: b[1]):
        _, new = KeyExchangeAugment(MODEL, p=1.0, labels_getter=getter)((images, labels))
        assert torch.equal(new, 1 - labels)
    for transform in (
        v2.MixUp(num_classes=2, labels_getter=None),
        KeyExchangeAugment(MODEL, labels_getter=None),
    ):
        with pytest.raises(ValueError, match="label"):
            transform(images, labels)
    with pytest.raises(ValueError, match="labels_getter='grade'"):
        KeyExchangeAugment(MODEL, labels_getter="grade")


@pytest.mark.parametrize("append", [False, True, 3])
def test_make_params_and_transform_by_themselves(append):
    """What v2.Transform.forward does with a transform's two methods gives what a call gives."""
    images, labels = batch(8)
    augment = KeyExchangeAugment(MODEL, p=0.7, append=append)
    torch.manual_seed(3)
    wanted = augment({"image": images, "label": labels, "age": torch.arange(8), "name": "x"})
    torch.manual_seed(3)
    params = augment.make_params([images, labels])
    for entry, inpt in (("image", images), ("label", labels), ("age", torch.arange(8)), ("name", "x")):
        out = augment.transform(inpt, params)
        assert out == "x" if entry == "name" else torch.equal(out, wanted[entry])
    patients = torch.arange(8) // 2
    made = KeyExchangeAugment(MODEL, p=1.0).make_params([images, labels, patients])["plan"].params
    assert (patients[made.rows] != patients[made.donors]).all()


@pytest.mark.parametrize("mode", ["one_hot", "soft"])
def test_a_random_choice_with_mixup_gives_one_form(mode):
    """As collate_fn of a DataLoader: (B, K) floats, whichever of the two was chosen, and whatever was exchanged."""
    exchange = KeyExchangeAugment(MODEL, p=0.5, label_mode=mode)
    choice = v2.RandomChoice([exchange, v2.MixUp(num_classes=2)])
    knees = list(zip(*batch(32), strict=True))
    knees = [(image, int(label)) for image, label in knees]
    loader = DataLoader(knees, batch_size=4, collate_fn=lambda items: choice(*default_collate(items)))
    torch.manual_seed(0)
    forms = [(labels.shape, labels.dtype) for _ in range(2) for _, labels in loader]
    assert set(forms) == {((4, 2), torch.float32)}
    assert exchange.params is not None
    images, labels = batch(4)
    whole = KeyExchangeAugment(MODEL, p=1.0, label_mode=mode, strength=0.7)(images, labels)[1]
    fraction = 1.0 if mode == "one_hot" else 0.7
    torch.testing.assert_close(whole[torch.arange(4), 1 - labels], torch.full((4,), fraction))
    assert torch.equal(exchange.eval()(images, labels)[1], torch.eye(2)[labels])


def test_the_options_are_shown_to_an_editor():
    """from_pretrained lists every option of the class with its default; the type that editors read has all of them."""
    options = inspect.signature(KeyExchangeAugment).parameters
    shown = inspect.signature(KeyExchangeAugment.from_pretrained).parameters
    own = {name: v.default for name, v in options.items() if name != "model"}
    assert {name: shown[name].default for name in own} == own
    assert list(shown)[:2] == ["weights", "revision"]
    assert not any(v.kind == v.VAR_KEYWORD for v in shown.values())
    assert set(AugmentOptions.__annotations__) == set(own)
    with pytest.raises(TypeError, match="strenght"):
        KeyExchangeAugment.from_pretrained("phantom", strenght=1.0)


def test_the_papers_reading():
    """p=1.0, strength=1.0, detail="decoder", same_patient=True: every knee is decode(hN + hK'), whoever gave the key."""
    images, labels = batch(2)
    paper = KeyExchangeAugment(
        MODEL, p=1.0, strength=1.0, detail="decoder", same_patient=True, value_range=(-1, 1)
    )
    new, new_labels, _ = paper((images * 2 - 1, labels, ["a", "a"]))
    with torch.no_grad():
        wanted = MODEL.exchange(images * 2 - 1, images.flip(0) * 2 - 1)
    torch.testing.assert_close(new, wanted, atol=1e-5, rtol=0)
    assert torch.equal(new_labels, 1 - labels)
    assert 'p=1.0, strength=1.0, detail="decoder", same_patient=True' in str(KeyExchangeAugment.__doc__)


def test_engine_options():
    """One frozen argument: printed where it differs, pickled, compared by value, refused by the field's name."""
    engine = EngineOptions(chunk_size=4, amp_dtype=torch.bfloat16)
    assert repr(engine) == "EngineOptions(amp_dtype=torch.bfloat16, chunk_size=4)"
    assert pickle.loads(pickle.dumps(engine)) == engine
    for field, wrong in (
        ("amp_dtype", torch.int8), ("channels_last", "yes"), ("chunk_size", 0), ("chunk_size", True), ("compile", None),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{field}="):
            EngineOptions(**{field: wrong})
    with pytest.raises(TypeError, match="engine: got dict"):
        KeyExchangeAugment(MODEL, engine={"chunk_size": 4})
