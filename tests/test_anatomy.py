"""The JSW measurement's figures and the phantom's truth, on exchanges whose answer is known."""

import json

import numpy as np
import pytest
import torch
from evaluation_models import Copy, Nothing, Oracle, phantoms

from kecae_aug.data import Preprocessing
from kecae_aug.data.alignment import align, place
from kecae_aug.donors import draw_donors
from kecae_aug.phantom import write_phantoms
from kecae_training.bootstrap import Bootstrap, summarise
from kecae_training.evaluate.anatomy import (
    correlate_with_strength,
    measure_against_truth,
    measure_anatomy,
    open_truths,
    read,
    widths,
)
from kecae_training.evaluate.exchanges import Exchanges, Kind, directions, open_knees


def figures_of(model_of, n_patients=8):
    """(jsw, truth) of decoder strengths 0, 0.5 and 1, and the truth of strength 1."""
    data, truths = phantoms(n_patients)
    donors = draw_donors(data.labels, patients=data.patients, generator=torch.Generator().manual_seed(0))
    exchanges, boot = Exchanges(model_of(data, truths), data.images, donors), Bootstrap(data.patients)
    of_direction = directions(data.labels, data.labels[donors], ("0", "3"))

    def jsw(images):
        return widths(read(images, data.medial))

    real = jsw(data.images)
    kinds = {Kind("decoder", s): jsw(exchanges.decoder(s)) for s in (0.0, 0.5, 1.0)}
    seen = measure_anatomy(boot, data.labels, data.labels[donors], of_direction, real, real, kinds)
    full = Kind("decoder", 1.0)
    change = exchanges.of(full) - exchanges.base("decoder")
    truth = measure_against_truth(
        boot, truths, donors, of_direction, {full: (change, kinds[full] - real)}, jsw
    )
    return summarise(seen), summarise(truth)


def test_an_oracle_is_exactly_right():
    """An exchange that renders the truth moves the joint and the osteophytes by 1, and nothing else; half of it, half."""
    seen, truth = figures_of(Oracle)
    for direction in ("0->3", "3->0"):
        for figure, value in truth["decoder 1"][direction].items():
            assert value["mean"] == pytest.approx(1, abs=1e-3), (direction, figure)
        assert seen["moved"]["decoder 0"][direction]["mean"] == 0
        assert 0.2 < seen["moved"]["decoder 0.5"][direction]["mean"] < 0.7
        assert 0.6 < seen["moved"]["decoder 1"][direction]["mean"] < 1.4  # the class gap is that of few knees
        assert seen["follows_strength"]["decoder"][direction]["mean"] > 0.5
    assert seen["gap"]["0->3"]["mean"] < -1
    assert truth["gap"]["3->0"]["true"]["mean"] > 1


def test_doing_nothing_moves_nothing():
    """0 in every figure, and no rank correlation with the strength."""
    seen, truth = figures_of(lambda *_: Nothing())
    for direction in ("0->3", "3->0"):
        assert seen["moved"]["decoder 1"][direction]["mean"] == 0
        assert seen["follows_strength"]["decoder"][direction]["mean"] == 0
        assert truth["decoder 1"][direction]["joint_space"]["mean"] == 0
        assert truth["decoder 1"][direction]["whole"]["mean"] == 0


def test_a_copied_donor_has_the_joint_but_explains_little():
    """The JSW measurement alone is fooled by another knee with the right joint; the truth is not."""
    _, truth = figures_of(lambda *_: Copy())
    for direction in ("0->3", "3->0"):
        assert truth["decoder 1"][direction]["joint_space"]["mean"] > 0.5
        assert truth["decoder 1"][direction]["explained"]["mean"] < 0.1


def test_rank_correlation_with_strength():
    """+1 the wanted way, -1 the other, 0 for no change, NaN where a width is missing."""
    at = [np.array([5.0, 5.0, 5.0, np.nan]), np.array([4.0, 6.0, 5.0, 4.0]), np.array([3.0, 7.0, 5.0, 3.0])]
    rho = correlate_with_strength((0.0, 1.0, 2.0), at, np.array([-1.0, -1.0, 1.0, -1.0]))
    np.testing.assert_allclose(rho, [1, -1, 0, np.nan])


def test_the_truth_of_a_folder_of_phantoms(tmp_path):
    """Drawn and preprocessed like its files, for right knees too; other folders have none, a torn file is an error."""
    write_phantoms(tmp_path / "p", train_patients=1, val_patients=4, image_size=64, seed=2)
    from kecae_aug.engine.model import KECAE

    model = KECAE.from_preset("tiny")
    model.metadata = {"preprocessing": {"mirror_right": True}}
    data = open_knees(model, tmp_path / "p", "val")
    assert set(data.medial) == {"L"}
    truths = open_truths(tmp_path / "p", "val", data.files, Preprocessing.of(model))
    torch.testing.assert_close(truths.own(), data.images, atol=0.6 / 127.5, rtol=0)  # files have 8 bits
    assert open_truths(tmp_path / "elsewhere", "val", data.files, Preprocessing.of(model)) is None
    path = tmp_path / "p" / "truth-val.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[1:]))
    assert json.loads(path.read_text().splitlines()[0])["file"].startswith("val/")
    with pytest.raises(ValueError, match="no truth of 1 files"):
        open_truths(tmp_path / "p", "val", data.files, Preprocessing.of(model))


def test_an_aligned_truth_stays_in_its_host_s_place(tmp_path):
    """A donor's joint line is part of its key: aligning by it would move the knee, and every pixel would look wrong."""
    write_phantoms(tmp_path / "p", train_patients=1, val_patients=4, image_size=64, seed=2)
    files = [
        p.relative_to(tmp_path / "p").as_posix() for p in sorted((tmp_path / "p" / "val").rglob("*.png"))
    ]
    donors = torch.arange(len(files)).flip(0)
    plain, aligned = (
        open_truths(tmp_path / "p", "val", files, Preprocessing(64, mirror_right=True, align=on))
        for on in (False, True)
    )
    moved = align(plain.own())
    assert moved.found.all()
    torch.testing.assert_close(aligned.own(), moved.image)
    torch.testing.assert_close(aligned.exchanged(donors), place(plain.exchanged(donors), moved.matrix))
    assert not torch.allclose(aligned.exchanged(donors), align(plain.exchanged(donors)).image)
