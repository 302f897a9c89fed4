"""Evaluate weights on held-out knees: by oracles, a JSW measurement and a two-sample test. One JSON line, one page.

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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kecae_aug.data import Preprocessing
from kecae_aug.device import Device, Precision, choose_device
from kecae_aug.errors import reporting
from kecae_training.checkpoint import environment
from kecae_training.evaluate.anatomy import open_truths
from kecae_training.evaluate.entrants import (
    check_oracles,
    check_weights,
    open_entrants,
    open_training,
    training_patients,
    warnings_of,
)
from kecae_training.evaluate.evaluation import STRENGTHS, evaluate
from kecae_training.evaluate.exchanges import open_knees
from kecae_training.evaluate.tables import table


@dataclass
class EvaluateConfig:
    """What is evaluated, on what, by whom.

    Args:
        data: folder of split/grade/name, or a table.
        split: subfolder whose knees are exchanged; neither weights nor oracles may have seen a patient of it.
        strengths: exchange strengths of the curve.
        seed: of the donors, the samples and the bootstrap.
        max_images: at most so many knees, stratified by grade, for a quick evaluation.
        train_split: subfolder that the weights were trained on: PSNR on its knees, and copies of them, are measured.
        robustness: the oracles' figures again after 8-bit rounding, JPEG, blur and a shift.
        realism: distances and a two-sample classifier, with the first oracle as extractor.
        probes: classifiers on the latents.
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
    probes: bool = True
    out: Path | None = None
    page: Path | None = None
    page_rows: int = 4
    device: Device = "auto"
    precision: Precision = "32-true"

    def check(self) -> None:
        """Raise ValueError for values that make no evaluation."""
        if not self.strengths or any(s < 0 for s in self.strengths):
            raise ValueError(f"strengths={self.strengths}: one or more numbers of 0 or above")


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
        by_oracle = check_oracles(entrant.oracles, knees.patients, config.split, seen, by_discriminator)
        provenance[name] = {
            "sha256": entrant.model.metadata.get("weights", {}).get("sha256"),
            "oracles": by_oracle,
            "warnings": warnings_of(by_oracle),
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
        help="folders of oracles, or of panels of them; for several weights a JSON list of lists",
    )
    parser.add_argument(
        "--discriminator",
        nargs="+",
        default=[],
        help="folder of the training's discriminator, one for each weights",
    )
    parser.add_class_arguments(EvaluateConfig)
    values = vars(parser.instantiate(parser.parse_args(argv)))
    weights, discriminators = (_parse_list(values.pop(key)) for key in ("weights", "discriminator"))
    oracles = _parse_list(values.pop("oracles"))
    lists = oracles if oracles and isinstance(oracles[0], list) else [oracles]
    line = run(weights, lists, discriminators, EvaluateConfig(**values))
    print(json.dumps({k: line[k] for k in ("images", "patients", "reconstruction", "seconds")}))
    for fold in line.get("folds", {"": line}).values():
        print(table(fold, line["classes"]))
    for criterion in line["criteria"]:
        print(
            f"{criterion['verdict']:<32} {criterion['criterion']}: {criterion['figure']['mean']} "
            f"(accepted: {criterion['accepted']})"
        )


def _parse_list(values: Any) -> list[Any]:
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
