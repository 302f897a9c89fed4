"""From a name to the two files of its weights: bundled name > local folder > Hugging Face Hub."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

Name = str | os.PathLike[str]
Source = dict[str, str]  # where weights came from, kept in their metadata


class WeightsError(ValueError):
    """Weights that cannot be found, read or trusted; the message says which, and the way out."""


def bundled_weights() -> tuple[str, ...]:
    """Names of the weights that come with the package."""
    return tuple(sorted(_bundled_folders()))


@contextlib.contextmanager
def find_weights(
    name: Name,
    revision: str | None,
    cache_dir: Name | None,
    token: str | bool | None,
    local_files_only: bool,
    force_download: bool = False,
) -> Iterator[tuple[Path, Path, Source]]:
    """Paths of ``config.json`` and ``model.safetensors``, valid within the block, and where they are from.

    Args and errors are those of :func:`kecae_aug.weights.io.load_weights`.
    """
    bundled = _bundled_folders()
    if isinstance(name, str) and name in bundled:
        _refuse_revision(name, revision, "bundled with the package")
        with (
            resources.as_file(bundled[name] / CONFIG_FILE) as config,
            resources.as_file(bundled[name] / WEIGHTS_FILE) as weights,
        ):
            yield config, weights, {"source": name}
        return
    path = Path(name).expanduser()
    if path.is_dir():
        _refuse_revision(name, revision, "a local folder")
        yield path / CONFIG_FILE, path / WEIGHTS_FILE, {"source": str(name)}
        return
    if not isinstance(name, str) or not HUB_ID.fullmatch(name) or path.exists():
        raise WeightsError(_not_found(name, path))
    folder = _download(name, revision, cache_dir, token, local_files_only, force_download)
    yield folder / CONFIG_FILE, folder / WEIGHTS_FILE, {"source": name, "revision": folder.name}


def _bundled_folders() -> dict[str, Traversable]:
    root = resources.files("kecae_aug") / "bundled"
    if not root.is_dir():
        return {}
    return {folder.name: folder for folder in root.iterdir() if (folder / WEIGHTS_FILE).is_file()}


def _refuse_revision(name: Name, revision: str | None, what: str) -> None:
    if revision is not None:
        raise WeightsError(
            f"revision={revision!r}: only Hub repositories have one, and {str(name)!r} is {what}"
        )


def _download(
    name: str,
    revision: str | None,
    cache_dir: Name | None,
    token: str | bool | None,
    local_files_only: bool,
    force_download: bool,
) -> Path:
    """The two files of one commit, by the Hub's own client and cache; nothing else is fetched."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=[CONFIG_FILE, WEIGHTS_FILE],
            library_name="kecae-aug",
        )
    except Exception as error:  # the client's own, and those of whichever HTTP library it uses
        raise WeightsError(
            f"weights={name!r}: there is no local folder of this name, and the Hugging Face Hub did not give it. "
            f"{_reason(error, revision)} {_accepted()}{_suggestion(name, Path(name))}"
        ) from error
    return Path(folder)


def _reason(error: Exception, revision: str | None) -> str:
    """What went wrong on the Hub, and the way out."""
    from huggingface_hub import errors

    text = (str(error).strip() or "no reason given").splitlines()[0]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RevisionNotFoundError):
        return f"The repository has no revision {revision!r} ({text}): give a branch, a tag or a whole commit hash."
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
        return (
            f"It has no such repository, or it is private and the token does not open it ({type(error).__name__}: "
            f"{text}): check the name, and give token= or run `hf auth login`."
        )
    unreachable = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
    if isinstance(error, unreachable) or type(error).__module__.startswith("httpx"):
        return (
            f"It could not be reached, and the cache has not got it ({type(error).__name__}: {text}): check the "
            "network, HF_ENDPOINT, HF_HUB_OFFLINE and local_files_only, or try again later; a download that was cut "
            "goes on where it stopped."
        )
    return f"The client failed ({type(error).__name__}: {text})."


def _not_found(name: Name, path: Path) -> str:
    text = os.fspath(name)
    local = isinstance(name, os.PathLike) or text.startswith((".", "~", os.sep)) or text.count(os.sep) > 1
    if path.is_file():
        why = "is a file, not a folder"
    elif local:
        why = f"looks like a local folder, and {str(path)!r} does not exist"
    else:
        why = "is neither a bundled name, nor a local folder, nor of the form owner/name"
    return f"weights={text!r} {why}. {_accepted()}{_suggestion(text, path)}"


def _accepted() -> str:
    return (
        f"Accepted: a bundled name ({', '.join(bundled_weights()) or 'none in this build'}), a local folder with "
        f"{WEIGHTS_FILE} and {CONFIG_FILE} as written by save_weights, or a Hugging Face Hub id 'owner/name'."
    )


def _suggestion(text: str, path: Path) -> str:
    """Did you mean ...: among the bundled names, and among the folders beside a mistyped one."""
    beside = []
    with contextlib.suppress(OSError):
        beside = [p.name for p in path.parent.iterdir() if (p / WEIGHTS_FILE).is_file()]
    if close := difflib.get_close_matches(text, bundled_weights(), n=1):
        return f" Did you mean {close[0]!r}?"
    if close := difflib.get_close_matches(path.name, beside, n=1):
        return f" Did you mean {str(path.parent / close[0])!r}?"
    return ""
