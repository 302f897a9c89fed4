"""Which patients weights and oracles were trained on: nobody of the validation or test set may be among them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kecae_aug.data.folder import PATTERN
from kecae_aug.engine.model import KECAE
from kecae_training.discriminator import Discriminator
from kecae_training.evaluate.entrants import training_patients


@dataclass(frozen=True)
class Seen:
    """Who has seen whom.

    Attributes:
        name: for errors, such as ``weights knee-kl02`` or ``oracle runs/oracle-vgg``.
        patients: ids of its training patients; None where they are not known.
    """

    name: str
    patients: frozenset[str] | None


class UnknownPatientsError(ValueError):
    """It is not known whom weights were trained on, so that a leak could not be seen."""


def by_weights(model: KECAE, name: str, folders: Sequence[Path], *, trust: bool = False) -> Seen:
    """Training patients of weights.

    They are read from the files that the training run lists in ``data.json`` (for NAME = RUN/weights), or else found
    again in one of ``folders`` by the split, the fold and the number of images that the weights' config.json names.

    Args:
        model: loaded weights.
        name: as the user gave it.
        folders: where the training images may be; the benchmark's data first.
        trust: take weights whose patients are not known for clean; the runs' lines then say so.

    Raises:
        UnknownPatientsError: not known, and not trusted.
    """
    patients: set[str] | None = None
    if not (model.metadata.get("training") or {}).get("init"):  # or those of the weights before count too
        found = (training_patients(model, folder) for folder in folders)
        patients = _listed(model, Path(name)) or next((p for p in found if p is not None), None)
    if patients is None and not trust:
        facts = model.metadata.get("data") or {}
        raise UnknownPatientsError(
            f"weights {name}: it is not known which patients they were trained on (their config.json says: split "
            f"{facts.get('split')!r}, {facts.get('images')} images; searched in {', '.join(map(str, folders))}), so that "
            "a validation or test patient among them could not be seen. Give the folder they were trained on "
            "(--weights-data), or --trust-weights where you know that they are clean (each line then says so)"
        )
    return Seen(f"weights {name}", None if patients is None else frozenset(patients))


def by_oracle(oracle: Discriminator, name: str) -> Seen:
    """Training patients of an oracle or discriminator, which its file lists."""
    return Seen(f"oracle {name}", frozenset(oracle.metadata["patients"]))


def _listed(model: KECAE, folder: Path) -> set[str] | None:
    """From RUN/data.json beside RUN/weights, if it is of these weights; of an older run by the names of its files."""
    path = folder.parent / "data.json"
    facts = model.metadata.get("data") or {}
    if not path.is_file():
        return None
    listed = json.loads(path.read_text())
    files = listed.get("files") or {}
    if (
        not files
        or listed.get("fingerprint") != facts.get("fingerprint")
        or len(files) != facts.get("images")
    ):
        return None
    if listed.get("patients"):
        return set(listed["patients"])
    matches = [re.fullmatch(PATTERN, Path(name).stem) for name in files]
    return None if None in matches else {m["patient"] for m in matches if m is not None}
