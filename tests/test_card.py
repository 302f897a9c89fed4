"""The model card says what was measured of these weights, and of no others."""

import json
import shutil
from importlib.resources import files

import pytest
from evaluation_models import Bar, Swap, knees

from kecae_aug.weights.io import bundled_weights
from kecae_training.evaluate.card import main
from kecae_training.evaluate.entrants import Entrant
from kecae_training.evaluate.evaluation import evaluate

JUDGE = {"network": "vgg", "patients": 9, "shared_with_weights": 3, "shared_with_discriminator": None}


@pytest.fixture(scope="module")
def measured():
    """What `evaluate` gives for a perfect exchange of criteria."""
    entrant = Entrant(Swap(), {"oracle": Bar()})
    return evaluate({"it": entrant}, knees(24), strengths=(1.0,), robustness=False).figures


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(str(files("kecae_aug") / "bundled" / "phantom"), folder)
    (folder / "README.md").unlink()
    return folder


def sha256_of(weights):
    return json.loads((weights / "config.json").read_text())["sha256"]


def line_of(weights, measured, **changes):
    facts = {"sha256": sha256_of(weights), "oracles": {"oracle": JUDGE}, "warnings": ["Shares patients."]}
    return {**facts, "split": "val", "classes": ["0", "2"], **measured, **changes}


def save(line, path):
    path.write_text(json.dumps(line) + "\n")
    return path


def write(weights, path, *more):
    main(["--weights", str(weights), "--figures", str(path), "--name", "mine", "--about", "A test.", *more])
    return (weights / "README.md").read_text()


def test_the_card_holds_the_figures(weights, measured, tmp_path):
    """Bars with their verdicts, the oracles with whom they share patients, warnings, every table, the hash, the line."""
    card = write(weights, save(line_of(weights, measured), tmp_path / "figures.jsonl"))
    assert card.startswith("---\nlicense: mit\n")
    met = sum(b["verdict"].startswith("met") for b in measured["criteria"])
    for words in (
        f"## Measured: {met} of {len(measured['criteria'])} criteria met",
        "| oracles | AUROC on X' over that on real knees, decoder 1 | at least 0.95 | 1.00 | met |",
        "oracle: vgg, 9 patients (3 shared with the weights, ? shared with the discriminator)",
        "- **Shares patients.**",
        'from_pretrained("mine")',
        "| real | 1.00",
        "### Identity",
        "### Probes",
        sha256_of(weights),
    ):
        assert words in card
    assert "### Realism" not in card  # not measured, not promised
    assert "two-sample classifier and distances" in card


def test_a_cross_fit_stands_beside_the_figures(weights, measured, tmp_path):
    """Its own section; and weights that are one of its halves take their figures from that half."""
    folds = {"a": line_of(weights, measured), "b": line_of(weights, measured, sha256="0" * 64)}
    pooled = {"split": "val", "classes": ["0", "2"], **measured, "folds": folds}
    crossed = save(pooled, tmp_path / "crossed.jsonl")
    assert "### Cross-fit of the recipe" in write(weights, crossed)
    own = save(line_of(weights, measured), tmp_path / "own.jsonl")
    assert "### Cross-fit" not in write(weights, own)
    assert "### Cross-fit" in write(weights, own, "--cross_fit", str(crossed))
    with pytest.raises(SystemExit, match="is no cross-fit"):
        write(weights, own, "--cross_fit", str(own))


def test_figures_of_other_weights_are_refused(weights, measured, tmp_path):
    """A card that praises other weights is worse than none."""
    with pytest.raises(SystemExit, match="evaluate these weights first"):
        write(weights, save(line_of(weights, measured, sha256="0" * 64), tmp_path / "f.jsonl"))
    assert not (weights / "README.md").exists()


def test_figures_of_an_older_evaluate_are_refused(weights, measured, tmp_path):
    """They lack what the card would say."""
    line = {k: v for k, v in line_of(weights, measured).items() if k != "criteria"}
    with pytest.raises(SystemExit, match="evaluate anew"):
        write(weights, save(line, tmp_path / "f.jsonl"))


@pytest.mark.parametrize("name", bundled_weights())
def test_bundled_cards_are_those_of_the_bundled_weights(name):
    """Weights replaced without their card would keep the old figures."""
    folder = files("kecae_aug") / "bundled" / name
    sha256 = json.loads((folder / "config.json").read_text())["sha256"]
    assert sha256 in (folder / "README.md").read_text()
