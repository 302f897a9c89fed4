"""Whether the exchange moves the joint: the JSW measurement on X, X^ and X', and on phantoms the drawn truth.

"Moved" is the mean change of the medial joint-space width over the gap between the two grades, which the same JSW
measurement measures on the real knees: 0 is nothing, 1 exactly right, above 1 too much. The change is measured against
what X' would be without an exchange (X^ for ``detail="decoder"``, the host for ``detail="host"``).
On real knees the JSW measurement is a proxy that no reader has checked. On phantoms the exchange as it should be can be
drawn: ``host.with_key(donor.key)``. A folder of `kecae-aug phantoms` has ``truth-<split>.jsonl`` beside its images; where it
is there, `evaluate` uses it.
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
from scipy.stats import rankdata
from torch import Tensor

from kecae_aug.data import Preprocessing
from kecae_aug.data.alignment import align, place
from kecae_aug.phantom import KneeNuisance, KneeTruth, render
from kecae_aug.phantom.jsw import JointSpace, measure
from kecae_aug.phantom.truth import Side
from kecae_training.bootstrap import Bools, Bootstrap, Draws, ratio
from kecae_training.evaluate.exchanges import Kind

Floats = NDArray[np.float64]
SPURS = ("medial_femur", "lateral_femur", "medial_tibia", "lateral_tibia")
Draw = Callable[[KneeTruth], Tensor]


def read(images: Tensor, medial: Sequence[Side | None]) -> list[JointSpace]:
    """The JSW measurement on (N, 1, S, S) images; where the medial side is not known, it is read as if at the left."""
    return [measure(image[0], side or "L") for image, side in zip(images, medial, strict=True)]


def widths(readings: Sequence[JointSpace]) -> Floats:
    """(N,) medial joint-space width in percent of the image's height; NaN where the JSW measurement declined."""
    return np.array([100 * r.medial for r in readings])


def fit_change(boot: Bootstrap, change: Floats, gap: Floats, of: Bools) -> Draws:
    """Slope through the origin of (N,) changes over the (D, N) gaps they should cover; for one gap, a ratio of means."""
    keep = of & np.isfinite(change)
    w, g = boot.weights[:, keep], gap[:, keep]
    return ratio((w * g * change[keep]).sum(1), (w * g * g).sum(1))


def measure_gaps(boot: Bootstrap, real: Floats, labels: Tensor, target: Tensor) -> Floats:
    """(D, N) mean width of the donor's grade less that of the host's, for every draw and host."""
    grades = range(int(max(labels.max(), target.max())) + 1)
    means = np.stack([boot.mean(real, labels.numpy() == g) for g in grades], 1)
    return np.asarray(means[:, target.numpy()] - means[:, labels.numpy()])


def correlate_with_strength(
    strengths: Sequence[float], by_strength: Sequence[Floats], sign: Floats
) -> Floats:
    """(N,) Spearman's rank correlation of strength and width, +1 where the width moves in the right direction at every step.

    Args:
        strengths: increasing or not.
        by_strength: (N,) widths at each of them.
        sign: (N,) +1 where the joint should widen, -1 where it should narrow.

    Returns:
        NaN where a width is missing at any strength, 0 where nothing changes.
    """
    by_knee = np.stack(by_strength, 1)
    ranks = rankdata(np.nan_to_num(by_knee), axis=1)
    a, b = ranks - ranks.mean(1, keepdims=True), rankdata(strengths) - rankdata(strengths).mean()
    norm = np.sqrt((a**2).sum(1) * (b**2).sum())
    rho = np.divide((a * b).sum(1), norm, out=np.zeros(len(a)), where=norm > 0)
    return np.where(np.isfinite(by_knee).all(1), rho * sign, np.nan)


def measure_anatomy(
    boot: Bootstrap,
    labels: Tensor,
    target: Tensor,
    of_direction: Mapping[str, Bools],
    real: Floats,
    reconstructed: Floats,
    exchanged: Mapping[Kind, Floats],
) -> dict[str, Any]:
    """All figures of the JSW measurement, as draws.

    Args:
        boot: over the hosts.
        labels: (N,) grades of the hosts.
        target: (N,) grades of the donors.
        of_direction: (N,) bool, the hosts of each direction.
        real: (N,) widths of X, in percent of the image's height.
        reconstructed: of X^.
        exchanged: widths of X' of every kind.

    Returns:
        ``gap``: by direction, in percent of the height; ``moved``: by kind and direction; ``follows_strength``: by
        detail and direction, mean over the hosts of :func:`correlate_with_strength` (from three strengths on);
        ``not_measured``: fraction of the images that the JSW measurement declined; ``width``: mean by grade, of X and of X^.
    """
    gaps = measure_gaps(boot, real, labels, target)
    widths_of = {"real": real, "reconstructed": reconstructed}
    by_grade = {
        name: {int(g): boot.mean(w, labels.numpy() == int(g)) for g in labels.unique()}
        for name, w in widths_of.items()
    }
    widths_of |= {str(kind): width for kind, width in exchanged.items()}
    result: dict[str, Any] = {
        "unit": "percent of the image's height, medial",
        "width": by_grade,
        "gap": {
            name: ratio((boot.weights[:, hosts] * gaps[:, hosts]).sum(1), boot.weights[:, hosts].sum(1))
            for name, hosts in of_direction.items()
        },
        "not_measured": {name: boot.mean(~np.isfinite(w)) for name, w in widths_of.items()},
        "moved": {},
        "follows_strength": {},
    }
    for kind, width in exchanged.items():
        base = reconstructed if kind.detail == "decoder" else real
        result["moved"][str(kind)] = {
            name: fit_change(boot, width - base, gaps, hosts) for name, hosts in of_direction.items()
        }
    for detail in dict.fromkeys(kind.detail for kind in exchanged):
        kinds = [kind for kind in exchanged if kind.detail == detail]
        if len(kinds) > 2:
            rho = correlate_with_strength(
                [k.strength for k in kinds], [exchanged[k] for k in kinds], np.sign(gaps[0])
            )
            result["follows_strength"][detail] = {
                name: boot.mean(rho, hosts) for name, hosts in of_direction.items()
            }
    return result


class Truths:
    """What is true of every knee, and how it is drawn as the weights see it.

    Args:
        truths: of every knee.
        draw: truth -> (1, S, S) in [-1, 1].
    """

    def __init__(self, truths: Sequence[KneeTruth], draw: Draw) -> None:
        self.truths, self.draw = list(truths), draw

    def exchanged(self, donors: Tensor) -> Tensor:
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
    records = [json.loads(line) for line in path.read_text().splitlines()]
    known = {r["file"]: KneeTruth.from_json(json.dumps(r["truth"])) for r in records}
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


def compare_with_truth(boot: Bootstrap, sums: NDArray[np.float64], hosts: Bools) -> dict[str, Any]:
    """Figures of one direction from :func:`projections`, as draws. 1 is exactly right in all of them.

    Returns:
        ``osteophytes``, ``joint_space_and_sclerosis``: how much of each true change is in the image, from least squares
        with both; ``whole``: the change projected on the whole true change; ``explained``: the fraction of the squared
        change that lies along the true one, 0 to 1; the rest changes what should have stayed.
    """
    ss, sr, rr, cs, cr, cc, cw, ww = (boot.weights[:, hosts] @ sums[hosts]).T
    det = ss * rr - sr**2
    return {
        "osteophytes": ratio(cs * rr - cr * sr, det),
        "joint_space_and_sclerosis": ratio(cr * ss - cs * sr, det),
        "whole": ratio(cw, ww),
        "explained": ratio(cw**2, ww * cc),
    }


def measure_against_truth(
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
        donors: (N,) indices.
        of_direction: (N,) bool, the hosts of each direction.
        changes: by kind, (X' less X' without an exchange, the change of the width that the JSW measurement saw).
        read: the JSW measurement, (N, 1, S, S) -> (N,) widths in percent of the image's height.

    Returns:
        By kind and direction: ``joint_space``, the mean change of the width over that from the host as drawn to the truth as
        drawn, all by the JSW measurement, so that its own error cancels; and the figures of :func:`compare_with_truth`.
        And ``gap``: by direction the true change of the key's width, and what the JSW measurement sees of it.
    """
    own, exchanged, spurred = truths.own(), truths.exchanged(donors), truths.only_osteophytes(donors)
    spurs, rest = spurred - own, exchanged - spurred
    should = read(exchanged) - read(own)
    keys = [t.key.medial_jsw * 100 for t in truths.truths]
    true = np.array([keys[d] - keys[i] for i, d in enumerate(donors.tolist())])
    result: dict[str, Any] = {
        "gap": {
            name: {"true": boot.mean(true, hosts), "by_jsw": boot.mean(should, hosts)}
            for name, hosts in of_direction.items()
        }
    }
    for kind, (change, seen) in changes.items():
        sums, both = projections(change, spurs, rest), np.isfinite(seen) & np.isfinite(should)
        result[str(kind)] = {
            name: {
                "joint_space": ratio(boot.sum(seen, hosts & both), boot.sum(should, hosts & both)),
                **compare_with_truth(boot, sums, hosts),
            }
            for name, hosts in of_direction.items()
        }
    return result
