"""How near exchanged knees are to real ones: Frechet and kernel distances, FRD, and two-sample classifiers.

Every distance is between real knees of one half of the patients and images made of the *other* half's knees, so
that no image is compared with its own host, and all figures are of equally many images: these distances grow as
samples shrink, so that only figures of one table can be compared, never those of papers. The row ``real`` is the
floor, what two halves of the real knees give; ``reconstruction`` (X^) is what decoding alone costs. Each is the mean
over several divisions of the patients, with the smallest and largest of them.

All images are rounded to 8 bits first, as real ones are: a network sees the difference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from kecae_aug.device import Precision, autocast
from kecae_training.discriminator import Discriminator, device_of
from kecae_training.evaluate.frd import radiomic_features, standardised
from kecae_training.evaluate.robustness import eight_bits
from kecae_training.evaluate.two_sample import accuracy, by_features, by_network, halves

DIVISIONS = 5  # of the patients into halves, for every distance
Features = NDArray[np.float64]
Distance = Callable[[Tensor, Tensor], float]


def realism(
    real: Tensor,
    reconstruction: Tensor,
    exchanged: dict[str, Tensor],
    extractor: Discriminator,
    patients: Sequence[str],
    seed: int = 0,
    radiomics: bool = False,
    precision: Precision = "32-true",
) -> dict[str, Any]:
    """Distances to real knees, and how often a classifier tells the difference; JSON-able.

    Args:
        real: (N, 1, S, S) float in [-1, 1], the hosts.
        reconstruction: X^ of the same hosts, row by row.
        exchanged: X' of the same hosts by name, such as ``"decoder 1"``. Their grades should be as frequent as the
            real ones', or the distances show that too.
        extractor: an oracle; its penultimate features are the domain's. It must not have seen these patients.
        patients: (N,) ids of the hosts; four or more different ones.
        seed: of the halves, the bootstrap and the classifier.
        radiomics: also the FRD; needs the extra ``[radiomics]`` and about 0.15 s an image.
        precision: of the extractor, which runs where its parameters are, as the two-sample network does (in float32).

    Returns:
        ``images`` compared at once (of the smaller half); ``distances``: by kind (``real``, ``reconstruction``, each of
        ``exchanged``) ``frechet`` and ``kernel_x1000`` (in units of the features' mean variance, so that a
        rescaled extractor gives the same) and ``frd`` (log of the squared distance, as frd-score gives it), each with
        ``mean``, ``low``, ``high``, and ``..._over_floor``, its difference from ``real`` at the same division of the
        patients, which varies far less; ``two_sample``: by kind the balanced accuracy of ``features`` (logistic regression)
        and ``network`` (small VGG), with patient-clustered intervals; 0.5 is perfect, and what real against real
        has by construction.

    Raises:
        ValueError: shapes or patients that do not fit, values outside [-1, 1].
        ModuleNotFoundError: ``radiomics`` without its extra.
    """
    kinds = {"real": real, "reconstruction": reconstruction, **exchanged}
    _check(kinds, patients, exchanged)
    kinds = {name: eight_bits(images) for name, images in kinds.items()}
    divisions = [halves(patients, seed + i) for i in range(DIVISIONS)]
    of = relative(
        {name: penultimate(extractor, images, precision=precision) for name, images in kinds.items()}
    )
    distances = {"frechet": (frechet, of), "kernel_x1000": (lambda a, b: 1000 * kernel(a, b), of)}
    if radiomics:
        raw = {name: radiomic_features(images, name) for name, images in kinds.items()}
        distances["frd"] = (log_frechet, standardised(raw, "real"))
    by_kind: dict[str, dict[str, Any]] = {name: {} for name in kinds}
    for figure, (distance, features) in distances.items():
        floor = across(distance, features["real"], features["real"], divisions)
        for name, values in features.items():
            found = floor if name == "real" else across(distance, features["real"], values, divisions)
            by_kind[name][figure] = _spread(found)
            by_kind[name][f"{figure}_over_floor"] = _spread(found - floor)
    told = {
        name: {
            "features": accuracy(by_features(of["real"], of[name]), patients, seed),
            "network": accuracy(
                by_network(kinds["real"], kinds[name], seed, device=device_of(extractor)), patients, seed
            ),
        }
        for name in kinds
        if name != "real"
    }
    return {
        "images": min(min(len(one), len(two)) for one, two in divisions),
        "distances": by_kind,
        "two_sample": told,
    }


@torch.no_grad()
def penultimate(
    extractor: Discriminator, images: Tensor, batch_size: int = 128, *, precision: Precision = "32-true"
) -> Features:
    """(N, D) what the last linear layer of an oracle reads of (N, 1, S, S): pooled features of its last stage."""
    last = [m for m in extractor.network.modules() if isinstance(m, nn.Linear)][-1]
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    device = device_of(extractor)
    try:
        with autocast(device, precision):
            for part in images.split(batch_size):
                extractor(part.to(device))
    finally:
        hook.remove()
    features: Features = torch.cat(seen).double().cpu().numpy()
    return features


def relative(features: Mapping[str, Features]) -> dict[str, Features]:
    """Centred on the real ones and divided by the root of their mean variance."""
    base = features["real"]
    scale = np.sqrt(base.var(0).mean())
    if not scale > 0:
        raise ValueError("extractor: its features are the same for all real images, so they measure nothing")
    return {name: (values - base.mean(0)) / scale for name, values in features.items()}


def frechet(real: Tensor, other: Tensor) -> float:
    """Squared Frechet distance of features (n, D) and (m, D): |mu - mu'|^2 + tr(C + C' - 2 (C C')^1/2)."""
    metric = FrechetInceptionDistance(feature=_as_they_are(real.shape[1]))
    metric.set_dtype(torch.float64)
    return _computed(metric, real, other)


def log_frechet(real: Tensor, other: Tensor) -> float:
    """Natural logarithm of it; a distance below 1e-6 counts as 1e-6, since the same images have none."""
    return float(np.log(max(frechet(real, other), 1e-6)))


def kernel(real: Tensor, other: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of features (n, D), cubic kernel; about 0, also below, for equals."""
    n = min(len(real), len(other))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*save all extracted features", category=UserWarning)
        metric = KernelInceptionDistance(feature=_as_they_are(real.shape[1]), subsets=1, subset_size=n)
    metric.set_dtype(torch.float64)
    return _computed(metric, real, other)


def _as_they_are(width: int) -> nn.Module:
    """The "extractor" that torchmetrics is given: features are computed once, not for every division."""
    module = nn.Identity()
    module.num_features = width  # type: ignore[assignment]  # read by torchmetrics
    return module


def _computed(metric: Any, real: Tensor, other: Tensor) -> float:
    metric.update(real, real=True)
    metric.update(other, real=False)
    with torch.random.fork_rng(devices=[]):  # the kernel distance draws its subsets from the global generator
        torch.manual_seed(0)
        value = metric.compute()
    return float(value[0] if isinstance(value, tuple) else value)


def across(
    distance: Distance,
    real: Features,
    other: Features,
    divisions: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
) -> NDArray[np.float64]:
    """For each division the distance of real images of one half from others of the other half, mean of both ways."""
    values = []
    for one, two in divisions:
        n = min(len(one), len(two))
        both = [(real[one[:n]], other[two[:n]]), (real[two[:n]], other[one[:n]])]
        values.append(np.mean([distance(torch.from_numpy(a), torch.from_numpy(b)) for a, b in both]))
    return np.array(values)


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    return {
        k: round(float(v), 4)
        for k, v in (("mean", values.mean()), ("low", values.min()), ("high", values.max()))
    }


def _check(kinds: Mapping[str, Tensor], patients: Sequence[str], exchanged: Mapping[str, Tensor]) -> None:
    real = kinds["real"]
    if real.ndim != 4 or real.shape[1] != 1 or not real.is_floating_point():
        raise ValueError(f"real: got {tuple(real.shape)} {real.dtype}, accepted is float (N, 1, S, S)")
    if taken := {"real", "reconstruction"} & set(exchanged):
        raise ValueError(f"exchanged: the names {sorted(taken)} are taken; give others, such as 'decoder 1'")
    if len(patients) != len(real):
        raise ValueError(f"patients: got {len(patients)} ids for {len(real)} images, accepted is one a host")
    for name, images in kinds.items():
        if images.shape != real.shape:
            raise ValueError(
                f"{name}: got {tuple(images.shape)}, accepted is {tuple(real.shape)}, one image a host"
            )
        if not bool(images.abs().max() <= 1.01):  # filters overshoot; rounding to 8 bits clamps
            raise ValueError(f"{name}: values outside [-1, 1] (or NaN); clamp them, or scale 0..1 by 2 x - 1")
