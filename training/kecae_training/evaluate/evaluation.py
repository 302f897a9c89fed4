"""One weights file on one set of knees: every measurement of an evaluation, in two passes.

First the curve (oracles and jsw at every strength), then a closer look at few kinds of X' (identity, robustness, truth,
realism), which costs more. Both return trees of draws (:mod:`kecae_training.evaluate.measures`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from kecae_aug.device import Precision
from kecae_aug.engine.model import KECAE
from kecae_training.discriminator import Discriminator
from kecae_training.evaluate.anatomy import Floats, anatomy, read, widths
from kecae_training.evaluate.exchanged import DETAILS, Exchanges, Kind
from kecae_training.evaluate.identity import Album, follows, identity, joint_band
from kecae_training.evaluate.measures import Bootstrap, Knees, directions, psnr, ssim
from kecae_training.evaluate.oracles import Bench, discriminator_gap
from kecae_training.evaluate.phantom_truth import Truths, phantom_anatomy
from kecae_training.evaluate.probes import probes
from kecae_training.evaluate.robustness import after_degradation

DISCRIMINATOR = "discriminator (certifies itself)"


@dataclass
class Entrant:
    """A weights file with those who oracle it.

    Fields:
        model: the weights. oracles: name -> oracle. discriminator: the training's own, for the gap.
    """

    model: KECAE
    oracles: dict[str, Discriminator]
    discriminator: Discriminator | None = None


@dataclass(frozen=True)
class Training:
    """Knees that weights were trained on: all of them shrunk, and a sample (M, 1, S, S) of patients ``patients``."""

    album: Album
    sample: Tensor
    patients: list[str]


class Evaluation:
    """One entrant on one set of knees; holds the exchanges, so that nothing is encoded twice.

    Args:
        entrant: weights and oracles.
        knees: of patients that neither has seen.
        donors: (N,) rows, of another grade and patient.
        seed: of bootstrap and samples.
        progress: show a progress criterion.
        precision: of the networks, which run where their parameters are; figures are made on the CPU.
    """

    def __init__(
        self,
        entrant: Entrant,
        knees: Knees,
        donors: Tensor,
        seed: int = 0,
        *,
        progress: bool = False,
        precision: Precision = "32-true",
    ) -> None:
        self.precision: Precision = precision
        self.entrant, self.knees, self.seed, self.progress = entrant, knees, seed, progress
        self.wanted = knees.labels[donors]
        self.exchanges = Exchanges(entrant.model, knees.images, donors, precision)
        self.boot = Bootstrap(knees.patients, seed)
        self.bench = Bench(entrant.oracles, knees.images, knees.labels, knees.patients, seed, precision)
        self.own = (
            Bench(
                {DISCRIMINATOR: entrant.discriminator},
                knees.images,
                knees.labels,
                knees.patients,
                seed,
                precision,
            )
            if entrant.discriminator is not None
            else None
        )
        self.directions = directions(knees.labels, self.wanted, self.bench.classes)
        self.readings = read(knees.images, knees.medial)
        self.real, self.reconstructed = widths(self.readings), self.jsw(self.exchanges.reconstruction)
        self.joint = joint_band(self.readings, knees.images.shape[-1])

    def jsw(self, images: Tensor) -> Floats:
        """(N,) medial widths of images of the hosts."""
        return widths(read(images, self.knees.medial))

    def curve(self, strengths: Sequence[float]) -> dict[str, Any]:
        """Oracles and jsw at every strength, as draws: what comes before a strength is chosen to look closer at."""
        knees, x_hat = self.knees, self.exchanges.reconstruction
        result: dict[str, Any] = {
            "images": len(knees.images),
            "per_class": dict(
                zip(
                    self.bench.classes,
                    torch.bincount(knees.labels, minlength=len(self.bench.classes)).tolist(),
                    strict=True,
                )
            ),
            "patients": len(set(knees.patients)),
            "reconstruction": {
                "psnr": self.boot.mean(psnr(x_hat, knees.images)),
                "ssim": self.boot.mean(ssim(x_hat, knees.images)),
            },
            "oracles_at_chance": self.bench.at_chance(),
            "real": self._judged(knees.images, knees.labels),
            "reconstructed": self._judged(x_hat, knees.labels),
            "kept": self.bench.kept(self.bench.see(x_hat), knees.labels),
            "exchanged": {},
        }
        measured: dict[Kind, Floats] = {}
        kinds = [Kind(detail, strength) for detail in DETAILS for strength in strengths]
        for kind in tqdm(kinds, desc="strengths", disable=not self.progress, leave=False):
            images = self.exchanges.of(kind)
            measured[kind] = self.jsw(images) if kind.strength else self._unchanged(kind)
            result["exchanged"][str(kind)] = self._exchanged(kind, images)
        result["anatomy"] = anatomy(
            self.boot, knees.labels, self.wanted, self.directions, self.real, self.reconstructed, measured
        )
        return result

    def closer(
        self,
        kinds: Sequence[Kind],
        *,
        robustness: bool = True,
        realism: bool = False,
        radiomics: bool = False,
        with_probes: bool = True,
        training: Training | None = None,
        truths: Truths | None = None,
    ) -> dict[str, Any]:
        """All that is measured at few kinds of X' only, as draws.

        Args:
            kinds: of X'.
            robustness: whether the oracles look again after small degradations.
            realism: whether distances and a two-sample classifier are measured.
            radiomics: and the Frechet radiomics distance.
            with_probes: whether the latents are probed.
            training: images that the weights were trained on.
            truths: of the knees, where they are phantoms.
        """
        knees = self.knees
        result: dict[str, Any] = {"follows": follows(knees, self.exchanges, self.seed)}
        images = {kind: self.exchanges.of(kind) for kind in kinds}
        steps = tqdm(total=4 + len(kinds), desc="a closer look", disable=not self.progress, leave=False)
        result["identity"] = {}
        controlled = {"reconstructed": self.exchanges.reconstruction} | {str(k): x for k, x in images.items()}
        for name, x in controlled.items():
            result["identity"][name] = identity(
                self.boot,
                knees,
                self.exchanges,
                x,
                self.joint,
                training.album if training else None,
                self.seed,
            )
            steps.update()
        if robustness:
            own = {"real": knees.images, "reconstructed": self.exchanges.reconstruction}
            result["robustness"] = {k: after_degradation(self.bench, x, knees.labels) for k, x in own.items()}
            for kind, x in images.items():
                result["robustness"][str(kind)] = after_degradation(self.bench, x, self.wanted)
        steps.update()
        if with_probes:
            result["probes"] = probes(self.boot, knees, self.exchanges.key, self.exchanges.non_key, self.seed)
        steps.update()
        if training is not None:
            result["training_images"] = {"images": len(training.sample), **self._fidelity(training)}
        if truths is not None:
            changes = {
                kind: (
                    x - self.exchanges.base(kind.detail),
                    self.jsw(x) - self._unchanged(kind),
                )
                for kind, x in images.items()
            }
            result["phantoms"] = phantom_anatomy(
                self.boot, truths, self.exchanges.donors, self.directions, changes, self.jsw
            )
        if realism:
            from kecae_training.evaluate.realism import realism as measured_realism

            extractor = next(iter(self.entrant.oracles.values()))
            named = {str(kind): x for kind, x in images.items()}
            result["realism"] = measured_realism(
                knees.images,
                self.exchanges.reconstruction,
                named,
                extractor,
                knees.patients,
                self.seed,
                radiomics=radiomics,
                precision=self.precision,
            )
        steps.close()
        return result

    def _unchanged(self, kind: Kind) -> Floats:
        """(N,) widths of what X' of this detail would be without an exchange."""
        return self.reconstructed if kind.detail == "decoder" else self.real

    def _exchanged(self, kind: Kind, images: Tensor) -> dict[str, Any]:
        seen = self.bench.see(images)
        result: dict[str, Any] = {
            "change": self.boot.mean((images - self.exchanges.base(kind.detail)).abs().flatten(1).mean(1)),
            "psnr_to_host": self.boot.mean(psnr(images, self.knees.images)),
            "oracles": self.bench.tree(seen, self.wanted),
            "headline": self.bench.headline(seen, self.wanted),
        }
        if self.own is not None:
            by_discriminator = self.own.see(images)
            result["oracles"] |= self.own.tree(by_discriminator, self.wanted)
            result["discriminator_gap"] = discriminator_gap(
                self.bench, self.own, seen, by_discriminator, self.wanted
            )
        return result

    def _judged(self, images: Tensor, wanted: Tensor) -> dict[str, Any]:
        by_discriminator = self.own.tree(self.own.see(images), wanted) if self.own is not None else {}
        return self.bench.tree(self.bench.see(images), wanted) | by_discriminator

    @torch.no_grad()
    def _fidelity(self, training: Training) -> dict[str, Any]:
        images, boot = training.sample, Bootstrap(training.patients, self.seed)
        x_hat = Exchanges(
            self.entrant.model, images, torch.arange(len(images)), self.precision
        ).reconstruction
        return {"psnr": boot.mean(psnr(x_hat, images)), "ssim": boot.mean(ssim(x_hat, images))}


def kinds_to_look_at(curves: Sequence[dict[str, Any]], strengths: Sequence[float]) -> dict[str, Kind]:
    """The kinds that are looked at closely: the decoder at the strength nearest to 1, the host's detail at its best one.

    "Best" is by the oracles' AUROC (kappa for more grades) over that on real knees, mean over the weights.
    """

    def score(strength: float) -> float:
        heads = [c["exchanged"][str(Kind("host", strength))]["headline"] for c in curves]
        figure = "auroc_over_real" if "auroc_over_real" in heads[0] else "kappa_over_real"
        return float(sum(head[figure][0] for head in heads) / len(heads))

    nearest = min(strengths, key=lambda s: abs(s - 1))
    return {"decoder": Kind("decoder", nearest), "host": Kind("host", max(strengths, key=score))}
