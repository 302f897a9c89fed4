"""A model card of at most one page from what `evaluate` measured; all figures stand beside it as figures.json.

    kecae-aug card --weights runs/knee/weights --figures figures.jsonl --name knee-kl02 \
        --about "Exchanges KL grades 0 and 2 of ..." --license cc-by-4.0
    kecae-aug card --weights runs/knee/weights      # writes the card again, from the folder's figures.json

Every number comes from the last line of the figures or from the weights' own config.json; figures of other weights are
refused. Figures of a cross-fit are accepted where one of its halves is these weights; those of a cross-fit of the same
recipe can be put beside the weights' own (--cross_fit).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kecae_aug.engine.model import KECAE
from kecae_aug.errors import reporting
from kecae_aug.weights.card import CARD, FIGURES, front_matter, list_facts, usage
from kecae_aug.weights.io import load_weights
from kecae_training.evaluate import tables
from kecae_training.evaluate.criteria import at, list_criteria

TEXTS = ("name", "about", "license", "source")


@dataclass
class CardConfig:
    """What the card is made from.

    Args:
        weights: folder of the weights; README.md and figures.json are written there.
        figures: file of `kecae-aug evaluate --out`, whose last line is used; by default the folder's figures.json.
        name: by which the weights are loaded; by default, as for the other texts, that of the folder's figures.json.
        about: one sentence: what they exchange, and on which images they were trained.
        license: of the weights, in the Hub's notation.
        source: of the training images, with whatever has to be cited.
        cross_fit: file of a cross-fit of the same recipe (`kecae-aug evaluate` with two weights), whose oracles share no
            patient with the weights that they evaluate; its last line is put beside the figures.
    """

    weights: Path
    figures: Path | None = None
    name: str | None = None
    about: str | None = None
    license: str | None = None
    source: str | None = None
    cross_fit: Path | None = None


def write_card(config: CardConfig) -> Path:
    """Write README.md and figures.json into the folder of the weights.

    Returns:
        Path of the card.

    Raises:
        ValueError: the figures are those of other weights, of an older evaluate, or there are none; a text is missing.
    """
    model, path = load_weights(config.weights), config.weights / FIGURES
    stored: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if config.figures is None and not stored:
        raise ValueError(
            f"figures: none given, and {path} is not there; give a file of `kecae-aug evaluate --out`"
        )
    figures = collect_figures(model, config) if config.figures else stored
    given = {key: value for key, value in asdict(config).items() if key in TEXTS and value is not None}
    texts = {"license": "mit", "source": "", **stored.get("card", {}), **given}
    for key in TEXTS:
        if key not in texts:
            raise ValueError(f"{key}: not given, and {path} has none; give --{key}")
    figures = {"card": texts, **{k: v for k, v in figures.items() if k != "card"}}
    card = model_card(model, figures)
    path.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    (config.weights / CARD).write_text(card, encoding="utf-8")
    return config.weights / CARD


def collect_figures(model: KECAE, config: CardConfig) -> dict[str, Any]:
    """The content of figures.json but for ``card``: the weights' own figures, and those of a cross-fit as ``cross_fit``.

    Raises:
        ValueError: they are of other weights, or ``cross_fit`` is no cross-fit.
    """
    assert config.figures is not None
    line, sha256 = last_line(config.figures), model.metadata["weights"]["sha256"]
    crossed = last_line(config.cross_fit) if config.cross_fit else line
    if config.cross_fit and "folds" not in crossed:
        raise ValueError(f"cross_fit: {config.cross_fit} is no cross-fit; evaluate two weights at once")
    candidates: list[dict[str, Any]] = list(line["folds"].values()) if "folds" in line else [line]
    for figures in candidates:
        if figures["sha256"] == sha256:
            break
    else:
        others = ", ".join(str(f["sha256"])[:12] for f in candidates)
        raise ValueError(
            f"figures: {config.figures} ends with weights {others}, {config.weights} are {sha256[:12]}; evaluate these "
            "weights first"
        )
    shared: dict[str, Any] = {key: line[key] for key in ("split", "seed", "environment") if key in line}
    pooled = {key: value for key, value in crossed.items() if key != "folds"}
    return {**shared, **figures, **({"cross_fit": pooled} if "folds" in crossed else {})}


def last_line(path: Path) -> dict[str, Any]:
    """The last line of a file of figures.

    Raises:
        ValueError: the file is empty, or an older evaluate wrote it.
    """
    lines = path.read_text().splitlines()
    if not lines:
        raise ValueError(f"figures: {path} is empty; make it with `kecae-aug evaluate --out`")
    try:
        line: dict[str, Any] = json.loads(lines[-1])
    except ValueError as error:
        raise ValueError(f"figures: the last line of {path} is torn ({error}); evaluate again") from None
    if "criteria" not in line or "selected" not in line:
        raise ValueError(
            f"figures: the last line of {path} is of an older `kecae-aug evaluate`; evaluate again"
        )
    return line


def model_card(model: KECAE, figures: Mapping[str, Any]) -> str:
    """The card's Markdown, with the Hub's metadata block.

    Args:
        model: the weights.
        figures: content of figures.json.
    """
    texts = figures["card"]
    name = texts["name"]
    warned = "".join(f"\n**{w}**\n" for w in [*figures.get("warnings", []), *_at_chance(figures)])
    met = sum(criterion["verdict"].startswith("met") for criterion in figures["criteria"])
    networks = ", ".join(oracle["network"] for oracle in figures["oracles"].values())
    return f"""{front_matter(texts["license"])}

# {name}

{texts["about"]}

{usage(name)}

## Intended use

Data augmentation for classifiers of images like the training data. Not a medical device.

{list_facts(model, texts["source"])}

## Measured: {met} of {len(figures["criteria"])} acceptance criteria met

On {figures["images"]} images of {figures["patients"]} patients (split `{figures["split"]}`) that neither weights nor
oracles ({networks}) have seen. X^ is a reconstruction; X' an exchange, by detail and strength, with the donor's label.
95 % intervals over patients; one training run. Bold: not met. All criteria and figures: [{FIGURES}]({FIGURES}).
{warned}{_kappas(figures)}
{tables.markdown(*criterion_rows(figures))}

## Limits

- No reader has assessed these images. An oracle is a classifier and can be fooled.
- Decoded images are blurred; `detail="host"` keeps the host's sharpness.
- Other crops, views and devices are untested. Check a sheet of yours first:
  `kecae-aug exchange HOST DONOR --weights {name} --out sheet.png`.

## Citation

Method: Wang et al., [arXiv:2302.13336](https://arxiv.org/abs/2302.13336). Weights: kecae-aug, `{name}`, with its SHA-256.
"""


def criterion_rows(figures: Mapping[str, Any]) -> tuple[tables.Row, list[tables.Row]]:
    """The criteria of a card (at most ten), beside those of the cross-fit where there is one; bold is not met."""
    columns = [list_criteria(figures)]
    if "cross_fit" in figures:
        columns.append(list_criteria(figures["cross_fit"]))
    by_name = [{(c.name, c.kind.split(" ")[0]): c for c in found} for found in columns]
    rows = []
    for key, criterion in by_name[0].items():
        if criterion.on_card:
            cells = [_measured(found[key]) if key in found else "-" for found in by_name]
            rows.append((criterion.title, criterion.accepted, *cells))
    head = ("", "accepted", "measured", "cross-fit of the recipe")
    return head[: 2 + len(columns)], rows


def _measured(criterion: Any) -> str:
    text = tables.figure_cell(criterion.figure, criterion.accepted)
    return text if criterion.met else f"**{text}**" if criterion.valid else "no verdict"


def _at_chance(figures: Mapping[str, Any]) -> list[str]:
    names = ", ".join(figures.get("oracles_at_chance") or [])
    return [f"No better than chance on real knees: {names}. Their figures mean nothing."] if names else []


def _kappas(figures: Mapping[str, Any]) -> str:
    """Of more than two grades: the oracles' kappa, which has no criterion."""
    selected = figures["selected"]
    exchanged = [(f"X', {k}", at(figures, "exchanged", k, "headline", "kappa")) for k in selected.values()]
    if not all(figure for _, figure in exchanged):
        return ""
    real = np.mean([figures["real"][name]["kappa"]["mean"] for name in figures["oracles"]])
    cells = "; ".join(f"{tables.cell(figure)} ({kind})" for kind, figure in exchanged)
    return f"\nQuadratic kappa of the oracles: {real:.2f} on real images; {cells}.\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``kecae-aug card``."""
    with reporting("kecae-aug card"):
        _command(argv)


def _command(argv: Sequence[str] | None) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="kecae-aug card", description=__doc__)
    parser.add_class_arguments(CardConfig)
    print(write_card(CardConfig(**vars(parser.instantiate(parser.parse_args(argv))))))


if __name__ == "__main__":
    main()
