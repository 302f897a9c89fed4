"""What somebody's data set says of its rows, through Subset, ConcatDataset and wrappers: by name, or refused in words."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_bank import MODEL, Knees
from torch.utils.data import ConcatDataset, Dataset, Subset, random_split
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from kecae_aug import KeyExchangeDataset, LatentBank
from kecae_aug.data import Preprocessing, RadiographFolder
from kecae_aug.data.attributes import patient_names, value_range_of
from kecae_aug.data.classes import labels_of
from kecae_aug.data.identity import identity
from kecae_aug.phantom import PhantomKnees


class Site(Dataset):
    """Named images of known grades; says of itself what it is given."""

    def __init__(self, grades, classes, **says):
        self.grades = list(grades)
        if classes is not None:
            self.classes = list(classes)
            self.targets = [self.classes.index(g) for g in self.grades]
        self.__dict__.update(says)

    def __len__(self):
        return len(self.grades)

    def __getitem__(self, i):
        image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(i))
        return image, self.targets[i] if hasattr(self, "targets") else self.grades[i]


class Transformed(Dataset):
    """As people write it: a wrapper with a transform, which passes no attribute on."""

    def __init__(self, subset, transform=None, relabel=None):
        self.subset, self.transform, self.relabel = subset, transform, relabel

    def __len__(self):
        return len(self.subset)

    def __getitem__(self, i):
        x, y = self.subset[i]
        x = x if self.transform is None else self.transform(x)
        return x, y if self.relabel is None else self.relabel(y)


class Picked(Transformed):
    """A wrapper with indices of its own."""

    def __init__(self, dataset, indices, **options):
        super().__init__(dataset, **options)
        self.indices = indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        x, y = self.subset[self.indices[i]]
        return x, y if self.relabel is None else self.relabel(y)


class Twice(Transformed):
    """Every row twice; which it is, nobody is told."""

    def __len__(self):
        return 2 * len(self.subset)

    def __getitem__(self, i):
        return self.subset[i // 2]


NORTH = Site("012012", "012")
SOUTH = Site("2020", "02")


def names_of(dataset, classes=None):
    names, targets = labels_of(dataset, classes)
    return names, "".join(names[t] for t in targets)


@pytest.mark.parametrize(
    ("dataset", "names", "grades"),
    [
        (ConcatDataset([NORTH, SOUTH]), "012", "0120122020"),
        (ConcatDataset([SOUTH, NORTH]), "012", "2020012012"),
        (ConcatDataset([Site("02", "20"), Site("02", "02")]), "02", "0202"),
        (ConcatDataset([Site("02", "20"), Site("22", "20")]), "20", "0222"),  # alike: their own order
        (Subset(ConcatDataset([NORTH, SOUTH]), [6, 1, -1, 0]), "012", "2100"),
        (ConcatDataset([Subset(NORTH, [4, 2]), Subset(Subset(SOUTH, [1, 0]), [1])]), "012", "122"),
        (ConcatDataset([Transformed(NORTH), Picked(SOUTH, [3, 0])]), "012", "01201202"),
        (ConcatDataset([Site("02", "02"), Site("0", "0")]), "02", "020"),
    ],
)
def test_classes_are_brought_together_by_name(dataset, names, grades):
    """A grade keeps its name, whatever index it has at its site."""
    assert names_of(dataset) == (tuple(names), grades)


def test_spellings_of_one_grade_are_one_class():
    """ "2.0" of a float column here, 2 there."""
    floats = Site(["a", "b"], ["a", "b"])
    floats.classes = ["0.0", "2.0"]
    ints = Site(["a", "b"], ["a", "b"])
    ints.classes = np.array([2, 0])
    assert names_of(ConcatDataset([floats, ints])) == (("0", "2"), "0220")


@pytest.mark.parametrize("classes", [["0", None], ["0", float("nan")], ["0", ""], ["2", "2.0"]])
def test_missing_and_double_classes_are_refused(classes):
    """A class without a name, and two names of one class."""
    site = Site("01", "01")
    site.classes = classes
    with pytest.raises(ValueError, match=r"Site.classes"):
        labels_of(site)


def test_given_classes_order_or_rename():
    """All names, and maybe more, in another order; or a new name for each; nothing between."""
    assert names_of(SOUTH, ("2", "0")) == (("2", "0"), "2020")
    assert names_of(SOUTH, range(5)) == (tuple("01234"), "2020")
    assert names_of(ConcatDataset([NORTH, SOUTH]), (2, 1, 0)) == (("2", "1", "0"), "0120122020")
    assert names_of(Site("ba", "ab"), ("0", "2")) == (("0", "2"), "20")
    assert names_of(SOUTH, ("0", "3")) == (("0", "3"), "3030")
    for dataset, classes in (
        (SOUTH, ("1", "0")),
        (SOUTH, ("5", "6", "7")),
        (ConcatDataset([NORTH, SOUTH]), ("0", "2")),
    ):
        with pytest.raises(ValueError, match=r"data set ha(s|ve) \["):
            labels_of(dataset, classes)


def test_parts_without_classes():
    """Their indices have no meaning beside names of others; given classes give them one."""
    bare = Site("01", None)
    bare.targets = [0, 1]
    with pytest.raises(ValueError, match=r"part 1 \(Site\) has no .classes beside parts"):
        labels_of(ConcatDataset([SOUTH, bare]))
    assert names_of(ConcatDataset([SOUTH, bare]), ("0", "2")) == (("0", "2"), "202002")
    both = ConcatDataset([bare, bare])
    with pytest.raises(ValueError, match="give their names"):
        labels_of(both)
    both.classes = ["x", "y"]
    assert names_of(both) == (("x", "y"), "xyxy")


@pytest.mark.parametrize(
    "targets",
    [
        [0, 1, 1],
        np.array([0, 1, 1], dtype=np.uint8),
        [np.int64(0), np.float32(1.0), 1.0],
        torch.tensor([0, 1, 1]),
        torch.tensor([0.0, 1.0, 1.0]),
        [torch.tensor(0), torch.tensor([1]), np.array(1)],
        pd.Series([0, 1, 1], index=[2, 0, 1]),  # as after a shuffle: by position, not by its index
        ["0", "2", "2.0"],
        np.array(["0", "2", "2"]),
    ],
)
def test_targets_of_any_kind(targets):
    """Whole numbers of any type, and names, which are told by name."""
    site = Site("022", "02", targets=targets)
    assert names_of(site) == (("0", "2"), "022")
    items = Site(list(targets), None)
    items.classes = ["0", "2"]
    assert names_of(items) == (("0", "2"), "022")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "a missing label"),
        (None, "a missing label"),
        (pd.NA, "a missing label"),
        (np.float32("nan"), "a missing label"),
        ("", "a missing label"),
        ("3", r"'3'.*of classes=\('0', '2'\)"),
        (1.5, "1.5"),
        (True, "True"),
        (np.bool_(True), "True"),
        (torch.tensor(True), "True"),
        (2, "from 0 to 1"),
        (-1, "-1"),
    ],
)
def test_labels_that_are_none_are_named_by_row(value, says):
    """Never another class, whatever the row's kind."""
    with pytest.raises(ValueError, match=rf"labels: row 1 has .*{says}"):
        labels_of(Site("022", "02", targets=[0, value, 1]))


def test_lists_of_another_length_are_refused():
    """Of a part too; and no dict, whose keys would be taken."""
    for wrong in ([0, 1], {0: 1, 1: 0, 2: 1}, "010"):
        with pytest.raises(ValueError, match="targets of Site"):
            labels_of(ConcatDataset([SOUTH, Site("022", "02", targets=wrong)]))
        with pytest.raises(ValueError, match="patients of Site"):
            patient_names(Site("022", "02", patients=wrong), None)


def test_torchvisions_folders(tmp_path):
    """ImageFolder, its target_transform, and a class_to_idx that does not fit."""
    for grade in "02":
        (tmp_path / grade).mkdir()
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / grade / "1L.png")
    folder = ImageFolder(tmp_path, v2.ToImage())
    assert names_of(folder) == (("0", "2"), "02")
    swapped = ImageFolder(tmp_path, v2.ToImage(), target_transform=lambda t: 1 - t)
    with pytest.raises(ValueError, match="give their names"):  # .classes is of other labels than the items'
        labels_of(swapped)
    assert names_of(swapped, ("2", "0")) == (("2", "0"), "02")
    assert names_of(ImageFolder(tmp_path, v2.ToImage(), target_transform=int)) == (("0", "2"), "02")
    folder.class_to_idx = {"0": 1, "2": 0}
    with pytest.raises(ValueError, match="class_to_idx"):
        labels_of(folder)


def test_the_wrapper_that_everybody_writes(tmp_path):
    """random_split of an ImageFolder of PIL images, and a transform for each split; also as a bank, twice."""
    for grade in "02":
        (tmp_path / "d" / grade).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((64, 64), 40 * i, np.uint8)).save(tmp_path / "d" / grade / f"{i}.png")
    split, _ = random_split(ImageFolder(tmp_path / "d"), [5, 1])
    train = Transformed(split, v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]))
    wanted = [split.dataset.targets[i] for i in split.indices]
    assert KeyExchangeDataset(train, MODEL, 4).class_indices == wanted
    for _ in range(2):
        bank = LatentBank.build(train, MODEL, tmp_path / "bank")
    assert bank.labels == ["02"[t] for t in wanted]
    train.transform = v2.Compose([train.transform, v2.RandomInvert(p=1)])
    with pytest.raises(ValueError, match="images was"):
        LatentBank.build(train, MODEL, tmp_path / "bank")


def test_a_wrapper_that_makes_other_labels_is_read_item_by_item():
    """Its labels count, and the wrapped set's names do not."""
    binary = Transformed(NORTH, relabel=lambda y: int(y >= 2))
    with pytest.raises(ValueError, match=r"Transformed has no \.classes"):
        labels_of(binary)
    assert names_of(binary, ("0", "2")) == (("0", "2"), "002002")
    assert names_of(Picked(NORTH, [2, 0], relabel=lambda y: int(y >= 2)), ("0", "2")) == (("0", "2"), "20")
    assert names_of(Twice(SOUTH), ("0", "2")) == (("0", "2"), "22002200")
    listed = Transformed(NORTH)
    listed.targets = [1, 0, 0, 1, 0, 0]
    with pytest.raises(ValueError, match=r"Transformed has no \.classes"):
        labels_of(listed)
    listed.targets = NORTH.targets
    assert names_of(listed) == (tuple("012"), "012012")


OF = Site("0202", "02", patients=["a", "a", 7.0, np.nan])


@pytest.mark.parametrize(
    ("dataset", "wanted"),
    [
        (OF, ["a", "a", "7", None]),
        (Subset(OF, [2, 0]), ["7", "a"]),
        (ConcatDataset([SOUTH, OF]), [None] * 4 + ["a", "a", "7", None]),
        (ConcatDataset([Transformed(Subset(OF, [1, 2])), SOUTH]), ["a", "7", *[None] * 4]),
        (Picked(OF, [2, 2, 1]), ["7", "7", "a"]),
        (Transformed(OF, v2.RandomCrop(32)), ["a", "a", "7", None]),
        (
            Transformed(OF, relabel=lambda y: 1 - y),
            ["a", "a", "7", None],
        ),  # the images show that the rows are the same
        (Site("02", "02", patient_ids=torch.tensor([3, 4])), ["3", "4"]),
        (Site("02", "02", SubjectID=pd.Series([3.0, 4.0], index=[1, 0])), ["3", "4"]),
        (Site("02", "02", pid=("0012", "13")), ["0012", "13"]),
    ],
)
def test_patients_through_wrappers(dataset, wanted):
    """The id of each row, and one warning that counts those without."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert patient_names(dataset, None) == wanted
    assert len(seen) == (None in wanted)
    assert all(f"{wanted.count(None)} of {len(wanted)} rows have no patient" in str(w.message) for w in seen)


@pytest.mark.parametrize(
    "dataset",
    [
        Twice(OF),
        Transformed(OF, v2.RandomCrop(32), relabel=lambda y: 1 - y),
        Site("02", "02", subjects=["only one"]),
        [({"image": torch.zeros(1, 64, 64), "label": 0, "PatientID": "9"})],
        [(torch.zeros(1, 64, 64), 0, "9001")],
    ],
)
def test_patients_that_cannot_be_told_are_not_dropped_without_a_word(dataset):
    """Rows of which nobody is told, a list of another length, ids in the items."""
    with pytest.warns(UserWarning, match="give patients="):
        assert patient_names(dataset, None) is None


def test_patients_given():
    """One a row, in any list; nothing else."""
    assert patient_names(SOUTH, pd.Series([1.0, 2.0, 2.0, 3.0], index=[3, 2, 1, 0])) == ["1", "2", "2", "3"]
    for wrong in (["a"], "abcd", {0: 1, 1: 1, 2: 1, 3: 1}):
        with pytest.raises(ValueError, match="patients: got "):
            patient_names(SOUTH, wrong)


def test_a_missing_patient_is_nobodys_and_nobody():
    """Two rows without a patient may exchange; the known ones never with themselves."""
    site = Site("0202", "02", patients=["a", "a", None, None])
    with pytest.warns(UserWarning, match="2 of 4 rows have no patient"):
        train = KeyExchangeDataset(site, MODEL, 200, real=False)
    pairs = {tuple(train.origin(k)[:2]) for k in range(200)}
    assert pairs == {(0, 3), (3, 0), (2, 1), (1, 2), (2, 3), (3, 2)}


def test_ranges_and_preprocessing_of_all_parts(tmp_path):
    """Equal, or refused with what differs; also where a wrapper hides them."""
    narrow, wide = Site("02", "02", value_range=(0, 1)), Site("02", "02", value_range=(-1, 1))
    assert value_range_of(ConcatDataset([SOUTH, narrow]), None) == (0, 1)
    with pytest.raises(ValueError, match=r"part 0 \(Site\) \(0.0, 1.0\), part 1 \(Site\) \(-1.0, 1.0\)"):
        value_range_of(ConcatDataset([narrow, Subset(wide, [0])]), None)
    assert value_range_of(Subset(wide, [1]), None) == (-1, 1)
    with pytest.raises(ValueError, match=r"value_range=\(0, 1\): Site declares \(-1.0, 1.0\)"):
        value_range_of(Subset(wide, [1]), (0, 1))
    knees = PhantomKnees(2, image_size=64)
    assert value_range_of(Transformed(knees, v2.RandomCrop(32)), None) == (-1, 1)
    unit = Transformed(knees, lambda x: (x + 1) / 2)
    with pytest.raises(ValueError, match="seems to change the range"):
        value_range_of(unit, None)
    assert value_range_of(unit, (0, 1)) == (0, 1)
    for grade in "02":
        (tmp_path / grade).mkdir()
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / grade / "1L.png")
    ways = (Preprocessing(64), Preprocessing(64, mirror_right=True))
    sites = [RadiographFolder(tmp_path, preprocessing=way) for way in ways]
    with pytest.raises(ValueError, match="mirror_right was False, now True"):
        KeyExchangeDataset(ConcatDataset([sites[0], Transformed(sites[1])]), MODEL, 4)
    with pytest.raises(ValueError, match="mirror_right was False, now True"):
        LatentBank.build(ConcatDataset(sites), MODEL, tmp_path / "bank")


def test_identity_follows_rows_and_what_a_wrapper_does():
    """A cache of other rows, labels or pixels is another one."""
    plain, knees = identity(Knees()), Knees()
    assert identity(knees) == plain
    others = [
        Subset(knees, range(19)),
        Subset(knees, [*range(19), 18]),
        ConcatDataset([knees, Knees(2)]),
        Transformed(knees),
        Transformed(knees, lambda x: x / 2),
        Transformed(knees, relabel=lambda y: 1 - y),
        Knees(20, 1),
    ]
    each = [plain, *map(identity, others)]
    assert all(a != b for i, a in enumerate(each) for b in each[:i])


def test_bad_sets_are_told_in_words():
    """An iterable, and a set that is none."""
    for wrong in (iter([1]), 3):
        with pytest.raises(TypeError, match="accepted is a map-style Dataset"):
            labels_of(wrong)
