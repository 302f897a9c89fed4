"""Splits by patient: the two knees of a person are alike, so they are never divided."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from kecae_aug.names import patient_id, patient_ids, warn_of_zeros


class PatientOverlapError(ValueError):
    """A patient stands in two splits."""


def split_patients(
    targets: Sequence[int],
    patients: Sequence[str],
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> tuple[list[int], ...]:
    """Rows of each split: grouped by patient, stratified by grade (Section IV-A: 70 / 10 / 20 %).

    Patients in a random order, those with the rarest grades first, each go to the split that lacks most of
    what they bring. The same patients, targets and seed give the same split, in whatever order the rows come.

    Args:
        targets: class index of every image.
        patients: patient id of every image.
        fractions: fraction of each split, with the sum 1.
        seed: of the order.

    Returns:
        For each fraction the rows of its images, sorted; none is empty. ``dataset.subset(rows)`` opens them.

    Raises:
        ValueError: lengths that differ, fractions that do not sum to 1, no images, fewer patients
            than splits.
    """
    if len(targets) != len(patients):
        raise ValueError(f"targets: {len(targets)} values for {len(patients)} patients, accepted is one each")
    shares = np.asarray(fractions, dtype=float)
    if len(shares) < 1 or not (shares > 0).all() or not abs(shares.sum() - 1) <= 1e-6:
        raise ValueError(f"fractions={tuple(fractions)}: accepted are positive numbers whose sum is 1")
    ids = patient_ids(_to_list(patients))
    if None in ids:
        raise ValueError(
            f"patients: {ids.count(None)} of {len(ids)} are missing, so that a person's knees could be divided; give "
            "every row's"
        )
    rows_of: dict[str, list[int]] = {}
    for row, patient in enumerate(ids):
        rows_of.setdefault(str(patient), []).append(row)
    if len(rows_of) < len(shares):
        raise ValueError(f"patients: {len(rows_of)} of them for {len(shares)} splits; every split needs one")
    labels = np.asarray(targets)
    grades, inverse = np.unique(labels, return_inverse=True)
    counts = np.bincount(inverse, minlength=len(grades))
    order = sorted(rows_of)
    np.random.default_rng(seed).shuffle(order)
    order.sort(key=lambda p: min(counts[inverse[row]] for row in rows_of[p]))  # stable: random among equals
    lacking = shares[:, None] * counts[None, :]
    splits: list[list[int]] = [[] for _ in shares]
    for position, patient in enumerate(order):
        brings = np.bincount(inverse[rows_of[patient]], minlength=len(grades))
        gain = (lacking * brings / (shares[:, None] * counts)).sum(1)
        empty = [s for s, rows in enumerate(splits) if not rows]
        if len(empty) >= len(order) - position:  # as many patients left as splits without one
            gain[[s for s in range(len(shares)) if s not in empty]] = -np.inf
        best = int(gain.argmax())
        splits[best] += rows_of[patient]
        lacking[best] -= brings
    return tuple(sorted(rows) for rows in splits)


def _to_list(ids: Any) -> list[Any]:
    return list(ids.tolist() if hasattr(ids, "tolist") else ids)


def check_disjoint(**splits: Iterable[Hashable]) -> None:
    """Refuse splits that share a patient.

    Args:
        **splits: patient ids of each split, by its name; text, numbers or tensors (:func:`kecae_aug.names.patient_id`).

    Raises:
        PatientOverlapError: names two splits, how many patients they share and the first of them.
        ValueError: a split with a missing id, of which nothing could be said.
    """
    canonical = {name: [patient_id(p) for p in _to_list(ids)] for name, ids in splits.items()}
    for name, found in canonical.items():
        if None in found:
            raise ValueError(
                f"{name}: {found.count(None)} of {len(found)} patients are missing, so that no overlap could be seen; "
                "give every row's patient"
            )
    warn_of_zeros(i for found in canonical.values() for i in found)
    for (first, ours), (second, theirs) in combinations(canonical.items(), 2):
        both = sorted({str(p) for p in ours} & {str(p) for p in theirs})
        if both:
            shown = ", ".join(both[:5]) + (", ..." if len(both) > 5 else "")
            raise PatientOverlapError(
                f"{first} and {second} share {len(both)} patients ({shown}): split by patient, for instance "
                "with kecae_aug.data.split_patients"
            )
