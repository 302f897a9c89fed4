"""The phantom: its truth must be what is drawn, and drawn the same everywhere."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from kecae_aug.phantom import (
    KneeKey,
    KneeNuisance,
    KneeTruth,
    PhantomKnees,
    joint_region,
    render,
    sample_truth,
    write_phantoms,
)

seeds = st.integers(0, 2**31 - 1)
grades = st.integers(0, 4)
few = settings(max_examples=15, deadline=None)


def knee(grade: int, seed: int, **nuisance: object) -> KneeTruth:
    t = sample_truth(grade, np.random.default_rng(seed))
    return replace(t, nuisance=replace(t.nuisance, **nuisance))


@few
@given(grades, seeds, st.integers(32, 320))
def test_same_truth_same_pixels_at_any_size(grade, seed, size):
    """Determinism and the contract on dtype, shape and range, also after a trip through JSON."""
    t = knee(grade, seed)
    image = render(t, size)
    assert image.dtype == np.float32
    assert image.shape == (size, size)
    assert image.min() >= 0
    assert image.max() <= 1
    assert image.std() > 0.03  # there is a knee
    assert KneeTruth.from_json(t.to_json()) == t
    np.testing.assert_array_equal(image, render(KneeTruth.from_json(t.to_json()), size))


@few
@given(grades, grades, seeds, st.sampled_from([64, 128]), st.sampled_from(["L", "R"]))
def test_exchanging_the_key_changes_only_the_joint_region(host_grade, donor_grade, seed, size, side):
    """The ground-truth exchange: everything outside the joint is the host's, to the bit."""
    host, donor = knee(host_grade, seed, side=side), knee(donor_grade, seed + 1)
    before, after = render(host, size), render(host.with_key(donor.key), size)
    outside = ~joint_region(host, size)
    assert outside.mean() > 0.3
    np.testing.assert_array_equal(before[outside], after[outside])
    assert np.abs(before - after).max() > 0.02  # and the joint is not


@few
@given(grades, seeds)
def test_two_sizes_show_the_same_anatomy(grade, seed):
    """A size is a sampling: 256 px averaged down is what 128 and 64 px draw (texture: the next test)."""
    t = knee(grade, seed).clean()
    assert_same_at_two_sizes(replace(t, nuisance=replace(t.nuisance, trabeculae=0.0)))


@pytest.mark.xfail(strict=True, reason="texture is cut in frequency, not averaged over the pixel's area")
def test_two_sizes_show_the_same_texture():
    """Known limit: the knee of strongest texture differs by 0.0208, the bound is 0.02."""
    assert_same_at_two_sizes(knee(2, 279).clean())


def assert_same_at_two_sizes(t):
    large = render(t, 256)
    for size in (128, 64):
        k = 256 // size
        small = large.reshape(size, k, size, k).mean((1, 3))
        drawn = render(t, size)
        assert np.corrcoef(small.ravel(), drawn.ravel())[0, 1] > 0.97
        assert np.abs(small - drawn).mean() < 0.02


@few
@given(grades, seeds)
def test_a_right_knee_is_the_mirror_image_and_a_negative_the_negative(grade, seed):
    """Laterality and inversion are the last things done, so data preprocessing can undo them exactly."""
    left = render(knee(grade, seed, side="L"), 64)
    np.testing.assert_array_equal(render(knee(grade, seed, side="R"), 64), left[:, ::-1])
    np.testing.assert_allclose(render(knee(grade, seed, inverted=True), 64), 1 - left, atol=1e-6)


def test_grades_overlap_with_their_neighbours_and_no_further():
    """KL 0 and KL 2 must be mostly separable by the truth, KL 0 and KL 1 only partly, as for readers."""
    rng = np.random.default_rng(0)
    keys = {g: [sample_truth(g, rng).key for _ in range(300)] for g in range(5)}
    narrow = {g: np.array([min(k.medial_jsw, k.lateral_jsw) for k in ks]) for g, ks in keys.items()}
    medians = [float(np.median(narrow[g])) for g in range(5)]
    assert medians == sorted(medians, reverse=True)
    assert narrow[1].max() > np.median(narrow[0])  # overlap
    assert medians[4] < 0.012  # bone near bone
    spurs = {
        g: np.array([max(k.medial_femur, k.lateral_femur, k.medial_tibia, k.lateral_tibia) for k in ks])
        for g, ks in keys.items()
    }
    assert spurs[0].max() == 0
    assert spurs[2].min() > 0  # definite from KL 2 on
    medial = np.mean([k.medial_jsw < k.lateral_jsw for k in keys[3]])
    assert 0.65 < medial < 0.95


def test_dataset_contract():
    """What a training loop reads: tensors in [-1, 1], indices, two knees a patient, all without rendering."""
    d = PhantomKnees(30, grades=(0, 2, 4), image_size=64, seed=3)
    image, label = d[7]
    assert image.shape == (1, 64, 64)
    assert image.dtype == torch.float32
    assert -1 <= float(image.min()) < float(image.max()) <= 1
    assert isinstance(label, int)
    assert label == d.targets[7]
    assert len(d) == 60 == len(d.targets) == len(d.patients) == len(d.sides) == len(d.truths)
    assert d.classes == ["0", "2", "4"]
    assert [d.grades[t] for t in d.targets] == [t.grade for t in d.truths]
    assert d.patients[0] == d.patients[1] != d.patients[2]
    assert d.sides[:2] == ["L", "R"]
    assert min(np.bincount(d.targets, minlength=3)) >= 10  # dealt in blocks: no class is rare
    assert d.truth(-1) == d.truths[-1]
    with pytest.raises(IndexError):
        d[60]


def test_index_is_a_pure_function_of_seed_and_patient():
    """Longer sets begin with shorter ones, first_patient continues them, workers and pickles draw the same."""
    d = PhantomKnees(8, image_size=32, seed=5)
    longer = PhantomKnees(12, image_size=32, seed=5)
    rest = PhantomKnees(4, image_size=32, seed=5, first_patient=8)
    assert longer.truths == d.truths + rest.truths
    assert longer.patients == d.patients + rest.patients
    assert not set(longer.patients) & set(PhantomKnees(12, seed=6).patients)
    images = torch.cat([x for x, _ in DataLoader(pickle.loads(pickle.dumps(d)), batch_size=4, num_workers=2)])
    assert torch.equal(images, torch.stack([x for x, _ in d]))


def test_two_knees_of_a_patient_are_alike():
    """Why every split must be by patient: bone and exposure are shared, more than between patients."""
    ts = PhantomKnees(150, seed=1).truths
    for name in ("bone", "soft_width", "femur_width", "brightness"):
        v = np.array([getattr(t.nuisance, name) for t in ts])
        assert np.corrcoef(v[::2], v[1::2])[0, 1] > 0.6, name
    same = np.mean([a.grade == b.grade for a, b in zip(ts[::2], ts[1::2], strict=True)])
    assert same > 0.7


def test_mirror_right_and_inverted():
    """Options for what data preprocessing would otherwise have to do."""
    plain, mirrored = PhantomKnees(2, image_size=32), PhantomKnees(2, image_size=32, mirror_right=True)
    assert mirrored.sides == plain.sides
    assert torch.equal(mirrored[1][0], plain[1][0].flip(-1))
    assert torch.equal(mirrored[0][0], plain[0][0])
    share = np.mean([t.nuisance.inverted for t in PhantomKnees(200, inverted=0.3).truths])
    assert 0.2 < share < 0.4


def test_folder_tree(tmp_path):
    """The layout of the real set, no patient in both splits, and never a write into a folder in use."""
    root = write_phantoms(tmp_path / "knees", train_patients=3, val_patients=2, image_size=32, seed=2)
    files = {s: sorted((root / s).glob("*/*.png")) for s in ("train", "val")}
    assert [len(f) for f in files.values()] == [6, 4]
    ids = [{f.stem[:-1] for f in files[s]} for s in files]
    assert not ids[0] & ids[1]
    d = PhantomKnees(3, image_size=32, seed=2)
    first = root / "train" / d.classes[d.targets[0]] / f"{d.patients[0]}L.png"
    grey = torch.from_numpy(np.asarray(Image.open(first), dtype=np.float32)) / 127.5 - 1
    assert (grey - d[0][0][0]).abs().max() <= 1 / 255 + 1e-6
    lines = [json.loads(line) for line in (root / "truth-train.jsonl").read_text().splitlines()]
    assert KneeTruth.from_json(json.dumps(lines[0]["truth"])) == d.truth(0)
    with pytest.raises(FileExistsError, match="not empty"):
        write_phantoms(root)
    with pytest.raises(FileExistsError, match="not empty"):
        d.write(root, "val")


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: PhantomKnees(0), "n_patients"),
        (lambda: PhantomKnees(2, grades=(0, 5)), "grades"),
        (lambda: PhantomKnees(2, grades=(2, 2)), "grades"),
        (lambda: PhantomKnees(2, image_size=16), "image_size"),
        (lambda: PhantomKnees(2, seed=-1), "seed"),
        (lambda: PhantomKnees(2, inverted=2), "inverted"),
        (lambda: KneeKey(5, 0.05, 0.05), "grade"),
        (lambda: KneeKey(0, 11.0, 0.05), "medial_jsw"),
        (lambda: KneeNuisance(side="left"), "side"),
        (lambda: KneeNuisance(tilt=float("nan")), "finite"),
        (lambda: sample_truth(7, np.random.default_rng(0)), "grade"),
        (lambda: render(KneeTruth(KneeKey(0, 0.05, 0.05)), 1000), "image_size"),
        (lambda: KneeTruth.from_json("{}"), "from_json"),
    ],
)
def test_errors_name_the_argument(make, word):
    """A mistake is refused where it is made."""
    with pytest.raises(ValueError, match=word):
        make()
