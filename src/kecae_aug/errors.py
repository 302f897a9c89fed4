"""What a command says when it fails: one line for the user's mistakes, the whole traceback for all others."""

from __future__ import annotations

import contextlib
import dis
import os
from collections.abc import Iterator

OURS = ("kecae_aug", "kecae_training", "kecae_bench")
DEBUG = "KECAE_AUG_DEBUG"  # set to 1 for the traceback of every error


@contextlib.contextmanager
def reporting(command: str, interrupted: str = "interrupted") -> Iterator[None]:
    """End a command with one line and status 1 where the error is the user's (:func:`users_fault`), or at Ctrl-C.

    Args:
        command: begins the line, such as ``"kecae-aug train"``.
        interrupted: what the line says at Ctrl-C.

    Raises:
        SystemExit: with the line. Other errors pass, as all do where ``KECAE_AUG_DEBUG=1`` is set.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(f"{command}: {interrupted}") from None
    except (ValueError, OSError, ImportError) as error:
        if not users_fault(error) or os.environ.get(DEBUG, "0") not in ("", "0"):
            raise
        raise SystemExit(f"{command}: {error}") from None


def users_fault(error: BaseException) -> bool:
    """Whether an error says in words what the user can do: a ``raise`` of this package, or one of the system on a file.

    A ValueError that comes out of torch, or of a call in our own code, was not foreseen; its traceback is what helps.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return True  # no such file, no permission, no space, a port that is taken
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    package = last.tb_frame.f_globals.get("__package__") or ""  # also of a module that runs as __main__
    raised = last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return raised and package.partition(".")[0] in OURS
