"""`kecae-aug evaluate` from end to end on phantoms: one JSON line, one page; and what it refuses."""

import json
import warnings
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from kecae_aug.data import Preprocessing
from kecae_aug.phantom import write_phantoms
from kecae_aug.weights.io import load_weights
from kecae_training.discriminator import Discriminator, DiscriminatorConfig, in_fold, save_discriminator
from kecae_training.evaluate.__main__ import main
from kecae_training.evaluate.criteria import Criterion
from kecae_training.evaluate.entrants import (
    NotHeldOutError,
    check_oracles,
    check_weights,
    open_entrants,
    training_patients,
    warnings_of,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Phantoms, and oracles with random weights: what they say is not the question here."""
    root = tmp_path_factory.mktemp("evaluate")
    write_phantoms(root / "data", train_patients=6, val_patients=6, image_size=64, seed=4)
    train = sorted({p.stem[:-1] for p in (root / "data" / "train").rglob("*.png")})
    val = sorted({p.stem[:-1] for p in (root / "data" / "val").rglob("*.png")})
    for seed, (name, patients) in enumerate({"one": train[:3], "two": train[3:], "seen": val[:2]}.items()):
        torch.manual_seed(seed)
        discriminator = Discriminator(
            DiscriminatorConfig(network="vgg", image_size=64, grades=("0", "2"))
        ).eval()
        save_discriminator(discriminator, root / name, patients=patients, data={})
    return root


def call(folder, *more, oracles=("one", "two"), weights=("phantom",)):
    paths = [str(folder / j) for j in oracles]
    return main(
        [
            "--weights",
            *weights,
            "--data",
            str(folder / "data"),
            "--oracles",
            *paths,
            "--strengths",
            "[1.0]",
            *more,
        ]
    )


class Seen(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.sources, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_one_line_and_one_page(folder, capsys):
    """The line has every part, with intervals; the page needs no network and says that it shows images."""
    out, page = folder / "f.jsonl", folder / "p.html"
    call(
        folder,
        "--discriminator",
        str(folder / "one"),
        "--train_split",
        "train",
        "--out",
        str(out),
        "--page",
        str(page),
    )
    (text,) = out.read_text().splitlines()
    line = json.loads(text, parse_constant=pytest.fail)  # no NaN
    for part in (
        "reconstruction",
        "kept",
        "exchanged",
        "anatomy",
        "identity",
        "follows",
        "robustness",
        "probes",
        "phantoms",
    ):
        assert part in line, part
    assert line["images"] == 12
    assert set(line["reconstruction"]["psnr"]) == {"mean", "low", "high"}
    assert line["oracles"]["one"]["shared_with_discriminator"] == 3
    assert (
        line["oracles"]["one"]["shared_with_weights"] is None
    )  # these weights were not trained on this folder
    theirs = [p for p in (folder / "data" / "train").rglob("*.png") if in_fold(p.stem[:-1], 0, 2)]
    assert line["training_images"]["images"] == len(theirs) < 12  # the weights' half of the patients
    seen = Seen()
    seen.feed(page.read_text())
    assert "script" not in seen.tags
    assert seen.tags.count("svg") == 5
    assert len(seen.sources) == 4
    assert all(s.startswith("data:image/png;base64,") for s in seen.sources)
    for words in (
        "The pictures show images of the data folder",
        "Trained on patients that their discriminator",
        "criteria met",
        "not met",
    ):
        assert words in seen.text, words
    assert "criteria" not in capsys.readouterr().err


def test_what_is_refused(folder):
    """Oracles of evaluated patients, numbers of oracles that do not fit, strengths and counts that make no evaluation."""
    one, two, seen = (str(folder / name) for name in ("one", "two", "seen"))
    both = f'[["{one}"], ["{two}"]]'
    for message, arguments in {
        "trained on 2 patients of split 'val'": ["--weights", "phantom", "--oracles", one, seen],
        "2 lists for 1 weights": ["--weights", "phantom", "--oracles", both],
        "1 lists for 2 weights": ["--weights", "phantom", "knee-kl02", "--oracles", one, two],
        "1 for 2 weights": ["--weights", "phantom", "knee-kl02", "--oracles", both, "--discriminator", one],
        "read different images": ["--weights", "phantom", "knee-kl02", "--oracles", both],
        "two folders of one name": ["--weights", "phantom", "--oracles", one, one],
        "one or more numbers": ["--weights", "phantom", "--oracles", one, "--strengths", "[-1.0]"],
        "max_images=2": ["--weights", "phantom", "--oracles", one, "--max_images", "2"],
    }.items():
        with pytest.raises(SystemExit, match=message):
            main(["--data", str(folder / "data"), *arguments])


def test_oracles_of_other_images_are_refused(folder, tmp_path):
    """Of larger images than the weights', or preprocessed in another way: no figure is made. One that fits says nothing."""
    own = Preprocessing.of(load_weights("phantom"))
    for name, size, preprocessing in (
        ("large", 128, own),
        ("turned", 64, replace(own, mirror_right=False)),
        ("fits", 64, own),
    ):
        discriminator = Discriminator(
            DiscriminatorConfig(network="vgg", image_size=size, grades=("0", "2"))
        ).eval()
        save_discriminator(
            discriminator, tmp_path / name, patients=["1"], data={"preprocessing": preprocessing.to_dict()}
        )
    fits = str(tmp_path / "fits")
    for name, message in {
        "large": "128 px, these have 64 px",
        "turned": "mirror_right=False, these have",
    }.items():
        wrong = str(tmp_path / name)
        with pytest.raises(SystemExit, match=message):
            call(folder, oracles=(fits, wrong))
        with pytest.raises(SystemExit, match=message):
            call(folder, "--discriminator", wrong, oracles=(fits,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_entrants(["phantom"], [[fits]], [fits])


def test_a_patient_is_found_however_it_is_spelled():
    """9001.0 of a table is "9001" of a file name; "0012" may be "12" of a table read as numbers, which is said."""
    oracle = Discriminator(DiscriminatorConfig(network="vgg", image_size=64, grades=("0", "2")))
    oracle.metadata = {"patients": [9001.0, "0012"]}
    with pytest.raises(NotHeldOutError, match="trained on 1 patients"):
        check_oracles({"j": oracle}, ["9001", "7"], "val", None, None)
    with pytest.raises(NotHeldOutError, match="trained on 1 patients"):
        check_weights("w", {"9001.0"}, [9001], "val")
    with pytest.warns(UserWarning, match="'0012' and '12'"):
        found = check_oracles({"j": oracle}, ["12"], "val", {9001}, {"8"})
    assert (found["j"]["shared_with_weights"], found["j"]["shared_with_discriminator"]) == (1, 0)


def test_lists_of_oracles_that_are_no_json(folder):
    """A forgotten quote is named, not a traceback of the JSON reader."""
    with pytest.raises(SystemExit, match=r"not a JSON list .*double quotes"):
        main(["--weights", "phantom", "--data", str(folder / "data"), "--oracles", "[['a'], ['b']]"])


def test_patients_of_the_weights_are_those_of_their_fold(folder):
    """Known only where the folder holds as many images as the weights were trained on."""
    from kecae_aug.engine.model import KECAE
    from kecae_training.discriminator import in_fold

    model = KECAE.from_preset("tiny")
    names = [p.stem[:-1] for p in sorted((folder / "data" / "train").rglob("*.png"))]
    half = [p for p in names if in_fold(p, 1, 2)]
    model.metadata = {"data": {"split": "train", "folds": 2, "fold": 1, "images": len(half)}}
    assert training_patients(model, folder / "data") == set(half)
    model.metadata["data"]["images"] += 1
    assert training_patients(model, folder / "data") is None


def test_warnings_are_sentences():
    """Shared patients of the weights and of the discriminator, and too few architectures."""
    oracle = {"network": "vgg", "patients": 9, "shared_with_weights": 4, "shared_with_discriminator": 0}
    text = " ".join(warnings_of({"j": oracle}))
    assert "these weights" in text
    assert "j (4 of 9 patients)" in text
    assert "Fewer than three" in text
    clean = {n: {**oracle, "network": n, "shared_with_weights": 0} for n in ("vgg", "resnet", "densenet")}
    assert warnings_of(clean) == []


@pytest.mark.parametrize(
    ("mean", "low", "high", "verdict"),
    [
        (0.97, 0.96, 0.99, "met"),
        (0.97, 0.90, 0.99, "met, interval includes the criterion"),
        (0.90, 0.80, 0.97, "not met, interval includes the criterion"),
        (0.80, 0.70, 0.90, "not met"),
    ],
)
def test_a_criterion_and_its_interval(mean, low, high, verdict):
    """Met by the figure; an interval that includes the criterion is stated."""
    assert Criterion("g", "x", 0.95, None, {"mean": mean, "low": low, "high": high}).verdict == verdict


def test_a_criterion_with_two_ends():
    """0.8 to 1.2: too much is not met either."""

    def criterion(mean, low, high):
        return Criterion("g", "x", 0.8, 1.2, {"mean": mean, "low": low, "high": high})

    assert criterion(1.0, 0.9, 1.1).verdict == "met"
    assert criterion(1.5, 1.3, 1.7).verdict == "not met"
    assert criterion(1.4, 0.5, 1.9).verdict == "not met, interval includes the criterion"
    assert criterion(1.0, 0.9, 1.1).accepted == "0.8 to 1.2"
