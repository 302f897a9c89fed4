"""A model card from what the weights know of themselves; `kecae-aug card` adds what was measured."""

from __future__ import annotations

from typing import Any

from kecae_aug.engine.model import KECAE
from kecae_aug.weights.io import weights_sha256

CARD = "README.md"
FIGURES = "figures.json"  # all figures of a card, one JSON object beside it
LIBRARY = "kecae-aug"
TAGS = ("data-augmentation", "medical-imaging", "radiography", "autoencoder")


def front_matter(license: str | None) -> str:
    """The Hub's metadata block."""
    lines = [f"license: {license}"] if license else []
    return "\n".join(["---", *lines, f"library_name: {LIBRARY}", f"tags: [{', '.join(TAGS)}]", "---"])


def usage(name: str) -> str:
    """The code block that loads the weights by this name."""
    return f"""```python
from kecae_aug import KeyExchangeAugment

augment = KeyExchangeAugment.from_pretrained("{name}")
images, labels = augment(images, labels)
```"""


def list_facts(model: KECAE, source: str = "") -> str:
    """A Markdown list of what the model and its metadata say; what they do not say is left out.

    Args:
        model: the weights.
        source: of the training images, with whatever has to be cited.
    """
    shape, facts = model.config, model.metadata
    stored, training, data = (facts.get(k) or {} for k in ("weights", "training", "data"))
    count = sum(p.numel() for p in model.parameters())
    size = shape.latent_shape[-1]
    latent = f"{shape.latent} latents of {shape.latent_channels} channels"
    latent += f" of {size} x {size}" if size > 1 else ""
    latent += f", a key of {shape.key_size} numbers" if shape.key_size else ""
    rows = [
        (
            "Network",
            f"{latent}, {count:,} parameters"
            + (f", stored as {stored['dtype']}" if "dtype" in stored else ""),
        ),
        (
            "Images",
            f"grey, {shape.image_size} x {shape.image_size} pixels; the transform resizes to it and back",
        ),
        ("Classes", ", ".join(shape.classes)),
    ]
    if preprocessing := {
        k: v for k, v in (facts.get("preprocessing") or {}).items() if v not in (None, False)
    }:
        rows.append(("Preprocessing", join_facts(preprocessing)))
    if {"images", "split", "per_class", "fingerprint"} <= set(data):
        rows.append(
            (
                "Trained on",
                f"{data['images']:,} images of split `{data['split']}` ({join_facts(data['per_class'])})"
                + (f", part {data['fold']} of {data['folds']} of its patients" if "fold" in data else "")
                + "; "
                f"fingerprint `{data['fingerprint'][:16]}`",
            )
        )
    if {"steps", "pairs"} <= set(training):
        rows.append(
            (
                "Training",
                f"{training['steps']:,} steps, {training['pairs']:,} pairs",
            )
        )
    rows.append(("SHA-256", f"`{weights_sha256(model)}`"))
    if source:
        rows.append(("Source of the training images", source))
    return "\n".join(f"- {name}: {text}" for name, text in rows)


def generated_card(model: KECAE, name: str, license: str | None = None) -> str:
    """The card of weights that nobody has evaluated yet.

    Args:
        model: the weights.
        name: by which they will be loaded, such as a Hub id.
        license: in the Hub's notation; without it the card has none, which forbids use.
    """
    return f"""{front_matter(license)}

# {name}

A Key-Exchange Convolutional Auto-Encoder ([Wang et al. 2023](https://arxiv.org/abs/2302.13336)): it takes what makes the
grade out of one radiograph and puts it into another, as data augmentation for classifiers.

{usage(name)}

{list_facts(model)}

## Measured

Nothing: this card was generated from the weights alone. Whether an exchanged image carries its new grade for anybody but
the network that it was trained against is measured by `kecae-aug evaluate`; `kecae-aug card` writes it into this file.

## Limits

Not a medical device. Look at a contact sheet of your own images before you train with it:
`kecae-aug exchange HOST DONOR --weights {name} --out sheet.png`.
"""


def join_facts(values: dict[str, Any]) -> str:
    """``a 1, b 2`` of a dict."""
    return ", ".join(f"{key} {value}" for key, value in values.items())
