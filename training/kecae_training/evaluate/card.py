"""A model card from what `evaluate` measured, for people who decide whether to trust the weights.

    kecae-aug card --weights runs/knee/weights --figures figures.jsonl --name knee-kl02 \
        --about "KL-0 and KL-2 knees of ..." --license cc-by-4.0

Every number comes from the figures' last line or from the weights' own config.json; the card refuses figures
of other weights. Figures of a cross-fit are accepted where one of its halves is these weights; those of a
cross-fit of the same recipe can be put beside the weights' own (--cross_fit).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kecae_aug.errors import reporting
from kecae_aug.weights.card import CARD, facts_table, front_matter, usage
from kecae_aug.weights.io import load_weights
from kecae_training.evaluate import tables


@dataclass
class CardConfig:
    """What the card is made from.

    Args:
        weights: folder of the weights; the card is written there as README.md.
        figures: file of `kecae-aug evaluate --out`; its last line is used.
        name: by which the weights are loaded.
        about: one sentence: what they exchange, and on which images they were trained.
        license: of the weights, in the Hub's notation.
        source: of the training images, with whatever has to be cited.
        cross_fit: file of a cross-fit of the same recipe (`kecae-aug evaluate` with two weights), whose oracles share no
            patient with the weights they oracle; its last line is put beside the figures.
    """

    weights: Path
    figures: Path
    name: str
    about: str
    license: str = "mit"
    source: str = ""
    cross_fit: Path | None = None


def model_card(config: CardConfig) -> str:
    """The card's Markdown, with the Hub's metadata block.

    Raises:
        ValueError: the figures are those of other weights, of an older evaluate, or there are none.
    """
    model = load_weights(config.weights)
    figures = own_figures(last_line(config.figures), model.metadata["weights"]["sha256"], config)
    line, classes = last_line(config.figures), model.config.classes
    reconstruction = figures["reconstruction"]
    oracles = "; ".join(f"{name}: {_provenance(j)}" for name, j in figures["oracles"].items())
    warned = "".join(f"- **{w}**\n" for w in figures.get("warnings", []))
    if at_chance := figures.get("oracles_at_chance"):
        warned += f"- **No better than chance on real knees: {', '.join(at_chance)}.** Their figures mean nothing.\n"
    met = sum(criterion["verdict"].startswith("met") for criterion in figures["criteria"])
    missing = "".join(f"- {m}\n" for m in figures["not_measured"])
    return f"""{front_matter(config.license)}

# {config.name}

{config.about}

{usage(config.name)}

{facts_table(model, config.source)}

## Measured: {met} of {len(figures["criteria"])} criteria met

On {figures["images"]} images of {figures["patients"]} patients of split `{line["split"]}`, which neither these weights nor an oracle has seen.
Brackets are 95 % intervals (bootstrap over patients). One training run: the spread over training seeds is not in them.
X^ is a knee reconstructed, X' one exchanged: its label is the donor's. "decoder" and "host" are the transform's `detail`, the
number is its `strength`; "host" stands at the strength that is best on these same knees.

Oracles: {oracles}.
{warned}
Reconstruction X^ against X: **{tables.cell(reconstruction["psnr"], 2)} dB** PSNR, **{tables.cell(reconstruction["ssim"], 3)}** SSIM.

{tables.markdown(*tables.criterion_rows(figures))}

Not measured:

{missing}
{_cross_fit(config, line)}### Oracles

How often an oracle gives the wanted grade. For X' that is the donor's grade, so "says {classes[-1]}" of a host of grade {classes[0]} is an
exchange {classes[0]} -> {classes[-1]}. Read it beside the same oracle on real images and on X^. The discriminator's own figures only show how
far it certifies itself.

{tables.table(figures, classes)}

Means over the oracles; flips at the threshold at which an oracle is equally right on both grades of the real knees:

{tables.markdown(*tables.headline_rows(figures))}
{_confusions(figures, classes)}{_sections(figures)}
## Limits

- Not a medical device; nothing here was read by a radiologist. An oracle is a classifier: it can be fooled by what no
  reader would call an osteophyte.
- Decoded knees are visibly blurred: fine bone texture and thin outlines are lost, whatever the PSNR says (radiographs have
  little contrast, so a blurred one is near in grey levels). Compare with reconstructions (X^), not only with the
  unaugmented set; `detail="host"` keeps the host's sharpness.
- Images unlike those above (other crops, views or devices) have not been tried. Look at a contact sheet of yours
  first: `kecae-aug exchange HOST DONOR --weights {config.name} --out sheet.png`.
"""


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
        raise ValueError(f"figures: the last line of {path} is torn ({error}); evaluate anew") from None
    if "criteria" not in line:
        raise ValueError(
            f"figures: the last line of {path} is of an older `kecae-aug evaluate`; evaluate anew"
        )
    return line


def own_figures(line: dict[str, Any], sha256: str, config: CardConfig) -> dict[str, Any]:
    """The figures of these weights: the line itself, or the half of a cross-fit that is theirs.

    Raises:
        ValueError: they are of other weights.
    """
    candidates: list[dict[str, Any]] = list(line["folds"].values()) if "folds" in line else [line]
    for figures in candidates:
        if figures["sha256"] == sha256:
            return figures
    others = ", ".join(str(f["sha256"])[:12] for f in candidates)
    raise ValueError(
        f"figures: {config.figures} ends with weights {others}, {config.weights} are {sha256[:12]}; evaluate these weights first"
    )


def _provenance(oracle: Mapping[str, Any]) -> str:
    def shared(whom: str) -> str:
        count = oracle.get(f"shared_with_{whom}")
        return f"{'?' if count is None else count} shared with the {whom}"

    return (
        f"{oracle['network']}, {oracle['patients']} patients ({shared('weights')}, {shared('discriminator')})"
    )


def _cross_fit(config: CardConfig, line: Mapping[str, Any]) -> str:
    """The criteria of a cross-fit: of the file that was given, or of the figures themselves."""
    other = last_line(config.cross_fit) if config.cross_fit else line
    if "folds" not in other:
        if config.cross_fit:
            raise ValueError(f"cross_fit: {config.cross_fit} is no cross-fit; evaluate two weights at once")
        return ""
    return f"""### Cross-fit of the recipe

The same recipe on each half of the training patients, evaluated by oracles of the other half (no patient in common), on
{other["images"]} images of {other["patients"]} patients; means over the {len(other["folds"])} halves.

{tables.markdown(*tables.criterion_rows(other))}

"""


def _confusions(figures: Mapping[str, Any], classes: Sequence[str]) -> str:
    if len(classes) == 2:
        return ""
    kinds = {"real": figures["real"], "X^": figures["reconstructed"]}
    kinds |= {f"X' ({k})": figures["exchanged"][k]["oracles"] for k in figures["closer"].values()}
    parts = ["\nWanted grade (rows) against predicted grade, means over the oracles:\n"]
    for kind, by in kinds.items():
        mean = np.mean([by[name]["confusion"] for name in figures["oracles"]], axis=0)
        rows = [(c, *(f"{v:.2f}" for v in row)) for c, row in zip(classes, mean, strict=True)]
        parts.append(tables.markdown((kind, *classes), rows) + "\n")
    return "\n".join(parts)


def _sections(figures: Mapping[str, Any]) -> str:
    """Every other measurement that was made."""
    jsw = "Medial joint-space width by the JSW measurement: the mean change over the gap between the grades; 1 is exactly right."
    if "phantoms" not in figures:
        jsw += " On real knees the JSW measurement is a proxy that no reader has checked."
    follows = figures.get("follows") or {}
    identity = (
        f"Outside the joint, among up to 500 knees. X' (decoder) changes by {tables.cell(follows.get('host'), 3)} when its host is another "
        f"knee of the same grade, and by {tables.cell(follows.get('donor'), 4)} when its donor is: "
        f"{tables.cell(follows.get('host_over_donor'), 1)} times, as variance {tables.cell(follows.get('variance_ratio'), 0)} times."
    )
    parts = [
        ("Anatomy", jsw, tables.anatomy_rows(figures)),
        ("Against the drawn truth", "1 is exactly right in every column.", tables.phantom_rows(figures)),
        ("Identity", identity, tables.identity_rows(figures)),
        (
            "Robustness",
            "Mean over the oracles, and what is lost of it (and of the accuracy at the balanced threshold) after small changes.",
            tables.robustness_rows(figures),
        ),
        (
            "Probes",
            "What classifiers read from the latents, for patients they have not seen.",
            tables.probe_rows(figures),
        ),
        (
            "Realism",
            'Distances of an oracle\'s features to real knees of other patients ("real" is the floor); 0.5 is not significant.',
            tables.realism_rows(figures),
        ),
    ]
    return "".join(
        f"\n### {title}\n\n{text}\n\n{tables.markdown(*table)}\n" for title, text, table in parts if table[1]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``kecae-aug card``."""
    with reporting("kecae-aug card"):
        _command(argv)


def _command(argv: Sequence[str] | None) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="kecae-aug card", description=__doc__)
    parser.add_class_arguments(CardConfig)
    config = CardConfig(**vars(parser.instantiate(parser.parse_args(argv))))
    text = model_card(config)
    path = config.weights / CARD
    path.write_text(text, encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
