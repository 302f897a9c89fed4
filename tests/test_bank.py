"""LatentBank: what it gives is what the model would have encoded; what does not fit is refused; nothing is lost."""

import json
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from kecae_aug import KECAE, KeyExchangeAugment, KeyExchangeDataset, LatentBank, load_weights
from kecae_aug.bank import BankError
from kecae_aug.donors import draw_from_bank
from kecae_aug.weights.io import hashes, weights_sha256

torch.manual_seed(0)
MODEL = KECAE.from_preset("tiny").eval()


class Knees(Dataset):
    """Smooth noise that depends on the row only; counts what is read."""

    def __init__(self, n=20, offset=0, patients=True):
        self.n, self.offset, self.reads = n, offset, 0
        self.classes = ["0", "2"]
        self.targets = [i % 2 for i in range(n)]
        if patients:
            self.patients = [f"p{(i + offset) // 2}" for i in range(n)]

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.reads += 1
        g = torch.Generator().manual_seed(1000 * self.offset + i)
        small = torch.rand(1, 1, 8, 8, generator=g)
        return torch.nn.functional.interpolate(small, size=(70, 60), mode="bilinear")[0], self.targets[i]


def images_of(dataset):
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


@pytest.fixture
def bank(tmp_path):
    return LatentBank.build(
        Knees(), MODEL, tmp_path / "bank", dtype=torch.float32, shard_rows=6, residual=True
    )


def test_rows_are_what_the_model_encodes(bank):
    """Across shards, in any order and with repeats; residuals are x - x^ at the model's size."""
    rows = torch.tensor([19, 0, 5, 6, 6])
    augment = KeyExchangeAugment(MODEL)
    x = augment._exchanger.fit(images_of(Knees())[rows] * 2 - 1)
    with torch.no_grad():
        wanted = MODEL.encode(x)
        torch.testing.assert_close(bank.keys(rows), wanted.key, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(bank.non_keys(rows), wanted.non_key, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(bank.residuals(rows), x - MODEL.decode(wanted.sum), atol=1e-4, rtol=1e-4)
    assert [bank.label(r) for r in (0, 1)] == ["0", "2"]
    assert bank.patients[2] == "p1"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_halves_the_files_and_keeps_the_image(tmp_path, dtype):
    """The stored half differs from float32 by less than what 40 dB allows in the decoded image."""
    whole = LatentBank.build(Knees(), MODEL, tmp_path / "whole", dtype=torch.float32)
    half = LatentBank.build(Knees(), MODEL, tmp_path / "half", dtype=dtype)
    size = [sum(p.stat().st_size for p in b.folder.glob("*.safetensors")) for b in (whole, half)]
    assert size[1] < 0.6 * size[0]
    rows = torch.arange(20)
    with torch.no_grad():
        a, b = (MODEL.decode(x.keys(rows) + x.non_keys(rows)) for x in (whole, half))
    assert 10 * torch.log10(4 / (a - b).square().mean()) > 40


def test_the_transform_takes_its_keys_from_it(bank):
    """A batch of one class exchanges too; the donor's label and patient hold; replay repeats the call."""
    augment = KeyExchangeAugment(MODEL, p=1.0, bank=bank)
    images, labels = images_of(Knees())[:4], torch.zeros(4, dtype=torch.int64)
    new, new_labels = (
        augment({"image": images, "label": labels, "patient": ["p0", "p1", "p2", "p3"]})
        .values()
        .__iter__()
        .__next__(),
        None,
    )
    params = augment.params
    assert len(params.rows) == 4
    assert params.bank == bank.fingerprint
    for row, donor in zip(params.rows.tolist(), params.donors.tolist(), strict=True):
        assert bank.label(donor) == "2"
        assert bank.patients[donor] != f"p{row}"
    again, new_labels = augment.replay(images, labels, params=params)
    assert torch.equal(again, new)
    assert (new_labels == 1).all()
    with torch.no_grad():
        x = augment._exchanger.fit(images * 2 - 1)
        wanted = MODEL.decode(MODEL.encode(x).non_key + bank.keys(params.donors))
    square = torch.nn.functional.interpolate(wanted, size=(70, 60), mode="bilinear", antialias=True)
    torch.testing.assert_close(new, (square.clamp(-1, 1) + 1) / 2, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="their donors are rows of bank"):
        KeyExchangeAugment(MODEL).replay(images, labels, params=params)


def test_patients_are_told_apart_even_when_few_remain(tmp_path):
    """One other patient in the bank is found; none means the row passes through."""
    bank = LatentBank.build(Knees(4), MODEL, tmp_path / "b")  # p0: 0, 2; p1: 0, 2
    for _ in range(10):
        assert draw_from_bank(bank, ["0", "2"], ("0", "2"), ["p0", "p0"]).tolist() == [3, 2]
    single = LatentBank.build(Knees(2), MODEL, tmp_path / "c")
    assert draw_from_bank(single, ["0", None], ("0", "2"), ["p0", "p0"]).tolist() == [-1, -1]
    assert draw_from_bank(single, ["0", None], ("0", "2"), None).tolist() == [1, -1]


def test_an_excluded_patient_is_refused(bank, tmp_path):
    """A validation patient in the bank is an error when it is built, before a file is written, and when it is opened."""
    with pytest.raises(BankError, match="share 1 patients"):
        LatentBank(bank.folder, exclude_patients=["p3", "q"])
    LatentBank(bank.folder, exclude_patients=["q"])
    with pytest.raises(BankError, match="share 1 patients"):
        LatentBank.build(Knees(), MODEL, tmp_path / "new", exclude_patients=["p3"])
    assert not (tmp_path / "new").exists()
    nameless = LatentBank.build(Knees(patients=False), MODEL, tmp_path / "nameless")
    with pytest.raises(BankError, match="have no patients"):
        LatentBank(nameless.folder, exclude_patients=["p3"])


def test_other_weights_other_data_and_other_options_are_refused(bank):
    """A bank fits one model and one data set; a second build into the same folder says what differs."""
    torch.manual_seed(1)
    other = KECAE.from_preset("tiny")
    for attempt in (lambda: LatentBank(bank.folder, other), lambda: KeyExchangeAugment(other, bank=bank)):
        with pytest.raises(BankError, match="of other weights"):
            attempt()
    with pytest.raises(BankError, match="residual is True"):
        LatentBank.build(Knees(), MODEL, bank.folder, dtype=torch.float32, shard_rows=6, residual=False)
    with pytest.raises(BankError, match="append=True"):
        LatentBank.build(Knees(8, 5), MODEL, bank.folder, dtype=torch.float32, shard_rows=6, residual=True)


def test_appending(bank):
    """A second set adds its rows after the first's; the same set twice is refused; the fingerprint changes."""
    options = {"dtype": torch.float32, "shard_rows": 6, "residual": True, "append": True}
    longer = LatentBank.build(Knees(8, 50), MODEL, bank.folder, **options)
    assert len(longer) == 28
    assert longer.fingerprint != bank.fingerprint
    assert torch.equal(longer.keys(torch.arange(20)), bank.keys(torch.arange(20)))
    with pytest.raises(BankError, match="is in it already"):
        LatentBank.build(Knees(8, 50), MODEL, bank.folder, **options)


def test_an_interrupted_build_goes_on(tmp_path):
    """After a failure in the middle, whole shards stay, the bank is not taken for whole, and nothing is encoded twice."""

    class Breaks(Knees):
        def __getitem__(self, i):
            if i == 13 and self.broken:
                raise OSError("disk")
            return super().__getitem__(i)

    data = Breaks()
    data.broken = True
    with pytest.raises(OSError, match="disk"):
        LatentBank.build(data, MODEL, tmp_path / "b", shard_rows=5)
    with pytest.raises(BankError, match="2 shards are not there yet"):
        LatentBank(tmp_path / "b")
    assert not list((tmp_path / "b").glob(".*"))
    data.broken, data.reads = False, 0
    bank = LatentBank.build(data, MODEL, tmp_path / "b", shard_rows=5)
    assert data.reads <= 10 + 3  # two shards, and the three rows of the fingerprint
    straight = LatentBank.build(Knees(), MODEL, tmp_path / "s", shard_rows=5)
    assert torch.equal(bank.keys(torch.arange(20)), straight.keys(torch.arange(20)))


def test_ranks_share_a_build(tmp_path):
    """Two ranks make disjoint shards; each waits for the other and has the whole bank."""
    options = {"shard_rows": 3, "world_size": 2}
    with pytest.raises(BankError, match="shards are not there yet"):
        LatentBank.build(Knees(), MODEL, tmp_path / "b", rank=1, wait=0, **options)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(LatentBank.build, Knees(), MODEL, tmp_path / "b", rank=1, wait=60, **options)
        assert len(LatentBank.build(Knees(), MODEL, tmp_path / "b", rank=0, **options)) == 20
        assert len(waiting.result()) == 20


def test_a_killed_build_leaves_whole_shards(tmp_path):
    """SIGKILL in the middle: the next build goes on and gives the same bank."""
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_bank import *
class Slow(Knees):
    def __getitem__(self, i):
        time.sleep(0.02)
        return super().__getitem__(i)
LatentBank.build(Slow(200), MODEL, {str(tmp_path / "b")!r}, shard_rows=10, batch_size=10)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    while len(list((tmp_path / "b").glob("shard*"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    bank = LatentBank.build(Knees(200), MODEL, tmp_path / "b", shard_rows=10, batch_size=10)
    straight = LatentBank.build(Knees(200), MODEL, tmp_path / "s", shard_rows=10, batch_size=10)
    assert torch.equal(bank.keys(torch.arange(200)), straight.keys(torch.arange(200)))


def test_any_dataset(tmp_path):
    """Subset, ConcatDataset and a set without targets or classes of its own."""

    class Plain(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return {"label": torch.tensor(i % 2), "image": (Knees()[i][0] * 255).to(torch.uint8)}

    parts = ConcatDataset([Subset(Knees(), [3, 4]), Knees(4, 9)])
    bank = LatentBank.build(parts, MODEL, tmp_path / "a")
    assert bank.labels == ["2", "0", "0", "2", "0", "2"]
    assert bank.patients == ["p1", "p2", "p4", "p5", "p5", "p6"]
    assert LatentBank.build(Plain(), MODEL, tmp_path / "b", classes=("0", "2")).labels == ["0", "2"] * 3
    with pytest.raises(ValueError, match="give their names"):
        LatentBank.build(Plain(), MODEL, tmp_path / "c")


def test_spawned_workers_map_the_files_themselves(bank):
    """Pickling sends paths, not tensors."""
    bank.keys(torch.arange(20))
    sent = pickle.dumps(bank)
    assert len(sent) < 5000
    assert torch.equal(pickle.loads(sent).keys(torch.arange(3)), bank.keys(torch.arange(3)))


def test_damage_is_named(bank, tmp_path):
    """A truncated shard, a foreign file, a manifest of others: each with the file's name."""
    path = next(iter(sorted(bank.folder.glob("shard*"))))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BankError, match="not a whole safetensors file"):
        LatentBank(bank.folder).keys(torch.tensor([0]))
    (bank.folder / "bank.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(BankError, match="is not one that"):
        LatentBank(bank.folder)
    with pytest.raises(BankError, match="accepted is a folder that"):
        LatentBank(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(BankError, match="nothing of others is written to"):
        LatentBank.build(Knees(), MODEL, tmp_path / "mine")


def test_changed_data_is_noticed(tmp_path):
    """A set that can tell its fingerprint is compared with what was encoded; without one, its images and labels are."""

    class Files(Knees):
        version = "a"

        def fingerprint(self):
            return f"files {self.version}"

    data = Files()
    bank = LatentBank.build(data, MODEL, tmp_path / "b")
    bank.check_data(data)
    data.version = "b"
    with pytest.raises(BankError, match="have changed since"):
        bank.check_data(data)
    with pytest.raises(BankError, match="is of other data"):
        LatentBank.build(data, MODEL, tmp_path / "b")
    LatentBank.build(Knees(), MODEL, tmp_path / "c")
    with pytest.raises(BankError, match="is of other data"):
        LatentBank.build(Knees(20, 1), MODEL, tmp_path / "c")


def test_others_may_read_a_bank(bank):
    """Shards get the mode that the user's umask asks for, as the manifest does; safetensors alone would write 0600."""
    assert len({path.stat().st_mode for path in bank.folder.iterdir()}) == 1


def test_donors_are_uniform_over_the_other_patients(tmp_path):
    """The row after one of the host's own is no likelier than any other; one draw a host, whatever the bank."""
    knees = Knees(24)
    knees.patients = ["a", "a", "b", "b", *"cccccccc", *(f"p{i}" for i in range(12))]
    bank = LatentBank.build(knees, MODEL, tmp_path / "b")
    generator = torch.Generator().manual_seed(0)
    for who in ("a", "c", "new", None):
        options = [r for r in range(1, 24, 2) if knees.patients[r] != who]
        drawn = draw_from_bank(bank, [0.0] * 6000, ("0", "2"), [who] * 6000, generator).tolist()
        counts = torch.bincount(torch.tensor(drawn), minlength=24)[options].double()
        assert int(counts.sum()) == 6000  # all of other patients
        wanted = 6000 / len(options)
        assert float(((counts - wanted) ** 2 / wanted).sum()) / (len(options) - 1) < 3


def test_classes_that_the_weights_do_not_know(tmp_path):
    """None at all is an error that names both; one is enough, for hosts of others; spellings do not matter."""
    knees = Knees()
    knees.classes = ["healthy", "ill"]
    with pytest.raises(BankError, match=r"\['healthy', 'ill'\].*\('0', '2'\).*classes="):
        LatentBank.build(knees, MODEL, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    knees.classes = ["0.0", 2.0]
    bank = LatentBank.build(knees, MODEL, tmp_path / "b")
    assert bank.labels == ["0", "2"] * 10
    one = LatentBank.build(Subset(knees, range(1, 20, 2)), MODEL, tmp_path / "c")
    for label, able in (("0", True), ("2", False)):
        assert (min(draw_from_bank(one, [label] * 8, ("0", "2"), None).tolist()) >= 0) == able
    more = Knees(6, 40)
    more.classes, more.targets = ["0", "1", "2"], [0, 1, 2] * 2
    with pytest.raises(BankError, match=r"classes is .*'0', '2'.*asked for .*'0', '1', '2'"):
        LatentBank.build(more, MODEL, tmp_path / "b", append=True)


@pytest.mark.parametrize("known", [[9001.0, "9002", 9003], ["9001.0", 9002.0, "9003"]])
def test_excluded_patients_are_found_in_any_spelling(tmp_path, known):
    """Floats of pandas, numbers and text; and where an id is missing, nothing is vouched for."""
    knees = Knees(3)
    knees.patients = known
    for i, excluded in enumerate(([9002.0], ["9002"], torch.tensor([9002]), {9002}, iter(["9002.0"]))):
        with pytest.raises(BankError, match=r"share 1 patients \(9002\)"):
            LatentBank.build(knees, MODEL, tmp_path / f"a{i}", exclude_patients=excluded)
    bank = LatentBank.build(knees, MODEL, tmp_path / "b", exclude_patients=["9004"])
    with pytest.raises(BankError, match="share 1 patients"):
        LatentBank(bank.folder, exclude_patients=[9001])
    with pytest.raises(ValueError, match="patients are missing"):
        LatentBank(bank.folder, exclude_patients=[float("nan")])
    with pytest.raises(ValueError, match="accepted is a list of ids"):
        LatentBank(bank.folder, exclude_patients="9001")
    knees.patients = [*known[:2], None]
    with pytest.raises(BankError, match="no overlap could be"):
        LatentBank.build(knees, MODEL, tmp_path / "c", exclude_patients=["9004"])


def test_rows_without_a_patient_are_counted(tmp_path):
    """When the bank is opened; an appended part without patients does not take those of the others away."""
    LatentBank.build(Knees(4), MODEL, tmp_path / "b")
    with pytest.warns(UserWarning, match="4 of 8 rows have no patient") as seen:
        bank = LatentBank.build(Knees(4, 9, patients=False), MODEL, tmp_path / "b", append=True)
    assert len(seen) == 1
    assert bank.patients == ["p0", "p0", "p1", "p1", None, None, None, None]
    donors = set(draw_from_bank(bank, ["0"] * 200, ("0", "2"), ["p0"] * 200).tolist())
    assert donors == {3, 5, 7}


def test_a_build_after_another_preprocessing_is_refused(tmp_path):
    """With what differs, also of one part of several; a bank that is open can be asked, too."""

    class Prepared(Knees):
        def __init__(self, *args, mirror_right=False):
            super().__init__(*args)
            self.way = {"mirror_right": mirror_right, "image_size": 64}

        def identity(self):
            return {"files": str(self.offset), "preprocessing": json.dumps(self.way)}

    bank = LatentBank.build(Prepared(), MODEL, tmp_path / "b")
    changed = Prepared(mirror_right=True)
    for attempt in (
        lambda: LatentBank.build(changed, MODEL, tmp_path / "b"),
        lambda: bank.check_data(changed),
    ):
        with pytest.raises(BankError, match=r"\(preprocessing: mirror_right was False, now True\)"):
            attempt()
    both = LatentBank.build(Prepared(8, 30), MODEL, tmp_path / "b", append=True)
    both.check_data(ConcatDataset([Prepared(), Prepared(8, 30)]))
    with pytest.raises(BankError, match="mirror_right was False, now True"):
        both.check_data(ConcatDataset([Prepared(), changed]))
    with pytest.raises(BankError, match="it has 2 parts, this one 1"):
        both.check_data(Prepared())
    with pytest.raises(BankError, match="mirror_right was False, now True"):
        LatentBank.build(changed, MODEL, tmp_path / "b")
    rows = LatentBank.build(Subset(Prepared(), range(10)), MODEL, tmp_path / "c")
    with pytest.raises(BankError, match="rows was"):
        LatentBank.build(Subset(Prepared(), range(1, 11)), MODEL, rows.folder)


def test_banks_of_before_open(tmp_path):
    """They hold the hash of the float32 tensors, no preprocessing, and names as they came."""
    model = load_weights("phantom")  # stored as halves
    bank = LatentBank.build(Knees(), model, tmp_path / "b")
    manifest = json.loads((bank.folder / "bank.json").read_text())
    manifest["weights_sha256"] = hashes(model)[1]
    assert manifest["weights_sha256"] != weights_sha256(model)
    for part in manifest["parts"]:
        del part["identity"]
        part["labels"], part["patients"] = ["0.0", "2.0"] * 10, [f"{i // 2}.0" for i in range(20)]
    manifest["classes"] = manifest["exchangeable"] = ["0.0", "2.0"]
    (bank.folder / "bank.json").write_text(json.dumps(manifest))
    old = LatentBank(bank.folder, model)
    assert (old.weights_sha256, old.labels, old.patients[:3]) == (
        weights_sha256(model),
        bank.labels,
        ["0", "0", "1"],
    )
    assert torch.equal(old.keys(torch.arange(20)), bank.keys(torch.arange(20)))
    for user in (
        KeyExchangeAugment(model, p=1.0, bank=LatentBank(bank.folder)),
        KeyExchangeDataset(Knees(), model, 4, bank=LatentBank(bank.folder)),
    ):
        assert user is not None
    with pytest.raises(BankError, match="of other weights"):
        LatentBank(bank.folder, MODEL)
    with pytest.raises(BankError, match="no build can go on with it"):
        LatentBank.build(Knees(), model, bank.folder)
    with pytest.raises(BankError, match="built before banks wrote down"):
        old.check_data(Knees())
    manifest["exchangeable"] = []
    (bank.folder / "bank.json").write_text(json.dumps(manifest))
    with pytest.raises(BankError, match="no row could ever be given"):
        LatentBank(bank.folder)
