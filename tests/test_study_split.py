"""T against T': splits by patient, nested fractions, and what is known of whom weights were trained on."""

import argparse
import csv
import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kecae_aug import KECAE, load_weights
from kecae_aug.phantom import write_phantoms
from kecae_aug.weights.io import save_weights
from kecae_bench.tvt.ground import export, open_grounds
from kecae_bench.tvt.knees import Knees
from kecae_bench.tvt.plan import RunSpec
from kecae_bench.tvt.run import Protocol, count_outside, identity
from kecae_bench.tvt.seen import Seen, UnknownPatientsError, by_oracle, by_weights
from kecae_bench.tvt.split import (
    LeakError,
    Split,
    SplitError,
    check_split,
    fixed_split,
    fold_of,
    fraction_of,
    k_fold_split,
    new_patients,
    unseen_split,
)
from kecae_training.discriminator import in_fold


def knees(patients, labels) -> Knees:
    """Two pixels a knee, no two alike."""
    pixels = [[i // 256, i % 256] for i in range(len(labels))]
    images = torch.tensor(pixels, dtype=torch.uint8).view(-1, 1, 1, 2)
    files = tuple(f"train/{label}/{i}.png" for i, label in enumerate(labels))
    return Knees(images, torch.tensor(labels), tuple(patients), files, ("0", "2"))


@st.composite
def any_knees(draw) -> Knees:
    """30 to 80 patients in any order of rows, with one to three knees of either grade; ten at least have each."""
    n = draw(st.integers(30, 80))
    first = [[p % 2] for p in range(20)]
    others = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=3), min_size=n - 20, max_size=n - 20)
    rows = [(f"p{p}", label) for p, labels in enumerate([*first, *draw(others)]) for label in labels]
    rows = draw(st.permutations(rows))
    return knees(*zip(*rows, strict=True))


def patients_of(of: Knees, rows) -> set[str]:
    return {of.patients[row] for row in rows}


@settings(max_examples=25, deadline=None)
@given(of=any_knees(), data=st.data())
def test_no_patient_is_in_two_parts_and_validation_has_been_seen_by_nobody(of, data):
    everybody = sorted(set(of.patients))
    in_test = set(data.draw(st.permutations(everybody))[: len(everybody) // 5])
    rest = [p for p in everybody if p not in in_test]
    halves = data.draw(st.permutations(rest))
    seen = [
        Seen("weights w", frozenset(halves[: len(rest) // 3])),
        Seen("oracle j", frozenset(halves[len(rest) // 3 : len(rest) // 2])),
    ]
    test = [row for row in range(len(of)) if of.patients[row] in in_test]
    try:
        split = fixed_split(of, test, seen)
    except SplitError:  # a part with too few of a grade is named, not returned
        return
    parts = [patients_of(of, rows) for rows in (split.train, split.validation, split.test)]
    assert sum(map(len, parts)) == len(everybody) == len(set.union(*parts))
    assert sorted((*split.train, *split.validation, *split.test)) == list(range(len(of)))
    assert set(split.test) == set(test)
    assert not parts[1] & (seen[0].patients | seen[1].patients)
    assert len(parts[1]) <= 0.3 * len(rest)


@settings(max_examples=25, deadline=None)
@given(of=any_knees(), data=st.data())
def test_all_whom_nobody_has_seen_are_tested_but_the_validation_patients(of, data):
    everybody = data.draw(st.permutations(sorted(set(of.patients))))
    in_test, known = set(everybody[:5]), frozenset(everybody[5 : 5 + len(everybody) // 2])
    test = [row for row in range(len(of)) if of.patients[row] in in_test]
    seen = [Seen("weights w", known)]
    try:
        split, fixed = unseen_split(of, test, seen), fixed_split(of, test, seen)
    except SplitError:
        return
    assert patients_of(of, split.train) == known
    assert split.validation == fixed.validation
    assert set(split.test) >= set(test)
    parts = (*split.train, *split.validation, *split.test)
    assert sorted(parts) == list(range(len(of)))


@settings(max_examples=25, deadline=None)
@given(of=any_knees(), data=st.data())
def test_new_patients_are_all_whom_nobody_knows_and_keep_their_test_set(of, data):
    everybody = data.draw(st.permutations(sorted(set(of.patients))))
    in_test = set(everybody[:5])
    seen = [Seen("weights w", frozenset(everybody[3:20])), Seen("oracle j", frozenset(everybody[15:25]))]
    test = [row for row in range(len(of)) if of.patients[row] in in_test]
    found, tested = new_patients(of, test, seen)
    assert set(found.files) == {
        f for f, p in zip(of.files, of.patients, strict=True) if p not in everybody[3:25]
    }
    assert patients_of(found, tested) == set(everybody[:3])
    with pytest.raises(SplitError, match="--new-patients: it is not known"):
        new_patients(of, test, [Seen("weights w", None)])


def test_unknown_weights_and_folds_have_no_unseen_test_set(phantoms, tmp_path):
    of = knees([f"p{i}" for i in range(40)], [i % 2 for i in range(40)])
    with pytest.raises(SplitError, match="whom the weights were trained on; leave it out"):
        unseen_split(of, [], [Seen("weights w", None)])
    known = weights(tmp_path / "w", images=len(ids(phantoms, "train")), split="train")
    with pytest.raises(ValueError, match="--test-unseen and --folds"):
        open_grounds(arguments(phantoms, known, known, test_unseen=True), 2, progress=False)


@settings(max_examples=15, deadline=None)
@given(of=any_knees(), folds=st.integers(2, 5))
def test_every_knee_is_tested_in_one_fold_with_all_of_its_patient(of, folds):
    tested = [fold_of(of, fold, folds) for fold in range(folds)]
    assert Counter(row for rows in tested for row in rows) == Counter(range(len(of)))
    assert sum(len(patients_of(of, rows)) for rows in tested) == len(set(of.patients))
    try:
        split = k_fold_split(of, 1, folds, [])
    except SplitError:
        return
    assert list(split.test) == tested[1]
    assert split.fold == 1


@settings(max_examples=25, deadline=None)
@given(of=any_knees(), seed=st.integers(0, 3))
def test_fractions_are_nested_and_stratified(of, seed):
    """The 5 % are in the 10 %, ...; whole patients; the fraction of each grade stays."""
    rows = list(range(0, len(of)))
    chosen = {}
    for fraction in (0.05, 0.1, 0.25, 0.5, 1.0):
        try:
            chosen[fraction] = set(fraction_of(of, rows, fraction, seed))
        except SplitError:
            continue
    grades_of = {p: tuple(sorted({of.targets[r] for r in rows if of.patients[r] == p})) for p in of.patients}
    whole = Counter(grades_of.values())
    for smaller, larger in zip(list(chosen)[:-1], list(chosen)[1:], strict=True):
        assert chosen[smaller] <= chosen[larger]
    for fraction, found in chosen.items():
        patients = patients_of(of, found)
        assert found == {row for row in rows if of.patients[row] in patients}
        assert len(patients) == math.ceil(round(fraction * len(grades_of), 6))
        found_of = Counter(grades_of[p] for p in patients)
        assert all(abs(found_of[s] - fraction * whole[s]) <= 1.51 for s in whole)
    assert chosen[1.0] == set(rows)


def test_fractions_differ_by_seed_and_hold_the_same_whatever_the_order_of_rows():
    of = knees([f"p{i // 2}" for i in range(80)], [i // 2 % 2 for i in range(80)])
    rows = list(range(80))
    assert fraction_of(of, rows, 0.25, 0) != fraction_of(of, rows, 0.25, 1)
    assert sorted(fraction_of(of, rows[::-1], 0.25, 0)) == fraction_of(of, rows, 0.25, 0)


@pytest.mark.parametrize("who", ["weights w", "oracle j"])
@pytest.mark.parametrize("part", ["test", "validation"])
def test_who_has_seen_a_held_out_patient_is_refused_by_name(who, part):
    of = knees([f"p{i}" for i in range(40)], [i % 2 for i in range(40)])
    split = fixed_split(of, range(30, 40), [])
    told = of.patients[getattr(split, part)[0]]
    with pytest.raises(LeakError, match=rf"{who}: trained on 1 patients \({told}\) of the {part} set"):
        check_split(of, split, [Seen(who, frozenset({told, "somebody else"}))])


def test_shared_patients_and_shared_images_are_refused():
    of = knees(["a", *[f"p{i}" for i in range(38)], "a"], [i % 2 for i in range(40)])
    with pytest.raises(LeakError, match=r"train and test share 1 patients \(a\)"):
        check_split(of, Split(tuple(range(20)), tuple(range(20, 30)), tuple(range(30, 40))), [])
    twin = knees([f"p{i}" for i in range(40)], [i % 2 for i in range(40)])
    twin.images[39] = twin.images[0]
    with pytest.raises(
        LeakError, match=r"train/0/0\.png \(train\) and train/1/39\.png \(test\) are the same"
    ):
        check_split(twin, Split(tuple(range(20)), tuple(range(20, 30)), tuple(range(30, 40))), [])


def test_nobody_left_for_validation_says_what_to_do():
    of = knees([f"p{i}" for i in range(40)], [i % 2 for i in range(40)])
    with pytest.raises(SplitError, match="0 of the training patients have been seen by neither"):
        fixed_split(of, range(30, 40), [Seen("weights w", frozenset(of.patients[:30]))])
    with pytest.raises(SplitError, match="no test split"):
        fixed_split(of, [], [])
    with pytest.raises(SplitError, match="1 patients with grade 2"):
        fraction_of(of, [0, 1, 2, 4], 1.0, 0)


# --- provenance -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return write_phantoms(
        tmp_path_factory.mktemp("d") / "d", train_patients=40, val_patients=8, image_size=64
    )


def weights(folder: Path, **data) -> Path:
    """Untrained weights that say they were trained on ``data``."""
    model = KECAE.from_preset("tiny", image_size=64, width=4, latent_channels=8)
    preprocessing = {"image_size": 64, "mirror_right": True}
    save_weights(model, folder, metadata={"preprocessing": preprocessing, "data": data})
    return folder


def ids(folder: Path, split: str = "train") -> list[str]:
    return [path.stem[:-1] for path in sorted((folder / split).rglob("*.png"))]


def test_half_of_a_folder_is_found_again_and_a_wrong_number_is_not(phantoms, tmp_path):
    half = [p for p in ids(phantoms) if in_fold(p, 0, 2)]
    facts = {"split": "train", "folds": 2, "fold": 0}
    known = weights(tmp_path / "known", images=len(half), **facts)
    assert by_weights(load_weights(known), str(known), [phantoms]).patients == set(half)
    other = weights(tmp_path / "other", images=len(half) + 1, **facts)
    with pytest.raises(UnknownPatientsError, match=r"--weights-data.*--trust-weights"):
        by_weights(load_weights(other), str(other), [phantoms])
    assert by_weights(load_weights(other), str(other), [phantoms], trust=True).patients is None


def test_files_that_the_run_lists_count_first(phantoms, tmp_path):
    """RUN/data.json names every training file; with weights of another run, or other files, it says nothing."""
    place = weights(tmp_path / "run" / "weights", images=2, fingerprint="f", split="elsewhere")
    listed = {"fingerprint": "f", "files": {"train/0/9000001L.png": "", "train/2/9000002R.png": ""}}
    (tmp_path / "run" / "data.json").write_text(json.dumps(listed))
    assert by_weights(load_weights(place), str(place), [phantoms]).patients == {"9000001", "9000002"}
    (tmp_path / "run" / "data.json").write_text(json.dumps({**listed, "patients": ["a", "b"]}))
    assert by_weights(load_weights(place), str(place), [phantoms]).patients == {"a", "b"}
    (tmp_path / "run" / "data.json").write_text(json.dumps({**listed, "fingerprint": "g"}))
    with pytest.raises(UnknownPatientsError):
        by_weights(load_weights(place), str(place), [phantoms])


def test_weights_that_began_with_others_are_unknown(phantoms, tmp_path):
    place = weights(tmp_path / "w", images=len(ids(phantoms)), split="train")
    model = load_weights(place)
    assert by_weights(model, str(place), [phantoms]).patients == set(ids(phantoms))
    model.metadata["training"] = {"init": "runs/other"}
    with pytest.raises(UnknownPatientsError):
        by_weights(model, str(place), [phantoms])


def test_oracle_tells_whom_it_has_seen():
    assert by_oracle(SimpleNamespace(metadata={"patients": ["a", "b"]}), "j").patients == {"a", "b"}


def listed(table: Path) -> list[str]:
    """Patients of a table, an image a row."""
    with table.open(newline="") as file:
        return [line["patient"] for line in csv.DictReader(file)]


def arguments(data: Path, *weights: Path, **given) -> argparse.Namespace:
    values = {
        "data": data, "weights": list(map(str, weights)), "weights_data": [], "trust_weights": False, "oracles": [],
        "image_size": 64, "validation_fraction": 0.15, "test_unseen": False, "new_patients": False,
        "no_mirror": False,
    }  # fmt: skip
    return argparse.Namespace(**{**values, **given})


def test_weights_that_know_the_test_patients_stop_the_study(phantoms, tmp_path):
    leaky = weights(tmp_path / "w", images=len(ids(phantoms, "val")), split="val")
    with pytest.raises(LeakError, match=r"trained on 8 patients .* of the test set"):
        open_grounds(arguments(phantoms, leaky), None, progress=False)


def test_folds_are_written_trained_on_and_clean(phantoms, tmp_path):
    """The way of cross-validation: export, train inside each fold, and the split keeps its validation patients."""
    base = weights(tmp_path / "base", images=0, split="none")
    places = export(arguments(phantoms, base), 2, [1.0], [0], tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"fold-0\.csv is there"):
        export(arguments(phantoms, base), 2, [1.0], [0], tmp_path / "out")
    trained = [
        weights(tmp_path / f"w{i}", images=len(listed(place)), split="train")
        for i, place in enumerate(places)
    ]
    grounds = open_grounds(arguments(phantoms, *trained, weights_data=places), 2, progress=False)
    for fold, place in enumerate(places):
        ground = grounds[fold]
        assert ground.seen.patients == set(listed(place))
        assert patients_of(ground.knees, ground.split.train) == set(listed(place))
    assert len(ground.knees) == 96  # train and val together
    # weights of the other fold know this fold's test patients
    with pytest.raises(LeakError, match="of the test set"):
        open_grounds(arguments(phantoms, *trained[::-1], weights_data=places[::-1]), 2, progress=False)


def test_weights_can_be_trained_inside_a_share_of_the_patients(phantoms, tmp_path):
    """So that a gain at scarce labels is one of scarce labels: the run's T has all patients that the weights know."""
    base = weights(tmp_path / "base", images=0, split="none")
    half, whole = export(arguments(phantoms, base), None, [0.5, 1.0], [3], tmp_path / "out")
    assert (half.name, whole.name) == ("fixed-0.5-seed-3.csv", "fixed.csv")
    assert set(listed(half)) < set(listed(whole))
    trained = weights(tmp_path / "w", images=len(listed(half)), split="train")
    ground = open_grounds(arguments(phantoms, trained, weights_data=[half]), None, progress=False)[None]
    assert patients_of(ground.knees, ground.split.train) == set(listed(whole))
    of = {f: ground.knees.select(fraction_of(ground.knees, ground.split.train, f, 3)) for f in (0.25, 0.5)}
    assert count_outside(ground, of[0.5]) == {"patients": len(set(listed(half))), "patients_outside_T": 0}
    assert count_outside(ground, of[0.25])["patients_outside_T"] > 0


def test_weights_trained_inside_a_share_keep_t_and_the_test_of_those_whose_patients_t_are(phantoms, tmp_path):
    """With --test-unseen W: both weights are run beside the same T, and other weights may not know whom it tests."""
    half = [p for p in ids(phantoms) if in_fold(p, 0, 2)]
    hub = weights(tmp_path / "hub", images=len(half), split="train", folds=2, fold=0)
    args = {"test_unseen": str(hub)}
    (place,) = export(arguments(phantoms, hub, **args), None, [0.5], [0], tmp_path / "out")
    own = weights(tmp_path / "own", images=len(listed(place)), split="train")
    first = open_grounds(arguments(phantoms, hub, test_unseen=True), None, progress=False)[None]
    second = open_grounds(arguments(phantoms, own, weights_data=[place], **args), None, progress=False)[None]
    assert first.split == second.split
    fraction = second.knees.select(fraction_of(second.knees, second.split.train, 0.5, 0))
    assert count_outside(second, fraction) == {"patients": len(set(listed(place))), "patients_outside_T": 0}
    assert count_outside(first, fraction)["patients_outside_T"] > 0


def test_new_patients_have_one_weights_folder_for_all_folds_and_their_runs_say_so(phantoms, tmp_path):
    half = [p for p in ids(phantoms) if in_fold(p, 0, 2)]
    hub = weights(tmp_path / "hub", images=len(half), split="train", folds=2, fold=0)
    args = arguments(phantoms, hub, new_patients=True, validation_fraction=0.3)
    for folds in (None, 2):
        grounds = open_grounds(args, folds, progress=False)
        tested = [patients_of(ground.knees, ground.split.test) for ground in grounds.values()]
        new = {*ids(phantoms), *ids(phantoms, "val")} - set(half)
        assert set.union(*tested) == (new if folds else set(ids(phantoms, "val")))
        for fold, ground in grounds.items():
            assert set(ground.knees.patients) == new
            spec = RunSpec("resnet18", "T", 0, fold)
            assert identity(spec, ground, Protocol(1))["settings"]["known_patients"] == "left out"
            training = ground.knees.select(ground.split.train)
            assert count_outside(ground, training) == dict.fromkeys(
                ("patients", "patients_outside_T"), len(set(half))
            )
    nowhere = tmp_path / "not read"  # flags that contradict each other are refused before an image is read
    with pytest.raises(ValueError, match="--test-unseen and --new-patients"):
        open_grounds(arguments(nowhere, hub, new_patients=True, test_unseen=True), None, progress=False)
    with pytest.raises(ValueError, match="--test-unseen and --folds"):
        open_grounds(arguments(nowhere, hub, test_unseen=True), 2, progress=False)
    with pytest.raises(ValueError, match="leave --new-patients out"):
        export(args, 2, [1.0], [0], tmp_path / "out")


def test_a_table_of_files_with_any_names_is_the_same_study(phantoms, tmp_path):
    """Knees, parts and what is exported do not depend on whether a folder or a table says which knee is whose."""
    lines = []
    for i, path in enumerate(sorted(phantoms.rglob("*.png"))):
        (tmp_path / f"scan {i:03}.png").symlink_to(path)
        split, label, name = *path.parts[-3:-1], path.stem
        lines.append([f"scan {i:03}.png", label, name[:-1], name[-1], split])
    table = tmp_path / "mine.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "patient", "side", "split"], *lines])
    base = weights(tmp_path / "base", images=len(ids(phantoms, "val")), split="elsewhere")
    of = [
        open_grounds(arguments(data, base, trust_weights=True), folds, progress=False)
        for data in (phantoms, table)
        for folds in (None, 2)
    ]
    for folder, by_table in zip(of[:2], of[2:], strict=True):
        assert [g.split for g in folder.values()] == [g.split for g in by_table.values()]
        assert [g.fingerprints for g in folder.values()] == [g.fingerprints for g in by_table.values()]
    places = [
        export(arguments(data, base), None, [1.0], [0], tmp_path / name)[0]
        for name, data in (("a", phantoms), ("b", table))
    ]
    assert listed(places[0]) == listed(places[1])


def test_sides_that_are_not_known_are_no_obstacle_with_no_mirror(phantoms, tmp_path):
    lines = [[path, path.parent.name, path.stem[:-1]] for path in sorted((phantoms / "train").rglob("*.png"))]
    table = tmp_path / "mine.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "patient"], *lines])
    base = weights(tmp_path / "base", images=0, split="elsewhere")
    with pytest.raises(ValueError, match="--no-mirror"):
        open_grounds(arguments(table, base, trust_weights=True), 2, progress=False)
    args = arguments(table, base, trust_weights=True, no_mirror=True)
    assert len(open_grounds(args, 2, progress=False)[0].knees) == len(lines)


def test_one_weights_folder_a_fold_or_one_for_all(phantoms, tmp_path):
    place = weights(tmp_path / "w", images=0, split="none")
    with pytest.raises(ValueError, match="2 given for 3 test sets"):
        open_grounds(arguments(phantoms, place, place), 3, progress=False)
