"""The terms of the hybrid loss (Section III-B, Eq. 8): one registered function each.

    @term("same_grade")
    def j_same_grade(same_grade, images): ...

and `loss: {terms: {same_grade: 0.5}}` in a YAML file, or `--loss.terms.same_grade 0.5`, is all that a new term takes. A
term's parameters are names of :class:`StepOutputs`; what no term of a non-zero weight reads is not computed.

Shapes: images (2B, 1, S, S) in [-1, 1]; latents (2B, C, h, w); labels (2B,) int64. The first half of a batch is X_1, the
second half X_2 (of another grade), so that one mean over the batch is the half of the paper's sum over the two images of a
pair; the functions return the paper's sum, a float32 scalar.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kecae_aug.engine.exchange import host_detail


@dataclass
class StepOutputs:
    """What a step computes, and a term may read. None stands for what no term of the step reads.

    Args:
        images: X_1 of all pairs, then X_2 of all pairs.
        labels: class index of each image.
        key: hK.
        non_key: hN.
        reconstruction: X^, decoded hN + hK.
        exchanged: X', decoded hN + hK of the other image of the pair.
        same_grade: decoded hN + hK of an image of the same grade.
        key_logits: (2B, K) of a linear head on hK.
        non_key_logits: (2B, K) of a head on hN, whose gradient reaches hN reversed.
        exchanged_logits: (n, K) of the discriminator D on X', n images: ``discriminator_fraction`` of the pairs.
        host_logits: (n, K) of D on X + X' - X^.
        reconstruction_features: stages of D on X^, each (n, C, h, w).
        image_features: the same of X, without a gradient.
        donor_target: (n,) labels of the donors, or (n, K) their posterior (``sup_target``).
        lda_eps: bound of the denominator of J_LDA.
    """

    images: Tensor
    labels: Tensor
    key: Tensor
    non_key: Tensor
    reconstruction: Tensor
    exchanged: Tensor
    same_grade: Tensor | None = None
    key_logits: Tensor | None = None
    non_key_logits: Tensor | None = None
    exchanged_logits: Tensor | None = None
    host_logits: Tensor | None = None
    reconstruction_features: list[Tensor] | None = None
    image_features: list[Tensor] | None = None
    donor_target: Tensor | None = None
    lda_eps: float = 0.0

    @property
    def host(self) -> Tensor:
        """X + X' - X^, the exchange of ``detail="host"``, in [-1, 1]."""
        return host_detail(self.images, self.exchanged, self.reconstruction)


READABLE = frozenset({*(f.name for f in fields(StepOutputs)), "host"})
BY_DISCRIMINATOR = frozenset(
    {"exchanged_logits", "host_logits", "reconstruction_features", "image_features", "donor_target"}
)


class Term(NamedTuple):
    """A registered term: its function, the :class:`StepOutputs` that it reads, its weight in the paper."""

    value: Callable[..., Tensor]
    reads: tuple[str, ...]
    weight: float

    def __call__(self, outputs: StepOutputs) -> Tensor:
        """The unweighted term, a float32 scalar."""
        return self.value(*(getattr(outputs, name) for name in self.reads)).float()


TERMS: dict[str, Term] = {}
Function = TypeVar("Function", bound=Callable[..., Tensor])


def term(name: str, weight: float = 0.0) -> Callable[[Function], Function]:
    """Register a function as the term ``name`` of the hybrid loss.

    Args:
        name: in ``loss.terms`` and in log.jsonl.
        weight: where a configuration does not name the term: that of Eq. 8, 0 for a term that is not the paper's.

    Raises:
        ValueError: a parameter that no step computes, or a name that is taken.
    """

    def register(function: Function) -> Function:
        reads = tuple(inspect.signature(function).parameters)
        if unknown := [parameter for parameter in reads if parameter not in READABLE]:
            raise ValueError(
                f"term {name!r} reads {', '.join(unknown)}: a step computes {', '.join(sorted(READABLE))}; "
                "name the parameters so"
            )
        if name in TERMS:
            raise ValueError(f"term {name!r} is registered already: {TERMS[name].value}; give another name")
        TERMS[name] = Term(function, reads, weight)
        return function

    return register


@term("mse", weight=1.0)
def j_mse(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Eq. 3 and 4: MSE(X_1, X^_1) + MSE(X_2, X^_2), both halves in one batch."""
    return 2 * F.mse_loss(reconstruction, images)


@term("sup", weight=1e-2)
def j_sup(exchanged_logits: Tensor, donor_target: Tensor) -> Tensor:
    """Eq. 5: CE(D(X1'), Y_2) + CE(D(X2'), Y_1); its weight is lambda_1.

    Args:
        exchanged_logits: (n, K) of the frozen discriminator.
        donor_target: (n,) labels of the images that gave the key, or (n, K) their posterior.
    """
    return 2 * F.cross_entropy(exchanged_logits.float(), donor_target)


@term("sup_host")
def j_sup_host(host_logits: Tensor, donor_target: Tensor) -> Tensor:
    """J_SUP on X + X' - X^, the exchange of ``detail="host"``."""
    return j_sup(host_logits, donor_target)


@term("lda", weight=1e-3)
def j_lda(key: Tensor, non_key: Tensor, lda_eps: float = 0.0) -> Tensor:
    """Eq. 6 and 7: (var hN + var hK) / ((mean hN - mean hK)^2 + eps), summed over the two images of a pair; its weight
    is lambda_2.

    Mean and biased variance are over the elements of each latent, then the ratio is averaged over the
    batch. Computed in float32 outside autocast: near the crossing of the means it exceeds bfloat16.

    It can be driven to zero without separating anything: hK + c and hN - c decode to the same images for
    every constant c (a gauge freedom), while the ratio falls as 1 / c^2. Never read it as separation.

    Args:
        key: hK of both images of the pairs.
        non_key: hN of them.
        lda_eps: bound of the denominator; 0 is the paper, which reaches 1e6 and more at the start.
    """
    with torch.autocast(key.device.type, enabled=False):
        var_k, mean_k = torch.var_mean(key.float().flatten(1), dim=1, correction=0)
        var_n, mean_n = torch.var_mean(non_key.float().flatten(1), dim=1, correction=0)
        return 2 * ((var_n + var_k) / ((mean_n - mean_k).square() + lda_eps)).mean()


@term("same_grade")
def j_same_grade(same_grade: Tensor, images: Tensor) -> Tensor:
    """Same-grade exchange: MSE(D(hN_i + hK_j), X_i) for Y_i = Y_j, summed over the two grades.

    Whatever differs between two knees of one grade may then not live in the key.
    """
    return 2 * F.mse_loss(same_grade, images)


@term("grade_in_key")
def j_grade_in_key(key_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a linear head that reads the grade from hK: ln K where hK does not know it."""
    return F.cross_entropy(key_logits.float(), labels)


@term("grade_free_non_key")
def j_grade_free_non_key(non_key_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a head that reads the grade from hN through a reversed gradient: the head learns, hN unlearns."""
    return F.cross_entropy(non_key_logits.float(), labels)


@term("feature_match")
def j_feature_match(reconstruction_features: Sequence[Tensor], image_features: Sequence[Tensor]) -> Tensor:
    """What the discriminator sees in X^ against what it sees in X: squared error over the reference's own power,
    mean of stages.

    PSNR hardly notices an osteophyte of a few pixels; a network that reads grades does.

    Args:
        reconstruction_features: stages of the discriminator on X^, each (n, C, h, w).
        image_features: the same of X; no gradient flows into them.
    """
    errors = [
        F.mse_loss(f.float(), r.detach().float()) / r.detach().float().square().mean().clamp_min(1e-8)
        for f, r in zip(reconstruction_features, image_features, strict=True)
    ]
    return 2 * torch.stack(errors).mean()


@term("fisher_key")
def j_fisher(key: Tensor, labels: Tensor) -> Tensor:
    """Class-aware Fisher criterion on hK: scatter within the grades over scatter between their means.

    What J_LDA is named after: it compares knees of different grades, not the two halves of one knee.

    Args:
        key: (B, C, h, w), two grades or more among them.
        labels: (B,) int64.
    """
    with torch.autocast(key.device.type, enabled=False):
        x = key.float().flatten(1)
        groups = [x[labels == label] for label in labels.unique()]
        within = torch.stack([(g - g.mean(0)).square().mean() for g in groups]).mean()
        between = (torch.stack([g.mean(0) for g in groups]) - x.mean(0)).square().mean()
        return within / (between + 1e-3)  # two means that coincide give no infinite gradient


@dataclass
class LossConfig:
    """Which terms are learned from, and how the discriminator looks.

    Args:
        terms: weight of each registered term, 0 for none; one that is not named has its weight in the paper
            (mse 1, sup 0.01, lda 0.001, every other one 0).
        lda_eps: bound of J_LDA's denominator; 0 is the paper.
        sup_target: what J_SUP asks of an exchanged image: ``"label"`` of the donor (paper), or ``"posterior"``, the mean
            posterior of all discriminators on the donor's real image.
        discriminator_from: step at which the terms of the discriminator begin. Before it the network learns to
            reconstruct, at a third of the cost of a step; a discriminator teaches nothing about images that are
            still a blur.
        discriminator_fraction: fraction of a batch's pairs that the discriminator looks at; it is the dearest part
            of a step.
        discriminator_shift: the discriminator sees its images moved by up to this many pixels, drawn anew in each step.
        discriminator_noise: and with noise of up to this standard deviation, in units of [-1, 1].
        discriminator_blur: and blurred by up to this sigma, in pixels.

    Raises:
        ValueError: a name that is no term.
    """

    terms: dict[str, float] = field(default_factory=dict)
    lda_eps: float = 0.0
    sup_target: Literal["label", "posterior"] = "label"
    discriminator_from: int = 0
    discriminator_fraction: float = 1.0
    discriminator_shift: int = 0
    discriminator_noise: float = 0.0
    discriminator_blur: float = 0.0

    def __post_init__(self) -> None:
        unknown = [hint(name) for name in self.terms if name not in TERMS]
        if unknown:
            raise ValueError(f"loss.terms: {', '.join(unknown)}; accepted are {', '.join(TERMS)}")
        self.terms = {name: float(self.terms.get(name, term.weight)) for name, term in TERMS.items()}

    @property
    def active(self) -> dict[str, float]:
        """The weights that are not 0."""
        return {name: weight for name, weight in self.terms.items() if weight}

    @property
    def reads(self) -> set[str]:
        """The :class:`StepOutputs` that the active terms read: no other expensive one is computed."""
        return {read for name in self.active for read in TERMS[name].reads}

    @property
    def by_discriminator(self) -> list[str]:
        """The active terms that look through the discriminator."""
        return [name for name in self.active if not BY_DISCRIMINATOR.isdisjoint(TERMS[name].reads)]

    def weighing(self, **weights: float) -> LossConfig:
        """The same with other weights of the terms that are named."""
        return replace(self, terms={**self.terms, **weights})

    def at(self, step: int) -> LossConfig:
        """The terms of a step: without those of the discriminator before ``discriminator_from``."""
        if step >= self.discriminator_from:
            return self
        return self.weighing(**dict.fromkeys(self.by_discriminator, 0.0))

    def problems(self) -> list[str]:
        """What is wrong with the values, a line each."""
        found = []
        values: Mapping[str, float] = {f"terms.{k}": v for k, v in self.terms.items()} | {
            k: v for k, v in asdict(self).items() if k not in ("terms", "sup_target")
        }
        negative = [f"loss.{k}={v}" for k, v in values.items() if v < 0]
        if negative:
            found.append(f"{', '.join(negative)}: weights must not be negative")
        if not self.active:
            found.append(
                "loss.terms: every weight is 0, so there is nothing to learn from; give --loss.terms.mse 1"
            )
        if not 0 < self.discriminator_fraction <= 1:
            found.append(f"loss.discriminator_fraction={self.discriminator_fraction}: above 0, up to 1")
        return found


def hint(name: str) -> str:
    """The name that is no term, with the one that was perhaps meant."""
    close = difflib.get_close_matches(name, TERMS, n=1)
    return f"{name!r} is no term" + (f" (did you mean {close[0]!r}?)" if close else "")


def hybrid_loss(outputs: StepOutputs, config: LossConfig) -> dict[str, Tensor]:
    """Eq. 8 and the optional terms: every active term unweighted under its name, and their weighted ``total``.

    Args:
        outputs: with all that ``config.reads``.
        config: the weights; a term of weight 0 is not computed.

    Returns:
        Scalars: the terms, without a gradient, and ``total``, with it.
    """
    values = {name: TERMS[name](outputs) for name in config.active}
    total = torch.stack([config.terms[name] * value for name, value in values.items()]).sum()
    return {**{name: value.detach() for name, value in values.items()}, "total": total}
