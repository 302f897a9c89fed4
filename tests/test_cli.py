"""The commands as a stranger types them, and the whole line from files to weights in processes of their own."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kecae_aug.cli import main
from kecae_aug.data import Preprocessing
from kecae_aug.phantom import write_phantoms
from kecae_aug.weights.io import load_weights
from kecae_training.discriminator import Discriminator, DiscriminatorConfig, save_discriminator


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
    with pytest.raises(SystemExit, match="discriminator is missing"):
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


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A left and a right knee under names that say no side, and what the weights make of each spelling of their sides."""
    top = tmp_path_factory.mktemp("pair")
    write_phantoms(top / "data", train_patients=6, val_patients=1, image_size=64)
    for grade, side, name in (("0", "L", "normal.png"), ("2", "R", "donor.png")):
        shutil.copy(sorted((top / "data" / "train" / grade).glob(f"*{side}.png"))[0], top / name)
    return top


def sheet(pair, out, *more, host="normal.png", donor="donor.png"):
    main(["exchange", str(pair / host), str(pair / donor), "--out", str(out), "--weights", "phantom", *more])
    return out.read_bytes()


def test_a_side_comes_from_a_name_of_the_pattern_only(pair, tmp_path, capsys):
    """<patient><L|R> is a side; donor.png, LATERAL.png and 9001_LEFT.png are not, and are refused with the way out."""
    right = sheet(pair, tmp_path / "lr.png", "--sides", "LR")
    for host, donor in (("9001L.png", "9002R.png"), ("9001_L.png", "9002-R.png")):
        shutil.copy(pair / "normal.png", pair / host)
        shutil.copy(pair / "donor.png", pair / donor)
        assert sheet(pair, tmp_path / f"{host}.png", host=host, donor=donor) == right
    assert not capsys.readouterr().err
    for name in ("donor.png", "LATERAL.png", "9002_RIGHT.png", "x9002R.png", "9002R2.png", "9002r.png"):
        if name != "donor.png":
            shutil.copy(pair / "donor.png", pair / name)
        with pytest.raises(
            SystemExit, match=rf"exchange: {name}: no side in the name.*--sides LR.*--no-mirror"
        ):
            sheet(pair, tmp_path / "x.png", host="9001L.png", donor=name)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("given", ["lr", "L,R", "l r", "left,right", "LEFT Right", "Left;R", " L / R "])
def test_sides_as_people_write_them(pair, tmp_path, given):
    """Any case, letters or words."""
    assert sheet(pair, tmp_path / "a.png", "--sides", given) == sheet(
        pair, tmp_path / "b.png", "--sides", "LR"
    )


def test_one_side_is_of_both_and_said(pair, tmp_path, capsys):
    """Not silently: a line says what was taken; and sides do change the sheet."""
    one = sheet(pair, tmp_path / "a.png", "--sides", "left")
    assert "--sides left: host and donor are both taken for L knees" in capsys.readouterr().err
    assert one == sheet(pair, tmp_path / "b.png", "--sides", "LL")
    assert one == sheet(pair, tmp_path / "c.png", "--no-mirror")  # left knees are not mirrored
    assert one != sheet(pair, tmp_path / "d.png", "--sides", "LR")


@pytest.mark.parametrize("given", ["", "LRL", "LX", "both", "left,right,left", "L,?", "rechts", "LR,LR"])
def test_other_sides_are_refused(pair, tmp_path, given):
    """With what is accepted; a side is never guessed from a part of what was given."""
    with pytest.raises(SystemExit, match=r"--sides .*accepted are L or R"):
        sheet(pair, tmp_path / "x.png", "--sides", given)


def test_sides_and_no_mirror_contradict(pair, tmp_path):
    """One of them would have no effect."""
    with pytest.raises(SystemExit, match="with --no-mirror no knee is turned"):
        sheet(pair, tmp_path / "x.png", "--sides", "LR", "--no-mirror")


def test_exchange_in_half_precision_and_on_no_such_device(pair, tmp_path):
    """bfloat16 gives nearly the same sheet; a device that is not there is named, with those that are."""
    whole = sheet(pair, tmp_path / "a.png", "--sides", "LR", "--device", "cpu")
    half = sheet(pair, tmp_path / "b.png", "--sides", "LR", "--precision", "bf16-mixed")
    assert whole != half
    pixels = [np.asarray(Image.open(tmp_path / n), dtype=float) for n in ("a.png", "b.png")]
    assert abs(pixels[0] - pixels[1]).mean() < 2
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match=r"--device cuda: this machine .* it has cpu"):
            sheet(pair, tmp_path / "c.png", "--sides", "LR", "--device", "cuda")


def generate(pair, out, *more):
    data = ("--data", str(pair / "data"), "--split", "train", "--weights", "phantom", "-n", "4")
    main(["generate", *data, "--out", str(out), *map(str, more)])


def test_generate_takes_oracles_of_its_images_only(pair, tmp_path, recwarn):
    """Of another size, preprocessing or grades: refused with both, nothing written; a smaller one reads them reduced."""
    own = Preprocessing.of(load_weights("phantom"))
    for name, size, grades, preprocessing in (
        ("fits", 64, ("0", "2", "3"), own),
        ("large", 128, ("0", "2"), own),
        ("small", 32, ("0", "2"), own),
        ("turned", 64, ("0", "2"), replace(own, mirror_right=False)),
        ("others", 64, ("0", "3"), own),
    ):
        oracle = Discriminator(DiscriminatorConfig(network="vgg", image_size=size, grades=grades)).freeze()
        save_discriminator(
            oracle, tmp_path / name, patients=["1"], data={"preprocessing": preprocessing.to_dict()}
        )
    for name, told in {
        "large": "trained on images of 128 px, these have 64 px",
        "turned": "mirror_right=False, these have mirror_right=True",
        "others": r"classes \['2'\] are not among the grades",
    }.items():
        with pytest.raises(SystemExit, match=told):
            generate(pair, tmp_path / "out", "--oracle", tmp_path / "fits", tmp_path / name)
        assert not (tmp_path / "out").exists()
    generate(pair, tmp_path / "fit", "--oracle", tmp_path / "fits", "--device", "cpu")
    assert not [w for w in recwarn if "discriminator" in str(w.message)]
    generate(pair, tmp_path / "both", "--oracle", tmp_path / "fits", tmp_path / "small")
    assert any("64 px are reduced to the 32 px" in str(w.message) for w in recwarn)
    generate(
        pair, tmp_path / "kept", "--oracle", tmp_path / "turned", "--no-mirror"
    )  # the user answers for the sides


def test_generate_refuses_flags_without_effect_and_keeps_its_precision(pair, tmp_path):
    """A probability without an oracle; and a run that goes on with another precision is another run."""
    with pytest.raises(SystemExit, match=r"--min-probability 0.9: it is an oracle's"):
        generate(pair, tmp_path / "x", "--min-probability", "0.9")
    generate(pair, tmp_path / "y", "--precision", "bf16-mixed")
    with pytest.raises(SystemExit, match="precision was 'bf16-mixed'"):
        generate(pair, tmp_path / "y")


@pytest.mark.slow
def test_from_files_to_weights_to_figures(tmp_path, capsys):
    """phantoms, discriminator, oracle, train, evaluate: each command's output is the next one's input.

    The last one in a process of its own, which has nothing but the files.
    """
    data = str(tmp_path / "data")
    main(["phantoms", "--out", data, "--train-patients", "20", "--val-patients", "8"])
    small = ("--image_size", "64", "--grades", "0", "2", "--epochs", "1", "--batch_size", "16")
    for name, network, fold in (("discriminator", "resnet", "0"), ("oracle", "vgg", "1")):
        of = ("--data", data, "--out", str(tmp_path / name), "--network", network, "--fold", fold)
        main(["discriminator", *of, *small])
    discriminator = ("--discriminator", str(tmp_path / "discriminator"))
    of = ("--config", "tiny", "--data.root", data, *discriminator, "--out", str(tmp_path / "run"))
    brief = ("--loss.terms.sup", "0.01", "--optim.max_steps", "3")
    quiet = ("--run.progress", "false", "--device", "cpu")
    seen = ("--data.mirror_right", "true", "--data.fix_inverted", "true")  # as the discriminator's images
    main(["train", *of, *brief, *quiet, *seen])
    weights = Path(json.loads(capsys.readouterr().out.splitlines()[-1])["weights"])
    figures = tmp_path / "figures.jsonl"
    shown = kecae(
        *("evaluate", "--weights", weights, "--data", data, *discriminator, "--out", figures),
        *("--oracles", json.dumps([str(tmp_path / "oracle")]), "--strengths", "[1.0]", "--probes", "false"),
    )
    assert "| real |" in shown
    line = json.loads(figures.read_text())
    assert line["images"] == 16
    assert line["oracles"]["oracle"]["shared_with_discriminator"] == 0
    assert line["sha256"]
    known = ("--data", data, "--split", "train", "--oracles", str(tmp_path / "oracle"))
    for evaluated, why in ((weights, "would not be held out"), ("phantom", "it is not held out")):
        with pytest.raises(SystemExit, match=why):  # the weights' own patients, or the oracle's
            main(["evaluate", "--weights", str(evaluated), *known])
