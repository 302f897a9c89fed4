"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, whole or not at all, in a folder that is made where it is missing; text as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def list_visible(path: Path) -> list[str]:
    """Sorted names in a folder, without hidden ones; of a file its own, of nothing none. Empty where one may write."""
    if not path.is_dir():
        return [path.name] if path.exists() else []
    return sorted(p.name for p in path.iterdir() if not p.name.startswith("."))


def remove_abandoned(folder: Path) -> None:
    """Delete temporary files below ``folder`` that processes of this machine left when they were killed; no others."""
    for path in folder.rglob(".*.tmp"):
        found = re.fullmatch(r"\..+\.([\w-]+)\.(\d+)\.[0-9a-f]{8}\.tmp", path.name)
        if found and found[1] == _host() and not _runs(int(found[2])):
            path.unlink(missing_ok=True)


def _host() -> str:
    return re.sub(r"[^\w-]", "-", platform.node()) or "localhost"


def _runs(pid: int) -> bool:
    """Whether a process of this machine is there; where that cannot be asked, it is taken to be."""
    if os.name != "posix":
        return True  # elsewhere os.kill ends it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """A safetensors file, whole or not at all, readable by whom the umask lets read."""
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # save_file would leave 0600
        save_file(dict(tensors), temporary, metadata)
        temporary.chmod(mode)
