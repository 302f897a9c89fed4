"""Splits by patient: nobody in two of them, every grade in its share."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kecae_aug.data import PatientOverlapError, RadiographFolder, check_disjoint, split_patients

knees = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30).map(str)), min_size=1, max_size=120)
fractions = st.sampled_from([(0.7, 0.1, 0.2), (0.5, 0.5), (1.0,), (0.25,) * 4])


@settings(deadline=None)
@given(knees, fractions, st.integers(0, 5))
def test_disjoint_complete_and_repeatable(rows, shares, seed):
    """Every row is in one split, every patient too, no split is empty, and the seed repeats it."""
    targets, patients = zip(*rows, strict=True)
    if len(set(patients)) < len(shares):
        with pytest.raises(ValueError, match="every split needs one"):
            split_patients(targets, patients, shares, seed)
        return
    splits = split_patients(targets, patients, shares, seed)
    assert sorted(row for split in splits for row in split) == list(range(len(rows)))
    assert all(splits)
    check_disjoint(**{f"s{i}": [patients[row] for row in split] for i, split in enumerate(splits)})
    assert splits == split_patients(targets, patients, shares, seed)


@settings(deadline=None)
@given(knees, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(rows, generator: random.Random):
    """A list in another order (another file system) gives every patient the same split."""

    def split_of(rows):
        targets, patients = zip(*rows, strict=True)
        splits = split_patients(targets, patients, (0.6, 0.4), 3)
        return {patients[row]: i for i, split in enumerate(splits) for row in split}

    if len({patient for _, patient in rows}) >= 2:
        assert split_of(rows) == split_of(generator.sample(rows, len(rows)))


def test_real_grades_keep_their_shares(knee_data):
    """On the real list, each grade's fraction of each split is within 2 points of 70 / 10 / 20 %."""
    parts = [RadiographFolder(knee_data, split) for split in ("train", "val")]
    targets = np.array([t for part in parts for t in part.targets])
    patients = [p for part in parts for p in part.patients]
    counts = np.bincount(targets)
    for seed in (0, 1):
        splits = split_patients(targets, patients, seed=seed)
        shares = np.array([np.bincount(targets[rows], minlength=5) / counts for rows in splits])
        assert np.abs(shares - np.array([[0.7], [0.1], [0.2]])).max() < 0.02
    assert splits != split_patients(targets, patients, seed=0)


def test_overlap_is_an_error_with_names():
    """A patient in two splits stops everything; the error says in which and how many."""
    check_disjoint(train=["1", "2", "2"], val=["3"], test=[])
    with pytest.raises(PatientOverlapError, match=r"train and test share 2 patients \(2, 7\)"):
        check_disjoint(train=["1", "2", "7"], val=["3"], test=["7", "2", "9"])
    with pytest.raises(PatientOverlapError, match=r"share 1 patients \(9001\)"):
        check_disjoint(train=["9001"], val=[9001])  # numbers from one source, text from another


@pytest.mark.parametrize(
    ("targets", "patients", "shares", "reason"),
    [
        ([0], ["a", "b"], (0.5, 0.5), "one each"),
        ([0, 1], ["a", "b"], (0.7, 0.7), "sum is 1"),
        ([0, 1], ["a", "b"], (1.5, -0.5), "positive"),
        ([0, 1], ["a", "b"], (float("nan"), 1), "sum is 1"),
        ([0, 1], ["a", "a"], (0.5, 0.5), "every split needs one"),
        ([], [], (0.5, 0.5), "every split needs one"),
    ],
)
def test_arguments_out_of_range(targets, patients, shares, reason):
    with pytest.raises(ValueError, match=reason):
        split_patients(targets, patients, shares)
