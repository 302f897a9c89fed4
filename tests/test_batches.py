"""Batches as loaders give them: whose knee it is, every entry of a batch with added rows, labels in one form."""

from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from test_bank import MODEL, Knees
from torch.utils.data import DataLoader, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from kecae_aug import Gate, KeyExchangeAugment, KeyExchangeDataset, KeyExchangeLoader, LatentBank
from kecae_aug.integrations.albumentations import KeyExchange

NAMES = [name for name in "abcdef" for _ in range(2)]  # two knees each, of different labels
NUMBERS = [i // 2 for i in range(12)]
X = torch.rand(12, 1, 64, 64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1] * 6)
Fields = namedtuple("Fields", "image label age patient_id")
Pair = namedtuple("Pair", "row age")
quiet = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def within(monkeypatch):
    """How many of the knees that a transform would make in 15 calls are of one patient; nothing is decoded."""
    monkeypatch.setattr(KeyExchangeAugment, "_exchanged", lambda self, images, plan: images[plan.params.rows])

    def count(batch, **call):
        augment = KeyExchangeAugment(MODEL, p=1.0)
        torch.manual_seed(0)
        same = 0
        for _ in range(15):
            augment(*batch, **call) if isinstance(batch, tuple) and call else augment(batch)
            assert len(augment.params.rows) == 12
            pairs = zip(augment.params.rows.tolist(), augment.params.donors.tolist(), strict=True)
            same += sum(NUMBERS[host] == NUMBERS[donor] for host, donor in pairs)
        return same

    return count


ROWS = {
    "texts": NAMES,
    "a tuple": tuple(NAMES),
    "integers": torch.tensor(NUMBERS),
    "floats of pandas": torch.tensor(NUMBERS).double(),
    "numpy": np.array(NUMBERS),
    "numpy texts": np.array(NAMES),
    "0-d tensors": [torch.tensor(i) for i in NUMBERS],
    "floats": [float(i) for i in NUMBERS],
    "bytes": [name.encode() for name in NAMES],
}
COLUMNS = {"a column of a matrix": torch.tensor(NUMBERS)[:, None], "texts in a list": [tuple(NAMES)]}


def test_without_patients_they_do_give_to_themselves(within):
    """What the counts of the other tests would be if ids were dropped: the check can fail."""
    assert within((X, Y)) > 10


@pytest.mark.parametrize("ids", ROWS.values(), ids=ROWS)
def test_patients_in_every_form_are_heeded_as_argument_and_as_third_entry(within, ids):
    """(images, labels, patients), as a DataLoader gives it, means what patients= means, whatever holds the ids."""
    assert within((X, Y), patients=ids) == 0
    assert within((X, Y, ids)) == 0
    assert within([X, Y, ids]) == 0


@pytest.mark.parametrize(
    "key",
    [
        "patient",
        "patient_id",
        "patients",
        "subject_id",
        "PatientID",
        "patientId",
        "subject",
        "pid",
        "SUBJECT-ID",
    ],
)
def test_patients_under_the_names_of_others_loaders_are_heeded(within, key):
    """DICOM's, BIDS's and public loaders' own spelling of the entry."""
    assert within({"image": X, "label": Y, key: NAMES}) == 0


@pytest.mark.parametrize("ids", COLUMNS.values(), ids=COLUMNS)
def test_ids_that_were_collated_as_a_column_are_heeded(within, ids):
    """default_collate makes (B, 1) of ids in tensors and a list of one tuple of ids in lists: both were lost in silence."""
    assert within({"image": X, "label": Y, "patient_id": ids}) == 0
    assert within((X, Y, ids)) == 0


@pytest.mark.parametrize(
    "batch",
    [
        {"image": X, "label": Y, "meta": {"deep": {"patient_id": NAMES}}},
        (X, Y, {"age": torch.arange(12), "patient_id": NAMES}),
        [X, Y, torch.rand(12), {"subject": NAMES}],
        Fields(X, Y, torch.rand(12), NAMES),
        {"image": X, "label": Y, "meta": Fields(None, None, None, NAMES)},
    ],
    ids=["nested dict", "a dict as third entry", "as fourth", "namedtuple", "namedtuple in a dict"],
)
def test_patients_at_any_depth_are_heeded(within, batch):
    """(images, labels, meta) is what most medical loaders give."""
    assert within(batch) == 0


def test_patients_from_a_loader_are_heeded(within):
    """A data set of (image, label, id) through DataLoader and KeyExchangeLoader, as it stands."""
    items = [(X[i], int(Y[i]), NAMES[i]) for i in range(12)]
    augment = KeyExchangeAugment(MODEL, p=1.0)
    loader = KeyExchangeLoader(DataLoader(items, batch_size=12), augment, device="cpu")
    for _ in range(20):
        (batch,) = loader
        assert list(batch[2]) == NAMES
        for host, donor in zip(augment.params.rows.tolist(), augment.params.donors.tolist(), strict=True):
            assert NAMES[host] != NAMES[donor]


def test_an_entry_called_patient_that_cannot_be_read_is_spoken_of(within, recwarn):
    """Nothing that looks like patients is dropped without a word; the word is said once, and not with same_patient."""
    batch = {"image": X, "label": Y, "patient": torch.rand(12, 3)}
    assert within(batch) > 0
    told = [str(w.message) for w in recwarn if "'patient' (Tensor of shape (12, 3))" in str(w.message)]
    assert len(told) == 1
    recwarn.clear()
    KeyExchangeAugment(MODEL, p=1.0, same_patient=True)(batch)
    assert not recwarn


def test_a_row_without_a_patient_is_a_patient_of_its_own_and_that_is_said_once(recwarn):
    """None, NaN and "" are one thing: exchanged with anybody, counted in one warning in the life of the transform."""
    ids = ["a", None, float("nan"), ""] + ["b"] * 8
    augment = KeyExchangeAugment(MODEL, p=1.0)
    for _ in range(3):
        augment(X, Y, patients=ids)
        assert {1, 2, 3} <= set(augment.params.rows.tolist())
    assert len(recwarn) == 1
    assert "patients: 3 of 12 rows have no patient" in str(recwarn[0].message)


def test_a_batch_of_one_patient_says_why_nothing_happens():
    """A third entry that is the same in every row (a site, a fold) would switch the exchange off in silence."""
    augment = KeyExchangeAugment(MODEL, p=1.0)
    with pytest.warns(UserWarning, match="all 12 rows that could exchange are of patient '7'"):
        out = augment((X, Y, torch.full((12,), 7)))
    assert torch.equal(out[0], X)
    with pytest.warns(
        UserWarning, match="'patient' and 'subject_id' group its rows differently; 'patient' is taken"
    ):
        augment({"image": X, "label": Y, "patient": NAMES, "subject_id": [*NAMES[::-1][1:], "z"]})


@quiet
def test_a_third_entry_that_is_no_id_is_none():
    """Weights, masks and boxes in the third place are not taken for patients."""
    for third in (torch.rand(12), torch.rand(12) > 0.5, torch.rand(12, 4), ["a"] * 5, "abcdefghijkl", None):
        augment = KeyExchangeAugment(MODEL, p=1.0)
        augment((X, Y, third))
        assert len(augment.params.rows) == 12


def test_keys_of_hugging_face_and_of_public_loaders():
    """{'pixel_values', 'labels'}, {'img', 'label'}, {'images', 'targets'}: exchanged, and the same keys come back."""
    for image, label in (
        ("pixel_values", "labels"),
        ("img", "label"),
        ("images", "targets"),
        ("image", "target"),
    ):
        out = KeyExchangeAugment(MODEL, p=1.0)({label: Y, image: X})
        assert list(out) == [label, image]
        assert torch.equal(out[label], 1 - Y)


def test_append_lengthens_whatever_has_a_row_for_each_image():
    """Every kind of column, at any depth, in its own type; what has no rows stays, and the caller's batch is not touched."""
    rows = list(range(12))
    records = np.rec.array([(i, f"{i}") for i in rows], names="n,s")
    batch = {
        "image": X,
        "label": Y,
        "array": np.arange(12),
        "objects": np.array(NAMES, dtype=object),
        "records": records,
        "masked": np.ma.masked_equal(np.arange(12), 3),
        "matrix": np.arange(36).reshape(12, 3),
        "list": [f"{i}.png" for i in rows],
        "dicts": [{"row": i} for i in rows],
        "meta": {"age": torch.arange(12), "deep": [torch.arange(12), ("one", tuple(rows))]},
        "ordered": OrderedDict(age=torch.arange(12)),
        "fields": Pair(torch.arange(12), rows),
        "epoch": 3,
        "text": "abcdefghijkl",
        "three": [1, 2, 3],
        "scalar": torch.tensor(12),
    }
    out = KeyExchangeAugment(MODEL, p=1.0, append=5)(batch)
    assert len(out["image"]) == len(out["label"]) == 17
    added = out["array"][12:].tolist()
    assert sorted(set(added)) == sorted(added)
    wanted = rows + added
    assert out["array"].tolist() == wanted
    assert out["objects"].dtype == object
    assert out["objects"].tolist() == [NAMES[i] for i in wanted]
    assert isinstance(out["records"], np.recarray)
    assert out["records"].n.tolist() == wanted
    assert out["masked"].mask.tolist() == [i == 3 for i in wanted]
    assert out["matrix"][:, 0].tolist() == [3 * i for i in wanted]
    assert out["list"] == [f"{i}.png" for i in wanted]
    assert [d["row"] for d in out["dicts"]] == wanted
    assert out["dicts"][12] is not batch["dicts"][added[0]]
    assert out["meta"]["age"].tolist() == wanted
    assert out["meta"]["deep"][0].tolist() == wanted
    assert out["meta"]["deep"][1] == ("one", tuple(wanted))
    assert isinstance(out["ordered"], OrderedDict)
    assert out["ordered"]["age"].tolist() == wanted
    assert isinstance(out["fields"], Pair)
    assert (out["fields"].row.tolist(), out["fields"].age) == (wanted, wanted)
    assert (out["epoch"], out["text"], out["three"], int(out["scalar"])) == (3, "abcdefghijkl", [1, 2, 3], 12)
    assert len(batch["list"]) == len(batch["meta"]["age"]) == 12


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


def test_append_keeps_what_torchvision_turns_with_the_image():
    """Masks and boxes stay tv_tensors, so that a flip afterwards turns them with the image."""
    masks = (X[:, 0] > 0.5).to(torch.uint8)
    boxes = torch.tensor([[1, 1, 5, 5]]).repeat(12, 1)
    batch = {
        "image": tv_tensors.Image(X),
        "label": Y,
        "mask": tv_tensors.Mask(masks),
        "box": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(64, 64)),
    }
    out = v2.RandomHorizontalFlip(p=1.0)(KeyExchangeAugment(MODEL, p=1.0, append=4)(batch))
    assert [type(v).__name__ for v in out.values()] == ["Image", "Tensor", "Mask", "BoundingBoxes"]
    assert {len(v) for v in out.values()} == {16}
    assert torch.equal(out["image"][:12], X.flip(-1))
    assert torch.equal(out["mask"][:12], masks.flip(-1))
    assert out["box"][15].tolist() == [59, 1, 63, 5]


def test_a_metatensor_has_the_meta_data_of_each_of_its_rows():
    """Decollated after append, each exchanged knee is its host's; and the caller's meta data is not shared."""
    monai = pytest.importorskip("monai.data")
    items = [
        {"image": monai.MetaTensor(x, meta={"filename_or_obj": f"{i}.png"}), "label": y}
        for i, (x, y) in enumerate(zip(X[:4], Y, strict=False))
    ]
    augment = KeyExchangeAugment(MODEL, p=1.0, append=True)
    given = monai.list_data_collate(items)
    out = augment(given)
    names = [d["image"].meta["filename_or_obj"] for d in monai.decollate_batch(out)]
    assert names == [f"{i}.png" for i in [*range(4), *augment.params.rows.tolist()]]
    for append in (False, True):
        out = KeyExchangeAugment(MODEL, p=1.0, append=append)(given)
        out["image"].meta["note"] = "exchanged"
        assert "note" not in given["image"].meta


@pytest.mark.parametrize("append", [False, True, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_stays(append, channels):
    """A convolution in channels_last would otherwise copy every batch again."""
    last = X.expand(-1, channels, -1, -1).contiguous(memory_format=torch.channels_last)
    out, _ = KeyExchangeAugment(MODEL, p=1.0, append=append)(last, Y)
    assert out.is_contiguous(memory_format=torch.channels_last)
    out, _ = KeyExchangeAugment(MODEL, p=1.0, append=append)(last.contiguous(), Y)
    assert out.is_contiguous()


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


@quiet
@pytest.mark.parametrize("state", ["train", "eval", "disabled", "nothing to exchange", "one-hot"])
@pytest.mark.parametrize("append", [False, 2])
def test_soft_labels_have_one_form(state, append):
    """(B, K) floats in every state: a validation step, or a switched-off one, is computed with the same loss."""
    augment = KeyExchangeAugment(MODEL, p=1.0, label_mode="soft", strength=0.3, append=append)
    augment.train(state != "eval")
    augment.enabled = state != "disabled"
    labels = torch.zeros_like(Y) if state == "nothing to exchange" else Y
    given = torch.nn.functional.one_hot(labels, 2) if state == "one-hot" else labels
    images, soft = augment(X, given)
    assert soft.shape == (len(images), 2)
    assert soft.dtype == torch.float32
    torch.testing.assert_close(soft.sum(1), torch.ones(len(images)))
    if state in ("train", "one-hot"):
        rows = slice(12, None) if append else slice(None)
        assert sorted(soft[rows].flatten().unique().tolist()) == pytest.approx([0.3, 0.7])
    else:
        assert torch.equal(soft[:12].argmax(1), labels)


def test_labels_getter_finds_labels_in_any_nesting():
    """As of torchvision's CutMix; the images are the one tv_tensor, or the one (B, C, H, W)."""
    batch = {
        "views": [X, {"grade": Y}],
        "masks": tv_tensors.Mask(torch.zeros(12, 1, 64, 64)),
        "patient": NAMES,
    }
    augment = KeyExchangeAugment(MODEL, p=1.0, labels_getter=lambda b: b["views"][1]["grade"], append=3)
    out = augment(batch)
    assert (
        len(out["views"][0])
        == len(out["views"][1]["grade"])
        == len(out["masks"])
        == len(out["patient"])
        == 15
    )
    assert all(
        NAMES[h] != NAMES[d]
        for h, d in zip(augment.params.rows.tolist(), augment.params.donors.tolist(), strict=True)
    )
    loader = KeyExchangeLoader([batch], augment, device="cpu", post=lambda x: x.flip(-1))
    (after,) = loader
    assert torch.equal(after["views"][0][:12], X.flip(-1))
    with pytest.raises(ValueError, match=r"2 tensors \(B, C, H, W\) that could be its images"):
        augment({"views": [X, {"grade": Y}], "other": X.clone()})
    with pytest.raises(ValueError, match="gave a tensor that is not in the batch"):
        KeyExchangeAugment(MODEL, labels_getter=lambda b: b[1] + 0)([X, Y])


def fill(images, colour):
    images = images.clone()
    images[0, :, :, :20] = torch.as_tensor(colour, dtype=torch.float32)[:, None, None].to(images.dtype)
    return images


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = X.expand(-1, 3, -1, -1).clone()


@pytest.mark.parametrize(
    ("images", "options", "word"),
    [
        (lambda: fill(GREY, MEAN), {}, "coloured parts"),
        (lambda: fill((GREY - 0.449) / 0.226, (0.2, 0.0, -0.3)), {"mean": 0.449, "std": 0.226}, "coloured parts"),
        (lambda: (GREY + 0.02 * torch.rand(GREY.shape)).clamp(0, 1), {}, None),
        (lambda: (GREY * 255).byte() ^ (torch.rand(GREY.shape) > 0.5).byte() * 3, {}, None),
        (lambda: X * 1.08 - 0.04, {}, "beyond"),
        (lambda: (X * 1.08 - 0.04) * 255, {"value_range": (0, 255)}, "beyond"),
        (lambda: (X * 1.08 - 0.04) * 2 - 1, {"value_range": (-1, 1)}, "beyond"),
        (lambda: X, {"mean": 0.0, "std": 1.0}, None),
        (lambda: GREY, {"mean": (0, 0, 0), "std": (1, 1, 1)}, None),
    ],
    ids=[
        "fill of the mean colour", "fill after Normalize", "noise a channel", "JPEG chroma", "bicubic overshoot",
        "overshoot of 0-255", "overshoot of -1 to 1", "mean 0, std 1", "mean 0, std 1 a channel",
    ],
)  # fmt: skip
def test_what_augmentations_leave_is_exchanged_and_said_once(images, options, word, recwarn):
    """One pixel of 50,000 does not end an epoch: it is repaired within the tolerance, with one word about it or none."""
    augment = KeyExchangeAugment(MODEL, p=1.0, **options)
    given = images()
    for _ in range(2):
        out, _ = augment(given, Y)
        assert len(augment.params.rows) == 12
        assert out.shape == given.shape
    told = [str(w.message) for w in recwarn]
    assert len(told) == (word is not None)
    assert all(word in sentence for sentence in told)


def test_what_is_really_colour_or_another_range_is_refused_with_the_usual_causes():
    """The tolerance is no licence: natural images and undeclared ranges end with the way out."""
    augment = KeyExchangeAugment(MODEL, p=1.0)
    with pytest.raises(ValueError, match="3 channels that differ in most of their area"):
        augment(torch.rand(12, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3), Y)
    for wrong in (X * 1.2 - 0.1, X * 2 - 1, X * 255, torch.full_like(X, float("nan"))):
        with pytest.raises(ValueError, match=r"bicubic overshoot.*a fill or an augmentation before the"):
            augment(wrong, Y)


@quiet
@pytest.mark.parametrize(
    "options",
    [{}, {"append": True}, {"append": 3}, {"label_mode": "soft"}, {"strength": (0.2, 1.5), "detail": "host"}],
)
def test_another_default_device_changes_nothing(options, bank):
    """torch.set_default_device('cuda') is for the user's own tensors; 'meta' stands for it: any use of it is an error."""
    wanted = []
    for device in (None, "meta"):
        torch.set_default_device(device)
        try:
            torch.manual_seed(3)
            made = [
                KeyExchangeAugment(MODEL, p=1.0, **options, **more)(X, Y) for more in ({}, {"donors": bank})
            ]
        finally:
            torch.set_default_device(None)
        wanted.append([t for pair in made for t in pair])
    for first, second in zip(*wanted, strict=True):
        assert torch.equal(first, second)


def test_sets_banks_and_files_under_another_default_device(tmp_path):
    """What draws, indexes and prepares on the CPU says so: bank, data set, alignment, albumentations, the loader."""
    from kecae_aug.data import Preparation, RadiographFolder
    from kecae_aug.data.phantom import write_phantoms
    from kecae_aug.generate import generate

    whole = Preparation(64, mirror_right=True, fix_inverted=True, contrast=(1, 99), align=True)
    torch.set_default_device("meta")
    try:
        folder = write_phantoms(tmp_path / "knees", train_patients=3, val_patients=2, image_size=64)
        knees = RadiographFolder(folder, "train", preparation=whole)
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
