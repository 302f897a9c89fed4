"""Tables as spreadsheets, pandas and registries write them; what is not used is listed with its reason."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kecae_aug import KeyExchangeDataset, load_weights
from kecae_aug.data import (
    PatientOverlapError,
    Preprocessing,
    RadiographFolder,
    RadiographTable,
    check_disjoint,
    split_patients,
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """0.png to 9.png, of 16 px, and one with an umlaut."""
    for name in [*map(str, range(10)), "größe"]:
        Image.fromarray(np.full((16, 16), 90 + len(name), np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def table(folder: Path, text: str | bytes, **options) -> RadiographTable:
    path = folder / "knees.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return RadiographTable(path, **options)


def of_labels(*labels) -> str:
    rows = [f"{i}.png,{label},{9001 + i}" for i, label in enumerate(labels)]
    return "\n".join(["path,label,patient", *rows]) + "\n"


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_spreadsheet_writes_it_its_own_way(folder, separator, encoding, end):
    """Excel's mark, its semicolons and its 'Unicode text', LibreOffice's, an old Mac's: the same two rows."""
    lines = [
        ["path", "label", "patient", "note"],
        ["größe.png", "0", "9001", "a, b; c"],
        ["1.png", "2", "9002", ""],
    ]
    quoted = [separator.join(f'"{cell}"' for cell in line) for line in lines]
    knees = table(folder, (end.join(quoted) + end).encode(encoding))
    assert [path.name for path in knees.paths] == ["größe.png", "1.png"]
    assert (knees.classes, knees.patients) == (["0", "2"], ["9001", "9002"])


def test_a_line_that_tells_excel_its_separator_is_none_of_the_header(folder):
    """``sep=;`` is what some exports begin with; line numbers are still those of the file."""
    knees = table(folder, "sep=;\r\npath;label;patient\r\n0.png;0;1\r\n1.png;2;2\r\n")
    assert knees.classes == ["0", "2"]
    with pytest.raises(ValueError, match="line 3: no file"):
        table(folder, "sep=;\npath;label;patient\ngone.png;0;1\n1.png;2;2\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,label,patient\n0.png,0,1\ngröße.png,2,2\n".encode("cp1252"), "line 3 is not UTF-8"),
        ("path,label,patient\n0.png,0,1\n".encode("utf-16-le"), "line 1 has a zero byte"),
        (b"path,label,patient\n0.png,0,1\n1.png,\0,2\n", "line 3 has a zero byte"),
        (b"\xff\xfep\0a", "is not UTF-16"),
        ("path,label,patient,path\n0.png,0,1,x\n", r"columns \['path'\] stand in its header twice"),
        ("Path,LABEL,patient\n0.png,0,1\n", r"for instance columns=\{'label': 'LABEL', 'path': 'Path'\}"),
        ("path,label, Patient ID\n", r"columns \['patient'\] are missing; it has \['path', 'label', 'Patient ID'\]"),
        ("", "columns .* are missing; it has "),
        ("path:label:patient\n", "separated by ','"),
    ],
    ids=["cp1252", "UTF-16 without its mark", "zero byte", "half a UTF-16", "twice", "case", "another name", "empty",
         "colon"],
)  # fmt: skip
def test_a_table_that_cannot_be_read_says_where_and_the_way_out(folder, text, says):
    """The file's name is in every message; a UnicodeDecodeError alone names neither file nor line."""
    with pytest.raises(ValueError, match=says) as caught:
        table(folder, text)
    assert "knees.csv" in str(caught.value)


def test_line_numbers_are_those_of_the_file(folder):
    """Blank lines, lines of separators and cells with line breaks do not shift them, so that an editor finds the row."""
    text = 'path,label,patient,note\n\n0.png,0,1,"two\nlines"\n,,,\n   \ngone.png,0,2,x\n1.png,,3,\n1.png,2,4,\n1.png,2,4,\n'
    with pytest.raises(ValueError, match="3 bad rows") as caught:
        table(folder, text)
    for piece in ("line 7: no file", "line 8: empty", "line 10: ", "stands in line 9 already"):
        assert piece in str(caught.value)


def test_a_report_in_one_cell_is_no_error(folder):
    """csv refuses fields of 131,072 characters; the limit is raised for this table and put back."""
    before = csv.field_size_limit()
    knees = table(folder, "path,label,patient,note\n0.png,0,1," + "x" * 200_000 + "\n1.png,2,2,\n")
    assert len(knees) == 2
    assert csv.field_size_limit() == before


def test_grades_have_one_spelling(folder):
    """2, 2.0, 02 and " 2 " are one grade; classes are by value; ``grades=`` finds them in any spelling."""
    knees = table(folder, of_labels("0", "2.0", "10", "2", " 2 ", "0.0", "02"))
    assert knees.classes == ["0", "2", "10"]
    assert knees.targets == [0, 1, 2, 1, 1, 0, 1]
    assert len(RadiographTable(folder / "knees.csv", grades=(2.0, "0"))) == 6
    KeyExchangeDataset(
        table(folder, of_labels(*["0.0", "2.0"] * 4), preprocessing=Preprocessing(64)),
        load_weights("phantom"),
        4,
    )


@pytest.mark.parametrize("missing", ["", "nan", "NaN", "None", "NULL", "<NA>", "#N/A", " "])
def test_a_missing_grade_is_never_a_class(folder, missing):
    """It used to be one, and to move the others' indices; refused by its line, or skipped and listed."""
    text = of_labels("0", "2", missing, "1")
    with pytest.raises(ValueError, match="line 4: empty path, label or patient"):
        table(folder, text)
    knees = table(folder, text, on_bad="skip")
    assert (knees.classes, knees.targets) == (["0", "1", "2"], [0, 2, 1])
    assert [why[:7] for _, why in knees.skipped] == ["line 4:"]
    assert "1 skipped" in repr(knees)


def test_class_indices_are_a_function_of_the_set_of_grades(folder):
    """Numbers by value, then text, whatever order rows come in and however Python hashes text in this process."""
    knees = table(folder, of_labels("severe", "2", "10", "none", "mild", "0", "2.5"))
    assert knees.classes == ["0", "2", "2.5", "10", "mild", "none", "severe"]
    assert table(folder, of_labels("mild", "0", "none", "severe", "10", "2.5", "2")).classes == knees.classes


def test_names_that_differ_in_case_only_are_spoken_of(folder):
    """Mild and mild stay two classes, as their files say, but not in silence."""
    with pytest.warns(UserWarning, match=r"\['Mild', 'mild'\].*differ in upper and lower case only"):
        table(folder, of_labels("Mild", "mild"))


def test_patients_have_one_id(folder):
    """9001.0 of pandas is 9001 in the leak check over splits; leading zeros of text stay, and a mix is spoken of."""
    head = "path,label,patient,split\n"
    with pytest.raises(PatientOverlapError, match=r"share 1 patients \(9001\)"):
        table(folder, head + "0.png,0,9001,train\n1.png,2,9001.0,val\n")
    with pytest.warns(UserWarning, match="'0012' and '12' are taken for different patients"):
        knees = table(folder, head + "0.png,0,0012,train\n1.png,2,12,val\n")
    assert knees.patients == ["0012", "12"]
    for one, other in (
        (["12"], [12]),
        ([12.0], ["12"]),
        (np.array([12]), ["12.0"]),
        ([12], np.array([12.0])),
    ):
        with pytest.raises(PatientOverlapError):
            check_disjoint(train=one, val=other)
    with pytest.raises(ValueError, match="val: 1 of 2 patients are missing"):
        check_disjoint(train=["1"], val=["2", None])
    with pytest.raises(ValueError, match="1 of 4 are missing"):
        split_patients([0, 1, 0, 1], ["a", "b", "c", float("nan")], (0.5, 0.5))


def test_skipped_rows_are_listed_by_line_and_file(folder):
    """Every row that is not used is in ``.skipped``: no file, no grade, no patient, a side, a file that is no image."""
    (folder / "9.png").write_bytes(b"no image")
    text = "path,label,patient,side\n0.png,0,1,L\ngone.png,0,2,L\n1.png,0,,L\n2.png,2,4,up\n3.png,2,5,right\n9.png,2,6,\n"
    knees = table(folder, text, on_bad="skip")
    assert [path.name for path in knees.paths] == ["0.png", "3.png"]
    assert knees.sides == ["L", "R"]
    reasons = [why for _, why in knees.skipped]
    for reason, piece in zip(
        reasons, ("line 3: no file", "line 4: empty", "line 5: side", "9.png: not an image"), strict=True
    ):
        assert piece in reason
    with pytest.raises(ValueError, match="stands in line 2 already"):
        table(folder, "path,label,patient\n0.png,0,1\n0.png,2,1\n", on_bad="skip")


def test_files_of_a_folder_that_are_not_read_are_listed(tmp_path):
    """TIFF is read; other suffixes and deeper folders are in ``.skipped``, hidden files are nobody's."""
    for grade, names in (
        ("0", ("9001L.png", "9002L.tif", "9003L.TIFF")),
        ("2", ("9004R.jpg", "9005R.dcm.png")),
    ):
        (tmp_path / grade).mkdir()
        for name in names:
            image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
            image.save(
                tmp_path / grade / name,
                {"f": "TIFF", "F": "TIFF"}.get(name[-1]) or ("TIFF" if "TIF" in name.upper() else None),
            )
    (tmp_path / "0" / "9006L.bmp").write_bytes(b"BM")
    (tmp_path / "0" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "0" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "2" / "later").mkdir()
    knees = RadiographFolder(
        tmp_path, pattern=r"(?P<patient>\d+)(?P<side>[LR])(\.dcm)?", preprocessing=Preprocessing(16)
    )
    assert [path.name for path in knees.paths] == [
        "9001L.png",
        "9002L.tif",
        "9003L.TIFF",
        "9004R.jpg",
        "9005R.dcm.png",
    ]
    knees.check()
    assert {path.name: why.split(": ")[1].split(",")[0] for path, why in knees.skipped} == {
        "9006L.bmp": "suffix .bmp",
        "Thumbs.db": "suffix .db",
        "later": "a folder inside a grade's; only files directly in it are read",
    }
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "9007L.bmp").write_bytes(b"BM")
    with pytest.raises(ValueError, match=r"\.tif.*files in \['4 \(1 other entries\)'\]"):
        RadiographFolder(tmp_path)
