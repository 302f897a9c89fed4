"""The criteria that weights have to clear, and whether the figures of an evaluation clear them.

They are those of the project's plan for real knees; a criterion that needs what was not measured is left out and named in
:func:`not_measured`. A criterion is met by the figure itself; whether its interval is on the same side is said beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Figure = Mapping[str, Any]  # mean, low, high
JUDGES = "oracles"
COPIED = {"donor": "donors", "other": "knees of other patients", "training": "training images"}
ELSEWHERE = "X^ added to each batch of a classifier costs no accuracy: a training, not part of evaluate"


@dataclass(frozen=True)
class Criterion:
    """One criterion: what is asked, of which figure, and the figure; criteria of one group belong together."""

    group: str
    name: str
    at_least: float | None
    at_most: float | None
    figure: Figure
    unit: str = ""
    judged: bool = True  # False where the oracles that the figure depends on are no oracles

    @property
    def wanted(self) -> str:
        """The criterion in words."""
        unit = f" {self.unit}" if self.unit else ""
        if self.at_least is None:
            return f"at most {self.at_most:g}{unit}"
        return (
            f"at least {self.at_least:g}{unit}"
            if self.at_most is None
            else f"{self.at_least:g} to {self.at_most:g}"
        )

    def _holds(self, value: float | None) -> bool:
        return (
            value is not None
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
        )

    @property
    def met(self) -> bool:
        """Whether the figure itself clears the criterion."""
        return self.judged and self._holds(self.figure["mean"])

    @property
    def verdict(self) -> str:
        """``met`` or ``not met``, and whether the interval leaves it open; ``no verdict`` where no oracle can give one."""
        if not self.judged:
            return "no verdict: an oracle does not tell real knees apart"
        ends = [self._holds(self.figure["low"]), self._holds(self.figure["high"])]
        sure = all(ends) if self.met else not any(ends) and not self._spans()
        return ("met" if self.met else "not met") + ("" if sure else ", interval includes the criterion")

    def _spans(self) -> bool:
        """Whether the interval holds the whole accepted range while its ends do not."""
        low, high = self.figure["low"], self.figure["high"]
        values = [v for v in (self.at_least, self.at_most) if v is not None]
        return low is not None and any(low <= v <= high for v in values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "group": self.group,
            "criterion": self.name,
            "wanted": self.wanted,
            "figure": dict(self.figure),
            "verdict": self.verdict,
        }


def at(tree: Any, *path: str) -> Any:
    """A branch of a summarised tree, None where it is not there."""
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def criteria(figures: Mapping[str, Any]) -> list[Criterion]:
    """Every criterion whose figure is there.

    Args:
        figures: summarised figures of one weights file, or pooled over several.
    """
    closer = figures.get("closer") or {}
    found: list[Criterion] = []

    fit = not figures.get("oracles_at_chance")

    def ask(
        group: str,
        name: str,
        figure: Any,
        at_least: float | None = None,
        at_most: float | None = None,
        unit: str = "",
    ) -> None:
        if isinstance(figure, Mapping) and figure.get("mean") is not None:
            found.append(Criterion(group, name, at_least, at_most, figure, unit, fit or group != JUDGES))

    for detail, least in (("decoder", 0.95), ("host", 0.85)):
        kind = closer.get(detail)
        head = at(figures, "exchanged", str(kind), "headline") or {}
        ask(JUDGES, f"AUROC on X' over that on real knees, {kind}", head.get("auroc_over_real"), least)
        for key, value in head.items():
            if key.startswith("flip_") and key.endswith("_over_real"):
                direction = key.removeprefix("flip_").removesuffix("_over_real")
                ask(JUDGES, f"flip {direction} over the balanced accuracy on real knees, {kind}", value, 0.8)
        single = "kappa" if "kappa_over_real" in head else "AUROC"  # of more than two grades
        for degradation in ("JPEG 75", "blur 1 px"):
            lost = at(figures, "robustness", str(kind), "lost", degradation)
            ask(JUDGES, f"{single} lost after {degradation}, {kind}", lost, at_most=0.05)
    for key, value in (figures.get("kept") or {}).items():
        if key.startswith(("says_", "balanced_")):
            where = "own threshold" if key.startswith("says_") else "balanced threshold"
            grade = key.split("_")[1]
            ask(JUDGES, f"accuracy on X^ of grade {grade} over that on real knees, {where}", value, 0.95)
    ask("fidelity", "PSNR of X^, evaluated knees", at(figures, "reconstruction", "psnr"), 30, unit="dB")
    ask("fidelity", "PSNR of X^, training knees", at(figures, "training_images", "psnr"), 34, unit="dB")
    for detail in ("decoder", "host"):
        kind = str(closer.get(detail))
        own = at(figures, "identity", kind) or {}
        for measure in ("l1", "ssim"):
            nearest = at(own, "host_is_nearest", measure)
            ask("identity", f"host is the nearest knee by {measure.upper()}, {kind}", nearest, 0.95)
        for whom, name in COPIED.items():
            ask(
                "identity",
                f"fraction of near copies of {name}, {kind}",
                at(own, "copies", f"of_{whom}"),
                at_most=0,
            )
        if detail == "host":
            ask(
                "identity",
                f"PSNR against the host outside the joint, {kind}",
                own.get("psnr_outside"),
                30,
                unit="dB",
            )
    over = at(figures, "follows", "host_over_donor")
    ask("identity", "X' follows its host over its donor (mean absolute change)", over, 4)
    for detail in ("decoder", "host"):
        kind = str(closer.get(detail))
        for direction, value in (at(figures, "phantoms", kind) or {}).items():
            moved = at(value, "joint_space")
            ask("anatomy", f"joint-space change {direction} over the true one, {kind}", moved, 0.8, 1.2)
    for detail in ("decoder", "host"):
        kind = str(closer.get(detail))
        for what, by in (at(figures, "realism", "two_sample", kind) or {}).items():
            ask("realism", f"a classifier ({what}) tells X' from X, {kind}", by, at_most=0.65)
    return found


def not_measured(figures: Mapping[str, Any]) -> list[str]:
    """What the plan has a criterion for and these figures do not hold."""
    missing = [ELSEWHERE]
    if "training_images" not in figures:
        missing.append("X^ of training knees and copies of training images: give --train_split")
    if "realism" not in figures:
        missing.append("two-sample classifier and distances: give --realism true")
    if "phantoms" not in figures:
        missing.append("joint-space change against the truth: only a folder of `kecae-aug phantoms` has it")
    return missing
