"""How well knees are aligned, what the way there and back costs, and how long it takes.

    python -m kecae_bench.checks.alignment_error --data ../shared/data/knee
    python -m kecae_bench.checks.alignment_error --phantoms 200

Position and tilt (mean absolute deviation from the canonical ones) before and after; how far the estimate is off when
an image is turned and moved by a known amount; the PSNR of undo(align(x)) against x; milliseconds of processor time an
image on one thread. Appends a JSON line to benchmarks/results/alignment_error.jsonl.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kecae_aug.data import Preprocessing, RadiographFolder
from kecae_aug.data.alignment import COLUMN, ROW, _sample, align, undo
from kecae_aug.phantom import PhantomKnees
from kecae_aug.phantom.truth import GRADES
from kecae_bench.record import record

TURN, RIGHT, DOWN = 4.0, 0.03, -0.025  # degrees, and fractions of the side: the known motion


def pose(matrix: Tensor) -> Tensor:
    """(N, 2, 3) -> (N, 3): column and row of the joint in percent of the side, tilt in degrees."""
    joint = torch.tensor([2 * COLUMN - 1, 2 * ROW - 1, 1.0])
    place = (matrix @ joint + 1) * 50
    tilt = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]).rad2deg()
    return torch.cat([place, tilt[:, None]], 1)


def motion() -> Tensor:
    """(2, 3), from the moved image to the image."""
    angle = torch.tensor(np.radians(TURN))
    c, s = float(angle.cos()), float(angle.sin())
    return torch.tensor([[c, -s, 2 * RIGHT], [s, c, 2 * DOWN]])


def figures(images: Tensor) -> dict[str, Any]:
    start = time.process_time()
    aligned, matrix, found = align(images)
    middle = time.process_time()
    back = undo(aligned, matrix, images)
    end = time.process_time()

    images, aligned, back, matrix = images[found], aligned[found], back[found], matrix[found]
    canonical = torch.tensor([COLUMN * 100, ROW * 100, 0.0])
    again = align(aligned)

    known = motion().expand(len(images), 2, 3)
    moved = align(_sample(images, known))
    # the image's pose as the moved image's says it: moved -> image -> what align found there
    turn, shift = known[:, :, :2], known[:, :, 2:]
    said = torch.cat([turn @ moved.matrix[:, :, :2], turn @ moved.matrix[:, :, 2:] + shift], 2)
    error = (pose(said) - pose(matrix))[moved.found].abs()
    psnr = 10 * torch.log10(4 / (back - images).square().mean((1, 2, 3)))
    names = ("column_percent", "row_percent", "tilt_degrees")

    def named(values: Tensor) -> dict[str, float]:
        return {n: round(float(v), 3) for n, v in zip(names, values, strict=True)}

    return {
        "images": len(found),
        "side_px": images.shape[-1],
        "found": round(float(found.float().mean()), 4),
        "deviation_before": named((pose(matrix) - canonical).abs().mean(0)),
        "deviation_after": named((pose(again.matrix[again.found]) - canonical).abs().mean(0)),
        "error_of_a_known_motion_median": named(error.median(0).values),
        "error_of_a_known_motion_p90": named(error.quantile(0.9, 0)),
        "round_trip_psnr_db": {
            "mean": round(float(psnr.mean()), 1),
            "p5": round(float(psnr.quantile(0.05)), 1),
        },
        "ms_an_image": {
            "align": round((middle - start) / len(found) * 1e3, 2),
            "undo": round((end - middle) / len(found) * 1e3, 2),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder of val/<grade>/")
    source.add_argument("--phantoms", type=int, help="patients, two knees each, of all grades")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--limit", type=int, default=300, help="images of --data, a seeded choice")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.phantoms:
        phantoms = PhantomKnees(args.phantoms, GRADES, image_size=args.size, seed=11, mirror_right=True)
        images = torch.stack([phantoms[i][0] for i in range(len(phantoms))])
        name = "phantoms"
    else:
        prepare = Preprocessing(args.size, mirror_right=True, fix_inverted=True)
        folder = RadiographFolder(args.data, "val", preprocessing=prepare)
        rows = np.random.default_rng(0).permutation(len(folder))[: args.limit]
        images, name = torch.stack([folder[int(i)][0] for i in rows]), "radiographs"
    record("alignment_error", {"of": name, **figures(images)})


if __name__ == "__main__":
    main()
