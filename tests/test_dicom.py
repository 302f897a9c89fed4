"""Grey levels of files as stations write them: depths, lookup tables, windows, padding, polarity, compression."""

import numpy as np
import pytest
from PIL import Image
from test_reading import save_dicom

from kecae_aug.data import BadImageError, read_image, reading
from kecae_aug.phantom import PhantomKnees

KNEE = (PhantomKnees(1, image_size=96)[0][0][0].numpy().astype(np.float64) + 1) / 2  # (96, 96) in [0, 1]
TWELVE = np.rint(KNEE * 4095).astype(np.uint16)
quiet = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def unsaid(monkeypatch):
    """Warnings that are said once a process are said in each test."""
    monkeypatch.setattr(reading, "_said", set())


def near(image, wanted, tolerance=0.02):
    assert image.shape == wanted.shape
    assert image.dtype == np.float32
    assert np.abs(image - wanted).max() < tolerance


@pytest.fixture
def plain(tmp_path):
    """The knee as a plain DICOM file of 12 bits: what the others are compared with."""
    return read_image(save_dicom(tmp_path / "plain.dcm", TWELVE))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_fewer_bits_in_sixteen_are_not_black(tmp_path, bits, suffix):
    """12 bits stored unscaled were read as 1/16 of the brightness, in silence; now by their own top, with a word."""
    pixels = np.rint(KNEE * (2**bits - 1)).astype(np.uint16)
    pixels[0, 0] = 2**bits - 1
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    if bits == 16:
        image = read_image(tmp_path / f"a.{suffix}")
    else:
        with pytest.warns(UserWarning, match=f"{bits} bits in 16-bit files"):
            image = read_image(tmp_path / f"a.{suffix}")
        assert read_image(tmp_path / f"a.{suffix}").max() == 1  # said once
    near(image, pixels / (2**bits - 1), 1e-6)


def test_tiff_of_every_kind(tmp_path, recwarn):
    """8 and 16 bits, white-is-zero, big-endian, floats in [0, 1]; other floats and several pages are refused."""
    eight, sixteen = np.rint(KNEE * 255).astype(np.uint8), np.rint(KNEE * 65535).astype(np.uint16)
    Image.fromarray(eight).save(tmp_path / "8.tif")
    Image.fromarray(eight).save(tmp_path / "8 white.tif", tiffinfo={262: 0})  # Pillow turns it, both ways
    Image.fromarray(65535 - sixteen).save(tmp_path / "16 white.tif", tiffinfo={262: 0})
    Image.fromarray(KNEE.astype(np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "big.tif").write_bytes(big_endian(sixteen))
    for name in ("8", "8 white", "16 white", "float", "big"):
        near(read_image(tmp_path / f"{name}.tif"), KNEE, 0.003)
    Image.fromarray((KNEE * 4095).astype(np.float32)).save(tmp_path / "wide.tif")
    with pytest.raises(BadImageError, match=r"floats from .* accepted are 0 to 1, or integers"):
        read_image(tmp_path / "wide.tif")
    pages = [Image.fromarray(eight)] * 2
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(BadImageError, match="2 pages"):
        read_image(tmp_path / "pages.tif")
    assert not recwarn


def big_endian(pixels):
    """A TIFF of Motorola's byte order, which Pillow reads and does not write."""
    import struct

    height, width = pixels.shape
    tags = [(256, 4, width), (257, 4, height), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
            (278, 4, height), (279, 4, pixels.nbytes)]  # fmt: skip
    data = pixels.astype(">u2").tobytes()
    entries = b"".join(
        struct.pack(">HHIHH", tag, kind, 1, value, 0)
        if kind == 3
        else struct.pack(">HHII", tag, kind, 1, value)
        for tag, kind, value in tags
    )
    return (
        b"MM\0*"
        + struct.pack(">I", 8 + len(data))
        + data
        + struct.pack(">H", len(tags))
        + entries
        + b"\0" * 4
    )


def test_colour_files_of_sixteen_bits_are_not_black_either(tmp_path):
    """Pillow keeps the upper 8 of 16 bits of RGB and grey-with-alpha: of 12 bits nothing would be left."""
    for kind, channels in (("RGB", 3), ("LA", 2)):
        for bits in (12, 16):
            path = tmp_path / f"{kind}{bits}.png"
            path.write_bytes(sixteen_bit_png(np.rint(KNEE * (2**bits - 1)).astype(np.uint16), channels))
            if bits == 16:
                near(read_image(path), KNEE, 0.006)
            else:
                with pytest.raises(BadImageError, match=r"16 bits a channel.*save it as 16-bit grey"):
                    read_image(path)


def sixteen_bit_png(pixels, channels):
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape
    planes = np.repeat(pixels[..., None], channels, 2).astype(">u2")
    if channels == 2:
        planes[..., 1] = 65535
    rows = b"".join(b"\0" + row.tobytes() for row in planes)
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2}[channels], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("padding", [0, 4095, 60000])
def test_padding_is_black_and_no_part_of_the_window(tmp_path, padding):
    """A frame of padding moved the percentiles, and a bright one became white bone."""
    framed = np.full((128, 128), padding, np.uint16)
    inner = TWELVE.clip(1, 4094)
    framed[16:112, 16:112] = inner
    image = read_image(save_dicom(tmp_path / "a.dcm", framed, PixelPaddingValue=padding))
    near(image[16:112, 16:112], read_image(save_dicom(tmp_path / "b.dcm", inner)), 1e-5)
    assert (image[:16] == 0).all()


def test_padding_of_a_range_of_signed_pixels_of_monochrome1(tmp_path):
    """PixelPaddingRangeLimit on either side, negative values, and black also where the file is a negative."""
    signed = TWELVE.astype(np.int16) - 1000
    signed[:10] = -2000
    signed[10:20] = -1990
    tags = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1980}
    image = read_image(save_dicom(tmp_path / "a.dcm", signed, "MONOCHROME1", **tags))
    assert (image[:20] == 0).all()
    near(image[20:], 1 - read_image(save_dicom(tmp_path / "b.dcm", signed[20:])), 1e-5)
    with pytest.raises(BadImageError, match="nothing but padding"):
        read_image(save_dicom(tmp_path / "c.dcm", np.full((8, 8), 7, np.uint16), PixelPaddingValue=7))


def lut(values, bits=8, first=0):
    from pydicom.dataset import Dataset

    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = [int(v) for v in values]
    item["LUTData"].VR = "US"
    return item


def test_a_files_own_table_comes_before_the_percentiles(tmp_path, plain):
    """A VOI LUT is how the station shows the knee; it is applied, and a window beside it is not."""
    from pydicom.sequence import Sequence

    steps = np.rint(255 * (np.arange(4096) / 4095) ** 0.4)
    tags = {"VOILUTSequence": Sequence([lut(steps)]), "WindowCenter": 1, "WindowWidth": 2}
    image = read_image(save_dicom(tmp_path / "a.dcm", TWELVE, BitsStored=12, HighBit=11, **tags))
    shown = steps[TWELVE]
    low, high = np.percentile(shown, (0.5, 99.5))
    near(image, ((shown - low) / (high - low)).clip(0, 1), 0.01)
    assert np.abs(image - plain).max() > 0.1
    packed = lut(steps)
    packed["LUTData"].VR, packed["LUTData"].value = "OW", steps.astype(np.uint8).tobytes()
    tags = {"VOILUTSequence": Sequence([packed])}
    near(read_image(save_dicom(tmp_path / "c.dcm", TWELVE, BitsStored=12, HighBit=11, **tags)), image, 1e-6)
    modality = {"ModalityLUTSequence": Sequence([lut(4095 - np.arange(4096), 16)])}
    turned = read_image(save_dicom(tmp_path / "b.dcm", TWELVE, BitsStored=12, HighBit=11, **modality))
    near(turned, 1 - plain, 0.02)


def test_a_files_own_window_is_applied(tmp_path, plain):
    """What lies beyond it is white or black, as on the station's screen; of several the first; 0 wide is left out."""
    narrow = {"WindowCenter": "1600", "WindowWidth": "800"}
    image = read_image(save_dicom(tmp_path / "a.dcm", TWELVE, **narrow))
    near(image, ((TWELVE - 1200.0) / 800).clip(0, 1), 0.01)
    several = {"WindowCenter": ["1600", "2000"], "WindowWidth": ["800", "4000"]}
    near(read_image(save_dicom(tmp_path / "b.dcm", TWELVE, **several)), image, 1e-6)
    with pytest.warns(UserWarning, match="window that cannot be applied.*it is left out"):
        near(
            read_image(save_dicom(tmp_path / "c.dcm", TWELVE, WindowCenter="1", WindowWidth="0")), plain, 1e-6
        )
    near(read_image(save_dicom(tmp_path / "d.dcm", TWELVE, WindowCenter="", WindowWidth="")), plain, 1e-6)
    near(read_image(save_dicom(tmp_path / "e.dcm", TWELVE, WindowCenter="1600")), plain, 1e-6)


@pytest.mark.parametrize(
    ("photometric", "shape"),
    [
        ("MONOCHROME1", None),
        ("MONOCHROME1", "INVERSE"),
        ("MONOCHROME1", "IDENTITY"),
        ("MONOCHROME2", "INVERSE"),
    ],
)
def test_negatives_are_turned_once(tmp_path, plain, photometric, shape):
    """MONOCHROME1 and PresentationLUTShape INVERSE say one thing: both together are no double negative."""
    tags = {} if shape is None else {"PresentationLUTShape": shape}
    near(read_image(save_dicom(tmp_path / "a.dcm", 4095 - TWELVE, photometric, **tags)), plain, 1e-5)


def test_a_negative_with_a_window(tmp_path):
    """Both at once, as computed radiography writes it: the window on stored values, then the turn."""
    tags = {"WindowCenter": str(4095 - 1600), "WindowWidth": "800", "PresentationLUTShape": "INVERSE"}
    image = read_image(save_dicom(tmp_path / "a.dcm", 4095 - TWELVE, "MONOCHROME1", **tags))
    near(image, ((TWELVE - 1200.0) / 800).clip(0, 1), 0.01)


def test_grey_in_colour_is_read_and_colour_is_refused(tmp_path, plain):
    """As in PNG: RGB, YBR and palette files of grey knees are knees; a coloured marker is one too; a photograph is none."""
    grey = np.rint(KNEE * 255).astype(np.uint8)
    rgb = np.repeat(grey[..., None], 3, 2)
    near(read_image(save_dicom(tmp_path / "a.dcm", rgb, "RGB")), plain, 0.02)
    marked = rgb.copy()
    marked[2:8, 2:8] = (200, 20, 20)
    near(read_image(save_dicom(tmp_path / "b.dcm", marked, "RGB"))[10:], plain[10:], 0.02)
    noise = np.random.default_rng(0).integers(0, 256, rgb.shape).astype(np.uint8)
    with pytest.raises(BadImageError, match="a colour image"):
        read_image(save_dicom(tmp_path / "c.dcm", noise, "RGB"))
    ramp = [int(v) * 257 for v in range(256)]
    tags = {}
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = np.array(ramp, "<u2").tobytes()
    near(read_image(save_dicom(tmp_path / "d.dcm", grey, "PALETTE COLOR", **tags)), plain, 0.02)
    tags["RedPaletteColorLookupTableData"] = np.array(ramp[::-1], "<u2").tobytes()
    with pytest.raises(BadImageError, match="a colour image"):
        read_image(save_dicom(tmp_path / "e.dcm", grey, "PALETTE COLOR", **tags))


def bare(path, syntax):
    """The data set alone, without the 128 bytes, the mark and the header."""
    from pydicom import Dataset, dcmread
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = syntax == "implicit", syntax != "big"
    file = Dataset()
    file.update(dict(dcmread(path).items()))
    if syntax == "big":
        file.PixelData = np.frombuffer(file.PixelData, "<u2").astype(">u2").tobytes()
    write_dataset(stream, file)
    out = path.with_name(f"bare-{syntax}")
    out.write_bytes(stream.getvalue())
    return out


@quiet
@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big"])
def test_dicom_without_a_preamble(tmp_path, plain, syntax):
    """Older archives cut it off; the file is known by its first tag, also without a suffix, in any byte order."""
    path = bare(save_dicom(tmp_path / "a.dcm", TWELVE), syntax)
    near(read_image(path), plain, 1e-6)
    named = path.rename(tmp_path / "b.dcm")
    near(read_image(named), plain, 1e-6)


@quiet
def test_what_only_looks_like_dicom_is_refused_in_words(tmp_path):
    """A report without pixels, a text file called .dcm, and a PNG called .dcm, which is read."""
    from pydicom import dcmread

    report = dcmread(save_dicom(tmp_path / "a.dcm", TWELVE))
    del report.PixelData
    report.save_as(tmp_path / "report.dcm")
    (tmp_path / "text.dcm").write_text("name,grade\n9001,2\n" * 40)
    for name in ("report", "text"):
        with pytest.raises(BadImageError, match=f"{name}.dcm: (not an image|truncated)"):
            read_image(tmp_path / f"{name}.dcm")
    Image.fromarray(np.rint(KNEE * 255).astype(np.uint8)).save(tmp_path / "png.dcm", "PNG")
    near(read_image(tmp_path / "png.dcm"), KNEE, 0.003)


def compressed(path, kind):
    """The same file in another transfer syntax, by gdcm itself."""
    gdcm = pytest.importorskip("gdcm", reason="needs the extra [dicom]")
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, kind)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    out = path.with_name(f"{kind}.dcm")
    writer.SetFileName(str(out))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return out


LOSSLESS = [
    "JPEGLosslessProcess14_1",
    "JPEGLosslessProcess14",
    "JPEG2000Lossless",
    "RLELossless",
    "JPEGLSLossless",
]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_compression_changes_no_pixel(tmp_path, plain, kind):
    """JPEG Lossless is what digital radiography sends; ``kecae-aug[dicom]`` brings its decoder."""
    path = compressed(save_dicom(tmp_path / "a.dcm", TWELVE, BitsStored=12, HighBit=11), kind)
    assert path.stat().st_size < 0.95 * TWELVE.nbytes
    near(read_image(path), plain, 1e-6)


def test_a_missing_decoder_is_named(tmp_path, monkeypatch):
    """Where no plugin can decode it, the words are what to install, not pydicom's list of missing dependencies."""
    path = compressed(
        save_dicom(tmp_path / "a.dcm", TWELVE, BitsStored=12, HighBit=11), "JPEGLosslessProcess14_1"
    )
    from pydicom.pixels.decoders import JPEGLosslessSV1Decoder

    monkeypatch.setattr(JPEGLosslessSV1Decoder, "_available", {})
    with pytest.raises(
        BadImageError, match=r"compressed as JPEG Lossless.*kecae-aug\[dicom\].*python-gdcm.*pylibjpeg"
    ):
        read_image(path)
