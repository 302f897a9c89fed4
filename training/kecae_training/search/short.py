"""One short training of a study and its figures: point estimates that take seconds, for comparing many.

What weights are worth, with intervals, is `kecae-aug evaluate`'s business; here the spread over seeds says how far a
figure can be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

from kecae_aug.engine.exchange import host_detail
from kecae_aug.engine.model import KECAE
from kecae_aug.phantom.jsw import joint_space_width
from kecae_aug.weights.io import load_weights
from kecae_training.config import TrainConfig
from kecae_training.discriminator import Discriminator, device_of, load_discriminator, predict
from kecae_training.evaluate.exchanges import psnr, ssim
from kecae_training.evaluate.oracles import auroc
from kecae_training.evaluate.probes import classifier
from kecae_training.images import to_float
from kecae_training.search.study import Study
from kecae_training.train import train

Figures = dict[str, float]
PROBED = 800  # knees that a classifier of latents is fitted on, at most
GRID = 20  # hosts, and donors, of the variance shares


class DivergedError(ValueError):
    """A training whose weights or gradients did not stay finite: a result, not a mistake of the caller's."""


def run(config: TrainConfig, study: Study) -> Figures:
    """Train on the study's knees in ``config.out`` (or go on there) and measure; the checkpoint is then removed.

    Raises:
        DivergedError: a gradient or an output is not finite.
    """
    try:
        model = load_weights(str(train(config, study.train, study.warm_keys))).eval().to(study.device)
    except ValueError as error:
        if "gradient was not finite" in str(error):  # what train says of it
            raise DivergedError(str(error)) from None
        raise
    discriminators = [
        load_discriminator(path, model.config.classes, image_size=model.config.image_size).to(study.device)
        for path in config.discriminators
    ]
    result = figures(model, study, discriminators)
    (config.out / "checkpoint.pt").unlink(missing_ok=True)  # weights and log stay
    return result


@torch.no_grad()
def figures(model: KECAE, study: Study, discriminators: Sequence[Discriminator] = ()) -> Figures:
    """All figures of a model.

    Args:
        model: in evaluation mode, on any device; figures are made on the CPU.
        study: its held-out knees, oracles and, on phantoms, the truth.
        discriminators: the training's own, for their gap to the oracles.

    Returns:
        ``psnr``, ``ssim`` of X^; ``reconstructed``, ``decoder``, ``host``: mean over the oracles of AUROC for the wanted
        label, over their AUROC on real knees (``real`` is that AUROC); ``flip_0->2``, ...: fraction of decoded X' that
        the oracles give the new grade, at the threshold balanced on real knees; ``discriminator_flip`` by the
        discriminators' argmax and ``discriminator_gap``, its excess over the oracles' by their argmax;
        ``host_fraction``, see :func:`host_fraction`; ``key``, ``non_key`` and ``svm_key``, see :func:`probes`; with
        a truth those of :func:`against_truth`.
    """
    images, labels, donors = to_float(study.test.pixels), study.test.labels, study.donors
    key, non_key = _encode(model, images)
    reconstruction, decoded = _decode(model, non_key + key), _decode(model, non_key + key[donors])
    if not all(t.isfinite().all() for t in (reconstruction, decoded)):
        raise DivergedError("the reconstructions or exchanges are not finite: the training diverged")
    host = host_detail(images, decoded, reconstruction)
    wanted = labels[donors].numpy()
    bench = study.bench

    def over_real(of: Tensor, targets: NDArray[np.int64]) -> tuple[float, dict[str, NDArray[np.float32]]]:
        seen = {name: p[:, 1] for name, p in bench.predict(of).items()}
        real = {name: auroc(p[:, 1], bench.labels) for name, p in bench.real.items()}
        return float(np.mean([auroc(p, targets) / real[name] for name, p in seen.items()])), seen

    by_decoder, seen = over_real(decoded, wanted)
    result = {
        "psnr": float(psnr(reconstruction, images).mean()),
        "ssim": float(ssim(reconstruction, images).mean()),
        "real": float(np.mean([auroc(p[:, 1], bench.labels) for p in bench.real.values()])),
        "reconstructed": over_real(reconstruction, labels.numpy())[0],
        "decoder": by_decoder,
        "host": over_real(host, wanted)[0],
        "change": float((decoded - reconstruction).abs().mean()),
        "host_fraction": host_fraction(model, images, labels),
        **probes(model, study),
    }
    for grade, name in enumerate(_directions(model)):
        of = wanted == grade
        flips = [((p >= bench.cuts[oracle]) == bool(grade))[of].mean() for oracle, p in seen.items()]
        result[f"flip_{name}"] = float(np.mean(flips))
    if discriminators:
        by_discriminator = float(
            np.mean(
                [
                    predict(discriminator, decoded).argmax(1).numpy() == wanted
                    for discriminator in discriminators
                ]
            )
        )
        by_oracles = float(np.mean([((p > 0.5) == (wanted == 1)).mean() for p in seen.values()]))
        result |= {"discriminator_flip": by_discriminator, "discriminator_gap": by_discriminator - by_oracles}
    if study.truth is not None:
        result |= against_truth(model, study, reconstruction, decoded)
    return {name: round(float(value), 4) for name, value in result.items()}


def against_truth(model: KECAE, study: Study, reconstruction: Tensor, decoded: Tensor) -> Figures:
    """X' of phantoms against the host drawn with the donor's key.

    With D what the right exchange changes and C = X' - X^ what this one does, both (N, S * S), for each direction:

    ``moved_<direction>``: <C, D> / <D, D>, summed over the knees; 1 is exactly right, 0 no exchange.
    ``jsw_<direction>``: the JSW measurement's change of medial joint space from X^ to X', over that from hosts to donors.
    ``aim``: cosine of C and D over all knees; what is missing to 1 is change that has nothing to do with D.
    """
    assert study.truth is not None
    change, right = (decoded - reconstruction).flatten(1), study.truth.flatten(1)
    aim = (change * right).sum() / (change.norm() * right.norm()).clamp_min(1e-12)
    result = {"aim": float(aim)}
    before, after = (joint_space_width(x[:, 0])[0] for x in (reconstruction, decoded))
    real = study.real_widths
    labels, donors = study.test.labels, study.donors
    for grade, name in enumerate(_directions(model)):
        of = labels[donors] == grade
        result[f"moved_{name}"] = float((change[of] * right[of]).sum() / right[of].square().sum())
        gap = _mean(real[donors[of].numpy()]) - _mean(real[of.numpy()])
        result[f"jsw_{name}"] = (_mean(after[of.numpy()]) - _mean(before[of.numpy()])) / gap
    return result


def host_fraction(model: KECAE, images: Tensor, labels: Tensor, n: int = GRID) -> float:
    """Fraction of the variance of X' that follows the host: 1 if the key's donor changes nothing beyond its grade.

    ``n`` hosts of one grade times ``n`` donors of the other, both directions: with the mean over donors as a host's
    main effect and the mean over hosts as a donor's, the host's sum of squares over both of them. 0.8 is a host that
    counts four times as much as the donor.
    """
    key, non_key = _encode(model, images)
    by_host = by_donor = 0.0
    for grade in (0, 1):
        hosts, donors = (labels == grade).nonzero()[:n, 0], (labels != grade).nonzero()[:n, 0]
        sums = non_key[hosts][:, None] + key[donors][None]
        mixed = _decode(model, sums.flatten(0, 1)).view(len(hosts), len(donors), -1)
        by_host += float(mixed.mean(1).var(0, correction=0).sum())
        by_donor += float(mixed.mean(0).var(0, correction=0).sum())
    return by_host / max(by_host + by_donor, 1e-12)


def probes(model: KECAE, study: Study) -> Figures:
    """Balanced accuracy of the grade on held-out knees, read from latents by a classifier fitted on ``probe`` knees.

    Chance is 0.5, whatever the mixture of grades. ``key`` and ``non_key``: logistic regression; ``svm_key``: SVM with a
    radial basis function (C = 1, gamma "scale"), the paper's figure for lambda_1 and lambda_2 (Section IV-A); both as
    in :func:`kecae_training.evaluate.probes.classifier`.
    """
    # evenly over all, since the rows of a folder come grade by grade
    rows = torch.linspace(0, len(study.probe) - 1, min(PROBED, len(study.probe))).long()
    fitted = [t.flatten(1).numpy() for t in _encode(model, to_float(study.probe.pixels[rows]))]
    held_out = [t.flatten(1).numpy() for t in _encode(model, to_float(study.test.pixels))]
    targets, truth = study.probe.labels[rows].numpy(), study.test.labels.numpy()

    def accuracy(kind: str, of: int) -> float:
        probe = classifier(kind, *fitted[of].shape).fit(fitted[of], targets)
        return float(balanced_accuracy_score(truth, probe.predict(held_out[of])))

    return {"key": accuracy("linear", 0), "non_key": accuracy("linear", 1), "svm_key": accuracy("svm", 0)}


def beside_defaults(config: TrainConfig) -> dict[str, Any]:
    """What of a config decides what is learned and is not the dataclasses' default, by flag; discriminators by their names.

    New options that are off, and folders, leave it alone: two runs with the same one are the same but for the seed.
    """
    flat, default = _flat(config.to_dict()), _flat(TrainConfig().to_dict())
    left_out = ("out", "discriminator", "data.root")
    ours = {k: v for k, v in flat.items() if k not in left_out and v != default.get(k)}
    ours = {k: v for k, v in ours.items() if not k.startswith("run.") or k == "run.precision"}
    return ours | (
        {"discriminator": [path.name for path in config.discriminators]} if config.discriminators else {}
    )


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat


def _directions(model: KECAE) -> tuple[str, str]:
    """Names by the wanted class: of X' that become the first grade, and the second."""
    low, high = model.config.classes
    return f"{high}->{low}", f"{low}->{high}"


def _encode(model: KECAE, images: Tensor) -> tuple[Tensor, Tensor]:
    device = device_of(model)
    parts = [model.encode(part.to(device)) for part in images.split(100)]
    return torch.cat([p.key for p in parts]).cpu(), torch.cat([p.non_key for p in parts]).cpu()


def _decode(model: KECAE, sums: Tensor) -> Tensor:
    device = device_of(model)
    return torch.cat([model.decode(part.to(device)).cpu() for part in sums.split(100)])


def _mean(widths: NDArray[np.float64]) -> float:
    """Of what the JSW measurement could measure; NaN where that is nothing."""
    found = widths[np.isfinite(widths)]
    return float(found.mean()) if len(found) else float("nan")
