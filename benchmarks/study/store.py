"""What was run: one JSON line a run, predictions beside it; a finished run is never run again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kecae_aug._files import replacing
from record import Log

Line = dict[str, Any]
PROCEDURE = 1  # of the study; runs of another one are other runs


def run_id(identity: dict[str, Any]) -> str:
    """Hash of all that a run's figures depend on."""
    text = json.dumps({"procedure": PROCEDURE, **identity}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Store:
    """A file of lines and the folder ``predictions`` beside it.

    It is read anew for every question, so that several processes can work at different parts of one study.
    """

    path: Path

    def lines(self) -> list[Line]:
        """All whole lines; one that an interruption has torn is passed over."""
        return Log(self.path).lines

    def find(self, ident: str, study: str) -> Line | None:
        """The line of a finished run, if its predictions are there too.

        A run that another study of the same file has made (T at 100 % of the patients is a run of the main study and of
        the scarcity curve) gets a line in this study, without being run again.
        """
        there = [line for line in self._finished() if line["id"] == ident]
        own = next((line for line in there if line["study"] == study), None)
        if own is None and there:
            own = {**there[0], "study": study, "of_study": there[0]["study"]}
            Log(self.path).append(own)
        return own

    def finished(self) -> set[str]:
        """Ids of all finished runs, of whatever study."""
        return {line["id"] for line in self._finished()}

    def add(self, line: Line, predictions: dict[str, NDArray[Any]]) -> Line:
        """Write a run: predictions first, so that a line always has them.

        Args:
            line: with ``id``; ``predictions`` is filled in.
            predictions: arrays of the npz file.
        """
        place = self._predictions(line["id"])
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as part, part.open("wb") as file:
            np.savez_compressed(file, **predictions)  # type: ignore[arg-type]  # its stub takes all for allow_pickle
        line = {**line, "predictions": place.relative_to(self.path.parent).as_posix()}
        Log(self.path).append(line)
        return line

    def seconds_a_step(self, classifier: str, settings: dict[str, Any]) -> float | None:
        """Median over earlier runs of this classifier at this size, batch and precision, on such a device."""
        same = ("image_size", "batch_size", "precision", "device")
        found = [
            line["seconds"] / line["run_steps"]
            for line in self.lines()
            if line.get("kind") == "run"
            and line["classifier"] == classifier
            and all(line["settings"].get(name) == settings.get(name) for name in same)
        ]
        return float(np.median(found)) if found else None

    def _finished(self) -> list[Line]:
        runs = [line for line in self.lines() if line.get("kind") == "run" and "predictions" in line]
        return [line for line in runs if (self.path.parent / line["predictions"]).is_file()]

    def _predictions(self, ident: str) -> Path:
        return self.path.parent / "predictions" / f"{ident}.npz"
