"""The arms: what a step of each looks like.

Every arm of a seed begins a step with the same real knees, class-balanced. What an arm adds stands *beside* them, made by
the product's own public API from the step's own real knees, and is never given back: no real knee leaves for it (but
with ``p``, which replaces, and in "paper", which is the paper's protocol).

    T                   real knees alone
    T + real            further real knees in the place of what is added: the control for larger batches
    T + MixUp, CutMix   torchvision's
    T + X^              reconstructions with their own labels: the control for blur and for decoding
    T + X' same grade   X' whose key is of the same grade, own label: the control for exchanging as such
    T + shuffled X'     X' with labels dealt out at random: the control for noise
    T' online           X' made in the step (KeyExchangeAugment)
    T' offline          X' out of N pairs that are drawn once (KeyExchangeDataset)
    T' unlabelled       online, of hosts that are training knees outside T, with T's keys: their own labels are not used
    T + shuffled unlabelled X'
                        the same with labels dealt out at random: its control for noise
    T' gate             online, those that held-out judges accept (Gate)
    paper               batches out of T' = T and N pairs, as many epochs of it as the others have of T

Each also "+ classical": the same classical augmentation of real and added knees, after the exchange.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """An arm by its parts.

    Attributes:
        added: what stands beside the real knees, a key of :data:`study.options.USED`.
        mix: ``"mixup"``, ``"cutmix"`` or None.
        classical: whether there is classical augmentation.
    """

    name: str
    added: str = "none"
    mix: str | None = None
    classical: bool = False

    @property
    def uses_weights(self) -> bool:
        """Whether weights play a part; runs of arms without are those of any weights with the same split."""
        return self.added not in ("none", "real")

    @property
    def uses_pairs(self) -> bool:
        """Whether N, the number of pairs, plays a part."""
        return self.added in ("offline", "paper")

    @property
    def shuffles(self) -> bool:
        """Whether the labels of what is added are dealt out at random."""
        return self.added.startswith("shuffled")

    @property
    def uses_others(self) -> bool:
        """Whether training knees outside T play a part, so that T must be a share of the training patients."""
        return self.added in ("unlabelled", "shuffled_unlabelled")


_PARTS: dict[str, dict[str, str]] = {
    "T": {},
    "T + real": {"added": "real"},
    "T + MixUp": {"mix": "mixup"},
    "T + CutMix": {"mix": "cutmix"},
    "T + X^": {"added": "x_hat"},
    "T + X' same grade": {"added": "same_grade"},
    "T + shuffled X'": {"added": "shuffled"},
    "T' online": {"added": "online"},
    "T' offline": {"added": "offline"},
    "T' unlabelled": {"added": "unlabelled"},
    "T + shuffled unlabelled X'": {"added": "shuffled_unlabelled"},
    "T' gate": {"added": "gate"},
    "paper": {"added": "paper"},
}
ARMS: dict[str, Arm] = {
    name + suffix: Arm(name + suffix, classical=bool(suffix), **parts)
    for suffix in ("", " + classical")
    for name, parts in _PARTS.items()
}
