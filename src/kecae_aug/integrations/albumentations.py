"""Key exchange as an albumentations transform: :class:`KeyExchange`, for one image at a time.

    pipeline = A.Compose([KeyExchange("knee-kl02", p=0.5), A.Rotate(7)])
    out = pipeline(image=image, label=0, key_exchange_metadata=[{"image": other, "label": 1}, ...])
    image, label = out["image"], out["label"]

Where batches can be exchanged, after the DataLoader, :class:`~kecae_aug.KeyExchangeAugment` is the faster way:
all images of a batch go through the network at once, and on its device.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from kecae_aug.donors import candidates
from kecae_aug.engine.exchange import Detail, Exchanger, check_detail
from kecae_aug.engine.intensity import Intensity
from kecae_aug.engine.model import KECAE
from kecae_aug.engine.params import strength_range
from kecae_aug.engine.warn import WarnOnce
from kecae_aug.names import class_name, class_names, patient_ids, warn_of_missing
from kecae_aug.weights.io import load_weights

try:
    import albumentations as A
except ImportError as error:
    raise ImportError(
        "kecae_aug.integrations.albumentations needs albumentations: pip install 'kecae-aug[albumentations]'"
    ) from error

Image = NDArray[Any]
_IMAGES = ("image", "images")
_ImageOnlyTransform: Any = A.ImageOnlyTransform  # albumentations is annotated in part only


class KeyExchange(_ImageOnlyTransform):
    """Give the image the key of another one, which comes with the call, and that one's label.

    Convention:
        image: (H, W), (H, W, 1) or (H, W, 3) with equal channels; uint8, or float32 in [0, 1]. Any size.
        images: further views of the same knee, or these alone: an array of N images, or a list. Each gets the same donor's
            key, since one label stands for all of them. ``volume`` and ``volumes`` are refused: a KECAE knows radiographs.
        label: an index into ``classes``, or a class name (str); int, numpy integer or str. Comes back as
            the donor's, in the type of the host's; names as :func:`kecae_aug.names.class_name` writes them.
        metadata: a list of ``{"image", "label"}`` dicts, with ``"patient"`` where donors must be of another
            patient than the call's ``patient``. Sizes and dtypes may differ from the host's. Ids are compared by value (9001
            is "9001"); where some are given, whoever has none counts as a patient of its own, and one warning says so.
        The donor is drawn by ``self.py_random``, among the items of another label (and patient) that the weights
        know. Where there is none, or the weights do not know the host's class, the call passes through.
        Masks, boxes, keypoints and everything else stay as they are; nothing is changed in place.

    Random numbers: albumentations copies one random state into every DataLoader worker, in every epoch.
    This transform mixes the worker's own seed into its state, so that its draws differ between workers and
    epochs; for the other transforms of a pipeline give the DataLoader ``worker_init_fn=seed_worker``.

    Args:
        weights: a bundled name, a folder or a Hub id; or a KECAE, with which ``to_dict``, ``A.save`` and
            ``ReplayCompose`` refuse to work.
        strength: fraction of the donor's key, or a range (low, high). Below 0.5 the label stays the host's.
        detail: ``"host"`` or ``"decoder"``, see :class:`~kecae_aug.KeyExchangeAugment`.
        classes: names of the classes in the order of their indices; by default the weights' own.
        label_key: name of the label in the call and in the items.
        metadata_key: name of the list of donors in the call.
        patient_key: name of the patient's id in the call and in the items.
        same_patient: whether a donor may be of the host's patient.
        revision: of a Hub id.
        local_files_only: take a Hub id from the cache only.
        p: chance to be applied.

    Raises:
        ValueError, TypeError: naming the argument, what came and what is accepted.
    """

    py_random: random.Random
    _targets = (A.core.type_definitions.Targets.IMAGE,)

    def __init__(
        self,
        weights: str | os.PathLike[str] | KECAE,
        *,
        strength: float | Sequence[float] = 1.0,
        detail: Detail = "host",
        classes: Sequence[str | int] | None = None,
        label_key: str = "label",
        metadata_key: str = "key_exchange_metadata",
        patient_key: str = "patient",
        same_patient: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        p: float = 0.5,
    ) -> None:
        check_detail(detail)
        self.label_key, self.metadata_key, self.patient_key = label_key, metadata_key, patient_key
        super().__init__(p=p)
        self._available_keys.update((label_key, metadata_key, patient_key))  # for Compose(strict=True)
        self.revision, self.local_files_only = revision, local_files_only
        self.strength = strength if isinstance(strength, (int, float)) else (strength[0], strength[-1])
        self._strengths = strength_range(self.strength)
        self.detail, self.same_patient = detail, same_patient
        self._exchanger = _exchanger(weights, revision, local_files_only)
        self.weights = weights if isinstance(weights, KECAE) else os.fspath(weights)
        known = self._exchanger.config.classes
        self.classes = list(class_names(known if classes is None else classes))
        if len(set(known) & set(self.classes)) < 2:
            raise ValueError(
                f"classes={self.classes}: accepted are names of which at least two are of these weights' {known}"
            )
        self._seen_seed: int | None = None
        self._warn = WarnOnce()
        self._intensity = Intensity()

    def __call__(self, *args: Any, force_apply: bool = False, **data: Any) -> Any:
        """What albumentations calls; the worker's seed is mixed in before anything is drawn."""
        if volumes := [name for name in ("volume", "volumes") if data.get(name) is not None]:
            raise ValueError(
                f"KeyExchange: the call has {volumes}, which would keep the old key beside the new label; a KECAE knows "
                "radiographs. Give views of the same knee as 'images', or put these through a pipeline of their own"
            )
        worker = get_worker_info()
        if worker is not None and worker.seed != self._seen_seed:
            self._seen_seed = worker.seed
            self.py_random = random.Random(f"{self.py_random.random()} {worker.seed}")
        return super().__call__(*args, force_apply=force_apply, **data)

    @property
    def targets(self) -> dict[str, Callable[..., Any]]:
        """The images; the label is handled with them."""
        return {"image": self.apply, "images": self.apply_to_images}

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw donor and strength. The donor's image is kept, so that a replay needs no list of donors."""
        there = [key for key in _IMAGES if data.get(key) is not None]
        if not there or not {self.label_key, self.metadata_key} <= set(data):
            raise ValueError(
                f"KeyExchange: the call has {sorted(data)}, needed are 'image' (or 'images'), {self.label_key!r} and "
                f"{self.metadata_key!r}, a list of {{'image', {self.label_key!r}}} items"
            )
        if "image" in there:
            self._check(data["image"], "image")
        for i, image in enumerate(data["images"] if "images" in there else ()):
            self._check(image, f"images[{i}]")
        found = self._candidates(data)
        if not found:
            return {"donor": None}
        number = self.py_random.choice(found)
        item = data[self.metadata_key][number]
        strength = self.py_random.uniform(*self._strengths)
        self._check(item["image"], f"{self.metadata_key}[{number}]['image']")
        label = self._name(item[self.label_key], "")
        return {"donor": number, "donor_image": item["image"], "donor_label": label, "strength": strength}

    def apply_with_params(self, params: dict[str, Any], *args: Any, **data: Any) -> dict[str, Any]:
        """The call's data with image and label replaced; albumentations' own version would split str labels."""
        if params.get("donor") is None:
            return data
        out = dict(data)
        for name, function in self.targets.items():
            if data.get(name) is not None:
                out[name] = function(data[name], **params)
        if params["strength"] >= 0.5:
            out[self.label_key] = self._like(data[self.label_key], params["donor_label"])
        return out

    @torch.no_grad()
    def apply(self, img: Image, *args: Any, **params: Any) -> Image:
        """X' of the image and the drawn donor, in the image's shape and dtype."""
        host, donor = self._check(img, "image"), self._check(params["donor_image"], "donor_image")
        row = torch.zeros(1, dtype=torch.int64, device="cpu")
        new = self._exchanger.exchange(
            host,
            row,
            row,
            torch.tensor([params["strength"]], device="cpu"),
            detail=self.detail,
            intensity=self._intensity,
            donor_keys=self._exchanger.encode_key(self._intensity.to_engine(donor)),
        )
        return np.ascontiguousarray(new[0].permute(1, 2, 0).numpy().reshape(img.shape))

    def apply_to_images(self, images: Any, *args: Any, **params: Any) -> Any:
        """X' of each, with the same donor; a list stays a list."""
        new = [self.apply(image, *args, **params) for image in images]
        return (
            np.stack(new) if isinstance(images, np.ndarray) and new else type(images)(new) if new else images
        )

    def add_targets(self, additional_targets: dict[str, str]) -> None:
        """Refuse a second image: it would keep its old key beside the new label."""
        images = [
            name for name, kind in additional_targets.items() if kind in (*_IMAGES, "volume", "volumes")
        ]
        if images:
            raise ValueError(
                f"additional_targets={additional_targets}: KeyExchange exchanges 'image' and 'images' only, and {images} "
                "would keep the old key; give views of the same knee as 'images', other knees to a pipeline of their own"
            )
        super().add_targets(additional_targets)

    def to_dict_private(self) -> dict[str, Any]:
        """For to_dict, A.save, ReplayCompose."""
        if isinstance(self.weights, KECAE):
            raise NotImplementedError(
                "KeyExchange: weights is a KECAE, which cannot be written into a pipeline's dict; save it with "
                "save_weights(model, folder, metadata={}) and give KeyExchange the folder's name"
            )
        state: dict[str, Any] = super().to_dict_private()
        return state

    def get_transform_init_args(self) -> dict[str, Any]:
        """The arguments as given; a KECAE by its type's name."""
        args: dict[str, Any] = super().get_transform_init_args()
        return {**args, "weights": "KECAE" if isinstance(self.weights, KECAE) else self.weights}

    def _candidates(self, data: Mapping[str, Any]) -> list[int]:
        """Numbers of the items that may give their key to the host."""
        items, known = data[self.metadata_key], self._exchanger.config.classes
        if not isinstance(items, Sequence) or isinstance(items, str):
            raise TypeError(f"{self.metadata_key}: got {_describe(items)}, accepted is a list of dicts")
        names = [self._name(data[self.label_key], self.label_key)]
        for number, item in enumerate(items):
            where = f"{self.metadata_key}[{number}]"
            if not isinstance(item, Mapping) or not {"image", self.label_key} <= set(item):
                raise ValueError(
                    f"{where}: got {_describe(item)}, accepted is a dict with 'image' and {self.label_key!r}"
                )
            names.append(self._name(item[self.label_key], f"{where}[{self.label_key!r}]"))
        host, *labels = (name if name in known else None for name in names)
        patient, *patients = self._patients(data, items)
        return candidates(host, labels, patient, patients)

    def _check(self, image: Any, name: str) -> Tensor:
        """An image as it came -> (1, C, H, W) of its dtype and scale; what is let pass is said once."""
        if (
            not isinstance(image, np.ndarray)
            or image.ndim not in (2, 3)
            or image.dtype not in (np.uint8, np.float32)
        ):
            raise ValueError(
                f"{name}: got {_describe(image)}, accepted is a numpy array (H, W), (H, W, 1) or (H, W, 3), uint8 or "
                "float32 in [0, 1]; put KeyExchange before Normalize and ToTensorV2"
            )
        planes = torch.from_numpy(
            np.array(image[..., None] if image.ndim == 2 else image)
        )  # a copy, writable
        batch = planes.permute(2, 0, 1)[None]
        try:
            self._intensity.check(batch)
        except ValueError as error:
            raise ValueError(
                f"{name}: {str(error).removeprefix('images: ')} (KeyExchange takes uint8, or float32 in [0, 1])"
            ) from None
        return batch

    def _patients(self, data: Mapping[str, Any], items: Sequence[Any]) -> list[str | None]:
        """Ids of the host and of every item, None where nobody has one or it plays no part."""
        given = [part.get(self.patient_key) if isinstance(part, Mapping) else None for part in (data, *items)]
        if self.same_patient or all(value is None for value in given):
            return [None] * len(given)
        ids = patient_ids(given)
        if None in ids and not self._warn.has("missing"):
            self._warn.mark("missing")
            warn_of_missing(ids, f"{self.patient_key} of the call and of {self.metadata_key}")
        return ids

    def _name(self, label: Any, where: str) -> str:
        name = class_name(label) if isinstance(label, str) else None
        if name in self.classes:
            return str(name)
        if (
            isinstance(label, (int, np.integer))
            and not isinstance(label, bool)
            and 0 <= label < len(self.classes)
        ):
            return self.classes[int(label)]
        raise ValueError(
            f"{where}: got {label!r} ({type(label).__name__}), accepted is a class index from 0 to "
            f"{len(self.classes) - 1}, or a name, of classes={self.classes}"
        )

    def _like(self, label: Any, name: str) -> Any:
        """The class of this name in the type of ``label``."""
        return type(label)(name if isinstance(label, str) else self.classes.index(name))


def seed_worker(worker_id: int) -> None:
    """``DataLoader(..., worker_init_fn=seed_worker)``: other random numbers for every worker and epoch.

    Reseeds each pipeline that is an attribute of the data set, or of the one it wraps (Subset), from the
    worker's seed and the pipeline's own. Not needed for KeyExchange itself.

    Raises:
        ValueError: the data set holds no pipeline.
    """
    worker: Any = get_worker_info()
    dataset, found = worker.dataset, 0
    while dataset is not None:
        for value in vars(dataset).values():
            if isinstance(value, (A.BaseCompose, A.BasicTransform)):
                value.set_random_seed((worker.seed + (value.seed or 0)) % 2**63)
                found += 1
        dataset = getattr(dataset, "dataset", None)
    if not found:
        raise ValueError(
            f"seed_worker: {type(worker.dataset).__name__} has no albumentations pipeline among its attributes; call "
            "its set_random_seed(torch.utils.data.get_worker_info().seed) in a worker_init_fn of your own"
        )


def _exchanger(weights: Any, revision: str | None, local_files_only: bool) -> Exchanger:
    """One a set of weights: replaying and loading a pipeline make a transform each time."""
    if isinstance(weights, KECAE):
        return Exchanger(weights)
    if not isinstance(weights, (str, os.PathLike)):
        raise TypeError(
            f"weights: got {type(weights).__name__}, accepted is a bundled name, a folder, a Hub id, or a KECAE"
        )
    name: Any = weights
    config = Path(name).expanduser() / "config.json"
    return _loaded(name, revision, local_files_only, config.stat().st_mtime_ns if config.is_file() else 0)


@functools.lru_cache(maxsize=4)
def _loaded(name: Any, revision: str | None, local_files_only: bool, written: int) -> Exchanger:
    """``written``: when a folder's weights were, so that new ones are read."""
    return Exchanger(load_weights(name, revision=revision, local_files_only=local_files_only))


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of shape {value.shape}"
    return f"a dict with {sorted(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
