"""Warnings that are given once, however many batches there are."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence

_OURS = ("kecae_aug", "torch")
IDLE = 20  # batches without an exchange, for a warning


class WarnOnce:
    """Each kind of warning once in the life of its owner; copies and pickles remember."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def __call__(self, kind: str, sentence: str) -> None:
        """Warn at the caller's own line, unless this kind was given before."""
        if kind not in self._given:
            self._given.add(kind)
            warnings.warn(sentence, stacklevel=_find_caller())

    def each(self, sentences: Mapping[str, str]) -> None:
        """Warn of several kinds."""
        for kind, sentence in sentences.items():
            self(kind, sentence)

    def has(self, kind: str) -> bool:
        """Whether a kind was given."""
        return kind in self._given

    def mark(self, kind: str) -> None:
        """Take a kind for given."""
        self._given.add(kind)


def _find_caller() -> int:
    """``stacklevel`` of the first frame outside this package and torch, for the function that calls."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    return level


class IdleWatch:
    """Warns of a loop none of whose first batches could exchange, and of a batch of one patient."""

    def __init__(self, exchangeable: Sequence[str], needs_two: bool, warn: WarnOnce) -> None:
        """
        Args:
            exchangeable: class names of the weights.
            needs_two: whether donors come from the batch, so that it needs two classes; one does with a bank.
            warn: gives the warnings.
        """
        self.exchangeable, self.needs_two, self.warn = exchangeable, needs_two, warn
        self.has_acted, self.idle = False, 0  # whether a batch could exchange; batches before the first

    def see(self, names: Sequence[str], ids: Sequence[str | None] | None) -> None:
        """One more batch: the class name of each row, and its patient."""
        known = [name in self.exchangeable for name in names]
        found = {name for name, is_known in zip(names, known, strict=True) if is_known}
        able = self.has_acted or len(found) > self.needs_two
        if able and ids is not None and self.needs_two:
            whose = [who for who, is_known in zip(ids, known, strict=True) if is_known]
            if len(found) > 1 and None not in whose and len(set(whose)) == 1:
                self.warn(
                    "one patient",
                    f"patients: all {len(whose)} rows that could exchange are of patient {whose[0]!r}, so none does. If "
                    "these are not the patients (the third entry of a tuple is taken for them), give patients= or "
                    "same_patient=True",
                )
        self.has_acted = able
        self.idle += not able
        if self.idle == IDLE:
            self.warn(
                "idle",
                f"the first {IDLE} batches had no two rows of different classes among {tuple(self.exchangeable)}, so "
                "nothing was exchanged: shuffle the loader, take larger batches, or give a bank",
            )
