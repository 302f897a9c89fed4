"""Contact sheets: a labelled grid of radiographs as one PNG, to look at what an exchange does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_GAP, _HEAD, _SIDE = 6, 26, 150


def contact_sheet(
    columns: Mapping[str, Tensor],
    rows: Sequence[str] = (),
    *,
    cell: int = 128,
    path: str | Path | None = None,
) -> Image.Image:
    """Draw one column for each kind of image and one row for each case.

    Args:
        columns: heading -> (N, 1, S, S) images in [-1, 1], the same N for all.
        rows: text at the left of each row, or nothing.
        cell: side of a drawn image in pixels.
        path: where to save the PNG; not saved if None.

    Returns:
        The sheet, RGB.
    """
    counts = {len(images) for images in columns.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"columns: {[len(i) for i in columns.values()]} images, accepted is the same number, at least 1"
        )
    n, side = counts.pop(), _SIDE if rows else _GAP
    font = ImageFont.load_default(13)
    sheet = Image.new(
        "RGB", (side + len(columns) * (cell + _GAP) + _GAP, _HEAD + n * (cell + _GAP)), (24, 24, 27)
    )
    draw = ImageDraw.Draw(sheet)
    for c, (heading, images) in enumerate(columns.items()):
        x = side + c * (cell + _GAP)
        draw.text((x + cell / 2, _HEAD / 2), heading, fill=(235, 235, 235), font=font, anchor="mm")
        for r, image in enumerate(images):
            sheet.paste(_grey(image, cell), (x, _HEAD + r * (cell + _GAP)))
    for r, text in enumerate(rows):
        draw.multiline_text(
            (8, _HEAD + r * (cell + _GAP) + cell / 2), text, fill=(200, 200, 200), font=font, anchor="lm"
        )
    if path is not None:
        sheet.save(path)
    return sheet


def _grey(image: Tensor, cell: int) -> Image.Image:
    pixels = ((image.detach().float().cpu()[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    return Image.fromarray(np.asarray(pixels)).resize((cell, cell), Image.Resampling.BILINEAR)
