"""Probes find what is in the latents, and only that, for patients that they have not seen."""

import numpy as np
import torch

from kecae_training.bootstrap import Bootstrap, summarise
from kecae_training.evaluate.exchanges import HeldOutKnees
from kecae_training.evaluate.probes import run_probes


def test_grade_side_and_patient_are_found_where_they_are():
    """A key with the grade alone; a non-key with patient and side alone."""
    rng, n = np.random.default_rng(0), 120
    patients = [str(i // 2) for i in range(n)]
    labels = torch.tensor(rng.permutation(np.repeat([0, 1], n // 4))).repeat_interleave(2)
    key = torch.randn(n, 8, 2, 2, generator=torch.Generator().manual_seed(0))
    key[:, 0] += 4 * labels.view(-1, 1, 1)
    own = torch.randn(n // 2, 32, 1, 1, generator=torch.Generator().manual_seed(1)).repeat_interleave(2, 0)
    data = HeldOutKnees(torch.zeros(n, 1, 8, 8), labels, patients, sides=["L", "R"] * (n // 2))
    found = summarise(run_probes(Bootstrap(patients), data, key, own))
    assert found["grade_in_key"]["svm"]["mean"] > 0.95
    assert found["grade_in_key"]["linear"]["mean"] > 0.95
    assert found["paper_svm"]["mean"] > 0.95
    assert found["grade_in_non_key"]["svm"]["mean"] < 0.7  # patients that are tested were not trained on
    assert found["patient_in_non_key"]["mean"] == 1
    assert found["patient_in_key"]["mean"] < 0.65
    assert found["side_in_key"]["linear"]["mean"] < 0.65
    assert found["chance"]["grade"] == 0.5
