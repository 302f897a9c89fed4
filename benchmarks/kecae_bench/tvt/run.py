"""One run of a plan: from its settings to its line in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from kecae_aug.weights.io import weights_sha256
from kecae_bench.classifiers import CLASSIFIERS, Recipe, build, training_loss
from kecae_bench.machine import of_device
from kecae_bench.record import CODE, find_commit
from kecae_bench.stats import measure
from kecae_bench.tvt.added import Tools
from kecae_bench.tvt.arms import ARMS
from kecae_bench.tvt.augmentation import Augmentation
from kecae_bench.tvt.batches import Batches
from kecae_bench.tvt.ground import Ground
from kecae_bench.tvt.knees import Knees
from kecae_bench.tvt.plan import RunSpec
from kecae_bench.tvt.split import fraction_of
from kecae_bench.tvt.store import Line, Predictions, Store, run_id
from kecae_bench.tvt.training import Loop, scores_of, train
from kecae_training.checkpoint import environment


@dataclass(frozen=True)
class Protocol:
    """What all runs of a command share.

    Args:
        steps: optimiser steps of every arm but "paper".
        loop: validations and precision.
        augmentation: ranges of the standard augmentation; None for none.
        lr, batch_size: in the place of the classifier's own.
        work: folder for banks.
    """

    steps: int
    loop: Loop = field(default_factory=Loop)
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    lr: float | None = None
    batch_size: int | None = None
    work: Path | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "lr", "batch_size"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value}: accepted is a number above 0")

    def recipe(self, classifier: str) -> Recipe:
        """The classifier's recipe, the same in all arms."""
        own = CLASSIFIERS[classifier].recipe
        return replace(own, lr=self.lr or own.lr, batch_size=self.batch_size or own.batch_size)


def identity(spec: RunSpec, ground: Ground, protocol: Protocol) -> dict[str, Any]:
    """All that a run's figures depend on, JSON-able; what plays no part in its arm is not among it."""
    arm, recipe = ARMS[spec.arm], protocol.recipe(spec.classifier)
    options = spec.options.select_used(arm.added)
    if "added" in options and options.get("p") is None:
        options["added"] = spec.options.count_beside(recipe.batch_size)
    if arm.added == "gated" or options.get("labels") == "oracles":
        options["oracles"] = sorted(weights_sha256(oracle)[:12] for oracle in ground.oracles.values())
    return {
        "classifier": spec.classifier,
        "arm": spec.arm,
        "seed": spec.seed,
        "fold": spec.fold,
        "fraction": spec.fraction,
        "n_pairs": spec.n_pairs,
        "options": options,
        "settings": {
            "image_size": ground.knees.images.shape[-1],
            "steps": protocol.steps,
            "batch_size": recipe.batch_size,
            "optimiser": recipe.optimiser,
            "lr": recipe.lr,
            "weight_decay": recipe.weight_decay,
            "precision": protocol.loop.precision,
            **of_device(protocol.loop.device),
            "channels_last": protocol.loop.channels_last,
            "validations": protocol.loop.validations,
            "augmentation": asdict(protocol.augmentation) if protocol.augmentation else None,
            "data": ground.fingerprints,
            **({"known_patients": "left out"} if ground.new else {}),
        },
        "weights": weights_of(ground) if arm.uses_weights else None,
    }


def id_of(known: dict[str, Any]) -> str:
    """The run's id; weights are the same under any name."""
    return run_id({**known, "weights": known["weights"] and {"sha256": known["weights"]["sha256"]}})


def perform(spec: RunSpec, ground: Ground, protocol: Protocol, store: Store) -> tuple[Line, bool]:
    """The line of a run, and whether it was run now; a finished one is taken from the store.

    The test set is used once, after the training, by the checkpoint that the validation patients chose.

    Raises:
        DivergedError, SplitError, ValueError: a run that cannot be.
    """
    known = identity(spec, ground, protocol)
    ident = id_of(known)
    if line := store.finished().get(ident):
        return line, False
    knees, split, recipe = ground.knees, ground.split, protocol.recipe(spec.classifier)
    indices = fraction_of(knees, split.train, spec.fraction, spec.seed)
    training, others = knees.select(indices), knees.select(sorted(set(split.train) - set(indices)))
    validation, test = knees.select(split.validation), knees.select(split.test)
    batches = batches_of(spec, ground, protocol, training, others)
    trained = train(
        lambda classes, size: build(spec.classifier, classes, size),
        training_loss,
        recipe,
        batches,
        validation,
        protocol.loop,
        str(spec),
    )
    scores = scores_of(trained.model, test.images, protocol.loop)
    if known["weights"]:
        known["weights"] |= count_outside(ground, training)
    line = {
        "kind": "run",
        "id": ident,
        **known,
        "code": find_commit(*CODE),
        "run_steps": batches.steps,
        "best_step": trained.best_step,
        "validation": trained.validation,
        "test": measure(scores, test.labels.numpy()),
        "curve": trained.curve,
        "classes": list(knees.classes),
        "counts": {"train": _counts(training), "validation": _counts(validation), "test": _counts(test)},
        "exchange": batches.report(),
        "seconds": trained.seconds,
        "date": date.today().isoformat(),
        "environment": {
            **environment(torch.device(protocol.loop.device)),
            "threads": str(torch.get_num_threads()),
        },
    }
    said = (
        Predictions.of(of.files, of.patients, of.labels.numpy(), found)
        for of, found in ((test, scores), (validation, trained.scores))
    )
    return store.add(line, *said), True


def batches_of(
    spec: RunSpec, ground: Ground, protocol: Protocol, training: Knees, others: Knees | None = None
) -> Batches:
    """The steps of a run on ``training``; ``others`` are the training knees that it leaves out."""
    oracles = list(ground.oracles.values())
    tools = Tools(
        ground.model, oracles, ground.oracle_size, spec.n_pairs, others, protocol.work, protocol.loop.device
    )
    return Batches(
        ARMS[spec.arm],
        training,
        spec.seed,
        protocol.recipe(spec.classifier).batch_size,
        protocol.steps,
        spec.options,
        tools,
        protocol.augmentation,
    )


def count_outside(ground: Ground, training: Knees) -> dict[str, int | None]:
    """How many patients the weights know, and how many of them are not among the run's training patients.

    At 5 % of the labels, weights of all patients bring in labels that T has not: a gain then is not of scarce labels.
    """
    seen = ground.seen.patients if ground.seen is not None else None
    if seen is None:
        return {"patients": None, "patients_outside_T": None}
    return {"patients": len(seen), "patients_outside_T": len(seen - set(training.patients))}


def weights_of(ground: Ground) -> dict[str, Any]:
    """``name`` and ``sha256``, as a line has them."""
    if ground.model is None:
        raise ValueError("weights: this arm needs some (--weights)")
    sha256 = ground.model.metadata.get("weights", {}).get("sha256") or weights_sha256(ground.model)
    name = "/".join(Path(ground.name).parts[-2:])  # RUN/weights, not where it is on this machine
    return {"name": name, "sha256": sha256}


def _counts(knees: Knees) -> dict[str, Any]:
    per: Sequence[int] = torch.bincount(knees.labels, minlength=len(knees.classes)).tolist()
    return {
        "images": len(knees),
        "patients": len(set(knees.patients)),
        "per_class": dict(zip(knees.classes, per, strict=True)),
    }
