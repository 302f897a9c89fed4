"""What of a knee a network looks at: the whole image at another size, or the two compartments of the joint.

The published crops are in pixels of a 299 px knee, and the networks behind them have no padding: a crop of another size
ends in maps of another size (from 55 px, which is what a 128 px image would give, no layer of the last block fits).
So images of other sizes are resized to 299 first, and then cropped: the layers, parameters and receptive fields stay the
published ones, in millimetres of the knee too. The price: a small image costs as much as a 299 px one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NATIVE = 299  # side of the paper's images
ROWS = (99, 227)  # of the joint, in them
CROP = 128  # columns of each compartment, from the left edge and from the right one


def resize_to(x: Tensor, side: int) -> Tensor:
    """(B, 1, S, S) -> (B, 1, side, side), bilinear, low-passed where it shrinks; the tensor itself at its own size."""
    if x.shape[-1] == side:
        return x
    return F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)


def compartments(x: Tensor) -> Tensor:
    """Both sides of the joint, the second one mirrored: (B, 1, S, S) -> (2B, 1, 128, 128).

    The first B are columns 0:128 of rows 99:227, the last B are columns 171:299 from right to left. A mirrored knee
    therefore gives the same crops in the other order.
    """
    joint = resize_to(x, NATIVE)[:, :, slice(*ROWS)]
    return torch.cat([joint[..., :CROP], joint.flip(-1)[..., :CROP]])
