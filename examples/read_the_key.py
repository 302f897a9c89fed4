"""Very few labels, and weights that know more: read the grade where the weights keep it, in the key.

    python examples/read_the_key.py --data ../shared/data/knee

DIR holds train/<grade>/<patient><L|R>.png and val/<grade>/..., no patient of val known to the weights. Each knee is encoded
once, and a logistic regression on hK is the classifier. How it compares with T and T' by the number of labelled
patients: docs/results.md, "A linear probe on the key". Needs scikit-learn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import classification_report, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader

from kecae_aug import KECAE, load_weights
from kecae_aug.data import Preprocessing, Radiographs, check_disjoint, open_radiographs
from kecae_aug.device import choose_device


@torch.no_grad()
def keys(
    model: KECAE, folder: Radiographs, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(N, D) hK and (N,) class indices of a folder's knees."""
    parts = [
        (model.encode(images.to(device)).key.flatten(1).cpu(), labels)
        for images, labels in DataLoader(folder, batch_size=64)
    ]
    key, labels = (torch.cat(of).numpy() for of in zip(*parts, strict=True))
    return key, labels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="knee-kl02", help="bundled name, folder or Hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    args = parser.parse_args()
    device = choose_device(args.device)
    model = load_weights(args.weights).eval().to(device)
    prepare, grades = Preprocessing.of(model), [str(c) for c in model.config.classes]
    train, val = (
        open_radiographs(args.data, s, grades=grades, preprocessing=prepare) for s in ("train", "val")
    )
    check_disjoint(train=train.patients, val=val.patients)
    x, y = keys(model, train, device)
    x_val, y_val = keys(model, val, device)
    # C: what validation patients chose most often for knee-kl02 up to 298 labelled patients (with all 1,189 it was 0.01,
    # key_probe.jsonl); choose yours on validation patients
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(C=1e-4, class_weight="balanced", max_iter=5000)
    )
    probe.fit(x, y)
    print(f"{len(y)} labelled knees; of {len(y_val)} others:")
    if len(grades) == 2:
        print(f"AUROC {roc_auc_score(y_val, probe.decision_function(x_val)):.3f}")
    print(classification_report(y_val, probe.predict(x_val), target_names=[f"grade {g}" for g in grades]))


if __name__ == "__main__":
    main()
