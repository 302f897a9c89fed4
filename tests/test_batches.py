"""What a batch brings along: patients wherever they are, rows of every nesting and type, and one transfer from a GPU."""

import collections
import copy
import warnings
from typing import NamedTuple

import numpy as np
import pretend_cuda
import pytest
import torch
from test_bank import Knees
from test_transform import MODEL, batch
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from kecae_aug import Gate, KeyExchangeAugment, KeyExchangeDataset, KeyExchangeLoader, LatentBank
from kecae_aug.integrations.albumentations import KeyExchange

IDS = [who for who in "abcdef" for _ in range(2)]  # two knees each, of different labels
NUMBERS = [9_000_001 + i // 2 for i in range(12)]


class Named(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor
    PatientID: list[str]


def within(augment, call):
    """How many exchanges of some calls were within a patient."""
    count = made = 0
    for seed in range(6):
        torch.manual_seed(seed)
        call(augment)
        rows, donors = augment.params.rows.tolist(), augment.params.donors.tolist()
        count += sum(IDS[h] == IDS[d] for h, d in zip(rows, donors, strict=True))
        made += len(rows)
    assert made == 72
    return count


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(IDS, id="texts"),
        pytest.param(tuple(IDS), id="a tuple"),
        pytest.param(np.array(IDS), id="an array of texts"),
        pytest.param(np.array(IDS, dtype=object), id="an array of objects"),
        pytest.param(NUMBERS, id="numbers"),
        pytest.param(torch.tensor(NUMBERS), id="a tensor"),
        pytest.param(torch.tensor(NUMBERS, dtype=torch.float64), id="what a float column makes"),
        pytest.param([torch.tensor(i) for i in NUMBERS], id="0-d tensors"),
        pytest.param(
            [[i, float(i), str(i), f"{i}.0"][k % 4] for k, i in enumerate(NUMBERS)], id="spelt in turn"
        ),
    ],
)
def test_patients_of_any_type(values):
    """As argument, third entry, under a name, or nested: nobody gives a key to himself."""
    x, y = batch(12)
    augment = KeyExchangeAugment(MODEL, p=1.0)
    assert within(augment, lambda a: a(x, y, patients=values)) == 0
    assert within(augment, lambda a: a((x, y, values))) == 0
    assert within(augment, lambda a: a({"image": x, "label": y, "subject_id": values})) == 0
    assert within(augment, lambda a: a(x, y)) > 0


@pytest.mark.parametrize(
    "name",
    [
        "patient",
        "patient_id",
        "PatientID",
        "patient-id",
        "Patient ID",
        "patients",
        "subject",
        "SUBJECT_IDS",
        "pid",
    ],
)
def test_patients_under_any_name(name):
    """In any case, with or without separators; at the top, in metadata, and in a dict for each image."""
    x, y = batch(12)
    augment = KeyExchangeAugment(MODEL, p=1.0)
    rows = [{name: who, "age": 60} for who in IDS]
    for found in (
        {"image": x, "label": y, name: IDS},
        {"image": x, "label": y, "image_meta_dict": {"age": [60] * 12, "more": {name: IDS}}},
        {"image": x, "label": y, "meta": rows},
        (x, y, {name: IDS}),
        [x, y, ["p.png"] * 12, {name: IDS}],
        (x, y, rows),
    ):
        assert within(augment, lambda a, found=found: a(found)) == 0


def test_patients_of_a_namedtuple_and_of_monais_metadata():
    """Fields have names; a MetaTensor's batched metadata too."""
    x, y = batch(12)
    augment = KeyExchangeAugment(MODEL, p=1.0)
    assert within(augment, lambda a: a(Named(x, y, IDS))) == 0
    data = pytest.importorskip("monai.data")
    items = [
        {"image": data.MetaTensor(v, meta={"patient_id": who}), "label": int(t)}
        for v, t, who in zip(x, y, IDS, strict=True)
    ]
    assert within(augment, lambda a: a(data.list_data_collate(items))) == 0


def test_what_is_no_patient():
    """Weights, flags and images in the third place, another length in metadata; an argument and same_patient decide."""
    x, y = batch(12)
    augment = KeyExchangeAugment(MODEL, p=1.0)
    for third in (torch.rand(12) + 0.25, torch.ones(12, dtype=torch.bool), x, "epoch", None, np.eye(12)):
        assert within(augment, lambda a, third=third: a((x, y, third))) > 0
    with pytest.warns(UserWarning, match="passed over"):
        augment({"image": x, "label": y, "meta": {"subject": "knees"}})
    alone = [str(i) for i in range(12)]
    assert within(augment, lambda a: a({"image": x, "label": y, "pid": IDS}, patients=alone)) > 0
    both = KeyExchangeAugment(MODEL, p=1.0, same_patient=True)
    assert within(both, lambda a: a({"image": x, "label": y, "pid": IDS})) > 0


def told(call):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in seen]


def test_words_about_patients_are_said_once():
    """Two entries that disagree, missing ids, lost zeros, a batch of one patient: a warning each, not one a step."""
    x, y = batch(12)
    numbers = list(range(12))
    for said, found in (
        ("'patient' and 'subject' group", {"patient": numbers, "subject": IDS}),
        ("3 of 12 rows have no patient", {"patient_id": ["", None, float("nan"), *IDS[3:]]}),
        ("'0012' and '12'", {"pid": ["0012", "12", *IDS[2:]]}),
        ("are of patient 'a', so none does", {"pid": ["a"] * 12}),
    ):
        augment = KeyExchangeAugment(MODEL, p=1.0)
        words = [told(lambda a=augment, found=found: a({"image": x, "label": y, **found})) for _ in range(3)]
        assert [len(w) for w in words] == [1, 0, 0], said
        assert said in words[0][0]
    agree = {"image": x, "label": y, "patient": NUMBERS, "meta": {"subject_id": IDS}}
    assert told(lambda: KeyExchangeAugment(MODEL, p=1.0)(agree)) == []


def test_rows_without_a_patient_are_patients_of_their_own():
    """A row without an id can give and take, also with another such row."""
    x, y = batch(2)
    augment = KeyExchangeAugment(MODEL, p=1.0)
    with pytest.warns(UserWarning, match="2 of 2 rows have no patient"):
        _, labels = augment(x, y, patients=[None, float("nan")])
    assert labels.tolist() == [1, 0]


def test_a_loop_that_never_exchanges_says_so():
    """A loader that is sorted by class; not where the transform is off, and not once it has exchanged."""
    x, y = batch(4)
    off = KeyExchangeAugment(MODEL, p=1.0).eval()
    assert told(lambda: [off(x, y * 0) for _ in range(30)]) == []
    assert told(lambda: [KeyExchangeAugment(MODEL, p=0.0)(x, y * 0)] * 30) == []
    augment = KeyExchangeAugment(MODEL, p=1.0)
    words = told(lambda: [augment(x, y * 0) for _ in range(45)])
    assert len(words) == 1
    assert "shuffle the loader" in words[0]
    acted = KeyExchangeAugment(MODEL, p=1.0)
    acted(x, y)
    assert told(lambda: [acted(x, y * 0) for _ in range(30)]) == []


def test_append_extends_every_row_of_every_nesting():
    """Arrays, columns, rows, nested containers of any type: as long as the images, hosts' rows last, nothing shared."""
    pandas = pytest.importorskip("pandas")
    x, y = batch(4)
    boxes = [{"boxes": torch.full((i, 4), float(i)), "names": [str(i)]} for i in range(4)]
    given = collections.OrderedDict(
        image=x,
        label=y,
        row=np.arange(4),
        masked=np.ma.masked_equal(np.arange(4), 2),
        nested={"ages": torch.arange(4), "deeper": [("0", "1", "2", "3"), {"row": np.arange(4)}]},
        columns=[torch.arange(4), torch.arange(4)],
        square=[torch.arange(4) for _ in range(4)],  # default_collate of 4 numbers an image
        targets_of_detection=boxes,
        frame=pandas.DataFrame({"age": [50, 51, 52, 53]}),
        named=Named(x, y, ["0", "1", "2", "3"]),
        size=torch.Size([4, 1, 64, 64]),
        epoch=3,
        scale=torch.tensor(2.0),
        other=torch.zeros(7),
        note="four",
    )
    before = copy.deepcopy(given)
    out = KeyExchangeAugment(MODEL, p=1.0, append=True)(given)
    assert type(out) is collections.OrderedDict
    assert list(out) == list(given)
    twice = [0, 1, 2, 3, 0, 1, 2, 3]
    assert out["row"].tolist() == out["nested"]["ages"].tolist() == twice
    assert out["masked"].tolist() == [0, 1, None, 3, 0, 1, None, 3]
    assert out["nested"]["deeper"][0] == tuple(map(str, twice))
    assert out["nested"]["deeper"][1]["row"].tolist() == twice
    assert [c.tolist() for c in out["columns"] + out["square"]] == [twice] * 6
    assert [len(t["boxes"]) for t in out["targets_of_detection"]] == twice
    assert out["frame"]["age"].tolist() == [50 + i for i in twice]
    assert type(out["named"]) is Named
    assert torch.equal(out["named"].image, x[twice])  # another place of the same tensor is another entry
    assert out["named"].PatientID == list(map(str, twice))
    for name in ("size", "epoch", "scale", "other", "note"):
        assert out[name] is given[name]
    out["targets_of_detection"][5]["boxes"].zero_()
    out["targets_of_detection"][5]["names"].append("x")
    for name in ("row", "targets_of_detection", "nested"):
        assert str(given[name]) == str(before[name])


def test_another_place_of_the_same_tensor_stays():
    """{"image": x, "original": x}: the original is what it was."""
    x, y = batch(4)
    out = KeyExchangeAugment(MODEL, p=1.0)({"original": x, "image": x, "label": y, "grade": y})
    assert out["original"] is x
    assert out["grade"] is y
    assert not torch.equal(out["image"], x)
    assert torch.equal(out["label"], 1 - y)


def test_what_cannot_be_extended_is_named():
    """Rather than left short in silence."""
    x, y = batch(4)
    augment = KeyExchangeAugment(MODEL, p=1.0, append=True)
    given = {"image": x, "label": y, "queue": collections.deque(range(4))}
    words = told(lambda: [augment(given) for _ in range(2)])
    assert len(words) == 1
    assert "deque of 4" in words[0]


def test_appended_tv_tensors_stay_what_they_are():
    """A flip afterwards turns image, mask and boxes; channels_last stays, in masks of channels too."""
    x, y = batch(4, channels=3)
    last = x.contiguous(memory_format=torch.channels_last)
    mask = tv_tensors.Mask((last > 0.5).to(torch.uint8))
    boxes = tv_tensors.BoundingBoxes(torch.tensor([[0, 0, 8, 8]] * 4), format="XYXY", canvas_size=(64, 64))
    given = {"image": tv_tensors.Image(last), "mask": mask, "boxes": boxes, "label": y}
    out = KeyExchangeAugment(MODEL, p=1.0, append=True)(given)
    for name, kind in (("image", tv_tensors.Image), ("mask", tv_tensors.Mask)):
        assert type(out[name]) is kind
        assert out[name].is_contiguous(memory_format=torch.channels_last)
    flipped = v2.RandomHorizontalFlip(p=1.0)(out)
    assert torch.equal(flipped["image"][:4], last.flip(-1))
    assert torch.equal(flipped["mask"], mask.repeat(2, 1, 1, 1).flip(-1))
    assert flipped["boxes"].tolist() == [[56, 0, 64, 8]] * 8
    assert out["boxes"].canvas_size == (64, 64)


def monai_batch(n=4):
    data = pytest.importorskip("monai.data")
    x, y = batch(n)
    items = []
    for i in range(n):
        image = data.MetaTensor(x[i], meta={"filename_or_obj": f"{i}.png", "spacing": torch.tensor([1.0, i])})
        image.push_applied_operation({"class": f"Op{i}"})
        items.append({"image": image, "label": int(y[i])})
    return data, data.list_data_collate(items)


@pytest.mark.parametrize("n", [2, 4])  # 2: as long as a spacing, 4: as long as an affine matrix
def test_metadata_of_appended_rows_is_the_hosts(n):
    """decollate_batch gives every row its own file, affine and history."""
    data, given = monai_batch(n)
    out = KeyExchangeAugment(MODEL, p=1.0, append=True)(given)
    rows = data.decollate_batch(out)
    wanted = [*range(n), *range(n)]
    assert [r["image"].meta["filename_or_obj"] for r in rows] == [f"{i}.png" for i in wanted]
    assert [r["image"].meta["spacing"].tolist() for r in rows] == [[1.0, i] for i in wanted]
    assert [r["image"].applied_operations for r in rows] == [[{"class": f"Op{i}"}] for i in wanted]
    assert all(r["image"].meta["affine"].shape == (4, 4) for r in rows)


def test_metadata_of_a_whole_batch_is_not_extended():
    """A MetaTensor that was not collated has one affine for all images, of as many rows as there may be images."""
    data = pytest.importorskip("monai.data")
    x, y = batch(4)
    out, _ = KeyExchangeAugment(MODEL, p=1.0, append=True)(data.MetaTensor(x, meta={"spacing": 0.1}), y)
    assert out.affine.shape == (4, 4)
    assert len(out) == 8


@pytest.mark.parametrize("options", [{"p": 1.0}, {"p": 1.0, "append": True}, {"p": 0.0}, {"append": 3}])
def test_the_callers_metadata_is_never_shared(options):
    """Whoever writes to the result's does not write to the batch's, and rows do not share theirs."""
    _, given = monai_batch()
    out = KeyExchangeAugment(MODEL, **options)(given)
    out["image"].meta["note"] = "exchanged"
    out["image"].meta["spacing"].zero_()
    out["image"].applied_operations[0].append({"class": "Later"})
    assert "note" not in given["image"].meta
    assert given["image"].meta["spacing"][1].tolist() == [1.0, 1.0]
    assert given["image"].applied_operations[0] == [{"class": "Op0"}]
    if len(out["image"]) > 4:
        assert len(out["image"].applied_operations[-1]) == 1


@pytest.mark.parametrize("k", [1, 3, 8, 20])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_a_fixed_number_of_added_rows(k, p):
    """As many at every step: each row once before any comes again, always with another class's key."""
    x, y = batch(8)
    augment = KeyExchangeAugment(MODEL, p=p, append=k)
    for seed in range(4):
        torch.manual_seed(seed)
        out = augment({"image": x, "label": y, "row": np.arange(8)})
        rows = augment.params.rows
        assert len(out["image"]) == len(out["label"]) == len(out["row"]) == 8 + k
        assert torch.equal(out["image"][:8], x)
        assert out["row"][8:].tolist() == rows.tolist()
        assert torch.equal(out["label"][8:], 1 - y[rows])
        counts = torch.bincount(rows, minlength=8)
        assert counts.max() - counts.min() <= 1
        again = augment.replay(x, y, params=augment.params)
        torch.testing.assert_close(again[0], out["image"], atol=1e-5, rtol=0)
        assert torch.equal(again[1], out["label"])


def test_a_fixed_number_where_nothing_can_exchange():
    """Rows are repeated as they are, which is said once; one grade without weights never is a host of its own."""
    x, y = batch(4)
    augment = KeyExchangeAugment(MODEL, append=6, label_mode="soft")
    words = told(lambda: [augment(x, y * 0) for _ in range(3)])
    assert len(words) == 1
    assert "repeated as they are" in words[0]
    out, labels = augment(x, y * 0)
    assert torch.equal(out[4:], x[augment.params.rows])
    assert torch.equal(labels, torch.tensor([[1.0, 0.0]]).repeat(10, 1))
    assert len(augment(x[:0], y[:0])[0]) == 0
    some = KeyExchangeAugment(MODEL, append=6, classes=("0", "1", "2"))
    _, labels = some(x, torch.tensor([0, 1, 1, 2]))
    assert sorted(labels[4:].tolist()) == [0, 0, 0, 2, 2, 2]


def test_append_lengthens_columns_of_pandas_by_position():
    """A custom collate may leave a Series whose index is anything."""
    x, y = batch(12)
    pd = pytest.importorskip("pandas")
    given = {"image": x, "label": y, "ages": pd.Series(range(12), index=range(11, -1, -1))}
    augment = KeyExchangeAugment(MODEL, p=1.0, append=5)
    frame = pd.DataFrame({"row": range(12)})
    out = augment({**given, "frame": frame})
    wanted = [*range(12), *augment.params.rows.tolist()]
    assert out["ages"].tolist() == out["frame"]["row"].tolist() == wanted
    assert len(frame) == 12


def test_append_tells_columns_from_rows_where_there_are_as_many():
    """default_collate makes two columns of two numbers, or texts, an image; a batch of two has two of each."""
    x, _ = batch(2)
    item = {"image": x[0], "label": 0, "size": (64, 48), "names": ["left", "a.png"]}
    other = {"image": x[1], "label": 1, "size": (32, 16), "names": ["right", "b.png"]}
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


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("k", [1, 20])
@pytest.mark.parametrize("kind", ["bank", "gate rejects all", "gate and one class"])
def test_a_fixed_number_with_a_bank_and_with_a_gate(k, kind, bank):
    """Compiled and DDP steps get one shape: whatever the batch, just k rows more, each with a label of its own image."""
    x, y = batch(8)
    reject = Gate([lambda x: torch.zeros(len(x), 2)], classes=("0", "2"), min_probability=0.9)
    labels = y * 0 if "one class" in kind else y
    augment = KeyExchangeAugment(
        MODEL, p=0.0, append=k, **({"bank": bank} if kind == "bank" else {"gate": reject})
    )
    images, out = augment(x, labels)
    rows, donors = augment.params.rows, augment.params.donors
    assert len(images) == len(out) == 8 + k
    assert max(np.bincount(rows)) <= -(-k // 8)  # every row once before any comes again
    if kind == "bank":
        assert (donors >= 0).all()
        assert torch.equal(out[8:], 1 - labels[rows])
    else:
        assert (donors == -1).all()
        assert torch.equal(images[8:], x[rows])
        assert torch.equal(out[8:], labels[rows])
    again, labels_again = augment.replay(x, labels, params=augment.params)
    torch.testing.assert_close(again, images)
    assert torch.equal(labels_again, out)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "yes", None])
def test_append_takes_no_other_number(wrong):
    """0 is not False."""
    with pytest.raises(ValueError, match="append="):
        KeyExchangeAugment(MODEL, append=wrong)


@pytest.mark.parametrize("append", [False, True, 3])
@pytest.mark.parametrize("one_hot", [False, True])
def test_soft_labels_have_one_form(append, one_hot):
    """(B, K) floats in training, with nothing to exchange, in eval and switched off, so that one loss serves all."""
    x, y = batch(6)
    augment = KeyExchangeAugment(MODEL, p=1.0, append=append, label_mode="soft")

    def of(labels):
        given = torch.nn.functional.one_hot(labels, 2) if one_hot else labels
        return augment(x, given)[1]

    forms = [of(y), of(y * 0)]
    augment.eval()
    forms.append(of(y))
    augment.train()
    augment.enabled = False
    forms.append(of(y))
    assert all(f.dtype == torch.float32 and f.shape[1] == 2 for f in forms)
    assert torch.equal(forms[2], torch.nn.functional.one_hot(y, 2).float())
    assert torch.equal(forms[2], forms[3])


def test_labels_getter_finds_labels_anywhere():
    """As of torchvision's CutMix; what it returns must be of the batch, whose images must be unmistakable."""
    x, y = batch(4)
    options = {"p": 1.0, "labels_getter": lambda b: b["target"]["grade"]}
    given = {"radiograph": x, "target": {"grade": y, "site": ["a", "b", "c", "d"]}}
    for append in (False, True):
        out = KeyExchangeAugment(MODEL, append=append, **options)(given)
        assert torch.equal(out["target"]["grade"][-4:], 1 - y)
        assert not torch.equal(out["radiograph"][-4:], x)
        assert len(out["target"]["site"]) == len(out["radiograph"])
    with pytest.raises(ValueError, match="2 tensors"):
        KeyExchangeAugment(MODEL, **options)({**given, "mask": x})
    marked = {**given, "mask": x, "radiograph": tv_tensors.Image(x)}
    assert KeyExchangeAugment(MODEL, **options)(marked)["mask"] is x
    with pytest.raises(ValueError, match="not in the batch"):
        KeyExchangeAugment(MODEL, labels_getter=lambda b: b["target"]["grade"] + 0)(given)


@pytest.mark.parametrize(
    "form",
    [lambda x, y, p: (x, y, p), lambda x, y, p: {"image": x, "label": y, "pid": p, "meta": {"subject": p}}],
)
@pytest.mark.parametrize("options", [{"append": 4}, {"label_mode": "soft", "detail": "host"}])
def test_a_batch_on_a_gpu_comes_over_once(form, options):
    """Labels, patients and what must be known of the images in one transfer; after it nothing waits."""
    x, y = batch(12, channels=3)
    ids = torch.tensor(NUMBERS, dtype=torch.float64) * 1000  # 34 bits: more than a float32 holds
    augment = KeyExchangeAugment(MODEL, p=1.0, **options)
    augment._exchanger._copies[pretend_cuda.CUDA] = pretend_cuda.Network(augment._exchanger.fast)
    torch.manual_seed(0)
    augment(form(x, y, ids))
    wanted = augment.params
    torch.manual_seed(0)
    with pretend_cuda.pretend() as watch, torch.no_grad():
        there = form(*(pretend_cuda.PretendCuda(v) for v in (x, y, ids)))
        plan = augment.plan_batch(there)
        assert len(watch.waits) == 1, watch.waits
        augment.apply_plan(plan, there)
        assert len(watch.waits) == 1, watch.waits
    assert torch.equal(augment.params.donors, wanted.donors)
    assert all(IDS[h] != IDS[d] for h, d in zip(wanted.rows.tolist(), wanted.donors.tolist(), strict=True))


def test_under_another_default_device():
    """torch.set_default_device (here meta, as cuda is where there is one): a batch on the CPU is exchanged there."""
    x, y = batch(8)
    augments = [
        KeyExchangeAugment(MODEL, p=1.0, strength=(0.2, 0.9), detail="host"),
        KeyExchangeAugment(MODEL, append=20, mean=(0.0,), std=(1.0,), label_mode="soft"),
    ]
    torch.set_default_device("meta")
    try:
        for augment in augments:
            for call in (lambda a: a(x, y, patients=NUMBERS[:8]), lambda a: a.replay(x, y, params=a.params)):
                images, labels = call(augment)
                assert images.device.type == labels.device.type == "cpu"
    finally:
        torch.set_default_device(None)


def test_sets_banks_and_files_under_another_default_device(tmp_path):
    """What draws, indexes and prepares on the CPU says so: bank, data set, alignment, albumentations, the loader."""
    from kecae_aug.data import Preprocessing, RadiographFolder
    from kecae_aug.generate import generate
    from kecae_aug.phantom import write_phantoms

    x, y = batch(12)
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
        (made,) = KeyExchangeLoader([(x, y)], KeyExchangeAugment(MODEL, p=1.0), device="cpu")
        assert made[0].device.type == "cpu"
        image = np.zeros((64, 64), np.uint8)
        call = {"image": image, "label": 0, "key_exchange_metadata": [{"image": image + 9, "label": 1}]}
        assert KeyExchange(MODEL, p=1.0)(**call)["label"] == 1
    finally:
        torch.set_default_device(None)
