"""The model card says what was measured of these weights, and of no others."""

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
from evaluation_models import Bar, Swap, knees

from kecae_aug.weights.io import bundled_weights, load_weights
from kecae_training.evaluate.card import main, model_card
from kecae_training.evaluate.entrants import Entrant
from kecae_training.evaluate.evaluation import evaluate

ORACLE = {"network": "vgg", "patients": 9, "shared_with_weights": 3, "shared_with_discriminator": None}


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
    (folder / "figures.json").unlink()
    return folder


def sha256_of(weights):
    return json.loads((weights / "config.json").read_text())["sha256"]


def line_of(weights, measured, **changes):
    facts = {"sha256": sha256_of(weights), "oracles": {"oracle": ORACLE}, "warnings": ["Shares patients."]}
    return {**facts, "split": "val", "classes": ["0", "2"], **measured, **changes}


def save(line, path):
    path.write_text(json.dumps(line) + "\n")
    return path


def write(weights, path, *more):
    main(["--weights", str(weights), "--figures", str(path), "--name", "mine", "--about", "A test.", *more])
    return (weights / "README.md").read_text()


def test_the_card_holds_the_criteria_and_the_file_beside_it_all_figures(weights, measured, tmp_path):
    """Criteria, oracles, warnings, the hash, how to load; figures.json has the line."""
    card = write(weights, save(line_of(weights, measured), tmp_path / "figures.jsonl"))
    assert card.startswith("---\nlicense: mit\n")
    met = sum(c["verdict"].startswith("met") for c in measured["criteria"])
    for words in (
        f"## Measured: {met} of {len(measured['criteria'])} acceptance criteria met",
        "| AUROC, X' over real knees, decoder 1 | at least 0.95 | 1.00 |",
        "oracles (vgg) have seen",
        "**Shares patients.**",
        'from_pretrained("mine")',
        "## Intended use",
        "## Limits",
        "## Citation",
        sha256_of(weights),
    ):
        assert words in card, words
    figures = json.loads((weights / "figures.json").read_text())
    assert figures.pop("card") == {"license": "mit", "source": "", "name": "mine", "about": "A test."}
    assert figures == json.loads(json.dumps(line_of(weights, measured)))


def test_a_criterion_that_is_not_met_is_bold(weights, measured, tmp_path):
    """And one of oracles at chance has no verdict."""
    from kecae_training.evaluate.criteria import with_criteria

    poor = json.loads(json.dumps(measured))
    poor["reconstruction"]["psnr"] = {"mean": 20.0, "low": 19.0, "high": 21.0}
    card = write(weights, save(line_of(weights, with_criteria(poor)), tmp_path / "f.jsonl"))
    assert "| PSNR of X^, evaluated knees | at least 30 dB | **20.0 (19.0 to 21.0)** |" in card
    poor["oracles_at_chance"] = ["oracle"]
    card = write(weights, save(line_of(weights, with_criteria(poor)), tmp_path / "f.jsonl"))
    assert "**No better than chance on real knees: oracle." in card
    assert "| AUROC, X' over real knees, decoder 1 | at least 0.95 | no verdict |" in card


def test_a_cross_fit_stands_beside_the_figures(weights, measured, tmp_path):
    """Its own column; and weights that are one of its halves take their figures from that half."""
    folds = {"a": line_of(weights, measured), "b": line_of(weights, measured, sha256="0" * 64)}
    pooled = {"split": "val", "classes": ["0", "2"], **measured, "folds": folds}
    crossed = save(pooled, tmp_path / "crossed.jsonl")
    assert "| cross-fit of the recipe |" in write(weights, crossed)
    own = save(line_of(weights, measured), tmp_path / "own.jsonl")
    assert "cross-fit" not in write(weights, own)
    assert "| at least 0.95 | 1.00 | 1.00 |" in write(weights, own, "--cross_fit", str(crossed))
    assert "folds" not in json.loads((weights / "figures.json").read_text())["cross_fit"]
    with pytest.raises(SystemExit, match="is no cross-fit"):
        write(weights, own, "--cross_fit", str(own))


def test_a_card_is_written_again_from_the_figures_beside_it(weights, measured, tmp_path):
    """Without --figures; a text that is given replaces the stored one. A folder without figures needs them."""
    with pytest.raises(SystemExit, match="figures: none given"):
        main(["--weights", str(weights)])
    path = save(line_of(weights, measured), tmp_path / "f.jsonl")
    with pytest.raises(SystemExit, match="about: not given"):
        main(["--weights", str(weights), "--figures", str(path), "--name", "mine"])
    card = write(weights, path)
    main(["--weights", str(weights)])
    assert (weights / "README.md").read_text() == card
    main(["--weights", str(weights), "--license", "cc0-1.0"])
    assert (weights / "README.md").read_text() == card.replace("license: mit", "license: cc0-1.0")


def test_figures_of_other_weights_are_refused(weights, measured, tmp_path):
    """A card that praises other weights is worse than none."""
    with pytest.raises(SystemExit, match="evaluate these weights first"):
        write(weights, save(line_of(weights, measured, sha256="0" * 64), tmp_path / "f.jsonl"))
    assert not (weights / "README.md").exists()


def test_figures_of_an_older_evaluate_are_refused(weights, measured, tmp_path):
    """They lack what the card would say."""
    line = {k: v for k, v in line_of(weights, measured).items() if k != "criteria"}
    with pytest.raises(SystemExit, match="evaluate again"):
        write(weights, save(line, tmp_path / "f.jsonl"))


@pytest.mark.parametrize("name", bundled_weights())
def test_a_bundled_card_is_what_the_command_makes(name):
    """Of the figures beside it, which are the committed results of these weights; 500 words at most."""
    folder = files("kecae_aug") / "bundled" / name
    card, figures = ((folder / file).read_text() for file in ("README.md", "figures.json"))
    figures = json.loads(figures)
    assert card == model_card(load_weights(name), figures), f"run kecae-aug card --weights {folder}"
    assert len(card.split()) <= 500
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert 5 <= len(table) - 2 <= 10
    results = Path(__file__).parents[1] / "benchmarks" / "results"
    if not results.is_dir():
        pytest.skip("no committed results beside the tests")
    (line,) = (results / f"validity-{name}.jsonl").read_text().splitlines()
    assert figures["sha256"] == json.loads((folder / "config.json").read_text())["sha256"]
    assert {k: v for k, v in figures.items() if k not in ("card", "cross_fit")} == json.loads(line)
    if "cross_fit" in figures:
        crossed = json.loads((results / f"crossfit-{name}.jsonl").read_text())
        assert figures["cross_fit"] == {k: v for k, v in crossed.items() if k != "folds"}
