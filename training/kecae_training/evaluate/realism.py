"""How near exchanged knees are to real ones: Frechet and kernel distances, and two-sample classifiers.

Every distance is between real knees of one half of the patients and images made of the *other* half's knees, so
that no image is compared with its own host, and all figures are of equally many images: these distances grow as
samples shrink, so that only figures of one table can be compared, never those of papers. The entry ``real`` is the
floor, what two halves of the real knees give; ``reconstruction`` (X^) is what decoding alone costs. Each is the mean
over several divisions of the patients, with the smallest and largest of them.

A two-sample classifier separates generated from real images of patients that it has not seen; a balanced accuracy of 0.5
is perfect realism. A host and what was made of it are always on the same side.

All images are rounded to 8 bits first, as real ones are: a network detects the difference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from kecae_aug.device import Precision, autocast
from kecae_training.bootstrap import Bootstrap, summary
from kecae_training.discriminator import Discriminator, device_of
from kecae_training.discriminator.networks import build
from kecae_training.evaluate.oracles import eight_bits

DIVISIONS = 5  # of the patients into halves, for every distance
Features = NDArray[np.float64]
Distance = Callable[[Tensor, Tensor], float]
Indices = NDArray[np.intp]
# fitted on the first indices, scores (2, n) of the second ones: of the real images, then of the others
Classifier = Callable[[Indices, Indices], NDArray[np.float64]]


def measure_realism(
    real: Tensor,
    reconstruction: Tensor,
    exchanged: dict[str, Tensor],
    extractor: Discriminator,
    patients: Sequence[str],
    seed: int = 0,
    precision: Precision = "32-true",
) -> dict[str, Any]:
    """Distances to real knees, and balanced accuracy of two-sample classifiers; JSON-able.

    Args:
        real: (N, 1, S, S) float in [-1, 1], the hosts.
        reconstruction: X^ of the same hosts in the same order.
        exchanged: X' of the same hosts by name, such as ``"decoder 1"``. Their grades should be as frequent as the
            real ones', or the distances show that too.
        extractor: an oracle; its penultimate features are the domain's. It must not have seen these patients.
        patients: (N,) ids of the hosts; four or more different ones.
        seed: of the halves, the bootstrap and the classifier.
        precision: of the extractor, which runs where its parameters are, as the two-sample network does (in float32).

    Returns:
        ``images`` compared at once (of the smaller half); ``distances``: by kind (``real``, ``reconstruction``, each of
        ``exchanged``) ``frechet`` and ``kernel_x1000`` (in units of the features' mean variance, so that a
        rescaled extractor gives the same), each with ``mean``, ``low``, ``high``, and ``..._over_floor``, its
        difference from ``real`` at the same division of the patients, which varies far less;
        ``two_sample``: by kind the balanced accuracy of ``features`` (logistic regression)
        and ``network`` (small VGG), with patient-clustered intervals; 0.5 is perfect, and what real against real
        has by construction.

    Raises:
        ValueError: shapes or patients that do not fit, values outside [-1, 1].
    """
    kinds = {"real": real, "reconstruction": reconstruction, **exchanged}
    _check(kinds, patients, exchanged)
    kinds = {name: eight_bits(images) for name, images in kinds.items()}
    divisions = [split_patients(patients, seed + i) for i in range(DIVISIONS)]
    of = standardise(
        {name: penultimate(extractor, images, precision=precision) for name, images in kinds.items()}
    )
    distances = {"frechet": (frechet, of), "kernel_x1000": (lambda a, b: 1000 * kernel(a, b), of)}
    by_kind: dict[str, dict[str, Any]] = {name: {} for name in kinds}
    for figure, (distance, features) in distances.items():
        floor = compare_halves(distance, features["real"], features["real"], divisions)
        for name, values in features.items():
            found = floor if name == "real" else compare_halves(distance, features["real"], values, divisions)
            by_kind[name][figure] = _spread(found)
            by_kind[name][f"{figure}_over_floor"] = _spread(found - floor)
    two_sample = {
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
        "two_sample": two_sample,
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


def standardise(features: Mapping[str, Features]) -> dict[str, Features]:
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


def compare_halves(
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


def split_patients(patients: Sequence[str], seed: int = 0) -> tuple[Indices, Indices]:
    """Indices of two halves that share no patient, of about equally many images.

    Raises:
        ValueError: fewer than four patients.
    """
    ids, inverse, counts = np.unique(np.asarray(patients, dtype=str), return_inverse=True, return_counts=True)
    if len(ids) < 4:
        raise ValueError(f"patients: {len(ids)} different ones; four or more are needed for two halves")
    order = np.random.default_rng(seed).permutation(len(ids))
    first = np.zeros(len(ids), dtype=bool)
    first[order[: 1 + int(np.searchsorted(counts[order].cumsum(), len(inverse) / 2))]] = True
    if first.all():
        first[order[-1]] = False
    return np.flatnonzero(first[inverse]), np.flatnonzero(~first[inverse])


def accuracy(classifier: Classifier, patients: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Balanced accuracy over all hosts, each scored by a classifier that has not seen its patient.

    Args:
        classifier: see :data:`Classifier`; a score above 0 predicts "generated".
        patients: (N,) ids of the hosts.
        seed: of the halves and the bootstrap.
    """
    right = np.empty(len(patients))
    one, two = split_patients(patients, seed)
    for train, test in ((one, two), (two, one)):
        real, other = classifier(train, test)
        right[test] = (_score_sign(-real) + _score_sign(other)) / 2
    return summary(Bootstrap(patients, seed).mean(right))


def _score_sign(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where the sign of the score is right, one half where it is 0."""
    return (np.sign(score) + 1) / 2


def by_features(real: NDArray[np.float64], other: NDArray[np.float64]) -> Classifier:
    """Logistic regression on features (N, D) of both kinds, of the same hosts in the same order."""

    def classify(train: Indices, test: Indices) -> NDArray[np.float64]:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=500))
        model.fit(np.concatenate([real[train], other[train]]), np.repeat([0, 1], len(train)))
        return np.stack([model.decision_function(real[test]), model.decision_function(other[test])])

    return classify


def by_network(
    real: Tensor,
    other: Tensor,
    seed: int = 0,
    steps: int = 200,
    pairs: int = 16,
    *,
    device: str | torch.device = "cpu",
) -> Classifier:
    """A small VGG from scratch, on random crops of half the side, which make few images go further.

    It detects what is local: blur, noise, patterns. The score of an image is the mean over five crops.

    Args:
        real: (N, 1, S, S) in [-1, 1].
        other: what was made of the same hosts.
        seed: of initialisation, order and crops.
        steps: of the optimiser.
        pairs: hosts a step; both of their images are in it.
        device: of the network; images stay where they are.
    """
    place = torch.device(device)
    side = max(32, real.shape[-1] // 2)
    room = real.shape[-1] - side

    def classify(train: Indices, test: Indices) -> NDArray[np.float64]:
        draw = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
            torch.manual_seed(seed)
            net = build("vgg", 2).to(place).to(memory_format=torch.channels_last)
            optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
            of, targets = torch.from_numpy(train), torch.arange(2).repeat_interleave(pairs).to(place)
            for _ in range(steps):
                indices = of[torch.randint(len(of), (pairs,), generator=draw)]
                top, left = torch.randint(room + 1, (2,), generator=draw).tolist()
                x = torch.cat([real[indices], other[indices]])[:, :, top : top + side, left : left + side]
                if torch.rand((), generator=draw) < 0.5:
                    x = x.flip(-1)
                loss = F.cross_entropy(_logits(net, x.to(place)), targets)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
        net.eval()
        corners = [(t, c) for t in (0, room) for c in (0, room)] + [(room // 2, room // 2)]
        with torch.no_grad():
            return np.stack(
                [
                    sum(
                        _margin(net, images[torch.from_numpy(test), :, t : t + side, c : c + side])
                        for t, c in corners
                    )
                    for images in (real, other)
                ]
            )

    return classify


def _logits(net: torch.nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = net(images.contiguous(memory_format=torch.channels_last))
    return logits


def _margin(net: torch.nn.Module, images: Tensor) -> NDArray[np.float64]:
    logits = torch.cat([_logits(net, part.to(device_of(net))) for part in images.split(128)])
    margin: NDArray[np.float64] = (logits[:, 1] - logits[:, 0]).double().cpu().numpy()
    return margin
