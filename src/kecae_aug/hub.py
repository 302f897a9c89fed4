"""KECAE on the Hugging Face Hub: the mixin's methods, with its silent defaults replaced (docs/hub.md)."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from huggingface_hub import HfApi, PyTorchModelHubMixin

from kecae_aug._sources import HUB_ID

if TYPE_CHECKING:
    from kecae_aug.model import KECAE

LIBRARY = "kecae-aug"
TAGS = ("data-augmentation", "medical-imaging", "radiography", "autoencoder")


class PushError(RuntimeError):
    """Weights that could not be published; the message says why, and the way out."""


class HubModel(PyTorchModelHubMixin):
    """What :class:`kecae_aug.KECAE` can do with folders and the Hub.

    Of the mixin's arguments, those that could load less than the whole model, or a pickle, are not taken.
    """

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        device: str | torch.device = "cpu",
    ) -> KECAE:
        """Trained weights by bundled name, folder or Hub id; see :func:`kecae_aug.load_weights`, which this is."""
        from kecae_aug.weights import load_weights  # which needs this module

        return load_weights(
            name,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
            device=device,
        )

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        *,
        card: str | None = None,
        license: str | None = None,
        name: str | None = None,
        dtype: torch.dtype = torch.float32,
        overwrite: bool = False,
    ) -> Path:
        """Write weights, config and model card into a folder.

        Args:
            save_directory: made if need be.
            card: text of the model card; by default generated from the metadata, saying that nothing was
                measured. `kecae-aug card` makes one with measurements.
            license: of a generated card, in the Hub's notation.
            name: in a generated card, by which the weights will be loaded; by default the folder.
            dtype: see :func:`kecae_aug.save_weights`.
            overwrite: whether files that are there may be replaced.
        """
        from kecae_aug.card import CARD, generated_card
        from kecae_aug.weights import save_weights

        model = cast("KECAE", self)
        folder = Path(save_directory)
        if (folder / CARD).exists() and not overwrite:
            raise FileExistsError(
                f"save_directory={str(folder)!r} already holds a {CARD}: take another folder, or pass overwrite=True"
            )
        facts = {k: v for k, v in model.metadata.items() if k != "weights"}
        save_weights(model, folder, metadata=facts, dtype=dtype, overwrite=overwrite)
        text = card if card is not None else generated_card(model, name or str(folder), license)
        (folder / CARD).write_text(text, encoding="utf-8")
        return folder

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Weights by kecae-aug",
        branch: str | None = None,
        card: str | None = None,
        license: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> str:
        """Publish weights, config and model card as one commit.

        Args:
            repo_id: ``owner/name``; the repository is made if need be.
            private: of a repository that is made.
            token: with write access; by default the one of ``hf auth login``.
            commit_message: of the commit.
            branch: an existing branch; ``main`` by default.
            card: see :meth:`save_pretrained`.
            license: of a generated card.
            dtype: see :func:`kecae_aug.save_weights`.

        Returns:
            URL of the commit. Its hash is what ``from_pretrained(..., revision=)`` pins.
        """
        if not re.fullmatch(HUB_ID, repo_id):
            raise ValueError(f"repo_id={repo_id!r}: accepted is 'owner/name'")
        api = HfApi(token=token, library_name=LIBRARY)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "w", card=card, license=license, name=repo_id, dtype=dtype)
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
