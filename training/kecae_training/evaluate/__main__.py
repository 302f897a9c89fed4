"""What weights are worth, measured by what they have not seen: oracles, a JSW measurement, other knees. One JSON
line, one page.

    kecae-aug evaluate --weights runs/knee/weights --data DIR --oracles runs/oracle-vgg runs/oracle-densenet
    runs/oracle-resnet \
        --discriminator runs/discriminator --train_split train --out figures.jsonl --page figures.html

Cross-fit, two halves of the training patients, each half's weights evaluated by oracles of the other half:

    kecae-aug evaluate --weights runs/a/weights runs/b/weights --oracles '[["oracles/b1", ...], ["oracles/a1", ...]]' \
        --discriminator runs/discriminator-a runs/discriminator-b --data DIR ...

Each knee of the split is a host once, with a random donor of another grade. Figures: docs/evaluate.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kecae_aug.data import Preprocessing, open_radiographs
from kecae_aug.device import Device, Precision, choose_device, cpu_by_default
from kecae_aug.donors import draw_donors
from kecae_aug.errors import reporting
from kecae_aug.weights.io import load_weights
from kecae_training.checkpoint import environment
from kecae_training.discriminator import in_fold, load_discriminator
from kecae_training.evaluate.criteria import criteria, not_measured
from kecae_training.evaluate.evaluation import Entrant, Evaluation, Training, kinds_to_look_at
from kecae_training.evaluate.exchanged import Kind
from kecae_training.evaluate.identity import Album, shrink
from kecae_training.evaluate.measures import Knees, open_knees, pool, stratified, summarise
from kecae_training.evaluate.phantom_truth import Truths, open_truths
from kecae_training.evaluate.provenance import check_oracles, check_weights, training_patients, warnings_of
from kecae_training.evaluate.tables import table
from kecae_training.images import to_float, to_uint8

STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
TRAINING_SAMPLE = 500  # training images whose reconstruction is measured


@dataclass
class EvaluateConfig:
    """What is evaluated, on what, by whom.

    Args:
        data: folder of split/grade/name, or a table.
        split: subfolder whose knees are exchanged; neither weights nor oracles may have seen a patient of it.
        strengths: exchange strengths of the curve.
        seed: of the donors, the samples and the bootstrap.
        max_images: at most so many knees, stratified by grade, for a quick look.
        train_split: subfolder that the weights were trained on: PSNR on its knees, and copies of them, are measured.
        robustness: oracle again after 8-bit rounding, JPEG, blur and a shift.
        realism: distances and a two-sample classifier, with the first oracle as extractor.
        radiomics: with ``realism``, the Frechet radiomics distance too (extra ``[radiomics]``; minutes more).
        probes: what can be read from the latents.
        out: file to which one JSON line is appended.
        page: HTML file with figures and pictures, which show knees of ``data``; an existing page is replaced.
        page_rows: knees of each direction on the page.
        device: where the networks run: auto, cpu, cuda or mps.
        precision: of the networks.
    """

    data: Path
    split: str = "val"
    strengths: list[float] = field(default_factory=lambda: list(STRENGTHS))
    seed: int = 0
    max_images: int | None = None
    train_split: str | None = None
    robustness: bool = True
    realism: bool = False
    radiomics: bool = False
    probes: bool = True
    out: Path | None = None
    page: Path | None = None
    page_rows: int = 4
    device: Device = "auto"
    precision: Precision = "32-true"

    def check(self) -> None:
        """Raise ValueError for values that make no evaluation."""
        if self.radiomics and not self.realism:
            raise ValueError("radiomics=true is a part of realism: give --realism true as well")
        if not self.strengths or any(s < 0 for s in self.strengths):
            raise ValueError(f"strengths={self.strengths}: one or more numbers of 0 or above")


class Evaluated(NamedTuple):
    """What :func:`evaluate` gives: figures (JSON-able), and per weights the exchanges that the page draws."""

    figures: dict[str, Any]
    evaluations: dict[str, Evaluation]
    kinds: dict[str, Kind]


def evaluate(
    entrants: Mapping[str, Entrant],
    knees: Knees,
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    robustness: bool = True,
    realism: bool = False,
    radiomics: bool = False,
    with_probes: bool = True,
    training: Mapping[str, Training] | None = None,
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
        robustness: whether the oracles look again after small degradations.
        realism: whether distances and a two-sample classifier are measured.
        radiomics: and the Frechet radiomics distance.
        with_probes: whether the latents are probed.
        training: by name of the entrant, images that its weights were trained on.
        truths: of the knees, where they are phantoms.
        progress: show progress criteria.
        device: where the networks run; they are moved there. By default each stays where it is. Figures are made on the CPU.
        precision: of the networks.

    Returns:
        Figures as ``{"mean", "low", "high"}``. Of several entrants the mean over them, inside the same draws of
        patients, and under ``folds`` those of each.
    """
    for name, entrant in entrants.items():
        _check_classes(name, entrant)
        for network in (entrant.model, *entrant.oracles.values(), entrant.discriminator):
            if network is not None and device is not None:
                network.to(device)
    options = {
        "robustness": robustness,
        "realism": realism,
        "radiomics": radiomics,
        "with_probes": with_probes,
        "truths": truths,
    }
    with cpu_by_default():
        return _evaluated(entrants, knees, strengths, seed, training or {}, options, progress, precision)


def _check_classes(name: str, entrant: Entrant) -> None:
    """Refuse oracles whose logits are of other classes than the weights', or in another order."""
    wanted = entrant.model.config.classes
    for who, oracle in [*entrant.oracles.items(), ("discriminator", entrant.discriminator)]:
        if oracle is not None and tuple(oracle.classes) != tuple(wanted):
            raise ValueError(
                f"{who}: its logits are of classes {tuple(oracle.classes)}, {name} exchanges {tuple(wanted)}; load it with "
                f"load_discriminator(folder, {tuple(wanted)})"
            )


def _evaluated(
    entrants: Mapping[str, Entrant],
    knees: Knees,
    strengths: Sequence[float],
    seed: int,
    training: Mapping[str, Training],
    options: Mapping[str, Any],
    progress: bool,
    precision: Precision,
) -> Evaluated:
    generator = torch.Generator().manual_seed(seed)
    donors = draw_donors(knees.labels, patients=knees.patients, generator=generator)
    if (donors < 0).any():
        raise ValueError(
            f"knees: {int((donors < 0).sum())} of {len(donors)} have no donor of another grade and patient; give more images"
        )
    runs = {
        name: Evaluation(e, knees, donors, seed, progress=progress, precision=precision)
        for name, e in entrants.items()
    }
    curves = {name: run.curve(strengths) for name, run in runs.items()}
    kinds = kinds_to_look_at(list(curves.values()), strengths)
    names = {detail: str(kind) for detail, kind in kinds.items()}
    trees = {}
    for name, run in runs.items():
        closer = run.closer(list(kinds.values()), training=training.get(name), **options)
        trees[name] = {"closer": names, **curves[name], **closer}
    figures = summarise(pool(list(trees.values())))
    figures["oracles_at_chance"] = [n for tree in trees.values() for n in tree["oracles_at_chance"]]
    figures = with_criteria(figures)
    if len(trees) > 1:
        figures["folds"] = {name: with_criteria(summarise(tree)) for name, tree in trees.items()}
    return Evaluated(figures, runs, kinds)


def with_criteria(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures, and how they stand to the criteria."""
    found = criteria(figures)
    return {
        **figures,
        "criteria": [criterion.to_dict() for criterion in found],
        "not_measured": not_measured(figures),
    }


def open_training(entrant: Entrant, data: Path, split: str, seed: int) -> Training:
    """The knees that weights were trained on, by the split and the fold that their config.json names."""
    model = entrant.model
    facts = model.metadata.get("data") or {}
    folder = open_radiographs(
        data, split, grades=list(model.config.classes), preprocessing=Preprocessing.of(model)
    )
    folds, fold = int(facts.get("folds", 1)), int(facts.get("fold", 0))
    folder = folder.subset(i for i, p in enumerate(folder.patients) if in_fold(p, fold, folds))
    images = to_uint8(folder)
    rows = stratified(folder.targets, TRAINING_SAMPLE, seed)
    small = torch.cat([shrink(to_float(part)) for part in images.split(256)])
    return Training(Album(small, folder.files), to_float(images[rows]), [folder.patients[i] for i in rows])


def open_entrants(
    weights: Sequence[str], oracles: Sequence[Sequence[str]], discriminators: Sequence[str]
) -> dict[str, Entrant]:
    """Weights with their oracles and discriminator, by name.

    Raises:
        ValueError: numbers that do not fit, weights that do not read the same images, or an oracle or discriminator
        of other images.
    """
    if len(oracles) != len(weights) or not all(oracles):
        raise ValueError(
            f"oracles: {len(oracles)} lists for {len(weights)} weights; give one list of oracles for one weights file, "
            """or as JSON a list for each: --oracles '[["a", "b"], ["c", "d"]]'"""
        )
    if discriminators and len(discriminators) != len(weights):
        raise ValueError(
            f"discriminator: {len(discriminators)} for {len(weights)} weights; give one for each, or none"
        )
    if len(set(weights)) < len(weights):
        raise ValueError(f"weights={list(weights)}: each only once")
    entrants = {}
    for i, name in enumerate(weights):
        model = load_weights(name)
        classes = model.config.classes
        fits = Preprocessing.of(model)
        by_name = {
            Path(path).name: load_discriminator(path, classes, preprocessing=fits) for path in oracles[i]
        }
        if len(by_name) < len(oracles[i]):
            raise ValueError(f"oracles={list(oracles[i])}: two folders of one name; rename one")
        discriminator = (
            load_discriminator(discriminators[i], classes, preprocessing=fits) if discriminators else None
        )
        entrants[name] = Entrant(model, by_name, discriminator)
    first, *others = (entrant.model for entrant in entrants.values())
    for other in others:
        if other.config.classes != first.config.classes or Preprocessing.of(other) != Preprocessing.of(first):
            raise ValueError(
                "weights: they read different images (classes or preprocessing), so they cannot be pooled"
            )
    return entrants


def run(
    weights: Sequence[str],
    oracles: Sequence[Sequence[str]],
    discriminators: Sequence[str],
    config: EvaluateConfig,
) -> dict[str, Any]:
    """The command: evaluate, append the JSON line, write the page.

    Returns:
        The line.

    Raises:
        ValueError, FileNotFoundError: with what is wrong and the way out.
    """
    config.check()
    device = choose_device(config.device)
    start = time.perf_counter()
    entrants = open_entrants(weights, oracles, discriminators)
    first = next(iter(entrants.values())).model
    knees = open_knees(first, config.data, config.split, config.max_images, config.seed)
    provenance = {}
    for name, entrant in entrants.items():
        seen = training_patients(entrant.model, config.data)
        check_weights(name, seen, knees.patients, config.split)
        by_discriminator = entrant.discriminator.patients if entrant.discriminator else None
        judged_by = check_oracles(entrant.oracles, knees.patients, config.split, seen, by_discriminator)
        provenance[name] = {
            "sha256": entrant.model.metadata.get("weights", {}).get("sha256"),
            "oracles": judged_by,
            "warnings": warnings_of(judged_by),
        }
    training = {}
    if config.train_split:
        training = {
            n: open_training(e, config.data, config.train_split, config.seed) for n, e in entrants.items()
        }
    evaluated = evaluate(
        entrants,
        knees,
        strengths=config.strengths,
        seed=config.seed,
        robustness=config.robustness,
        realism=config.realism,
        radiomics=config.radiomics,
        with_probes=config.probes,
        training=training,
        truths=open_truths(config.data, config.split, knees.files, Preprocessing.of(first)),
        progress=True,
        device=device,
        precision=config.precision,
    )
    figures = evaluated.figures
    if len(entrants) == 1:
        facts: dict[str, Any] = {"weights": weights[0], **provenance[weights[0]]}
    else:
        facts = {"weights": list(weights)}
        figures["folds"] = {name: {**provenance[name], **fold} for name, fold in figures["folds"].items()}
    line = {
        **facts,
        "classes": list(first.config.classes),
        "split": config.split,
        "seed": config.seed,
        "precision": config.precision,
        **figures,
        "seconds": round(time.perf_counter() - start, 1),
        "environment": environment(device),
    }
    if config.out:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        with config.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
    if config.page:
        from kecae_training.evaluate.page import write_page

        write_page(line, evaluated.evaluations, evaluated.kinds, config.page, config.page_rows)
    return line


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``kecae-aug evaluate``."""
    with reporting("kecae-aug evaluate", "interrupted; nothing was written"):
        _command(argv)


def _command(argv: Sequence[str] | None) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="kecae-aug evaluate", description=__doc__)
    parser.add_argument("--weights", nargs="+", required=True, help="bundled names, folders or Hub ids")
    parser.add_argument(
        "--oracles",
        nargs="+",
        required=True,
        help="folders of oracles; for several weights a JSON list of lists",
    )
    parser.add_argument(
        "--discriminator",
        nargs="+",
        default=[],
        help="folder of the training's discriminator, one for each weights",
    )
    parser.add_class_arguments(EvaluateConfig)
    values = vars(parser.instantiate(parser.parse_args(argv)))
    weights, discriminators = (_listed(values.pop(key)) for key in ("weights", "discriminator"))
    oracles = _listed(values.pop("oracles"))
    lists = oracles if oracles and isinstance(oracles[0], list) else [oracles]
    line = run(weights, lists, discriminators, EvaluateConfig(**values))
    print(json.dumps({k: line[k] for k in ("images", "patients", "reconstruction", "seconds")}))
    for fold in line.get("folds", {"": line}).values():
        print(table(fold, line["classes"]))
    for criterion in line["criteria"]:
        print(
            f"{criterion['verdict']:<32} {criterion['criterion']}: {criterion['figure']['mean']} "
            f"(wanted {criterion['wanted']})"
        )


def _listed(values: Any) -> list[Any]:
    """Values of a flag that may also have come as one JSON list."""
    items = [values] if isinstance(values, str) else list(values or [])
    if len(items) == 1 and isinstance(items[0], str) and items[0].lstrip().startswith("["):
        try:
            return list(json.loads(items[0]))
        except ValueError as error:
            raise ValueError(
                f"{items[0]!r}: not a JSON list ({error}); names stand in double quotes: "
                """'[["a", "b"], ["c", "d"]]'"""
            ) from None
    return items


if __name__ == "__main__":
    main()
