"""A training from command line to exported weights: sets up what `step.py`, Algorithm 1, loops over.

    kecae-aug discriminator --data DIR --out runs/discriminator
    kecae-aug train --config default --data.root DIR --discriminator runs/discriminator --out runs/knee
    kecae-aug train ... --device cuda --precision bf16-mixed --run.devices 2

The same command goes on where a run stopped. In the run's folder: config.json (resolved), log.jsonl,
checkpoint.pt, samples/ (these show training images) and, at the end, weights/.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.seed import seed_everything
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kecae_aug.data import Preprocessing, Radiographs, open_radiographs
from kecae_aug.device import cpu_by_default
from kecae_aug.engine.model import KECAE, PRESETS, KECAEConfig
from kecae_aug.errors import reporting
from kecae_aug.weights.io import load_weights
from kecae_training.checkpoint import RunFolder, fingerprint
from kecae_training.config import TrainConfig, parse
from kecae_training.discriminator import Discriminator, in_fold, load_discriminator
from kecae_training.images import to_uint8
from kecae_training.pairs import PairSampler
from kecae_training.step import KeyExchange, train_steps
from kecae_training.warmup import Remembered, teach, warm_up_keys


def model_config(config: TrainConfig) -> KECAEConfig:
    """The preset with what the config overrides."""
    given = {k: v for k, v in asdict(config.model).items() if k != "preset" and v is not None}
    return KECAEConfig.from_dict({**PRESETS[config.model.preset].to_dict(), **given})


def open_data(config: TrainConfig, size: int) -> Radiographs:
    """The radiographs of the config's split, preprocessed as the weights will expect them."""
    data = config.data
    if data.root is None:
        raise ValueError("data.root is missing: give --data.root DIR or set KECAE_KNEE_DATA")
    preprocessing = Preprocessing(size, data.mirror_right, data.fix_inverted, data.contrast, data.align)
    folder = open_radiographs(
        data.root, data.split, grades=list(config.model.classes), preprocessing=preprocessing
    )
    if data.folds == 1:
        return folder
    return folder.subset(i for i, p in enumerate(folder.patients) if in_fold(p, data.fold, data.folds))


def begin(config: TrainConfig) -> KECAE:
    """The network before the first step: fresh, or a copy of the weights in ``config.init``.

    Raises:
        ValueError: these weights have another shape or other classes than ``config.model``.
    """
    shape = model_config(config)
    if config.init is None:
        return KECAE(shape)
    loaded = load_weights(config.init)
    if loaded.config != shape:
        wanted = shape.to_dict()
        wrong = [f"{k} is {v}, not {wanted[k]}" for k, v in loaded.config.to_dict().items() if v != wanted[k]]
        raise ValueError(
            f"init={config.init!r}: its shape is not that of --model ({', '.join(wrong)}); give the same --model "
            "values, or no --init"
        )
    return loaded.train().requires_grad_(True)


def train(config: TrainConfig, dataset: Any = None, warm_keys: Remembered | None = None) -> Path:
    """Run or resume a training.

    Args:
        config: see :class:`TrainConfig`; ``config.check()`` has passed.
        dataset: anything with ``.targets`` (indices into the classes) and (image (1, S, S) in [-1, 1],
            target) items, in place of the config's folder; phantoms, for one.
        warm_keys: what ``optim.key_warmup`` came to in earlier trainings on this dataset; made here if not there.

    Returns:
        The folder of the exported weights.

    Raises:
        ValueError: a checkpoint of another config or of other data; a discriminator of other images; a gradient that stays
            non-finite.
    """
    with cpu_by_default():
        return _train(config, dataset, warm_keys)


def _train(config: TrainConfig, dataset: Any, warm_keys: Remembered | None) -> Path:
    run, optim = config.run, config.optim
    fabric = Fabric(
        accelerator=run.accelerator,
        devices=run.devices,
        num_nodes=run.num_nodes,
        strategy=run.strategy,
        precision=run.precision,
    )
    fabric.launch()
    seed_everything(run.seed, verbose=False)
    kecae = begin(config)
    shape = kecae.config
    dataset = open_data(config, shape.image_size) if dataset is None else dataset
    with torch.random.fork_rng(devices=[]):  # what does not fit is named before the images are read
        discriminators = open_discriminators(
            config, shape, getattr(dataset, "preprocessing", None), fabric.device
        )
    images = to_uint8(dataset, progress=run.progress and fabric.is_global_zero)
    sampler = PairSampler(
        dataset.targets, optim.n_pairs, optim.batch_size, seed=run.seed, bootstrap=optim.bootstrap
    )
    total = sampler.steps_per_epoch * optim.epochs
    total = min(total, optim.max_steps) if optim.max_steps else total

    data = {
        "fingerprint": fingerprint(images, dataset.targets),
        "images": len(images),
        "split": config.data.split,
        **({"folds": config.data.folds, "fold": config.data.fold} if config.data.folds > 1 else {}),
        "per_class": dict(
            zip(shape.classes, torch.bincount(torch.as_tensor(dataset.targets)).tolist(), strict=True)
        ),
    }
    files = dataset.file_hashes() if fabric.is_global_zero and hasattr(dataset, "file_hashes") else None
    folder = RunFolder(config, fabric, data, files, getattr(dataset, "patients", ()))

    modules = KeyExchange(kecae, config.loss).to(memory_format=torch.channels_last)
    if optim.key_warmup and not folder.has_checkpoint:
        taught = (
            teach(config, dataset, shape.classes, fabric.device) if config.key_teacher is not None else None
        )
        labels = torch.as_tensor(dataset.targets)
        warm_up_keys(config, modules, images, labels, fabric, folder, warm_keys, taught)
    frozen = kecae.key_layers if optim.freeze_key else []
    for part in frozen:
        part.requires_grad_(False)
    averaged = (
        AveragedModel(kecae, multi_avg_fn=get_ema_multi_avg_fn(optim.ema), use_buffers=True)
        if optim.ema
        else None
    )
    adam = torch.optim.Adam([p for p in modules.parameters() if p.requires_grad], lr=optim.lr)
    step_modules, adam = fabric.setup(modules, adam)
    if averaged is not None:
        averaged = averaged.to(fabric.device)

    state: dict[str, Any] = {"modules": step_modules, "optimizer": adam, "step": 0, "skipped": 0}
    if averaged is not None:
        state["averaged"] = averaged
    folder.resume(state)

    step_modules.train()
    for part in frozen:
        part.eval()  # its BatchNorm too
    train_steps(
        config,
        fabric=fabric,
        folder=folder,
        images=images,
        sampler=sampler,
        modules=step_modules,
        model=kecae,
        discriminators=discriminators,
        adam=adam,
        averaged=averaged,
        state=state,
        total=total,
    )
    best = averaged.module if averaged is not None else kecae
    assert isinstance(best, KECAE)
    return folder.export(best, {"steps": total, "pairs": total * optim.batch_size})


def open_discriminators(
    config: TrainConfig, shape: KECAEConfig, preprocessing: Preprocessing | None, device: torch.device
) -> list[Discriminator]:
    """The discriminators that the terms look through, none where no term does.

    Raises:
        ValueError: one of other images or classes than those of the training.
    """
    if not config.loss.by_discriminator:
        return []
    return [
        load_discriminator(path, shape.classes, image_size=shape.image_size, preprocessing=preprocessing).to(
            device
        )
        for path in config.discriminators
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``kecae-aug train`` or ``python -m kecae_training.train``."""
    with reporting("kecae-aug train", "interrupted; the same command goes on from the last checkpoint"):
        config = parse(argv)
        config.check_flags()
        weights = train(config)
        print(json.dumps({"weights": str(weights)}))


if __name__ == "__main__":
    main()
