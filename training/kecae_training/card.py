"""A model card from what `evaluate` measured, for people who decide whether to trust the weights.

    kecae-aug card --weights runs/knee/weights --figures figures.jsonl --name knee-kl02 \
        --about "KL-0 and KL-2 knees of ..." --license cc-by-4.0

Every number comes from the figures' last line or from the weights' own config.json; the card refuses figures
of other weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kecae_aug.card import CARD, facts_table, front_matter, usage
from kecae_aug.weights import load_weights
from kecae_training.tables import table


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
    """

    weights: Path
    figures: Path
    name: str
    about: str
    license: str = "mit"
    source: str = ""


def model_card(config: CardConfig) -> str:
    """The card's Markdown, with the Hub's metadata block.

    Raises:
        ValueError: the figures are those of other weights, or there are none.
    """
    model = load_weights(config.weights)
    lines = config.figures.read_text().splitlines()
    if not lines:
        raise ValueError(f"figures: {config.figures} is empty; make it with `kecae-aug evaluate --out`")
    figures: dict[str, Any] = json.loads(lines[-1])
    facts = model.metadata
    sha256 = facts["weights"]["sha256"]
    if figures["sha256"] != sha256:
        raise ValueError(
            f"figures: {config.figures} ends with weights {str(figures['sha256'])[:12]}, {config.weights} are "
            f"{sha256[:12]}; evaluate these weights first"
        )
    shape = model.config
    reconstruction, follows = figures["reconstruction"], figures["follows"]
    judges = "; ".join(
        f"{name}: {j['network']}, {j['patients']} patients, {j['shared_with_guide']} of them shared with the guide"
        for name, j in figures["judges"].items()
    )
    changes = "\n".join(
        f"| {kind} | {value['change']['mean']:.4f} | {value['psnr_to_host']['mean']:.1f} |"
        for kind, value in figures["exchanged"].items()
    )
    return f"""{front_matter(config.license)}

# {config.name}

{config.about}

{usage(config.name)}

{facts_table(model, config.source)}

## Measured

On {figures["images"]} images of {figures["patients"]} patients of split `{figures["split"]}`, which neither these weights nor a judge has seen.
Brackets are 95 % intervals (bootstrap over patients). One training run: the spread over training seeds is not in them.

Reconstruction X^ against X: **{_cell(reconstruction["psnr"], 2)} dB** PSNR, **{_cell(reconstruction["ssim"], 3)}** SSIM.

How often a judge gives the wanted grade. For X' that is the donor's grade, so the column "says {shape.classes[-1]}" is the
direction {shape.classes[0]} -> {shape.classes[-1]}, and "says {shape.classes[0]}" the direction {shape.classes[-1]} -> {shape.classes[0]}. Read it beside the same judge on real images and on X^.
"decoder" and "host" are the transform's `detail`, the number is its `strength`.

{table(figures, shape.classes)}

Judges ({judges}) differ from the guide in network, seed and training patients. The guide's own figures only show
how far it certifies itself.

| X' | mean absolute change against X^ (range -1 to 1) | PSNR against the host, dB |
|---|---|---|
{changes}

X' (decoder) changes by {follows["host"]} when its host is another knee of the same grade, and by {follows["donor"]} when its donor is.

## Limits

- Not a medical device; nothing here was read by a radiologist. A judge is a classifier: it can be fooled by what no
  reader would call an osteophyte.
- Decoded knees are visibly blurred: fine bone texture and thin outlines are lost, whatever the PSNR says (radiographs have
  little contrast, so a blurred one is near in grey levels). Compare with reconstructions (X^), not only with the
  unaugmented set; `detail="host"` keeps the host's sharpness.
- Images unlike those above (other crops, views or devices) have not been tried. Look at a contact sheet of yours
  first: `kecae-aug exchange HOST DONOR --weights {config.name} --out sheet.png`.
"""


def _cell(value: dict[str, float], digits: int) -> str:
    return f"{value['mean']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``kecae-aug card``."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="kecae-aug card", description=__doc__)
    parser.add_class_arguments(CardConfig)
    config = CardConfig(**vars(parser.instantiate(parser.parse_args(argv))))
    try:
        text = model_card(config)
    except (ValueError, OSError) as error:
        raise SystemExit(f"kecae-aug card: {error}") from None
    path = config.weights / CARD
    path.write_text(text, encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
