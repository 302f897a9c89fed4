"""Data sets of others, concatenated, wrapped, cached: whose knee a row is, of which grade, preprocessed how."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_bank import MODEL, Knees
from torch.utils.data import ConcatDataset, Dataset, Subset, random_split

from kecae_aug import KECAE, KeyExchangeAugment, KeyExchangeDataset, LatentBank, load_weights, save_weights
from kecae_aug.bank import BankError
from kecae_aug.cli import main
from kecae_aug.data import Preprocessing, RadiographFolder
from kecae_aug.data.attributes import attribute, patient_names
from kecae_aug.data.classes import labels_of
from kecae_aug.data.identity import differences, identity
from kecae_aug.donors import draw_from_bank
from kecae_aug.generate import GenerateError, generate
from kecae_aug.phantom import PhantomKnees, write_phantoms
from kecae_aug.weights.io import hashes, weights_sha256


class Site(Dataset):
    """Knees of one clinic: (1, 64, 64) that depend on the row."""

    def __init__(self, classes=("0", "2"), targets=(0, 1) * 6, patients=None, **attributes):
        self.classes, self.targets = classes, targets
        if patients is not None:
            self.patients = patients
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(i)), int(
            np.asarray(self.targets)[i]
        )


class Wrapped(Dataset):
    """A wrapper of somebody's: every row of what it holds, changed."""

    def __init__(self, dataset, change=lambda x: x):
        self.dataset, self.change = dataset, change

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        image, label = self.dataset[i]
        return self.change(image), label


class Chosen(Subset):
    """A Subset of somebody's, with targets for his sampler, and a transform."""

    def __init__(self, dataset, indices, change=lambda x: x):
        super().__init__(dataset, indices)
        self.targets = [dataset.targets[i] for i in indices]
        self.change = change

    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return self.change(image), label

    def __getitems__(self, indices):
        return [self[i] for i in indices]


IDS = [f"p{i // 2}" for i in range(12)]  # two knees each, of different grades
NORTH, SOUTH, EAST = (
    Site(("0", "2"), [0, 1] * 4),
    Site(("2", "0"), [0, 1] * 4),
    Site(("0", "1", "2"), [0, 1, 2, 2]),
)


@pytest.mark.parametrize(
    ("dataset", "classes", "grades"),
    [
        (lambda: ConcatDataset([NORTH, SOUTH]), ("0", "2"), "02" * 4 + "20" * 4),
        (lambda: ConcatDataset([EAST, SOUTH]), ("0", "1", "2"), "0122" + "20" * 4),
        (lambda: ConcatDataset([SOUTH, EAST, NORTH]), ("0", "1", "2"), "20" * 4 + "0122" + "02" * 4),
        (lambda: ConcatDataset([Subset(SOUTH, [0, 3, 4]), Subset(EAST, [1])]), ("0", "1", "2"), "2021"),
        (lambda: Subset(ConcatDataset([NORTH, SOUTH]), [8, 0, 9, 1]), ("0", "2"), "2002"),
        (lambda: Subset(Subset(ConcatDataset([NORTH, SOUTH]), [8, 0, 9, 1]), [3, 0]), ("0", "2"), "22"),
        (lambda: ConcatDataset([ConcatDataset([NORTH, EAST]), SOUTH]), ("0", "1", "2"), "02" * 4 + "0122" + "20" * 4),
        (lambda: ConcatDataset([Wrapped(SOUTH), NORTH]), ("0", "2"), "20" * 4 + "02" * 4),
        (lambda: ConcatDataset([Site((0.0, 2.0), [0, 1]), Site(("2.0", 0), [0, 1])]), ("0", "2"), "0220"),
        (lambda: SOUTH, ("2", "0"), "20" * 4),
    ],
)  # fmt: skip
def test_a_knee_keeps_its_own_grade_whatever_order_its_part_lists_them_in(dataset, classes, grades):
    """Grade 2 of the clinic that lists ("2", "0") was taken for 0 in silence: classes go by name."""
    names, targets = labels_of(dataset())
    assert names == classes
    assert [names[t] for t in targets] == list(grades)


def test_random_split_of_two_sites_keeps_names_and_patients():
    """The split of a concatenated set finds classes, patients and files through both wrappers."""
    sites = [Site(("0", "2"), [0, 1] * 6, IDS, paths=[f"n{i}" for i in range(12)]),
             Site(("2", "0"), [0, 1] * 6, [i.upper() for i in IDS], paths=[f"s{i}" for i in range(12)])]  # fmt: skip
    truth = ["0", "2"] * 6 + ["2", "0"] * 6
    part, _ = random_split(ConcatDataset(sites), [15, 9], torch.Generator().manual_seed(0))
    names, targets = labels_of(part)
    assert [names[t] for t in targets] == [truth[i] for i in part.indices]
    ids = [*IDS, *(i.upper() for i in IDS)]
    assert patient_names(part, None) == [ids[i] for i in part.indices]
    assert attribute(part, "paths") == [f"{'ns'[i // 12]}{i % 12}" for i in part.indices]
    train = KeyExchangeDataset(part, MODEL, 60, real=False)
    for origin in (train.origin(k) for k in range(60)):
        host, donor = (part.indices[row] for row in (origin.host, origin.donor))
        assert (ids[host], truth[host]) != (ids[donor], truth[donor])
        assert ids[host] != ids[donor]


def test_columns_of_pandas_go_by_position():
    """A Series that was shuffled keeps its index: ``series[0]`` is then another row, and another grade, in silence."""
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"grade": [0] * 6 + [1] * 6, "who": IDS}).sample(frac=1, random_state=1)
    knees = Site(targets=table.grade, patients=table.who, paths=table.who)
    assert labels_of(knees)[1] == table.grade.tolist()
    assert patient_names(knees, None) == patient_names(Site(), table.who) == table.who.tolist()
    assert attribute(Subset(knees, [3, 1]), "paths") == [table.who.iloc[3], table.who.iloc[1]]


@pytest.mark.parametrize("name", ["patients", "patient_ids", "subject_id", "PatientID", "pid", "subjects"])
def test_patients_under_any_name_are_found(name):
    """The attribute is called as the entries of batches are."""
    assert patient_names(Site(**{name: np.array(IDS)}), None) == IDS


@pytest.mark.parametrize(
    ("wrapper", "rows"),
    [
        (lambda d: Wrapped(d), range(12)),
        (lambda d: Subset(Wrapped(d), [5, 2]), [5, 2]),
        (lambda d: Wrapped(Subset(d, [5, 2])), [5, 2]),
        (lambda d: Chosen(d, [5, 2]), [5, 2]),
        (lambda d: Subset(Chosen(d, [5, 2, 7]), [2, 0]), [7, 5]),
        (lambda d: ConcatDataset([Chosen(d, [5]), d]), [5, *range(12)]),
    ],
    ids=[
        "wrapper",
        "Subset of it",
        "wrapper of a Subset",
        "Subset with targets",
        "Subset of that",
        "concatenated",
    ],
)
def test_patients_are_found_under_wrappers(wrapper, rows):
    """A Subset that was given ``targets`` for a sampler used to hide the patients under it."""
    assert patient_names(wrapper(Site(patients=IDS)), None) == [IDS[i] for i in rows]


def test_patients_of_a_concatenated_set_with_targets_of_its_own():
    """``both.targets = a.targets + b.targets`` is what people write for WeightedRandomSampler."""
    both = ConcatDataset([Site(patients=IDS), Site(patients=IDS)])
    both.targets = [0, 1] * 12
    both.classes = ("0", "2")
    assert patient_names(both, None) == IDS * 2
    assert labels_of(both)[1] == both.targets
    train = KeyExchangeDataset(both, MODEL, 40, real=False)
    assert all(IDS[o.host % 12] != IDS[o.donor % 12] for o in map(train.origin, range(40)))


def test_a_part_without_patients_is_counted_and_the_other_parts_are_heeded():
    """One site does not tell whose knees they are: said once, and no reason to forget those of the other."""
    with pytest.warns(UserWarning, match="12 of 24 rows have no patient") as told:
        train = KeyExchangeDataset(ConcatDataset([Site(patients=IDS), Site()]), MODEL, 300, real=False)
    assert len(told) == 1
    origins = [train.origin(k) for k in range(300)]
    assert not any(max(o.host, o.donor) < 12 and IDS[o.host] == IDS[o.donor] for o in origins)
    assert any(o.host >= 12 > o.donor for o in origins)


@pytest.mark.parametrize(
    "spell", [str, int, float, lambda p: f"{p}.0", torch.tensor, np.int64, lambda p: f" {p} "]
)
def test_one_patient_is_one_in_every_list(spell, tmp_path):
    """9001, 9001.0, "9001.0", tensor(9001): the leak checks of a bank see him in any spelling."""
    ids = [9001 + i // 2 for i in range(12)]
    knees = Site(patients=[str(i) for i in ids])
    with pytest.raises(BankError, match="share 6 patients"):
        LatentBank.build(knees, MODEL, tmp_path / "b", exclude_patients=[spell(i) for i in ids])
    train = KeyExchangeDataset(Site(), MODEL, 60, real=False, patients=[spell(i) for i in ids])
    assert all(ids[o.host] != ids[o.donor] for o in map(train.origin, range(60)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_phantoms(
        tmp_path_factory.mktemp("d") / "knees", train_patients=3, val_patients=2, image_size=64
    )


def opened(folder, split="train", transform=None, **ways):
    return RadiographFolder(folder, split, preprocessing=Preprocessing(64, **ways), transform=transform)


CHANGES = {
    "preprocessing": lambda f: opened(f, contrast=(1, 99)),
    "transform": lambda f: opened(f, transform=lambda x: x.flip(-1)),
    "other rows": lambda f: Subset(opened(f), range(5)),
    "other order": lambda f: opened(f).subset([1, 0, *range(2, len(opened(f)))]),
    "other split": lambda f: opened(f, "val"),
    "other class indices": lambda f: RadiographFolder(
        f, "train", grades=("2", "0"), preprocessing=Preprocessing(64)
    ),
}
SAYS = {
    "preprocessing": "preprocessing: contrast was",
    "transform": "pixels was",
    "other rows": "rows",
    "other order": "order was",
    "other split": "files was",
    "other class indices": "class",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_bank_of_other_data_is_refused_with_what_differs(folder, tmp_path, change):
    """Latents of images that were preprocessed differently would be given as if they were new."""
    knees = opened(folder)
    bank = LatentBank.build(knees, MODEL, tmp_path / "b")
    assert LatentBank.build(opened(folder), MODEL, tmp_path / "b").fingerprint == bank.fingerprint
    bank.check_data(opened(folder))
    with pytest.raises(BankError, match=SAYS[change]):
        LatentBank.build(CHANGES[change](folder), MODEL, tmp_path / "b")
    with pytest.raises(BankError, match=SAYS[change]):
        bank.check_data(CHANGES[change](folder))


@pytest.mark.parametrize("change", CHANGES)
def test_files_of_other_data_are_refused_with_what_differs(folder, tmp_path, change):
    """A run of generate that goes on after the data changed would mix two sets under one manifest."""
    generate(KeyExchangeDataset(opened(folder), MODEL, 4, real=False), tmp_path / "o", say=str)
    generate(KeyExchangeDataset(opened(folder), MODEL, 4, real=False), tmp_path / "o", say=str)
    with pytest.raises(GenerateError, match=f"holds another run: .*{SAYS[change]}"):
        generate(KeyExchangeDataset(CHANGES[change](folder), MODEL, 4, real=False), tmp_path / "o", say=str)


def test_the_plan_of_files_knows_whom_the_pairs_are_of(tmp_path):
    """Other patients, or the same ones allowed to exchange with themselves, are other pairs at the same index."""
    generate(KeyExchangeDataset(Knees(), MODEL, 4, real=False), tmp_path / "o", say=str)
    for options, says in (
        ({"same_patient": True}, "same_patient was False, now True"),
        ({"patients": range(20)}, "patients was"),
        ({"value_range": (-1, 1)}, "intensity: value_range was"),
    ):
        with pytest.raises(GenerateError, match=says):
            generate(KeyExchangeDataset(Knees(), MODEL, 4, real=False, **options), tmp_path / "o", say=str)


def test_a_data_set_beside_a_bank_of_another_preprocessing_is_refused(folder, tmp_path):
    """Real images preprocessed one way, exchanged ones another, would tell T from X' by their look."""
    bank = LatentBank.build(opened(folder), MODEL, tmp_path / "b")
    for other in (opened(folder, contrast=(1, 99)), Wrapped(opened(folder, contrast=(1, 99)))):
        other.value_range = (-1.0, 1.0)
        with pytest.raises(ValueError, match=r"preprocessed differently .contrast was None, now"):
            KeyExchangeDataset(other, MODEL, 4, bank=bank)
        with pytest.raises(BankError, match=r"preprocessed differently .contrast was None, now"):
            LatentBank.build(Subset(other, [0, 1]), MODEL, tmp_path / "b", append=True)
    KeyExchangeDataset(
        opened(folder, transform=lambda x: x.flip(-1)), MODEL, 4, bank=bank
    )  # an augmentation is no other T
    longer = LatentBank.build(opened(folder, "val"), MODEL, tmp_path / "b", append=True)
    assert len(longer) == 10


def test_an_identity_sees_what_a_wrapper_makes_of_its_rows():
    """The same knees through a Subset, or a wrapper, that changes them are other images."""
    site = Site(patients=IDS)
    for wrap in (lambda change: Chosen(site, [3, 1], change), lambda change: Wrapped(site, change)):
        plain, turned = (identity(wrap(change)) for change in (lambda x: x, lambda x: x.flip(-1)))
        assert plain == identity(wrap(lambda x: x))
        assert differences(plain, turned)
    assert differences(identity(Subset(site, [0, 1])), identity(Subset(site, [1, 0]))).startswith("rows was")
    short = differences({"a": 1, "b": "c" * 64}, {"a": 2, "b": "d" * 64})
    assert short == "a was 1, now 2; b was cccccccccccc..., now dddddddddddd..."


def test_a_fingerprint_covers_files_preprocessing_and_class_indices(folder):
    """And not the order of the rows, the place of the folder or the process."""
    first = opened(folder).fingerprint()
    assert opened(folder).subset([5, 4, 3, 2, 1, 0]).fingerprint() == first
    assert opened(folder, fix_inverted=True).fingerprint() != first
    assert CHANGES["other class indices"](folder).fingerprint() != first
    assert CHANGES["transform"](folder).fingerprint() != first
    assert len({opened(folder, mirror_right=side).fingerprint() for side in (True, False)}) == 2


def test_a_bank_of_classes_that_the_weights_do_not_know_is_refused(tmp_path):
    """A transform that never acts, in silence, is what names like ("healthy", "ill") gave; "0.0" is 0."""
    with pytest.raises(BankError, match=r"\['healthy', 'ill'\], and these weights exchange \('0', '2'\)"):
        LatentBank.build(Site(("healthy", "ill")), MODEL, tmp_path / "no")
    assert not (tmp_path / "no").exists()
    named = LatentBank.build(Site(("healthy", "ill")), MODEL, tmp_path / "named", classes=("0", "2"))
    floats = LatentBank.build(Site(("0.0", "2.0")), MODEL, tmp_path / "floats")
    for bank in (named, floats):
        augment = KeyExchangeAugment(MODEL, p=1.0, bank=bank)
        augment(torch.rand(4, 1, 64, 64), torch.zeros(4, dtype=torch.int64))
        assert len(augment.params.rows) == 4
    torch.manual_seed(0)
    wide = KECAE.from_preset("tiny", classes=("0", "1", "2")).eval()
    ones = LatentBank.build(Site(("0", "1", "2"), [1] * 4), wide, tmp_path / "ones")
    with pytest.raises(ValueError, match=r"bank: the bank has rows of \['1'\]"):
        KeyExchangeAugment(wide, bank=ones, classes=("0", "2"))


def test_donors_are_uniform_among_other_patients(tmp_path):
    """The row after the host's own came twice as often as any other; in transform, bank and data set."""
    knees = Site(targets=[0, 0, 1, 1, 1, 1, 1], patients=["h", "g", "h", "a", "b", "c", "d"])
    bank = LatentBank.build(knees, MODEL, tmp_path / "b")
    counts = np.zeros((3, 7))
    drawn = draw_from_bank(bank, ["0"] * 6000, ("0", "2"), ["h"] * 6000, torch.Generator().manual_seed(0))
    counts[0] = np.bincount(drawn, minlength=7)
    train = KeyExchangeDataset(knees, MODEL, 12_000, real=False)
    for origin in map(train.origin, range(0, 12_000)):
        counts[1, origin.donor] += origin.host == 0
    augment = KeyExchangeAugment(MODEL, p=1.0)
    labels, patients = torch.tensor(knees.targets), knees.patients
    for _ in range(1500):
        params = augment.draw(labels, patients)
        counts[2, int(params.donors[params.rows == 0])] += 1
    for given in counts:
        assert given[:3].tolist() == [0, 0, 0]
        assert given[3:].max() / given[3:].min() < 1.25


def test_an_origin_has_the_indices_of_an_item():
    """Beyond the end it used to invent a pair."""
    train = KeyExchangeDataset(PhantomKnees(4, image_size=64), load_weights("phantom"), 4)
    assert train.origin(-1) == train.origin(len(train) - 1)
    assert train.origin(-len(train)).host == 0
    for index in (len(train), -len(train) - 1, 10**6):
        with pytest.raises(IndexError, match=f"got {index}, accepted are 0 to 11"):
            train.origin(index)
        with pytest.raises(IndexError):
            train[index]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_have_one_hash_everywhere(dtype, tmp_path, capsys):
    """File, loaded model, data set, bank, files of generate, ``kecae-aug info``: one number to look for."""
    folder = save_weights(MODEL, tmp_path / "w", metadata={}, dtype=dtype)
    model, knees = load_weights(folder), Knees(4)
    train = KeyExchangeDataset(knees, model, 2, real=False)
    generate(train, tmp_path / "o", say=str)
    capsys.readouterr()
    main(["info", str(folder)])
    found = {
        "config": json.loads((folder / "config.json").read_text())["sha256"],
        "metadata": model.metadata["weights"]["sha256"],
        "function": weights_sha256(model),
        "data set": train.weights_sha256,
        "bank": LatentBank.build(knees, model, tmp_path / "b").weights_sha256,
        "manifest": json.loads((tmp_path / "o" / "manifest.jsonl").read_text().splitlines()[0])["weights"],
        "info": json.loads(capsys.readouterr().out)["metadata"]["weights"]["sha256"],
    }
    assert len(set(found.values())) == 1, found
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert weights_sha256(model) != found["config"]


def test_a_bank_of_before_that_holds_the_other_hash_is_still_served(tmp_path):
    """Banks of float16 weights were built with the hash of their float32 values: they are of these weights."""
    model = load_weights(save_weights(MODEL, tmp_path / "w", metadata={}, dtype=torch.float16))
    bank = LatentBank.build(Knees(4), model, tmp_path / "b")
    manifest = tmp_path / "b" / "bank.json"
    old = hashes(model)[1]
    manifest.write_text(manifest.read_text().replace(bank.weights_sha256, old))
    again = LatentBank(tmp_path / "b", model)
    assert again.weights_sha256 == bank.weights_sha256 != old
    KeyExchangeAugment(model, bank=again)


def test_a_manifest_of_patients_for_a_bank_alone_has_one_a_row(tmp_path):
    """``patients=`` beside a bank is counted as it is beside a data set."""
    bank = LatentBank.build(Site(), MODEL, tmp_path / "b")
    with pytest.raises(ValueError, match="got 2 ids for 12 rows"):
        KeyExchangeDataset(None, MODEL, 4, bank=bank, real=False, patients=["a", "b"])


def test_folders_of_one_grade_in_two_spellings_are_one_class(tmp_path):
    """2, 2.0 and 02 are one grade in folders, tables and arguments; "nan" is none, and is listed."""
    for number, name in enumerate(("2.0", "0", "2", "10", "0.0", "nan", "02")):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((16, 16), 40 + number, np.uint8)).save(
            tmp_path / name / f"{9000 + number}L.png"
        )
    knees = RadiographFolder(tmp_path)
    assert knees.classes == ["0", "2", "10"]
    assert sorted(knees.targets) == [0, 0, 1, 1, 1, 2]
    assert [(path.name, "missing grade" in why) for path, why in knees.skipped] == [("9005L.png", True)]
    assert len(RadiographFolder(tmp_path, grades=(2.0, "0.0"))) == 5
    with pytest.raises(ValueError, match=r"classes=.*nan"):
        KeyExchangeAugment(MODEL, classes=("0", "2", float("nan")))
