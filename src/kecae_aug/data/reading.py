"""One file -> one grey image: PNG, JPEG, 16-bit PNG, DICOM; what is wrong with it where it is not one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
GREY_TOLERANCE = 8  # of 255: JPEG's colour rounding in a grey image
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
            f"{len(self.bad)} bad files: {listed(reason for _, reason in self.bad)}\nMend or remove them, or "
            "leave them out with on_bad='skip' (they are then listed in .skipped)."
        )

    def __reduce__(self) -> tuple[type[BadImagesError], tuple[Any, ...]]:
        return type(self), (self.bad,)  # the default would rebuild it from the message


def read_image(path: str | Path, window: tuple[float, float] = WINDOW) -> Grey:
    """Decode a radiograph.

    What a file is, is read from its first bytes, not from its suffix.

    Args:
        path: PNG (1 to 16 bits a pixel), JPEG (EXIF orientation is followed) or DICOM with one grey frame.
            Colour files are accepted where the channels are equal; alpha is dropped.
        window: for DICOM, the percentiles of the pixels (after the modality LUT) that become 0 and 1;
            MONOCHROME1 is turned, so that bone is bright.

    Returns:
        (H, W) float32 in [0, 1]: 8-bit files divided by 255, 16-bit grey ones by 65535, without rounding.

    Raises:
        BadImageError: missing, empty, truncated, not an image, really coloured, several frames, NaN or
            infinite, a DICOM file without contrast.
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
        return _read_dicom(path, window) if head[128:] == b"DICM" else _read_pillow(path)
    except BadImageError as error:
        raise BadImageError(f"{path}: {error}") from error.__cause__
    except OSError as error:
        raise BadImageError(f"{path}: {error.strerror or error}") from error


def bad_files(paths: Iterable[Path]) -> list[tuple[Path, str]]:
    """Decode every file; (path, reason) of those that :func:`read_image` refuses."""
    bad = []
    for path in paths:
        try:
            read_image(path)
        except BadImageError as error:
            bad.append((path, str(error)))
    return bad


def listed(lines: Iterable[str]) -> str:
    """The first lines of a long list, for an error's text."""
    lines = list(lines)
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "".join(f"\n  {line}" for line in lines[:_SHOWN] + more)


def _read_pillow(path: Path) -> Grey:
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise BadImageError(f"{opened.width} x {opened.height} pixels, accepted are {MAX_PIXELS:,}")
            image = ImageOps.exif_transpose(opened)  # decodes: a truncated file fails here, not at its use
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("not an image (accepted are PNG, JPEG and DICOM)") from error
    except Exception as error:  # damaged bytes reach every corner of a decoder; Pillow raises ten types
        raise BadImageError(f"truncated or damaged ({str(error)[:120]})") from error
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):  # Pillow before 11.3 opens 16-bit grey PNG as "I"
        return np.asarray(image, dtype=np.float32) / np.float32(65535)
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"), dtype=np.float32) / np.float32(255)
    if image.mode not in ("P", "PA", "RGB", "RGBA", "CMYK"):
        raise BadImageError(f"wrong mode: {image.mode}, accepted are grey, 16-bit grey and grey RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    colours = np.asarray(image.convert("RGB"), dtype=np.int16)
    # The 99th percentile: a small coloured side marker does not make a radiograph a colour image.
    spread = np.percentile(colours.max(2) - colours.min(2), 99)
    if spread > GREY_TOLERANCE:
        raise BadImageError(f"wrong mode: a colour image (channels differ by {spread:.0f} of 255)")
    return np.asarray(image.convert("RGB").convert("L"), dtype=np.float32) / np.float32(255)


def _read_dicom(path: Path, window: tuple[float, float]) -> Grey:
    try:
        import pydicom
        from pydicom.pixels.processing import apply_modality_lut
    except ImportError as error:
        raise ImportError(f"{path}: DICOM files need pydicom: pip install 'kecae-aug[dicom]'") from error
    try:
        file = pydicom.dcmread(path)
        photometric = str(file.get("PhotometricInterpretation", "")) or "no photometric interpretation"
        frames = int(file.get("NumberOfFrames", 1) or 1)
        if photometric not in ("MONOCHROME1", "MONOCHROME2"):
            raise BadImageError(f"wrong mode: {photometric}, accepted are MONOCHROME1 and MONOCHROME2")
        if frames != 1:
            raise BadImageError(f"{frames} frames, accepted is one: save it as a file of its own")
        pixels: Any = apply_modality_lut(file.pixel_array, file)
        values = np.asarray(pixels, dtype=np.float64)
    except BadImageError:
        raise
    except Exception as error:  # as above; a missing decompressor's message names what to install
        raise BadImageError(f"truncated, damaged or unreadable DICOM ({str(error)[:200]})") from error
    if values.ndim != 2:
        raise BadImageError(f"pixels of shape {values.shape}, accepted is (H, W)")
    if not np.isfinite(values).all():
        raise BadImageError(f"{(~np.isfinite(values)).sum()} NaN or infinite pixels")
    low, high = np.percentile(values, window)
    if high <= low:
        raise BadImageError(f"no contrast: percentiles {window[0]} and {window[1]} are both {low:g}")
    values = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(1 - values if photometric == "MONOCHROME1" else values, dtype=np.float32)
