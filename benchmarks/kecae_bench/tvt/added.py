"""What an arm adds to the real knees of a step, by the public API of kecae_aug."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kecae_aug import KECAE, Gate, KeyExchangeAugment, KeyExchangeDataset, LatentBank
from kecae_bench.machine import CPU, to_device
from kecae_bench.tvt.arms import Arm, ExchangeOptions
from kecae_bench.tvt.draws import BalancedIndices, generator, seed_of
from kecae_bench.tvt.knees import Knees

Made = tuple[Tensor, Tensor]  # images (A, 1, S, S), labels (A,) int64 or (A, K) float32


@dataclass(frozen=True)
class Tools:
    """What the arms that exchange need.

    Attributes:
        model: weights. oracles: held-out classifiers with logits of the knees' classes, for the gate and for labels.
        oracle_size: side that all oracles want; None for the images' own.
        n_pairs: N of "T' from pairs" and "paper". others: training knees outside T, the hosts of
            "T' unlabelled hosts".
        work: folder for latent banks. device: where images are, and are made; labels stay on the CPU, which draws.
    """

    model: KECAE | None = None
    oracles: Sequence[nn.Module] = ()
    oracle_size: int | None = None
    n_pairs: int | None = None
    others: Knees | None = None
    work: Path | None = None
    device: torch.device = CPU


@dataclass
class Added:
    """Makes what an arm adds; draws from torch's global CPU generator, which the caller seeds for each step.

    Args:
        arm: one that adds, replaces, or is "paper".
        knees: T.
        seed: of the run. per_step: how many are added to each step.
        options: how X' is used. tools: weights, oracles, N.

    Attributes:
        prime: "T' from pairs": its pairs; "paper": T and its pairs.
        gate: of "T' gated".

    Raises:
        ValueError: an arm without what it needs.
    """

    arm: Arm
    knees: Knees
    seed: int
    per_step: int
    options: ExchangeOptions
    tools: Tools
    prime: KeyExchangeDataset | None = None
    gate: Gate | None = None

    def __post_init__(self) -> None:
        added = self.arm.added
        self._k = len(self.knees.classes)
        if added == "real":
            self._more = BalancedIndices(self.knees.members, self.seed, "more")
            return
        if self.tools.model is None:
            raise ValueError(f"arm {self.arm.name!r}: needs weights (--weights)")
        if self.arm.uses_pairs:
            self.prime = self._draw_pairs()
            members = [[i for i, t in enumerate(self.prime.targets) if t == c] for c in range(self._k)]
            self._members = [indices for indices in members if indices]  # grades that the weights do not know
            return
        names = self.tools.model.config.classes
        self._known = [c for c, name in enumerate(self.knees.classes) if name in names]
        if added == "gated":
            self.gate = self._make_gate()
        if self.arm.uses_others:
            self._others = self._order_of_others()
        self._augment = self._make_transform()

    def make(self, x: Tensor, y: Tensor, indices: Tensor, step: int) -> Made:
        """What stands beside the knees ``x``, ``y`` of a step, which are these of T."""
        makers: dict[str, Callable[[Tensor, Tensor, Tensor, int], Made]] = {
            "real": self._add_real,
            "pairs": self._add_pairs,
            "same_grade": self._exchange_within_grade,
            "unlabelled": self._exchange_in_others,
            "unlabelled_permuted": self._exchange_in_others,
        }
        images, labels = makers.get(self.arm.added, self._exchange_in_batch)(x, y, indices, step)
        if self.arm.permutes:
            labels = labels[torch.randperm(len(labels), generator=generator(self.seed, step, "shuffle"))]
        return self._relabel((images, labels))

    def replace(self, x: Tensor, y: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, int]:
        """The step's knees, of which some are X' instead; and how many."""
        images, labels = self._augment(x, y, patients=self._patients(indices))
        params = self._augment.params
        return images, labels, len(params.rows) if params is not None else 0

    def draw_of_prime(self, step: int, size: int, what: str) -> Made:
        """Items of :attr:`prime`, class-balanced."""
        assert self.prime is not None
        order = BalancedIndices(self._members, self.seed, what)
        items = self.prime.__getitems__(order.batch(step, size).tolist())
        images = to_device(torch.stack([x for x, _ in items]), self.tools.device)
        return images, torch.tensor([y for _, y in items])

    def _make_transform(self) -> KeyExchangeAugment:
        assert self.tools.model is not None
        o, x_hat = self.options, self.arm.added == "x_hat"
        replacing = self.arm.added == "exchanged" and o.p is not None
        may_choose = self.arm.added in ("exchanged", "gated", "permuted")
        from_bank = self.arm.uses_others or (may_choose and o.donors == "bank")
        return KeyExchangeAugment(
            self.tools.model,
            p=o.p if replacing and o.p is not None else 1.0,
            strength=0.0 if x_hat else o.strength,  # X^ = D(hN + hK): nothing of the donor's key
            detail="decoder" if x_hat else o.detail,  # with the host's detail it would be X itself
            append=not replacing,
            classes=self.knees.classes,
            value_range=self.knees.value_range,
            label_mode="soft" if o.labels == "soft" and self.arm.added in ("exchanged", "gated") else "key",
            bank=self._open_bank() if from_bank else None,
            gate=self.gate,
        )

    def _make_gate(self) -> Gate:
        if not self.tools.oracles and self.options.max_distance is None:
            raise ValueError(f"arm {self.arm.name!r}: needs --oracles, or a largest distance (max_distance)")
        return Gate(
            list(self.tools.oracles),
            classes=self.knees.classes,
            min_probability=self.options.min_probability,
            min_agreement=self.options.min_agreement,
            max_distance=self.options.max_distance,
            image_size=self.tools.oracle_size,
        )

    def _open_bank(self) -> LatentBank:
        if self.tools.work is None:
            raise ValueError("donors='bank': needs a folder to keep it in (--work)")
        sha = KeyExchangeDataset(self.knees, self.tools.model, 0).weights_sha256  # type: ignore[arg-type]
        folder = self.tools.work / f"bank-{self.knees.fingerprint()}-{sha[:12]}"
        model, device = self.tools.model, self.tools.device
        assert model is not None
        return LatentBank.build(self.knees, model, folder, residual=False, device=device, progress=True)

    def _draw_pairs(self) -> KeyExchangeDataset:
        if not self.tools.n_pairs:
            raise ValueError(f"arm {self.arm.name!r}: needs a number of pairs (--n-pairs)")
        paper = self.arm.added == "paper"
        return KeyExchangeDataset(
            self.knees,
            self.tools.model,  # type: ignore[arg-type]
            self.tools.n_pairs,
            strength=1.0 if paper else self.options.strength,
            detail="decoder" if paper else self.options.detail,
            real=paper,
            seed=seed_of(self.seed, "pairs") % 2**31,
            device=self.tools.device,
        )

    def _add_real(self, x: Tensor, y: Tensor, indices: Tensor, step: int) -> Made:
        more = self._more.batch(step, self.per_step)
        return self.knees.floats(more, self.tools.device), self.knees.labels[more]

    def _add_pairs(self, x: Tensor, y: Tensor, indices: Tensor, step: int) -> Made:
        return self.draw_of_prime(step, self.per_step, "pool")

    def _exchange_in_batch(self, x: Tensor, y: Tensor, indices: Tensor, step: int) -> Made:
        """Exchanges whose hosts are the first knees of the batch (balanced too) and whose donors are any of it."""
        if self.arm.added == "gated":  # sees the whole batch, so that as many are added with it as without
            images, labels = self._augment(x, y, patients=self._patients(indices))
            return images[len(x) :][: self.per_step], labels[len(x) :][: self.per_step]
        params = self._augment.draw(y, self._patients(indices))
        first = params.where(torch.arange(len(params.rows)) < self.per_step)
        images, labels = self._augment.replay(x, y, params=first)
        return images[len(x) :], labels[len(x) :]

    def _order_of_others(self) -> BalancedIndices:
        """The unlabelled hosts in passes without repetition; no label of theirs is read."""
        if self.tools.others is None or not len(self.tools.others):
            raise ValueError(f"arm {self.arm.name!r}: needs training knees outside T (--fractions below 1)")
        if self.options.strengths[0] < 0.5:
            raise ValueError(
                f"strength={self.options.strength}: of unlabelled hosts accepted is 0.5 or more, since below X' has the "
                "host's grade, which nobody knows"
            )
        return BalancedIndices([range(len(self.tools.others))], self.seed, "others")

    def _exchange_in_others(self, x: Tensor, y: Tensor, indices: Tensor, step: int) -> Made:
        """Hosts outside T pose as the grades in turn, so that every grade of a key is equally frequent."""
        others = self.tools.others
        assert others is not None
        hosts = self._others.batch(step, self.per_step)
        posing = torch.tensor(self._known)[torch.arange(len(hosts)) % len(self._known)]
        patients = [others.patients[index] for index in hosts.tolist()]
        images, labels = self._augment(others.floats(hosts, self.tools.device), posing, patients=patients)
        return images[len(hosts) :], labels[len(hosts) :]

    def _exchange_within_grade(self, x: Tensor, y: Tensor, indices: Tensor, step: int) -> Made:
        """Within each grade the knees pose as two grades in turn, so that each gets a key of its own real grade."""
        images, labels = [x[:0]], [y[:0]]
        for c in self._known:
            own = (y == c).nonzero()[:, 0]
            posing = torch.tensor(self._known[:2])[torch.arange(len(own)) % 2]
            params = self._augment.draw(posing, self._patients(indices[own]))
            first = params.where(own[params.rows] < self.per_step)
            out, _ = self._augment.replay(x[own], posing, params=first)
            images.append(out[len(own) :])
            labels.append(torch.full((len(first.rows),), c))
        return torch.cat(images), torch.cat(labels)

    def _relabel(self, made: Made) -> Made:
        """The labels of X' as the options want them."""
        images, labels = made
        if self.arm.added not in ("exchanged", "pairs", "gated") or not len(images):
            return made
        if self.options.labels == "oracles":
            labels = self._ask_oracles(images)
        if self.options.smoothing:
            e = self.options.smoothing
            labels = (1 - e) * soft(labels, self._k) + e / self._k
        return images, labels

    @torch.no_grad()
    def _ask_oracles(self, images: Tensor) -> Tensor:
        if not self.tools.oracles:
            raise ValueError("labels='oracles': needs --oracles")
        size = self.tools.oracle_size
        if size and images.shape[-1] != size:
            images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        oracles = (oracle.to(images.device) for oracle in self.tools.oracles)
        return torch.stack([oracle(images).float().softmax(1) for oracle in oracles]).mean(0).cpu()

    def _patients(self, indices: Tensor) -> list[str]:
        return [self.knees.patients[index] for index in indices.tolist()]


def soft(labels: Tensor, k: int) -> Tensor:
    """(B, K) float32 of class indices or of what is soft already."""
    return labels.float() if labels.ndim == 2 else F.one_hot(labels, k).float()
