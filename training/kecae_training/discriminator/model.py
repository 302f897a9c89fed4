"""A discriminator: the frozen classifier of Eq. 5. An oracle, which judges weights, is the same, of other patients.

Patients are divided by a hash of their id (`fold` of `folds`), so that a discriminator and an oracle of different
folds have no patient in common, whatever the list of files.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from kecae_aug.data import Preprocessing
from kecae_aug.device import PRECISIONS, Precision, autocast, cpu_by_default
from kecae_aug.engine.exchange import resize
from kecae_aug.files import save_tensors
from kecae_aug.names import class_names, patient_id
from kecae_training.discriminator.lite import LITE
from kecae_training.discriminator.networks import NETWORKS, build, stages
from kecae_training.images import to_float

FORMAT = "kecae-discriminator-1"


@dataclass
class DiscriminatorConfig:
    """How a discriminator or oracle is trained.

    Args:
        network: ``"lite0"``, ``"lite1"``, ``"lite2"`` (ImageNet weights, extra ``[pretrained]``), or from scratch
            ``"resnet"``, ``"vgg"``, ``"densenet"``, ``"siamese"``: :mod:`kecae_training.discriminator.networks`.
        image_size: side of the images in pixels.
        grades: classes that it learns. More than the KECAE exchanges is useful: what sets KL 3 and 4 apart is what sets
            KL 2 apart, only clearer. Any names of two classes or more will do.
        ordinal: whether the classes have an order; then ``smoothing`` goes to the neighbours of the label only.
        smoothing: probability that the target gives to other classes than the label.
        pretrained: start from ImageNet; None where the network has such weights.
        folds: into how many parts the patients are divided; 1 takes all of them.
        fold: which part it is trained on.
        epochs: passes over its images.
        batch_size: images a step.
        lr: peak learning rate of AdamW under a one-cycle schedule; from scratch 2e-3 is better.
        weight_decay: of AdamW.
        ema: decay a step of the average of the weights, which is what is validated and saved; None for the weights
            themselves.
        wide: fraction of the images shown in a wider frame (0.6 to 0.9 of their size), so that wider crops are known.
        seed: of initialisation, order and augmentation.
        adversarial_radius: above 0 it is trained on attacked images only
            (:func:`kecae_training.discriminator.adversarial.l2_attack`), so that its gradients show anatomy rather
            than noise. L2 norm of an image's change, in units of [-1, 1], at 128 px; at S px it is radius * S / 128,
            the same change a pixel.
        adversarial_steps: of the attack; each is one more pass forward and back.
        init: folder of a discriminator of the same network to start from, for one that was trained plainly. Where its grades
            are others, the last layer starts anew. Its patients count as seen by this one.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``, of the training alone; the discriminator is float32.

    Raises:
        ValueError: naming the field, for another network, a radius below 0, no step, another precision.
    """

    network: str = "lite0"
    image_size: int = 160
    grades: tuple[str, ...] = ("0", "1", "2", "3", "4")
    ordinal: bool = True
    smoothing: float = 0.05
    pretrained: bool | None = None
    folds: int = 2
    fold: int = 0
    epochs: int = 6
    batch_size: int = 32
    lr: float = 5e-4
    weight_decay: float = 0.02
    ema: float | None = 0.995
    wide: float = 0.3
    seed: int = 0
    adversarial_radius: float = 0.0
    adversarial_steps: int = 2
    init: Path | None = None
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        self.grades = class_names(self.grades, "grades")
        if self.network not in NETWORKS:
            raise ValueError(f"network={self.network!r}: accepted are {', '.join(map(repr, NETWORKS))}")
        if self.pretrained and self.network not in LITE:
            raise ValueError(
                f"pretrained=True: {self.network!r} has no ImageNet weights; accepted are {', '.join(map(repr, LITE))}"
            )
        for name in ("smoothing", "wide"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: accepted is 0 to below 1")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema={self.ema}: accepted is between 0 and 1, or null")
        if not (math.isfinite(self.adversarial_radius) and self.adversarial_radius >= 0):
            raise ValueError(f"adversarial_radius={self.adversarial_radius}: accepted are 0 (off) and above")
        if self.adversarial_steps < 1:
            raise ValueError(f"adversarial_steps={self.adversarial_steps}: accepted are 1 and above")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r}: accepted are {', '.join(PRECISIONS)}")

    @property
    def from_imagenet(self) -> bool:
        """Whether its training starts from ImageNet's weights."""
        return self.init is None and self.network in LITE and self.pretrained is not False


class Discriminator(nn.Module):
    """A classifier of grades, restricted to the classes that a KECAE exchanges.

    Input (B, 1, S, S) in [-1, 1]; output (B, len(classes)) logits, a softmax over these classes alone. Images larger than
    ``image_size`` are reduced to it (antialiased, differentiable), smaller ones are refused: what it has learned to see is
    not in them.

    Attributes:
        image_size: side of the images that it was trained on.
        classes: names, in the order of the logits.
        preprocessing: of these images; None where its file does not say.
    """

    def __init__(self, config: DiscriminatorConfig, classes: Sequence[str] | None = None) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.classes = class_names(classes) if classes else config.grades
        missing = [c for c in self.classes if c not in config.grades]
        if missing:
            raise ValueError(
                f"classes: {missing} are not among the grades {config.grades} this discriminator was trained on"
            )
        self.network = build(config.network, len(config.grades))
        self.metadata: dict[str, Any] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``classes``."""
        side = min(images.shape[-2:])
        if side < self.image_size:
            raise ValueError(
                f"images: {side} px, this discriminator was trained at {self.image_size} px and reads no smaller ones"
            )
        if side > self.image_size:
            images = resize(images, (self.image_size, self.image_size))
        logits: Tensor = self.network(images)
        return logits[:, [self.config.grades.index(c) for c in self.classes]]

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How its training images were preprocessed, from its file."""
        found = self.metadata.get("data", {}).get("preprocessing")
        return None if found is None else Preprocessing(**found)

    @property
    def patients(self) -> set[str]:
        """Ids of all that it has seen, spelled as everywhere (:func:`kecae_aug.names.patient_id`)."""
        return set(self.metadata.get("patients", ()))

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits of ``classes``, and the features of every stage (``networks.stages``), from fine to coarse."""
        seen: list[Tensor] = []
        hooks = [
            stage.register_forward_hook(lambda _, __, output: seen.append(output))
            for stage in stages(self.network)
        ]
        try:
            return self(images), seen
        finally:
            for hook in hooks:
                hook.remove()

    def freeze(self) -> Discriminator:
        """Eval mode for good, no gradients of its own; gradients still flow to its input."""
        self.zero_grad(set_to_none=True)
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Discriminator:
        """A frozen discriminator stays in eval mode when the module around it goes to train mode."""
        frozen = not any(p.requires_grad for p in self.parameters())
        super().train(mode and not frozen)
        return self


def check_fits(
    discriminator: Discriminator,
    name: str,
    *,
    image_size: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Refuse a discriminator or oracle of other images than those that it is to see; one that does not know its own
    is warned of.

    Args:
        discriminator: as loaded.
        name: of it, for the message.
        image_size: side of the images. Smaller ones than the discriminator's are refused; larger ones are reduced by
            the discriminator, and warned of.
        preprocessing: of the images; its ``image_size`` counts where ``image_size`` is not given. None where not known.

    Raises:
        ValueError: with both sizes, or both preprocessings, and the way out.
    """
    size = image_size or (preprocessing.image_size if preprocessing is not None else None)
    if size is not None and size < discriminator.image_size:
        raise ValueError(
            f"{name}: trained on images of {discriminator.image_size} px, these have {size} px, and "
            "an enlarged image has not what "
            f"it learned to see; train one with `kecae-aug discriminator --image_size {size}`"
        )
    if size is not None and size > discriminator.image_size:
        warnings.warn(
            f"{name}: images of {size} px are reduced to the {discriminator.image_size} px that it was trained on",
            stacklevel=2,
        )
    if preprocessing is None:
        return
    own, theirs = discriminator.preprocessing, preprocessing.to_dict()
    if own is None:
        warnings.warn(
            f"{name}: its file does not say how its images were preprocessed, so it is not known whether these fit "
            f"({preprocessing}); train it anew to have that checked",
            stacklevel=2,
        )
        return
    differ = [k for k, v in own.to_dict().items() if k != "image_size" and v != theirs[k]]
    if differ:
        was, now = (", ".join(f"{k}={getattr(p, k)}" for k in differ) for p in (own, preprocessing))
        raise ValueError(
            f"{name}: trained on images with {was}, these have {now}; train one on images like these "
            "(`kecae-aug discriminator` has --no-mirror, --no-fix-inverted, --contrast and --align), "
            "or prepare these like its own"
        )


def in_fold(patient: str | int, fold: int, folds: int) -> bool:
    """Whether a patient belongs to part ``fold`` of ``folds``: a function of the id alone, however it is spelled.

    Raises:
        ValueError: a part that is not there, a missing patient.
    """
    if not 0 <= fold < folds:
        raise ValueError(f"fold={fold}: accepted are 0 to folds - 1 = {folds - 1}")
    name = patient_id(patient)
    if name is None:
        raise ValueError(
            f"patient={patient!r}: it is missing, so that it belongs to no fold; accepted is an id"
        )
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % folds == fold


def save_discriminator(
    discriminator: Discriminator,
    folder: str | Path,
    *,
    patients: Sequence[str],
    data: dict[str, Any],
    half: bool = False,
) -> Path:
    """Write ``discriminator.safetensors`` with its config, its patients and its data in the metadata.

    Args:
        discriminator: what :func:`train_discriminator` returned.
        folder: made if need be; an existing discriminator there is not overwritten.
        patients: ids of all that it has seen, so that an oracle can be refused where it is not held out; those of
            the discriminator it was started from are added.
        data: anything JSON-able that says what it was trained on; ``preprocessing`` in it (``Preprocessing.to_dict()``) is
            compared with that of the images it is given later (:func:`check_fits`).
        half: store kernels as float16, half the size; all is float32 again when it is loaded.
    """
    path = Path(folder) / "discriminator.safetensors"
    if path.exists():
        raise FileExistsError(
            f"folder={str(folder)!r} already holds a discriminator: choose another folder or remove it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": FORMAT,
        "config": json.dumps(asdict(discriminator.config), default=str),
        "patients": json.dumps(sorted(ids_of(patients) | discriminator.patients)),
        "data": json.dumps(data),
    }
    state = {k: v.contiguous() for k, v in discriminator.network.state_dict().items()}
    if half:
        state = {k: v.half() if v.is_floating_point() and v.ndim > 1 else v for k, v in state.items()}
    save_tensors(state, path, metadata)
    return path


def ids_of(patients: Iterable[Any]) -> set[str]:
    """Different patients, spelled as everywhere; missing ones are nobody."""
    return {name for name in map(patient_id, patients) if name is not None}


def load_discriminator(
    folder: str | Path,
    classes: Sequence[str] | None = None,
    *,
    image_size: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> Discriminator:
    """Read what :func:`save_discriminator` wrote: frozen, restricted to ``classes``, on the CPU.

    Args:
        folder: with discriminator.safetensors, or that file.
        classes: in the order of the logits; all its grades by default.
        image_size: of the images that it is to see, and
        preprocessing: how they are preprocessed; both are checked (:func:`check_fits`).

    Raises:
        FileNotFoundError: no discriminator there.
        ValueError: the file is not a discriminator of this version, or is damaged; it does not know a class, or is
        of other images.
    """
    path = Path(folder)
    path = path / "discriminator.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"discriminator={str(folder)!r}: no discriminator.safetensors there; train one with "
            "`kecae-aug discriminator --data DIR --out DIR`"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"discriminator={str(path)!r}: format {metadata.get('format')!r}, accepted is {FORMAT!r}"
            )
        config = json.loads(metadata["config"])
        init = (
            Path(config["init"]) if config.get("init") else None
        )  # absent in files from before there was one
        made = DiscriminatorConfig(**{**config, "grades": tuple(config["grades"]), "init": init})
        missing = [c for c in class_names(classes or made.grades) if c not in made.grades]
        if missing:
            raise ValueError(
                f"discriminator={str(folder)!r}: classes {missing} are not among the grades "
                f"{made.grades} it was trained on; "
                "train one with `kecae-aug discriminator --grades ...`"
            )
        with cpu_by_default():
            discriminator = Discriminator(made, classes)
        discriminator.network.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(
            f"discriminator={str(path)!r}: damaged or not a safetensors file ({error}); train it anew"
        ) from error
    patients = sorted(ids_of(json.loads(metadata["patients"])))
    discriminator.metadata = {"patients": patients, "data": json.loads(metadata["data"])}
    check_fits(
        discriminator, f"discriminator={str(folder)!r}", image_size=image_size, preprocessing=preprocessing
    )
    return discriminator.to(memory_format=torch.channels_last).freeze()


@torch.no_grad()
def predict(
    discriminator: nn.Module, images: Tensor, batch_size: int = 128, *, precision: Precision = "32-true"
) -> Tensor:
    """Class probabilities (N, K), float32 on the CPU, of (N, 1, S, S) images, in batches.

    Args:
        discriminator: anything from images to logits; it runs where its parameters are.
        images: float in [-1, 1], or the uint8 that stands for it (:func:`kecae_training.images.to_uint8`); on any device.
        batch_size: of what is on the discriminator's device at once.
        precision: of the network; the softmax is float32.
    """
    device = device_of(discriminator)

    def read(part: Tensor) -> Tensor:
        part = part.to(device)
        logits: Tensor = discriminator(to_float(part) if part.dtype == torch.uint8 else part)
        return logits.float().softmax(1).cpu()

    with autocast(device, precision):
        return torch.cat([read(part) for part in images.split(batch_size)])


def device_of(network: Any) -> torch.device:
    """Where a module's parameters are; the CPU for one without any, and for a function."""
    place = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    return torch.device("cpu") if place is None else place.device
