"""Keys that know the grade before the first exchange.

An exchange can be learned only once hK says something of the grade. Learning that inside Algorithm 1 costs a decoder
and a discriminator in every step; the key's encoder with its head alone is a small classifier. With a teacher (a panel of
discriminators) it learns the teacher's posterior beside the label, on images that are strongly augmented.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from kecae_aug.data import open_radiographs
from kecae_training.augment import augment, augment_strongly
from kecae_training.checkpoint import RunFolder
from kecae_training.config import TrainConfig
from kecae_training.discriminator import check_fits, ids_of, in_fold, predict
from kecae_training.discriminator.panel import load_panel
from kecae_training.images import to_float, to_uint8
from kecae_training.prefetch import pin, prefetch
from kecae_training.step import KeyExchange

Remembered = dict[str, dict[str, Tensor]]
BATCH = 64
LR = 2e-3
SOFT = 0.8  # weight of the teacher's posterior beside the label


def teach(config: TrainConfig, dataset: Any, classes: Sequence[str], device: torch.device) -> Tensor:
    """(N, K) posteriors of ``config.key_teacher`` on every image of the dataset, each read at the teacher's own size.

    Args:
        config: with ``key_teacher``.
        dataset: of the training; radiographs are preprocessed anew for the teacher, other sets are taken as they are.
        classes: K names.
        device: of the teacher.

    Raises:
        ValueError: a teacher of other classes or of images that were preprocessed in another way; or one that has seen
            patients outside the data's split and fold, whom the weights would then know without saying so.
    """
    assert config.key_teacher is not None
    panel = load_panel(config.key_teacher, classes)
    own = getattr(dataset, "preprocessing", None)
    if own is not None:
        assert config.data.root is not None
        data, name = config.data, f"key_teacher={str(config.key_teacher)!r}"
        preprocessing = replace(own, image_size=panel.image_size)
        for member in panel.discriminators:
            check_fits(member, name, preprocessing=preprocessing)
        grades = sorted({grade for member in panel.discriminators for grade in member.config.grades})
        known = open_radiographs(config.data.root, data.split, grades=grades).patients
        strangers = panel.patients - ids_of(p for p in known if in_fold(p, data.fold, data.folds))
        if strangers:
            raise ValueError(
                f"{name}: has seen {len(strangers)} patients that are not of split {data.split!r}, fold {data.fold} of "
                f"{data.folds}; train it with the same --fold and --folds, or the weights would know them too"
            )
        dataset = copy(dataset)
        dataset.preprocessing = preprocessing
    return predict(panel.to(device), to_uint8(dataset, progress=config.run.progress))


def warm_up_keys(
    config: TrainConfig,
    modules: KeyExchange,
    images: Tensor,
    labels: Tensor,
    fabric: Fabric,
    folder: RunFolder | None = None,
    remembered: Remembered | None = None,
    posterior: Tensor | None = None,
) -> None:
    """Train the key's encoder and its head as a classifier, in place, or go on with it where the folder says it stopped.

    Every process does the same steps on the same batches, so nothing has to be exchanged between them.

    Args:
        config: ``optim.key_warmup`` steps of 64 augmented knees; the seed of the batches and their augmentation; how
            often the state is saved.
        modules: with the head of ``loss.terms.grade_in_key``, not yet set up by Fabric.
        images: (N, 1, S, S) uint8, the training knees.
        labels: (N,) their class indices; batches are class-balanced.
        fabric: for the device and the precision.
        folder: of the run, for the state; None to keep none.
        remembered: warm keys of earlier trainings on these images, in this process: taken from here, or added.
        posterior: (N, K) of a teacher (:func:`teach`); then augmentation is strong, and the target is the posterior for
            four fifths, the label for one.

    Raises:
        ValueError: the state in the folder is damaged, or of another network.
    """
    steps, run = config.optim.key_warmup, config.run
    model, head = modules.model, modules.key_head
    assert head is not None
    parts = nn.ModuleList([model.key_encoder, model.spread, head])
    same = f"{model.config} {steps} {run.seed} {fabric.strategy.precision.precision} {config.key_teacher}"
    if remembered is not None and same in remembered:
        parts.load_state_dict(remembered[same])
        return
    modules.to(fabric.device).train()
    optimizer = torch.optim.AdamW(parts.parameters(), lr=LR, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    generator = torch.Generator().manual_seed(run.seed)
    balanced = 1.0 / torch.bincount(labels)[labels].double()
    wanted = F.one_hot(labels).float() * 0.95 + 0.05 / len(model.config.classes)
    if posterior is not None:
        wanted = SOFT * posterior + (1 - SOFT) * wanted
    state: dict[str, Any] = {
        "modules": parts,
        "optimizer": optimizer,
        "schedule": schedule,
        "draws": generator.get_state(),
        "step": 0,
    }
    if folder is not None:
        folder.resume_warmup(state)
    generator.set_state(state["draws"])

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for _ in range(state["step"], steps):
            indices = torch.multinomial(balanced, BATCH, replacement=True, generator=generator)
            knees = to_float(images[indices])
            knees = augment(knees, generator) if posterior is None else augment_strongly(knees, generator)
            knees = knees.contiguous(memory_format=torch.channels_last)
            # the draws go with the batch: those of the thread are ahead of the step
            yield pin(knees, fabric.device), pin(wanted[indices], fabric.device), generator.get_state()

    progress = run.progress and fabric.is_global_zero
    with (
        prefetch(batches()) as made,
        tqdm(total=steps, initial=state["step"], desc="keys", unit="step", disable=not progress) as bar,
    ):
        for knees, targets, draws in made:
            knees, targets = (t.to(fabric.device, non_blocking=True) for t in (knees, targets))
            with fabric.autocast():
                key = model.spread(model.key_encoder(knees))
                logits = head(key.flatten(1)).float()
            loss = F.cross_entropy(logits, targets)
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            optimizer.step()
            schedule.step()
            state["step"], state["draws"] = state["step"] + 1, draws
            bar.update()
            if state["step"] % 10 == 0:  # reading it waits for the device
                bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
            if folder is not None and (state["step"] % run.checkpoint_every == 0 or state["step"] == steps):
                folder.save_warmup(state)
    optimizer.zero_grad(set_to_none=True)
    if remembered is not None:
        remembered[same] = deepcopy(parts.state_dict())
