"""Precision and recall of the detector of inverted exposures, on radiographs inverted on purpose.

    python -m kecae_bench.checks.inverted_exposures --data ../shared/data/knee --sheet /tmp/flagged.png
    python -m kecae_bench.checks.inverted_exposures --data ../shared/data/knee --not-negative train/2/9857800L.png

A seeded half of the images is inverted. Images that are negatives by nature are noise in these labels, so two
pairs of figures come out: against what was inverted, and, with the labels of natural negatives corrected, against
what the images show. A natural negative is a flagged image that a viewer of the sheet did not name in
--not-negative; one that was not flagged stays unknown, which flatters the corrected recall if there is any.
The same is measured on tighter crops, which cut off the limb's sides that the detector looks at. Appends one JSON
line to benchmarks/results/inverted_exposures.jsonl. The sheet shows radiographs and must stay out of the project.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.v2.functional import resize
from torchvision.utils import save_image

from kecae_aug.data import inversion_score, read_image
from kecae_aug.data.reading import SUFFIXES
from kecae_bench.record import PROJECT, record

CROPS = (1.0, 0.9, 0.8, 0.7)  # side of the central crop; 1 is the image itself
Flags = npt.NDArray[np.bool_]


def figures(flagged: Flags, inverted: Flags) -> dict[str, float | int]:
    true, false = int((flagged & inverted).sum()), int((flagged & ~inverted).sum())
    missed = int((~flagged & inverted).sum())
    return {
        "precision": round(true / max(true + false, 1), 5),
        "recall": round(true / max(true + missed, 1), 5),
        "true_positives": true,
        "false_positives": false,
        "false_negatives": missed,
        "true_negatives": int((~flagged & ~inverted).sum()),
    }


def central(image: npt.NDArray[np.float32], side: float) -> npt.NDArray[np.float32]:
    top, left = (round(n * (1 - side) / 2) for n in image.shape)
    return image[top : image.shape[0] - top, left : image.shape[1] - left]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of limb radiographs, searched throughout"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the half that is inverted")
    parser.add_argument(
        "--not-negative", nargs="*", default=[], help="flagged files that are no negatives, as seen"
    )
    parser.add_argument(
        "--sheet", type=Path, help="write a contact sheet of all flagged and the 60 next images"
    )
    args = parser.parse_args()
    if args.sheet is not None and args.sheet.resolve().is_relative_to(PROJECT):
        parser.error(f"--sheet {args.sheet}: it shows radiographs; write it outside the project {PROJECT}")

    begin = time.perf_counter()
    paths = sorted(p for p in args.data.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        parser.error(f"--data {args.data}: no {', '.join(SUFFIXES)} files")
    names = [p.relative_to(args.data).as_posix() for p in paths]
    inverted = np.zeros(len(paths), dtype=bool)
    inverted[np.random.default_rng(args.seed).permutation(len(paths))[: len(paths) // 2]] = True
    natural_scores = np.zeros(len(paths))
    scores = {side: np.zeros(len(paths)) for side in CROPS}
    for i, path in enumerate(paths):
        image = read_image(path)
        natural_scores[i] = inversion_score(image)
        shown = 1 - image if inverted[i] else image
        for side in CROPS:
            scores[side][i] = inversion_score(central(shown, side))
    wrong = sorted(set(args.not_negative) - {n for n, s in zip(names, natural_scores, strict=True) if s > 0})
    if wrong:
        parser.error(f"--not-negative: {wrong} are not among the flagged images")
    natural = (natural_scores > 0) & ~np.isin(names, args.not_negative)

    for i in np.flatnonzero(natural_scores > 0).tolist():
        print(f"flagged {natural_scores[i]:+.2f} {names[i]}")
    record(
        "inverted_exposures",
        {
            "images": len(paths),
            "seed": args.seed,
            "inverted_on_purpose": int(inverted.sum()),
            "against_what_was_inverted": figures(scores[1.0] > 0, inverted),
            "natural_images_flagged": int((natural_scores > 0).sum()),
            "of_these_seen_not_to_be_negatives": sorted(args.not_negative),
            "against_what_the_images_show": figures(scores[1.0] > 0, inverted ^ natural),
            "central_crops": {str(side): figures(scores[side] > 0, inverted ^ natural) for side in CROPS[1:]},
            "lowest_score_of_a_natural_negative": round(float(natural_scores[natural].min()), 3)
            if natural.any()
            else None,
            "highest_scores_of_the_others": np.sort(natural_scores[~natural])[::-1][:5].round(3).tolist(),
            "seconds": round(time.perf_counter() - begin, 1),
        },
    )
    if args.sheet is not None:
        order = np.argsort(-natural_scores)[: int((natural_scores > 0).sum()) + 60]
        tiles = [
            resize(torch.from_numpy(read_image(paths[i]))[None], [128, 128], antialias=True) for i in order
        ]
        save_image(tiles, args.sheet, nrow=12, padding=2, normalize=True, scale_each=True)
        print(f"{args.sheet}: {len(order)} images by falling score, the last 60 not flagged")


if __name__ == "__main__":
    main()
