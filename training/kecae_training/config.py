"""What a training run is made of: dataclasses that become YAML files and flags.

`configs/paper.yaml` is the paper's reading, `default.yaml` what this project recommends, `tiny.yaml` the
one for tests; any field is also a flag: `--loss.terms.sup 0.02`.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from kecae_aug.device import DEVICES, PRECISIONS, Precision, amp_dtype, choose_device
from kecae_aug.engine.model import PRESETS
from kecae_aug.names import class_names
from kecae_training.discriminator.panel import members_of
from kecae_training.flags import join_lists
from kecae_training.losses import TERMS, LossConfig

__all__ = [
    "CONFIGS",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "Precision",
    "RunConfig",
    "TrainConfig",
]

CONFIGS = ("paper", "default", "tiny")


@dataclass
class DataConfig:
    """Which radiographs, and how they are preprocessed.

    Args:
        root: folder of split/grade/name, or a table.csv; may also come from the variable KECAE_KNEE_DATA.
        split: subfolder that is trained on; the only one that is read.
        mirror_right: turn right knees into left ones.
        folds: into how many parts the patients are divided (by a hash of the id, as for discriminators); 1 takes all.
        fold: the part that is trained on. For oracles that have seen no patient of the weights.
        fix_inverted: detect negatives (bone dark) and turn them.
        align: turn and move each knee until its joint line is level and in one place (`kecae_aug.data.alignment`); needs
            ``fix_inverted`` and 48 px.
        contrast: percentiles mapped to -1 and 1, none for the plain range of the file.
    """

    root: Path | None = None
    split: str | None = "train"
    mirror_right: bool = False
    fix_inverted: bool = False
    contrast: tuple[float, float] | None = None
    folds: int = 1
    fold: int = 0
    align: bool = False


@dataclass
class ModelConfig:
    """The network; what is None is taken from the preset.

    Args:
        preset: ``"paper"``, ``"compact"`` or ``"tiny"``.
        image_size: side of the images in pixels.
        width: channels of the first block.
        latent: ``"vector"`` (paper) or ``"spatial"``.
        latent_channels: channels of hK and hN.
        latent_size: side of spatial latents.
        key_size: numbers of a narrow key; None for a key of the latent's own shape.
        classes: the grades that exchange keys; any two of them make a pair.
    """

    preset: str = "paper"
    image_size: int | None = None
    width: int | None = None
    latent: Literal["vector", "spatial"] | None = None
    latent_channels: int | None = None
    latent_size: int | None = None
    key_size: int | None = None
    classes: tuple[str, ...] = ("0", "2")

    def __post_init__(self) -> None:
        self.classes = class_names(self.classes, "model.classes")


@dataclass
class OptimConfig:
    """Pairs and steps.

    Args:
        n_pairs: N, pairs of an epoch, drawn without replacement; None takes the whole grid.
        bootstrap: oversample the smaller grade to the size of the larger before pairing.
        epochs: passes over the N pairs.
        max_steps: stops earlier, whatever the epoch; None for all epochs.
        batch_size: pairs a step, over all processes together.
        lr: of Adam; the peak, where there is a schedule.
        schedule: ``"constant"`` (paper) or ``"cosine"`` down to 1 % of lr over all steps after 100 of warm-up.
        gradient_clip: largest norm of the gradient; None for no clipping.
        augment: amount of standard augmentation of the training knees (affine, exposure; `kecae_training.augment`),
            drawn anew in each step; 0 for none.
        key_warmup: steps in which the key's encoder alone learns the grade, before the first pair: a tenth of the cost of
            as many steps with pairs, and the exchange has a key to work with from its start. Needs loss.terms.grade_in_key.
        freeze_key: leave the key's encoder as it is when the pairs begin (after ``key_warmup``, or from ``init``): the
            reconstruction cannot use it to carry the knee, nor the discriminator to carry a pattern.
        ema: decay of an exponential moving average of the weights, which is then what is exported; None for none.
    """

    n_pairs: int | None = 100_000
    bootstrap: bool = False
    epochs: int = 1000
    max_steps: int | None = None
    batch_size: int = 32
    lr: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    gradient_clip: float | None = None
    augment: float = 0.0
    key_warmup: int = 0
    freeze_key: bool = False
    ema: float | None = None


@dataclass
class RunConfig:
    """Machine and bookkeeping: nothing here changes what is learned, but for ``seed`` and ``precision``.

    Args:
        seed: of initialisation, pairs and permutations.
        accelerator: ``"auto"``, ``"cpu"``, ``"cuda"``, ...; on the command line ``--device``, as in every command.
        devices: processes on this node.
        num_nodes: machines.
        strategy: of Lightning Fabric; ``"auto"`` is DDP where there are several processes.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``; on the command line ``--precision`` too.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of log.jsonl.
        samples_every: steps between sample grids; 0 for none. They show training images.
        tensorboard: also log for TensorBoard.
        weights_dtype: of the exported weights.
        progress: show a progress bar.
    """

    seed: int = 0
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: Precision = "32-true"
    checkpoint_every: int = 200
    log_every: int = 10
    samples_every: int = 500
    tensorboard: bool = False
    weights_dtype: Literal["float32", "float16"] = "float32"
    progress: bool = True


@dataclass
class TrainConfig:
    """A whole run.

    Args:
        out: folder of the run; a run that is there goes on where it stopped.
        discriminator: folder of a discriminator (`kecae-aug discriminator`) or of a panel of them, needed by the terms
            that look through it; of several, each step draws one.
        key_teacher: folder of a discriminator or panel that the warm-up of the key (optim.key_warmup) learns from: the
            posterior of what it sees, at its own size, beside the label. Trained on no patient outside the data's fold.
        init: weights to begin with (bundled name, folder or Hub id); None for Kaiming.
    """

    out: Path = Path("runs/kecae")
    discriminator: Path | list[Path] | None = None
    key_teacher: Path | None = None
    init: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def discriminators(self) -> list[Path]:
        """Folders of all discriminators, a panel's members one by one."""
        given = self.discriminator
        folders = [] if given is None else given if isinstance(given, list) else [given]
        return [member for folder in folders for member in members_of(folder)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return dict(_plain(asdict(self)))

    def learned_by(self) -> dict[str, Any]:
        """The part that decides what is learned: a resumed run must agree with it."""
        values = self.to_dict()
        run = {key: values["run"][key] for key in ("seed", "precision")}
        optim = values["optim"]
        if optim["schedule"] == "constant":  # only then is a longer run the same run
            optim = {k: v for k, v in optim.items() if k not in ("max_steps", "epochs")}
        data = {k: v for k, v in values["data"].items() if k != "root"}  # the fingerprint stands for it
        if not data["align"]:
            del data["align"]  # runs begun before there was the option go on
        return {
            "init": values["init"],
            **({"key_teacher": values["key_teacher"]} if self.key_teacher is not None else {}),
            "data": data,
            "model": values["model"],
            # without the weights that are 0: runs begun before there was the term go on
            "loss": values["loss"] | {"terms": self.loss.active},
            "optim": optim,
            "run": run,
        }

    def check_flags(self) -> None:
        """Raise ValueError where discriminators are given and nothing would look through them."""
        if self.discriminators and not self.loss.by_discriminator:
            raise ValueError(
                f"discriminator={[str(g) for g in self.discriminators]} would have no effect: no term "
                "of this configuration looks through a "
                "discriminator; give one a weight (such as --loss.terms.sup 0.01), or leave --discriminator out"
            )

    def check(self) -> None:
        """Raise one ValueError that lists all that is wrong."""
        problems = []
        if self.model.preset not in PRESETS:
            problems.append(f"model.preset={self.model.preset!r}: accepted are {', '.join(PRESETS)}")
        looking = self.loss.by_discriminator
        if looking and not self.discriminators:
            values = ", ".join(f"loss.terms.{k}={self.loss.terms[k]}" for k in looking)
            problems.append(
                f"discriminator is missing while {values}: give a folder made by `kecae-aug discriminator`, or set "
                f"{' and '.join(f'--loss.terms.{k} 0' for k in looking)}"
            )
        if looking and self.loss.discriminator_from >= (self.optim.max_steps or math.inf):
            problems.append(
                f"loss.discriminator_from={self.loss.discriminator_from}: the discriminator would come after the last of "
                f"optim.max_steps={self.optim.max_steps}, so that its weights played no part; accepted are fewer steps, "
                "such as a third of all"
            )
        problems += self.loss.problems()
        if not 0 <= self.data.fold < self.data.folds:
            problems.append(
                f"data.fold={self.data.fold}: accepted are 0 to data.folds - 1 = {self.data.folds - 1}"
            )
        world = self.run.devices * self.run.num_nodes
        if self.optim.batch_size < 1 or self.optim.batch_size % world:
            problems.append(
                f"optim.batch_size={self.optim.batch_size}: a multiple of {world} processes is needed"
            )
        for name in ("n_pairs", "max_steps"):
            value = getattr(self.optim, name)
            if value is not None and value < 1:
                problems.append(f"optim.{name}={value}: 1 or more, or null")
        if self.optim.n_pairs is not None and self.optim.n_pairs < self.optim.batch_size:
            problems.append(
                f"optim.n_pairs={self.optim.n_pairs}: at least optim.batch_size={self.optim.batch_size}"
            )
        if self.optim.epochs < 1 or self.optim.lr <= 0:
            problems.append(
                f"optim.epochs={self.optim.epochs}, optim.lr={self.optim.lr}: both must be positive"
            )
        if self.optim.key_warmup and "key_logits" not in self.loss.reads:
            problems.append(
                f"optim.key_warmup={self.optim.key_warmup} needs the head of loss.terms.grade_in_key: give it a weight, "
                "or set --optim.key_warmup 0"
            )
        if self.key_teacher is not None and not self.optim.key_warmup:
            problems.append(
                f"key_teacher={str(self.key_teacher)!r} would have no effect: it teaches the warm-up; give "
                "--optim.key_warmup, or leave --key_teacher out"
            )
        if self.optim.freeze_key and not (self.optim.key_warmup or self.init):
            problems.append(
                "optim.freeze_key would keep a key that has learned nothing: give --optim.key_warmup or --init"
            )
        if self.optim.ema is not None and not 0 < self.optim.ema < 1:
            problems.append(f"optim.ema={self.optim.ema}: between 0 and 1, or null")
        if self.run.checkpoint_every < 1 or self.run.log_every < 1:
            problems.append("run.checkpoint_every and run.log_every must be 1 or more")
        if problems:
            raise ValueError("TrainConfig: " + "; ".join(problems))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def config_path(name: str) -> Path:
    """A YAML file: one of the packaged names (``paper``, ``default``, ``tiny``) or a path."""
    if name in CONFIGS:
        return Path(str(files("kecae_training").joinpath(f"configs/{name}.yaml")))
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"--config {name}: no such file; accepted are a path or {', '.join(CONFIGS)}")
    return path


def parse(argv: Sequence[str] | None = None) -> TrainConfig:
    """Flags over YAML over the defaults; ``--config`` takes a packaged name or a path."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="kecae-aug train", description="Train a KECAE (Algorithm 1).")
    parser.add_argument("--config", action="config", help="default, paper, tiny or a YAML file")
    parser.add_argument("--device", help=f"{', '.join(DEVICES)}; short for --run.accelerator")
    parser.add_argument("--precision", help=f"{', '.join(PRECISIONS)}; short for --run.precision")
    parser.add_class_arguments(TrainConfig)
    args = _long_names(join_lists(sys.argv[1:] if argv is None else argv, "--model.classes"))
    for i, arg in enumerate(args):
        name = arg.partition("=")[0].removeprefix("--loss.")
        if arg.startswith("--loss.") and name in TERMS:
            raise ValueError(f"--loss.{name}: the weight of a term is --loss.terms.{name}")
        if arg == "--config" and i + 1 < len(args):
            args[i + 1] = str(config_path(args[i + 1]))
        elif arg.startswith("--config="):
            args[i] = f"--config={config_path(arg.partition('=')[2])}"
    values = parser.instantiate(parser.parse_args(args))
    if values.get("device") or values.get(
        "precision"
    ):  # the flags were given their long names: it is in a file
        raise ValueError("--config: in a file device and precision are run.accelerator and run.precision")
    config = TrainConfig(
        **{
            k: values[k]
            for k in ("out", "discriminator", "key_teacher", "init", "data", "model", "loss", "optim", "run")
        }
    )
    if config.data.root is None and os.environ.get("KECAE_KNEE_DATA"):
        config.data.root = Path(os.environ["KECAE_KNEE_DATA"])
    config.check()
    return config


def _long_names(args: list[str]) -> list[str]:
    """``--device`` and ``--precision``, which every command has, as the fields that they stand for.

    Raises:
        ValueError: a device that is not there, or another one under the long name.
    """
    for short, long in (("--device", "--run.accelerator"), ("--precision", "--run.precision")):
        given, also = _value(args, short), _value(args, long)
        if given is None:
            continue
        if short == "--precision":
            amp_dtype(given)
        elif (device := choose_device(given)).index is not None:
            raise ValueError(
                f"--device {given}: a training takes a kind of device, --device {device.type}; choose cards with "
                "CUDA_VISIBLE_DEVICES, and their number with --run.devices"
            )
        if also not in (None, given):
            raise ValueError(f"{short} {given} and {long} {also}: give one of them")
        args = [long + a.removeprefix(short) if a.partition("=")[0] == short else a for a in args]
    return args


def _value(args: Sequence[str], name: str) -> str | None:
    """What a flag was given last, None where it was not."""
    found = None
    for i, arg in enumerate(args):
        if arg == name and i + 1 < len(args):
            found = args[i + 1]
        elif arg.startswith(f"{name}="):
            found = arg.partition("=")[2]
    return found
