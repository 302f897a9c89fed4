"""Weights with a model card, in a folder or on the Hugging Face Hub (docs/using.md); loading is :func:`load_weights`."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kecae_aug.engine.model import KECAE
from kecae_aug.weights.card import CARD, FIGURES, LIBRARY, generated_card
from kecae_aug.weights.io import load_weights, save_weights
from kecae_aug.weights.sources import HUB_ID


class PushError(RuntimeError):
    """Weights that could not be published; the message says why, and the way out."""


def save_with_card(
    model: KECAE,
    folder: str | os.PathLike[str],
    *,
    card: str | None = None,
    figures: Mapping[str, Any] | None = None,
    license: str | None = None,
    name: str | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> Path:
    """Write weights, config, model card and figures into a folder.

    Args:
        model: the weights; its ``metadata`` is written too.
        folder: made if need be.
        card: text of the model card; by default generated from the metadata, saying that nothing was
            measured. `kecae-aug card` makes one with measurements.
        figures: written as figures.json beside the card: what `kecae-aug card` wrote there, JSON-able.
        license: of a generated card, in the Hub's notation.
        name: in a generated card, by which the weights will be loaded; by default the folder.
        dtype: see :func:`kecae_aug.save_weights`.
        overwrite: whether files that are there may be replaced.
    """
    folder = Path(folder)
    if (folder / CARD).exists() and not overwrite:
        raise FileExistsError(
            f"folder={str(folder)!r} already holds a {CARD}: take another folder, or pass overwrite=True"
        )
    facts = {k: v for k, v in model.metadata.items() if k != "weights"}
    save_weights(model, folder, metadata=facts, dtype=dtype, overwrite=overwrite)
    # of what was stored: with half precision its values and its hash are others than the model's
    text = card if card is not None else generated_card(load_weights(folder), name or str(folder), license)
    (folder / CARD).write_text(text, encoding="utf-8")
    (folder / FIGURES).unlink(missing_ok=True)  # of the weights that were replaced
    if figures is not None:
        (folder / FIGURES).write_text(json.dumps(figures) + "\n", encoding="utf-8")
    return folder


def push_weights(
    model: KECAE,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Weights by kecae-aug",
    branch: str | None = None,
    card: str | None = None,
    figures: Mapping[str, Any] | None = None,
    license: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Publish weights, config, model card and figures as one commit.

    Args:
        model: the weights.
        repo_id: ``owner/name``; the repository is made if need be.
        private: of a repository that is made.
        token: with write access; by default the one of ``hf auth login``.
        commit_message: of the commit.
        branch: an existing branch; ``main`` by default.
        card: see :func:`save_with_card`.
        figures: likewise.
        license: of a generated card.
        dtype: see :func:`kecae_aug.save_weights`.

    Returns:
        URL of the commit. Its hash is what ``load_weights(..., revision=)`` pins.
    """
    if not re.fullmatch(HUB_ID, repo_id):
        raise ValueError(f"repo_id={repo_id!r}: accepted is 'owner/name'")
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name=LIBRARY)
    with tempfile.TemporaryDirectory() as folder:
        save_with_card(
            model,
            Path(folder) / "w",
            card=card,
            figures=figures,
            license=license,
            name=repo_id,
            dtype=dtype,
        )
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=Path(folder) / "w",
                commit_message=commit_message,
                revision=branch,
            )
        except Exception as error:  # the client's own, and those of whichever HTTP library it uses
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            raise PushError(
                f"repo_id={repo_id!r}: the Hub did not take it ({type(error).__name__}: {reason}). Needed are a token "
                "with write access to this owner (token=, or `hf auth login`), an existing branch, and the network"
            ) from error
    return str(getattr(commit, "commit_url", commit))
