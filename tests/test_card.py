"""The model card says what was measured of these weights, and of no others."""

import json
import shutil
from importlib.resources import files

import pytest

from kecae_training.card import main


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(str(files("kecae_aug") / "bundled" / "phantom"), folder)
    (folder / "README.md").unlink()
    return folder


def figures(weights, tmp_path, **changes):
    value = {"mean": 0.5, "low": 0.4, "high": 0.6}
    judged = {"judge": {"says_0": value, "says_2": value, "auroc": value}}
    line = {
        "sha256": json.loads((weights / "config.json").read_text())["sha256"],
        "split": "val",
        "images": 7,
        "patients": 4,
        "judges": {"judge": {"network": "vgg", "patients": 9, "shared_with_guide": 0}},
        "reconstruction": {"psnr": {"mean": 21.25, "low": 20, "high": 22}, "ssim": value},
        "real": judged,
        "reconstructed": judged,
        "exchanged": {"decoder 1": {"change": value, "psnr_to_host": value, "judges": judged}},
        "follows": {"host": 0.2, "donor": 0.1},
        **changes,
    }
    path = tmp_path / "figures.jsonl"
    path.write_text(json.dumps(line) + "\n")
    return path


def write(weights, path):
    main(["--weights", str(weights), "--figures", str(path), "--name", "mine", "--about", "A test."])


def test_the_card_holds_the_figures(weights, tmp_path):
    """PSNR, the judges' table, the hash and the loading line are those given."""
    path = figures(weights, tmp_path)
    write(weights, path)
    card = (weights / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    for words in (
        "**21.25 (20.00 to 22.00) dB**",
        "judge: vgg, 9 patients",
        'from_pretrained("mine")',
        "| real | 0.50",
    ):
        assert words in card
    assert json.loads(path.read_text())["sha256"] in card


def test_figures_of_other_weights_are_refused(weights, tmp_path):
    """A card that praises other weights is worse than none."""
    with pytest.raises(SystemExit, match="evaluate these weights first"):
        write(weights, figures(weights, tmp_path, sha256="0" * 64))
    assert not (weights / "README.md").exists()


@pytest.mark.parametrize("name", ["phantom", "knee-kl02"])
def test_bundled_cards_are_those_of_the_bundled_weights(name):
    """Weights replaced without their card would keep the old figures."""
    folder = files("kecae_aug") / "bundled" / name
    sha256 = json.loads((folder / "config.json").read_text())["sha256"]
    assert sha256 in (folder / "README.md").read_text()
