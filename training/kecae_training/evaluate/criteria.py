"""The acceptance criteria of weights, and whether the figures of an evaluation meet them.

They are those of the project's plan for real knees; a criterion that needs what was not measured is left out and named in
:func:`not_measured`. A criterion is met by the figure itself; the verdict also states whether the interval includes the
limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Figure = Mapping[str, Any]  # mean, low, high
ORACLES = "oracles"
COPIED = {"donor": "donors", "other": "knees of other patients", "training": "training images"}
ELSEWHERE = "X^ added to each batch of a classifier costs no accuracy: a training, not part of evaluate"


@dataclass(frozen=True)
class Criterion:
    """One acceptance criterion.

    Fields:
        group: criteria of one group belong together.
        name: what is measured.
        at_least, at_most: the accepted range, None where it has no such limit.
        figure: mean, low and high.
        unit: of the figure.
        kind: of X' that it is measured on, such as "decoder 1"; empty for figures of X^.
        valid: False where the figure depends on oracles that are no better than chance.
        on_card: whether the model card shows it.
    """

    group: str
    name: str
    at_least: float | None
    at_most: float | None
    figure: Figure
    unit: str = ""
    kind: str = ""
    valid: bool = True
    on_card: bool = False

    @property
    def title(self) -> str:
        """Name and kind."""
        return f"{self.name}, {self.kind}" if self.kind else self.name

    @property
    def accepted(self) -> str:
        """The accepted range in words."""
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
        """Whether the figure itself meets the criterion."""
        return self.valid and self._holds(self.figure["mean"])

    @property
    def verdict(self) -> str:
        """``met`` or ``not met``, and whether the interval includes the limit; ``no verdict`` of oracles at chance."""
        if not self.valid:
            return "no verdict: an oracle is at chance on real knees"
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
            "criterion": self.title,
            "accepted": self.accepted,
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


def list_criteria(figures: Mapping[str, Any]) -> list[Criterion]:
    """Every criterion whose figure is there.

    Args:
        figures: summarised figures of one weights file, or pooled over several.
    """
    found: list[Criterion] = []
    kinds = {detail: str(at(figures, "selected", detail)) for detail in ("decoder", "host")}
    better_than_chance = not figures.get("oracles_at_chance")

    def add(
        group: str,
        name: str,
        figure: Any,
        at_least: float | None = None,
        at_most: float | None = None,
        *,
        unit: str = "",
        kind: str = "",
        on_card: bool = False,
    ) -> None:
        if isinstance(figure, Mapping) and figure.get("mean") is not None:
            valid = better_than_chance or group != ORACLES
            found.append(Criterion(group, name, at_least, at_most, figure, unit, kind, valid, on_card))

    for detail, least in (("decoder", 0.95), ("host", 0.85)):
        kind = kinds[detail]
        head = at(figures, "exchanged", kind, "headline") or {}
        add(
            ORACLES,
            "AUROC, X' over real knees",
            head.get("auroc_over_real"),
            least,
            kind=kind,
            on_card=True,
        )
        for key, value in head.items():
            if key.startswith("flip_") and key.endswith("_over_real"):
                direction = key.removeprefix("flip_").removesuffix("_over_real")
                name = f"flip {direction} over accuracy on real knees"
                add(ORACLES, name, value, 0.8, kind=kind, on_card=detail == "host")
        single = "kappa" if "kappa_over_real" in head else "AUROC"  # of more than two grades
        for degradation in ("JPEG 75", "blur 1 px"):
            lost = at(figures, "robustness", kind, "lost", degradation)
            shown = single == "kappa" and degradation == "blur 1 px"
            add(ORACLES, f"{single} lost after {degradation}", lost, at_most=0.05, kind=kind, on_card=shown)
    for key, value in (figures.get("kept") or {}).items():
        if key.startswith(("predicted_", "balanced_")):
            where = "own threshold" if key.startswith("predicted_") else "balanced threshold"
            grade = key.split("_")[1]
            add(ORACLES, f"accuracy on X^ of grade {grade} over real knees, {where}", value, 0.95)
    psnr = at(figures, "reconstruction", "psnr")
    add("fidelity", "PSNR of X^, evaluated knees", psnr, 30, unit="dB", on_card=True)
    add("fidelity", "PSNR of X^, training knees", at(figures, "training_images", "psnr"), 34, unit="dB")
    for detail, kind in kinds.items():
        own = at(figures, "identity", kind) or {}
        for measure in ("l1", "ssim"):
            nearest = at(own, "host_is_nearest", measure)
            shown = (detail, measure) == ("host", "ssim")
            name = f"host is the nearest knee by {measure.upper()}"
            add("identity", name, nearest, 0.95, kind=kind, on_card=shown)
        for whom, name in COPIED.items():
            fraction = at(own, "copies", f"of_{whom}")
            shown = (detail, whom) == ("host", "training")
            add(
                "identity",
                f"fraction of near copies of {name}",
                fraction,
                at_most=0,
                kind=kind,
                on_card=shown,
            )
        if detail == "host":
            outside = own.get("psnr_outside")
            add("identity", "PSNR against the host outside the joint", outside, 30, unit="dB", kind=kind)
    over = at(figures, "follows", "host_over_donor")
    add("identity", "change of X' with its host over that with its donor", over, 4)
    for detail, kind in kinds.items():
        for direction, value in (at(figures, "phantoms", kind) or {}).items():
            name = f"joint-space change {direction} over the true one"
            change = at(value, "joint_space")
            add("anatomy", name, change, 0.8, 1.2, kind=kind, on_card=detail == "host")
    for detail, kind in kinds.items():
        for by, value in (at(figures, "realism", "two_sample", kind) or {}).items():
            shown = (detail, by) == ("host", "network")
            name = f"two-sample accuracy of X' against X ({by})"
            add("realism", name, value, at_most=0.65, kind=kind, on_card=shown)
    return found


def with_criteria(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures, and whether they meet the criteria."""
    return {
        **figures,
        "criteria": [criterion.to_dict() for criterion in list_criteria(figures)],
        "not_measured": not_measured(figures),
    }


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
