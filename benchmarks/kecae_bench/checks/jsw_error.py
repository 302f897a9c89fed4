"""How far the joint-space width (JSW) measurement is off on phantoms, where the width is known.

    python -m kecae_bench.checks.jsw_error

Clean phantoms (no quantum noise) and phantoms with it, KL 0 to 4, at several image sizes: bias, standard
deviation and mean absolute error in percent of the image's height (1 % is 2.24 px at 224), how often it declines
to measure, and whether it puts two knees of one host in the right order. Appends a JSON line to
benchmarks/results/jsw_error.jsonl.
"""

import argparse
from typing import Any

import numpy as np

from kecae_aug.phantom import KneeTruth, PhantomKnees, render
from kecae_aug.phantom.jsw import joint_space_width
from kecae_aug.phantom.truth import GRADES
from kecae_bench.record import record


def errors(truths: list[KneeTruth], size: int) -> dict[str, Any]:
    """Error figures of both compartments of left-oriented knees: of all of them, and by grade."""
    measured = np.stack(joint_space_width(np.stack([render(t, size) for t in truths])), 1) * 100
    error = measured - np.array([[t.key.medial_jsw, t.key.lateral_jsw] for t in truths]) * 100
    grades = np.array([t.grade for t in truths])
    return {**summary(error), "by_grade": {str(g): summary(error[grades == g]) for g in GRADES}}


def summary(error: np.ndarray[Any, Any]) -> dict[str, float]:
    """Bias and spread of what was measured, and the fraction that was not."""
    found = error[np.isfinite(error)]
    figures = {
        "bias": found.mean(),
        "sd": found.std(),
        "mean_absolute": np.abs(found).mean(),
        "p95_absolute": np.percentile(np.abs(found), 95),
        "declined": np.isnan(error).mean(),
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def order(truths: list[KneeTruth], size: int) -> dict[str, Any]:
    """Of pairs (a host, the same host with another's key): how often the wider medial joint measures wider."""
    donors = [truths[(i + 7) % len(truths)] for i in range(len(truths))]
    pairs = [(h, h.with_key(d.key)) for h, d in zip(truths, donors, strict=True)]
    gaps = np.array([b.key.medial_jsw - a.key.medial_jsw for a, b in pairs]) * 100
    measured = [joint_space_width(np.stack([render(t, size) for t in pair]))[0] * 100 for pair in pairs]
    change = np.array([m[1] - m[0] for m in measured])
    wide = np.isfinite(change) & (np.abs(gaps) >= 0.5)
    slope, offset = np.polyfit(gaps[np.isfinite(change)], change[np.isfinite(change)], 1)
    return {
        "pairs_at_least_half_a_percent_apart": int(wide.sum()),
        "right_order": round(float((np.sign(change) == np.sign(gaps))[wide].mean()), 4),
        "slope": round(float(slope), 3),
        "offset": round(float(offset), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=100, help="patients, two knees each, of all grades")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 224])
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    knees = PhantomKnees(args.patients, GRADES, seed=args.seed, mirror_right=True).truths
    clean = [t.clean() for t in knees]
    figures: dict[str, Any] = {"knees": len(knees), "unit": "percent of the image's height"}
    for size in args.sizes:
        figures[str(size)] = {
            "clean": errors(clean, size),
            "with_noise": errors(list(knees), size),
            "exchange": order(clean, size),
        }
    record("jsw_error", figures)


if __name__ == "__main__":
    main()
