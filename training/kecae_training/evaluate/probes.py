"""Probes of the latents: the grade should be in hK and not in hN, patient and side not in hK.

Each probe is a classifier (support vectors with a Gaussian kernel, as in the paper's Fig. 3, and a linear one) that
predicts for patients that it was not trained on. All figures but the paper's are balanced accuracies: chance is 1 / grades.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from kecae_training.bootstrap import Bootstrap, Draws
from kecae_training.evaluate.exchanges import HeldOutKnees

COMPONENTS = 64  # of the PCA before each probe
FOLDS = 5
Floats = NDArray[np.float64]


def classifier(kind: str, n_rows: int, n_features: int) -> Any:
    """Standardised, reduced to :data:`COMPONENTS` (fewer where there are fewer rows), then ``"svm"`` or ``"linear"``."""
    components = min(COMPONENTS, n_features, n_rows // 2)
    last = (
        SVC(class_weight="balanced")
        if kind == "svm"
        else LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)
    )
    # not whitened: that would raise the directions in which only noise lives, and a weak probe finds no leak
    return make_pipeline(StandardScaler(), PCA(components, svd_solver="randomized", random_state=0), last)


def cross_predict(
    kind: str,
    latents: Floats,
    target: NDArray[np.int64],
    patients: list[str],
    seed: int,
    method: Literal["predict", "decision_function"] = "predict",
) -> NDArray[Any] | None:
    """(N,) predictions from (N, D) latents, or scores of the second of two classes, by cross-validation over patients;
    None where a class has too few patients.
    """
    groups = np.unique(patients, return_inverse=True)[1]
    fewest = min(len(np.unique(groups[target == t])) for t in np.unique(target))
    if len(np.unique(target)) < 2 or fewest < 2:
        return None
    folds = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    predicted = np.full(len(target), -1, dtype=np.int64 if method == "predict" else np.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for train, test in folds.split(latents, target, groups):
            if len(np.unique(target[train])) < 2 or not len(test):
                continue
            net = classifier(kind, len(train), latents.shape[1])
            predicted[test] = getattr(net.fit(latents[train], target[train]), method)(latents[test])
    return predicted


def balanced_accuracy(boot: Bootstrap, predicted: NDArray[np.int64], target: NDArray[np.int64]) -> Draws:
    """Balanced accuracy: mean recall of the classes."""
    return np.asarray(
        np.mean([boot.mean(predicted == target, target == t) for t in np.unique(target)], axis=0)
    )


def same_patient(latents: Floats, labels: NDArray[np.int64], patients: list[str]) -> Floats:
    """(N,) how well a knee's latent finds the patient's other knee: the fraction of other knees that are less like it.

    Both knees of a patient tend to have one grade, so that only knees of the same grade are compared. Likeness is the cosine
    of standardised principal components. 0.5 is chance, 1 recognises every patient; NaN where a knee has no partner.
    """
    n, ids = len(labels), np.unique(patients, return_inverse=True)[1]
    components = min(COMPONENTS, latents.shape[1], n - 1)
    x = make_pipeline(StandardScaler(), PCA(components, whiten=True, random_state=0)).fit_transform(latents)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    like, found = x @ x.T, np.full(n, np.nan)
    for i in range(n):
        peers = labels == labels[i]
        partner = np.flatnonzero(peers & (ids == ids[i]) & (np.arange(n) != i))
        others = like[i, peers & (ids != ids[i])]
        if len(partner) and len(others):
            score = like[i, partner[0]]
            found[i] = (others < score).mean() + 0.5 * (others == score).mean()
    return found


@torch.no_grad()
def run_probes(
    boot: Bootstrap, knees: HeldOutKnees, key: Tensor, non_key: Tensor, seed: int = 0
) -> dict[str, Any]:
    """All probes, as draws over the hosts.

    Args:
        boot: over the knees.
        knees: of patients that the weights have not seen.
        key: hK, (N, C, h, w).
        non_key: hN, likewise.
        seed: of the folds.

    Returns:
        ``grade_in_key``, ``grade_in_non_key`` and, where sides are known, ``side_in_key``: balanced accuracy of ``svm`` and
        ``linear``; ``patient_in_key``, ``patient_in_non_key``: :func:`same_patient`; ``chance``; ``paper_svm``: plain
        accuracy of the SVM on hK, the figure that the paper's search for its lambdas goes by (it names no split by
        patient).
    """
    latents = {"key": key.flatten(1).double().numpy(), "non_key": non_key.flatten(1).double().numpy()}
    labels, classes = knees.labels.numpy(), len(knees.labels.unique())
    result: dict[str, Any] = {"chance": {"grade": round(1 / classes, 4), "side": 0.5, "patient": 0.5}}
    for name, x in latents.items():
        predicted = {kind: cross_predict(kind, x, labels, knees.patients, seed) for kind in ("svm", "linear")}
        found = {kind: balanced_accuracy(boot, s, labels) for kind, s in predicted.items() if s is not None}
        if found:
            result[f"grade_in_{name}"] = found
        if name == "key" and predicted["svm"] is not None:
            result["paper_svm"] = boot.mean(predicted["svm"] == labels)
        partner = same_patient(x, labels, knees.patients)
        if np.isfinite(partner).any():
            result[f"patient_in_{name}"] = boot.mean(partner)
    if None not in knees.sides and len(set(knees.sides)) == 2:
        side = np.array([s == "R" for s in knees.sides]).astype(int)
        by_side = {
            kind: cross_predict(kind, latents["key"], side, knees.patients, seed)
            for kind in ("svm", "linear")
        }
        result["side_in_key"] = {
            kind: balanced_accuracy(boot, s, side) for kind, s in by_side.items() if s is not None
        }
    return result
