"""kecae_bench.report on made-up runs with a known difference: what it pairs, what it says, what it leaves alone."""

import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from kecae_bench import stats
from kecae_bench.report import __main__ as command
from kecae_bench.report import figures, tables
from kecae_bench.report.cells import PairingError, Study
from kecae_bench.stats import METRICS, holm
from kecae_bench.tvt.store import Predictions, Store

EXCHANGE = {"strength": [1.0, 1.0], "detail": "host", "added": 10}
SETTINGS = {"image_size": 128, "steps": 500, "batch_size": 32, "data": {"test": "a"}}
PATIENTS = 60


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Of the bootstrap: its accuracy is tests/test_significance.py's."""
    monkeypatch.setattr(stats, "DRAWS", 60)


class Runs:
    """Runs as kecae_bench.tvt stores them, with right answers as often as is asked."""

    def __init__(self, folder: Path):
        self.store, self.count = Store(folder / "runs.jsonl"), 0
        self.labels = np.tile([0, 1], PATIENTS)
        self.patients = np.repeat([f"9{i:06d}" for i in range(PATIENTS)], 2)

    def add(self, classifier="resnet18", arm="T", right=0.7, seed=0, fold=None, rows=None, **more):
        """``right``: fraction of the knees of a seed that are answered right, the same ones first for every arm."""
        rows = np.arange(2 * PATIENTS) if rows is None else np.asarray(rows)
        labels = self.labels[rows]
        order = np.random.default_rng(seed).permutation(len(rows))
        good = np.zeros(len(rows), bool)
        good[order[: round(right * len(rows))]] = True
        sure = np.where(good, 0.6 + 0.3 * np.random.default_rng(1).random(len(rows)), 0.4)
        scores = np.where(np.eye(2, dtype=bool)[labels], sure[:, None], 1 - sure[:, None]).astype(np.float32)
        files = np.array(
            [f"{labels[i]}/{self.patients[row]}{'LR'[row % 2]}.png" for i, row in enumerate(rows)]
        )
        shuffled = np.random.default_rng(self.count).permutation(len(rows))  # runs need not agree on an order
        arrays = (files, self.patients[rows], labels, scores)
        said = Predictions.of(*(array[shuffled] for array in arrays))
        figures = {k: metric(scores.astype(float), labels) for k, metric in METRICS.items()}
        line = {
            "kind": "run", "id": f"{self.count:012x}", "classifier": classifier, "arm": arm, "seed": seed, "fold": fold,
            "fraction": 1.0, "n_pairs": None, "options": dict(EXCHANGE) if "T'" in arm else {}, "settings": SETTINGS,
            "weights": {"name": "w", "sha256": "ab" * 32} if "T'" in arm or "X" in arm else None,
            "best_step": 500, "run_steps": 500, "validation": figures, "test": figures, "seconds": 60.0,
            "curve": [[step, 0.7 - step / 1000, 0.6 + step / 2000, 0.8] for step in (100, 200, 300)],
            "counts": {"train": {"patients": 1000}}, **more,
        }  # fmt: skip
        self.count += 1
        self.store.add(line, said, said)
        return line

    def pair(self, classifier="resnet18", gain=0.1, seeds=(0, 1, 2), **more):
        for seed in seeds:
            self.add(classifier, "T", 0.7, seed, **more)
            self.add(classifier, "T'", 0.7 + gain, seed, **more)

    def study(self) -> Study:
        return Study(self.store.finished().values(), self.store.predictions())

    def differences(self) -> list[dict]:
        return tables.build(self.study())[1]

    def shown(self) -> list[dict]:
        return tables.select_page(self.differences())


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path)


def names(rows, *columns) -> list[tuple]:
    return [tuple(row[c] for c in columns) for row in rows]


def everything(runs):
    """A study with all that a report shows."""
    runs.pair("resnet18", 0.1)
    runs.pair("vgg11", 0.0)
    runs.pair("tiulpin", -0.1, seeds=(0,))
    plain = SETTINGS | {"augmentation": None}
    for seed in range(2):
        for arm, right in (("T + X^", 0.7), ("T + X' permuted labels", 0.55)):
            runs.add("resnet18", arm, right, seed)
        runs.add("resnet18", "T", 0.65, seed, settings=plain)
        for n in (5000, 50000):
            runs.add("resnet18", "T' from pairs", 0.75, seed, n_pairs=n)
    runs.pair("resnet18", 0.05, fraction=0.1, counts={"train": {"patients": 100}})
    runs.pair("resnet18", 0.02, settings=SETTINGS | {"steps": 5000})


# --- files ------------------------------------------------------------------------------------------------------


def test_report_writes_tables_figures_and_a_page_and_the_same_again(runs, tmp_path):
    everything(runs)
    command.main(["--runs", str(runs.store.path), "--out", str(tmp_path / "new" / "report")])
    out = tmp_path / "new" / "report"
    held = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(held) == {
        "arms.csv", "differences.csv", "report.md", "forest.svg", "few-labels.svg", "length.svg", "pairs.svg",
    }  # fmt: skip
    page = held["report.md"].decode()
    assert "| 1,000 patients, 16,000 images | ResNet-18 | 3 |" in page
    assert "10 % of the labels (100 patients), 16,000 images" in page
    assert all(name in page for name in held if name.endswith(("svg", "csv")))
    for words in ("T' − T, points of AUROC", "T' − T, points of accuracy", "VGG-11 (3)", "N = 50,000"):
        assert any(words in held[name].decode() for name in held if name.endswith("svg"))
    command.main(["--runs", str(runs.store.path), "--out", str(out)])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == held


def test_a_page_is_made_of_the_csv_alone(runs, tmp_path):
    """What is written and read again says the same, with numbers as numbers."""
    everything(runs)
    rows = runs.differences()
    tables.write_csv(rows, tmp_path / "d.csv")
    read = tables.read_csv(tmp_path / "d.csv")
    assert tables.render_results(read) == tables.render_results(rows)
    assert [{k: type(v) for k, v in row.items()} for row in read] == [
        {k: type(v) for k, v in row.items()} for row in rows
    ]
    with pytest.raises(FileNotFoundError, match=r"kecae_bench\.report makes it"):
        tables.read_csv(tmp_path / "none.csv")


def test_nothing_of_the_users_is_overwritten(runs, tmp_path):
    runs.pair(seeds=(0,))
    (tmp_path / "report.md").write_text("mine")
    with pytest.raises(FileExistsError, match="no report; nothing is overwritten"):
        command.report(runs.store.path, tmp_path)
    assert (tmp_path / "report.md").read_text() == "mine"
    assert not (tmp_path / "arms.csv").exists()


def test_no_runs_at_all(tmp_path):
    """A missing file is an error with the way out; an empty one is a report that says so."""
    with pytest.raises(SystemExit, match=r"python -m kecae_bench\.tvt makes it"):
        command.main(["--runs", str(tmp_path / "none.jsonl")])
    (tmp_path / "empty.jsonl").write_text("")
    command.main(["--runs", str(tmp_path / "empty.jsonl"), "--out", str(tmp_path / "out")])
    assert "nothing can be said" in (tmp_path / "out" / "report.md").read_text()


def test_a_later_line_of_a_run_counts_and_a_torn_one_is_passed_over(runs, capsys):
    first = runs.add(arm="T")
    with runs.store.path.open("a") as file:
        file.write(json.dumps({**first, "seconds": 7.0}) + "\n" + json.dumps({"kind": "summary"}) + "\n")
        file.write(json.dumps(first)[:50])
    assert [line["seconds"] for line in runs.store.lines()] == [7.0]
    assert "broken line" in capsys.readouterr().out


# --- figures and words ------------------------------------------------------------------------------------------


def test_known_differences_come_out(runs):
    """+10, 0 and -10 points; the figures are those of the lines; three classifiers have a mean."""
    everything(runs)
    shown = [row for row in runs.shown() if row["fraction"] == 1 and row["images"] == 16_000]
    assert names(shown, "classifier", "seeds", "accuracy") == [
        ("ResNet-18", 3, 0.1), ("VGG-11", 3, 0.0), ("Tiulpin", 1, -0.1), ("mean over 3 of the paper", 1, 0.0),
    ]  # fmt: skip
    assert names(shown[:1], "accuracy_base", "accuracy_arm", "accuracy_by_seed") == [
        (0.7, 0.8, "0.1 0.1 0.1")
    ]
    said = tables.describe_settings(runs.differences())
    assert len(said) == 1  # where a control has been run
    assert re.search(
        r"above T with ResNet-18, not significantly .* VGG-11, below T with Tiulpin; above", said[0]
    )
    text = tables.render_results(runs.differences())
    assert re.search(r"\| ResNet-18 \| 3 \| \S+ \| \S+ \(T \+ X\^\) \| ", text)
    columns = [part.count(" | ") for part in text.splitlines() if part.startswith("| ")]
    assert len(set(columns)) == 1


def test_the_readme_says_when_it_helps(runs, monkeypatch):
    """Better, no significant difference, worse; a case without a row, or with several, is an error."""
    for fraction, gain in ((0.1, 0.1), (0.5, 0.0), (1.0, -0.1)):
        runs.pair("compact_vgg", gain, fraction=fraction)
    cases = tuple(tables.Case(f"case {f}", f, 16_000) for f in (0.1, 0.5, 1.0))
    monkeypatch.setattr(tables, "WHEN", cases)
    verdicts = [line.split(" | ")[1] for line in tables.render_when(runs.differences()).splitlines()[2:]]
    assert verdicts == ["better", "no significant difference", "worse"]
    monkeypatch.setattr(tables, "WHEN", (tables.Case("not there", 0.1, 7),))
    with pytest.raises(ValueError, match="'not there' has 0 rows"):
        tables.render_when(runs.differences())


def test_the_readmes_table_is_short():
    assert len(tables.WHEN) <= 6


def test_mean_over_classifiers_is_of_those_of_the_paper(runs):
    """A fourth classifier that is not in Table II has its row, and no part in the mean."""
    for name in ("resnet18", "vgg11", "tiulpin"):
        runs.pair(name, 0.1)
    runs.pair("compact_vgg", -0.3)
    assert names(runs.shown(), "classifier", "accuracy")[-1] == ("mean over 3 of the paper", 0.1)
    assert len(runs.shown()) == 5


def test_holm_is_over_the_rows_of_the_table(runs):
    for name, gain in (("resnet18", 0.02), ("vgg11", 0.05)):
        runs.pair(name, gain, seeds=(0,))
    wanted = [tables.spell_p(p) for p in holm([row["auroc_p"] for row in runs.shown()])]
    text = tables.render_results(runs.differences())
    assert [line.split(" | ")[8] for line in text.splitlines() if line.startswith("| ")][2:] == wanted


def test_figures_need_something_to_show(runs):
    """A control alone is no curve; one fraction is none either."""
    runs.add(arm="T", fraction=0.1)
    runs.add(arm="T + X^", fraction=0.1)
    assert figures.draw_along(figures._by_fraction(runs.shown()), "fraction", "") is None
    runs.pair(seeds=(0,), fraction=0.1)
    assert figures.draw_along(figures._by_fraction(runs.shown()), "fraction", "") is None
    runs.pair(seeds=(0,), fraction=0.5)
    assert figures.draw_along(figures._by_fraction(runs.shown()), "fraction", "") is not None
    assert figures.draw_pairs(runs.study().cells) is None


# --- what is shown ----------------------------------------------------------------------------------------------


def test_the_page_shows_what_was_run_most_not_what_did_best(runs):
    runs.pair("resnet18", 0.02)
    runs.pair("vgg11", 0.02)
    for seed in range(5):
        runs.add("resnet18", "T", 0.7, seed)
        runs.add("resnet18", "T' gated", 0.95, seed)
        runs.add("resnet18", "T'", 0.95, seed, options={**EXCHANGE, "strength": [1.5, 1.5]})
    assert names(runs.shown(), "classifier", "arm", "options") == [
        ("ResNet-18", "T'", ""),
        ("VGG-11", "T'", ""),
    ]


def test_a_classifier_trained_in_two_ways_stands_once_with_most_seeds(runs):
    """A learning rate or half precision of its own takes it out of no table, and its row says so."""
    usual, own = (
        SETTINGS | {"lr": lr, "precision": kind} for lr, kind in ((3e-4, "float32"), (1e-4, "bfloat16"))
    )
    runs.pair("resnet18", 0.1, range(5), settings=usual | {"lr": 1e-3})
    runs.pair("vgg11", 0.15, seeds=(0,), settings=usual)
    runs.pair("vgg11", -0.1, settings=own)
    for seed in range(3):
        runs.add("vgg11", "T + X^", 0.7, seed, settings=own)
    assert names(runs.shown(), "classifier", "seeds") == [
        ("ResNet-18", 5),
        ("VGG-11 (bfloat16, lr 0.0001)", 3),
    ]
    assert "below the best control with VGG-11 (bfloat16, lr 0.0001)" in tables.render_results(
        runs.differences()
    )


def test_the_best_control_is_the_one_with_the_highest_auroc(runs):
    runs.pair("resnet18", 0.1)
    for seed in range(3):
        for arm, right in (("T + X^", 0.7), ("T + MixUp", 0.8), ("T + further real", 0.75)):
            runs.add("resnet18", arm, right, seed)
    text = tables.render_results(runs.differences())
    assert re.search(r"\| \S+ \(T \+ MixUp\) \|", text)
    assert "not significantly different from the best control with ResNet-18" in text


def test_variants_are_told_apart_by_their_options(runs):
    """What is not the default is named; the recipe's own batch and a third of it are the default."""
    for batch, options in (
        (32, {}), (32, {"strength": [1.5, 1.5]}), (32, {"p": 0.33, "detail": "decoder"}), (8, {"added": 2}),
        (8, {"added": 5}),
    ):  # fmt: skip
        runs.add(arm="T'", settings=SETTINGS | {"batch_size": batch}, options={**EXCHANGE, **options})
    runs.add(arm="T' from pairs", n_pairs=5000)
    assert [(c.options, c.images) for c in runs.study().cells] == [
        ("", 16_000), ("strength 1.5", 16_000), ("detail decoder, p 0.33", 16_000), ("", 4_000), ("added 5", 4_000),
        ("N 5,000", 16_000),
    ]  # fmt: skip


def test_a_gain_is_followed_through_longer_training(runs):
    for name in ("resnet18", "vgg11"):
        runs.pair(name, 0.1)
    runs.pair("vgg11", -0.05, settings=SETTINGS | {"steps": 4000})
    assert names(runs.shown(), "classifier", "images", "accuracy") == [
        ("ResNet-18", 16_000, 0.1), ("VGG-11", 16_000, 0.1), ("VGG-11", 128_000, -0.05),
    ]  # fmt: skip
    assert [row["images"] for row in figures._by_length(runs.shown())] == [16_000, 128_000]


def test_the_papers_protocol_stands_beside_as_many_steps_of_t(runs):
    """Equal epochs of a larger T' are more steps: what T gains by them is not a gain of T'."""
    for seed in range(3):
        runs.add("resnet18", "T", 0.6, seed)
        runs.add("resnet18", "paper", 0.7, seed, n_pairs=5000, run_steps=1801)
        runs.add("resnet18", "T", 0.8, seed, settings=SETTINGS | {"steps": 1800}, run_steps=1800)
    paper = next(c for c in runs.study().cells if c.arm == "paper")
    assert runs.study().rivals_of(paper) == []
    for seed in range(3):
        runs.add("resnet18", "T", 0.75, seed, settings=SETTINGS | {"steps": 1801}, run_steps=1801)
    (rival,) = (study := runs.study()).rivals_of(paper)
    assert study.compare(paper, rival).differences["accuracy"].mean == pytest.approx(-0.05, abs=0.001)


# --- what is compared -------------------------------------------------------------------------------------------


def test_weights_that_know_more_than_t_are_not_mixed_with_those_that_do_not(runs):
    """Weights trained inside a seed's patients are one arm over seeds, beside controls of such weights alone."""
    arms = {"T": 0.6, "T + X' permuted labels": 0.62, "T'": 0.7}
    for seed, (arm, right) in product(range(2), arms.items()):
        hub = {"name": "hub", "sha256": "ab" * 32, "patients_outside_T": 90}
        runs.add("vgg11", arm, right, seed, fraction=0.1, weights=None if arm == "T" else hub)
        if arm == "T'":
            own = {"name": f"seed-{seed}/weights", "sha256": f"{seed}" * 64, "patients_outside_T": 0}
            runs.add("vgg11", arm, 0.55, seed, fraction=0.1, weights=own)
    first, second = runs.shown()
    rows = runs.differences()
    assert (first["accuracy"], names(tables.find_rivals(first, rows), "base")) == (
        0.1,
        [("T + X' permuted labels",)],
    )
    assert (second["accuracy"], tables.find_rivals(second, rows)) == (-0.05, [])
    assert "weights trained on them alone" in second["setting"]


def test_only_equal_settings_are_compared(runs):
    """T of other steps is not the base of a T'; nor is T without augmentation."""
    runs.add(arm="T", settings=SETTINGS | {"steps": 900})
    runs.add(arm="T", settings=SETTINGS | {"augmentation": None})
    runs.add(arm="T'", settings=SETTINGS | {"augmentation": {"flip": 0.0}})
    assert runs.shown() == []
    assert "nothing can be said" in tables.render_results(runs.differences())


def test_augmentation_of_t_is_measured_against_t_without(runs):
    of = {
        name: SETTINGS | {"augmentation": value}
        for name, value in (("with", {"flip": 0.0}), ("without", None))
    }
    cells = [runs.add(arm=arm, settings=of[name]) for arm, name in product(("T", "T + X^"), of)]
    assert len(cells) == 4
    study = runs.study()
    t, bare, x_hat, bare_x_hat = study.cells
    assert study.base_of(x_hat) is t
    assert study.base_of(bare_x_hat) is bare
    assert study.base_of(t) is bare
    assert study.base_of(bare) is None


def test_seeds_that_only_one_arm_has_do_not_count(runs):
    runs.pair(gain=0.1, seeds=(0, 1))
    runs.add(arm="T'", right=1.0, seed=2)
    assert names(runs.shown(), "seeds", "accuracy", "accuracy_arm") == [(2, 0.1, 0.8)]


def test_folds_are_one_test_set(runs):
    """Two folds of 30 patients are 60 patients; a seed that lacks a fold waits."""
    halves = np.arange(PATIENTS), np.arange(PATIENTS, 2 * PATIENTS)
    for seed, fold in ((0, 0), (0, 1), (1, 0)):
        settings = SETTINGS | {"data": {"test": f"fold {fold}"}}
        runs.pair(seeds=(seed,), fold=fold, rows=halves[fold], settings=settings)
    assert names(runs.shown(), "seeds", "folds", "test_patients", "accuracy") == [(1, 2, PATIENTS, 0.1)]


def test_folds_of_one_weights_and_of_another_are_two_things(runs):
    """Cross-fitted weights are one arm; two that each stand beside all folds (--new-patients) are two."""
    halves = np.arange(PATIENTS), np.arange(PATIENTS, 2 * PATIENTS)
    for fold in (0, 1):
        runs.add(arm="T", fold=fold, rows=halves[fold])
        for name in ("a", "b", f"of fold {fold}"):
            weights = {"name": name, "sha256": (name[-1] * 64)}
            runs.add(arm="T'", right=0.8, fold=fold, rows=halves[fold], weights=weights)
    rows = [row for row in runs.differences() if row["arm"] == "T'"]
    assert names(rows, "weights", "folds") == [("a (aaaaaa)", 2), ("b (bbbbbb)", 2), ("", 2)]


def test_patients_that_were_left_out_are_another_setting_and_its_name_says_so(runs):
    runs.pair()
    runs.pair(gain=0.2, settings=SETTINGS | {"known_patients": "left out"})
    assert names(runs.shown(), "setting", "accuracy") == [
        ("1,000 patients, 16,000 images", 0.1), ("1,000 patients, all new to the weights, 16,000 images", 0.2),
    ]  # fmt: skip


def test_unlabelled_hosts_are_compared_with_their_own_control_too(runs):
    own = "T + X' unlabelled hosts, permuted labels"
    for arm in ("T", "T' unlabelled hosts", own, "T + X' permuted labels", "T'"):
        runs.add(arm=arm, fraction=0.1)
    rivals = [row for row in runs.differences() if row["base"] != "T"]
    assert set(names(rivals, "arm", "base")) == {
        ("T' unlabelled hosts", own),
        ("T' unlabelled hosts", "T + X' permuted labels"),
        ("T'", "T + X' permuted labels"),
    }


def test_other_knees_are_a_problem_that_is_named(runs):
    """The rest of the report is still made."""
    runs.pair("vgg11")
    runs.add(arm="T", rows=np.arange(100))
    runs.add(arm="T'", rows=np.arange(20, 120))
    study = runs.study()
    assert names(tables.select_page(tables.build(study)[1]), "classifier") == [("VGG-11",)]
    assert "resnet18" in study.problems[0]
    assert "different knees" in study.problems[0]
    assert "different knees" in command.report(runs.store.path, runs.store.path.parent / "out")[0]


def test_lost_predictions_are_a_problem_that_is_named(runs):
    runs.pair()
    said = runs.store.predictions()
    del said["000000000001"]
    study = Study(runs.store.lines(), said)
    assert tables.select_page(tables.build(study)[1]) == []
    assert "no predictions of 000000000001" in study.problems[0]
    with pytest.raises(PairingError, match="run the study again"):
        study.compare(study.cells[1], study.cells[0])
