"""Files on disk -> grey images in [0, 1]; what is not one is refused with its name and a reason."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kecae_aug.data import BadImageError, BadImagesError, read_image
from kecae_aug.data.reading import bad_files

GREY = np.random.default_rng(0).integers(0, 256, (24, 20)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (24, 20, 3)).astype(np.uint8)
shared_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def as_bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def save_dicom(path: Path, pixels: np.ndarray, photometric="MONOCHROME2", **tags) -> Path:
    """Write a DICOM file with pydicom itself: integer pixels, or Float Pixel Data for a float array."""
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra [dicom]")
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    d = pydicom.Dataset()
    d.file_meta = pydicom.dataset.FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = SecondaryCaptureImageStorage
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = "1.2.3"
    d.PhotometricInterpretation = photometric
    colour = photometric == "RGB"
    d.SamplesPerPixel = 3 if colour else 1
    if colour:
        d.PlanarConfiguration = 0
    d.Rows, d.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    if pixels.ndim == 3 and not colour:
        d.NumberOfFrames = len(pixels)
    d.BitsAllocated = 8 * pixels.itemsize
    if pixels.dtype.kind == "f":
        d.FloatPixelData = pixels.astype("<f4").tobytes()
    else:
        d.BitsStored, d.HighBit = d.BitsAllocated, d.BitsAllocated - 1
        d.PixelRepresentation = int(pixels.dtype.kind == "i")
        d.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(d, name, value)
    d.save_as(path, enforce_file_format=True)
    return path


def test_grey_png_is_exact(tmp_path):
    """8 bits come back as k/255, whatever the container: grey, grey RGB(A), grey with alpha, palette."""
    image = Image.fromarray(GREY)
    for mode in ("L", "LA", "RGB", "RGBA", "P"):
        path = tmp_path / f"{mode}.png"
        image.convert(mode).save(path)
        np.testing.assert_array_equal(
            read_image(path), GREY.astype(np.float32) / np.float32(255), err_msg=mode
        )
    image.save(tmp_path / "see-through.png", transparency=7)
    np.testing.assert_allclose(read_image(tmp_path / "see-through.png"), GREY / 255, atol=1e-6)


def test_sixteen_bits_stay_sixteen(tmp_path):
    """Every one of the 65,536 levels of a 16-bit PNG survives: no detour by 8 bits."""
    levels = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(levels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(np.rint(image.astype(np.float64) * 65535), levels)
    assert (image.min(), image.max(), image.dtype) == (0, 1, np.float32)


def test_jpeg_follows_its_orientation(tmp_path):
    """A sideways JPEG with EXIF orientation 6 is turned upright, as every viewer shows it."""
    smooth = Image.fromarray(np.add.outer(np.arange(32) * 5, np.arange(48) * 2).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90 degrees clockwise to view"
    smooth.save(tmp_path / "a.jpg", quality=95, exif=exif)
    wanted = np.rot90(np.asarray(smooth), -1) / 255
    assert read_image(tmp_path / "a.jpg").shape == (48, 32)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg"), wanted, atol=0.02)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"name,grade\n9001,2\n", "not an image"),
        (as_bytes(Image.fromarray(GREY), "GIF"), "not an image"),
        (as_bytes(Image.fromarray(GREY))[:-60], "truncated"),
        (as_bytes(Image.fromarray(GREY), "JPEG")[:-200], "truncated"),
        (as_bytes(Image.fromarray(COLOUR)), "colour"),
        (as_bytes(Image.fromarray(COLOUR).convert("P")), "colour"),
        (as_bytes(Image.fromarray(COLOUR), "JPEG"), "colour"),
    ],
    ids=["empty", "text", "gif", "short-png", "short-jpeg", "colour-png", "colour-palette", "colour-jpeg"],
)
def test_bad_files_say_which_and_why(tmp_path, data, reason):
    """Each kind of bad file gives a BadImageError with its path and its reason."""
    path = tmp_path / "9001L.png"
    path.write_bytes(data)
    with pytest.raises(BadImageError, match=reason) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(BadImageError, match=r"gone\.png: No such file"):
        read_image(tmp_path / "gone.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about the damage
@shared_folder
@given(st.data())
def test_damage_is_never_a_strange_error(tmp_path, data):
    """Any damage to a PNG, JPEG or DICOM file gives an image in [0, 1] or a BadImageError, nothing else."""
    whole = data.draw(st.sampled_from(WHOLE))(tmp_path)
    cut = data.draw(st.integers(1, len(whole)))
    damaged = bytearray(whole[:cut])
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, cut - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.png"
    path.write_bytes(bytes(damaged))
    try:
        image = read_image(path)
    except BadImageError:
        return
    assert image.ndim == 2
    assert image.dtype == np.float32
    assert 0 <= image.min() <= image.max() <= 1


WHOLE = [
    lambda folder: as_bytes(Image.fromarray(GREY)),
    lambda folder: as_bytes(Image.fromarray(GREY), "JPEG"),
    lambda folder: as_bytes(Image.fromarray(GREY.astype(np.uint16) * 257)),
    lambda folder: save_dicom(folder / "whole.dcm", GREY).read_bytes(),
]


def test_dicom_is_windowed_by_percentile(tmp_path):
    """After the rescale, the percentiles become 0 and 1 and the rest is linear between them."""
    pixels = np.random.default_rng(2).integers(0, 4096, (40, 30)).astype(np.uint16)
    path = save_dicom(tmp_path / "a.dcm", pixels, RescaleSlope="2", RescaleIntercept="-1000")
    low, high = np.percentile(pixels, (0.5, 99.5))
    np.testing.assert_allclose(read_image(path), np.clip((pixels - low) / (high - low), 0, 1), atol=1e-6)
    np.testing.assert_allclose(read_image(path, window=(0, 100)).min(), 0)
    with pytest.raises(ValueError, match="window"):
        read_image(path, window=(90, 10))


def test_monochrome1_is_turned(tmp_path):
    """MONOCHROME1 stores bone dark; both interpretations of one knee give the same image."""
    pixels = np.random.default_rng(3).integers(0, 4096, (40, 30)).astype(np.uint16)
    one = read_image(save_dicom(tmp_path / "1.dcm", 4095 - pixels, "MONOCHROME1"))
    two = read_image(save_dicom(tmp_path / "2.dcm", pixels))
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_dicom_needs_no_suffix(tmp_path):
    """DICOM files often have none; they are known by their first bytes."""
    path = save_dicom(tmp_path / "001", GREY)
    assert read_image(path).shape == GREY.shape


def test_bad_dicom(tmp_path):
    """NaN, infinity, colour, several frames, no contrast and no pixels are refused, each by its reason."""
    nan, inf = np.ones((2, 8, 8), np.float32)
    nan[2, 3], inf[1, 1] = np.nan, np.inf
    empty = save_dicom(tmp_path / "empty.dcm", GREY)
    empty.write_bytes(empty.read_bytes()[: -GREY.size])
    files = {
        save_dicom(tmp_path / "nan.dcm", nan): "1 NaN or infinite",
        save_dicom(tmp_path / "inf.dcm", inf): "1 NaN or infinite",
        save_dicom(tmp_path / "rgb.dcm", COLOUR, "RGB"): "wrong mode: a colour image",
        save_dicom(tmp_path / "film.dcm", np.stack([GREY, GREY])): "2 frames",
        save_dicom(tmp_path / "flat.dcm", np.full_like(GREY, 7)): "no contrast",
        empty: "truncated",
    }
    found = dict(bad_files(files))
    for path, reason in files.items():
        assert reason in found[path], found[path]
        assert str(path) in found[path]


def test_without_pydicom(tmp_path, monkeypatch):
    """Without the extra, a DICOM file names it instead of counting as a bad file."""
    path = save_dicom(tmp_path / "a.dcm", GREY)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"pip install 'kecae-aug\[dicom\]'"):
        bad_files([path])


def test_long_lists_are_cut_in_the_text_only():
    """A thousand bad files give a readable message, and all of them in .bad, also after pickling."""
    import pickle

    error = BadImagesError([(Path(f"{i}.png"), f"{i}.png: zero bytes") for i in range(1000)])
    again = pickle.loads(pickle.dumps(error))
    assert len(again.bad) == 1000
    assert str(again) == str(error)
    assert "1000 bad files" in str(error)
    assert "and 980 more" in str(error)
    assert len(str(error).splitlines()) < 25
