"""Accept an exchanged knee only if oracles see its new label, and it is near enough to its host.

    gate = Gate([oracle_a, oracle_b], classes=("0", "2"))
    augment = KeyExchangeAugment.from_pretrained("knee-kl02", gate=gate)
    ...
    print(gate.report())

Oracles should be held out: a network that the exchange was trained against certifies itself. What the gate
keeps is easier than what it rejects, so compare T' with and without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kecae_aug.engine.exchange import resize
from kecae_aug.names import class_name, class_names

Oracle = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Verdict:
    """What a gate says of B exchanged knees.

    Attributes:
        accepted: (B,) bool.
        agreement: (B,) float32, fraction of the oracles that give the new label at least ``min_probability``.
        probability: (J, B) float32, of the new label by each oracle.
        distance: (B,) float32, mean absolute difference to the host, of the full grey range.
    """

    accepted: Tensor
    agreement: Tensor
    probability: Tensor
    distance: Tensor


class Gate:
    """Oracles and a distance; called on exchanged knees, their hosts and new labels.

    Args:
        oracles: each maps (B, 1, S, S) float32 in [-1, 1] to logits (B, K) over ``classes``. Modules are
            set to eval mode. May be empty where ``max_distance`` is given.
        classes: names of the oracles' classes, in the order of their logits; by default the oracles' own ``.classes``.
        min_probability: of the new label, for an oracle to agree. 0.5 between two classes is the larger one.
        min_agreement: fraction of the oracles that must agree; all of them by default.
        max_distance: largest mean absolute difference to the host, of the full grey range (0 to 1).
        image_size: side the oracles want; by default they see the images' own size.

    Attributes:
        counts: how many were offered, accepted, and rejected for which reason and direction, in this
            process; DataLoader workers count for themselves.
    """

    def __init__(
        self,
        oracles: Sequence[Oracle],
        *,
        classes: Sequence[str | int] | None = None,
        min_probability: float = 0.5,
        min_agreement: float = 1.0,
        max_distance: float | None = None,
        image_size: int | None = None,
    ) -> None:
        self.oracles = list(oracles)
        if classes is None:
            classes = next((c for c in map(_own_classes, self.oracles) if c is not None), None)
            if classes is None:
                raise ValueError(
                    "classes: none was given and no oracle has .classes; give the names in the order of the logits"
                )
        self.classes = class_names(classes)
        if not self.oracles and max_distance is None:
            raise ValueError(
                "oracles: got none and no max_distance, so that nothing could be rejected; give either"
            )
        for i, oracle in enumerate(self.oracles):
            if not callable(oracle):
                raise TypeError(
                    f"oracles[{i}]: got {type(oracle).__name__}, accepted is a module or function from (B, 1, S, S) "
                    "images in [-1, 1] to logits (B, K)"
                )
            own = _own_classes(oracle)
            if own is not None and tuple(map(class_name, own)) != self.classes:
                raise ValueError(
                    f"oracles[{i}]: its logits are of classes {tuple(own)}, the gate's are {self.classes}; leave classes "
                    "out, or load the oracle with the gate's (load_discriminator(folder, classes))"
                )
            if isinstance(oracle, nn.Module):
                oracle.eval()
        if len(self.classes) < 2:
            raise ValueError(f"classes={self.classes}: accepted are two or more different names")
        if not 0 <= min_probability <= 1 or not 0 < min_agreement <= 1:
            raise ValueError(
                f"min_probability={min_probability}, min_agreement={min_agreement}: accepted are fractions from 0 to 1, "
                "the agreement above 0"
            )
        if max_distance is not None and not max_distance > 0:
            raise ValueError(f"max_distance={max_distance}: accepted is a positive number, or None")
        self.min_probability, self.min_agreement = min_probability, min_agreement
        self.max_distance, self.image_size = max_distance, image_size
        self.counts: Counter[str] = Counter()

    @torch.no_grad()
    def assess(self, images: Tensor, hosts: Tensor, labels: Sequence[str]) -> Verdict:
        """Scores of exchanged knees; counts nothing.

        Args:
            images: (B, C, H, W) float32 in [-1, 1], exchanged.
            hosts: of the same shape.
            labels: B names, the labels the exchanged knees shall carry.
        """
        labels = [str(class_name(label)) for label in labels]
        if unknown := sorted(set(labels) - set(self.classes)):
            raise ValueError(
                f"labels: the gate's oracles know {self.classes}, not {unknown}; give their classes by name"
            )
        at = [self.classes.index(label) for label in labels]
        wanted = torch.tensor(at, dtype=torch.int64, device=images.device)  # of none too
        grey = images.mean(1, keepdim=True)
        if self.image_size:
            grey = resize(grey, (self.image_size, self.image_size))
        rows = torch.arange(len(images), device=images.device)
        each = [self._probabilities(i, grey)[rows, wanted] for i in range(len(self.oracles))]
        probability = torch.stack(each) if each else torch.ones(0, len(images), device=images.device)
        agreement = (probability >= self.min_probability).float().mean(0) if each else rows.float() * 0 + 1
        distance = (images - hosts).abs().mean((1, 2, 3)) / 2  # of the full range
        accepted = agreement >= self.min_agreement - 1e-6
        if self.max_distance is not None:
            accepted &= distance <= self.max_distance
        return Verdict(accepted, agreement, probability, distance)

    def __call__(self, images: Tensor, hosts: Tensor, labels: Sequence[str]) -> Tensor:
        """(B,) bool, which of the exchanged knees are accepted; counted."""
        verdict = self.assess(images, hosts, labels)
        self.count(verdict, labels)
        return verdict.accepted

    def count(self, verdict: Verdict, labels: Sequence[str]) -> None:
        """Add a verdict to ``counts``."""
        agreed = (verdict.agreement >= self.min_agreement - 1e-6).tolist()
        names = map(class_name, labels)
        for label, fine, accepted in zip(names, agreed, verdict.accepted.tolist(), strict=True):
            self.counts["offered"] += 1
            self.counts[f"offered as {label}"] += 1
            if accepted:
                self.counts["accepted"] += 1
                self.counts[f"accepted as {label}"] += 1
            else:
                self.counts["rejected by the oracles" if not fine else "rejected by distance"] += 1

    def report(self) -> str:
        """One line: how many of how many were accepted, for each label, and why the others were not."""
        offered = self.counts["offered"]
        if not offered:
            return "gate: nothing offered yet"
        names = [c for c in self.classes if self.counts[f"offered as {c}"]]
        by_label = ", ".join(
            f"as {c} {self.counts[f'accepted as {c}']}/{self.counts[f'offered as {c}']}" for c in names
        )
        reasons = ", ".join(f"{v} {k}" for k, v in self.counts.items() if k.startswith("rejected"))
        return f"gate: {self.counts['accepted']} of {offered} accepted ({by_label}); {reasons or 'none rejected'}"

    def _probabilities(self, i: int, images: Tensor) -> Tensor:
        oracle = self.oracles[i]
        if isinstance(oracle, nn.Module):
            place = next(oracle.parameters(), None)
            if place is not None and place.device != images.device:
                oracle.to(images.device)
        logits = oracle(images)
        if logits.shape != (len(images), len(self.classes)):
            raise ValueError(
                f"oracles[{i}]: gave shape {tuple(logits.shape)} for {len(images)} images, accepted is "
                f"({len(images)}, {len(self.classes)}), logits of classes={self.classes}"
            )
        return logits.float().softmax(1)

    def __repr__(self) -> str:
        return (
            f"Gate({len(self.oracles)} oracles, min_probability={self.min_probability}, "
            f"min_agreement={self.min_agreement}, max_distance={self.max_distance})"
        )


def _own_classes(oracle: object) -> Sequence[str | int] | None:
    own = getattr(oracle, "classes", None)
    return own if isinstance(own, (list, tuple)) else None
