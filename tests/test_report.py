"""benchmarks/report.py on made-up runs with a known difference: what it pairs, what it says, what it leaves alone."""

import json
import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from kecae_bench import paired
from kecae_bench.classifiers import TABLE_2
from kecae_bench.report import __main__ as report
from kecae_bench.report import figures as figures
from kecae_bench.report import section
from kecae_bench.report.answer import answer, missing
from kecae_bench.report.compare import PairingError, compare
from kecae_bench.report.data import base_of, cells, read
from kecae_bench.report.findings import find
from kecae_bench.report.format import p_value
from kecae_bench.report.page import markdown, page
from kecae_bench.stats import holm

ONLINE = "T' online + classical"
EXCHANGE = {"strength": [1.0, 1.0], "detail": "host", "added": 16}
OPENING, CLOSING = section.markers(report.SECTION)
PATIENTS = 60


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Of the bootstrap: its accuracy is tests/test_significance.py's."""
    monkeypatch.setattr(paired, "DRAWS", 60)


class Runs:
    """A folder of runs as benchmarks/study/store.py writes them, with right answers as often as is asked."""

    def __init__(self, folder: Path):
        self.path, self.count = folder / "runs.jsonl", 0
        self.labels = np.tile([0, 1], PATIENTS)
        self.patients = np.repeat([f"9{i:06d}" for i in range(PATIENTS)], 2)

    def add(
        self, classifier="resnet18", arm="T", right=0.7, seed=0, study="main", fold=None, rows=None, **more
    ):
        """``right``: share of the knees of a seed that are answered right, the same ones first for every arm."""
        rows = np.arange(2 * PATIENTS) if rows is None else np.asarray(rows)
        labels = self.labels[rows]
        order = np.random.default_rng(seed).permutation(len(rows))
        good = np.zeros(len(rows), bool)
        good[order[: round(right * len(rows))]] = True
        sure = np.where(good, 0.6 + 0.3 * np.random.default_rng(1).random(len(rows)), 0.4)
        scores = np.where(np.eye(2, dtype=bool)[labels], sure[:, None], 1 - sure[:, None]).astype(np.float32)
        name = f"{self.count:012x}"
        self.count += 1
        files = np.array(
            [f"{labels[i]}/{self.patients[row]}{'LR'[row % 2]}.png" for i, row in enumerate(rows)]
        )
        (self.path.parent / "predictions").mkdir(exist_ok=True)
        shuffled = np.random.default_rng(self.count).permutation(len(rows))  # runs need not agree on an order
        arrays = {"files": files, "patients": self.patients[rows], "labels": labels, "probabilities": scores}
        np.savez_compressed(
            self.path.parent / "predictions" / f"{name}.npz", **{k: v[shuffled] for k, v in arrays.items()}
        )
        figures = {k: metric(scores.astype(float), labels) for k, metric in paired.ALL_METRICS.items()}
        line = {
            "kind": "run", "id": name, "study": study, "classifier": classifier, "arm": arm, "seed": seed, "fold": fold,
            "fraction": 1.0, "n_pairs": None, "options": dict(EXCHANGE) if "T'" in arm else {},
            "settings": {"image_size": 128, "steps": 500, "lr": 1e-3, "data": {"test": f"fold {fold}"}},
            "weights": {"name": "w", "sha256": "ab" * 32} if "T'" in arm or "X" in arm else None,
            "code": "abc1234", "best_step": 500, "validation": figures, "test": figures,
            "curve": [[step, 0.7 - step / 1000, 0.6 + step / 2000, 0.8] for step in (100, 200, 300)],
            "predictions": f"predictions/{name}.npz", "classes": ["0", "2"],
            "counts": {"test": {"images": len(rows), "patients": len(set(self.patients[rows]))}},
            "seconds": 60.0, "date": "2026-11-25", **more,
        }  # fmt: skip
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return line

    def pair(self, classifier="resnet18", gain=0.1, seeds=(0, 1, 2), **more):
        for seed in seeds:
            self.add(classifier, "T + classical", 0.7, seed, **more)
            self.add(classifier, ONLINE, 0.7 + gain, seed, **more)

    def found(self):
        return find(read(self.path), self.path.parent)


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path)


class Page(HTMLParser):
    """Every id, address and text of a page; tags that do not close are an error."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.addresses, self.open, self.texts = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        of = dict(attrs)
        self.ids += [of["id"]] if "id" in of else []
        self.addresses += [of[key] for key in ("src", "href", "xlink:href") if key in of]
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def everything(runs):
    """A study with all that a report shows."""
    runs.pair("resnet18", 0.1)
    runs.pair("vgg11", 0.0)
    runs.pair("tiulpin", -0.1, seeds=(0,))
    for arm, right in (
        ("T", 0.65),
        ("T + X^ + classical", 0.7),
        ("T + shuffled X' + classical", 0.55),
        ("T' online", 0.7),
    ):
        for seed in range(2):
            runs.add("resnet18", arm, right, seed)
    for share in (0.1, 1.0):
        runs.pair("resnet18", 0.05, study="scarcity", fraction=share)
    for n in (None, 5000, 50000):
        arm = "T' offline + classical" if n else "T + classical"
        for seed in range(2):
            runs.add("resnet18", arm, 0.7 if n is None else 0.75, seed, study="sampling", n_pairs=n)
    return runs.found()


def test_page_needs_nothing_else_and_shows_everything(runs):
    """No address but its own sections, ids once, all sections; the same runs give the same page."""
    found = everything(runs)
    text = page(found, "runs.jsonl")
    seen = Page(text)
    assert not found.problems
    assert all(address.startswith("#") for address in seen.addresses)
    assert {address[1:] for address in seen.addresses} <= set(seen.ids)
    assert len(set(seen.ids)) == len(seen.ids)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]+"', "", text)
    drawn = {**figures.COLOURS, **figures.SERIES}.values()
    assert not any(colour in text for colour in drawn)  # all have become the page's
    assert text.count("<svg") == 4
    for words in (
        "Table II.",
        "Other metrics.",
        "T' against controls.",
        "Few labels.",
        "Sampling size.",
        "N 50,000",
        "VGG-11",
    ):
        assert words in "".join(seen.texts)
    assert page(runs.found(), "runs.jsonl") == text


def test_known_differences_come_out(runs):
    """+10, 0 and -10 points: better, not told apart, worse; the figures are those of the lines."""
    found = everything(runs)
    rows = {c.cell.classifier: c for c in found.headline}
    assert {name: round(c.differences["accuracy"].mean, 9) for name, c in rows.items()} == {
        "resnet18": 0.1, "vgg11": 0.0, "tiulpin": -0.1,
    }  # fmt: skip
    text = markdown(found, "runs.jsonl")
    assert re.search(
        r"\| ResNet-18 \| 3 \| 70.0 ± 0.0 \| 80.0 ± 0.0 \| \+10.0 \(.*\| ▲ better \| 83.59 ", text
    )
    assert re.search(
        r"\| VGG-11 .* \+0.0 \(\+0.0 to \+0.0\) \| 1.00 \| 1.00 \(0/0\) \| · not told apart \|", text
    )
    assert re.search(r"\| Tiulpin .* \| -10.0 .* \| ▼ worse \(1 seed\) \|", text)
    assert re.search(r"\| mean over the 3 classifiers \|  \|  \|  \| \+0.0 \(-.*\| · not told apart", text)
    columns = [len(re.findall(r" \||^\|", part)) for part in text.splitlines() if part.startswith("| ")]
    headers = [len(part.split("---")) for part in text.splitlines() if part.startswith("|---")]
    assert set(columns) == set(headers)
    assert "better in 1 of 3 classifiers, worse in 1, not told apart in 1" in text
    assert "not met by these runs" in text
    assert "T' beside its controls: accuracy ahead of T + X^ with ResNet-18" in text
    assert re.search(r"^\| ResNet-18 .*T \+ X\^ .*\| \+10\.0 \(", text, re.M)
    assert "fewer than 5 seeds: ResNet-18 3, VGG-11 3, Tiulpin 1" in text
    assert "DenseNet-201, Antony, Siamese-GAP, SSPE-ViT" in text


def test_mean_over_classifiers_is_of_those_of_the_paper(runs):
    """A fourth classifier that is not in Table II has its row, and no part in the mean."""
    for name in ("resnet18", "vgg11", "tiulpin"):
        runs.pair(name, 0.1)
    runs.pair("compact_vgg", -0.3)
    found = runs.found()
    assert len(found.headline) == 4
    assert found.mean.mean == pytest.approx(0.1)
    assert "Mean over the 3 classifiers of the paper (seeds 0, 1, 2; " in " ".join(answer(found))


def test_holm_is_over_the_classifiers_of_the_table(runs):
    for name in ("resnet18", "vgg11", "tiulpin"):
        runs.pair(name, 0.05, seeds=(0,))
    found = runs.found()
    p = [c.differences["accuracy"].p for c in found.headline]
    assert found.adjusted == pytest.approx([3 * min(p)] * 3)


def test_the_headline_is_what_was_run_most_not_what_did_best(runs):
    runs.pair("resnet18", 0.02)
    runs.pair("vgg11", 0.02)
    for seed in range(5):
        runs.add("resnet18", "T' gate + classical", 0.95, seed)
    assert {c.cell.arm for c in runs.found().headline} == {ONLINE}


def test_a_classifier_trained_in_two_ways_stands_once_with_most_seeds(runs):
    """A learning rate or half precision of its own takes it out of no table, and its row says so."""
    settings = {"image_size": 128, "steps": 500, "data": {"test": "fold None"}}
    usual, own = (
        settings | {"lr": lr, "precision": kind} for lr, kind in ((3e-4, "float32"), (1e-4, "bfloat16"))
    )
    runs.pair("resnet18", 0.1, range(5), settings=usual | {"lr": 1e-3})
    runs.pair("vgg11", 0.15, seeds=(0,), settings=usual)
    runs.pair("vgg11", -0.1, settings=own)
    for seed in range(3):
        runs.add("vgg11", "T + X^ + classical", 0.7, seed, settings=own)
    found = runs.found()
    assert [(c.cell.classifier, c.cell.trained) for c in found.headline] == [
        ("resnet18", ""),
        ("vgg11", "lr 0.0001, precision bfloat16"),
    ]
    said = markdown(found, "runs.jsonl")
    assert "better in 1 of 2 classifiers, worse in 1" in said
    assert "| VGG-11 (lr 0.0001, precision bfloat16) | 3 |" in said
    assert "behind T + X^ with VGG-11 (lr 0.0001, precision bfloat16)" in said


def test_the_papers_claim_is_of_the_papers_classifiers(runs):
    """Another one that loses does not undo it, and one that gains does not fill a gap."""
    for name in TABLE_2[1:]:
        runs.pair(name, 0.05)
    runs.pair("compact_vgg", 0.05)
    assert "not met by these runs" in " ".join(answer(runs.found()))
    runs.pair(TABLE_2[0], 0.05)
    runs.pair("compact_resnet", -0.05)
    found = runs.found()
    assert "met, if no control explains it" in " ".join(answer(found))
    assert re.search(r"\| compact VGG .* \| - \|\n", markdown(found, "runs.jsonl"))


def test_answer_names_the_classifiers_that_a_control_explains(runs):
    for name, right in (("resnet18", 0.7), ("vgg11", 0.8)):
        runs.pair(name, 0.1)
        for seed in range(3):
            runs.add(name, "T + X^ + classical", right, seed)
    said = " ".join(answer(runs.found()))
    assert "accuracy ahead of T + X^ with ResNet-18, not told apart from T + X^ with VGG-11" in said


def test_the_papers_protocol_stands_beside_as_many_steps_of_t(runs):
    """Equal epochs of a larger T' are more steps: what T gains by them is not a gain of T'."""
    settings = {"image_size": 128, "steps": 500, "lr": 1e-3, "data": {"test": "fold None"}}
    for seed in range(3):
        runs.add("resnet18", "T", 0.6, seed, settings=settings)
        runs.add("resnet18", "paper", 0.7, seed, settings=settings, n_pairs=5000, run_steps=1801)
        runs.add("resnet18", "T", 0.8, seed, settings=settings | {"steps": 1800}, run_steps=1800)
    assert not runs.found().controls
    for seed in range(3):
        runs.add("resnet18", "T", 0.75, seed, settings=settings | {"steps": 1801}, run_steps=1801)
    (c,) = runs.found().controls
    assert c.differences["accuracy"].mean == pytest.approx(-0.05, abs=0.001)


def test_few_labels_have_their_controls(runs):
    """A control stands in the table, a picture is of T' alone, and controls alone are no curve."""
    for seed in range(2):
        runs.add("resnet18", "T + classical", 0.6, seed, study="scarcity", fraction=0.1)
        runs.add("resnet18", "T + X^ + classical", 0.65, seed, study="scarcity", fraction=0.1)
    assert figures.scarcity(runs.found()) == ""
    for seed in range(2):
        runs.add("resnet18", ONLINE, 0.7, seed, study="scarcity", fraction=0.1)
    found = runs.found()
    rows = re.findall(
        r"\| ResNet-18 \| 10% \| (T.*?) \| 2 \| [\d.]+ → [\d.]+ \| [^|]+ \| [^|]+ \| (\S+) ",
        markdown(found, "runs.jsonl"),
    )
    assert rows == [("T + X^ + classical", "+5.0"), (ONLINE, "+10.0")]
    assert [(c.base.arm, round(c.differences["accuracy"].mean, 9)) for c in found.controls] == [
        ("T + X^ + classical", 0.05)
    ]
    assert "Label scarcity curve" in figures.scarcity(found)
    assert "T' beside its controls: accuracy ahead of T + X^ with ResNet-18" in answer(found)[-1]


def test_few_labels_are_answered_for_each_share(runs):
    """Every classifier with its difference, corrected over all of them; the mean of three; no share beside another."""
    for name, gain in (("resnet18", 0.1), ("vgg11", 0.1), ("tiulpin", 0.0)):
        runs.pair(name, gain, study="scarcity", fraction=0.1)
    runs.pair("vgg11", -0.1, study="scarcity", fraction=0.5)
    runs.pair("vgg11", 0.3, study="scarcity", fraction=1.0)  # all patients are the main study's
    nothing, tenth, half = answer(runs.found())
    assert "nothing can be said" in nothing
    assert re.search(
        r"With 10% .*ResNet-18 better, \+10.0 points .*; 3 seeds, p .*; VGG-11 better, \+10.0", tenth
    )
    assert re.search(
        r"Tiulpin not told apart, \+0.0 .*; 3 seeds\); mean over them \(seeds 0, 1, 2\) \+6.7", tenth
    )
    assert re.fullmatch(
        r"With 50% .* VGG-11 worse, -10.0 points \(\S+ to \S+; 3 seeds, p .*\)\. No control has been run\.",
        half,
    )
    p = [c.differences["accuracy"].p for c in runs.found().few]
    assert f"p {p_value(min(holm(p)))} after Holm's correction" in tenth


def test_weights_that_know_more_than_t_are_not_mixed_with_those_that_do_not(runs):
    """Weights trained inside a seed's patients are one arm over seeds, answered apart, beside controls of such alone."""
    arms = {"T + classical": 0.6, "T + shuffled X' + classical": 0.62, ONLINE: 0.7}
    for seed, (arm, right) in product(range(2), arms.items()):
        line = {"study": "scarcity", "fraction": 0.1}
        hub = {"name": "hub", "sha256": "ab" * 32, "patients_outside_T": 90}
        runs.add("vgg11", arm, right, seed, **line, weights=None if arm == "T + classical" else hub)
        if arm == ONLINE:
            own = {"name": f"seed-{seed}/weights", "sha256": f"{seed}" * 64, "patients_outside_T": 0}
            runs.add("vgg11", arm, 0.55, seed, **line, weights=own)
    first, second = answer(runs.found())[1:]
    assert re.search(
        r"classical against .*VGG-11 better, \+10\.0 .*; 2 seeds.*ahead of T \+ shuffled X'", first
    )
    assert re.search(
        r"\(weights trained inside T\) .*VGG-11 worse, -5\.0 .*; 2 seeds.*No control has been", second
    )
    rows = re.findall(r"\| 10% \| .*trained inside T\) \| 2 .*\| 0 \|", markdown(runs.found(), "runs.jsonl"))
    assert len(rows) == 1


def test_variants_are_told_apart_by_name(runs):
    """Two strengths of one arm are two rows; only the rarer one is named, and what goes without saying is said once."""
    runs.pair("resnet18", 0.05)
    runs.pair("vgg11", 0.05)
    for seed in range(3):
        runs.add("resnet18", ONLINE, 0.8, seed, options={**EXCHANGE, "strength": [1.5, 1.5]})
    labels = {(c.classifier, c.label) for c in runs.found().cells if c.exchanges}
    assert labels == {
        ("resnet18", ONLINE),
        ("resnet18", f"{ONLINE} (strength 1.5)"),
        ("vgg11", ONLINE),
    }  # fmt: skip
    said = re.search(r"Where an arm's name says nothing else: (.*)\.\n", markdown(runs.found(), "runs.jsonl"))
    assert said is not None
    assert {"strength 1", "detail host", "added a third of the batch"} <= set(said[1].split(", "))


def test_an_option_that_few_runs_have_is_named(runs):
    """Replacing is an option that other runs have not, whatever its value: not the arm of those that add."""
    runs.pair("resnet18", 0.05)
    for seed in range(3):
        runs.add("resnet18", ONLINE, 0.6, seed, options={"strength": [1.0, 1.0], "detail": "host", "p": 0.33})
    assert [c.label for c in runs.found().cells if c.exchanges] == [ONLINE, f"{ONLINE} (p 0.33)"]
    assert "p 0.33," not in markdown(runs.found(), "runs.jsonl").split("says nothing else")[1]


def test_a_smaller_batch_has_a_smaller_third(runs):
    """The classifier's own batch and a third of it go without saying; another batch is named, its third is not."""
    for batch, added in ((32, 10), (8, 2), (8, 5)):
        settings = {"image_size": 128, "steps": 500, "batch_size": batch}
        runs.add(arm=ONLINE, settings=settings, options={**EXCHANGE, "added": added})
    assert [c.label for c in runs.found().cells] == [
        ONLINE, f"{ONLINE} (batch size 8)", f"{ONLINE} (added 5, batch size 8)"
    ]  # fmt: skip


def test_a_gain_is_followed_through_longer_training(runs):
    """Most classifiers were trained briefly here; where one of them was trained longer, the answer says what is left."""
    short, long = ({"image_size": 128, "steps": steps, "batch_size": 8} for steps in (500, 4000))
    for name in ("resnet18", "vgg11"):
        runs.pair(name, 0.1, settings=short)
    runs.pair("vgg11", -0.05, settings=long)
    found = runs.found()
    after = next(text for text in answer(found) if text.startswith("After more real knees"))
    assert answer(found)[0].startswith("After 4,000 real knees, T'")
    assert "VGG-11 after 32,000" in after
    assert "-5.0 (" in after
    assert "ResNet" not in after
    rows = re.findall(r"\| VGG-11 \| ([\d,]+) \| T'", markdown(found, "runs.jsonl"))
    assert rows == ["4,000", "32,000"]
    assert "Length of training curve" in page(found, "runs.jsonl")


def test_other_test_knees_are_named(runs):
    """Cells that were tested on other knees are told apart without their fingerprints in a name."""
    runs.add(arm="T", seed=0)
    runs.add(arm="T", seed=1)
    runs.add(arm="T", settings={"image_size": 128, "steps": 500, "data": {"test": "ef"}}, rows=range(20))
    assert [c.label for c in runs.found().cells] == ["T", "T (data with 20 test knees)"]


def test_only_equal_settings_are_compared(runs):
    """T of other steps is not the base of a T'; that there is none is said, not guessed."""
    runs.add(arm="T + classical", settings={"image_size": 128, "steps": 900})
    runs.add(arm=ONLINE, settings={"image_size": 128, "steps": 500})
    found = runs.found()
    assert not found.headline
    assert "nothing can be said" in answer(found)[0]
    assert "T' beside T: DenseNet-201" in missing(found)[0]
    Page(page(found, "runs.jsonl"))


def test_a_control_without_classical_is_none_of_an_arm_with_it(runs):
    runs.pair()
    runs.add(arm="T + X^", right=0.99)
    runs.add(arm="T", right=0.6)
    found = runs.found()
    assert not found.controls
    by_arm = {c.arm: c for c in found.cells}
    assert base_of(by_arm["T + X^"], found.cells) is by_arm["T"]
    assert base_of(by_arm["T + classical"], found.cells) is by_arm["T"]
    assert base_of(by_arm[ONLINE], found.cells) is by_arm["T + classical"]
    assert base_of(by_arm["T"], found.cells) is None


def test_seeds_that_only_one_arm_has_do_not_count(runs):
    runs.pair(gain=0.1, seeds=(0, 1))
    runs.add(arm=ONLINE, right=1.0, seed=2)
    (c,) = runs.found().headline
    assert c.seeds == (0, 1)
    assert c.differences["accuracy"].mean == pytest.approx(0.1)
    assert c.arm_mean["accuracy"][0] == pytest.approx(0.8)


def test_folds_are_one_test_set(runs):
    """Two folds of 30 patients are 60 patients; a seed that lacks a fold waits."""
    halves = np.arange(PATIENTS), np.arange(PATIENTS, 2 * PATIENTS)
    for seed, fold in ((0, 0), (0, 1), (1, 0)):
        runs.pair(seeds=(seed,), fold=fold, rows=halves[fold])
    (c,) = runs.found().headline
    assert (c.seeds, c.folds) == ((0,), 2)
    assert c.differences["accuracy"].patients == PATIENTS
    assert c.differences["accuracy"].mean == pytest.approx(0.1)


def test_folds_of_one_weights_and_of_another_are_two_things(runs):
    """Cross-fitted weights are one arm; two that each stand beside all folds (--new-patients) are two."""
    halves = np.arange(PATIENTS), np.arange(PATIENTS, 2 * PATIENTS)
    for fold in (0, 1):
        runs.add(arm="T + classical", fold=fold, rows=halves[fold])
        for name in ("a", "b", f"of fold {fold}"):
            weights = {"name": name, "sha256": (name[-1] * 64)}
            runs.add(arm=ONLINE, right=0.8, fold=fold, rows=halves[fold], weights=weights)
    arms = [c for c in runs.found().arms if c.cell.arm == ONLINE]
    assert [(c.cell.variant.get("weights"), c.folds) for c in arms] == [
        ("a (aaaaaa)", 2),
        ("b (bbbbbb)", 2),
        (None, 2),
    ]


def test_patients_that_were_left_out_are_another_study_and_its_name_says_so(runs):
    runs.pair()
    settings = {"image_size": 128, "steps": 500, "lr": 1e-3, "data": {"test": "fold None"}}
    runs.pair(gain=0.2, settings={**settings, "known_patients": "left out"})
    gains = {c.cell.label: c.differences["accuracy"].mean for c in runs.found().arms if c.cell.arm == ONLINE}
    assert gains == {ONLINE: pytest.approx(0.1), f"{ONLINE} (known patients left out)": pytest.approx(0.2)}


def test_unlabelled_hosts_are_compared_with_their_own_control_too(runs):
    arms = ["T", "T' unlabelled", "T + shuffled unlabelled X'", "T + shuffled X'", "T' online"]
    for arm in arms:
        runs.add(arm=f"{arm} + classical", fraction=0.1, study="scarcity")
    pairs = {(c.cell.arm[:13], c.base.arm[:23]) for c in runs.found().controls}
    assert pairs == {
        ("T' unlabelled", "T + shuffled unlabelled"),
        ("T' unlabelled", "T + shuffled X' + class"),
        ("T' online + c", "T + shuffled X' + class"),
    }


def test_other_knees_are_a_problem_that_is_named(runs):
    """The rest of the report is still made."""
    runs.pair("vgg11")
    runs.add(arm="T + classical", rows=np.arange(100))
    runs.add(arm=ONLINE, rows=np.arange(20, 120))
    found = runs.found()
    assert [c.cell.classifier for c in found.headline] == ["vgg11"]
    assert "resnet18" in found.problems[0]
    assert "different knees" in found.problems[0]
    assert "different knees" in page(found, "runs.jsonl")


def test_lost_predictions_are_a_problem_that_is_named(runs):
    runs.pair()
    (runs.path.parent / "predictions" / "000000000001.npz").unlink()
    found = runs.found()
    assert not found.headline
    assert "000000000001.npz: not there" in found.problems[0]
    among = cells(read(runs.path))
    with pytest.raises(PairingError, match="run the study again"):
        compare(among[1], among[0], runs.path.parent)


def test_a_later_line_of_a_run_counts_and_a_torn_one_is_passed_over(runs, capsys):
    first = runs.add(arm="T")
    with runs.path.open("a") as file:
        file.write(
            json.dumps({**first, "seconds": 7.0}) + "\n" + json.dumps({**first, "study": "scarcity"}) + "\n"
        )
        file.write(json.dumps({"kind": "summary"}) + "\n" + json.dumps(first)[:50])
    lines = read(runs.path)
    assert [(line["study"], line["seconds"]) for line in lines] == [("main", 7.0), ("scarcity", 60.0)]
    assert "broken line" in capsys.readouterr().out
    assert "- 1 runs of" in markdown(runs.found(), "runs.jsonl")  # both studies show it, it was run once


def test_report_writes_between_its_markers_only(runs, tmp_path):
    """Text around them stays, twice is as once."""
    runs.pair()
    doc, out = tmp_path / "doc.md", tmp_path / "new" / "page.html"
    doc.write_text(f"# Title\n\nmine\n\n{OPENING}\nOUTDATED\n{CLOSING}\n\nalso mine\n")
    report.report(runs.path, out, doc)
    once, text = doc.read_text(), out.read_text()
    assert once.startswith(f"# Title\n\nmine\n\n{OPENING}\n### Answer")
    assert once.endswith(f"{CLOSING}\n\nalso mine\n")
    assert "OUTDATED" not in once
    report.report(runs.path, out, doc)
    assert (doc.read_text(), out.read_text()) == (once, text)


def test_nothing_of_the_users_is_overwritten(runs, tmp_path):
    runs.pair(seeds=(0,))
    own = tmp_path / "own.html"
    own.write_text("<p>mine</p>")
    with pytest.raises(ValueError, match="no report; nothing is overwritten"):
        report.report(runs.path, own, None)
    assert own.read_text() == "<p>mine</p>"
    doc = tmp_path / "doc.md"
    doc.write_text("no markers")
    with pytest.raises(ValueError, match="--doc none"):
        report.report(runs.path, tmp_path / "page.html", doc)
    assert not (tmp_path / "page.html").exists()


def test_no_runs_at_all(tmp_path, capsys):
    """A missing file is an error with the way out; an empty one is a report of what is missing."""
    with pytest.raises(SystemExit):
        report.main(
            ["--runs", str(tmp_path / "none.jsonl"), "--page", str(tmp_path / "p.html"), "--doc", "none"]
        )
    assert "python benchmarks/t_vs_tprime.py makes it" in capsys.readouterr().err
    (tmp_path / "empty.jsonl").write_text("")
    report.main(
        ["--runs", str(tmp_path / "empty.jsonl"), "--page", str(tmp_path / "p.html"), "--doc", "none"]
    )
    text = (tmp_path / "p.html").read_text()
    Page(text)
    assert "No T&#x27; arm has been run" in text
    assert "label scarcity: 5%, 10%, 25%, 50%, 100%" in text


def test_the_document_of_this_project_has_the_markers():
    text = (report.PROJECT / "docs" / "benchmark.md").read_text()
    assert 0 < text.find(OPENING) < text.find(CLOSING)
