"""kecae_bench/key_probe.py: what is read from hK, and what a classifier on T' has beside it."""

import numpy as np
import pytest
from scipy.special import softmax

from kecae_aug.phantom import write_phantoms
from kecae_bench import key_probe
from kecae_bench.key_probe import Probes, fit_probe
from kecae_bench.stats import auroc
from kecae_bench.tvt import __main__ as t_vs_tprime

LABELS = np.tile([0, 1], 150)


def latents(gap: float, seed: int) -> np.ndarray:
    """(300, 200) noise, of which a fifth is ``gap`` higher for the second grade."""
    x = np.random.default_rng(seed).normal(size=(len(LABELS), 200))
    x[:, :40] += gap * LABELS[:, None]
    return x


@pytest.mark.parametrize(("gap", "low", "high"), [(2.0, 0.99, 1.0), (0.0, 0.4, 0.6)])
def test_a_probe_reads_a_grade_that_is_there_and_none_that_is_not(gap, low, high):
    train, validation, test = (latents(gap, seed) for seed in range(3))
    scores, c = fit_probe((train, LABELS), (validation, LABELS), test)
    assert low <= auroc(scores, LABELS) <= high
    assert c in key_probe.CS
    again, _ = fit_probe((train, LABELS), (validation, LABELS), test)
    assert np.array_equal(scores, again)


def test_only_what_the_probe_does_not_say_counts_beside_it():
    """A T' that repeats the probe gains over a blind T, and nothing once both are averaged with the probe.

    However sure it is: a T of the same order and other confidence has the same say.
    """
    rng = np.random.default_rng(0)

    def scores(error):
        score = 1 / (1 + np.exp(-2 * (LABELS - 0.5 + error)))
        return np.stack([1 - score, score], 1)

    said, other = (scores(rng.normal(scale=1.0, size=len(LABELS))) for _ in range(2))
    blind = np.full((len(LABELS), 2), 0.5)
    of = Probes({0: said}, LABELS, [str(i) for i in range(len(LABELS))], [])
    t, repeats, knows = ({0: scores} for scores in (blind, said, other))
    assert of.subtract(repeats, t)["auroc"].low > 0.1
    assert of.subtract(of.average(repeats), of.average(t))["auroc"].mean == pytest.approx(0, abs=1e-4)
    surer = {0: softmax(2 * np.log(other), axis=1)}
    assert of.subtract(of.average(surer), of.average(knows))["auroc"].mean == pytest.approx(0, abs=1e-4)
    assert of.subtract(of.average(knows), of.average(t))["auroc"].low > 0


def test_runs_of_the_same_patients_and_weights_stand_beside_the_probe(tmp_path, monkeypatch, capsys):
    """Both commands with the same flags; runs of another option, batch, number of steps or fraction do not count."""
    data = write_phantoms(tmp_path / "d", train_patients=40, val_patients=12, image_size=64)
    shared = [
        "--data", data, "--weights", "phantom", "--trust-weights", "--image-size", 64, "--seeds", 0, "--validations", 1,
    ]  # fmt: skip
    shared = [str(flag) for flag in (*shared, "--results", tmp_path / "runs.jsonl", "--work", tmp_path)]
    pair = ["--arms", "T", "T'", "--classifiers", "compact_vgg"]
    t_vs_tprime.main([*shared, *pair, "--steps", "2"])
    t_vs_tprime.main([*shared, *pair, "--steps", "2", "--strength", "1.5"])
    t_vs_tprime.main([*shared, *pair, "--steps", "1"])
    t_vs_tprime.main([*shared, *pair, "--steps", "2", "--batch-size", "4"])
    kept = []
    monkeypatch.setattr(key_probe, "record", lambda name, figures: kept.append(figures))
    key_probe.main([*shared, "--steps", "2", "--fractions", "0.5", "1"])
    half, whole = kept[0]["fractions"]
    assert half["classifiers"] == {}
    assert set(half["chosen_c"]) == {0}
    assert half["probe"]["auroc"] > 0.6  # the bundled phantom weights know the grade
    found = whole["classifiers"]["compact_vgg"]
    assert found["seeds"] == [0]
    assert found["figures"]["probe"] == whole["probe"]
    difference, low, high = found["differences"]["T' - probe"]["auroc"]
    assert low <= difference <= high
    assert difference == pytest.approx(found["figures"]["T'"]["auroc"] - whole["probe"]["auroc"], abs=2e-4)
    assert "| 100% | compact VGG | 1 |" in capsys.readouterr().out
