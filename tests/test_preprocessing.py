"""Preprocessing: the paper's resize and range, and four options that take nuisances out of a knee set."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kecae_aug.data import Preprocessing, RadiographFolder, inversion_score, is_inverted, read_image
from kecae_aug.data.alignment import align
from kecae_aug.engine.model import KECAE, PRESETS
from kecae_aug.phantom import render, sample_truth
from kecae_aug.weights.io import load_weights, save_weights

quick = settings(deadline=None, max_examples=50)
images = arrays(
    np.float32,
    st.tuples(st.integers(2, 40), st.integers(2, 40)),
    elements=st.floats(0, 1, width=32, allow_subnormal=False),
)


def limb(height=48, width=40, seed=0) -> np.ndarray:
    """Bright in the middle, dark at both sides, with a dark joint space and noise: (H, W) in [0, 1]."""
    x = np.linspace(-1, 1, width)
    image = np.tile(0.9 - 0.7 * x**2, (height, 1))
    image[height // 2 - 2 : height // 2 + 2] -= 0.15
    return np.clip(image + np.random.default_rng(seed).normal(0, 0.03, image.shape), 0, 1).astype(np.float32)


def test_default_is_the_paper():
    """Section IV-B and nothing else: 299 x 299, [-1, 1]; no mirror, no negative turned, no contrast."""
    knee = 1 - limb()
    x = Preprocessing()(knee, "R")
    assert (x.shape, x.dtype) == ((1, 299, 299), torch.float32)
    assert Preprocessing() == Preprocessing(299, mirror_right=False, fix_inverted=False, contrast=None)
    same = Preprocessing(image_size=None)(knee, "R")
    np.testing.assert_allclose(same[0], 2 * knee - 1, atol=1e-6)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65_535), (np.float64, 1.0)])
def test_black_is_minus_one_and_white_is_one(dtype, top):
    """The whole range of a type becomes [-1, 1]; a 16-bit image is no brighter than its 8-bit twin."""
    image = (np.array([[0, 0.2], [0.6, 1]]) * top).astype(dtype)
    x = Preprocessing(image_size=None)(image)
    np.testing.assert_allclose(x[0], [[-1, -0.6], [0.2, 1]], atol=1e-6)


@quick
@given(
    images,
    st.sampled_from(["L", "R"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, (0, 100), (5, 90)]),
)
def test_range_and_shape_hold_for_any_image(image, side, mirror, turn, contrast):
    """Whatever the image and the options: (1, S, S) float32 in [-1, 1], and the caller's array unchanged."""
    before = image.copy()
    image.setflags(write=False)
    x = Preprocessing(16, mirror_right=mirror, fix_inverted=turn, contrast=contrast)(image, side)
    assert (x.shape, x.dtype) == ((1, 16, 16), torch.float32)
    assert -1 <= x.min() <= x.max() <= 1
    np.testing.assert_array_equal(image, before)


@quick
@given(images)
def test_mirror_is_for_right_knees_only(image):
    """A left knee and its mirror image, called right, are preprocessed to the same tensor."""
    prepare = Preprocessing(16, mirror_right=True)
    left = prepare(image, "L")
    torch.testing.assert_close(prepare(np.ascontiguousarray(image[:, ::-1]), "R"), left, atol=1e-5, rtol=0)
    torch.testing.assert_close(left, Preprocessing(16)(image, "L"))


def test_mirror_without_a_side_is_refused():
    """A knee of unknown side must not slip through unmirrored."""
    with pytest.raises(ValueError, match="mirror_right needs 'L' or 'R'"):
        Preprocessing(16, mirror_right=True)(limb())


def test_contrast_maps_the_percentiles():
    """The two percentiles become -1 and 1, and what is beyond them is clipped before the resize."""
    image = limb()
    low, high = np.percentile(image, (2, 98))
    x = Preprocessing(image_size=None, contrast=(2, 98))(image)
    np.testing.assert_allclose(x[0], np.clip(2 * (image - low) / (high - low) - 1, -1, 1), atol=1e-5)
    dim = Preprocessing(32, contrast=(2, 98))(0.3 + 0.2 * image)
    torch.testing.assert_close(dim, Preprocessing(32, contrast=(2, 98))(image), atol=1e-4, rtol=0)


def test_metal_does_not_bleed():
    """A screw far brighter than the window is cut to white before the resize, not averaged over neighbours."""
    metal = 0.3 + 0.2 * limb()
    metal[20:23, 20] = 1.0
    cut = np.clip(metal, *np.percentile(metal, (2, 98)))
    prepare = Preprocessing(16, contrast=(2, 98))
    expected = Preprocessing(16)(((cut - cut.min()) / (cut.max() - cut.min())).astype(np.float32))
    torch.testing.assert_close(prepare(metal), expected, atol=1e-4, rtol=0)


@quick
@given(images)
def test_score_is_a_fair_scale(image):
    """A negative scores the opposite, a mirror image the same, and gain and offset do not matter."""
    score = inversion_score(image)
    assert -1.001 <= score <= 1.001
    assert inversion_score(image[:, ::-1]) == pytest.approx(score, abs=1e-3)
    if image.std() > 0.01 and score:
        assert inversion_score(1 - image) == pytest.approx(-score, abs=1e-2)
        assert inversion_score(0.5 * image + 0.1) == pytest.approx(score, abs=1e-2)


def test_negatives_are_turned():
    """A limb and its negative come out alike with fix_inverted, and the limb itself is left as it was."""
    prepare = Preprocessing(24, fix_inverted=True)
    for seed in range(5):
        knee = limb(seed=seed)
        assert is_inverted(1 - knee)
        assert not is_inverted(knee)
        torch.testing.assert_close(prepare(knee), Preprocessing(24)(knee))
        torch.testing.assert_close(prepare(1 - knee), prepare(knee), atol=1e-5, rtol=0)
    assert not is_inverted(np.full((20, 20), 0.3))
    assert is_inverted((255 * (1 - knee)).astype(np.uint8))


def test_negatives_among_real_knees(knee_data):
    """On real knees the detector is decided: few are flagged, as few are negatives, and inverting flips it.

    Precision and recall are kecae_bench/checks/inverted_exposures.py's, on the whole set.
    """
    knees = [read_image(path) for path in RadiographFolder(knee_data, "val").paths[::2]]
    scores = np.array([inversion_score(x) for x in knees])
    assert 0 < (scores > 0).mean() < 0.03  # about 1.3 % of the public set are negatives by nature
    assert (np.abs(scores) > 0.2).mean() > 0.99
    assert all(is_inverted(1 - x) != is_inverted(x) for x in knees[::4])


@quick
@given(
    st.builds(
        Preprocessing,
        st.none() | st.integers(48, 1024),
        st.booleans(),
        st.booleans(),
        st.none() | st.tuples(st.floats(0, 49), st.floats(50, 100)),
        st.booleans(),
    )
)
def test_json_and_back(preprocessing):
    """What the metadata of weights stores gives the same preprocessing again, as an equal and hashable object."""
    again = Preprocessing(**json.loads(json.dumps(preprocessing.to_dict())))
    assert again == preprocessing
    assert hash(again) == hash(preprocessing)


def test_alignment_comes_last():
    """What align() makes of the preprocessed knee, negatives turned first; a file's own size has to be square."""
    knee = render(sample_truth(2, np.random.default_rng(4)), 96)
    plain = Preprocessing(64, fix_inverted=True)
    prepare = Preprocessing(64, fix_inverted=True, align=True)
    aligned = align(plain(knee))
    assert aligned.found
    assert not torch.equal(aligned.image, plain(knee))
    torch.testing.assert_close(prepare(knee), aligned.image)
    torch.testing.assert_close(prepare(1 - knee), aligned.image, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="resize first"):
        Preprocessing(None, align=True)(knee[:90])


def test_weights_carry_it(tmp_path):
    """Preprocessing.of gives back what was saved with the weights; metadata from before there was `align` still loads."""
    model = KECAE(PRESETS["tiny"])
    given = Preprocessing(model.config.image_size, mirror_right=True, align=True)
    save_weights(model, tmp_path / "new", metadata={"preprocessing": given.to_dict()})
    assert Preprocessing.of(load_weights(tmp_path / "new")) == given
    before = {k: v for k, v in given.to_dict().items() if k != "align"}
    save_weights(model, tmp_path / "old", metadata={"preprocessing": before})
    assert Preprocessing.of(load_weights(tmp_path / "old")) == replace(given, align=False)


@pytest.mark.parametrize(
    "arguments",
    [
        {"image_size": 4},
        {"image_size": 40, "align": True},
        {"contrast": (90, 10)},
        {"contrast": (1, 50, 99)},
        {"contrast": (-1, 99)},
    ],
)
def test_arguments_out_of_range(arguments):
    """A wrong argument is refused when the object is made, by its name."""
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Preprocessing(**arguments)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((3, 8, 8), np.uint8), "shape"),
        (np.zeros((0, 8), np.uint8), "shape"),
        (np.zeros((8, 8), np.int32), "int32"),
        (np.full((8, 8), 255.0), "0, 1"),
        (np.full((8, 8), np.nan), "nan"),
    ],
    ids=["colour", "empty", "int32", "float of 255", "nan"],
)
def test_images_out_of_range(image, reason):
    """An image of another shape, type or range is refused, not clipped in silence."""
    with pytest.raises(ValueError, match=reason):
        Preprocessing(8)(image)
