"""Publishing on the Hugging Face Hub."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch
from huggingface_hub import HfApi

from kecae_aug._sources import HUB_ID
from kecae_aug.model import KECAE


class PushError(RuntimeError):
    """Weights that could not be published; the message says why, and the way out."""


def push(
    model: KECAE,
    repo_id: str,
    *,
    private: bool | None,
    token: str | None,
    commit_message: str,
    branch: str | None,
    card: str | None,
    license: str | None,
    dtype: torch.dtype,
) -> str:
    """See :meth:`kecae_aug.KECAE.push_to_hub`."""
    if not re.fullmatch(HUB_ID, repo_id):
        raise ValueError(f"repo_id={repo_id!r}: accepted is 'owner/name'")
    api = HfApi(token=token, library_name="kecae-aug")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "w", card=card, license=license, name=repo_id, dtype=dtype)
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
