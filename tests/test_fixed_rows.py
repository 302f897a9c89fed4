"""A fixed number of added rows with banks and gates, columns beside rows, and another default device."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from test_bank import MODEL, Knees
from torch.utils.data import default_collate

from kecae_aug import Gate, KeyExchangeAugment, KeyExchangeDataset, KeyExchangeLoader, LatentBank
from kecae_aug.integrations.albumentations import KeyExchange

NAMES = [name for name in "abcdef" for _ in range(2)]  # two knees each, of different labels
NUMBERS = [i // 2 for i in range(12)]
X = torch.rand(12, 1, 64, 64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1] * 6)
Fields = namedtuple("Fields", "image label age patient_id")
Pair = namedtuple("Pair", "row age")
quiet = pytest.mark.filterwarnings("ignore::UserWarning")


def test_append_lengthens_columns_of_pandas_by_position():
    """A custom collate may leave a Series whose index is anything."""
    pd = pytest.importorskip("pandas")
    batch = {"image": X, "label": Y, "ages": pd.Series(range(12), index=range(11, -1, -1))}
    augment = KeyExchangeAugment(MODEL, p=1.0, append=5)
    frame = pd.DataFrame({"row": range(12)})
    out = augment({**batch, "frame": frame})
    wanted = [*range(12), *augment.params.rows.tolist()]
    assert out["ages"].tolist() == out["frame"]["row"].tolist() == wanted
    assert len(frame) == 12


def test_append_tells_columns_from_rows_where_there_are_as_many():
    """default_collate makes two columns of two numbers, or texts, an image; a batch of two has two of each."""
    item = {"image": X[0], "label": 0, "size": (64, 48), "names": ["left", "a.png"]}
    other = {"image": X[1], "label": 1, "size": (32, 16), "names": ["right", "b.png"]}
    out = KeyExchangeAugment(MODEL, p=1.0, append=True)(default_collate([item, other]))
    first, second = out["size"]
    assert first[:2].tolist() == [64, 32]
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [(32, 16)] * 2 + [(64, 48)] * 2
    assert [sorted(column) for column in out["names"]] == [
        ["left"] * 2 + ["right"] * 2,
        ["a.png"] * 2 + ["b.png"] * 2,
    ]


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return LatentBank.build(Knees(), MODEL, tmp_path_factory.mktemp("bank") / "b")


@quiet
@pytest.mark.parametrize("k", [1, 7, 30])
@pytest.mark.parametrize("kind", ["batch", "one class", "bank", "gate rejects all", "gate and one class"])
def test_a_fixed_number_of_added_rows_is_fixed(k, kind, bank):
    """Compiled and DDP steps get one shape: whatever the batch, just k rows more, each with a label of its own image."""
    reject = Gate([lambda x: torch.zeros(len(x), 2)], classes=("0", "2"), min_probability=0.9)
    options = {"donors": bank} if kind == "bank" else {"gate": reject} if "gate" in kind else {}
    labels = torch.zeros_like(Y) if "one class" in kind else Y
    augment = KeyExchangeAugment(MODEL, p=0.0, append=k, **options)
    images, out = augment(X, labels)
    assert len(images) == len(out) == 12 + k
    assert torch.equal(images[:12], X)
    rows, donors = augment.params.rows, augment.params.donors
    assert len(rows) == k
    assert max(np.bincount(rows)) <= -(-k // 12)  # every row once before any comes again
    if kind in ("batch", "bank"):
        assert (donors >= 0).all()
        assert torch.equal(out[12:], 1 - labels[rows])
    else:
        assert (donors == -1).all()
        assert torch.equal(images[12:], X[rows])
        assert torch.equal(out[12:], labels[rows])
    again, labels_again = augment.replay(X, labels, params=augment.params)
    torch.testing.assert_close(again, images)
    assert torch.equal(labels_again, out)


def test_repeated_rows_are_spoken_of_and_not_offered_to_the_gate():
    """A step without an exchange is no secret, and a copy of a host is not counted as an accepted knee."""
    gate = Gate([], classes=("0", "2"), max_distance=1.0)
    with pytest.warns(UserWarning, match="append=2: this batch has no two rows that can exchange"):
        KeyExchangeAugment(MODEL, append=2, gate=gate)(X, torch.zeros_like(Y))
    assert gate.counts["offered"] == 0


def fill(images, colour):
    images = images.clone()
    images[0, :, :, :20] = torch.as_tensor(colour, dtype=torch.float32)[:, None, None].to(images.dtype)
    return images


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = X.expand(-1, 3, -1, -1).clone()


def test_sets_banks_and_files_under_another_default_device(tmp_path):
    """What draws, indexes and prepares on the CPU says so: bank, data set, alignment, albumentations, the loader."""
    from kecae_aug.data import Preprocessing, RadiographFolder
    from kecae_aug.generate import generate
    from kecae_aug.phantom import write_phantoms

    whole = Preprocessing(64, mirror_right=True, fix_inverted=True, contrast=(1, 99), align=True)
    torch.set_default_device("meta")
    try:
        folder = write_phantoms(tmp_path / "knees", train_patients=3, val_patients=2, image_size=64)
        knees = RadiographFolder(folder, "train", preprocessing=whole)
        bank = LatentBank.build(knees, MODEL, tmp_path / "bank", residual=True)
        for train in (
            KeyExchangeDataset(knees, MODEL, 2, strength=(0.3, 0.8), detail="host"),
            KeyExchangeDataset(None, MODEL, 2, bank=bank, real=False, detail="host"),
        ):
            assert train[len(train) - 1][0].device.type == "cpu"
        gate = Gate([lambda x: x.mean((2, 3)).expand(-1, 2)], classes=("0", "2"), min_probability=0.1)
        generate(KeyExchangeDataset(knees, MODEL, 2, real=False), tmp_path / "out", gate=gate, say=str)
        (batch,) = KeyExchangeLoader([(X, Y)], KeyExchangeAugment(MODEL, p=1.0), device="cpu")
        assert batch[0].device.type == "cpu"
        image = np.zeros((64, 64), np.uint8)
        call = {"image": image, "label": 0, "key_exchange_metadata": [{"image": image + 9, "label": 1}]}
        assert KeyExchange(MODEL, p=1.0)(**call)["label"] == 1
    finally:
        torch.set_default_device(None)
