"""Scoring a reader study: Table III's own figures, what is refused, and a reader who reads the pictures of a build."""

import copy
import csv
import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image
from reader_studies import answer1, answer2, answers_to, build_study, write_knees
from sklearn.metrics import cohen_kappa_score

from kecae_training.reader_study import formats, tables
from kecae_training.reader_study.canonical import add_hash
from kecae_training.reader_study.command import main
from kecae_training.reader_study.ratings import load_answers
from kecae_training.reader_study.score import score

STUDY = hashlib.sha256(b"study").hexdigest()
READERS = ("1", "2", "3")


def name(*parts):
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


def a_key(per_label=10, arms=("decoder",), real=0, repeats=0, grades=("0", "2")):
    """``per_label`` exchanged knees of each label and arm, ``real`` of each grade, the first ``repeats`` shown twice."""
    first, second = {}, {}
    for arm in (*arms, "real"):
        for i, label in enumerate(grades):
            for n in range(real if arm == "real" else per_label):
                item, patient = name(1, arm, label, n), f"P{arm}{label}{n}"
                before = None if arm == "real" else grades[i - 1]
                donor, strength = (None, None) if arm == "real" else (f"D{patient}", 100)
                first[item] = {
                    "arm": arm, "label": label, "before": before, "patient": patient, "file": f"{patient}.png",
                    "donor": donor, "strength_percent": strength, "repeat_of": None,
                }  # fmt: skip
                claim = (
                    {"label": grades[i - 1], "before": label}
                    if arm == "real"
                    else {"label": label, "before": before}
                )
                second[name(2, item)] = {"arm": arm, "patient": patient, "phase1": item, **claim}
    for item in list(first)[:repeats]:
        first[name(3, item)] = {**first[item], "repeat_of": item}
    return {
        "format": formats.KEY, "version": formats.VERSION, "study": STUDY, "title": "Knees & <b>",
        "created": "2026-01-31", "seed": 0, "weights": [{"name": "knee-kl02", "sha256": "ab" * 32}], "data": "DIR",
        "allow_seen": False,
        "grades": list(grades), "arms": list(arms), "phase1": first, "phase2": second,
    }  # fmt: skip


def answers_of(
    key, reader, grade=None, realism=None, matches=None, confidence=None, remark="", milliseconds=4000
):
    """A reader's file. ``grade`` and ``realism`` are functions of (item, entry); without them all is as the label says."""
    grade, realism = grade or (lambda i, e: e["label"]), realism or (lambda i, e: 4)
    matches, confidence = matches or (lambda i, e: "yes"), confidence or (lambda i, e: 3)
    at = {"milliseconds": milliseconds, "at": "2026-02-01T10:00:00Z"}
    made = {
        "format": formats.ANSWERS, "version": formats.VERSION, "study": key["study"], "reader": reader, "software": "page",
        "started": "2026-02-01T09:00:00Z", "finished": "2026-02-01T12:00:00Z", "complete": True,
        "order": {"phase1": list(key["phase1"]), "phase2": list(key["phase2"])},
        "phase1": {i: {"grade": grade(i, e), "confidence": confidence(i, e), **at} for i, e in key["phase1"].items()},
        "phase2": {
            i: {"realism": realism(i, e), "matches": matches(i, e), "remark": remark, **at}
            for i, e in key["phase2"].items()
        },
    }  # fmt: skip
    return add_hash(made)


def wrong_in(key, items):
    """Grades as the label says, but for these items, which get the other grade of two."""
    other = dict(zip(key["grades"], key["grades"][::-1], strict=True))
    return lambda i, e: other[e["label"]] if i in items else e["label"]


def with_sum(total, n):
    """``n`` scores of 1 to 5 around 4 with this sum, not all alike."""
    scores = np.full(n, 4)
    scores[: n // 4 * 2] += np.tile([1, -1], n // 4)
    more = total - scores.sum()
    step = np.flatnonzero(scores == 4)[: abs(more)]
    scores[step] += np.sign(more)
    assert scores.sum() == total
    return scores


# Table III: (accuracy of the outputs that should be 0, of those that should be 2), and the same of the realism
TABLE_III = {"1": ((82, 88), (3.9, 4.1)), "2": ((86, 90), (4.0, 4.4)), "3": ((84, 88), (4.1, 4.3))}
# Items that readers get wrong, by label: all three, readers 1 and 3 only, and each alone
SHARED = {"0": {"123": 9, "13": 1, "1": 8, "2": 5, "3": 6}, "2": {"123": 7, "13": 0, "1": 5, "2": 3, "3": 5}}


def table_iii(per_label):
    """Key and answers with Table III's accuracy and realism, of so many outputs of each label."""
    key = a_key(per_label)
    wrong = {reader: set() for reader in READERS}
    for label, groups in SHARED.items():
        items = iter(i for i, e in key["phase1"].items() if e["label"] == label)
        if per_label == 100:
            for who, n in groups.items():
                for item in [next(items) for _ in range(n)]:
                    for reader in who:
                        wrong[reader].add(item)
        else:  # the easiest: each reader's are the first ones
            items = list(items)
            for reader, (accuracy, _) in TABLE_III.items():
                count = per_label - accuracy[key["grades"].index(label)] * per_label // 100
                wrong[reader] |= set(items[:count])
    made = []
    for reader, (_, srs) in TABLE_III.items():
        scores = {}
        for label, mean in zip(key["grades"], srs, strict=True):
            of = [i for i, e in key["phase2"].items() if e["label"] == label]
            scores |= dict(zip(of, with_sum(round(mean * per_label), per_label).tolist(), strict=True))
        made.append(
            answers_of(key, reader, wrong_in(key, wrong[reader]), lambda i, e, scores=scores: scores[i])
        )
    return key, made


@pytest.mark.parametrize("per_label", [100, 50])
def test_table_iii(per_label):
    """The paper's figures come out of answers that have them, to its last digit: per reader, per label, on average."""
    found = score(*table_iii(per_label))
    for reader, (accuracy, srs) in TABLE_III.items():
        got = [found["accuracy"]["exchanged"][p]["readers"][reader]["mean"] for p in ("all", "0", "2")]
        assert got == pytest.approx([sum(accuracy) / 200, accuracy[0] / 100, accuracy[1] / 100])
        got = [found["realism"]["exchanged"][p]["readers"][reader]["mean"] for p in ("all", "0", "2")]
        assert got == pytest.approx([sum(srs) / 2, *srs])
    assert round(100 * found["accuracy"]["exchanged"]["all"]["mean"]["mean"], 2) == 86.33
    assert round(found["realism"]["exchanged"]["all"]["mean"]["mean"], 2) == 4.13
    kappa = found["inter_reader"]["exchanged"]
    if per_label == 100:
        assert round(kappa["cohen_mean"]["mean"], 2) == round(kappa["fleiss"]["mean"], 2) == 0.78
    text = tables.table_3(found).text()
    for cells in (
        "85.0 (82.0 / 88.0)",
        "88.0 (86.0 / 90.0)",
        "86.0 (84.0 / 88.0)",
        "86.33",
        "4.00 (3.90 / 4.10)",
        "4.13",
    ):
        assert cells in text


def test_kappa_of_table_iii_is_not_of_100_images():
    """What docs/reader-study.md says: with 50 outputs of each label no answers give .78; two readers' disagreements are
    wrong + wrong - 2 both wrong, and the sum over the pairs of three readers is even."""
    wrong, kappas = {r: np.array(a) for r, (a, _) in TABLE_III.items()}, []
    wrong = {r: (100 - a) // 2 for r, a in wrong.items()}
    says_2 = {r: (50 - w[1] + w[0]) / 100 for r, w in wrong.items()}
    pairs = [("1", "2"), ("1", "3"), ("2", "3")]
    by_pair = []
    for a, b in pairs:
        chance = says_2[a] * says_2[b] + (1 - says_2[a]) * (1 - says_2[b])
        most = np.minimum(wrong[a], wrong[b]).sum()
        apart = wrong[a].sum() + wrong[b].sum() - 2 * np.arange(most + 1)
        by_pair.append(1 - apart / 100 / (1 - chance))
    kappas = (by_pair[0][:, None, None] + by_pair[1][:, None] + by_pair[2]) / 3
    assert not ((kappas >= 0.775) & (kappas < 0.785)).any()
    assert np.isclose(kappas[kappas < 0.78].max(), 0.773, atol=5e-4)
    assert np.isclose(kappas[kappas > 0.78].min(), 0.786, atol=5e-4)


def saved(folder, *answers):
    paths = []
    for given_ in answers:
        paths.append(folder / f"{given_['reader']}.json")
        paths[-1].write_text(json.dumps(given_), encoding="utf-8")
    return paths


@pytest.fixture
def study(tmp_path):
    """Key file and answers of two readers, with controls, repeats and two arms."""
    key = a_key(6, ("decoder", "host"), real=4, repeats=5)
    rng = np.random.default_rng(0)
    wrong = [{i for i in key["phase1"] if rng.random() < 0.2} for _ in range(2)]
    made = [
        answers_of(
            key, reader, wrong_in(key, wrong[n]), lambda i, e: int(rng.integers(2, 6)),
            lambda i, e: "no" if e["arm"] == "real" else "partly", lambda i, e: int(rng.integers(1, 6)), remark,
        )
        for n, (reader, remark) in enumerate((("ann", "=<script>alert(1)</script>"), ("bob", "")))
    ]  # fmt: skip
    path = tmp_path / "key.json"
    path.write_text(json.dumps(key), encoding="utf-8")
    return key, path, made


def edited(answers):
    changed = copy.deepcopy(answers)
    first = next(iter(changed["phase1"].values()))
    first["grade"] = {"0": "2", "2": "0"}[first["grade"]]
    return changed


def with_changes(answers, **changes):
    return add_hash({**copy.deepcopy(answers), **changes})


def less(answers):
    """One item of phase 2 not answered."""
    rest = dict(list(answers["phase2"].items())[1:])
    return with_changes(answers, phase2=rest, complete=False, finished=None)


REFUSED = {
    "edited": (lambda a, b: (edited(a), b), "ann.json: edited"),
    "foreign": (lambda a, b: (a, with_changes(b, study="0" * 64)), "bob.json: foreign"),
    "incomplete": (lambda a, b: (less(a), b), "incomplete"),
    "said to be complete": (lambda a, b: (with_changes(less(a), complete=True), b), "says it is complete"),
    "the same reader": (
        lambda a, b: (a, with_changes(b, reader="ANN")),
        "duplicate: reader 'ANN'|duplicate: reader 'ann'",
    ),
    "copied": (lambda a, b: (a, with_changes(a, reader="bob")), "the same answers as"),
    "copied, other times": (
        lambda a, b: (a, with_changes(a, reader="bob", phase1=later(a["phase1"]))),
        "the same answers as",
    ),
    "no answers": (lambda a, b: (a, {"reader": "bob"}), "format is"),
}


def later(answers):
    return {item: {**one, "milliseconds": one["milliseconds"] + 7} for item, one in answers.items()}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_the_reason(study, tmp_path, what):
    """No table comes out of such files."""
    _, key, made = study
    change, reason = REFUSED[what]
    folder = tmp_path / "answers"
    folder.mkdir()
    files = saved(folder, *change(*made))
    with pytest.raises(SystemExit, match=reason):
        main(["score", *map(str, files), "--key", str(key)])


def test_partial_is_said_everywhere(study, tmp_path, capsys):
    """Readers who have not finished are taken with --partial, on the images that all answered, and all tables say so."""
    _, path, (ann, bob) = study
    files = saved(tmp_path, less(ann), bob)
    main(["score", *map(str, files), "--key", str(path), "--partial", "--out", str(tmp_path / "out")])
    assert "PARTIAL" in capsys.readouterr().out
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["images"] == {"phase1": {"used": 32, "of": 32}, "phase2": {"used": 31, "of": 32}}
    assert "ann" in scores["partial"]
    assert scores["partial"] in (tmp_path / "out/scores.html").read_text()
    rows = list(csv.DictReader((tmp_path / "out/table3.csv").open()))
    assert all(row["partial"] == "True" for row in rows)


def test_folders_of_answers(study, tmp_path):
    """The server's folder is read as it is; a reader who is still reading is an error, or is left out and named."""
    key, _, (ann, bob) = study
    folder = tmp_path / "served"
    for answers in (ann, bob):
        (folder / answers["reader"]).mkdir(parents=True)
        (folder / answers["reader"] / "answers.json").write_text(json.dumps(answers))
    found, _ = load_answers([folder], key)
    assert [a["reader"] for a in found] == ["ann", "bob"]
    (folder / "cleo").mkdir()
    (folder / "cleo" / "answers.jsonl").write_text("")
    with pytest.raises(ValueError, match="'cleo' has not finished"):
        load_answers([folder], key)
    found, left_out = load_answers([folder], key, partial=True)
    assert len(found) == 2
    assert "cleo" in score(key, found, left_out)["partial"]
    (tmp_path / "empty").mkdir()
    for path, error in ((tmp_path / "none", FileNotFoundError), (tmp_path / "empty", ValueError)):
        with pytest.raises(error):
            load_answers([path], key)


def test_files_of_a_result(study, tmp_path, capsys):
    """JSON, CSV and page hold the same figures; the page needs nothing else, remarks are text; nothing is overwritten."""
    _, path, made = study
    files, out = saved(tmp_path, *made), tmp_path / "out"
    command = ["score", *map(str, files), "--key", str(path), "--out", str(out)]
    main(command)
    printed = capsys.readouterr().out
    assert (out / "table3.txt").read_text().strip() in printed
    for name_ in (
        "Table III. all exchanged knees, 24",
        "Table III, decoder. arm decoder, 12",
        "Table III, host.",
    ):
        assert name_ in printed
    scores = json.loads((out / "scores.json").read_text())
    rows = {(r["kind"], r["reader"]): r for r in csv.DictReader((out / "table3.csv").open())}
    for kind in ("exchanged", "decoder", "host", "real"):
        row, figure = rows[kind, "average"], scores["accuracy"][kind]["all"]["mean"]
        assert [float(row[f"accuracy{e}"]) for e in ("", "_low", "_high")] == [
            figure[e] for e in ("mean", "low", "high")
        ]
        assert float(row["srs_2"]) == scores["realism"][kind]["2"]["mean"]["mean"]
    page = (out / "scores.html").read_text()
    assert "<script" not in page
    assert not re.search(r'(src|href|url\()\s*=?\s*["\']?(https?:)?//', page)
    assert "=&lt;script&gt;alert(1)" in page
    assert page.count("Knees &amp; &lt;b&gt;") == 2
    assert "<b>:" not in page
    long = list(csv.DictReader((out / "answers.csv").open()))
    assert len(long) == sum(len(a[p]) for a in made for p in ("phase1", "phase2"))
    assert not any(value.startswith("=") for row in long for value in row.values())
    assert not any("Pdecoder" in value for row in long for value in row.values())  # patients stay in the key
    with pytest.raises(SystemExit, match="nothing is overwritten"):
        main(command)


def test_control_arms_and_repeats(study):
    """Real knees, arms and second looks are each counted where they belong, and nowhere else."""
    key, _, made = study
    scores = score(key, made)
    assert (
        scores["accuracy"]["exchanged"]["all"]["mean"]["images"] == 24
    )  # not the repeats, not the real ones
    assert scores["accuracy"]["real"]["all"]["mean"]["images"] == 8
    assert scores["accuracy"]["host"]["2"]["mean"]["images"] == 6
    assert scores["matches"]["real"]["yes"]["mean"]["mean"] == 0
    assert scores["matches"]["exchanged"]["partly"]["mean"]["mean"] == 1
    for reader, answers in zip(("ann", "bob"), made, strict=True):
        of = {
            kind: [i for i, e in key["phase1"].items() if e["arm"] == kind and not e["repeat_of"]]
            for kind in ("decoder", "host", "real")
        }
        share = {
            k: np.mean([answers["phase1"][i]["grade"] == key["phase1"][i]["label"] for i in ii])
            for k, ii in of.items()
        }
        for kind, value in share.items():
            assert scores["accuracy"][kind]["all"]["readers"][reader]["mean"] == pytest.approx(
                value, abs=1e-4
            )
        arms = scores["arm_differences"]["decoder - host"]["accuracy"]["readers"][reader]["mean"]
        assert arms == pytest.approx(share["decoder"] - share["host"], abs=1e-4)
        control = scores["exchanged_minus_real"]["accuracy"]["readers"][reader]["mean"]
        assert control == pytest.approx((share["decoder"] + share["host"]) / 2 - share["real"], abs=1e-4)
        looks = [(e["repeat_of"], i) for i, e in key["phase1"].items() if e["repeat_of"]]
        twice = [[answers["phase1"][look[n]]["grade"] for look in looks] for n in (0, 1)]
        found = scores["intra_reader"][reader]
        assert found["images"] == 5
        assert found["observed"]["mean"] == pytest.approx(
            np.mean([a == b for a, b in zip(*twice, strict=True)]), abs=1e-4
        )
        assert found["kappa"]["mean"] == pytest.approx(cohen_kappa_score(*twice), abs=1e-4)
        assert found["between"]["min"] == 31  # 32 images, and the repeats behind them in the same order
        assert np.sum(scores["confusion"]["exchanged"][reader]) == 24
        assert np.trace(scores["confusion"]["exchanged"][reader]) == pytest.approx(
            24 * (share["decoder"] + share["host"]) / 2
        )
        assert sum(level["images"] for level in scores["confidence"][reader]["by_level"].values()) == 32


def test_a_reader_who_looks_at_nothing_shows():
    """Everything 2, sure, fine and as the label says: half right, real knees waved through, realism no better than real."""
    key = a_key(20, real=10)
    scores = score(key, [answers_of(key, "x", lambda i, e: "2", lambda i, e: 5)])
    assert scores["accuracy"]["exchanged"]["all"]["mean"]["mean"] == 0.5
    assert scores["matches"]["real"]["yes"]["mean"]["mean"] == 1
    assert scores["exchanged_minus_real"]["realism"]["mean"]["mean"] == 0
    text = tables.control(scores).text()
    assert "100.0" in text
    assert scores["confidence"]["x"]["auroc"] == 0.5
    assert scores["inter_reader"]["exchanged"] == {}  # one reader: a dash, no kappa
    assert tables.table_3(scores).text()


def test_five_grades():
    """KL 0 to 4: accuracy by label and direction, weighted kappas, confusions of five rows."""
    key = a_key(3, real=2, grades=("0", "1", "2", "3", "4"))
    up = {"0": "1", "1": "2", "2": "3", "3": "4", "4": "4"}
    made = [answers_of(key, "a"), answers_of(key, "b", lambda i, e: up[e["label"]], milliseconds=9)]
    scores = score(key, made)
    by = scores["accuracy"]["exchanged"]
    assert by["4"]["readers"]["b"]["mean"] == by["all"]["readers"]["a"]["mean"] == 1
    assert by["0"]["readers"]["b"]["mean"] == 0
    assert by["to a higher grade"]["mean"]["images"] == 12  # the hosts of label 0 are grade 4
    assert by["to a lower grade"]["mean"]["images"] == 3
    labels = np.repeat(range(5), 3)
    wanted = cohen_kappa_score(labels, np.minimum(labels + 1, 4), weights="quadratic")
    assert scores["inter_reader"]["exchanged"]["cohen_quadratic_mean"]["mean"] == pytest.approx(
        wanted, abs=1e-4
    )
    assert scores["confusion"]["exchanged"]["b"] == [
        [3 * (up[str(i)] == str(j)) for j in range(5)] for i in range(5)
    ]
    assert len(tables.all_tables(scores)) >= 6


def test_a_patient_twice_is_refused():
    """The intervals would be too narrow."""
    key = a_key(3)
    first, second = list(key["phase1"].values())[:2]
    second["patient"] = first["patient"]
    with pytest.raises(ValueError, match="a patient occurs twice"):
        score(key, [answers_of(key, "a")])


def middle(folder, image):
    """Mean grey of the rows that hold the bar, over that of the rest; far below 1 where there is one."""
    pixels = np.asarray(Image.open(folder / image), float)
    return pixels[28:36].mean() / np.delete(pixels, slice(28, 36), 0).mean()


@pytest.mark.parametrize("mistaken", [False, True])
def test_a_reader_who_reads_the_files_of_a_built_study(tmp_path, monkeypatch, mistaken):
    """From pictures to Table III: the key says of every file what is on it. A perfect exchange, and a reader who measures
    the bar, give 100 % and no real knee waved through; one who takes bars for the other grade gives 0 %."""
    data = write_knees(tmp_path / "data", 60)
    build_study(monkeypatch, data, tmp_path / "study", n=20, detail=("decoder", "host"), real=8, repeat=4)
    folder = tmp_path / "study"
    shown = json.loads((folder / "study.json").read_text())
    pairs = re.search(r"{.*}", (folder / "phase2.js").read_text())[0]
    graded, judged = {}, {}
    for entry in shown["phase1"]:
        has_bar = middle(folder, entry["image"]) < 0.5
        graded[entry["item"]] = answer1("2" if has_bar != mistaken else "0")
    for entry in json.loads(pairs)["items"]:
        changed = abs(middle(folder, entry["original"]) - middle(folder, entry["exchanged"])) > 0.4
        judged[entry["item"]] = answer2(matches="yes" if changed else "no")
    answers = answers_to(shown, "robot", phase1=graded, phase2=judged)
    (tmp_path / "robot.json").write_text(json.dumps(answers))
    out = tmp_path / "out"
    main(
        ["score", str(tmp_path / "robot.json"), "--key", str(tmp_path / "study-key.json"), "--out", str(out)]
    )
    scores = json.loads((out / "scores.json").read_text())
    right = 0 if mistaken else 1
    for kind, images in (("exchanged", 20), ("decoder", 10), ("host", 10), ("real", 8)):
        found = scores["accuracy"][kind]["all"]["mean"]
        assert (found["mean"], found["images"]) == (right, images)
    assert scores["accuracy"]["exchanged"]["2"]["mean"]["images"] == 10
    assert scores["matches"]["exchanged"]["yes"]["mean"]["mean"] == 1
    assert scores["matches"]["real"]["yes"]["mean"]["mean"] == 0
    assert scores["intra_reader"]["robot"]["observed"]["mean"] == 1
    assert scores["intra_reader"]["robot"]["images"] == 4
