"""Runs of benchmarks/t_vs_tprime.py and benchmarks/sampling_size.py, as what is compared: read and grouped.

A *cell* is what differs in seed and fold only: a study, a classifier, an arm with its options, a share of the patients.
benchmarks/report_compare.py compares two of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from classifiers import CLASSIFIERS
from paired import ALL_METRICS
from record import Log
from study.options import ExchangeOptions

Line = dict[str, Any]
Run = tuple[int, int | None]  # seed, fold
CLASSICAL = " + classical"
CONTROLS = ("T + X^", "T + X' same grade", "T + shuffled X'", "T + real")
OWN_CONTROL = {"T' unlabelled": "T + shuffled unlabelled X'"}
EXCHANGED = ("T'", "paper")  # how the arms that are T' begin
ABSENT = "absent"  # what most cells have of an option, see :func:`usual`
INSIDE = "trained inside T"  # weights that know no label beside those of a share of the patients
# rows of Table II may differ in it, their arms do not
TRAINED = ("precision", "optimiser", "lr", "weight_decay")
OWN = dict.fromkeys(("batch_size", "optimiser", "lr", "weight_decay"), "of the recipe") | {
    "added": "a third of the batch"
}


@dataclass
class Cell:
    """Runs that differ in seed and fold only.

    Attributes:
        settings: what two cells must share to be compared: size, steps, recipe, data.
        variant: options of X', N, weights: what makes two cells of one arm different things.
        runs: the line of each seed and fold.
    """

    study: str
    classifier: str
    arm: str
    fraction: float
    settings: dict[str, Any]
    variant: dict[str, Any]
    runs: dict[Run, Line] = field(default_factory=dict)
    label: str = ""  # the arm, and what tells it from others of the same name
    shared: str = ""  # the label without :data:`TRAINED`
    trained: str = ""  # which of it are not usual

    @property
    def exchanges(self) -> bool:
        """Whether it is a T'."""
        return self.arm.startswith(EXCHANGED)

    @property
    def plain(self) -> bool:
        """Whether it is T, with or without classical augmentation."""
        return self.arm in ("T", "T" + CLASSICAL)

    @property
    def classical(self) -> bool:
        """Whether there is classical augmentation."""
        return self.arm.endswith(CLASSICAL)

    @property
    def shown(self) -> int:
        """Real knees in a training, each as often as it came; 0 where that is not known."""
        return int(self.settings.get("steps", 0) * self.settings.get("batch_size", 0))

    @property
    def seeds(self) -> list[int]:
        """In order."""
        return sorted({seed for seed, _ in self.runs})

    @cached_property
    def test(self) -> dict[str, tuple[float, float]]:
        """Mean and SD over runs of each figure of the lines' ``test``; SD NaN of one run."""
        return self._figures("test")

    @cached_property
    def validation(self) -> dict[str, tuple[float, float]]:
        """The same of the validation patients, by whom options may be chosen."""
        return self._figures("validation")

    def _figures(self, part: str) -> dict[str, tuple[float, float]]:
        return {name: mean_sd([line[part].get(name) for line in self.runs.values()]) for name in ALL_METRICS}


def read(path: Path) -> list[Line]:
    """Finished runs of a file; of several lines of one run in one study the last counts. A torn line is passed over."""
    runs = (line for line in Log(path).lines if line.get("kind") == "run")
    return list({(line["study"], line["id"]): line for line in runs}.values())


def cells(lines: Iterable[Line]) -> list[Cell]:
    """Grouped, in the order of their first lines, and labelled."""
    lines = list(lines)
    folds_of: dict[str | None, set[int | None]] = {}
    for line in lines:
        folds_of.setdefault((line.get("weights") or {}).get("sha256"), set()).add(line.get("fold"))
    found: dict[str, Cell] = {}
    for line in lines:
        fold = line.get("fold")
        # keys that are said of --new-patients, and of other devices, only
        settings = {"known_patients": "kept", "device": "cpu", **line["settings"]}
        weights = line.get("weights") or {}
        variant = {**line.get("options", {}), "N": line.get("n_pairs")}
        if fold is None and line["fraction"] < 1 and weights.get("patients_outside_T") == 0:
            variant["weights"] = INSIDE  # each seed draws patients, and has weights, of its own
        elif fold is None or len(folds_of[weights.get("sha256")]) > 1:
            variant["weights"] = weights.get("name") and f"{weights['name']} ({weights['sha256'][:6]})"
        if fold is not None:  # every fold has data, and cross-fitted weights, of its own
            settings.pop("data", None)
        keys = (line["study"], line["classifier"], line["arm"], line["fraction"])
        name = json.dumps([*keys, settings, variant], sort_keys=True)
        cell = found.setdefault(name, Cell(*keys, settings=settings, variant=variant))
        cell.runs[line["seed"], fold] = line
    _label(list(found.values()))
    return list(found.values())


def base_of(cell: Cell, among: Sequence[Cell], arm: str | None = None) -> Cell | None:
    """The cell of another arm that differs in nothing else: by default T, with classical augmentation if it has it.

    A control is of the same weights. Of several (two sets of options) the one with the most options, then runs, in common.
    """
    wanted = (arm or "T") + (CLASSICAL if cell.classical else "")
    if cell.arm == "T" + CLASSICAL and arm is None:
        wanted = "T"
    same = [
        other
        for other in among
        if other is not cell
        and (other.study, other.classifier, other.arm, other.fraction)
        == (cell.study, cell.classifier, wanted, cell.fraction)
        and other.settings == cell.settings
        and other.variant.get("weights") in (None, cell.variant.get("weights"))
        and other.runs.keys() & cell.runs.keys()
    ]

    def likeness(other: Cell) -> tuple[int, int]:
        options = sum(other.variant.get(k) == v for k, v in cell.variant.items() if v is not None)
        return options, len(other.runs.keys() & cell.runs.keys())

    return max(same, key=likeness, default=None)


def as_long(cell: Cell, among: Sequence[Cell]) -> Cell | None:
    """T with as many steps as this cell's runs had: the control for "paper", since as many epochs of T' are more steps."""
    steps = {line.get("run_steps") for line in cell.runs.values()}
    if len(steps) != 1:
        return None
    return base_of(replace(cell, settings={**cell.settings, "steps": steps.pop()}), among)


def mean_sd(values: Sequence[float | None]) -> tuple[float, float]:
    """Of the values that are there; NaN where there are none, and the SD of one."""
    known = [value for value in values if value is not None]
    if not known:
        return float("nan"), float("nan")
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else float("nan")


def usual(found: Sequence[Cell]) -> dict[str, Any]:
    """What goes without saying: what most runs have, of options of X' and of settings that vary within a classifier.

    Of what every classifier has its own of, None; :data:`OWN` says in words what that is. :data:`ABSENT` of an option that
    some cells of an arm have, and most have not.
    """
    options = {key for cell in found for key in cell.variant}
    most: dict[str, Any] = {}
    for key in _keys({**c.variant, **c.settings} for c in found):
        if key == "N":
            continue
        among, varies = _with_option(key, found) if key in options else _with_setting(key, found)
        value = _commonest(key, among)
        if value is not None or varies:
            most[key] = None if key in OWN else ABSENT if value is None else value
    return most


def _with_option(key: str, found: Sequence[Cell]) -> tuple[list[Cell], bool]:
    """The cells whose option counts, and whether it varies: those of arms in which it does, else every T'."""
    arms = [of for of in _grouped(found, lambda c: c.arm).values() if _varies(key, of, absent=True)]
    return [c for of in arms for c in of] or [c for c in found if c.exchanges], bool(arms)


def _with_setting(key: str, found: Sequence[Cell]) -> tuple[list[Cell], bool]:
    """The same of a setting; where it varies within no classifier, none counts."""
    varies = any(_varies(key, of) for of in _grouped(found, lambda c: c.classifier).values())
    return [c for c in found if varies and _value(c, key) is not None], varies


def _commonest(key: str, among: Sequence[Cell]) -> Any:
    """The value that most runs have; None of no cell."""
    counts = Counter[str]()
    for c in among:
        counts[json.dumps(_value(c, key))] += len(c.runs)
    return json.loads(counts.most_common(1)[0][0]) if counts else None


def _label(found: Sequence[Cell]) -> None:
    """Name every cell by its arm, N, and what is not usual of it."""
    without_saying = usual(found)
    for cell in found:
        told = {"N": cell.variant.get("N")}
        for key, value in without_saying.items():
            own = _own(cell, key) if value is None else value
            told[key] = _value(cell, key) if _value(cell, key) != own else None
        if told.get("data"):
            told["data"] = _tested(cell)
        if told.get("judges"):
            told["judges"] = [fingerprint[:6] for fingerprint in told["judges"]]
        texts = {
            key: f"{key.replace('_', ' ')} {short(value)}" for key, value in told.items() if value is not None
        }
        cell.label = _named(cell.arm, texts.values())
        cell.shared = _named(cell.arm, (text for key, text in texts.items() if key not in TRAINED))
        cell.trained = ", ".join(text for key, text in texts.items() if key in TRAINED)


def _named(arm: str, texts: Iterable[str]) -> str:
    said = ", ".join(texts)
    return f"{arm} ({said})" if said else arm


def _value(cell: Cell, key: str) -> Any:
    return {**cell.settings, **cell.variant}.get(key)


def _own(cell: Cell, key: str) -> Any:
    """What :data:`OWN` is for this classifier; the cell's value where that is not known."""
    if key == "added":
        batch = cell.settings.get("batch_size")
        return ExchangeOptions().beside(batch) if batch else _value(cell, key)
    known = CLASSIFIERS.get(cell.classifier)
    return getattr(known.recipe, key) if known else _value(cell, key)


def _tested(cell: Cell) -> str:
    counts = next(iter(cell.runs.values())).get("counts", {}).get("test")
    return f"with {counts['images']:,} test knees" if counts else "other than most"


def _grouped(found: Iterable[Cell], by: Callable[[Cell], Any]) -> dict[Any, list[Cell]]:
    groups: dict[Any, list[Cell]] = {}
    for cell in found:
        groups.setdefault(by(cell), []).append(cell)
    return groups


def _keys(of: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for values in of for key in values))


def _varies(key: str, among: Sequence[Cell], absent: bool = False) -> bool:
    """Whether it has several values; ``absent``: to lack it is one."""
    values = [value for c in among if (value := _value(c, key)) is not None or absent]
    return any(value != values[0] for value in values)


def short(value: Any) -> str:
    """An option's value, in a name."""
    if isinstance(value, list):
        return "-".join(dict.fromkeys(map(short, value)))
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return (
        f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )
