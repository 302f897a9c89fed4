"""The commands as a stranger types them, and the whole line from files to weights in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from kecae_aug.cli import main


def kecae(*args: object, ok: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kecae_aug.cli", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (done.returncode == 0) is ok, done.stderr[-3000:]
    return done.stdout if ok else done.stderr


def test_help_and_errors_are_for_people(capsys):
    """No traceback for a typing error; the training commands are in the help."""
    error = kecae("info", "knee_kl02", ok=False)
    assert "Traceback" not in error
    assert "knee-kl02" in error
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--help"])
    assert "train" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="guide is missing"):
        main(["train", "--config", "default", "--out", "nowhere"])


def test_info_lists_what_is_bundled(capsys):
    """The bundled weights say what they are."""
    main(["info"])
    assert "phantom" in capsys.readouterr().out
    main(["info", "phantom"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"]["classes"] == ["0", "2"]
    assert facts["metadata"]["weights"]["sha256"]


def test_exchange_two_files(tmp_path):
    """Two radiographs in, a sheet out, and nothing of the user's is overwritten."""
    main(["phantoms", "--out", str(tmp_path / "data"), "--train-patients", "3", "--val-patients", "1"])
    grades = [str(sorted((tmp_path / "data" / "train" / g).glob("*.png"))[0]) for g in ("0", "2")]
    exchange = ["exchange", *grades, "--weights", "phantom", "--out", str(tmp_path / "x.png")]
    main(exchange)
    assert Image.open(tmp_path / "x.png").width > 500
    sheet = (tmp_path / "x.png").read_bytes()
    with pytest.raises(SystemExit, match="exists already"):
        main(exchange)
    assert (tmp_path / "x.png").read_bytes() == sheet


@pytest.mark.slow
def test_from_files_to_weights_to_figures(tmp_path):
    """phantoms, guide, judge, train, evaluate: each command's output is the next one's input."""
    data = tmp_path / "data"
    kecae("phantoms", "--out", data, "--train-patients", 60, "--val-patients", 20)
    for name, network, fold in (("guide", "resnet", 0), ("judge", "vgg", 1)):
        kecae(
            *("guide", "--data", data, "--out", tmp_path / name, "--network", network, "--fold", fold),
            *("--image_size", 64, "--grades", '["0","2"]', "--epochs", 3, "--batch_size", 16),
        )
    out = kecae(
        *(
            "train",
            "--config",
            "tiny",
            "--data.root",
            data,
            "--guide",
            tmp_path / "guide",
            "--out",
            tmp_path / "run",
        ),
        *("--loss.lambda1", 0.01, "--optim.max_steps", 30, "--run.progress", "false"),
    )
    weights = Path(json.loads(out.splitlines()[-1])["weights"])
    figures = tmp_path / "figures.jsonl"
    shown = kecae(
        *(
            "evaluate",
            "--weights",
            weights,
            "--data",
            data,
            "--judges",
            json.dumps([str(tmp_path / "judge")]),
        ),
        *("--guide", tmp_path / "guide", "--out", figures),
    )
    assert "| real |" in shown
    line = json.loads(figures.read_text())
    assert line["images"] == 40
    assert line["judges"]["judge"]["shared_with_guide"] == 0
    assert line["sha256"]
    for evaluated, why in ((weights, "would not be held out"), ("phantom", "it is not held out")):
        seen = kecae(
            *("evaluate", "--weights", evaluated, "--data", data, "--split", "train"),
            *("--judges", tmp_path / "judge"),
            ok=False,
        )
        assert why in seen  # the weights' own patients, or the judge's
