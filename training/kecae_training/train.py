"""Algorithm 1 as a loop.

    kecae-aug discriminator --data DIR --out runs/discriminator
    kecae-aug train --config default --data.root DIR --discriminator runs/discriminator --out runs/knee
    kecae-aug train ... --device cuda --precision bf16-mixed --run.devices 2

The same command goes on where a run stopped. In the run's folder: config.json (resolved), log.jsonl,
checkpoint.pt, samples/ (these show training images) and, at the end, weights/.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.seed import seed_everything
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from kecae_aug.data import Preprocessing, Radiographs, open_radiographs
from kecae_aug.device import cpu_by_default
from kecae_aug.engine.model import KECAE, PRESETS, KECAEConfig
from kecae_aug.errors import reporting
from kecae_aug.permutation import unit_draw
from kecae_aug.weights.io import load_weights
from kecae_training.augment import augment
from kecae_training.checkpoint import RunFolder, fingerprint
from kecae_training.config import TrainConfig, parse
from kecae_training.discriminator import Discriminator, in_fold, load_discriminator
from kecae_training.images import to_float, to_uint8
from kecae_training.losses import same_grade_permutation
from kecae_training.pairs import PairSampler
from kecae_training.prefetch import pinned, prefetched
from kecae_training.step import KeyExchange, Outputs, hybrid_loss
from kecae_training.warmup import Remembered, warm_up_keys

WARMUP = 100  # steps, for the cosine schedule
PATIENCE = 20  # steps in a row whose gradient is not finite


def model_config(config: TrainConfig) -> KECAEConfig:
    """The preset with what the config overrides."""
    given = {k: v for k, v in asdict(config.model).items() if k != "preset" and v is not None}
    return KECAEConfig.from_dict({**PRESETS[config.model.preset].to_dict(), **given})


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Of a step: constant (paper), or cosine to 1 % after a linear warm-up."""
    optim = config.optim
    if optim.schedule == "constant":
        return optim.lr
    warm = min(WARMUP, total // 10 + 1)
    if step < warm:
        return optim.lr * (step + 1) / warm
    progress = (step - warm) / max(1, total - warm)
    return optim.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


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
    resumed = (config.out / "checkpoint.pt").exists()
    if optim.key_warmup and not resumed:
        warm_up_keys(
            modules,
            images,
            torch.as_tensor(dataset.targets),
            optim.key_warmup,
            fabric=fabric,
            seed=run.seed,
            progress=run.progress and fabric.is_global_zero,
            remembered=warm_keys,
        )
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
    bad_in_a_row, since, since_step = 0, time.perf_counter(), state["step"]

    def batches() -> Iterator[Batch]:
        for step in range(state["step"], total):
            # Algorithm 1: a batch of pairs of different grades; position alone decides which.
            rows, labels = sampler.batch(step, fabric.global_rank, fabric.world_size)
            generator = _generator(run.seed, step, fabric.global_rank)
            permutation = same_grade_permutation(labels, generator)
            knees = to_float(images[rows])
            if optim.augment:
                knees = augment(knees, generator, optim.augment, noise=0.0).clamp(-1, 1)
            knees = knees.contiguous(memory_format=torch.channels_last)
            knees, labels, permutation = (pinned(t, fabric.device) for t in (knees, labels, permutation))
            yield Batch(knees, labels, permutation, generator)

    with (
        prefetched(batches()) as made,
        tqdm(
            total=total,
            initial=state["step"],
            desc="pairs",
            unit="step",
            disable=not (run.progress and fabric.is_global_zero),
        ) as bar,
    ):
        for batch in made:
            step = state["step"]
            x, y, permutation = (t.to(fabric.device, non_blocking=True) for t in batch[:3])
            discriminator = (
                discriminators[draw_discriminator(config, step, len(discriminators))]
                if discriminators
                else None
            )
            outputs = step_modules(x, permutation)
            with fabric.autocast():  # for the discriminator; what needs float32 asks for it
                terms = hybrid_loss(outputs, x, y, config.loss.at(step), discriminator, batch.generator)
            adam.zero_grad(set_to_none=True)
            fabric.backward(terms["total"])
            norm: Any = fabric.clip_gradients(
                step_modules, adam, max_norm=optim.gradient_clip or math.inf, error_if_nonfinite=False
            )
            rate = learning_rate(config, step, total)
            if torch.isfinite(norm):  # the same on all ranks: gradients are reduced before they are clipped
                for group in adam.param_groups:
                    group["lr"] = rate
                adam.step()
                if averaged is not None:
                    averaged.update_parameters(kecae)
                bad_in_a_row = 0
            else:
                state["skipped"] += 1
                bad_in_a_row += 1
                if bad_in_a_row >= PATIENCE:
                    raise ValueError(
                        f"the gradient was not finite in {PATIENCE} steps in a row, up to step {step}: "
                        "J_LDA without a bound is the usual cause (--loss.lda_eps 0.1), or lr is too high"
                    )
            state["step"] = step = step + 1

            bar.update()
            if step % run.log_every == 0 or step == total:
                now = time.perf_counter()
                speed = (step - since_step) * optim.batch_size / (now - since)
                since, since_step = now, step
                folder.log(
                    {
                        "step": step,
                        "epoch": step // sampler.steps_per_epoch,
                        **{k: float(v.detach()) for k, v in terms.items()},
                        "gradient_norm": float(norm),
                        "lr": rate,
                        "skipped": state["skipped"],
                        "pairs_per_second": round(speed, 2),
                    }
                )
                bar.set_postfix(mse=f"{float(terms['mse']):.4f}", change=f"{float(terms['change']):.3f}")
            if run.samples_every and step % run.samples_every == 0:
                _save_samples(folder, x, outputs, step)
            if step % run.checkpoint_every == 0 or step == total:
                folder.save(state)
    best = averaged.module if averaged is not None else kecae
    assert isinstance(best, KECAE)
    return folder.export(best, {"steps": total, "pairs": total * optim.batch_size})


class Batch(NamedTuple):
    """Pairs of a step, on the CPU: images (2b, 1, S, S), labels and a permutation of the grades (2b,), and its draws."""

    images: Tensor
    labels: Tensor
    permutation: Tensor
    generator: torch.Generator


def open_discriminators(
    config: TrainConfig, shape: KECAEConfig, preprocessing: Preprocessing | None, device: torch.device
) -> list[Discriminator]:
    """The discriminators that the terms look through, none where no term does.

    Raises:
        ValueError: one of other images or classes than those of the training.
    """
    if not config.loss.needs_discriminator:
        return []
    return [
        load_discriminator(path, shape.classes, image_size=shape.image_size, preprocessing=preprocessing).to(
            device
        )
        for path in config.discriminators
    ]


def _generator(seed: int, step: int, rank: int) -> torch.Generator:
    """Draws of a step depend on (seed, step, rank) alone, so a resumed run repeats them."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 4099 + rank)


def draw_discriminator(config: TrainConfig, step: int, n: int) -> int:
    """Which of n discriminators a step looks through: the same for all ranks, whose gradients are averaged."""
    return int(unit_draw(step, f"discriminator/{config.run.seed}") * n)


def _save_samples(folder: RunFolder, images: Tensor, outputs: Outputs, step: int) -> None:
    """Four rows of pairs: X_1, X^_1, X_1' and X_2, X^_2, X_2'."""
    half = len(images) // 2
    shown = [0, 1, 2, 3][:half]
    rows = [
        t[i + o].detach()
        for i in shown
        for o in (0, half)
        for t in (images, outputs.reconstruction, outputs.exchanged)
    ]
    folder.save_grid(torch.stack(rows), step, per_row=6)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``kecae-aug train`` or ``python -m kecae_training.train``."""
    with reporting("kecae-aug train", "interrupted; the same command goes on from the last checkpoint"):
        config = parse(argv)
        config.check_flags()
        weights = train(config)
        print(json.dumps({"weights": str(weights)}))


if __name__ == "__main__":
    main()
