"""Folders and tables of radiographs: what the lists say, and every way in which files and names can be wrong."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_reading import save_dicom
from torch.utils.data import DataLoader

from kecae_aug.data import (
    BadImageError,
    BadImagesError,
    PatientOverlapError,
    Preprocessing,
    RadiographFolder,
    RadiographTable,
    check_disjoint,
    open_radiographs,
    split_patients,
)
from kecae_aug.data.source import has_split
from kecae_aug.data.table import write_table

SMALL = Preprocessing(16)


def save(path: Path, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.arange(120).reshape(10, 12) + value).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    """train/{0,2,10}: four patients, both knees of each, in the grades of real names."""
    for i, grade in enumerate(("0", "0", "2", "10")):
        for side in "LR":
            save(tmp_path / "train" / grade / f"{9001 + i}{side}.png", 10 * i)
    return tmp_path


@pytest.fixture
def table(root) -> Path:
    """The same images as a table beside them."""
    paths = sorted((root / "train").rglob("*.png"))
    lines = [
        {"path": p.relative_to(root), "label": p.parent.name, "patient": p.stem[:-1], "side": p.stem[-1]}
        for p in paths
    ]
    return write(root / "knees.csv", lines)


def write(path: Path, lines: list[dict]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    return path


def read(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_lists_without_decoding(root):
    """Targets, patients, sides and classes come from names alone: the files may even be empty."""
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    data = RadiographFolder(root, "train", preprocessing=SMALL)
    assert data.classes == ["0", "2", "10"]  # by value, not by letter
    assert data.targets == [0, 0, 0, 0, 1, 1, 2, 2]
    assert data.patients == ["9001", "9001", "9002", "9002", "9003", "9003", "9004", "9004"]
    assert data.sides == ["L", "R"] * 4
    assert "8 images of 4 patients" in repr(data)


def test_real_folder(knee_data):
    """The public set's own counts of images, patients and grades, and no patient in both of its splits."""
    train, val = (RadiographFolder(knee_data, split, preprocessing=SMALL) for split in ("train", "val"))
    assert np.bincount(train.targets).tolist() == [2286, 1046, 1516, 757, 173]
    assert np.bincount(val.targets).tolist() == [328, 153, 212, 106, 27]
    assert (len(set(train.patients)), len(set(val.patients))) == (2889, 413)
    check_disjoint(train=train.patients, val=val.patients)
    two = RadiographFolder(knee_data, "val", grades=(0, 2), preprocessing=SMALL)
    assert two.classes == ["0", "2"]
    assert np.bincount(two.targets).tolist() == [328, 212]


def test_real_files_in_a_loader(knee_data):
    """Two worker processes give the same tensors as one, in order, in range."""
    data = RadiographFolder(
        knee_data, "val", grades=("0", "4"), preprocessing=Preprocessing(64, True, True, (1, 99))
    )
    data = data.subset(range(0, len(data), 12))
    images, targets = zip(*DataLoader(data, batch_size=8, num_workers=2), strict=True)
    torch.testing.assert_close(torch.cat(images), torch.stack([x for x, _ in data]), atol=0, rtol=0)
    assert torch.cat(targets).tolist() == data.targets
    x = torch.cat(images)
    assert (x.shape[1:], x.dtype) == ((1, 64, 64), torch.float32)
    assert -1 <= x.min() < -0.9 < 0.9 < x.max() <= 1


def test_grades_give_the_indices(root):
    """A class index is the place in ``grades``, as the weights that name them expect."""
    data = RadiographFolder(root, "train", grades=("2", "0"), preprocessing=SMALL)
    assert data.classes == ["2", "0"]
    assert data.targets == [1, 1, 1, 1, 0, 0]
    assert data[0][1] == 1
    for grades in (("0", "3"), ("0", "0"), ()):
        with pytest.raises(ValueError, match=r"grades=.*accepted"):
            RadiographFolder(root, "train", grades=grades)


def test_empty_grade_does_not_shift_the_classes(root):
    """A grade whose folder holds no readable kind of file is an error, unless it is left out by name."""
    (root / "train" / "1").mkdir()
    (root / "train" / "1" / "9009L.bmp").write_bytes(b"BM")
    with pytest.raises(ValueError, match=r"1 \(1 other entries\)"):
        RadiographFolder(root, "train")
    assert RadiographFolder(root, "train", grades=("0", "2")).classes == ["0", "2"]


def test_without_a_split(root):
    """The grades may be directly below root; splits there are recognised, not taken for grades."""
    assert len(RadiographFolder(root / "train")) == 8
    with pytest.raises(ValueError, match="or split if these are splits"):
        RadiographFolder(root)
    with pytest.raises(FileNotFoundError, match=r"holds \['train'\]"):
        RadiographFolder(root, "test")


def test_right_knees_are_mirrored_by_file_name(root):
    """With mirror_right, a right knee comes out as its mirror image and a left one as it is."""
    plain, mirrored = (
        RadiographFolder(root, "train", preprocessing=Preprocessing(16, mirror_right=on))
        for on in (False, True)
    )
    torch.testing.assert_close(mirrored[0][0], plain[0][0])
    torch.testing.assert_close(mirrored[1][0], plain[1][0].flip(-1), atol=1e-5, rtol=0)
    save(root / "train" / "0" / "9005.png")
    with pytest.raises(ValueError, match=r"1 images have no side.*9005\.png"):
        RadiographFolder(root, "train", preprocessing=Preprocessing(16, mirror_right=True))


def test_names(root):
    """A name without a patient is an error with the way out; a pattern of one's own reads other names."""
    save(root / "train" / "0" / "knee_left_A7.png")
    with pytest.raises(ValueError, match="knee_left_A7") as caught:
        RadiographFolder(root, "train")
    assert "pattern" in str(caught.value)
    assert "patients='file'" in str(caught.value)
    files = RadiographFolder(root, "train", patients="file")
    assert len(set(files.patients)) == 9
    pattern = r"knee_(?P<side>left|right)_(?P<patient>\w+)|(?:\d+[LR])"
    with pytest.raises(ValueError, match="group"):
        RadiographFolder(root, "train", pattern=r"(\d+)")
    for path in root.rglob("9*.png"):
        path.unlink()
    own = RadiographFolder(root, "train", grades=["0"], pattern=pattern)
    assert (own.patients, own.sides) == (["A7"], ["L"])


def spoil(root: Path) -> list[Path]:
    """Four bad files among the eight."""
    empty, text, short, colour = sorted(root.rglob("*.png"))[:4]
    empty.write_bytes(b"")
    text.write_text("not an image")
    short.write_bytes(short.read_bytes()[:-30])
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)).save(colour)
    return [empty, text, short, colour]


def test_check_names_all_bad_files_at_once(root):
    """One error with every bad file and its reason; a bad item by itself raises with its name."""
    bad = spoil(root)
    nan = save_dicom(root / "train" / "0" / "9006L.dcm", np.full((8, 8), np.nan, np.float32))
    data = RadiographFolder(root, "train", preprocessing=SMALL)
    with pytest.raises(BadImagesError, match="5 bad files") as caught:
        data.check()
    assert {path for path, _ in caught.value.bad} == {*bad, nan}
    for path, reason in zip(
        [*bad, nan], ["zero bytes", "not an image", "truncated", "colour", "NaN"], strict=True
    ):
        assert reason in dict(caught.value.bad)[path]
        assert f"{path}: " in str(caught.value)
    with pytest.raises(BadImageError, match="zero bytes") as one:
        data[data.paths.index(bad[0])]
    assert str(bad[0]) in str(one.value)


def test_skip_leaves_bad_files_out_and_lists_them(root):
    """on_bad="skip" gives a dataset that reads through, the same classes, and the list of what is missing."""
    bad = spoil(root)
    data = RadiographFolder(root, "train", preprocessing=SMALL, on_bad="skip")
    assert {path for path, _ in data.skipped} == set(bad)
    assert len(list(data)) == 4 == len(data.patients) == len(data.sides) == len(data.targets)
    assert data.classes == ["0", "2", "10"]
    assert "4 skipped" in repr(data)
    data.check()
    for path in data.paths:
        path.write_bytes(b"")
    with pytest.raises(BadImagesError, match="8 bad files"):
        RadiographFolder(root, "train", on_bad="skip")
    with pytest.raises(ValueError, match="accepted are 'raise' and 'skip'"):
        RadiographFolder(root, "train", on_bad="ignore")


def test_fingerprint_follows_content_and_grade(root):
    """The same files give the same fingerprint in any place and order; a byte or a grade changes it."""
    data = RadiographFolder(root, "train")
    first = data.fingerprint()
    assert RadiographFolder(root, "train").subset(range(7, -1, -1)).fingerprint() == first
    hashes = data.file_hashes()
    assert hashes["train/0/9001L.png"] == hashlib.sha256(data.paths[0].read_bytes()).hexdigest()
    moved = root.parent / (root.name + "_moved")
    root.rename(moved)
    assert RadiographFolder(moved, "train").fingerprint() == first
    save(moved / "train" / "0" / "9001L.png", 101)
    assert RadiographFolder(moved, "train").fingerprint() != first
    save(moved / "train" / "0" / "9001L.png", 0)
    assert RadiographFolder(moved, "train").fingerprint() == first
    (moved / "train" / "0" / "9001L.png").rename(moved / "train" / "2" / "9001L.png")
    assert RadiographFolder(moved, "train").fingerprint() != first


def test_subset_and_split_go_together(root):
    """Rows of split_patients open as datasets of their own, and no patient is in two of them."""
    data = RadiographFolder(root, "train", grades=("0", "2", "10"), preprocessing=SMALL)
    one, two = (data.subset(rows) for rows in split_patients(data.targets, data.patients, (0.5, 0.5)))
    check_disjoint(one=one.patients, two=two.patients)
    assert len(one) + len(two) == len(data) == 8
    assert one.classes == data.classes
    assert one[0][0].shape == (1, 16, 16)


def test_transform_gets_the_prepared_image(root):
    data = RadiographFolder(root, "train", preprocessing=SMALL, transform=lambda x: x.mean().item())
    assert -1 <= data[0][0] <= 1


def test_table_is_the_folder(root, table):
    """The same images by table and by folder: same lists, same tensors, same fingerprint."""
    folder = RadiographFolder(root, "train", preprocessing=SMALL)
    listed = RadiographTable(table, preprocessing=SMALL)
    order = [listed.paths.index(path) for path in folder.paths]
    listed = listed.subset(order)
    for name in ("targets", "patients", "sides", "classes"):
        assert getattr(listed, name) == getattr(folder, name)
    torch.testing.assert_close(listed[7][0], folder[7][0])
    assert listed.fingerprint() == folder.fingerprint()


def test_table_with_columns_of_ones_own(root, table):
    """Columns are options, side and split may be absent, and paths may start elsewhere."""
    lines = [
        {
            "file": f"train/{line['label']}/{Path(line['path']).name}",
            "KL": line["label"],
            "id": line["patient"],
        }
        for line in read(table)
    ]
    other = write(root / "lists.csv", lines)
    columns = {"path": "file", "label": "KL", "patient": "id"}
    data = RadiographTable(other, root, columns=columns)
    assert data.sides == [None] * 8
    with pytest.raises(ValueError, match=r"columns \['label', 'path', 'patient'\] are missing"):
        RadiographTable(other)
    with pytest.raises(ValueError, match=r"\['laterality'\] are missing"):
        RadiographTable(other, columns=columns | {"side": "laterality"})
    with pytest.raises(ValueError, match=r"columns: got \['grade'\]"):
        RadiographTable(other, columns={"grade": "KL"})
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        RadiographTable(root / "nowhere.csv")


def test_bad_rows_are_named_together(root, table):
    """Empty cells, missing files, files listed twice and unknown sides: one error with each row's line in the file."""
    lines = read(table)
    lines[0]["patient"] = " "
    lines[1]["path"] = "train/0/gone.png"
    lines[2]["side"] = "lateral"
    lines.append(dict(lines[4]))
    with pytest.raises(ValueError, match="4 bad rows") as caught:
        RadiographTable(write(table, lines))
    for piece in (
        "line 2: empty",
        "line 3: no file",
        "line 4: side 'lateral'",
        "line 10:",
        "in line 6 already",
    ):
        assert piece in str(caught.value)


def test_table_splits(table):
    """A split is chosen by its column; a patient in two splits is an error, whichever split is opened."""
    lines = read(table)
    for line in lines:
        line["split"] = "val" if line["patient"] == "9002" else "train"
    write(table, lines)
    train, val = (RadiographTable(table, split=s) for s in ("train", "val"))
    assert (len(train), len(val), set(val.patients)) == (6, 2, {"9002"})
    with pytest.raises(ValueError, match=r"its splits are \['train', 'val'\]"):
        RadiographTable(table, split="test")
    lines[0]["split"] = "val"
    write(table, lines)
    for split in ("train", "val", None):
        with pytest.raises(PatientOverlapError, match="share 1 patients"):
            RadiographTable(table, split=split)


def test_a_path_is_opened_as_what_it_is_and_a_written_table_is_the_folder_again(root, table, tmp_path):
    """Command lines take a folder or a table; what ``write_table`` writes is read back as the same images."""
    folder = open_radiographs(root, "train", preprocessing=SMALL)
    assert type(folder) is RadiographFolder
    assert type(open_radiographs(table)) is RadiographTable
    written = tmp_path / "elsewhere" / "t.csv"
    written.parent.mkdir()
    write_table(written, folder.rows, "train")
    again = open_radiographs(str(written), "train", preprocessing=SMALL)
    for name in ("paths", "targets", "patients", "sides", "classes"):
        assert getattr(again, name) == getattr(folder, name)
    with pytest.raises(FileExistsError):
        write_table(written, folder.rows, "val")
    assert [has_split(source, "train") for source in (root, table, written)] == [True, False, True]
    assert not any(has_split(source, "val") for source in (root, table, written))


def test_a_table_without_splits_says_how_to_open_it(table):
    with pytest.raises(ValueError, match=r"columns \['split'\] are missing.*leave split out"):
        open_radiographs(table, "train")


def test_dicom_and_png_side_by_side(root):
    """A folder may mix PNG, JPEG and DICOM files; other suffixes and hidden files are not images."""
    save_dicom(root / "train" / "0" / "9007L.dcm", np.arange(64, dtype=np.uint16).reshape(8, 8))
    save(root / "train" / "0" / "9008L.JPG")
    (root / "train" / "0" / "notes.txt").write_text("taken standing")
    (root / "train" / "0" / "._9001L.png").write_bytes(b"from a Mac")
    data = RadiographFolder(root, "train", preprocessing=SMALL)
    assert len(data) == 10
    data.check()
    assert data[data.patients.index("9007")][0].shape == (1, 16, 16)
