"""All measurements of weights files on one set of knees, in two passes.

First the curve (oracles and JSW at every strength), then the costlier measurements (identity, robustness, truth, realism)
of a few selected kinds of X'. Both return trees of draws (:mod:`kecae_training.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from kecae_aug.device import Precision, cpu_by_default
from kecae_aug.donors import draw_donors
from kecae_training.bootstrap import Bootstrap, pool, summarise
from kecae_training.evaluate.anatomy import (
    Floats,
    Truths,
    measure_against_truth,
    measure_anatomy,
    read,
    widths,
)
from kecae_training.evaluate.criteria import with_criteria
from kecae_training.evaluate.entrants import Entrant, TrainingKnees, check_classes
from kecae_training.evaluate.exchanges import DETAILS, Exchanges, HeldOutKnees, Kind, directions, psnr, ssim
from kecae_training.evaluate.identity import joint_band, measure_following, measure_identity
from kecae_training.evaluate.oracles import Bench, discriminator_gap, measure_robustness
from kecae_training.evaluate.probes import run_probes

STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
DISCRIMINATOR = "discriminator (certifies itself)"


class Evaluated(NamedTuple):
    """What :func:`evaluate` gives: figures (JSON-able), and per weights the exchanges that the page draws."""

    figures: dict[str, Any]
    evaluations: dict[str, Evaluation]
    kinds: dict[str, Kind]


def evaluate(
    entrants: Mapping[str, Entrant],
    knees: HeldOutKnees,
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    robustness: bool = True,
    realism: bool = False,
    with_probes: bool = True,
    training: Mapping[str, TrainingKnees] | None = None,
    truths: Truths | None = None,
    progress: bool = False,
    device: str | torch.device | None = None,
    precision: Precision = "32-true",
) -> Evaluated:
    """All figures of one weights file, or of several that are evaluated by different oracles (cross-fit).

    Args:
        entrants: name -> weights with their oracles.
        knees: of patients that neither weights nor oracles have seen; the same hosts and donors for all entrants.
        strengths: of the exchange.
        seed: of donors, samples and bootstrap.
        robustness: whether the oracles' figures are measured again after small degradations.
        realism: whether distances and a two-sample classifier are measured.
        with_probes: whether the latents are probed.
        training: by name of the entrant, images that its weights were trained on.
        truths: of the knees, where they are phantoms.
        progress: show progress bars.
        device: where the networks run; they are moved there. By default each stays where it is. Figures are made on the CPU.
        precision: of the networks.

    Returns:
        Figures as ``{"mean", "low", "high"}``. Of several entrants the mean over them, inside the same draws of
        patients, and under ``folds`` those of each.

    Raises:
        ValueError: classes of an oracle that are not those of its weights, or a knee without a possible donor.
    """
    for name, entrant in entrants.items():
        check_classes(name, entrant)
        for network in (entrant.model, *entrant.oracles.values(), entrant.discriminator):
            if network is not None and device is not None:
                network.to(device)
    with cpu_by_default():
        generator = torch.Generator().manual_seed(seed)
        donors = draw_donors(knees.labels, patients=knees.patients, generator=generator)
        if missing := int((donors < 0).sum()):
            raise ValueError(
                f"knees: {missing} of {len(donors)} have no donor of another grade and patient; give more images"
            )
        runs = {n: Evaluation(e, knees, donors, seed, progress, precision) for n, e in entrants.items()}
        curves = {name: run.measure_curve(strengths) for name, run in runs.items()}
        kinds = select_kinds(list(curves.values()), strengths)
        trees = {}
        for name, run in runs.items():
            of_selected = run.measure_selected(
                list(kinds.values()),
                robustness=robustness,
                realism=realism,
                with_probes=with_probes,
                training=(training or {}).get(name),
                truths=truths,
            )
            names = {detail: str(kind) for detail, kind in kinds.items()}
            trees[name] = {"selected": names, **curves[name], **of_selected}
        figures = summarise(pool(list(trees.values())))
    figures["oracles_at_chance"] = [n for tree in trees.values() for n in tree["oracles_at_chance"]]
    figures = with_criteria(figures)
    if len(trees) > 1:
        figures["folds"] = {name: with_criteria(summarise(tree)) for name, tree in trees.items()}
    return Evaluated(figures, runs, kinds)


def select_kinds(curves: Sequence[dict[str, Any]], strengths: Sequence[float]) -> dict[str, Kind]:
    """The kinds of X' for the second pass: the decoder at the strength nearest to 1, the host's detail at its best one.

    "Best" is by the oracles' AUROC (kappa for more grades) over that on real knees, mean over the weights.
    """

    def score(strength: float) -> float:
        heads = [c["exchanged"][str(Kind("host", strength))]["headline"] for c in curves]
        figure = "auroc_over_real" if "auroc_over_real" in heads[0] else "kappa_over_real"
        return float(sum(head[figure][0] for head in heads) / len(heads))

    nearest = min(strengths, key=lambda s: abs(s - 1))
    return {"decoder": Kind("decoder", nearest), "host": Kind("host", max(strengths, key=score))}


class Evaluation:
    """One entrant on one set of knees; holds the exchanges, so that nothing is encoded twice.

    Args:
        entrant: weights and oracles.
        knees: of patients that neither has seen.
        donors: (N,) indices, of another grade and patient.
        seed: of bootstrap and samples.
        progress: show progress bars.
        precision: of the networks, which run where their parameters are; figures are made on the CPU.
    """

    def __init__(
        self,
        entrant: Entrant,
        knees: HeldOutKnees,
        donors: Tensor,
        seed: int = 0,
        progress: bool = False,
        precision: Precision = "32-true",
    ) -> None:
        self.entrant, self.knees, self.seed, self.progress = entrant, knees, seed, progress
        self.precision: Precision = precision
        self.target = knees.labels[donors]
        self.exchanges = Exchanges(entrant.model, knees.images, donors, precision)
        self.boot = Bootstrap(knees.patients, seed)
        self.bench = Bench(entrant.oracles, knees.images, knees.labels, knees.patients, seed, precision)
        self.own: Bench | None = None
        if entrant.discriminator is not None:
            alone = {DISCRIMINATOR: entrant.discriminator}
            self.own = Bench(alone, knees.images, knees.labels, knees.patients, seed, precision)
        self.directions = directions(knees.labels, self.target, self.bench.classes)
        self.readings = read(knees.images, knees.medial)
        self.real, self.reconstructed = widths(self.readings), self.jsw(self.exchanges.reconstruction)
        self.joint = joint_band(self.readings, knees.images.shape[-1])

    def jsw(self, images: Tensor) -> Floats:
        """(N,) medial widths of images of the hosts."""
        return widths(read(images, self.knees.medial))

    def measure_curve(self, strengths: Sequence[float]) -> dict[str, Any]:
        """Reconstruction, and oracles and JSW at every strength, as draws."""
        knees, x_hat = self.knees, self.exchanges.reconstruction
        counts = torch.bincount(knees.labels, minlength=len(self.bench.classes)).tolist()
        result: dict[str, Any] = {
            "images": len(knees.images),
            "per_class": dict(zip(self.bench.classes, counts, strict=True)),
            "patients": len(set(knees.patients)),
            "reconstruction": {
                "psnr": self.boot.mean(psnr(x_hat, knees.images)),
                "ssim": self.boot.mean(ssim(x_hat, knees.images)),
            },
            "oracles_at_chance": self.bench.at_chance(),
            "real": self._predicted(knees.images, knees.labels),
            "reconstructed": self._predicted(x_hat, knees.labels),
            "kept": self.bench.kept(self.bench.predict(x_hat), knees.labels),
            "exchanged": {},
        }
        measured: dict[Kind, Floats] = {}
        kinds = [Kind(detail, strength) for detail in DETAILS for strength in strengths]
        for kind in tqdm(kinds, desc="strengths", disable=not self.progress, leave=False):
            images = self.exchanges.of(kind)
            measured[kind] = self.jsw(images) if kind.strength else self._unchanged(kind)
            result["exchanged"][str(kind)] = self._exchanged(kind, images)
        result["anatomy"] = measure_anatomy(
            self.boot, knees.labels, self.target, self.directions, self.real, self.reconstructed, measured
        )
        return result

    def measure_selected(
        self,
        kinds: Sequence[Kind],
        *,
        robustness: bool = True,
        realism: bool = False,
        with_probes: bool = True,
        training: TrainingKnees | None = None,
        truths: Truths | None = None,
    ) -> dict[str, Any]:
        """All that is measured of the selected kinds of X' only, as draws; arguments as of :func:`evaluate`."""
        knees, x_hat = self.knees, self.exchanges.reconstruction
        result: dict[str, Any] = {"follows": measure_following(knees, self.exchanges, self.seed)}
        images = {kind: self.exchanges.of(kind) for kind in kinds}
        named = {str(kind): x for kind, x in images.items()}
        steps = tqdm(total=4 + len(kinds), desc="selected kinds", disable=not self.progress, leave=False)
        result["identity"] = {}
        album = training.album if training else None
        for name, x in ({"reconstructed": x_hat} | named).items():
            result["identity"][name] = measure_identity(
                self.boot, knees, self.exchanges, x, self.joint, album, self.seed
            )
            steps.update()
        if robustness:
            own = {"real": knees.images, "reconstructed": x_hat}
            result["robustness"] = {
                k: measure_robustness(self.bench, x, knees.labels) for k, x in own.items()
            }
            result["robustness"] |= {
                k: measure_robustness(self.bench, x, self.target) for k, x in named.items()
            }
        steps.update()
        if with_probes:
            result["probes"] = run_probes(
                self.boot, knees, self.exchanges.key, self.exchanges.non_key, self.seed
            )
        steps.update()
        if training is not None:
            result["training_images"] = {"images": len(training.sample), **self._fidelity(training)}
        if truths is not None:
            changes = {
                kind: (x - self.exchanges.base(kind.detail), self.jsw(x) - self._unchanged(kind))
                for kind, x in images.items()
            }
            result["phantoms"] = measure_against_truth(
                self.boot, truths, self.exchanges.donors, self.directions, changes, self.jsw
            )
        if realism:
            from kecae_training.evaluate.realism import measure_realism

            extractor = next(iter(self.entrant.oracles.values()))
            result["realism"] = measure_realism(
                knees.images, x_hat, named, extractor, knees.patients, self.seed, precision=self.precision
            )
        steps.close()
        return result

    def _unchanged(self, kind: Kind) -> Floats:
        """(N,) widths of what X' of this detail would be without an exchange."""
        return self.reconstructed if kind.detail == "decoder" else self.real

    def _exchanged(self, kind: Kind, images: Tensor) -> dict[str, Any]:
        predictions = self.bench.predict(images)
        by = self.bench.tree(predictions, self.target)
        result: dict[str, Any] = {
            "change": self.boot.mean((images - self.exchanges.base(kind.detail)).abs().flatten(1).mean(1)),
            "psnr_to_host": self.boot.mean(psnr(images, self.knees.images)),
            "oracles": by,
            "headline": self.bench.headline(predictions, self.target),
        }
        if self.own is not None:
            own = self.own.tree(self.own.predict(images), self.target)
            result["oracles"] = by | own
            result["discriminator_gap"] = discriminator_gap(by, own)
        return result

    def _predicted(self, images: Tensor, target: Tensor) -> dict[str, Any]:
        own = self.own.tree(self.own.predict(images), target) if self.own is not None else {}
        return self.bench.tree(self.bench.predict(images), target) | own

    @torch.no_grad()
    def _fidelity(self, training: TrainingKnees) -> dict[str, Any]:
        images, boot = training.sample, Bootstrap(training.patients, self.seed)
        themselves = torch.arange(len(images))
        x_hat = Exchanges(self.entrant.model, images, themselves, self.precision).reconstruction
        return {"psnr": boot.mean(psnr(x_hat, images)), "ssim": boot.mean(ssim(x_hat, images))}
