"""kecae_bench/stats.py: intervals, tests and numbers of patients against known truth."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn import metrics as sk

from kecae_bench import stats

DIFFICULTY, PATIENT, IMAGE, NOISE = 0.6, 0.6, 0.6, 0.3  # of a knee: mean, SD between patients, knees, runs


def truth(gain, patients_vary, seeds_vary):
    """E[accuracy of the arm] - E[accuracy of T] in :func:`study`, exactly."""
    spread = PATIENT**2 + IMAGE**2 + NOISE**2
    base = norm.cdf(DIFFICULTY / spread**0.5)
    return norm.cdf((DIFFICULTY + gain) / (spread + patients_vary**2 + seeds_vary**2) ** 0.5) - base


def study(rng, seeds, patients, gain, patients_vary, seeds_vary):
    """Arm, base, labels, patients of a simulated study: one or two knees a patient, some easy and some hard for all."""
    of = np.repeat(np.arange(patients), rng.integers(1, 3, patients))
    n = len(of)
    knee = rng.normal(DIFFICULTY, PATIENT, patients)[of] + rng.normal(0, IMAGE, n)
    own = knee + gain + rng.normal(0, patients_vary, patients)[of]
    arm, base = [], []
    for _ in range(seeds):
        right = (
            own + rng.normal(0, seeds_vary) + rng.normal(0, NOISE, n) > 0,
            knee + rng.normal(0, NOISE, n) > 0,
        )
        for scores, r in zip((arm, base), right, strict=True):
            scores.append(np.stack([r, ~r], 1).astype(float))
    return arm, base, np.zeros(n, np.int64), of.astype(str)


def percentiles(arm, base, labels, patients, rng, draws=200):
    """The usual way: seeds and patients drawn together."""
    each = np.array(
        [(a.argmax(1) == labels) * 1.0 - (b.argmax(1) == labels) for a, b in zip(arm, base, strict=True)]
    )
    _, of = np.unique(patients, return_inverse=True)
    count = of.max() + 1
    times = rng.multinomial(count, np.full(count, 1 / count), draws)[:, of]
    seeds = rng.multinomial(len(arm), np.full(len(arm), 1 / len(arm)), draws) / len(arm)
    return np.percentile((seeds * (times @ each.T / times.sum(1, keepdims=True))).sum(1), [2.5, 97.5])


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(stats, "DRAWS", 200)


@pytest.mark.parametrize(("seeds", "seeds_vary"), [(1, 0.0), (3, 0.0), (3, 0.15), (5, 0.15)])
def test_intervals_cover_the_truth(few_draws, seeds, seeds_vary):
    """In about 95 of 100 studies, with two knees of a patient alike, and with seeds that differ or not."""
    rng = np.random.default_rng(seeds)
    wanted, held = truth(0.1, 0.3, seeds_vary), []
    for _ in range(200):
        found = stats.estimate(*study(rng, seeds, 100, 0.1, 0.3, seeds_vary), stats.accuracy)
        held.append(found.low <= wanted <= found.high)
    assert 0.9 <= np.mean(held) <= 0.99  # 0.95 +- 3 standard errors of 200 studies


@pytest.mark.slow
def test_coverage_beside_percentiles(few_draws):
    """Printed by `pytest -m slow -s`: nearer to 95 % than percentiles of joint draws, everywhere."""
    rng, ours, theirs = np.random.default_rng(0), [], []
    for seeds, seeds_vary in itertools.product((2, 3, 5), (0.0, 0.05, 0.15)):
        wanted, held = truth(0.02, 0.3, seeds_vary), []
        for _ in range(400):
            made = study(rng, seeds, 150, 0.02, 0.3, seeds_vary)
            found, (low, high) = stats.estimate(*made, stats.accuracy), percentiles(*made, rng)
            held.append((found.low <= wanted <= found.high, low <= wanted <= high))
        covered = np.mean(held, axis=0)
        ours.append(abs(covered[0] - 0.95))
        theirs.append(abs(covered[1] - 0.95))
        print(
            f"| {seeds} | {100 * seeds_vary * _points_a_unit():.1f} | {covered[0]:.3f} | {covered[1]:.3f} |",
            flush=True,
        )
    assert max(ours) < max(theirs)
    assert np.mean(ours) < np.mean(theirs)


def _points_a_unit():
    """Accuracy, as a fraction, for a unit of gain: how much seeds that differ by 1 differ in accuracy."""
    return (truth(0.01, 0.3, 0.0) - truth(-0.01, 0.3, 0.0)) / 0.02


def test_knees_of_a_patient_count_once(few_draws):
    """A second, identical knee of every patient adds nothing: the interval stays as wide."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80)
    arm, base = ([rng.dirichlet([1, 1], 80)] for _ in range(2))
    names = [str(i) for i in range(80)]
    once = stats.estimate(arm, base, labels, names, stats.accuracy)
    double = ([np.tile(s, (2, 1)) for s in scores] for scores in (arm, base))
    twice = stats.estimate(*double, np.tile(labels, 2), names * 2, stats.accuracy)
    assert twice.error == pytest.approx(once.error, rel=1e-9)
    apart = stats.estimate(
        *([np.tile(s, (2, 1)) for s in scores] for scores in (arm, base)),
        np.tile(labels, 2), [str(i) for i in range(160)], stats.accuracy,
    )  # fmt: skip
    assert apart.error < 0.85 * once.error


def test_seeds_that_contradict_each_other_widen_the_interval(few_draws):
    """Equal means, one pair of seeds alike and one far apart."""
    labels = np.tile([0, 1], 100)
    patients = [str(i // 2) for i in range(200)]
    right = np.eye(2)[labels]
    wrong = right.copy()
    wrong[:40] = 1 - wrong[:40]
    apart = stats.estimate([right, wrong], [wrong, right], labels, patients, stats.accuracy)
    assert apart.mean == 0
    assert apart.seeds_variance > 10 * apart.patients_variance
    assert apart.p == 1


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "precision", "recall", "auroc"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_weights_are_repetitions_and_figures_are_scikit_learns(name, classes, seed):
    """A knee that was drawn twice counts as two knees; with ties among scores."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(40) % classes)
    scores = rng.dirichlet(np.ones(classes), 40).round(1) + 0.01
    times = rng.integers(0, 3, 40)
    times[[np.flatnonzero(labels == c)[0] for c in range(classes)]] = 1  # no grade is missed
    rows = np.repeat(np.arange(40), times)
    found = stats.METRICS[name].drawn(scores, labels, times[None].astype(float))
    assert found[0] == pytest.approx(_scikit(name, scores[rows], labels[rows]))


def _scikit(name, scores, labels):
    said, n = scores.argmax(1), scores.shape[1]
    average = {"average": "binary" if n == 2 else "macro", "zero_division": 0}
    if name == "auroc":
        return np.mean([sk.roc_auc_score(labels == c, scores[:, c]) for c in (range(n) if n > 2 else [1])])
    of = {"accuracy": sk.accuracy_score, "balanced_accuracy": sk.balanced_accuracy_score}
    if name in of:
        return of[name](labels, said)
    return {"precision": sk.precision_score, "recall": sk.recall_score}[name](labels, said, **average)


def test_calibration_error_of_known_cases():
    """Right as often as it is sure: 0; sure and always wrong: 1; fewer is better."""
    sure = np.tile([0.75, 0.25], (400, 1))
    labels = np.tile([0, 0, 0, 1], 100)
    assert stats.ece(sure, labels) == pytest.approx(0, abs=1e-12)
    assert stats.ece(np.tile([1.0, 0.0], (50, 1)), np.ones(50, np.int64)) == 1
    found = stats.estimate(
        [sure], [np.tile([0.95, 0.05], (400, 1))], labels, np.arange(400).astype(str), stats.ece
    )
    assert found.mean == pytest.approx(-0.2)
    assert stats.verdict(found, stats.ece) == "better"


def test_folds_are_measured_apart(few_draws):
    """Two perfect networks whose scores are on other scales: AUROC 1 in each fold, less if they were thrown together."""
    labels = np.tile([0, 1], 40)
    low = np.where(np.arange(80) < 40, 0.0, 0.6)
    scores = low + 0.1 * labels
    both = np.stack([1 - scores, scores], 1)
    flat = np.full((80, 2), 0.5)
    names = np.arange(80).astype(str)
    parts = np.repeat([0, 1], 40)
    assert stats.estimate([both], [flat], labels, names, stats.auroc, parts).mean == pytest.approx(0.5)
    assert stats.estimate([both], [flat], labels, names, stats.auroc).mean < 0.3


def test_what_does_not_pair_is_refused():
    scores, labels = np.full((4, 2), 0.5), np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match="1 and 2 seeds"):
        stats.estimate([scores], [scores, scores], labels, list("abcd"), stats.accuracy)
    with pytest.raises(ValueError, match="same N knees"):
        stats.estimate([scores], [scores[:3]], labels, list("abcd"), stats.accuracy)
    with pytest.raises(ValueError, match="takes two or more"):
        stats.estimate([scores], [scores], labels, list("aaaa"), stats.accuracy)


@settings(max_examples=50, deadline=None)
@given(gained=st.integers(0, 25), lost=st.integers(0, 25), both=st.integers(0, 5))
def test_mcnemar_is_the_sum_of_the_binomial(gained, lost, both):
    """p is the probability, if heads and tails were alike, of a split at least as uneven, counted out."""
    arm = np.array([True] * gained + [False] * lost + [True] * both, dtype=bool)
    base = np.array([False] * gained + [True] * lost + [True] * both, dtype=bool)
    n = gained + lost
    uneven = [k for k in range(n + 1) if abs(2 * k - n) >= abs(gained - lost)]
    wanted = sum(math.comb(n, k) for k in uneven) / 2**n
    found = stats.mcnemar(arm, base)
    assert (found.only_arm, found.only_base) == (gained, lost)
    assert found.p == pytest.approx(wanted)


def test_mcnemar_refuses_other_knees():
    with pytest.raises(ValueError, match="of the same knees"):
        stats.mcnemar(np.array([True]), np.array([True, False]))


def test_vote():
    """Two of three; of a tie the grade that was said with more confidence."""
    a, b, c = np.array([[0.9, 0.1]]), np.array([[0.4, 0.6]]), np.array([[0.45, 0.55]])
    assert stats.take_vote([a, b, c]).tolist() == [1]
    assert stats.take_vote([a, b]).tolist() == [0]
    assert stats.take_vote([b]).tolist() == [1]


def test_holm_of_the_worked_example():
    """Four p in any order; 0.02 is raised to what came before it."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1, 1]
    assert stats.holm([]) == []
    with pytest.raises(ValueError, match="0 to 1"):
        stats.holm([float("nan")])


@settings(max_examples=60, deadline=None)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_bonferroni_test(p):
    """Holm's p is the largest Bonferroni p of all sets of hypotheses with this one, which is what proves it."""
    for i, adjusted in enumerate(stats.holm(p)):
        sets = (
            s for size in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), size) if i in s
        )
        assert adjusted == pytest.approx(max(min(1, len(s) * min(p[j] for j in s)) for s in sets))


def test_patients_needed_are_enough_in_four_of_five_studies(few_draws):
    """From small studies' spread to a number of patients; as many are then simulated, and counted."""
    rng = np.random.default_rng(2)
    real, vary = truth(0.2, 0.3, 0.05), 0.05
    pilots = [stats.estimate(*study(rng, 5, 60, 0.2, 0.3, vary), stats.accuracy) for _ in range(40)]
    needed = [stats.patients_needed(replace(pilot, mean=real)) for pilot in pilots]
    n = int(np.median([many for many in needed if many is not None]))
    told = [stats.estimate(*study(rng, 5, n, 0.2, 0.3, vary), stats.accuracy).low > 0 for _ in range(150)]
    assert 0.68 <= np.mean(told) <= 0.92  # 0.8 +- 3 standard errors, and the pilots' own


@settings(max_examples=60, deadline=None)
@given(
    patients=st.integers(20, 2000),
    spread=st.floats(1e-5, 1e-2),
    size=st.floats(1e-3, 0.2),
    sign=st.sampled_from([-1, 1]),
)
def test_what_is_detectable_needs_the_patients_that_are_there(patients, spread, size, sign):
    """The two numbers agree, and fewer patients are enough for larger differences."""
    found = stats.Difference(sign * size, 0, 0, 1, (size,), patients, spread, 0.0, 0.0, patients - 1)
    at_bar = replace(found, mean=sign * stats.detectable(found))
    assert stats.patients_needed(at_bar) == pytest.approx(patients, abs=1)
    assert stats.patients_needed(replace(at_bar, mean=2 * at_bar.mean)) <= patients / 4 + 1


def test_verdict_follows_the_interval():
    none = "not significant"
    for low, high, said in (
        (0.01, 0.03, "better"),
        (-0.03, -0.01, "worse"),
        (-0.01, 0.03, none),
        (0, 0.02, none),
    ):
        found = stats.Difference(0.01, low, high, 0.01, (0.01,), 340, 1e-4, 0.0, 0.0, 339)
        assert stats.verdict(found, stats.accuracy) == said


def test_points_never_hide_the_side_of_zero():
    assert [stats.format_points(x) for x in (0.0173, -0.0004, 0.00004, 0.0, -1.0)] == [
        "+1.7",
        "-0.04",
        "+0.004",
        "+0.0",
        "-100.0",
    ]
