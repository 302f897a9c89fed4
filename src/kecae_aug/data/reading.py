"""One file -> one grey image: PNG, JPEG, TIFF, DICOM; what is wrong with it where it is not one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from kecae_aug.engine.intensity import CHANNEL_TOLERANCE, COLOURED_FRACTION

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom")
DEPTHS = (8, 10, 12, 14)  # bits that are stored in 16
WINDOW = (0.5, 99.5)  # percentiles that become black and white in a DICOM file
MAX_PIXELS = 100_000_000  # a full-leg radiograph has 30 million
_SHOWN = 20  # files that an error names; its .bad lists all

Grey = npt.NDArray[np.float32]


class BadImageError(ValueError):
    """A file that is not a usable radiograph; the message says which and why."""


class BadImagesError(ValueError):
    """Files that cannot be used, all of them: ``bad`` is a list of (path, reason)."""

    def __init__(self, bad: Sequence[tuple[Path, str]]) -> None:
        self.bad = list(bad)
        super().__init__(
            f"{len(self.bad)} bad files: {show_first(reason for _, reason in self.bad)}\nMend or remove them, or "
            "leave them out with on_bad='skip' (they are then listed in .skipped)."
        )

    def __reduce__(self) -> tuple[type[BadImagesError], tuple[Any, ...]]:
        return type(self), (self.bad,)  # the default would rebuild it from the message


def read_image(path: str | Path, window: tuple[float, float] = WINDOW) -> Grey:
    """Decode a radiograph.

    What a file is, is read from its first bytes, not from its suffix.

    Args:
        path: PNG (1 to 16 bits a pixel), JPEG (EXIF orientation is followed), TIFF of one page, or DICOM with one frame,
            also without a preamble. Colour files are accepted where the channels are equal (:mod:`kecae_aug.grey`); alpha is
            dropped.
        window: for DICOM, the percentiles of the pixels that become 0 and 1, after the modality LUT and the file's own VOI
            LUT or window, and without its padding, which becomes 0. MONOCHROME1 and a PresentationLUTShape of INVERSE are
            turned, so that bone is bright.

    Returns:
        (H, W) float32 in [0, 1]: 8-bit files divided by 255, 16-bit grey ones by 65535, without rounding; where no
        value of a 16-bit file needs more than 8, 10, 12 or 14 bits, by the largest value of so many, with one warning.

    Raises:
        BadImageError: missing, empty, truncated, not an image, really coloured, several frames, NaN or
            infinite, a DICOM file without contrast, or in a compression whose decoder is not installed.
        ImportError: a DICOM file without pydicom.
    """
    path = Path(path)
    if not 0 <= window[0] < window[1] <= 100:
        raise ValueError(f"window={window}: accepted are two percentiles, 0 <= low < high <= 100")
    try:
        with path.open("rb") as file:
            head = file.read(132)
        if not head:
            raise BadImageError("zero bytes")
        return _read_dicom(path, window) if _is_dicom(path, head) else _read_pillow(path)
    except BadImageError as error:
        raise BadImageError(f"{path}: {error}") from error.__cause__
    except OSError as error:
        raise BadImageError(f"{path}: {error.strerror or error}") from error


def _is_dicom(path: Path, head: bytes) -> bool:
    """By the preamble's mark; without it by the groups (2, 8) that such a file begins with, or by its name."""
    if head[128:] == b"DICM":
        return True
    known = (b"\x89PNG", b"\xff\xd8", b"II*\x00", b"MM\x00*")
    begins = head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08") or path.suffix.lower() in (".dcm", ".dicom")
    return begins and not head.startswith(known)


def bad_files(paths: Iterable[Path]) -> list[tuple[Path, str]]:
    """Decode every file; (path, reason) of those that :func:`read_image` refuses."""
    bad = []
    for path in paths:
        try:
            read_image(path)
        except BadImageError as error:
            bad.append((path, str(error)))
    return bad


def show_first(lines: Iterable[str]) -> str:
    """The first lines of a long list, for an error's text."""
    lines = list(lines)
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "".join(f"\n  {line}" for line in lines[:_SHOWN] + more)


def _read_pillow(path: Path) -> Grey:
    try:
        with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise BadImageError(f"{opened.width} x {opened.height} pixels, accepted are {MAX_PIXELS:,}")
            if (pages := getattr(opened, "n_frames", 1)) != 1:
                raise BadImageError(f"{pages} pages, accepted is one: save it as a file of its own")
            is_negative = opened.format == "TIFF" and opened.tag_v2.get(262) == 0  # type: ignore[attr-defined]
            is_cut = ";16" in str(
                [tile[3] for tile in opened.tile]
            )  # of 16 bits a channel Pillow keeps the upper 8
            image = ImageOps.exif_transpose(opened)  # decodes: a truncated file fails here, not at its use
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("not an image (accepted are PNG, JPEG, TIFF and DICOM)") from error
    except Exception as error:  # damaged bytes reach every corner of a decoder; Pillow raises ten types
        raise BadImageError(f"truncated or damaged ({str(error)[:120]})") from error
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):  # Pillow before 11.3 opens 16-bit grey PNG as "I"
        unit = _of_sixteen_bits(np.asarray(image), path)
        return 1 - unit if is_negative else unit  # of 8-bit ones Pillow has turned it
    if image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        if not (values.min() >= 0 and values.max() <= 1):  # False for NaN
            raise BadImageError(
                f"floats from {values.min():g} to {values.max():g}, accepted are 0 to 1, or integers"
            )
        return 1 - values if is_negative else values
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"), dtype=np.float32) / np.float32(255)
    if image.mode not in ("P", "PA", "RGB", "RGBA", "CMYK"):
        raise BadImageError(f"wrong mode: {image.mode}, accepted are grey, 16-bit grey and grey RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    pixels = np.asarray(image.convert("RGB"))
    if is_cut and pixels.max() < 2 ** (max(DEPTHS) - 8):
        raise BadImageError(
            f"16 bits a channel of which {max(DEPTHS)} or fewer are used, so that too few levels are left; save it as "
            "16-bit grey"
        )
    _refuse_colour(pixels)
    return np.asarray(image.convert("RGB").convert("L"), dtype=np.float32) / np.float32(255)


def _of_sixteen_bits(values: npt.NDArray[Any], path: Path) -> Grey:
    """(H, W) integers of a 16-bit file -> [0, 1]; 12 bits are often stored unscaled, and would come out black."""
    top = int(values.max())
    if values.min() < 0 or top > 65535:
        raise BadImageError(f"integers from {values.min()} to {top}, accepted are 0 to 65535")
    bits = next((bits for bits in DEPTHS if top < 2**bits), 16)
    if bits < 16:
        _say_once(
            f"{bits} bits in 16-bit files: values up to {2**bits - 1} are read as 0 to 1, not up to 65535 (first: "
            f"{path}, whose largest is {top}). A true 16-bit image so dark comes out brighter; scale such files to 16 bits"
        )
    return np.asarray(values, dtype=np.float32) / np.float32(2**bits - 1)


_said: set[str] = set()


def _say_once(sentence: str) -> None:
    """A warning for the first file of a kind, not for thousands."""
    kind = sentence.partition(":")[0]
    if kind not in _said:
        _said.add(kind)
        warnings.warn(sentence, stacklevel=5)


def _refuse_colour(pixels: npt.NDArray[Any]) -> None:
    """(H, W, 3) of 8 bits: a small coloured side marker does not make a radiograph a colour image."""
    colours = pixels.astype(np.int16)
    spread = np.percentile(colours.max(2) - colours.min(2), 100 * (1 - COLOURED_FRACTION))
    if spread > 255 * CHANNEL_TOLERANCE:
        raise BadImageError(f"wrong mode: a colour image (channels differ by {spread:.0f} of 255)")


def _read_dicom(path: Path, window: tuple[float, float]) -> Grey:
    try:
        import pydicom
    except ImportError as error:
        raise ImportError(f"{path}: DICOM files need pydicom: pip install 'kecae-aug[dicom]'") from error
    try:
        file = pydicom.dcmread(path, force=True)
        if not any(name in file for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise BadImageError("not an image (accepted are PNG, JPEG, TIFF and DICOM with pixels)")
        if "TransferSyntaxUID" not in getattr(
            file, "file_meta", {}
        ):  # no preamble, so no header that says it
            _, is_little = file.original_encoding
            file.file_meta = pydicom.dataset.FileMetaDataset()
            file.file_meta.TransferSyntaxUID = _written_in(file, bool(is_little))
        photometric = str(file.get("PhotometricInterpretation", "")) or "no photometric interpretation"
        frames = int(file.get("NumberOfFrames", 1) or 1)
        if frames != 1:
            raise BadImageError(f"{frames} frames, accepted is one: save it as a file of its own")
        if photometric in ("MONOCHROME1", "MONOCHROME2"):
            values, padding = _dicom_levels(file)
        elif int(file.get("SamplesPerPixel", 1)) == 3 or photometric == "PALETTE COLOR":
            values, padding = _dicom_grey_of_colours(file, photometric)
        else:
            raise BadImageError(
                f"wrong mode: {photometric}, accepted are MONOCHROME1, MONOCHROME2 and colours that are grey"
            )
    except BadImageError:
        raise
    except Exception as error:  # as above
        if "missing dependencies" in str(error) or "no available" in str(error).lower():
            name = file.file_meta.TransferSyntaxUID.name
            raise BadImageError(
                f"compressed as {name}, and no decoder of it is installed: pip install 'kecae-aug[dicom]', which brings "
                "python-gdcm (or pylibjpeg with pylibjpeg-libjpeg)"
            ) from error
        raise BadImageError(f"truncated, damaged or unreadable DICOM ({str(error)[:200]})") from error
    if values.ndim != 2:
        raise BadImageError(f"pixels of shape {values.shape}, accepted is (H, W)")
    if not np.isfinite(values).all():
        raise BadImageError(f"{(~np.isfinite(values)).sum()} NaN or infinite pixels")
    if padding.all():
        raise BadImageError("nothing but padding")
    low, high = np.percentile(values[~padding], window)
    if high <= low:
        raise BadImageError(f"no contrast: percentiles {window[0]} and {window[1]} are both {low:g}")
    values = np.clip((values - low) / (high - low), 0, 1)
    turned = photometric == "MONOCHROME1" or str(file.get("PresentationLUTShape", "")) == "INVERSE"
    values = 1 - values if turned else values
    return np.asarray(np.where(padding, 0, values), dtype=np.float32)


def _written_in(file: Any, is_little: bool) -> Any:
    """The transfer syntax of a data set without a header, from how it was read."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    is_implicit, _ = file.original_encoding
    if is_implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian


def _dicom_levels(file: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Grey levels after the file's own lookup tables, and where its padding is."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    stored = file.pixel_array
    padding = np.zeros(stored.shape, dtype=bool)
    if (value := file.get("PixelPaddingValue")) is not None:
        limit = file.get("PixelPaddingRangeLimit", value)
        padding = (stored >= min(value, limit)) & (stored <= max(value, limit))
    values: Any = apply_modality_lut(stored, file)
    if file.get("VOILUTSequence"):
        values = _looked_up(np.asarray(values).round().astype(np.int64), file)
    elif file.get("WindowWidth") is not None and file.get("WindowCenter") is not None:
        try:
            values = apply_voi_lut(values, file, prefer_lut=False)
        except ValueError as error:  # a width of 0, as some stations write it
            _say_once(
                f"DICOM window that cannot be applied: {error} (first: {file.filename}); it is left out"
            )
    return np.asarray(values, dtype=np.float64), padding


def _looked_up(values: npt.NDArray[np.int64], file: Any) -> npt.NDArray[Any]:
    """Through the first VOI LUT. pydicom's own wraps the index where a table of 8 bits has more than 256 entries."""
    item = file.VOILUTSequence[0]
    entries, first, bits = item.LUTDescriptor
    entries = entries or 2**16
    if first >= 2**15 and values.min() < 0:  # a signed number that was written as an unsigned one
        first -= 2**16
    order = "<" if file.file_meta.TransferSyntaxUID.is_little_endian else ">"
    raw = (
        item.LUTData if isinstance(item.LUTData, bytes) else np.asarray(item.LUTData, f"{order}u2").tobytes()
    )
    packed = bits == 8 and len(raw) <= entries + 1  # two to a word
    table = np.frombuffer(raw, "u1" if packed else f"{order}u2")[:entries]
    found: npt.NDArray[Any] = table[np.clip(values - first, 0, len(table) - 1)]
    return found


def _dicom_grey_of_colours(
    file: Any, photometric: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Grey levels of a radiograph that was stored in colour; really coloured ones are refused."""
    from pydicom.pixels.processing import apply_color_lut

    pixels = file.pixel_array  # YBR comes as RGB
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, file)[..., :3]
    depth = 8 * pixels.dtype.itemsize
    eight = (pixels >> (depth - 8)) if depth > 8 else pixels
    _refuse_colour(np.asarray(eight))
    return np.asarray(pixels, dtype=np.float64).mean(2), np.zeros(pixels.shape[:2], dtype=bool)
