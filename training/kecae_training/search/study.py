"""What a series of short trainings shares: training knees, discriminators, held-out oracles and held-out patients.

An ablation or a search compares many trainings; what they are compared on is made once, in a work folder, and read
back by the next one. Patients of the training, of the oracles and of the held-out knees are disjoint; the discriminator
learns from the training's own, as in the paper.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from kecae_aug.data import Preprocessing, open_radiographs
from kecae_aug.donors import draw_donors
from kecae_aug.files import save_tensors
from kecae_aug.phantom import PhantomKnees, render
from kecae_aug.phantom.jsw import joint_space_width
from kecae_training.config import TrainConfig
from kecae_training.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    device_of,
    in_fold,
    load_discriminator,
    save_discriminator,
    train_discriminator,
)
from kecae_training.evaluate.entrants import both_of
from kecae_training.evaluate.oracles import Bench
from kecae_training.images import to_bytes, to_float, to_uint8
from kecae_training.warmup import Remembered

ORACLES = ("resnet", "vgg", "densenet")
ROBUST = "-robust"  # after a network's name: its discriminator is trained against attacks
RADIUS = 0.2  # of these attacks, as DiscriminatorConfig.adversarial_radius


@dataclass
class Images:
    """Prepared knees in memory, as :func:`kecae_training.train.train` takes them.

    Args:
        pixels: (N, 1, S, S) uint8, 0 to 255 for [-1, 1].
        targets: N class indices.
        patients: N ids.
    """

    pixels: Tensor
    targets: list[int]
    patients: list[str]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return to_float(self.pixels[row]), self.targets[row]

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        return torch.tensor(self.targets)


@dataclass
class Study:
    """All that the trainings of a study share.

    Args:
        name: one line that says which data, sizes and seeds; results of other names are not compared.
        train: knees of the trainings.
        probe: knees that classifiers of latents are fitted on.
        test: held-out knees; each is a host once.
        donors: (N,) rows of ``test`` that give the hosts their keys.
        bench: held-out oracles, with what they say of the real ``test`` knees.
        truth: (N, 1, S, S) what the right exchange changes, on phantoms: the host drawn with the donor's key,
            less the host as it is, in units of [-1, 1].
        discriminator_of: network -> folder of a discriminator of that architecture, trained at its first use,
            against attacks where the name ends in :data:`ROBUST`; None where discriminators are given.
        warm_keys: warmed up once, where trainings differ in what comes after.
    """

    name: str
    train: Images
    probe: Images
    test: Images
    donors: Tensor
    bench: Bench
    truth: Tensor | None = None
    discriminator_of: Callable[[str], Path] | None = None
    warm_keys: Remembered = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where its oracles are, and where the networks run that they evaluate."""
        return device_of(next(iter(self.bench.oracles.values())))

    @cached_property
    def real_widths(self) -> NDArray[np.float64]:
        """(N,) the JSW measurement's medial joint space of the held-out knees, fractions of the height; NaN where
        it declines.
        """
        return joint_space_width(to_float(self.test.pixels)[:, 0])[0]


def phantom_study(
    work: Path,
    patients: int = 800,
    test_patients: int = 150,
    size: int = 64,
    seed: int = 20,
    epochs: int = 10,
    say: Callable[[str], None] = print,
    device: str | torch.device = "cpu",
) -> Study:
    """Phantoms of KL 0 and 2: drawn once, with a discriminator and three oracles trained once.

    Args:
        work: folder that keeps images, discriminators and oracles; made if need be.
        patients: of the trainings and of their discriminators, and as many others of the oracles; two knees each.
        test_patients: held out.
        size: of the images, pixels.
        seed: of the phantoms.
        epochs: of discriminators and oracles.
        say: takes progress lines.
        device: where discriminators are trained, and oracles stay.
    """
    name = f"phantoms {size} px, {patients} + {patients} + {test_patients} patients, seed {seed}"
    folder = work / f"phantoms-{size}px-{patients}-{test_patients}-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    sets = [
        PhantomKnees(n, (0, 2), size, seed, first_patient=first, mirror_right=True)
        for n, first in ((patients, 0), (patients, patients), (test_patients, 2 * patients))
    ]
    test = sets[2]
    generator = torch.Generator().manual_seed(0)
    donors = draw_donors(torch.tensor(test.targets), patients=test.patients, generator=generator)
    file = folder / "images.safetensors"
    if not file.exists():
        say(f"drawing {sum(map(len, sets))} {name}")
        pixels = {part: to_uint8(knees) for part, knees in zip("abc", sets, strict=True)}
        wanted = torch.stack(
            [
                torch.from_numpy(render(test.truth(i).with_key(test.truth(int(j)).key), size))[None]
                for i, j in enumerate(donors)
            ]
        )
        save_tensors({**pixels, "wanted": to_bytes(wanted * 2 - 1)}, file, {"name": name})
    tensors = load_file(file)
    train, judged, held_out = (
        Images(tensors[part], list(knees.targets), list(knees.patients))
        for part, knees in zip("abc", sets, strict=True)
    )

    def trained(kind: str, network: str, knees: Images, of_seed: int) -> Path:
        path = folder / f"{kind}-{network}-{epochs}"
        if not (path / "discriminator.safetensors").exists():
            say(f"training {kind} {network}")
            config = DiscriminatorConfig(
                network.removesuffix(ROBUST),
                size,
                ("0", "2"),
                folds=1,
                epochs=epochs,
                batch_size=64,
                lr=2e-3,
                ema=None,
                wide=0.0,
                seed=of_seed,
                adversarial_radius=RADIUS if network.endswith(ROBUST) else 0.0,
            )
            discriminator = train_discriminator(
                knees.pixels, knees.targets, config, progress=False, device=device
            )
            save_discriminator(discriminator, path, patients=knees.patients, data={"phantoms": name})
        return path

    oracles = {
        network: load_discriminator(
            trained("oracle", network, judged, 1 + i), ("0", "2"), image_size=size
        ).to(device)
        for i, network in enumerate(ORACLES)
    }
    return Study(
        name=name,
        train=train,
        probe=judged,
        test=held_out,
        donors=donors,
        bench=_bench(oracles, held_out),
        truth=to_float(tensors["wanted"]) - to_float(held_out.pixels),
        discriminator_of=lambda network: trained("discriminator", network, train, 0),
    )


def folder_study(
    work: Path,
    config: TrainConfig,
    size: int,
    oracles: Sequence[Path],
    test_split: str = "val",
    say: Callable[[str], None] = print,
    device: str | torch.device = "cpu",
) -> Study:
    """Radiographs of a folder: decoded once, evaluated by discriminators that are given.

    Args:
        work: folder that keeps the decoded images; made if need be.
        config: whose ``data`` and ``model.classes`` say what is trained on; its discriminator is the study's.
        size: of the images, pixels.
        oracles: folders of ``kecae-aug discriminator``, trained on other patients than the held-out ones.
        test_split: subfolder of the held-out patients.
        say: takes progress lines.
        device: where the oracles stay.

    Raises:
        ValueError: no root, no oracle, more than two grades, or an oracle or discriminator that has seen a held-out
        patient, or is of
            other images.
    """
    data, classes = config.data, config.model.classes
    if len(classes) != 2:
        raise ValueError(f"model.classes={tuple(classes)}: the figures of a study are those of two grades")
    if data.root is None:
        raise ValueError(
            "data: no radiographs are given; accepted are DIR with split/grade/name.png and a table.csv"
        )
    if not oracles:
        raise ValueError(
            "oracles: none given; train one on other patients with `kecae-aug discriminator --data DIR --fold 1 --out DIR`"
        )
    preprocessing = Preprocessing(size, data.mirror_right, data.fix_inverted, data.contrast, data.align)

    loaded = {
        path.name: load_discriminator(path, classes, preprocessing=preprocessing).to(device)
        for path in oracles
    }
    seeing = {f"oracle {name}": oracle for name, oracle in loaded.items()} | {
        f"discriminator {path.name}": load_discriminator(path, classes, preprocessing=preprocessing)
        for path in config.discriminators
    }

    def read(split: str | None) -> Images:
        folder = open_radiographs(data.root or "", split, grades=list(classes), preprocessing=preprocessing)
        files = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in folder.paths]
        key = hashlib.sha256(json.dumps([files, repr(preprocessing)]).encode()).hexdigest()[:16]
        file = work / f"radiographs-{key}.safetensors"
        if not file.exists():
            say(f"reading {len(folder)} radiographs of {data.root}/{split or ''}")
            work.mkdir(parents=True, exist_ok=True)
            save_tensors({"pixels": to_uint8(folder)}, file, {})
        return Images(load_file(file)["pixels"], list(folder.targets), list(folder.patients))

    train, test = read(data.split), read(test_split)
    rows = [i for i, p in enumerate(train.patients) if in_fold(p, data.fold, data.folds)]
    train = Images(train.pixels[rows], [train.targets[i] for i in rows], [train.patients[i] for i in rows])
    for who, discriminator in seeing.items():
        both = both_of(discriminator.patients, test.patients)
        if both:
            raise ValueError(
                f"{who} was trained on {len(both)} patients of split {test_split!r} ({', '.join(both[:3])}, ...): "
                "they are not held out; give one trained on other patients, or another split"
            )
    digest = hashlib.sha256(train.pixels.numpy().tobytes() + test.pixels.numpy().tobytes()).hexdigest()[:12]
    generator = torch.Generator().manual_seed(0)
    return Study(
        name=(
            f"radiographs {size} px, {len(train)} of {data.split} and {len(test)} of {test_split} ({digest}), evaluated by "
            + ", ".join(loaded)
        ),
        train=train,
        probe=train,
        test=test,
        donors=draw_donors(test.labels, patients=test.patients, generator=generator),
        bench=_bench(loaded, test),
    )


def _bench(oracles: dict[str, Discriminator], test: Images) -> Bench:
    return Bench(oracles, to_float(test.pixels), test.labels, test.patients)
