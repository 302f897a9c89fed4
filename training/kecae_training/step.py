"""Algorithm 1, read from top to bottom: the loop, then what it calls, in the order of its calls.

A batch of pairs (X_1, X_2) of different grades -> augmented -> encoded (hK, hN) -> sums -> decoded (X^, X') -> loss terms
-> gradient -> clipped -> Adam -> EMA -> log. `train.py` sets up what :func:`train_steps` takes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from kecae_aug.engine.model import KECAE
from kecae_aug.permutation import unit_draw
from kecae_training.augment import augment
from kecae_training.checkpoint import RunFolder
from kecae_training.config import TrainConfig
from kecae_training.discriminator import Discriminator
from kecae_training.heads import adversary, reverse_gradient
from kecae_training.images import to_float
from kecae_training.losses import LossConfig, StepOutputs, hybrid_loss
from kecae_training.pairs import PairSampler, same_grade_permutation
from kecae_training.prefetch import pin, prefetch
from kecae_training.views import look_through

WARMUP = 100  # steps, for the cosine schedule
PATIENCE = 20  # steps in a row whose gradient is not finite


def train_steps(
    config: TrainConfig,
    *,
    fabric: Fabric,
    folder: RunFolder,
    images: Tensor,
    sampler: PairSampler,
    modules: Any,
    model: KECAE,
    discriminators: Sequence[Discriminator],
    adam: Any,
    averaged: AveragedModel | None,
    state: dict[str, Any],
    total: int,
) -> None:
    """The steps from ``state["step"]`` to ``total``, logged and checkpointed in ``folder``.

    Args:
        config: of the run.
        fabric: devices, processes, precision.
        folder: of the run.
        images: (N, 1, S, S) uint8, on the CPU.
        sampler: the pairs of each step.
        modules: :class:`KeyExchange`, set up by Fabric and in train mode.
        model: the KECAE in it.
        discriminators: frozen, on the device; each step draws one.
        adam: set up by Fabric.
        averaged: the moving average of ``model``, None for none.
        state: what a checkpoint holds; its ``step`` and ``skipped`` are counted on here.
        total: steps of the whole run.

    Raises:
        ValueError: the gradient was not finite in 20 steps in a row.
    """
    run, optim = config.run, config.optim
    progress = run.progress and fabric.is_global_zero
    bad_in_a_row, since, since_step = 0, time.perf_counter(), state["step"]
    with (
        prefetch(pair_batches(config, fabric, images, sampler, state["step"], total)) as made,
        tqdm(total=total, initial=state["step"], desc="pairs", unit="step", disable=not progress) as bar,
    ):
        for batch in made:
            step = state["step"]
            X, Y, same_grade = (t.to(fabric.device, non_blocking=True) for t in batch[:3])
            loss = config.loss.at(step)

            # hK, hN; X^ = decode(hN + hK); X' = decode(hN + hK of the other one of the pair)
            outputs = StepOutputs(X, Y, **modules(X, same_grade), lda_eps=loss.lda_eps)
            with fabric.autocast():  # for the discriminator; what needs float32 asks for it
                if loss.by_discriminator:
                    drawn = discriminators[draw_discriminator(config, step, len(discriminators))]
                    look_through(drawn, outputs, loss, discriminators, batch.generator)
                terms = hybrid_loss(outputs, loss)

            adam.zero_grad(set_to_none=True)
            fabric.backward(terms["total"])
            norm: Any = fabric.clip_gradients(
                modules, adam, max_norm=optim.gradient_clip or math.inf, error_if_nonfinite=False
            )
            rate = learning_rate(config, step, total)
            if torch.isfinite(norm):  # the same on all ranks: gradients are reduced before they are clipped
                for group in adam.param_groups:
                    group["lr"] = rate
                adam.step()
                if averaged is not None:
                    averaged.update_parameters(model)
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
                line = {k: float(v.detach()) for k, v in (terms | measures(outputs)).items()}
                folder.log(
                    {
                        "step": step,
                        "epoch": step // sampler.steps_per_epoch,
                        **line,
                        "gradient_norm": float(norm),
                        "lr": rate,
                        "skipped": state["skipped"],
                        "pairs_per_second": round(speed, 2),
                    }
                )
                bar.set_postfix(total=f"{line['total']:.4f}", change=f"{line['change']:.3f}")
            if run.samples_every and step % run.samples_every == 0:
                save_samples(folder, outputs, step)
            if step % run.checkpoint_every == 0 or step == total:
                folder.save(state)


class Batch(NamedTuple):
    """Pairs of a step, on the CPU: images (2b, 1, S, S), labels and a permutation of the grades (2b,), and its draws."""

    images: Tensor
    labels: Tensor
    same_grade: Tensor
    generator: torch.Generator


def pair_batches(
    config: TrainConfig, fabric: Fabric, images: Tensor, sampler: PairSampler, start: int, total: int
) -> Iterator[Batch]:
    """The batches of this process for the steps from ``start`` on: X_1 of all pairs, then X_2, augmented."""
    for step in range(start, total):
        indices, labels = sampler.batch(step, fabric.global_rank, fabric.world_size)
        # draws of a step depend on (seed, step, rank) alone, so a resumed run repeats them
        generator = torch.Generator().manual_seed(
            (config.run.seed * 1_000_003 + step) * 4099 + fabric.global_rank
        )
        same_grade = same_grade_permutation(labels, generator)
        X = to_float(images[indices])
        if config.optim.augment:
            X = augment(X, generator, config.optim.augment, noise=0.0).clamp(-1, 1)
        X = X.contiguous(memory_format=torch.channels_last)
        X, labels, same_grade = (pin(t, fabric.device) for t in (X, labels, same_grade))
        yield Batch(X, labels, same_grade, generator)


class KeyExchange(nn.Module):
    """The trained modules in one, so that DDP sees every use of them in one forward.

    Args:
        model: the KECAE.
        loss: decides which heads and which decodes are needed.
    """

    def __init__(self, model: KECAE, loss: LossConfig) -> None:
        super().__init__()
        self.model = model
        self.reads = loss.reads
        features, classes = int(torch.tensor(model.config.latent_shape).prod()), len(model.config.classes)
        self.key_head = nn.Linear(features, classes) if "key_logits" in self.reads else None
        self.adversary = adversary(model.config) if "non_key_logits" in self.reads else None

    def forward(self, X: Tensor, same_grade: Tensor) -> dict[str, Tensor]:
        """Encode a batch of pairs and decode all of its sums in one pass.

        One pass, since BatchNorm normalises what it sees together: reconstructions and exchanges decoded
        apart would each have statistics that evaluation mode has for neither.

        Args:
            X: (2B, 1, S, S), X_1 of all pairs, then X_2 of all pairs.
            same_grade: (2B,) int64, a permutation within each grade.

        Returns:
            Fields of :class:`~kecae_training.losses.StepOutputs`; those that no term reads are left out.
        """
        hK, hN = self.model.encode(X)
        n = len(X)
        sums = {
            "reconstruction": hN + hK,
            "exchanged": hN + hK.roll(n // 2, 0),
        }  # i of X_1 and of X_2 are a pair
        if "same_grade" in self.reads:
            sums["same_grade"] = hN + hK[same_grade]
        decoded = self.model.decode(torch.cat(list(sums.values()))).split(n)
        outputs = {"key": hK, "non_key": hN, **dict(zip(sums, decoded, strict=True))}
        if self.key_head is not None:
            outputs["key_logits"] = self.key_head(hK.flatten(1))
        if self.adversary is not None:
            outputs["non_key_logits"] = self.adversary(reverse_gradient(hN))
        return outputs


def draw_discriminator(config: TrainConfig, step: int, n: int) -> int:
    """Which of n discriminators a step looks through: the same for all ranks, whose gradients are averaged."""
    return int(unit_draw(step, f"discriminator/{config.run.seed}") * n)


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


@torch.no_grad()
def measures(outputs: StepOutputs) -> dict[str, Tensor]:
    """What is logged beside the terms.

    ``change``: mean |X' - X^|. ``discriminator_flip`` and ``discriminator_flip_host``: fraction of X' (and of X + X' - X^)
    that the discriminator gives the donor's grade; the network is trained for it, so it is no result.
    """
    found = {"change": (outputs.exchanged - outputs.reconstruction).abs().mean()}
    half = len(outputs.labels) // 2
    for name, logits in (
        ("discriminator_flip", outputs.exchanged_logits),
        ("discriminator_flip_host", outputs.host_logits),
    ):
        if logits is not None:
            n = len(logits) // 2
            donors = torch.cat([outputs.labels[half : half + n], outputs.labels[:n]])
            found[name] = (logits.argmax(1) == donors).float().mean()
    return found


def save_samples(folder: RunFolder, outputs: StepOutputs, step: int) -> None:
    """Four rows of pairs: X_1, X^_1, X_1' and X_2, X^_2, X_2'."""
    half = len(outputs.images) // 2
    shown = [
        t[i + offset].detach()
        for i in range(min(4, half))
        for offset in (0, half)
        for t in (outputs.images, outputs.reconstruction, outputs.exchanged)
    ]
    folder.save_grid(torch.stack(shown), step, per_row=6)
