"""A real radiograph passes the check of grey and range; what is really colour, or another scale, does not."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from test_transform import MODEL
from torchvision.transforms import v2

from kecae_aug import KeyExchangeAugment, KeyExchangeDataset
from kecae_aug.phantom import PhantomKnees

KNEES = PhantomKnees(6, image_size=64)
X = torch.stack([(KNEES[i][0] + 1) / 2 for i in range(12)])
RGB = X.repeat(1, 3, 1, 1)
Y = torch.tensor(KNEES.targets)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISED = v2.Normalize(MEAN, STD)(RGB)


def exchanged(images, **options):
    """Exchange half of the rows twice; the others must be bit-identical. Returns the warnings."""
    augment = KeyExchangeAugment(MODEL, p=0.5, classes=KNEES.classes, **options)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for seed in range(2):
            torch.manual_seed(seed)
            out, _ = augment(images, Y)
            rows = augment.params.rows
            kept = torch.ones(len(images), dtype=torch.bool)
            kept[rows] = False
            assert 0 < len(rows) < len(images)
            assert torch.equal(out[kept], images[kept])
            assert torch.isfinite(out[rows].float()).all()
    return [str(w.message) for w in seen]


def jpeg(image):
    """Through a colour JPEG with halved chroma, as an export from a viewer."""
    file = io.BytesIO()
    Image.fromarray((image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(
        file, "JPEG", quality=40, subsampling=2
    )
    return torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)


def marked(images, side):
    """A marker of several colours in a corner."""
    out = images.clone()
    out[:, :, 2 : 2 + side, 2 : 2 + side // 2] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    out[:, :, 2 : 2 + side, 2 + side // 2 : 2 + side] = torch.tensor([0.1, 0.9, 0.2])[:, None, None]
    return out


def pixel(images):
    out = (images * 255).round().to(torch.uint8)
    out[3, :, 10, 10] = torch.tensor([200, 190, 190], dtype=torch.uint8)
    return out


def rotated(fill, interpolation):
    turn = v2.RandomRotation((30, 30), fill=fill, interpolation=interpolation)
    return turn(RGB)


BILINEAR, NEAREST = v2.InterpolationMode.BILINEAR, v2.InterpolationMode.NEAREST
QUIET = [
    pytest.param(lambda: pixel(RGB), id="one coloured pixel"),
    pytest.param(lambda: torch.stack([jpeg(x) for x in RGB]), id="JPEG chroma"),
    pytest.param(lambda: marked(RGB, 6), id="a small coloured marker"),
    pytest.param(
        lambda: (RGB + 0.02 * torch.randn(RGB.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1),
        id="noise of its own in each channel",
    ),
]
TOLD = [
    pytest.param(lambda: marked(RGB, 14), "12 of 12 have coloured parts", id="a large coloured marker"),
    pytest.param(
        lambda: rotated(MEAN, NEAREST), "12 of 12 have coloured parts", id="corners of the mean colour"
    ),
    pytest.param(lambda: rotated((0.9, 0.1, 0.1), BILINEAR), "have coloured parts", id="corners of red"),
    pytest.param(
        lambda: v2.RandomErasing(p=1.0, scale=(0.2, 0.33), value=[0.2, 0.5, 0.8])(RGB),
        "have coloured parts",
        id="an erased patch",
    ),
    pytest.param(lambda: X * 1.06 - 0.03, "0.030 of the range beyond", id="overshoot"),
]


@pytest.mark.parametrize("images", QUIET)
def test_small_departures_need_no_word(images):
    """They are in real files and nobody can mend them."""
    torch.manual_seed(0)
    assert exchanged(images()) == []


@pytest.mark.parametrize(("images", "says"), TOLD)
def test_larger_departures_are_mended_and_said_once(images, says):
    """The exchange takes their grey, or clamps; one warning counts them and names the cause."""
    torch.manual_seed(0)
    words = exchanged(images())
    assert len(words) == 1
    assert says in words[0]


def test_fills_after_normalising():
    """timm's fills are 0 after the normalisation: the mean colour; a rotated, erased batch with mean and std."""
    torch.manual_seed(0)
    views = v2.Compose([v2.RandomRotation((20, 20)), v2.RandomErasing(p=1.0)])(NORMALISED)
    assert len(exchanged(views, mean=MEAN, std=STD)) == 1


def hues():
    g = torch.Generator().manual_seed(0)
    return torch.nn.functional.interpolate(
        torch.rand(12, 3, 5, 5, generator=g), size=(64, 64), mode="bicubic"
    ).clamp(0, 1)


def on_white():
    out = torch.ones(12, 3, 64, 64)
    out[..., 16:52, 16:52] = hues()[..., 16:52, 16:52]
    return out


@pytest.mark.parametrize(
    ("images", "options"),
    [
        pytest.param(hues, {}, id="photographs"),
        pytest.param(on_white, {}, id="coloured things on white"),
        pytest.param(lambda: RGB * torch.tensor([1.0, 0.8, 0.6])[:, None, None] + 0.05, {}, id="sepia"),
        pytest.param(lambda: torch.rand(12, 3, 64, 64), {}, id="noise"),
        pytest.param(lambda: NORMALISED, {"mean": 0.449, "std": 0.226}, id="normalised by other numbers"),
    ],
)
def test_colour_is_refused(images, options):
    """Also of a single hue, and what one mean for three channels makes; the words name fills and augmentations."""
    with pytest.raises(ValueError, match="3 channels that differ") as caught:
        exchanged(images().clamp(0, 1) if not options else images(), **options)
    assert "of 12 images" in str(caught.value)
    assert "augmentations" in str(caught.value)


@pytest.mark.parametrize("images", [X * 1.3, X - 0.2, X.masked_fill(X > 0.9, float("nan"))])
def test_another_range_is_refused(images):
    """Beyond the tolerance, with interpolation, fills and augmentations among the causes."""
    with pytest.raises(ValueError, match="bicubic overshoot") as caught:
        exchanged(images)
    assert "fill or an augmentation before the exchange" in str(caught.value)


@pytest.mark.parametrize(("mean", "std"), [((0, 0, 0), (1, 1, 1)), (0.0, 1.0), ((0.05,) * 3, (0.9,) * 3)])
def test_normalised_images_may_be_in_zero_to_one(mean, std):
    """29 of timm's architectures have mean 0 and std 1."""
    assert exchanged((RGB - 0.02).clamp(0, 1), mean=mean, std=std) == []
    given = KeyExchangeAugment(MODEL, mean=torch.zeros(3), std=np.ones(3))  # as loaders hold them
    assert given.intensity.mean == (0.0, 0.0, 0.0)


def test_data_sets_are_told_the_same():
    """KeyExchangeDataset mends and speaks as the transform does, once for a set."""

    class Overshot(torch.utils.data.Dataset):
        classes, targets, patients = KNEES.classes, KNEES.targets, KNEES.patients

        def __len__(self):
            return 12

        def __getitem__(self, i):
            return X[i] * 1.06 - 0.03, self.targets[i]

    made = KeyExchangeDataset(Overshot(), MODEL, 6, real=False)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for i in range(6):
            assert 0 <= made[i][0].min() <= made[i][0].max() <= 1
    assert len([w for w in seen if "beyond" in str(w.message)]) == 1
