"""What the seven networks share: how an image comes in, how logits go out, and the loss they are trained by."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = (
    64  # px; below it the maps of the torchvision networks shrink to 1x1, where BatchNorm has no spread
)


class KneeClassifier(nn.Module, ABC):
    """A network from one-channel square images to logits.

    Args:
        classes: logits, 2 or more.
        image_size: side of the images in pixels, 64 or more.

    Shapes:
        ``forward``: (B, 1, S, S) float in [-1, 1] with S = image_size -> (B, classes) float32 logits, also under
        autocast. Crops, mirroring and resizing are the network's own.

    Raises:
        ValueError: an argument out of these ranges, or images of another shape.
    """

    def __init__(self, classes: int, image_size: int) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes={classes}: a classifier needs 2 or more")
        if image_size < SMALLEST:
            raise ValueError(
                f"image_size={image_size}: the networks of Table II need {SMALLEST} px or more; enlarge the images"
            )
        self.classes, self.image_size = classes, image_size

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """(B, 1, S, S), checked -> (B, classes) in whatever precision the layers computed."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, S, S) float in [-1, 1] -> (B, classes) float32."""
        return self.logits(self.checked(x)).float()

    def training_loss(self, x: Tensor, y: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """What a training step minimises, a scalar: cross-entropy, unless the network's authors have their own."""
        return cross_entropy(self(x), y, class_weights)

    def checked(self, x: Tensor) -> Tensor:
        """The images as they are, or a ValueError that says what they should be."""
        side = self.image_size
        if x.ndim != 4 or tuple(x.shape[1:]) != (1, side, side) or not x.is_floating_point():
            raise ValueError(
                f"x: {x.dtype} of shape {tuple(x.shape)}; {type(self).__name__} was built for floats in [-1, 1] of "
                f"shape (B, 1, {side}, {side}). Convert the images, or build with their size as image_size"
            )
        return x


def training_loss(model: nn.Module, x: Tensor, y: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """The loss of one batch: the model's own ``training_loss`` where it has one, else cross-entropy of ``model(x)``.

    Args:
        model: one of this package, or any module from images to logits.
        x: (B, 1, S, S) float in [-1, 1].
        y: labels, see :func:`as_targets`.
        class_weights: (K,) positive, see :func:`cross_entropy`.
    """
    own = getattr(model, "training_loss", None)
    loss: Tensor = own(x, y, class_weights) if own else cross_entropy(model(x), y, class_weights)
    return loss


def cross_entropy(logits: Tensor, y: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy -sum_k w_k t_k log p_k of all images, divided by the sum of their w_k t_k.

    torch's own divides soft labels by B and hard ones by the sum of weights, so that with class weights a one-hot row
    costs something else than its class index. Here both cost the same: arms with soft labels stay comparable.

    Args:
        logits: (B, K).
        y: labels, see :func:`as_targets`.
        class_weights: (K,) positive; None weighs all classes alike.
    """
    targets = as_targets(y, logits.shape[1], class_weights)
    return -(targets * F.log_softmax(logits.float(), 1)).sum() / targets.sum()


def as_targets(y: Tensor, classes: int, class_weights: Tensor | None = None) -> Tensor:
    """Labels as float32 rows (B, K), times the weights of the classes.

    Args:
        y: (B,) integers below K, or (B, K) floats, each row a distribution over the classes.
        classes: K.
        class_weights: (K,).

    Raises:
        ValueError: another shape, a class that is not there, a row that does not sum to 1, other weights.
    """
    if y.ndim == 1 and not y.is_floating_point():
        if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < classes:
            raise ValueError(
                f"y: classes {int(y.min())} to {int(y.max())}; the network has 0 to {classes - 1}. "
                "Give class indices, not grades"
            )
        rows = F.one_hot(y.long(), classes).float()
    elif y.ndim == 2 and y.shape[1] == classes and y.is_floating_point():
        rows = y.float()
        # half-precision rows of many classes miss 1 by less than this
        if not bool(((rows.sum(1) - 1).abs() < 0.02).all()):
            raise ValueError("y: a row of soft labels does not sum to 1; give probabilities, not logits")
    else:
        raise ValueError(
            f"y: {y.dtype} of shape {tuple(y.shape)}; give (B,) class indices or (B, {classes}) probabilities"
        )
    if class_weights is None:
        return rows
    if class_weights.shape != (classes,):
        raise ValueError(
            f"class_weights: shape {tuple(class_weights.shape)}; one a class, ({classes},), is needed"
        )
    return rows * class_weights.to(rows)
