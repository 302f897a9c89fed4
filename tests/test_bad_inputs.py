"""Bad inputs: each gives an error that names the argument and the way out, or passes through as documented."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_bank import Knees
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset
from torchvision import tv_tensors

from kecae_aug import (
    KECAE,
    EngineOptions,
    Gate,
    KeyExchangeAugment,
    KeyExchangeDataset,
    KeyExchangeLoader,
    LatentBank,
    load_weights,
    save_weights,
)
from kecae_aug.data import Preprocessing, RadiographTable, read_image
from kecae_aug.engine.intensity import Intensity
from kecae_aug.generate import generate


class Case(NamedTuple):
    """What comes, what happens (``says`` is in the message; None passes through) and how it is done."""

    given: str
    answer: str
    call: Callable[[Any], Any]
    says: str | None


def same(e, result):
    """A pass-through gives equal images and labels."""
    images, labels = result
    assert torch.equal(images, e.x[: len(images)])
    assert torch.equal(labels, e.y[: len(labels)])


def in_worker(e):
    augment = KeyExchangeAugment(e.model, p=1.0)
    augment._exchanger.fast.to("meta")  # stands for CUDA, which a forked worker cannot use
    return list(DataLoader(Knees(), batch_size=4, num_workers=1, collate_fn=Collate(augment)))


class Collate:
    def __init__(self, augment):
        self.augment = augment

    def __call__(self, items):
        return self.augment(*torch.utils.data.default_collate(items))


def items(value):
    """A data set whose items are ``value``."""

    class Items(Dataset):
        classes = ("0", "2")

        def __len__(self):
            return 4

        def __getitem__(self, i):
            return value(i) if callable(value) else value

    return Items()


def edited(e, **changes):
    """A copy of the saved weights whose config.json has other model values."""
    folder = Path(shutil.copytree(e.saved, e.new("edited")))
    document = json.loads((folder / "config.json").read_text())
    document["model"] = {k: v for k, v in {**document["model"], **changes}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(document))
    return load_weights(folder)


def with_file(e, data):
    folder = Path(shutil.copytree(e.saved, e.new("damaged")))
    (folder / "model.safetensors").write_bytes(data(e) if callable(data) else data)
    return load_weights(folder)


def pickled(e):
    buffer = io.BytesIO()
    torch.save({"x": torch.ones(2)}, buffer)
    return buffer.getvalue()


def tensors(e):
    path = e.new("t.safetensors")
    save_file({"x": torch.ones(2)}, path, {"format_version": "1"})
    return path.read_bytes()


def altered(e):
    data = bytearray((e.saved / "model.safetensors").read_bytes())
    data[-1] ^= 1
    return bytes(data)


def wide(e, **options):
    """A whole bank, and a second model."""
    return LatentBank.build(Knees(), e.model, e.new("bank"), shard_rows=8, **options)


def nameless(e):
    return LatentBank.build(Knees(patients=False), e.model, e.new("nameless"))


def unfinished(e):
    bank = wide(e)
    (bank.folder / "shard-000-00001.safetensors").unlink()
    return LatentBank(bank.folder)


def foreign(e):
    (e.new("mine")).mkdir()
    (e.tmp / "mine" / "thesis.tex").write_text("x")
    return e.tmp / "mine"


def aug(**options):
    """Make a transform with these options and call it on a good batch."""
    return lambda e: KeyExchangeAugment(e.model, **{"p": 1.0, **options})(e.x, e.y)


def warned(match, call):
    """Goes on, with a warning."""

    def run(e):
        with pytest.warns(UserWarning, match=match):
            return call(e)

    return run


def marked(e):
    """Three channels, with a red corner."""
    x = e.x.repeat(1, 3, 1, 1)
    x[:, 1:, :9, :9] = 0
    return x


def preprocessed(**ways):
    """Knees that say how they were preprocessed."""
    knees = Knees()
    knees.preprocessing = Preprocessing(64, **ways)
    return knees


def told(e, batch, word):
    with pytest.warns(UserWarning, match=word):
        e.augment(batch)


def listed(e, text):
    """A table of this text beside one image."""
    Image.new("L", (16, 16), 9).save(e.new("0.png"))
    e.new("knees.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return RadiographTable(e.new("knees.csv"))


def image_file(e, pixels):
    Image.fromarray(pixels).save(e.new("knee.tif"))
    return read_image(e.new("knee.tif"))


def ranged(value_range):
    knees = Knees()
    knees.value_range = value_range
    return knees


STRUCTURE = [
    Case("images without labels", "ValueError", lambda e: e.augment(e.x), "needs the labels too"),
    Case("three arguments", "ValueError", lambda e: e.augment(e.x, e.y, e.y), "got 3 arguments"),
    Case("a list of one", "ValueError", lambda e: e.augment([e.x]), "got a list of 1"),
    Case("a path", "ValueError", lambda e: e.augment("knee.png"), "got a str alone"),
    Case(
        "a dict without a label",
        "ValueError",
        lambda e: e.augment({"image": e.x}),
        "label: the dict has the keys",
    ),
    Case(
        "a dict with `label` and `labels`",
        "ValueError",
        lambda e: e.augment({"image": e.x, "label": e.y, "labels": e.y}),
        "exactly one",
    ),
    Case("a PIL image", "ValueError", lambda e: e.augment(Image.new("L", (64, 64)), e.y), "got Image"),
    Case("numpy images", "ValueError", lambda e: e.augment(e.x.numpy(), e.y), "images: got ndarray"),
    Case("a list of image tensors", "ValueError", lambda e: e.augment(list(e.x), e.y), "images: got list"),
    Case("labels as a list", "ValueError", lambda e: e.augment(e.x, e.y.tolist()), "labels: got list"),
    Case("class names as labels", "ValueError", lambda e: e.augment(e.x, ["0"] * 12), "labels: got list"),
]
IMAGES = [
    Case(
        "one image, (C, H, W)",
        "ValueError: call it after collating",
        lambda e: e.augment(e.x[0], e.y),
        r"got shape (1, 64, 64)",
    ),
    Case(
        "a batch without a channel axis",
        "ValueError",
        lambda e: e.augment(e.x[:, 0], e.y),
        "got shape (12, 64, 64)",
    ),
    Case(
        "volumes, (B, C, D, H, W)",
        "ValueError",
        lambda e: e.augment(e.x[:, :, None], e.y),
        "got shape (12, 1, 1, 64, 64)",
    ),
    Case(
        "2 channels",
        "ValueError",
        lambda e: e.augment(e.x.repeat(1, 2, 1, 1), e.y),
        "got shape (12, 2, 64, 64)",
    ),
    Case(
        "4 channels (RGBA)",
        "ValueError",
        lambda e: e.augment(e.x.repeat(1, 4, 1, 1), e.y),
        "got shape (12, 4, 64, 64)",
    ),
    Case(
        "3 channels that differ (a photograph)",
        "ValueError",
        lambda e: e.augment(torch.rand(12, 3, 64, 64), e.y),
        "channels that differ",
    ),
    Case("images without a pixel", "ValueError", lambda e: e.augment(e.x[..., :0], e.y), "without a pixel"),
    Case("int64 images", "ValueError", lambda e: e.augment(e.x.long(), e.y), "got torch.int64"),
    Case("bool masks", "ValueError", lambda e: e.augment(e.x > 0.5, e.y), "got torch.bool"),
    Case("complex images", "ValueError", lambda e: e.augment(e.x + 0j, e.y), "got torch.complex64"),
    Case("a tv_tensors.Mask", "ValueError", lambda e: e.augment(tv_tensors.Mask(e.x), e.y), "got a Mask"),
    Case(
        "tv_tensors.BoundingBoxes",
        "ValueError",
        lambda e: e.augment(
            tv_tensors.BoundingBoxes(torch.zeros(2, 4), format="XYXY", canvas_size=(9, 9)), e.y
        ),
        "got a BoundingBoxes",
    ),
    Case(
        "floats from 0 to 255",
        "ValueError: give `value_range=(0, 255)`",
        lambda e: e.augment(e.x * 255, e.y),
        "value_range=(0, 255)",
    ),
    Case(
        "floats from -1 to 1",
        "ValueError: give `value_range=(-1, 1)`",
        lambda e: e.augment(e.x * 2 - 1, e.y),
        "value_range=(-1, 1)",
    ),
    Case(
        "normalised images without mean and std",
        "ValueError: give them",
        lambda e: e.augment((e.x - 0.449) / 0.226, e.y),
        "their mean and std",
    ),
    Case(
        "images that are not normalised, with mean and std",
        "ValueError: leave them out",
        aug(mean=[0.449], std=[0.226]),
        "not normalised yet",
    ),
    Case(
        "[0, 1] images in `value_range=(0, 255)`",
        "ValueError: leave it out",
        aug(value_range=(0, 255)),
        "would be black",
    ),
    Case(
        "[0, 1] images in `value_range=(-1, 1)`",
        "a warning, then exchanged",
        warned("no value of this batch is below 0", aug(value_range=(-1, 1))),
        None,
    ),
    Case(
        "a coloured marker, or a fill of one colour",
        "a warning, then exchanged as grey",
        warned("12 of 12 have coloured parts", lambda e: e.augment(marked(e), e.y)),
        None,
    ),
    Case(
        "values beyond the range by up to 0.05 of it (bicubic overshoot)",
        "a warning, then exchanged and clamped",
        warned("clamped", lambda e: e.augment(e.x * 1.08 - 0.04, e.y)),
        None,
    ),
    Case(
        "values further beyond the range",
        "ValueError: clamp them; a fill may be the cause",
        lambda e: e.augment(e.x * 1.2, e.y),
        "bicubic overshoot: clamp after it",
    ),
    Case(
        "NaN", "ValueError", lambda e: e.augment(e.x * float("nan"), e.y), "NaN and infinity are not accepted"
    ),
    Case("infinity", "ValueError", lambda e: e.augment(e.x / 0, e.y), "NaN and infinity are not accepted"),
]
LABELS = [
    Case("float labels", "ValueError", lambda e: e.augment(e.x, e.y.float()), "labels: got torch.float32"),
    Case("bool labels", "ValueError", lambda e: e.augment(e.x, e.y.bool()), "labels: got torch.bool"),
    Case(
        "fewer labels than images",
        "ValueError",
        lambda e: e.augment(e.x, e.y[:5]),
        "got shape (5,) for 12 images",
    ),
    Case(
        "one label for all, 0-d",
        "ValueError",
        lambda e: e.augment(e.x, torch.tensor(1)),
        "got shape () for 12 images",
    ),
    Case(
        "labels of shape (B, 1)",
        "ValueError",
        lambda e: e.augment(e.x, e.y[:, None]),
        "not one-hot rows of 2 classes",
    ),
    Case(
        "soft labels, after MixUp",
        "ValueError: exchange before mixing",
        lambda e: e.augment(e.x, torch.full((12, 2), 0.5)),
        "before MixUp",
    ),
    Case(
        "one-hot rows of another number of classes",
        "ValueError",
        lambda e: e.augment(e.x, torch.eye(3)[e.y]),
        "one-hot rows of 2 classes",
    ),
    Case(
        "rows of zeros for one-hot", "ValueError", lambda e: e.augment(e.x, torch.zeros(12, 2)), "not one-hot"
    ),
    Case("-1 for an unknown label", "ValueError", lambda e: e.augment(e.x, e.y - 1), "from -1 to 0"),
    Case(
        "labels beyond the classes (KL 0-4 with weights for two)",
        "ValueError: give `classes=dataset.classes`",
        lambda e: e.augment(e.x, e.y * 4),
        "classes=dataset.classes",
    ),
    Case(
        "fewer patients than images",
        "ValueError",
        lambda e: e.augment(e.x, e.y, patients=["a"]),
        "patients: got 1 ids for 12 rows",
    ),
    Case(
        "one patient's name for all",
        "ValueError",
        lambda e: e.augment(e.x, e.y, patients="abcdefghijkl"),
        "patients: got str",
    ),
    Case(
        "patients as a dict",
        "ValueError",
        lambda e: e.augment(e.x, e.y, patients=dict.fromkeys(range(12))),
        "patients: got dict",
    ),
    Case(
        "a list of ids a row",
        "ValueError",
        lambda e: e.augment(e.x, e.y, patients=[["a"]] * 12),
        "patients: got a list for a row",
    ),
    Case(
        "a dict's `patient_id` of another length",
        "ValueError: give `patients=`, or rename it",
        lambda e: e.augment({"image": e.x, "label": e.y, "patient_id": ["a"]}),
        "patients: the batch's 'patient_id' is a list",
    ),
    Case(
        "a `subject` in nested metadata that is not one id a row",
        "a warning, then exchanged without it",
        warned(
            "passed over", lambda e: e.augment({"image": e.x, "label": e.y, "meta": {"subject": "knees"}})
        ),
        None,
    ),
    Case(
        "rows whose patient is NaN, None or empty",
        "a warning, then each is a patient of its own",
        warned(
            "2 of 12 rows have no patient", lambda e: e.augment(e.x, e.y, patients=["", None, *range(10)])
        ),
        None,
    ),
    Case(
        "two entries of patients that disagree",
        "a warning which one is taken",
        warned(
            "group its rows differently",
            lambda e: e.augment({"image": e.x, "label": e.y, "patient": [*range(12)], "subject": [0, 1] * 6}),
        ),
        None,
    ),
    Case(
        "patients of shape (B, 1)",
        "ValueError",
        lambda e: e.augment(e.x, e.y, patients=e.y[:, None]),
        "patients: got shape (12, 1)",
    ),
    Case(
        "a row without a patient (None, NaN, an empty text)",
        "a warning, then exchanged: it counts as a patient of its own",
        lambda e: told(e, (e.x, e.y, [None, *"abcdefghijk"]), "1 of 12 rows have no patient"),
        None,
    ),
]
PASS = [
    Case(
        "a batch of one class",
        "passes through",
        lambda e: same(SimpleNamespace(x=e.x, y=e.y * 0), e.augment(e.x, e.y * 0)),
        None,
    ),
    Case("a batch of one", "passes through", lambda e: same(e, e.augment(e.x[:1], e.y[:1])), None),
    Case("a batch of none", "passes through", lambda e: same(e, e.augment(e.x[:0], e.y[:0])), None),
    Case(
        "all images of one patient",
        "a warning, then passes through",
        warned("are of patient 'a'", lambda e: same(e, e.augment(e.x, e.y, patients=["a"] * 12))),
        None,
    ),
    Case(
        "rows of a grade without weights",
        "these rows pass through",
        lambda e: same(
            SimpleNamespace(x=e.x, y=torch.ones(12, dtype=torch.int64)),
            KeyExchangeAugment(e.model, p=1.0, classes=("0", "1", "2"))(
                e.x, torch.ones(12, dtype=torch.int64)
            ),
        ),
        None,
    ),
    Case(
        "eval mode",
        "passes through",
        lambda e: same(e, KeyExchangeAugment(e.model, p=1.0).eval()(e.x, e.y)),
        None,
    ),
    Case(
        "`enabled = False`",
        "passes through",
        lambda e: (setattr(e.augment, "enabled", False), same(e, e.augment(e.x, e.y))),
        None,
    ),
]
OPTIONS = [
    Case("p=1.5", "ValueError", aug(p=1.5), "p=1.5"),
    Case("p=nan", "ValueError", aug(p=float("nan")), "p=nan"),
    Case("strength=-1", "ValueError", aug(strength=-1), "strength=-1"),
    Case("strength=(1, 0)", "ValueError", aug(strength=(1, 0)), "strength=(1, 0)"),
    Case("strength=inf", "ValueError", aug(strength=float("inf")), "strength=inf"),
    Case("detail='both'", "ValueError", aug(detail="both"), "detail='both'"),
    Case("label_mode='hard'", "ValueError", aug(label_mode="hard"), "label_mode='hard'"),
    Case("mean without std", "ValueError", aug(mean=[0.5]), "give both"),
    Case("std=0", "ValueError", aug(mean=[0.5], std=[0.0]), "accepted are positive"),
    Case(
        "mean of 3 channels, images of 1",
        "ValueError",
        aug(mean=[0.5] * 3, std=[0.2] * 3),
        "3 values for 1 channels",
    ),
    Case(
        "mean of 3, std of 2 values", "ValueError", aug(mean=[0.5] * 3, std=[0.2] * 2), "one value a channel"
    ),
    Case("value_range=(1, 0)", "ValueError", aug(value_range=(1, 0)), "low < high"),
    Case(
        "value_range with mean and std",
        "ValueError",
        aug(mean=[0.5], std=[0.2], value_range=(-1, 1)),
        "leave it out",
    ),
    Case(
        "classes that the weights do not know",
        "ValueError",
        aug(classes=("healthy", "sick")),
        "these weights exchange",
    ),
    Case("classes that repeat", "ValueError", aug(classes=("0", "2", "2")), "accepted are different names"),
    Case("classes as one text", "ValueError", aug(classes="02"), "accepted is a sequence of names"),
    Case(
        "a missing value among the classes",
        "ValueError",
        aug(classes=(0, 2, float("nan"))),
        "is a missing value",
    ),
    Case("a missing value among classes", "ValueError", aug(classes=["0", "2", None]), "is a missing value"),
    Case(
        "one class in two spellings",
        "ValueError",
        aug(classes=["0", "2", "2.0"]),
        "accepted are different names",
    ),
    Case("append=0", "ValueError: give False", aug(append=0), "append=0"),
    Case("append=-1", "ValueError", aug(append=-1), "append=-1"),
    Case("a name for labels_getter", "ValueError", aug(labels_getter="grade"), "labels_getter='grade'"),
    Case(
        "a labels_getter that makes new labels",
        "ValueError",
        aug(labels_getter=lambda batch: batch[1] + 0),
        "not in the batch",
    ),
    Case(
        "labels_getter=None",
        "ValueError",
        aug(labels_getter=None),
        "labels_getter=None",
    ),
    Case("a dict for engine", "TypeError", aug(engine={"chunk_size": 1}), "accepted is EngineOptions"),
    Case("chunk_size=0", "ValueError", lambda e: EngineOptions(chunk_size=0), "chunk_size=0"),
    Case(
        "amp_dtype=torch.int8",
        "ValueError",
        lambda e: EngineOptions(amp_dtype=torch.int8),
        "amp_dtype=torch.int8",
    ),
    Case("a misspelt option", "TypeError", aug(strenght=1), "strenght"),
    Case(
        "a name for the model",
        "TypeError: use `from_pretrained(name)`",
        lambda e: KeyExchangeAugment("knee-kl02"),
        "from_pretrained",
    ),
    Case(
        "another module for the model",
        "TypeError",
        lambda e: KeyExchangeAugment(torch.nn.Linear(1, 1)),
        "got Linear",
    ),
    Case(
        "a replay with a bank's parameters",
        "ValueError",
        lambda e: e.augment.replay(e.x, e.y, params=banked_params(e)),
        "their donors are rows of bank",
    ),
    Case(
        "a replay with a smaller batch",
        "ValueError",
        lambda e: (e.augment(e.x, e.y), e.augment.replay(e.x[:3], e.y[:3], params=e.augment.params)),
        "of a batch of 3",
    ),
    Case(
        "a model on a GPU in a DataLoader worker",
        "RuntimeError: exchange after the DataLoader",
        in_worker,
        "in a DataLoader worker",
    ),
]
WEIGHTS = [
    Case(
        "a misspelt bundled name",
        "WeightsError with the nearest name",
        lambda e: load_weights("knee_kl02"),
        "Did you mean 'knee-kl02'",
    ),
    Case(
        "a folder that does not exist",
        "WeightsError; the Hub is not asked",
        lambda e: load_weights(e.new("nothing")),
        "does not exist",
    ),
    Case("a file", "WeightsError", lambda e: load_weights(e.saved / "config.json"), "is a file"),
    Case("an empty folder", "WeightsError", lambda e: load_weights(e.tmp), "config.json is missing"),
    Case(
        "a revision of a local folder",
        "WeightsError",
        lambda e: load_weights(e.saved, revision="main"),
        "only Hub repositories",
    ),
    Case(
        "a truncated safetensors file",
        "WeightsError",
        lambda e: with_file(e, lambda e: (e.saved / "model.safetensors").read_bytes()[:5000]),
        "not a whole safetensors file",
    ),
    Case(
        "an empty safetensors file",
        "WeightsError",
        lambda e: with_file(e, b""),
        "not a whole safetensors file",
    ),
    Case(
        "a header that claims 2^60 bytes",
        "WeightsError",
        lambda e: with_file(e, (2**60).to_bytes(8, "little") + b"{}"),
        "not a whole safetensors file",
    ),
    Case(
        "a header that is no JSON",
        "WeightsError",
        lambda e: with_file(e, (8).to_bytes(8, "little") + b"notjson!"),
        "not a whole safetensors file",
    ),
    Case(
        "a pickle under the name model.safetensors",
        "WeightsError; it is not read",
        lambda e: with_file(e, pickled),
        "Pickles are never loaded",
    ),
    Case(
        "somebody else's safetensors",
        "WeightsError",
        lambda e: with_file(e, tensors),
        "not from the same save",
    ),
    Case("one altered bit", "WeightsError", lambda e: with_file(e, altered), "altered or damaged"),
    Case(
        "a config with an unknown key",
        "WeightsError",
        lambda e: edited(e, colour=1),
        "unknown keys ['colour']",
    ),
    Case(
        "a config with a missing key",
        "WeightsError",
        lambda e: edited(e, width=None),
        "missing keys ['width']",
    ),
    Case("a config of another size", "WeightsError", lambda e: edited(e, width=4), "has shape"),
    Case("a config with latent='cube'", "WeightsError", lambda e: edited(e, latent="cube"), "latent='cube'"),
    Case("an unknown preset", "ValueError", lambda e: KECAE.from_preset("huge"), "preset='huge'"),
    Case(
        "`encode` of images of another size",
        "ValueError",
        lambda e: e.model.encode(torch.zeros(1, 1, 65, 65)),
        "accepted is (B, 1, 64, 64)",
    ),
    Case(
        "`decode` of another latent",
        "ValueError",
        lambda e: e.model.decode(torch.zeros(1, 3, 1, 1)),
        "accepted is (B, 128, 1, 1)",
    ),
    Case(
        "saving over other weights",
        "FileExistsError",
        lambda e: save_weights(e.model, e.saved, metadata={}),
        "overwrite=True",
    ),
]
BANKS = [
    Case(
        "a data set of classes that the weights do not know",
        "BankError",
        lambda e: LatentBank.build(Knees(), e.model, e.new("b"), classes=("healthy", "ill")),
        "no row could ever be given",
    ),
    Case(
        "building on after another preprocessing",
        "BankError",
        lambda e: [
            LatentBank.build(k, e.model, e.new("b"))
            for k in (preprocessed(), preprocessed(fix_inverted=True))
        ],
        "preprocessing: fix_inverted was",
    ),
    Case(
        "appending a data set of another preprocessing",
        "BankError",
        lambda e: [
            LatentBank.build(k, e.model, e.new("b"), append=True)
            for k in (preprocessed(), preprocessed(fix_inverted=True))
        ],
        "fix_inverted was False, now True",
    ),
    Case(
        "a bank beside a data set of another preprocessing",
        "ValueError",
        lambda e: KeyExchangeDataset(
            preprocessed(fix_inverted=True),
            e.model,
            4,
            bank=LatentBank.build(preprocessed(), e.model, e.new("b")),
        ),
        "fix_inverted was False, now True",
    ),
    Case(
        "a bank of other weights",
        "BankError",
        lambda e: KeyExchangeAugment(KECAE.from_preset("tiny"), bank=wide(e)),
        "of other weights",
    ),
    Case(
        "a bank of classes that the caller has not got",
        "ValueError",
        lambda e: KeyExchangeAugment(
            e.model,
            bank=SimpleNamespace(
                labels=["a", "b"], classes=("0", "2"), intensity=Intensity(), check_weights=lambda *_: None
            ),
        ),
        "the bank has rows of ['a', 'b']",
    ),
    Case(
        "a bank with a patient of the validation split",
        "BankError",
        lambda e: LatentBank(wide(e).folder, exclude_patients=["p3"]),
        "share 1 patients",
    ),
    Case(
        "patients to exclude from a bank without patients",
        "BankError",
        lambda e: LatentBank.build(
            items((torch.rand(1, 64, 64), 0)), e.model, e.new("b"), exclude_patients=["p"]
        ),
        "have no patients",
    ),
    Case(
        "patients in the batch, none in the bank",
        "BankError",
        lambda e: KeyExchangeAugment(e.model, p=1.0, bank=nameless(e))(
            e.x, e.y, patients=[str(i) for i in range(12)]
        ),
        "the bank's rows have none",
    ),
    Case(
        "an unfinished bank", "BankError: build it again, it goes on", unfinished, "goes on where it stopped"
    ),
    Case("a folder that is no bank", "BankError", lambda e: LatentBank(e.saved), "no bank.json there"),
    Case(
        "building a bank into a folder with other files",
        "BankError",
        lambda e: LatentBank.build(Knees(), e.model, foreign(e)),
        "nothing of others is written to",
    ),
    Case(
        "rows outside a bank",
        "IndexError",
        lambda e: wide(e).keys(torch.tensor([20])),
        "accepted are 0 to 19",
    ),
    Case(
        "residuals of a bank without",
        "BankError",
        lambda e: wide(e, residual=False).residuals(torch.tensor([0])),
        "residual=True",
    ),
    Case(
        "dtype=torch.int8 for a bank",
        "ValueError",
        lambda e: LatentBank.build(Knees(), e.model, e.new("b"), dtype=torch.int8),
        "dtype=torch.int8",
    ),
    Case(
        "a data set without classes",
        "ValueError",
        lambda e: LatentBank.build([(torch.rand(1, 64, 64), 0)], e.model, e.new("b")),
        "give their names",
    ),
    Case(
        "an iterable data set",
        "TypeError",
        lambda e: LatentBank.build(
            type("Stream", (IterableDataset,), {"__iter__": None})(), e.model, e.new("b")
        ),
        "map-style Dataset",
    ),
    Case(
        "an empty data set",
        "ValueError",
        lambda e: LatentBank.build(Knees(0), e.model, e.new("b")),
        "is empty",
    ),
    Case(
        "a data set of PIL images",
        "TypeError",
        lambda e: LatentBank.build(items((Image.new("L", (64, 64)), 0)), e.model, e.new("b")),
        "PILToTensor",
    ),
    Case(
        "a data set of numpy images",
        "TypeError",
        lambda e: LatentBank.build(items((np.zeros((64, 64)), 0)), e.model, e.new("b")),
        "is a ndarray",
    ),
    Case(
        "a data set of images without labels",
        "TypeError",
        lambda e: LatentBank.build(items(torch.rand(1, 64, 64)), e.model, e.new("b")),
        "accepted are (image, label)",
    ),
    Case(
        "a data set of images of several shapes",
        "ValueError",
        lambda e: LatentBank.build(items(lambda i: (torch.rand(1, 60 + i, 64), i % 2)), e.model, e.new("b")),
        "different shapes",
    ),
    Case(
        "a data set with a label outside its classes",
        "ValueError",
        lambda e: LatentBank.build(items((torch.rand(1, 64, 64), 7)), e.model, e.new("b")),
        "row 0 has 7",
    ),
]
SETS = [
    Case("n_pairs=-1", "ValueError", lambda e: KeyExchangeDataset(Knees(), e.model, -1), "n_pairs=-1"),
    Case(
        "no data set and no bank",
        "ValueError",
        lambda e: KeyExchangeDataset(None, e.model, 4),
        "give the training set, a bank, or both",
    ),
    Case(
        "a data set of one class",
        "ValueError",
        lambda e: KeyExchangeDataset(items((torch.rand(1, 64, 64), 0)), e.model, 4),
        "at least two are needed",
    ),
    Case(
        "a data set of one patient",
        "ValueError",
        lambda e: KeyExchangeDataset(Knees(2), e.model, 2, real=False)[0],
        "same_patient=True",
    ),
    Case(
        "an index beyond the end",
        "IndexError",
        lambda e: KeyExchangeDataset(Knees(), e.model, 4)[24],
        "accepted are 0 to 23",
    ),
    Case(
        "a bank of another data set",
        "ValueError",
        lambda e: KeyExchangeDataset(Knees(8), e.model, 4, bank=wide(e)),
        "has 20 rows for a dataset of 8",
    ),
    Case(
        "detail='host' from a bank without residuals",
        "ValueError",
        lambda e: KeyExchangeDataset(None, e.model, 4, bank=wide(e, residual=False), detail="host"),
        "residual=True",
    ),
    Case(
        "an iterator for a loader",
        "TypeError",
        lambda e: KeyExchangeLoader(iter(DataLoader(Knees())), e.augment),
        "empty after one epoch",
    ),
    Case(
        "something else for the transform",
        "TypeError",
        lambda e: KeyExchangeLoader(DataLoader(Knees()), 1),
        "augment: got int",
    ),
    Case(
        "a gate without oracles or distance",
        "ValueError",
        lambda e: Gate([], classes=("0", "2")),
        "nothing could be rejected",
    ),
    Case(
        "an oracle that is a path",
        "TypeError",
        lambda e: Gate(["oracle/"], classes=("0", "2")),
        "oracles[0]: got str",
    ),
    Case(
        "an oracle with another number of logits",
        "ValueError",
        lambda e: aug(gate=Gate([lambda x: torch.zeros(len(x), 5)], classes=("0", "2")))(e),
        "oracles[0]: gave shape (12, 5)",
    ),
    Case(
        "an oracle of other classes than its gate's",
        "ValueError",
        lambda e: Gate([e.oracle], classes=("2", "0")),
        "oracles[0]: its logits are of classes ('0', '2')",
    ),
    Case(
        "a gate of other classes",
        "ValueError: when the transform is made",
        lambda e: aug(gate=Gate([lambda x: torch.zeros(len(x), 2)], classes=("a", "b")))(e),
        "not ['0', '2']",
    ),
    Case(
        "generating into a folder with other files",
        "GenerateError",
        lambda e: generate(KeyExchangeDataset(Knees(), e.model, 4, real=False), foreign(e)),
        "nothing of others is written to",
    ),
    Case(
        "generating into the folder of another run",
        "GenerateError",
        lambda e: [
            generate(KeyExchangeDataset(Knees(), e.model, n, real=False), e.tmp / "run", say=str)
            for n in (3, 4)
        ],
        "holds another run: pairs was 3, now 4",
    ),
    Case(
        "generating from T and X' together",
        "ValueError",
        lambda e: generate(KeyExchangeDataset(Knees(), e.model, 4), e.new("g")),
        "real=False",
    ),
    Case(
        "generating from a data set with a transform",
        "ValueError",
        lambda e: generate(
            KeyExchangeDataset(Knees(), e.model, 4, real=False, transform=lambda x: x), e.new("g")
        ),
        "transform=None",
    ),
    Case(
        "parts of other value ranges in one ConcatDataset",
        "ValueError",
        lambda e: KeyExchangeDataset(ConcatDataset([ranged((-1, 1)), ranged((0, 1))]), e.model, 4),
        "bring them to one range",
    ),
    Case(
        "parts of other preprocessings in one ConcatDataset",
        "ValueError",
        lambda e: KeyExchangeDataset(
            ConcatDataset([preprocessed(), preprocessed(contrast=(1, 99))]), e.model, 4
        ),
        "prepare them alike",
    ),
]
FILES = [
    Case(
        "a table in another encoding",
        "ValueError: save it as CSV UTF-8",
        lambda e: listed(e, "path,label,patient\ngröße.png,0,1\n".encode("cp1252")),
        "line 2 is not UTF-8",
    ),
    Case(
        "a table whose columns are called almost so",
        "ValueError",
        lambda e: listed(e, "Path,Label,Patient\n0.png,0,1\n"),
        "for instance columns=",
    ),
    Case(
        "a row without a grade",
        "ValueError; with `on_bad='skip'` it is listed",
        lambda e: listed(e, "path,label,patient\n0.png,nan,1\n"),
        "line 2: empty path, label or patient",
    ),
    Case(
        "an image that a table lists twice",
        "ValueError",
        lambda e: listed(e, "path,label,patient\n0.png,0,1\n0.png,2,1\n"),
        "stands in line 2 already",
    ),
    Case(
        "a TIFF of floats beyond 1",
        "BadImageError",
        lambda e: image_file(e, np.full((16, 16), 4095, np.float32)),
        "accepted are 0 to 1, or integers",
    ),
    Case(
        "a colour photograph in a file",
        "BadImageError",
        lambda e: image_file(e, np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)),
        "a colour image",
    ),
]
CASES = [*STRUCTURE, *IMAGES, *LABELS, *PASS, *OPTIONS, *WEIGHTS, *BANKS, *SETS, *FILES]


class Oracle(torch.nn.Module):
    classes = ("0", "2")


def banked_params(e):
    banked = KeyExchangeAugment(e.model, p=1.0, bank=wide(e))
    banked(e.x, e.y)
    return banked.params


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.manual_seed(0)
    model = KECAE.from_preset("tiny").eval()
    return model, save_weights(model, tmp_path_factory.mktemp("saved") / "w", metadata={})


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.given)
def test_bad_input(case, world, tmp_path):
    """The documented answer, with the argument or the way out in its message."""
    torch.manual_seed(0)
    e = SimpleNamespace(
        model=world[0],
        saved=world[1],
        augment=KeyExchangeAugment(world[0], p=1.0),
        x=torch.rand(12, 1, 64, 64),
        y=torch.arange(12) % 2,
        tmp=tmp_path,
        oracle=Oracle(),
        new=lambda name: tmp_path / name,
    )
    if case.says is None:
        case.call(e)
        return
    with pytest.raises((ValueError, TypeError, IndexError, RuntimeError, FileExistsError)) as caught:
        case.call(e)
    assert case.says in str(caught.value)
    assert type(caught.value).__name__ == case.answer.split(":")[0].split(";")[0].split(" ")[0]


def test_no_case_stands_twice():
    """The name of a case is its test id."""
    assert len({case.given for case in CASES}) == len(CASES) >= 60
