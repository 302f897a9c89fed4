"""What was run: one JSON line a run, and its predictions; a finished run is never run again.

``RUNS.jsonl`` has the lines and ``RUNS.npz`` the predictions of all runs. A run that ends leaves its predictions in the
folder ``RUNS.unpacked`` (several processes may); :func:`pack` moves them into the one file:

    python -m kecae_bench.tvt.store RUNS.jsonl
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kecae_aug.files import replacing
from kecae_bench.record import append_line, read_lines

Line = dict[str, Any]
PROCEDURE = 1  # runs of another one are other runs
PARTS = ("test", "validation")


def run_id(identity: dict[str, Any]) -> str:
    """Hash of all that a run's figures depend on."""
    text = json.dumps({"procedure": PROCEDURE, **identity}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Predictions:
    """What a classifier said of the knees of one part, sorted by file.

    Attributes:
        files, patients: (N,) text. labels: (N,) int64.
        scores: (N, K) float32 probabilities, which is how they were measured: half precision would tie knees that the
            classifier is sure of.
    """

    files: NDArray[np.str_]
    patients: NDArray[np.str_]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]

    @classmethod
    def of(
        cls, files: Sequence[str], patients: Sequence[str], labels: Any, scores: NDArray[Any]
    ) -> Predictions:
        """Of knees in any order."""
        order = np.argsort(np.asarray(files), kind="stable")
        names, ids = np.asarray(files)[order], np.asarray(patients)[order]
        return cls(names, ids, np.asarray(labels, np.int64)[order], scores[order].astype(np.float32))

    @property
    def knees(self) -> str:
        """Hash of which knees they are of."""
        texts = [*self.files.tolist(), *self.patients.tolist(), *map(str, self.labels.tolist())]
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Store:
    """A file of lines, and the predictions beside it.

    It is read anew for every question, so that several processes can work at different parts of one study.
    """

    path: Path

    @property
    def packed(self) -> Path:
        """Predictions of all runs but the newest."""
        return self.path.with_suffix(".npz")

    @property
    def unpacked(self) -> Path:
        """Folder of the newest, one file a run."""
        return self.path.with_suffix(".unpacked")

    def lines(self) -> list[Line]:
        """All whole lines, the last one of each run; one that an interruption has torn is passed over."""
        runs = (line for line in read_lines(self.path) if line.get("kind") == "run")
        return list({line["id"]: line for line in runs}.values())

    def finished(self) -> dict[str, Line]:
        """Lines of all runs whose predictions are there too, by id."""
        there = {path.stem for path in self.unpacked.glob("*.npz")}
        if self.packed.exists():
            with np.load(self.packed, allow_pickle=False) as held:
                there |= {
                    ident for name in held.files if name.endswith("/runs") for ident in held[name].tolist()
                }
        return {line["id"]: line for line in self.lines() if line["id"] in there}

    def add(self, line: Line, test: Predictions, validation: Predictions) -> Line:
        """Write a run: predictions first, so that a line always has them."""
        self.unpacked.mkdir(parents=True, exist_ok=True)
        place = self.unpacked / f"{line['id']}.npz"
        _write(place, _stack({line["id"]: {"test": test, "validation": validation}}))
        append_line(self.path, line)
        return line

    def predictions(self, part: str = "test") -> dict[str, Predictions]:
        """Of every run, by id."""
        return {ident: of[part] for ident, of in self._read().items() if part in of}

    def pack(self) -> int:
        """Move what is unpacked into the one file, which is replaced as a whole.

        Returns:
            How many runs were moved.

        Raises:
            FileExistsError: another process is at it.
        """
        loose = sorted(self.unpacked.glob("*.npz"))
        if not loose:
            return 0
        with _only_one(self.path.with_suffix(".lock")):
            _write(self.packed, _stack(self._read()))
            for place in loose:
                place.unlink()
        with contextlib.suppress(OSError):  # a run that has just ended is in it
            self.unpacked.rmdir()
        return len(loose)

    def seconds_a_step(self, classifier: str, settings: dict[str, Any]) -> float | None:
        """Median over earlier runs of this classifier at this size, batch and precision, on such a device."""
        same = ("image_size", "batch_size", "precision", "device")
        found = [
            line["seconds"] / line["run_steps"]
            for line in self.lines()
            if line["classifier"] == classifier
            and all(line["settings"].get(name) == settings.get(name) for name in same)
        ]
        return float(np.median(found)) if found else None

    def _read(self) -> dict[str, dict[str, Predictions]]:
        found: dict[str, dict[str, Predictions]] = {}
        for place in (self.packed, *sorted(self.unpacked.glob("*.npz"))):
            if not place.exists():
                continue
            with np.load(place, allow_pickle=False) as held:
                for group in dict.fromkeys(name.rpartition("/")[0] for name in held.files):
                    files, patients, labels = (
                        held[f"{group}/{name}"] for name in ("files", "patients", "labels")
                    )
                    runs = zip(held[f"{group}/runs"].tolist(), held[f"{group}/scores"], strict=True)
                    for ident, scores in runs:
                        of = found.setdefault(ident, {})
                        of[group.split("/")[0]] = Predictions(files, patients, labels, scores)
        return found


def _stack(runs: dict[str, dict[str, Predictions]]) -> dict[str, NDArray[Any]]:
    """Arrays of the npz file: ``PART/KNEES/scores`` (R, N, K) of the runs ``PART/KNEES/runs``, and the knees once."""
    groups: dict[str, dict[str, Predictions]] = {}
    for ident, of in runs.items():
        for part, said in of.items():
            groups.setdefault(f"{part}/{said.knees}", {})[ident] = said
    arrays: dict[str, NDArray[Any]] = {}
    for group, by_run in groups.items():
        first = next(iter(by_run.values()))
        knees = {"files": first.files, "patients": first.patients, "labels": first.labels}
        scores = {
            "runs": np.array(list(by_run)),
            "scores": np.stack([said.scores for said in by_run.values()]),
        }
        arrays |= {f"{group}/{name}": array for name, array in (knees | scores).items()}
    return arrays


def _write(place: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """An npz file, whole or not at all."""
    with replacing(place) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_LZMA) as held:
        for name, array in arrays.items():
            with held.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    try:
        lock.touch(exist_ok=False)
    except FileExistsError:
        raise FileExistsError(f"{lock}: another process is packing; if none is, remove the file") from None
    try:
        yield
    finally:
        lock.unlink()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Pack the predictions of runs into one file.")
    parser.add_argument("runs", type=Path, help="file of JSON lines")
    args = parser.parse_args(argv)
    if not args.runs.is_file():
        parser.error(f"{args.runs}: not there")
    store = Store(args.runs)
    print(f"{store.pack()} runs packed into {store.packed}")


if __name__ == "__main__":
    main()
