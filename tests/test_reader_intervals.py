"""Figures of readers: kappas against libraries and textbooks, intervals that hold the truth, and the planned ones."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa

from kecae_training.bootstrap import Bootstrap
from kecae_training.reader_study import plan
from kecae_training.reader_study.command import main
from kecae_training.reader_study.intervals import (
    cohen,
    difference,
    fleiss,
    inter_reader,
    mean_over_readers,
    wilson,
)

grade_tables = st.integers(2, 5).flatmap(
    lambda k: st.integers(2, 4).flatmap(
        lambda r: st.lists(
            st.lists(st.integers(0, k - 1), min_size=r, max_size=r), min_size=3, max_size=25
        ).map(lambda rows: (k, np.array(rows).T))
    )
)


def same(ours, theirs):
    return (np.isnan(ours) and np.isnan(theirs)) or np.isclose(ours, theirs, atol=1e-9)


@pytest.mark.filterwarnings("ignore")  # both libraries warn where a kappa is not defined
@settings(max_examples=30, deadline=None)
@given(grade_tables)
def test_kappas_are_those_of_the_libraries_in_every_draw(table):
    """The intervals' draws, not only the figures: each against scikit-learn and statsmodels on the drawn images."""
    grades, rows = table
    drawn = Bootstrap([str(i) for i in range(rows.shape[1])], seed=1)
    plain, squared = (cohen(rows[0], rows[1], drawn, grades, quadratic=q) for q in (False, True))
    several = fleiss(rows, drawn, grades)
    for draw in (0, 1, 2):  # the figure itself is draw 0
        times = drawn.weights[draw].astype(int)
        a, b = np.repeat(rows[0], times), np.repeat(rows[1], times)
        labels = range(grades)
        if len({*a, *b}) == 1:  # scikit-learn says nan or 1 by version: not defined
            assert np.isnan(plain[draw])
            continue
        assert same(plain[draw], cohen_kappa_score(a, b, labels=labels))
        assert same(squared[draw], cohen_kappa_score(a, b, labels=labels, weights="quadratic"))
        repeated = np.repeat(rows, times, axis=1)
        if len(np.unique(repeated)) > 1:
            counts = np.stack([(repeated == k).sum(0) for k in labels], 1)
            assert same(several[draw], fleiss_kappa(counts))


def test_kappas_of_textbooks():
    """Fleiss, Levin and Paik, Statistical Methods for Rates and Proportions, table 18.1: .676 (two raters, three diagnoses);
    and ten subjects graded by fourteen raters, the example of Fleiss' kappa that encyclopaedias give: .210."""
    cells = np.array([[75, 1, 4], [5, 4, 1], [0, 0, 10]])
    a, b = (np.repeat(index.ravel(), cells.ravel()) for index in np.indices((3, 3)))
    drawn = Bootstrap([str(i) for i in range(100)])
    assert round(cohen(a, b, drawn, 3)[0], 3) == 0.676
    counts = """0 0 0 0 14/0 2 6 4 2/0 0 3 5 6/0 3 9 2 0/2 2 8 1 1/7 7 0 0 0/3 2 6 3 0/2 5 3 2 2/6 5 2 1 0/0 2 2 3 7"""
    rows = [np.repeat(range(5), list(map(int, row.split()))) for row in counts.split("/")]
    assert round(fleiss(np.array(rows).T, Bootstrap(list("abcdefghij")), 5)[0], 3) == 0.210


def test_agreement_has_every_pair_and_a_dash_where_undefined():
    """Three readers are three pairs, their mean is the mean; two who only ever say one grade have no kappa, and no NaN."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2, (3, 40))
    patients = [str(i) for i in range(40)]
    found = inter_reader(rows, ["1", "2", "3"], patients, 2)
    by_hand = [cohen_kappa_score(rows[i], rows[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert [f["mean"] for f in found["cohen"].values()] == pytest.approx(by_hand, abs=1e-4)
    assert found["cohen_mean"]["mean"] == pytest.approx(np.mean(by_hand), abs=1e-4)
    assert found["cohen_mean"]["low"] < found["cohen_mean"]["mean"] < found["cohen_mean"]["high"]
    silent = inter_reader(np.zeros((2, 5), int), ["1", "2"], patients[:5], 2)
    assert silent["cohen_mean"] == silent["fleiss"] == {"mean": None, "low": None, "high": None}
    assert silent["observed"]["mean"] == 1


@given(st.integers(2, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_one_readers_interval_is_wilsons(counts):
    """As scipy has it, all right and all wrong included."""
    right, n = counts
    found = mean_over_readers((np.arange(n) < right)[None])
    wanted = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_one_hundred_right_of_one_hundred_is_no_certainty():
    """Three readers who are never wrong: the interval is that of so many images, not a point."""
    perfect = np.ones((3, 20))
    found = mean_over_readers(perfect)
    assert found.mean == found.high == 1
    assert found.low < 0.9
    apart = difference(perfect, np.ones((3, 20)))
    assert apart.low < -0.1 < 0.1 < apart.high
    assert wilson(0.5, np.inf, 1.96) == (0.5, 0.5)


tables_of_scores = st.integers(1, 4).flatmap(
    lambda r: st.lists(st.lists(st.integers(1, 5), min_size=r, max_size=r), min_size=2, max_size=20).map(
        lambda rows: np.array(rows, float).T
    )
)


@settings(deadline=None)
@given(tables_of_scores)
def test_intervals_hold_their_mean_whatever_the_order(scores):
    """Low, mean and high in order and within the scale; readers and images have no order; units do not matter."""
    found = mean_over_readers(scores, (1, 5))
    assert 1 - 1e-9 <= found.low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= found.high <= 5 + 1e-9
    assert found.mean == pytest.approx(scores.mean())
    turned = mean_over_readers(scores[::-1, ::-1], (1, 5))
    shares = mean_over_readers((scores - 1) / 4)
    for name_ in ("mean", "low", "high"):
        assert getattr(turned, name_) == pytest.approx(getattr(found, name_))
        assert 1 + 4 * getattr(shares, name_) == pytest.approx(getattr(found, name_))


def simulated(readers, reader_sd, studies, seed=0):
    """Right answers (R, 100) of studies, and the accuracy of any reader that they estimate."""
    rng, spread = np.random.default_rng([seed, readers]), reader_sd / stats.norm.pdf(stats.norm.ppf(0.86))
    truth = stats.norm.cdf(stats.norm.ppf(0.86) / (1 + spread**2) ** 0.5)
    made = [
        plan.draw_right(rng, readers, 100, 0.86, rng.normal(0, spread, readers), 0.5) for _ in range(studies)
    ]
    return made, truth


def held(intervals, truth):
    return np.mean([low <= truth <= high for low, high in intervals])


def ends(values):
    found = mean_over_readers(values)
    return found.low, found.high


@pytest.mark.parametrize(("readers", "reader_sd"), [(1, 0.0), (3, 0.0), (3, 0.06), (5, 0.06)])
def test_intervals_hold_the_truth(readers, reader_sd):
    """In 95 of 100 simulated studies or somewhat more, with images hard for all and readers of other skill."""
    made, truth = simulated(readers, reader_sd, 1000)
    assert held(map(ends, made), truth) >= 0.92  # 0.95 - 3 standard errors
    if readers > 1:  # what the parts are for: answers taken for independent promise too much
        assert held((wilson(right.mean(), right.size, 1.96) for right in made), truth) < 0.9


def subtracted(values):
    """The interval as kecae_bench/stats.py makes it: what images explain is taken out of the readers' part."""
    (readers, images), by_reader = values.shape, values.mean(1)
    of_patients = values.mean(0).var(ddof=1) / images
    between = by_reader.var(ddof=1)
    explained = (values - values.mean(0)).var(1, ddof=1).mean() / images * readers / (readers - 1)
    parts = of_patients**2 / (images - 1) + (between / readers) ** 2 / (readers - 1)
    freedom = min((of_patients + between / readers) ** 2 / parts, images - 1) if parts else images - 1
    half = stats.t.ppf(0.975, freedom) * (of_patients + max(0, between - explained) / readers) ** 0.5
    return values.mean() - half, values.mean() + half


@pytest.mark.slow
def test_coverage_beside_the_subtracted_readers_part():
    """What intervals.py says of coverage (`pytest -m slow -s`): 2,000 studies a row."""
    for readers in (2, 3, 5):
        for reader_sd in (0, 0.03, 0.06, 0.1):
            made, truth = simulated(readers, reader_sd, 2000)
            made = [right.astype(float) for right in made]
            ours, theirs = (held(map(of, made), truth) for of in (ends, subtracted))
            print(f"{readers} readers, SD {100 * reader_sd:g} points: {ours:.3f}, subtracted {theirs:.3f}")
            assert ours > theirs
            assert ours >= 0.93 or readers == 2 or reader_sd > 0.06


def test_differences_turn_their_sign_and_hold_the_truth():
    """first - second is second - first with its ends exchanged; in simulated studies intervals hold the truth."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2, (3, 30)), rng.integers(0, 2, (3, 12))
    one, other = difference(first, second), difference(second, first)
    assert one.mean == pytest.approx(first.mean() - second.mean())
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
    with pytest.raises(ValueError, match="3 and 2 readers"):
        difference(first, second[:2])
    found = plan.simulate(plan.Readers(0.86, 0.7, 0.03, 0.95), 60, 3, 20, studies=150, seed=0)
    for name_ in ("one reader", "readers", "one direction", "two arms", "exchanged - real"):
        width, share = found[name_]
        assert share >= 0.9  # 0.95 - 3 standard errors
        assert 0.05 < width < 0.3


def test_planned_kappa_is_reached():
    """The correlation that `plan` chooses gives the asked kappa and accuracy."""
    assumed = plan.Readers(0.86, 0.78, 0.0, 0.9)
    right = plan.draw_right(np.random.default_rng(0), 2, 200_000, 0.86, np.zeros(2), assumed.correlation())
    label = np.arange(200_000) % 2
    grade = np.where(right, label, 1 - label)
    assert right.mean() == pytest.approx(0.86, abs=0.003)
    assert cohen_kappa_score(*grade) == pytest.approx(0.78, abs=0.01)
    assert plan.Readers(0.86, 0.5184, 0.0, 0.9).correlation() == 0


def test_plan_prints_a_table_and_refuses_what_cannot_be(capsys):
    """Twice the pairs narrow the interval; a kappa below that of independent readers is an error with the reason."""
    main(["plan", "-n", "40", "160", "--readers", "2", "--studies", "20"])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    widths = [float(re.search(r"± ([\d.]+)", line[5])[1]) for line in lines]
    assert [line[1].strip() for line in lines] == ["40", "160"]
    assert widths[0] > 1.5 * widths[1]
    for flags, reason in (
        ("--kappa .3", "errors are independent"),
        ("-n 2", "8 or more"),
        ("--accuracy 1", "0.5 to 1"),
    ):
        with pytest.raises(SystemExit, match=reason):
            main(["plan", *flags.split()])


@pytest.mark.slow
def test_the_half_widths_in_the_docs_are_what_plan_prints():
    """docs/reader-study.md: `plan -n 100 200 --readers 1 3 5`, four of its rows and two of its figures."""
    page = (Path(__file__).parents[1] / "docs/reader-study.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\d) \| ± ([\d.]+) \| (?:± )?([\d.]+|-) \|$", page, re.MULTILINE)
    assert len(rows) == 4
    assumed = plan.Readers(0.86, 0.78, 0.03, 0.9)
    for pairs, readers, accuracy, kappa in rows:
        found = plan.simulate(assumed, int(pairs), int(readers), int(pairs) // 5, 1000, 0)
        assert f"{100 * found['readers'][0]:.1f}" == accuracy
        assert kappa == (f"{found['kappa'][0]:.2f}" if int(readers) > 1 else "-")
