"""What is true about a phantom knee: the key (what makes its grade) and the nuisance (everything else).

The two are apart by type, so the exchange a KECAE has to learn can be written down exactly:
``host.with_key(donor.key)`` is the host's knee with the donor's joint.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np

GRADES = (0, 1, 2, 3, 4)
Side = Literal["L", "R"]


@dataclass(frozen=True)
class KneeKey:
    """What makes the Kellgren-Lawrence grade. Lengths are fractions of the image's height (= width).

    Shapes, dtypes, ranges:
        grade: 0 to 4, the grade the knee was drawn for.
        medial_jsw, lateral_jsw: joint-space width, femoral edge to tibial edge perpendicular to the joint
            line, averaged over the middle of the compartment; [0, 0.12]. 0.05 is a normal knee (11 px of 224).
        medial_femur, lateral_femur, medial_tibia, lateral_tibia: how far the osteophyte of that margin stands
            out from the bone; 0 is none, [0, 0.08].
        medial_sclerosis, lateral_sclerosis: whitening below the joint surface; 0 is none, [0, 1].

    Raises ValueError for a value outside its range.
    """

    grade: int
    medial_jsw: float
    lateral_jsw: float
    medial_femur: float = 0.0
    lateral_femur: float = 0.0
    medial_tibia: float = 0.0
    lateral_tibia: float = 0.0
    medial_sclerosis: float = 0.0
    lateral_sclerosis: float = 0.0

    def __post_init__(self) -> None:
        _check_grade(self.grade)
        for f in fields(self):
            if f.name == "grade":
                continue
            high = 0.12 if f.name.endswith("jsw") else 1.0 if f.name.endswith("sclerosis") else 0.08
            value = getattr(self, f.name)
            if not (math.isfinite(value) and 0 <= value <= high):
                raise ValueError(
                    f"KneeKey: {f.name} must be in [0, {high}], got {value!r}; lengths are fractions of the "
                    "image's height, so divide pixels by the image size"
                )


@dataclass(frozen=True)
class KneeNuisance:
    """Everything that is not the grade: view, bone shape, soft tissue, exposure, noise.

    Lengths are fractions of the image's height, measured in the knee's own frame: origin between the tibial
    spines on the joint line, x to lateral, y down. The defaults are an average left knee; `NUISANCE` gives
    the distribution of each.
    """

    # view
    tilt: float = 0.0  # degrees, clockwise on the screen for a left knee
    shift_x: float = 0.0
    shift_y: float = 0.085  # of the joint line below the middle of the image
    scale: float = 1.03  # of the bones; joint-space widths are given in the image, whatever the scale
    # bone shape
    femur_width: float = 0.43  # half-widths
    tibia_width: float = 0.408
    shaft_width: float = 0.335
    flare: float = -0.29  # height at which the femur is widest
    notch_depth: float = 0.125
    notch_width: float = 0.12
    notch_power: float = 2.0  # below 2 a tent, above 2 a dome
    notch_blur: float = 0.03
    spine_height: float = 0.066
    spine_gap: float = 0.047
    plateau_dish: float = 0.008
    plateau_slope: float = 0.0
    rim: float = 0.018  # of the second shadow, of the far rim, below the surface
    condyle_round: float = 1.2
    contour: float = 0.004  # unevenness of the bones' sides
    fibula_x: float = 0.345
    fibula_y: float = 0.23
    patella_x: float = 0.0
    patella_y: float = -0.35
    patella_size: float = 0.165
    # tissue
    bone: float = 1.0
    cortex: float = 1.0
    plate: float = 1.0  # brightness of the subchondral plates of a healthy knee
    trabeculae: float = 1.0
    scars: float = 0.5  # growth-plate lines
    patella: float = 0.6
    soft_width: float = 0.6  # half-width of the limb
    soft_shift: float = 0.0
    mottle: float = 1.0
    # exposure
    brightness: float = 0.02
    contrast: float = 1.05
    gradient_x: float = 0.0
    gradient_y: float = 0.0
    glow: float = 0.0  # over-exposed femur
    blur: float = 0.004  # width of an edge
    noise: float = 0.006  # standard deviation at 224 px; proportional to the size, as averaging pixels does
    inverted: bool = False
    texture_seed: int = 0
    side: Side = "L"

    def __post_init__(self) -> None:
        if self.side not in ("L", "R"):
            raise ValueError(f"KneeNuisance: side must be 'L' or 'R', got {self.side!r}")
        bad = {
            f.name: v
            for f in fields(self)
            if isinstance(v := getattr(self, f.name), float) and not math.isfinite(v)
        }
        if bad:
            raise ValueError(f"KneeNuisance: every number must be finite, got {bad}")


@dataclass(frozen=True)
class KneeTruth:
    """One phantom knee: `key` and `nuisance`. `render` makes the radiograph from nothing else."""

    key: KneeKey
    nuisance: KneeNuisance = KneeNuisance()

    @property
    def grade(self) -> int:
        """Kellgren-Lawrence grade, 0 to 4."""
        return self.key.grade

    def with_key(self, key: KneeKey) -> KneeTruth:
        """This knee with another's key: the exchange as it should be."""
        return replace(self, key=key)

    def clean(self) -> KneeTruth:
        """This knee without quantum noise."""
        return replace(self, nuisance=replace(self.nuisance, noise=0.0))

    def to_json(self) -> str:
        """One JSON line; `from_json` is the way back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> KneeTruth:
        """Read what `to_json` wrote. Raises ValueError naming the field that is missing or unknown."""
        try:
            d: dict[str, Any] = json.loads(text)
            return cls(KneeKey(**d["key"]), KneeNuisance(**d["nuisance"]))
        except (TypeError, KeyError) as e:
            raise ValueError(f"KneeTruth.from_json: not written by KneeTruth.to_json ({e})") from e


class Spread(NamedTuple):
    """Mean, standard deviation and how much of the variance the two knees of a patient share."""

    mean: float
    sd: float
    shared: float


# Fitted by eye, and exposure by the means and standard deviations of the images, to 826 public radiographs;
# docs/evaluate.md has the comparison. Bone and soft tissue belong to the patient, the view to the knee;
# both knees are taken on one film, so they share most of the exposure.
NUISANCE: dict[str, Spread] = {
    "tilt": Spread(0.0, 1.8, 0.0),
    "shift_x": Spread(0.0, 0.018, 0.0),
    "shift_y": Spread(0.085, 0.015, 0.2),
    "scale": Spread(1.03, 0.035, 0.7),
    "femur_width": Spread(0.43, 0.014, 0.8),
    "tibia_width": Spread(0.408, 0.013, 0.8),
    "shaft_width": Spread(0.335, 0.04, 0.7),
    "flare": Spread(-0.29, 0.035, 0.7),
    "notch_depth": Spread(0.125, 0.016, 0.6),
    "notch_width": Spread(0.12, 0.013, 0.6),
    "notch_power": Spread(2.0, 0.3, 0.6),
    "notch_blur": Spread(0.03, 0.012, 0.3),
    "spine_height": Spread(0.066, 0.01, 0.7),
    "spine_gap": Spread(0.047, 0.006, 0.7),
    "plateau_dish": Spread(0.008, 0.003, 0.7),
    "plateau_slope": Spread(0.0, 0.012, 0.5),
    "rim": Spread(0.018, 0.008, 0.3),
    "condyle_round": Spread(1.2, 0.35, 0.7),
    "contour": Spread(0.004, 0.0015, 0.5),
    "fibula_x": Spread(0.345, 0.035, 0.5),
    "fibula_y": Spread(0.23, 0.035, 0.5),
    "patella_x": Spread(0.0, 0.03, 0.3),
    "patella_y": Spread(-0.35, 0.035, 0.6),
    "patella_size": Spread(0.165, 0.015, 0.8),
    "bone": Spread(1.0, 0.13, 0.9),
    "cortex": Spread(1.0, 0.25, 0.9),
    "plate": Spread(1.0, 0.25, 0.8),
    "trabeculae": Spread(1.0, 0.35, 0.9),
    "scars": Spread(0.5, 0.3, 0.7),
    "patella": Spread(0.6, 0.3, 0.6),
    "soft_width": Spread(0.6, 0.07, 0.9),
    "soft_shift": Spread(0.0, 0.03, 0.0),
    "mottle": Spread(1.0, 0.3, 0.5),
    "brightness": Spread(0.02, 0.11, 0.85),
    "contrast": Spread(1.05, 0.25, 0.85),
    "gradient_x": Spread(0.0, 0.06, 0.0),
    "gradient_y": Spread(-0.05, 0.08, 0.7),
    "glow": Spread(0.08, 0.1, 0.7),
    "blur": Spread(0.0045, 0.0015, 0.8),
    "noise": Spread(0.006, 0.0025, 0.9),
}
_NAMES = tuple(NUISANCE)
_MEAN, _SD, _SHARED = (np.array(column) for column in zip(*NUISANCE.values(), strict=True))
_NOT_NEGATIVE = ("contour", "cortex", "plate", "trabeculae", "scars", "patella", "mottle", "glow", "noise")


class _KeySpread(NamedTuple):
    """Of one grade: mean and SD of the two widths, osteophyte size and chance, sclerosis."""

    narrow: tuple[float, float]  # of the diseased compartment
    other: tuple[float, float]
    spur: tuple[float, float]
    spur_chance: float  # of each of the four margins
    sclerosis: tuple[float, float]


# Widths by grade follow what is reported for fixed-flexion radiographs (about 5 mm at KL 0, 4 at KL 2, 2.5 at
# KL 3, below 1 at KL 4) at about 0.42 mm a pixel of 224. Neighbouring grades overlap, as readers do.
KEY: dict[int, _KeySpread] = {
    0: _KeySpread((0.050, 0.0045), (0.054, 0.005), (0.0, 0.0), 0.0, (0.0, 0.05)),
    1: _KeySpread((0.047, 0.005), (0.053, 0.005), (0.010, 0.004), 0.5, (0.05, 0.06)),
    2: _KeySpread((0.041, 0.0055), (0.052, 0.006), (0.022, 0.006), 0.8, (0.15, 0.10)),
    3: _KeySpread((0.024, 0.006), (0.051, 0.007), (0.034, 0.008), 0.95, (0.45, 0.15)),
    4: _KeySpread((0.007, 0.004), (0.046, 0.009), (0.048, 0.010), 1.0, (0.80, 0.12)),
}
_MEDIAL_SHARE = 0.8  # of diseased knees; the rest narrow laterally


def sample_truth(grade: int, rng: np.random.Generator) -> KneeTruth:
    """A left knee of one grade: key and nuisance from their distributions (`KEY`, `NUISANCE`).

    Args:
        grade: Kellgren-Lawrence grade, 0 to 4; anything else raises ValueError.
        rng: source of the randomness; advanced.
    """
    return KneeTruth(sample_key(grade, rng), sample_nuisance(rng))


def sample_key(grade: int, rng: np.random.Generator) -> KneeKey:
    """A key of one grade. Raises ValueError for a grade outside 0 to 4."""
    _check_grade(grade)
    s = KEY[grade]
    narrow, other = (float(np.clip(rng.normal(*w), 0.003, 0.085)) for w in (s.narrow, s.other))
    medial = bool(rng.random() < _MEDIAL_SHARE)
    present = rng.random(4) < s.spur_chance
    if s.spur_chance > 0.6:
        present[rng.integers(4)] = True  # from KL 2 on an osteophyte is definite
    sizes = np.where(present, np.clip(rng.normal(*s.spur, size=4), 0.0, 0.08), 0.0)
    white = np.clip(rng.normal(*s.sclerosis, size=2) * (1.0, 0.3), 0.0, 1.0)
    order = 1 if medial else -1
    (medial_jsw, lateral_jsw), (white_m, white_l) = (narrow, other)[::order], white[::order]
    femur_m, femur_l, tibia_m, tibia_l = sizes.tolist()
    return KneeKey(
        grade, medial_jsw, lateral_jsw, femur_m, femur_l, tibia_m, tibia_l, float(white_m), float(white_l)
    )


def sample_nuisance(
    rng: np.random.Generator,
    *,
    patient: np.ndarray[Any, Any] | None = None,
    side: Side = "L",
    inverted: bool = False,
) -> KneeNuisance:
    """Nuisance of one knee.

    Args:
        rng: the knee's own randomness; advanced.
        patient: standard normal deviates of shape (len(NUISANCE),) that the patient's knees share; drawn
            from `rng` by default.
        side: which knee. A right knee is the mirror image of a left one.
        inverted: a negative, bone dark.
    """
    shared = rng.standard_normal(len(_NAMES)) if patient is None else patient
    own = rng.standard_normal(len(_NAMES))
    # cut at 2.2 SD: beyond it contours cross, and no test should hang on one knee in a hundred
    z = np.clip(np.sqrt(_SHARED) * shared + np.sqrt(1 - _SHARED) * own, -2.2, 2.2)
    values = dict(zip(_NAMES, (_MEAN + _SD * z).tolist(), strict=True))
    for name in _NOT_NEGATIVE:
        values[name] = max(0.0, values[name])
    return KneeNuisance(**values, texture_seed=int(rng.integers(2**31)), side=side, inverted=inverted)


def _check_grade(grade: int) -> None:
    if grade not in GRADES or isinstance(grade, bool):
        raise ValueError(f"grade must be a Kellgren-Lawrence grade, one of {GRADES}, got {grade!r}")
