"""What the weights know of the grade without any exchange: a linear probe on hK, trained on T's labels alone.

    python -m kecae_bench.key_probe --data DIR --weights knee-kl02 --test-unseen --fractions 0.05 0.1 0.25 0.5 1

A control of another kind than the arms of T against T'. Weights that were trained on more labels than T has carry some
of them into X', but one can also read them where they are: encode T once, fit a line to hK. Where the probe is as good as
T', the exchange was the long way round. And where a classifier on T' gains nothing over one on T once both are averaged
with the probe, it had learned nothing from X' but what the probe says.

Patients, seeds and test set are those of ``python -m kecae_bench.tvt`` with the same flags; each fraction is compared with
the runs of T and T' that those flags make, as far as --results has them, knee by knee.

The probe is the linear one of `kecae-aug evaluate` (standardised, 64 principal components, logistic regression with equal
weight of the grades); its C is chosen by the validation patients, as a network's checkpoint is. Nothing of it is random
but T. Appends a JSON line to benchmarks/results/key_probe.jsonl and prints its table, which is a block of docs/results.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import clone
from tqdm import tqdm

from kecae_aug import KECAE
from kecae_aug.engine.inference import FastKECAE
from kecae_aug.errors import reporting
from kecae_bench.classifiers import CLASSIFIERS
from kecae_bench.machine import CPU, to_device
from kecae_bench.record import RESULTS, read_lines, record
from kecae_bench.report.tables import render_table, spell
from kecae_bench.stats import METRICS, Difference, Labels, Scores, auroc, estimate
from kecae_bench.tvt.flags import add_arguments, options_of, protocol_of
from kecae_bench.tvt.ground import Ground, open_grounds
from kecae_bench.tvt.plan import PAIR, RunSpec
from kecae_bench.tvt.run import count_outside, id_of, identity
from kecae_bench.tvt.split import fraction_of
from kecae_bench.tvt.store import Line, Predictions, Store
from kecae_training.evaluate.probes import classifier
from kecae_training.images import to_float

CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SHOWN = ("accuracy", "auroc", "ece")
Floats = NDArray[np.float64]


@torch.no_grad()
def encode_keys(
    model: KECAE, images: torch.Tensor, device: torch.device = CPU, latent: Literal["key", "non_key"] = "key"
) -> Floats:
    """(N, D) hK, or hN, of (N, 1, S, S) uint8 knees, preprocessed as the weights ask for it."""
    encode = getattr(FastKECAE(model).to(device), f"encode_{latent}")
    parts = [encode(to_float(to_device(batch, device))).flatten(1) for batch in images.split(64)]
    return torch.cat(parts).cpu().double().numpy()


def fit_probe(
    train: tuple[Floats, Labels], validation: tuple[Floats, Labels], test: Floats
) -> tuple[Scores, float]:
    """Scores (N, K) of the test knees, and the C that did best on validation patients (AUROC)."""
    x, y = train
    steps = classifier("linear", *x.shape)
    features, line = steps[:-1].fit(x), steps[-1]
    known, held_out = features.transform(x), features.transform(validation[0])
    fits = {c: clone(line).set_params(C=c).fit(known, y) for c in CS}
    best = max(CS, key=lambda c: auroc(fits[c].predict_proba(held_out), validation[1]))
    return fits[best].predict_proba(features.transform(test)), best


@dataclass(frozen=True)
class Probes:
    """Probes of a fraction of the patients, by seed, and the test knees, sorted by file."""

    scores: dict[int, Scores]
    labels: Labels
    patients: list[str]
    files: list[str]

    def subtract(self, arm: dict[int, Scores], base: dict[int, Scores]) -> dict[str, Difference]:
        """Over the seeds of ``arm``."""
        a, b = list(arm.values()), [base[seed] for seed in arm]
        return {m: estimate(a, b, self.labels, self.patients, METRICS[m]) for m in SHOWN}

    def average(self, of: dict[int, Scores]) -> dict[int, Scores]:
        """Mean of both log-odds, brought to the same spread: else whoever is surer has the greater say."""
        return {
            seed: softmax(scale(scores) + scale(self.scores[seed]), axis=1) for seed, scores in of.items()
        }


def scale(scores: Scores) -> Scores:
    """Logarithms of probabilities, without what all classes share, at a standard deviation of 1 over these knees."""
    logs = np.log(np.maximum(scores, 1e-12))
    logs -= logs.mean(1, keepdims=True)
    found: Scores = logs / max(float(logs.std()), 1e-12)
    return found


def fit_seeds(
    seeds: Sequence[int], ground: Ground, fraction: float, x: Floats
) -> tuple[Probes, dict[int, float]]:
    """The probes, and the C of each."""
    knees, split = ground.knees, ground.split
    labels, validation = knees.labels.numpy(), list(split.validation)
    test = sorted(split.test, key=lambda index: knees.files[index])
    scores, chosen = {}, {}
    for seed in seeds:
        indices = fraction_of(knees, split.train, fraction, seed)
        scores[seed], chosen[seed] = fit_probe(
            (x[indices], labels[indices]), (x[validation], labels[validation]), x[test]
        )
    return Probes(
        scores, labels[test], [knees.patients[i] for i in test], [knees.files[i] for i in test]
    ), chosen


def find_runs(
    lines: dict[str, Line], ground: Ground, fraction: float, args: argparse.Namespace
) -> dict[str, dict[str, dict[int, Line]]]:
    """By classifier and arm the runs of T and T' that tvt makes with these flags, of the seeds that both have."""
    protocol, options = protocol_of(args), options_of(args)
    found = {}
    for name in CLASSIFIERS:
        arms: dict[str, dict[int, Line]] = {arm: {} for arm in PAIR}
        for arm, seed in product(PAIR, args.seeds):
            spec = RunSpec(name, arm, seed, fraction=fraction, options=options)
            line = lines.get(id_of(identity(spec, ground, protocol)))
            arms[arm] |= {seed: line} if line else {}
        both = [seed for seed in args.seeds if all(seed in of for of in arms.values())]
        if both:
            found[name] = {arm: {seed: of[seed] for seed in both} for arm, of in arms.items()}
    return found


def compare(of: dict[str, dict[int, Line]], probes: Probes, said: dict[str, Predictions]) -> dict[str, Any]:
    """T and T' of one classifier beside the probe."""
    arms: list[dict[int, Scores]] = []
    for runs in of.values():
        held = {seed: said[line["id"]] for seed, line in runs.items()}
        if any(of_run.files.tolist() != probes.files for of_run in held.values()):
            raise ValueError(
                f"{[line['id'] for line in runs.values()]}: predictions of other test knees than these"
            )
        arms.append({seed: of_run.scores.astype(np.float64) for seed, of_run in held.items()})
    t, t_prime = arms
    own = {seed: probes.scores[seed] for seed in t}
    both = [probes.average(arm) for arm in arms]
    figures = {"probe": own, "T": t, "T'": t_prime, "T with probe": both[0], "T' with probe": both[1]}
    differences = {
        "T' - probe": probes.subtract(t_prime, own),
        "T' with probe - T with probe": probes.subtract(both[1], both[0]),
        "T' with probe - probe": probes.subtract(both[1], own),
        "T with probe - T": probes.subtract(both[0], t),
    }
    return {
        "seeds": list(t),
        "figures": {name: _measure(list(scores.values()), probes.labels) for name, scores in figures.items()},
        "differences": {
            name: {m: [round(x, 5) for x in (d.mean, d.low, d.high)] for m, d in by.items()}
            for name, by in differences.items()
        },
    }


def _measure(scores: Sequence[Scores], labels: Labels) -> dict[str, float]:
    return {m: round(float(np.mean([METRICS[m](s, labels) for s in scores])), 4) for m in SHOWN}


DIFFERENCES = ("T' - probe", "T' with probe - T with probe", "T' with probe - probe")


def render(fractions: Sequence[dict[str, Any]]) -> str:
    """AUROC in percent and differences in points, as a Markdown table."""
    lines = [
        [_spell_fraction(one), CLASSIFIERS[name].title, *_spell_row(found, DIFFERENCES)]
        for one in fractions
        for name, found in one["classifiers"].items()
    ]
    return render_table(["labels", "classifier", *_head(DIFFERENCES)], lines)


def make_block() -> str:
    """Of the project's own runs, the classifier that was run with every fraction."""
    shown = (DIFFERENCES[0], DIFFERENCES[2])
    fractions = read_lines(RESULTS / "key_probe.jsonl")[-1]["fractions"]
    lines = [
        [_spell_fraction(one), *_spell_row(one["classifiers"]["compact_vgg"], shown)] for one in fractions
    ]
    return render_table(["labels", *_head(shown)], lines)


def _head(differences: Sequence[str]) -> list[str]:
    return ["seeds", "T", "T'", "probe", *(text.replace("-", "−") for text in differences)]


def _spell_fraction(one: dict[str, Any]) -> str:
    return f"{one['fraction']:.0%}"


def _spell_row(found: dict[str, Any], differences: Sequence[str]) -> list[str]:
    cells = [str(len(found["seeds"]))]
    cells += [f"{100 * found['figures'][of]['auroc']:.1f}" for of in ("T", "T'", "probe")]
    for of in differences:
        mean, low, high = found["differences"][of]["auroc"]
        cells.append(spell({"auroc": mean, "auroc_low": low, "auroc_high": high}, "auroc"))
    return cells


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--fractions", type=float, nargs="+", default=[1.0], help="of the training patients")
    add_arguments(parser)
    args = parser.parse_args(argv)
    with reporting("key_probe"):
        ground = open_grounds(args, None)[None]
        assert ground.model is not None
        x = encode_keys(ground.model, ground.knees.images, args.device)
        store = Store(args.results)
        lines, said = store.finished(), store.predictions()
        fractions = []
        for fraction in tqdm(args.fractions, desc="fractions"):
            probes, chosen = fit_seeds(args.seeds, ground, fraction, x)
            training = ground.knees.select(
                fraction_of(ground.knees, ground.split.train, fraction, args.seeds[0])
            )
            rivals = find_runs(lines, ground, fraction, args)
            fractions.append(
                {
                    "fraction": fraction,
                    **count_outside(ground, training),
                    "chosen_c": chosen,
                    "probe": _measure(list(probes.scores.values()), probes.labels),
                    "classifiers": {name: compare(of, probes, said) for name, of in rivals.items()},
                }
            )
        record("key_probe", {"weights": ground.name, "seeds": args.seeds, "fractions": fractions})
        print(render(fractions))


if __name__ == "__main__":
    main()
