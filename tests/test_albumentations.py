"""KeyExchange inside albumentations 2.0.8: its Compose, its files, its replay, its random numbers in workers."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

A = pytest.importorskip("albumentations")

from kecae_aug import KECAE, save_weights  # noqa: E402 - after the skip
from kecae_aug.integrations.albumentations import KeyExchange, seed_worker  # noqa: E402

torch.manual_seed(0)
MODEL = KECAE.from_preset("tiny").eval()
RNG = np.random.default_rng(0)
KNEES = RNG.integers(0, 256, (8, 64, 64), dtype=np.uint8)


def donors(*labels: Any) -> list[dict[str, Any]]:
    return [{"image": KNEES[i + 1], "label": label} for i, label in enumerate(labels)]


def call(
    transform: Any, image: Any = KNEES[0], label: Any = 0, items: Any = None, **more: Any
) -> dict[str, Any]:
    items = donors(1, 1, 1) if items is None else items
    out: dict[str, Any] = transform(image=image, label=label, key_exchange_metadata=items, **more)
    return out


@pytest.mark.parametrize("shape", [(64, 64), (50, 70, 1), (90, 61, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_image_shape_dtype_and_label_type_stay(shape, dtype):
    """Any size, one or three channels; donors of another size and dtype; an int stays an int, a name a name."""
    grey = RNG.integers(0, 256, (*shape[:2], 1), dtype=np.uint8)
    image = np.broadcast_to(grey, (*shape[:2], shape[2] if len(shape) == 3 else 1)).reshape(shape)
    image = image.copy() if dtype == np.uint8 else image.astype(np.float32) / 255
    before = image.copy()
    for label, wanted in ((0, 1), (np.int64(0), np.int64(1)), ("0", "2")):
        out = call(A.Compose([KeyExchange(MODEL, p=1.0)]), image, label)
        assert (out["image"].shape, out["image"].dtype) == (image.shape, image.dtype)
        assert type(out["label"]) is type(wanted)
        assert out["label"] == wanted
        assert not np.array_equal(out["image"], image)
    assert np.array_equal(image, before)


def test_it_is_the_models_exchange():
    """uint8 in the model's own size: decode(hN + hK'), rounded."""
    out = call(KeyExchange(MODEL, p=1.0), items=donors(1))
    host, donor = (torch.from_numpy(k).float()[None, None] / 127.5 - 1 for k in KNEES[:2])
    with torch.no_grad():
        wanted = ((MODEL.exchange(host, donor) + 1) * 127.5).round()[0, 0]
    assert np.abs(out["image"].astype(int) - wanted.numpy()).max() <= 1


def test_masks_boxes_and_keypoints_stay():
    """An exchange moves nothing."""
    pipeline = A.Compose(
        [KeyExchange(MODEL, p=1.0)],
        bbox_params=A.BboxParams("pascal_voc", label_fields=["kinds"]),
        keypoint_params=A.KeypointParams("xy"),
        strict=True,
    )
    mask = RNG.integers(0, 2, (64, 64), dtype=np.uint8)
    out = call(pipeline, mask=mask, bboxes=[[1, 2, 30, 40]], kinds=["joint"], keypoints=[[5, 6]])
    assert np.array_equal(out["mask"], mask)
    assert np.allclose(out["bboxes"], [[1, 2, 30, 40]])
    assert out["kinds"] == ["joint"]
    assert np.allclose(out["keypoints"], [[5, 6]])
    assert out["label"] == 1


def test_donors_are_of_another_label_and_patient_and_known():
    """Never the host's class or patient, never a grade the weights do not know; with nobody left, a pass-through."""
    transform = KeyExchange(MODEL, p=1.0, classes=("0", "1", "2", "3"))
    for items, patient in (
        (donors(0, 1, 3), None),
        ([{**d, "patient": "a"} for d in donors(2)], "a"),
        ([], None),
    ):
        out = call(transform, items=items, patient=patient)
        assert out["image"] is KNEES[0] or np.array_equal(out["image"], KNEES[0])
        assert out["label"] == 0
    assert call(transform, label=1, items=donors(0, 2))["label"] == 1  # a host the weights do not know
    assert call(transform, items=donors(0, 1, 2, 3))["label"] == 2
    own = [{**d, "patient": "a"} for d in donors(2)]
    assert (
        call(KeyExchange(MODEL, p=1.0, classes=("0", "1", "2"), same_patient=True), items=own, patient="a")[
            "label"
        ]
        == 2
    )


@pytest.mark.parametrize("beside", [True, False])
def test_every_view_gets_the_key_of_the_label(beside):
    """`images` beside `image`, or alone: no view keeps the old key under the new label."""
    stack = np.stack([KNEES[0], KNEES[7]])
    pipeline = A.Compose([KeyExchange(MODEL, p=1.0)], strict=True)
    views = {"image": KNEES[0], "images": stack} if beside else {"images": stack}
    out = pipeline(**views, label=0, key_exchange_metadata=donors(1))
    assert out["label"] == 1
    alone = [call(KeyExchange(MODEL, p=1.0), knee, items=donors(1))["image"] for knee in stack]
    assert np.array_equal(out["images"], np.stack(alone))
    assert not beside or np.array_equal(out["image"], alone[0])
    replayed = A.ReplayCompose([KeyExchange("phantom", p=1.0)])(
        images=list(stack), label=0, key_exchange_metadata=donors(1)
    )
    assert not any(np.array_equal(a, b) for a, b in zip(replayed["images"], stack, strict=True))


@pytest.mark.parametrize("name", ["volume", "volumes"])
def test_volumes_are_refused_whatever_is_drawn(name):
    """They would keep the old key beside the new label, so that even a pass-through says it."""
    shape = (3, 64, 64) if name == "volume" else (2, 3, 64, 64)
    with pytest.raises(ValueError, match="radiographs"):
        call(A.Compose([KeyExchange(MODEL, p=1e-9)]), **{name: np.zeros(shape, np.uint8)})
    with pytest.raises(ValueError, match="additional_targets"):
        A.Compose([KeyExchange(MODEL)], additional_targets={"other": name})


def test_classes_and_patients_are_compared_by_value(recwarn):
    """ "2.0" is the class "2", 9001 the patient "9001"; a missing id is a patient of its own, and one warning says so."""
    transform = KeyExchange(MODEL, p=1.0, classes=(0.0, "2.0"))
    assert transform.classes == ["0", "2"]
    assert call(transform, label="0.0", items=donors("2.0"))["label"] == "2"
    own = [{**d, "patient": patient} for d, patient in zip(donors(1, 1), ("9001", 9001.0), strict=True)]
    assert call(transform, items=own, patient=np.int64(9001))["label"] == 0
    assert not recwarn
    for missing in (float("nan"), None, ""):
        assert call(transform, items=[{**own[0], "patient": missing}], patient=9001)["label"] == 1
        assert call(transform, items=own, patient=missing)["label"] == 1
    assert [str(w.message).partition(":")[0] for w in recwarn] == [
        "patient of the call and of key_exchange_metadata"
    ]
    with pytest.raises(ValueError, match="missing"):
        KeyExchange(MODEL, classes=("0", "2", float("nan")))
    with pytest.raises(ValueError, match="label: got nan"):
        call(transform, label=float("nan"))


def test_another_default_device_changes_nothing():
    """What the transform makes stands on the CPU, as albumentations' arrays do."""
    with torch.device("meta"):
        assert call(KeyExchange(MODEL, p=1.0))["label"] == 1


def test_weak_exchanges_keep_the_label_and_host_detail_the_image():
    """Below half of the key the label stays; strength 0 with host detail changes nothing."""
    out = call(KeyExchange(MODEL, p=1.0, strength=0.0, detail="host"))
    assert out["label"] == 0
    assert np.array_equal(out["image"], KNEES[0])


def test_files_round_trip(tmp_path):
    """to_dict, from_dict, A.save and A.load, as JSON and YAML; by name, so that the file holds no weights."""
    pipeline = A.Compose(
        [KeyExchange("phantom", strength=(0.8, 1.2), classes=("0", "1", "2"), p=0.7)], seed=3
    )
    again = A.from_dict(A.to_dict(pipeline))
    assert repr(again) == repr(pipeline)
    for kind in ("json", "yaml"):
        A.save(pipeline, tmp_path / kind, data_format=kind)
        assert (tmp_path / kind).stat().st_size < 2000
        loaded = A.load(tmp_path / kind, data_format=kind)
        assert repr(loaded) == repr(pipeline)
        loaded.set_random_seed(3)
        pipeline.set_random_seed(3)
        assert np.array_equal(call(loaded)["image"], call(pipeline)["image"])


def test_a_model_object_refuses_files():
    """It cannot be written, so it says what to do, instead of leaving it out."""
    assert "KECAE" in repr(KeyExchange(MODEL))
    with pytest.raises(NotImplementedError, match="save_weights"):
        A.to_dict(A.Compose([KeyExchange(MODEL)]))


def test_weights_written_anew_are_read_anew(tmp_path):
    """Weights are shared between transforms of a name, but never older than the folder."""
    images = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_weights(KECAE.from_preset("tiny"), tmp_path / "w", metadata={}, overwrite=True)
        images.append(call(KeyExchange(tmp_path / "w", p=1.0), items=donors(1))["image"])
    assert not np.array_equal(*images)
    assert KeyExchange("phantom")._exchanger is KeyExchange("phantom")._exchanger


def test_replay_uses_the_same_donor():
    """ReplayCompose records the donor itself: a replay on the host needs no list of donors."""
    pipeline = A.ReplayCompose([KeyExchange("phantom", p=1.0, strength=(0.6, 1.4))])
    first = call(pipeline, items=donors(1, 1, 1, 1))
    again = A.ReplayCompose.replay(first["replay"], image=KNEES[0], label=0)
    assert np.array_equal(again["image"], first["image"])
    assert again["label"] == 1


def test_a_seeded_compose_is_reproducible():
    """Two pipelines of one seed draw the same sequence; another seed draws another."""

    def draws(seed: int) -> list[Any]:
        transform = KeyExchange(MODEL, p=0.6, strength=(0.5, 1.5))
        pipeline = A.Compose([transform], seed=seed)
        seen = []
        for _ in range(12):
            call(pipeline)
            seen.append((transform.params.get("donor"), transform.params.get("strength")))
        return seen

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)


class AugmentedKnees(Dataset):
    """What a user writes: a pipeline as attribute, donors from the same data."""

    def __init__(self, *transforms):
        self.pipeline = A.Compose(list(transforms))
        self.transforms = transforms

    def __len__(self):
        return 8

    def __getitem__(self, i):
        call(self.pipeline, KNEES[i], i % 2, [{"image": k, "label": n % 2} for n, k in enumerate(KNEES)])
        return [float(t.params.get("strength") or t.params.get("alpha") or 0) for t in self.transforms]


def epochs(dataset, workers, **options):
    """(epoch, item) -> what each transform drew."""
    loader = DataLoader(
        dataset, batch_size=1, num_workers=workers, collate_fn=lambda items: items[0], **options
    )
    return [list(loader) for _ in range(2)]


@pytest.mark.parametrize(("workers", "options"), [(0, {}), (2, {}), (2, {"persistent_workers": True})])
def test_no_worker_and_no_epoch_repeats_another(workers, options):
    """albumentations copies one random state into all workers of all epochs; KeyExchange draws anew in each."""
    seen = [
        draw
        for epoch in epochs(
            AugmentedKnees(KeyExchange(MODEL, p=1.0, strength=(0.5, 1.5))), workers, **options
        )
        for (draw,) in epoch
    ]
    assert len(set(seen)) == 16


def test_albumentations_own_transforms_repeat_without_seed_worker():
    """The trap that docs/integrations.md tells of, and its way out. If the first part fails, the trap is gone."""
    pair = KeyExchange(MODEL, p=1.0, strength=(0.5, 1.5)), A.RandomBrightnessContrast(p=1.0)
    plain = epochs(AugmentedKnees(*pair), 2)
    assert [b for _, b in plain[0]] == [b for _, b in plain[1]]
    seeded = epochs(AugmentedKnees(*pair), 2, worker_init_fn=seed_worker)
    assert len({b for epoch in seeded for _, b in epoch}) == 16
    assert len({a for epoch in seeded for a, _ in epoch}) == 16


def test_workers_are_reproducible_by_torchs_seed():
    """torch.manual_seed and the pipeline's seed together fix what workers draw."""
    runs = []
    for _ in range(2):
        dataset = AugmentedKnees(KeyExchange(MODEL, p=1.0, strength=(0.5, 1.5)))
        dataset.pipeline.set_random_seed(4)
        torch.manual_seed(9)
        runs.append(epochs(dataset, 2))
    assert runs[0] == runs[1]


def test_spawned_workers_and_copies():
    """Pickled for spawned workers, deep-copied by others; neither changes what it does."""
    transform = KeyExchange(MODEL, p=1.0)
    for other in (pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)):
        assert np.array_equal(
            call(other, items=donors(1))["image"], call(transform, items=donors(1))["image"]
        )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image": RNG.random((64, 64, 3)).astype(np.float32)}, "image: 3 channels that differ"),
        ({"image": KNEES[0].astype(np.float32)}, "image: floats from"),
        ({"image": KNEES[0].astype(np.float64)}, "image: got float64 array"),
        ({"image": torch.zeros(1, 64, 64)}, "image"),
        ({"label": 2}, "label: got 2"),
        ({"label": [0]}, r"label: got \[0\]"),
        ({"items": [KNEES[1]]}, r"key_exchange_metadata\[0\]: got uint8 array"),
        ({"items": [{"image": KNEES[1]}]}, r"key_exchange_metadata\[0\]"),
        ({"items": [{"image": None, "label": 1}]}, r"key_exchange_metadata\[0\]\['image'\]: got NoneType"),
        ({"items": "knees"}, "key_exchange_metadata: got str"),
    ],
)
def test_bad_calls_name_what_came(change, says):
    """Nothing that is no grey knee with a class goes through in silence."""
    with pytest.raises((ValueError, TypeError, AttributeError), match=says):
        call(KeyExchange(MODEL, p=1.0), **change)


def test_missing_entries_and_bad_options_are_named():
    """A call without donors, and arguments that cannot be right."""
    with pytest.raises(ValueError, match="key_exchange_metadata"):
        KeyExchange(MODEL, p=1.0)(image=KNEES[0], label=0)
    for options, says in (
        ({"weights": 3}, "weights: got int"),
        ({"weights": "phantm"}, "Did you mean 'phantom'"),
        ({"weights": MODEL, "detail": "both"}, "detail='both'"),
        ({"weights": MODEL, "strength": -1}, "strength=-1"),
        ({"weights": MODEL, "classes": ("a", "b")}, "classes="),
    ):
        with pytest.raises((ValueError, TypeError), match=says):
            KeyExchange(**options)
    with pytest.raises(ValueError, match="additional_targets"):
        A.Compose([KeyExchange(MODEL)], additional_targets={"left": "image"})


def test_further_images_get_the_same_key_and_volumes_are_refused():
    """An image that kept its old key beside the new label would be mislabelled in silence."""
    image = KNEES[0]
    stack = np.stack([image, image])
    out = A.Compose([KeyExchange(MODEL, p=1.0)])(
        image=image, label=0, images=stack, key_exchange_metadata=donors(1, 1)
    )
    assert out["label"] == 1
    assert all(np.array_equal(out["image"], more) for more in out["images"])
    with pytest.raises(ValueError, match="a pipeline of their own"):
        A.Compose([KeyExchange(MODEL, p=1.0)])(
            image=image, label=0, volume=stack, key_exchange_metadata=donors(1, 1)
        )


def test_one_patient_however_spelt_and_classes_by_value():
    """9001, "9001" and 9001.0 are one person; "2.0" is the grade 2."""
    own = [{"image": KNEES[1], "label": 1, "patient": "9001"}]
    for spelt in (9001, 9001.0, "9001"):
        out = A.Compose([KeyExchange(MODEL, p=1.0)])(
            image=KNEES[0], label=0, patient=spelt, key_exchange_metadata=own
        )
        assert out["label"] == 0
    named = KeyExchange(MODEL, p=1.0, classes=("0.0", "2.0"))
    out = A.Compose([named])(
        image=KNEES[0], label="0.0", key_exchange_metadata=[{"image": KNEES[1], "label": "2.0"}]
    )
    assert out["label"] == "2"
    with pytest.warns(UserWarning, match="a patient of its own"):
        A.Compose([KeyExchange(MODEL, p=1.0)])(
            image=KNEES[0], label=0, patient=1, key_exchange_metadata=[{"image": KNEES[1], "label": 1}]
        )
