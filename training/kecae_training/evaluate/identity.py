"""Whether X' is still the host's knee: its nearest knee, PSNR outside the joint, near copies.

The joint region is a straight band about the host's joint line (:func:`joint_band`); an exchange should change
nothing outside it. Retrieval and copies compare images of :data:`SIZE` px, where noise does not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from kecae_aug.donors import patient_numbers
from kecae_aug.phantom.jsw import JointSpace
from kecae_training.bootstrap import Bootstrap, ratio
from kecae_training.evaluate.exchanges import BATCH, Exchanges, HeldOutKnees, ssim_map

SIZE = 64  # px, of retrieval and copies
GALLERY = 500  # knees among which the nearest is looked for
SHORT_LIST = 5  # nearest by L1 that are compared by SSIM, beside host and donor
FOLLOWS = 256  # hosts for which host and donor are replaced
BAND = 0.27  # of the image's height, above and below the joint line
LINE = 0.585  # where the line is taken to be when the JSW measurement finds none


@dataclass(frozen=True)
class ShrunkImages:
    """Other images that X' might copy: (M, 1, s, s) shrunk by :func:`shrink`, and their names."""

    images: Tensor
    files: list[str]


def joint_band(readings: Sequence[JointSpace], size: int) -> Tensor:
    """(N, S, S) bool: the joint region of each host, a straight band about its joint line as the JSW measurement sees it.

    It reaches :data:`BAND` of the image's height above and below the line, along its tilt: the region which a phantom's key
    may change (0.25 in the knee's frame, which may be a little larger than the image's). On radiographs cropped to the
    joint it holds the margins where osteophytes grow. Where the JSW measurement found no line, the band is level, at
    :data:`LINE`.
    """
    x, y = (np.arange(size) + 0.5) / size - 0.5, (np.arange(size) + 0.5) / size
    flank = (np.abs(x) > 0.15) & (np.abs(x) < 0.35)
    masks = []
    for r in readings:
        known = math.isfinite(r.tilt)
        tilt = math.tan(math.radians(r.tilt)) if known else 0.0
        middle = float(np.median((r.line - tilt * x)[flank])) if known else LINE
        masks.append(np.abs(y[:, None] - middle - tilt * x[None, :]) <= BAND)
    return torch.from_numpy(np.stack(masks))


def shrink(images: Tensor) -> Tensor:
    """(N, 1, S, S) averaged down to :data:`SIZE` px; smaller images stay as they are."""
    return adaptive_avg_pool2d(images, SIZE) if images.shape[-1] > SIZE else images


def psnr_outside(images: Tensor, hosts: Tensor, joint: Tensor) -> Tensor:
    """(N,) PSNR in dB against the host, over the pixels outside its joint region (N, S, S)."""
    outside = (~joint)[:, None]
    error = ((images - hosts).square() * outside).flatten(1).sum(1) / outside.flatten(1).sum(1)
    return 10 * torch.log10(4 / error.clamp_min(1e-12))


def nearest_knee(
    exchanged: Tensor, knees: Tensor, donors: Tensor, joint: Tensor, gallery: Tensor
) -> tuple[Tensor, Tensor]:
    """The knee that each X' is nearest to outside its host's joint region.

    Args:
        exchanged: (N, 1, S, S) X' of the hosts 0 to N - 1.
        knees: (N, 1, S, S) real knees.
        donors: (N,) indices.
        joint: (N, S, S) joint regions of the hosts.
        gallery: indices to choose from; host and donor are always among them.

    Returns:
        (N,) indices by mean absolute difference, and by SSIM among the :data:`SHORT_LIST` nearest, host and donor.
    """
    query, known = shrink(exchanged), shrink(knees)
    outside = (adaptive_avg_pool2d((~joint)[:, None].float(), query.shape[-1]) > 0.5)[:, 0].float()
    by_l1, short = [], []
    for i, (image, weight) in enumerate(zip(query, outside, strict=True)):
        indices = torch.cat([torch.tensor([i]), donors[i : i + 1], gallery])  # the host first: it wins a tie
        distance = (known[indices] - image).abs().flatten(1) @ weight.flatten()
        by_l1.append(indices[distance.argmin()])
        least = distance[2:].topk(min(SHORT_LIST, len(gallery)), largest=False).indices
        short.append(indices[torch.cat([torch.tensor([0, 1]), least + 2])])
    candidates, by_ssim = torch.stack(short), []
    for part in torch.arange(len(query)).split(BATCH):
        c = candidates[part]
        again = query[part].repeat_interleave(c.shape[1], 0)
        similar = ssim_map(again, known[c.flatten()]).view(*c.shape, *query.shape[-2:])
        score = (similar * outside[part][:, None]).flatten(2).sum(2)
        by_ssim.append(c.gather(1, score.argmax(1, keepdim=True))[:, 0])
    return torch.stack(by_l1), torch.cat(by_ssim)


def copy_limit(reconstruction: Tensor, images: Tensor) -> float:
    """How near two images are that show the same knee: the mean absolute difference that 95 % of the X^ keep to their X."""
    return float((shrink(reconstruction) - shrink(images)).abs().flatten(1).mean(1).quantile(0.95))


def near_copies(
    exchanged: Tensor, exchanges: Exchanges, album: Tensor, limit: float, exclude: Tensor | None = None
) -> Tensor:
    """The image of an album that each X' is a near copy of.

    A near copy is nearer to the image than to its host, and as near as a reconstruction is to its own original
    (``limit``, :func:`copy_limit`), in mean absolute difference.

    Args:
        exchanged: (N, 1, S, S).
        exchanges: the hosts.
        album: (M, 1, s, s), shrunk.
        limit: as above.
        exclude: (N, M) bool, what does not count.

    Returns:
        (N,) index in the album, -1 where there is none.
    """
    query = shrink(exchanged)
    to_host = (query - shrink(exchanges.images)).abs().flatten(1).mean(1)
    # coarse first: the nearest of thousands of training images at a quarter of the size
    coarse_q, coarse_a = (adaptive_avg_pool2d(t, min(32, t.shape[-1])).flatten(1) for t in (query, album))
    distance = torch.cdist(coarse_q, coarse_a, p=1)
    if exclude is not None:
        distance = distance.masked_fill(exclude, math.inf)
    near = distance.topk(min(4, len(album)), largest=False)
    exact = (query[:, None] - album[near.indices]).abs().flatten(2).mean(2)
    best = exact.masked_fill(near.values.isinf(), math.inf).min(1)
    is_copy = (best.values <= limit) & (best.values < to_host)
    return torch.where(is_copy, near.indices.gather(1, best.indices[:, None])[:, 0], -1)


def measure_identity(
    boot: Bootstrap,
    knees: HeldOutKnees,
    exchanges: Exchanges,
    exchanged: Tensor,
    joint: Tensor,
    training: ShrunkImages | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of one kind of X', as draws.

    Args:
        boot: over the hosts.
        knees: the hosts.
        exchanges: their donors and reconstructions.
        exchanged: (N, 1, S, S) X'.
        joint: (N, S, S) joint regions.
        training: images that the weights were trained on.
        seed: of the gallery, where there are more than :data:`GALLERY` knees.

    Returns:
        ``psnr_outside`` in dB; ``host_is_nearest`` by ``l1`` and by ``ssim``, and ``donor_is_nearest``: fractions;
        ``copies``: fractions ``of_donor``, ``of_other`` (knees of other patients) and ``of_training``, the ``limit``, and
        ``files``: each as [host, copied].
    """
    n, donors = len(knees.images), exchanges.donors
    generator = torch.Generator().manual_seed(seed)
    gallery = torch.randperm(n, generator=generator)[:GALLERY].sort().values
    by_l1, by_ssim = nearest_knee(exchanged, knees.images, donors, joint, gallery)
    host = torch.arange(n)

    limit = copy_limit(exchanges.reconstruction, knees.images)
    album, is_donor = shrink(knees.images), torch.zeros(n, n, dtype=torch.bool)
    is_donor[host, donors] = True
    ids = patient_numbers(knees.patients, n)
    own = ids[:, None] == ids[None, :]
    found = {
        "of_donor": (near_copies(exchanged, exchanges, album, limit, ~is_donor), knees.files),
        "of_other": (near_copies(exchanged, exchanges, album, limit, is_donor | own), knees.files),
    }
    if training is not None:
        found["of_training"] = (near_copies(exchanged, exchanges, training.images, limit), training.files)
    return {
        "psnr_outside": boot.mean(psnr_outside(exchanged, knees.images, joint)),
        "host_is_nearest": {"l1": boot.mean(by_l1 == host), "ssim": boot.mean(by_ssim == host)},
        "donor_is_nearest": {"l1": boot.mean(by_l1 == donors), "ssim": boot.mean(by_ssim == donors)},
        "copies": {
            "limit": round(limit, 4),
            **{name: boot.mean(indices >= 0) for name, (indices, _) in found.items()},
            "files": {
                name: [
                    [knees.files[i], files[int(indices[i])]] for i in (indices >= 0).nonzero()[:, 0].tolist()
                ]
                for name, (indices, files) in found.items()
            },
        },
    }


def measure_following(knees: HeldOutKnees, exchanges: Exchanges, seed: int = 0) -> dict[str, Any]:
    """How much X' (decoder, strength 1) changes when only its host, or only its donor, is another knee of the same grade.

    Returns:
        Draws over the hosts: ``host``, ``donor``: mean absolute change in units of [-1, 1]; ``host_over_donor``: their
        ratio; ``variance_ratio``: the same of squared changes, which is the variance that hosts of one grade make over
        that which donors of one grade make.
    """
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(len(knees.labels), generator=generator)[:FOLLOWS].sort().values
    donors, ids = exchanges.donors[indices], patient_numbers(knees.patients, len(knees.labels))
    base = exchanges.pairs(indices, donors)

    def another(of: Tensor) -> Tensor:
        picks = []
        for index in of.tolist():
            same = (knees.labels == knees.labels[index]) & (ids != ids[index])
            candidates = same.nonzero()[:, 0] if same.any() else torch.tensor([index])
            picks.append(candidates[int(torch.randint(len(candidates), (), generator=generator))])
        return torch.stack(picks)

    by_donor = exchanges.pairs(indices, another(donors)) - base
    by_host = exchanges.pairs(another(indices), donors) - base
    boot = Bootstrap([knees.patients[i] for i in indices.tolist()], seed)
    host, donor = (boot.mean(d.abs().flatten(1).mean(1)) for d in (by_host, by_donor))
    host2, donor2 = (boot.mean(d.square().flatten(1).mean(1)) for d in (by_host, by_donor))
    return {
        "host": host,
        "donor": donor,
        "host_over_donor": ratio(host, donor),
        "variance_ratio": ratio(host2, donor2),
    }
