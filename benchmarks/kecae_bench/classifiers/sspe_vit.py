"""SSPE-ViT after Wang et al. [28] (Expert Systems with Applications 2024): a vision transformer whose training sequences mix
knees.

Public is the idea: position embeddings of the patches of the joint ("key patches") stay, those of the others are
shuffled; the key patches of a knee are exchanged with those of other training knees; a hybrid loss is taken over the
different sequences. No sizes, no terms and no code are public. **Every choice below is ours**, so this network stands for
the idea; its figures are not theirs:

- 224 px, patches of 16: 196 tokens and a class token; width 192, depth 12, 3 heads, the smallest size published for a ViT
  (DeiT-Ti), because it is trained from scratch on a few thousand knees. Learnt positions; dropout 0.1.
- Key patches: those whose centre lies in the rows of the Siamese crops, 99:227 of 299: 6 of the 14 rows, 84 patches.
- A new shuffle for every image and sequence in training; none in evaluation, which is thereby deterministic.
- Partners: a permutation of the batch (some knees meet themselves). The label follows the key patches, as in KECAE.
- Loss: the mean cross-entropy of both sequences + Jensen-Shannon divergence between what is said of the same key
  patches in their own knee and in another one. Each step therefore costs two passes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kecae_bench.classifiers.base import KneeClassifier, cross_entropy
from kecae_bench.classifiers.views import NATIVE, ROWS, resize_to

SIDE, PATCH = 224, 16
GRID = SIDE // PATCH


def key_patches() -> Tensor:
    """(196,) bool, row by row: is this a patch of the joint?"""
    centres = (torch.arange(GRID) + 0.5) * NATIVE / GRID
    return ((centres >= ROWS[0]) & (centres < ROWS[1])).repeat_interleave(GRID)


class SSPEViT(KneeClassifier):
    """Patches -> tokens, positions shuffled outside the joint -> transformer -> class token -> logits.

    Args:
        classes: logits.
        image_size: side of the images in pixels.
        width: numbers a token.
        depth: layers of the transformer.
        heads: of its attention.
    """

    key: Tensor

    def __init__(
        self, classes: int, image_size: int, width: int = 192, depth: int = 12, heads: int = 3
    ) -> None:
        super().__init__(classes, image_size)
        self.register_buffer("key", key_patches(), persistent=False)
        self.patch = nn.Conv2d(1, width, PATCH, PATCH)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(GRID**2, width), std=0.02))
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        # not nn.TransformerEncoder, whose layers are copies of one and start alike
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, heads, 4 * width, 0.1, F.gelu, batch_first=True, norm_first=True
                )
                for _ in range(depth)
            )
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def patches(self, x: Tensor) -> Tensor:
        """(B, 1, S, S) -> (B, 196, width), without positions."""
        out: Tensor = self.patch(resize_to(x, SIDE)).flatten(2).mT
        return out

    def order(self, n: int) -> Tensor:
        """(n, 196): which position each patch is told it has; key patches their own."""
        order = torch.arange(GRID**2, device=self.key.device).repeat(n, 1)
        if self.training:
            others = (~self.key).nonzero()[:, 0]
            shuffled = torch.rand(n, len(others), device=others.device).argsort(1)
            order[:, others] = others[shuffled]
        return order

    def classify(self, patches: Tensor) -> Tensor:
        """(B, 196, width) -> (B, classes)."""
        n = len(patches)
        tokens = torch.cat([self.token.expand(n, 1, -1), patches + self.position[self.order(n)]], 1)
        out: Tensor = self.head(self.layers(tokens)[:, 0])
        return out

    def logits(self, x: Tensor) -> Tensor:
        """(B, 1, S, S) -> (B, classes)."""
        return self.classify(self.patches(x))

    def training_loss(self, x: Tensor, y: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """The loss over both sequences of each knee, see the module's text."""
        own = self.patches(self.checked(x))
        partner = torch.randperm(len(x)).to(x.device)
        mixed = torch.where(self.key[:, None], own[partner], own)
        of_own, of_mixed = self.classify(torch.cat([own, mixed])).float().chunk(2)
        entropies = cross_entropy(of_own, y, class_weights) + cross_entropy(
            of_mixed, y[partner], class_weights
        )
        return entropies / 2 + jensen_shannon(of_own[partner], of_mixed)


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Mean over rows of the divergence between the softmax of two logits (B, K), 0 to log 2."""
    p, q = F.log_softmax(first, 1), F.log_softmax(second, 1)
    middle = torch.logaddexp(p, q) - math.log(2)
    to_p, to_q = (F.kl_div(middle, of, reduction="batchmean", log_target=True) for of in (p, q))
    return (to_p + to_q) / 2
