"""The comparisons that the report shows, of a file of runs; benchmarks/report_answer.py says them in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kecae_bench.classifiers import CLASSIFIERS, TABLE_2
from kecae_bench.stats import ALL_METRICS, Difference
from kecae_bench.report.compare import Comparison, PairingError, compare, overall
from kecae_bench.report.data import (
    CLASSICAL,
    CONTROLS,
    INSIDE,
    OWN_CONTROL,
    Cell,
    Line,
    as_long,
    base_of,
    cells,
)
from kecae_bench.stats import holm

MAIN_METRICS = tuple(ALL_METRICS)
FEW_METRICS = ("accuracy", "auroc")
Progress = Callable[[Sequence[tuple[Cell, Cell]], str], Iterable[tuple[Cell, Cell]]]


@dataclass
class Findings:
    """All that is shown.

    Attributes:
        lines: the runs. cells: of all studies.
        headline: one T' arm against its base, a comparison for each classifier: Table II.
        adjusted: Holm's p of the headline's accuracies, over its classifiers.
        averaged: of the headline those of the paper; all, where fewer than three are. mean: of their accuracies, with
            classifiers as a sample.
        arms: every arm of the main study against its base.
        controls: every T' against the control arms, of all patients and of a share.
        scarcity: T', and its controls, against their base for each share of the patients.
        few: of them one T' arm, a comparison for each classifier and share below all; and the same of weights that
            were trained inside the share.
        sampling: N pairs against none.
        problems: comparisons that could not be made, and why.
    """

    lines: list[Line]
    cells: list[Cell]
    headline: list[Comparison] = field(default_factory=list)
    adjusted: list[float] = field(default_factory=list)
    averaged: list[Comparison] = field(default_factory=list)
    mean: Difference | None = None
    arms: list[Comparison] = field(default_factory=list)
    controls: list[Comparison] = field(default_factory=list)
    scarcity: list[Comparison] = field(default_factory=list)
    few: list[Comparison] = field(default_factory=list)
    sampling: list[Comparison] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def of(self, study: str) -> list[Cell]:
        """Cells of one study."""
        return [cell for cell in self.cells if cell.study == study]


def find(lines: list[Line], folder: Path, progress: Progress | None = None) -> Findings:
    """Compare all that can be compared.

    Args:
        lines: of :func:`report_data.read`.
        folder: what their ``predictions`` are relative to.
        progress: wraps a list of pairs and a title, as a progress bar does.
    """
    found = Findings(lines, cells(lines))

    def all_of(
        pairs: Sequence[tuple[Cell, Cell | None]], title: str, metrics: Sequence[str]
    ) -> list[Comparison]:
        done = []
        whole = [(cell, base) for cell, base in pairs if base is not None]
        for cell, base in progress(whole, title) if progress else whole:
            try:
                done.append(compare(cell, base, folder, metrics))
            except PairingError as error:
                found.problems.append(str(error))
        return done

    main, scarcity, sampling = (found.of(study) for study in ("main", "scarcity", "sampling"))
    found.arms = all_of([(c, base_of(c, main)) for c in main], "arms", MAIN_METRICS)
    both = [*main, *(c for c in scarcity if c.fraction < 1)]  # all patients stand in main already
    exchanged = [c for c in both if c.arm.startswith("T'")]
    pairs = [(c, base_of(c, both, control)) for control in CONTROLS for c in exchanged]
    own = ((c, OWN_CONTROL.get(c.arm.removesuffix(CLASSICAL))) for c in exchanged)
    pairs += [(c, base_of(c, both, control)) for c, control in own if control]
    pairs += [(c, as_long(c, main)) for c in main if c.arm.startswith("paper")]
    found.controls = all_of(pairs, "controls", FEW_METRICS)
    found.scarcity = all_of(
        [(c, base_of(c, scarcity)) for c in scarcity if not c.plain], "scarcity", (*FEW_METRICS, "ece")
    )
    found.sampling = all_of([(c, base_of(c, sampling)) for c in sampling], "sampling", FEW_METRICS)
    found.headline = headline([c for c in found.arms if c.cell.fraction == 1])
    below = [c for c in found.scarcity if c.cell.fraction < 1]
    inside = [c for c in below if c.cell.variant.get("weights") == INSIDE]
    found.few = headline([c for c in below if c not in inside]) + headline(inside)
    found.adjusted = holm([c.differences["accuracy"].p for c in found.headline])
    of_paper = [c for c in found.headline if c.cell.classifier in TABLE_2]
    found.averaged = of_paper if len(of_paper) > 2 else found.headline
    found.mean = overall(found.averaged)
    return found


def headline(arms: Sequence[Comparison]) -> list[Comparison]:
    """The T' arm that most classifiers, then most runs were made of, never the one that did best; by classifier.

    A classifier that was trained in several ways (precision, learning rate) is there once, with most runs, then as usual.
    """
    by_arm: dict[str, dict[tuple[str, float], Comparison]] = {}
    for c in arms:
        if c.cell.exchanges:
            of_arm = by_arm.setdefault(c.cell.shared, {})
            key = c.cell.classifier, c.cell.fraction
            of_arm[key] = max(of_arm.get(key, c), c, key=lambda c: (len(c.cell.runs), not c.cell.trained))

    def most(of: dict[tuple[str, float], Comparison]) -> tuple[int, int]:
        return len({classifier for classifier, _ in of}), sum(len(c.cell.runs) for c in of.values())

    best = max(by_arm.values(), key=most, default={})
    order = list(CLASSIFIERS)
    return sorted(
        best.values(),
        key=lambda c: order.index(c.cell.classifier) if c.cell.classifier in order else len(order),
    )


def title(classifier: str) -> str:
    """Its name in tables."""
    return CLASSIFIERS[classifier].title if classifier in CLASSIFIERS else classifier


def row_title(cell: Cell) -> str:
    """The same where rows were trained in several ways: what is not usual of this one's training stands beside it."""
    return title(cell.classifier) + (f" ({cell.trained})" if cell.trained else "")


def mean_over(found: Findings) -> str:
    """Which classifiers :attr:`Findings.mean` is of."""
    n = len(found.averaged)
    return f"the {n} classifiers" + (" of the paper" if n < len(found.headline) else "")


def by_length(found: Findings) -> list[Comparison]:
    """T' against T where one classifier was trained on several numbers of real knees, by classifier and that number."""
    rows = [c for c in found.arms if c.cell.exchanges and c.cell.fraction == 1 and c.cell.shown]
    numbers: dict[str, set[int]] = {}
    for c in rows:
        numbers.setdefault(c.cell.classifier, set()).add(c.cell.shown)
    several = [c for c in rows if len(numbers[c.cell.classifier]) > 1]
    return sorted(several, key=lambda c: (title(c.cell.classifier), c.cell.shown, c.cell.label))


def lengths(found: Findings) -> dict[str, dict[int, Comparison]]:
    """By classifier and real knees shown, the headline's arm: of several options those with most seeds, then nearest."""
    first = found.headline[0].cell

    def worth(c: Comparison) -> tuple[int, int]:
        return len(c.seeds), sum(c.cell.variant.get(key) == value for key, value in first.variant.items())

    best: dict[str, dict[int, Comparison]] = {}
    for c in by_length(found):
        if c.cell.arm == first.arm:
            of_one = best.setdefault(c.cell.classifier, {})
            of_one[c.cell.shown] = max(of_one.get(c.cell.shown, c), c, key=worth)
    return best
