"""The demo's report is complete, says what it measured, and nothing of the user's is replaced."""

import json

import numpy as np
import pytest

from kecae_aug.phantom.demo import ARMS, DemoConfig, _interval, run_demo
from kecae_aug.phantom.report import verdict

SMALL = DemoConfig(train_patients=4, test_patients=10, steps=2, batch_size=8, seeds=2)


def test_report_sheet_and_results(tmp_path):
    """All three files, every arm, both directions; a second run replaces a demo's folder."""
    lines = []
    page = run_demo(tmp_path / "demo", SMALL, lines.append)
    text = page.read_text()
    result = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert set(result["accuracy"]) == set(ARMS)
    assert set(result["joint_space"]) == {"0 -> 2", "2 -> 0"}
    assert result["weights"]["source"] == "phantom"
    assert f"{result['accuracy']['T']['mean']:.1%}" in text
    assert "data:image/png;base64," in text
    assert (tmp_path / "demo" / "contact_sheet.png").stat().st_size > 10_000
    assert str(page) in lines[-1]
    again = run_demo(tmp_path / "demo", SMALL, lines.append)
    repeated = json.loads((again.parent / "results.json").read_text())
    assert {k: v for k, v in repeated.items() if k != "seconds"} == {
        k: v for k, v in result.items() if k != "seconds"
    }


def test_a_folder_of_the_users_is_refused(tmp_path):
    """It holds something else, and keeps it."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="--out"):
        run_demo(tmp_path, SMALL, print)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_interval_is_over_seeds_and_patients():
    """Two knees of one patient are not two observations; equal rows leave no spread."""
    patients = [str(i // 2) for i in range(40)]
    same = np.repeat(np.arange(20) % 2, 2)[None].repeat(3, 0).astype(float)
    wide = _interval(same, patients)
    narrow = _interval(same, [str(i) for i in range(40)])
    assert wide["mean"] == narrow["mean"] == 0.5
    assert wide["high"] - wide["low"] > 1.2 * (narrow["high"] - narrow["low"])
    assert _interval(np.ones((2, 40)), patients) == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_verdict_needs_an_interval_off_zero():
    """A mean alone is not a gain."""
    assert verdict({"mean": 0.1, "low": -0.01, "high": 0.2}) == "not significant"
    assert verdict({"mean": 0.1, "low": 0.01, "high": 0.2}) == "better"
    assert verdict({"mean": -0.1, "low": -0.2, "high": -0.01}) == "worse"
