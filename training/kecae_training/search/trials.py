"""The record of a search: optuna's storage in an SQLite file, and trials.jsonl for whoever reads it without optuna.

A process that is killed leaves a trial running and the rest as it was: :class:`Trials` takes it up again.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kecae_aug.files import write_whole

METHODS = ("grid", "cmaes", "nsga2")
LOCK = "search.lock"
Values = dict[str, float]


class Trials:
    """Asks for the next values, and keeps what became of them.

    Args:
        out: folder of the search; see :func:`alone`.
        settings: JSON-able, with the method, the terms and their range among them; a search goes on only with its own.
        trials: how many of an evolution; a grid has as many as it has points.

    Raises:
        ValueError: the folder holds a search of other settings.
        ImportError: optuna or cmaes is not installed.
    """

    def __init__(self, out: Path, settings: dict[str, Any], trials: int) -> None:
        self.out, self.settings, self.trials = out, settings, trials
        self.method: str = settings["method"]
        self.optuna = _optuna(self.method)
        self.study = self.optuna.create_study(
            storage=f"sqlite:///{out / 'study.db'}",
            study_name="search",
            directions=["maximize"] * (2 if self.method == "nsga2" else 1),
            load_if_exists=True,
        )
        self._agree()
        axis = np.geomspace(settings["low"], settings["high"], settings.get("points", 0))
        points = itertools.product(map(_rounded, axis.tolist()), repeat=len(settings["terms"]))
        self.grid = [dict(zip(settings["terms"], point, strict=True)) for point in points]
        state = self.optuna.trial.TrialState
        for trial in self.study.get_trials(states=(state.RUNNING,)):  # cut off
            self.study.tell(trial.number, state=state.FAIL)
            if self.method != "grid" and set(trial.params) == set(settings["terms"]):
                self.study.enqueue_trial(trial.params)

    def _agree(self) -> None:
        old = self.study.user_attrs.get("settings")
        if old is None:
            self.study.set_user_attr("settings", self.settings)
            return
        names = sorted(set(old) | set(self.settings))
        differ = [
            f"{k} was {old.get(k)!r}, is {self.settings.get(k)!r}"
            for k in names
            if old.get(k) != self.settings.get(k)
        ]
        if differ:
            raise ValueError(
                f"out={str(self.out)!r} holds another search ({'; '.join(differ)}): give the old values to go on with "
                "it, or another --out to begin anew"
            )

    def left(self) -> int:
        """How many are to do."""
        return len(self._points()) if self.method == "grid" else max(0, self.trials - len(self.rows()))

    def ask(self) -> tuple[Any, Values]:
        """The next trial, and the values to train with."""
        # made anew for each number of trials: a sampler of the same seed would repeat its first draws on going on
        self.study.sampler = self._sampler(len(self.study.trials))
        waiting = self.study.get_trials(states=(self.optuna.trial.TrialState.WAITING,))
        if self.method == "grid" and not waiting:
            self.study.enqueue_trial(self._points()[0])
        trial = self.study.ask()
        low, high = _rounded(self.settings["low"]), _rounded(self.settings["high"])
        return trial, {
            term: _rounded(trial.suggest_float(term, low, high, log=True)) for term in self.settings["terms"]
        }

    def tell(self, trial: Any, scores: Sequence[float] | None, row: dict[str, Any]) -> None:
        """Keep what became of a trial: what is maximised (None where it diverged) and its line."""
        state = self.optuna.trial.TrialState
        trial.set_user_attr("row", {**row, "scores": scores})
        self.study.tell(trial, scores, state.COMPLETE if scores else state.FAIL)
        self.write()

    def rows(self) -> list[dict[str, Any]]:
        """A line for every finished trial; one that was cut off has none."""
        finished = [t for t in self.study.trials if t.state.is_finished() and "row" in t.user_attrs]
        return [{"trial": t.number, **t.user_attrs["row"]} for t in finished]

    def write(self) -> None:
        """trials.jsonl."""
        write_whole(self.out / "trials.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows()))

    def _points(self) -> list[Values]:
        done = [row["values"] for row in self.rows()]
        return [point for point in self.grid if point not in done]

    def _sampler(self, number: int) -> Any:
        samplers, seed = self.optuna.samplers, self.settings["seed"] * 100_003 + number
        if self.method == "cmaes":
            return samplers.CmaEsSampler(seed=seed)
        if self.method == "nsga2":
            return samplers.NSGAIISampler(population_size=self.settings["population"], seed=seed)
        return samplers.RandomSampler(seed=seed)  # draws nothing: the points of a grid are given


def _rounded(value: float) -> float:
    """Four digits, which folders are named by."""
    return float(f"{value:.4g}")


def _optuna(method: str) -> Any:
    """The package, quiet; it is in an extra of its own."""
    try:
        import optuna

        if method == "cmaes":
            importlib.import_module("cmaes")  # optuna asks for it at the first draw only
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.name} is not installed; pip install 'kecae-aug[train,search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Make the folder of a search, or refuse it; hold it for this process, where the system has file locks."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / LOCK).exists())):
        raise ValueError(f"out={str(out)!r}: not empty and not a search; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("a") as file:
        with contextlib.suppress(ModuleNotFoundError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(
                    f"out={str(out)!r}: another process is searching there; wait for its end"
                ) from None
        yield
