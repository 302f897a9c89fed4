"""On phantoms the right answer can be drawn: X' against ``host.with_key(donor.key)``.

A folder of `kecae-aug phantoms` has ``truth-<split>.jsonl`` beside its images; where it is there, `evaluate` uses it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kecae_aug.data import Preprocessing
from kecae_aug.data.alignment import align, place
from kecae_aug.phantom import KneeNuisance, KneeTruth, render
from kecae_training.evaluate.anatomy import Floats
from kecae_training.evaluate.exchanged import Kind
from kecae_training.evaluate.measures import Bools, Bootstrap, ratio

SPURS = ("medial_femur", "lateral_femur", "medial_tibia", "lateral_tibia")
Draw = Callable[[KneeTruth], Tensor]


class Truths:
    """What is true of every knee, and how it is drawn as the weights see it.

    Args:
        truths: of every knee.
        draw: truth -> (1, S, S) in [-1, 1].
    """

    def __init__(self, truths: Sequence[KneeTruth], draw: Draw) -> None:
        self.truths, self.draw = list(truths), draw

    def wanted(self, donors: Tensor) -> Tensor:
        """(N, 1, S, S): every host with its donor's key, the exchange as it should be."""
        return torch.stack([self.draw(t.with_key(self.truths[d].key)) for t, d in self._pairs(donors)])

    def only_osteophytes(self, donors: Tensor) -> Tensor:
        """(N, 1, S, S): every host with its donor's osteophytes and all else its own."""
        return torch.stack(
            [
                self.draw(t.with_key(replace(t.key, **{k: getattr(self.truths[d].key, k) for k in SPURS})))
                for t, d in self._pairs(donors)
            ]
        )

    def own(self) -> Tensor:
        """(N, 1, S, S): every knee as it is."""
        return torch.stack([self.draw(t) for t in self.truths])

    def _pairs(self, donors: Tensor) -> list[tuple[KneeTruth, int]]:
        return list(zip(self.truths, donors.tolist(), strict=True))


def open_truths(
    data: Path, split: str | None, files: Sequence[str], preprocessing: Preprocessing
) -> Truths | None:
    """The truths of a folder of `kecae-aug phantoms`, in the order of ``files``; None for any other folder.

    Args:
        data: the folder.
        split: of it.
        files: names below ``data``.
        preprocessing: of the weights; the truth is drawn at the files' size and then preprocessed as the files are. With
            ``align`` a host with another key goes where the host went, not where its new joint line would take it.

    Raises:
        ValueError: a truth file that does not know one of the files.
    """
    from PIL import Image

    path = data / f"truth-{split}.jsonl"
    if not path.is_file():
        return None
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    known = {row["file"]: KneeTruth.from_json(json.dumps(row["truth"])) for row in rows}
    missing = [name for name in files if name not in known]
    if missing:
        raise ValueError(
            f"{path}: it has no truth of {len(missing)} files of split {split!r} (first: {missing[0]}); draw the folder "
            "anew with `kecae-aug phantoms`, or move the truth file away to evaluate without it"
        )
    with Image.open(data / files[0]) as image:
        size = image.size[0]

    truths = [known[name] for name in files]
    hosts = {truth.nuisance: truth for truth in truths}  # with_key keeps the nuisance
    unaligned = replace(preprocessing, align=False)

    def in_its_place(truth: KneeTruth) -> Tensor:
        return unaligned(render(truth, size), truth.nuisance.side)

    @cache
    def pose(nuisance: KneeNuisance) -> Tensor:
        return align(in_its_place(hosts[nuisance])).matrix

    def draw(truth: KneeTruth) -> Tensor:
        image = in_its_place(truth)
        return place(image, pose(truth.nuisance)) if preprocessing.align else image

    return Truths(truths, draw)


def projections(change: Tensor, spurs: Tensor, rest: Tensor) -> NDArray[np.float64]:
    """(N, 8) sums over the pixels: what the least squares of a change on two true changes need.

    Args:
        change: (N, 1, S, S) X' less X' without an exchange.
        spurs: (N, 1, S, S) what the osteophytes should change.
        rest: what all else of the key should change.
    """
    c, s, r = (t.flatten(1).double() for t in (change, spurs, rest))
    whole = s + r
    sums = [
        (a * b).sum(1)
        for a, b in ((s, s), (s, r), (r, r), (c, s), (c, r), (c, c), (c, whole), (whole, whole))
    ]
    return torch.stack(sums, 1).numpy()


def against_truth(boot: Bootstrap, sums: NDArray[np.float64], rows: Bools) -> dict[str, Any]:
    """Figures of one direction from :func:`projections`, as draws. 1 is exactly right in all of them.

    Returns:
        ``osteophytes``, ``joint_space_and_sclerosis``: how much of each true change is in the image, from least squares
        with both; ``whole``: the change projected on the whole true change; ``explained``: the fraction of the squared
        change that lies along the true one, 0 to 1; the rest changes what should have stayed.
    """
    ss, sr, rr, cs, cr, cc, cw, ww = (boot.weights[:, rows] @ sums[rows]).T
    det = ss * rr - sr**2
    return {
        "osteophytes": ratio(cs * rr - cr * sr, det),
        "joint_space_and_sclerosis": ratio(cr * ss - cs * sr, det),
        "whole": ratio(cw, ww),
        "explained": ratio(cw**2, ww * cc),
    }


def phantom_anatomy(
    boot: Bootstrap,
    truths: Truths,
    donors: Tensor,
    of_direction: Mapping[str, Bools],
    changes: Mapping[Kind, tuple[Tensor, Floats]],
    read: Callable[[Tensor], Floats],
) -> dict[str, Any]:
    """X' against the drawn truth, as draws.

    Args:
        boot: over the hosts.
        truths: of the knees.
        donors: (N,) rows.
        of_direction: rows of each direction.
        changes: by kind, (X' less X' without an exchange, the change of the width that the JSW measurement saw).
        read: the JSW measurement, (N, 1, S, S) -> (N,) widths in percent of the image's height.

    Returns:
        By kind and direction: ``joint_space``, the mean change of the width over that from the host as drawn to the truth as
        drawn, all by the JSW measurement, so that its own error cancels; and the figures of :func:`against_truth`.
        And ``gap``: by direction the true change of the key's width, and what the JSW measurement sees of it.
    """
    own, wanted, spurred = truths.own(), truths.wanted(donors), truths.only_osteophytes(donors)
    spurs, rest = spurred - own, wanted - spurred
    should = read(wanted) - read(own)
    keys = [t.key.medial_jsw * 100 for t in truths.truths]
    true = np.array([keys[d] - keys[i] for i, d in enumerate(donors.tolist())])
    result: dict[str, Any] = {
        "gap": {
            name: {"true": boot.mean(true, rows), "by_jsw": boot.mean(should, rows)}
            for name, rows in of_direction.items()
        }
    }
    for kind, (change, seen) in changes.items():
        sums, both = projections(change, spurs, rest), np.isfinite(seen) & np.isfinite(should)
        result[str(kind)] = {
            name: {
                "joint_space": ratio(boot.sum(seen, rows & both), boot.sum(should, rows & both)),
                **against_truth(boot, sums, rows),
            }
            for name, rows in of_direction.items()
        }
    return result
