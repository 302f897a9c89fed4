"""Building a reader study: who is drawn, that the key is true, and that nothing but the picture tells."""

import json
import re
import stat
import struct
from collections import Counter
from hashlib import sha256
from io import BytesIO
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from reader_studies import build_study, write_knees

from kecae_aug.data import Preprocessing, read_image
from kecae_aug.engine.model import KECAE
from kecae_aug.weights.io import save_weights
from kecae_training.evaluate.entrants import NotHeldOutError
from kecae_training.reader_study import build as build_module
from kecae_training.reader_study import folder as folder_module
from kecae_training.reader_study import formats
from kecae_training.reader_study.build import BuildConfig, build
from kecae_training.reader_study.command import main
from kecae_training.reader_study.draw import TooFewPatientsError, draw_study, spread
from kecae_training.reader_study.folder import encode_png, open_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_knees(tmp_path_factory.mktemp("knees"))


@pytest.fixture(scope="module")
def built(data, tmp_path_factory):
    """Two arms, controls and repeats."""
    with pytest.MonkeyPatch.context() as patch:
        out = tmp_path_factory.mktemp("built") / "study"
        return build_study(patch, data, out, detail=["host", "decoder"], n=10, real=4, repeat=5)


def even(counts, of):
    """Counts that differ by one at most, those of nobody included."""
    values = [counts.get(key, 0) for key in of]
    return max(values) - min(values) <= 1


@given(st.integers(0, 60), st.integers(1, 6), st.integers(1, 8))
def test_every_prefix_of_the_pairs_is_even(n, a, b):
    """However many pairs: over arms, over directions, and over both together."""
    pairs = spread(n, range(a), range(b))
    assert even(Counter(x for x, _ in pairs), range(a))
    assert even(Counter(y for _, y in pairs), range(b))
    assert even(Counter(pairs), [(x, y) for x in range(a) for y in range(b)])


cohorts = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 2)), min_size=4, max_size=40)


@settings(max_examples=60)
@given(cohorts, st.integers(1, 8), st.integers(1, 3), st.integers(0, 4), st.integers(0, 5))
def test_a_draw_keeps_its_promises(cohort, n, n_arms, real, seed):
    """No patient twice, donors of another grade and patient, all even; or an error that names what is possible."""
    patients, targets = [f"p{p}" for p, _ in cohort], [t for _, t in cohort]
    arms, classes = [f"arm {i}" for i in range(n_arms)], ["0", "2", "4"]

    def draw(count):
        return draw_study(targets, patients, classes, arms, n=count, real=real, repeats=0, seed=seed)

    try:
        drawn = draw(n)
    except TooFewPatientsError as error:
        possible = int(re.search(r"possible are (\d+) pairs", str(error))[1])
        assert possible < n
        if possible:
            draw(possible)
        with pytest.raises(TooFewPatientsError):
            draw(possible + 1)
        return
    shown = [p.host for p in drawn.pairs] + drawn.controls
    donors = [p.donor for p in drawn.pairs]
    assert len({patients[r] for r in shown}) == len(shown) == n + real
    assert len({patients[r] for r in donors}) == n
    assert all(patients[p.host] != patients[p.donor] for p in drawn.pairs)
    routes = [(targets[p.host], targets[p.donor]) for p in drawn.pairs]
    assert all(a != b for a, b in routes)
    assert even(Counter(p.arm for p in drawn.pairs), arms)
    assert even(Counter(routes), list(permutations(range(3), 2)))
    assert even(Counter(targets[r] for r in drawn.controls), range(3))
    assert all(targets[r] != c for r, c in zip(drawn.controls, drawn.claimed, strict=True))
    assert draw(n) == drawn


def test_nobody_gives_a_key_to_himself():
    """Patients with knees of both grades, as few as can be: a donor of the same patient would be half of the draws."""
    patients, targets = ["a", "a", "b", "b", "c", "c"], [0, 1] * 3
    for seed in range(20):
        drawn = draw_study(targets, patients, ["0", "2"], ["decoder"], n=3, real=0, repeats=0, seed=seed)
        assert all(patients[p.host] != patients[p.donor] for p in drawn.pairs)
    with pytest.raises(TooFewPatientsError, match="possible are 0 pairs"):
        draw_study([0, 1], ["a", "a"], ["0", "2"], ["decoder"], n=1, real=0, repeats=0)


def test_defaults_and_repeats():
    """A fifth of the pairs as control, a tenth twice, spread over arms and control, none three times."""
    patients = [str(i) for i in range(200)]
    targets = [i % 2 for i in range(200)]
    drawn = draw_study(targets, patients, ["0", "2"], ["a", "b"], n=90, repeats=None, seed=3)
    assert (len(drawn.controls), len(drawn.repeats)) == (18, 9)
    kinds = Counter("real" if i >= 90 else drawn.pairs[i].arm for i in drawn.repeats)
    assert set(kinds.values()) == {3}
    assert len(set(drawn.repeats)) == 9
    assert draw_study(targets, patients, ["0", "2"], ["a", "b"], n=90, seed=4) != drawn
    with pytest.raises(ValueError, match="accepted are 0 to 108"):
        draw_study(targets, patients, ["0", "2"], ["a"], n=90, repeats=109)


def bar_is_dark(path):
    pixels = np.asarray(Image.open(path)).astype(float)
    middle = len(pixels) // 2
    return pixels[middle - 2 : middle + 2].mean() < 60


def test_the_key_says_what_the_pictures_show(built):
    """The exchange of these weights is perfect, so that every label can be read off the picture."""
    key, folder = built.key, built.folder
    assert key == formats.read_key(built.key_file)
    for item, entry in key["phase1"].items():
        assert bar_is_dark(folder / f"images/{item}.png") == (entry["label"] == "2")
    second = json.loads((folder / "phase2.js").read_text().removeprefix("window.PHASE2 = ").rstrip(";\n"))
    assert len(second["items"]) == len(key["phase2"]) == 14
    for shown in second["items"]:
        entry = key["phase2"][shown["item"]]
        early = key["phase1"][entry["phase1"]]
        assert (entry["before"], entry["label"]) == (shown["before"], shown["after"])
        assert (entry["arm"], entry["patient"]) == (early["arm"], early["patient"])
        assert bar_is_dark(folder / shown["original"]) == (shown["before"] == "2")
        if entry["arm"] == "real":  # the same knee twice, and a claim that is false
            assert bar_is_dark(folder / shown["exchanged"]) == (early["label"] == "2")
            assert early["label"] == shown["before"] != shown["after"]
        else:
            assert bar_is_dark(folder / shown["exchanged"]) == (shown["after"] == "2")
            assert (early["before"], early["label"]) == (shown["before"], shown["after"])


def test_arms_directions_controls_and_repeats_in_the_key(built):
    """What score counts: each arm each direction, controls of both grades, repeats that are copies."""
    first = built.key["phase1"]
    once = [e for e in first.values() if e["repeat_of"] is None]
    assert Counter(e["arm"] for e in once) == {"host": 5, "decoder": 5, "real": 4}
    cells = Counter((e["arm"], e["before"]) for e in once if e["arm"] != "real")
    assert sorted(cells.values()) == [2, 2, 3, 3]
    assert Counter(e["label"] for e in once if e["arm"] == "real") == {"0": 2, "2": 2}
    assert len({e["patient"] for e in once}) == len(once)
    donors = [e["donor"] for e in once if e["donor"]]
    assert len({d[:-5] for d in donors}) == 10
    repeats = [e for e in first.values() if e["repeat_of"]]
    assert len(repeats) == 5
    assert all({**e, "repeat_of": None} == first[e["repeat_of"]] for e in repeats)


def test_nothing_but_the_picture_tells(built):
    """Same length, same time, no metadata, no two equal files, and no word of the key in the readers' folder."""
    images = sorted(built.folder.rglob("*.png"))
    assert len(images) == 19 + 2 * 14
    assert len({path.stat().st_size for path in images}) == 1
    assert len({path.stat().st_mtime_ns for path in built.folder.rglob("*")}) == 1
    assert len({sha256(path.read_bytes()).hexdigest() for path in images}) == len(images)
    for path in images:
        assert re.fullmatch(r"[0-9a-f]{32}", path.stem)
        assert chunks(path.read_bytes()) <= {b"IHDR", b"IDAT", b"IEND"}
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (64, 64))
    text = "".join(p.read_text(encoding="utf-8") for p in built.folder.glob("study.js*"))
    text += (built.folder / "phase2.js").read_text()
    for entry in built.key["phase1"].values():
        assert entry["patient"] not in text
        assert entry["file"] not in text
    assert not re.search(r"real\b|host|decoder|swap|repeat|seed\"", text.replace("order_seed", ""))
    items = [e["item"] for e in built.study["phase1"]]
    assert items == sorted(items)


def chunks(raw):
    """Kinds of the chunks of a PNG."""
    found, at = set(), 8
    while at < len(raw):
        (length,) = struct.unpack(">I", raw[at : at + 4])
        found.add(raw[at + 4 : at + 8])
        at += 12 + length
    return found


def test_a_repeat_looks_the_same_and_real_knees_go_the_same_way(built, data):
    """A repeated picture differs by the dither alone; a real one is the preprocessed knee, enlarged as all are."""
    for item, entry in built.key["phase1"].items():
        pixels = np.asarray(Image.open(built.folder / f"images/{item}.png")).astype(int)
        if entry["repeat_of"]:
            other = np.asarray(Image.open(built.folder / f"images/{entry['repeat_of']}.png")).astype(int)
            assert 0 < abs(pixels - other).max() <= 2
        if entry["arm"] == "real":
            knee = Preprocessing(64)(read_image(data / entry["file"]), None)
            assert np.abs(pixels - (knee[0].numpy() + 1) * 127.5).max() < 1.5


def test_dither_keeps_the_grey_value():
    """On average a picture is the image, and no pixel is off by more than its rounding: nothing becomes visible."""
    flat = torch.linspace(-1, 1, 64).expand(1, 64, 64)
    wanted = (flat[0].numpy() + 1) * 127.5
    drawn = np.stack(
        [np.asarray(Image.open(BytesIO(encode_png(flat, 64, i)))).astype(float) for i in range(100)]
    )
    assert np.abs(drawn - wanted).max() < 1.5
    assert np.abs(drawn.mean(0) - wanted)[:, 1:-1].max() < 0.35
    assert np.abs(drawn.mean((0, 1)) - wanted[0]).max() < 0.2  # the ends lose half of their noise


def test_the_seed_draws_and_the_secret_names(monkeypatch, data, tmp_path, built):
    """Same seed and secret: same bytes. Another secret: the same knees under names that nobody can derive."""
    config = {"detail": ["host", "decoder"], "n": 10, "real": 4, "repeat": 5}
    again = build_study(monkeypatch, data, tmp_path / "again", **config)
    assert tree(again.folder) == tree(built.folder)
    assert again.key == built.key
    other = build_study(monkeypatch, data, tmp_path / "other", secret=None, **config)
    assert not set(tree(other.folder)) & {n for n in tree(built.folder) if n.endswith(".png")}
    assert drawn_by(other.key) == drawn_by(built.key)
    assert drawn_by(build_study(monkeypatch, data, tmp_path / "b", seed=1, **config).key) != drawn_by(
        built.key
    )


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def drawn_by(key):
    """What is shown, without the names."""
    rest = ("arm", "label", "file", "donor")
    return sorted(str([e[k] for k in rest] + [bool(e["repeat_of"])]) for e in key["phase1"].values())


def test_the_key_is_private_and_apart(built):
    """Readers who get the folder do not get the key; other users of the computer cannot read it."""
    assert built.key_file == built.folder.parent / "study-key.json"
    assert stat.S_IMODE(built.key_file.stat().st_mode) == 0o600
    assert not [p for p in built.folder.rglob("*") if "key" in p.name and p.name != "keys.js"]


def test_study_file_is_hashed_and_opens(built):
    """The readers' folder is whole: page, study and phase 2 fit together and to their hashes."""
    opened = open_folder(built.folder)
    assert opened.study == built.study == formats.read_study(built.folder)
    assert {"index.html", "app.css", "study.js", "phase2.js", "study.json"} <= set(opened.files)
    script = (built.folder / "study.js").read_bytes()
    assert script == b"window.STUDY = " + (built.folder / "study.json").read_bytes() + b";\n"


def test_nothing_is_overwritten_and_nothing_left_behind(monkeypatch, data, tmp_path, built):
    """An existing folder or key is refused; a build that fails leaves neither folder nor key."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="absent or empty"):
        build_study(monkeypatch, data, tmp_path / "full")
    with pytest.raises(FileExistsError, match="never overwritten"):
        build_study(monkeypatch, data, tmp_path / "new", key=built.key_file)
    with pytest.raises(ValueError, match="readers would find it"):
        build_study(monkeypatch, data, tmp_path / "new", key=tmp_path / "new" / "key.json")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        build_study(monkeypatch, data, tmp_path / "new", key=tmp_path / "nowhere" / "key.json")

    def fails(*_):
        raise OSError(28, "No space left on device")

    before = sorted(p.name for p in tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "encode_png", fails)
        with pytest.raises(OSError, match="No space"):
            build_study(patch, data, tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    (tmp_path / "empty").mkdir()
    assert (build_study(monkeypatch, data, tmp_path / "empty").folder / "study.json").is_file()


def test_weights_that_saw_the_patients_are_refused(tmp_path):
    """A reader study of training patients flatters the weights; it is possible, but the key says it."""
    data = write_knees(tmp_path / "knees")
    model = KECAE.from_preset("tiny")
    facts = {"data": {"split": "val", "images": 48, "folds": 1, "fold": 0}}
    weights = save_weights(model, tmp_path / "seen", metadata=facts)
    config = BuildConfig(data, [str(weights)], n=2, image_size=64)
    with pytest.raises(NotHeldOutError, match="--allow-seen"):
        build(config, tmp_path / "study")
    assert not (tmp_path / "study-key.json").exists()
    built = build(BuildConfig(data, [str(weights)], n=2, image_size=64, allow_seen=True), tmp_path / "study")
    assert built.key["allow_seen"] is True
    assert built.key["weights"][0]["sha256"] == json.loads((weights / "config.json").read_text())["sha256"]


def test_two_weights_are_arms_and_must_read_the_same_images(monkeypatch, data, tmp_path):
    """Arms of several weights are named after them; pictures of different sizes would tell them apart."""
    said = []
    built = build_study(monkeypatch, data, tmp_path / "two", weights=["a/one", "two"], n=4, say=said.append)
    assert built.key["arms"] == ["one decoder", "two decoder"]
    assert [w["name"] for w in built.key["weights"]] == ["a/one", "two"]
    assert len(said) == 2
    assert all("not known which patients" in line for line in said)
    sizes = {"one": 64, "two": 32}
    monkeypatch.setattr(
        build_module, "load_weights", lambda n: KECAE.from_preset("tiny", image_size=sizes[n])
    )
    with pytest.raises(ValueError, match="different images"):
        build(BuildConfig(data, ["one", "two"], n=4), tmp_path / "unlike")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detail": ["sharp"]}, "detail="),
        ({"detail": []}, "detail="),
        ({"weights": ["a/x", "b/x"]}, "rename folders"),
        ({"strength": 0.333}, "whole percent"),
        ({"strength": -1}, "whole percent"),
        ({"image_size": 8}, "64 to 4096"),
        ({"title": " "}, "title"),
        ({"n": 0}, "accepted are 1 or more pairs"),
        ({"n": 500}, "possible are 20 pairs with 4 real knees"),
    ],
)
def test_bad_values_are_refused_with_the_way_out(monkeypatch, data, tmp_path, change, message):
    """Before anything is written."""
    with pytest.raises(ValueError, match=message):
        build_study(monkeypatch, data, tmp_path / "study", **change)
    assert list(tmp_path.iterdir()) == []


def test_the_command_builds_and_refuses_in_one_line(data, tmp_path, capsys):
    """As a user calls it, with bundled weights; a second time nothing is overwritten."""
    args = ["build", "--data", str(data), "--weights", "phantom", "--detail", "host", "-n", "2"]
    args += ["--image-size", "64", "--repeat", "1", "--out", str(tmp_path / "study")]
    main(args)
    said = capsys.readouterr().out.splitlines()
    assert "3 images in phase 1, 2 pairs in phase 2" in said[-2]
    assert str(tmp_path / "study-key.json") in said[-1]
    key = formats.read_key(tmp_path / "study-key.json")
    assert key["arms"] == ["host"]
    assert key["weights"][0]["name"] == "phantom"
    assert len(key["weights"][0]["sha256"]) == 64
    with pytest.raises(SystemExit, match="reader-study build: out="):
        main(args)
