"""The seven classifiers of Table II, written anew from their papers, small files, one network each; and three compact ones.

    from kecae_bench.classifiers import CLASSIFIERS, build, training_loss

    model = build("siamese_gap", classes=2, image_size=128)
    loss = training_loss(model, x, y)       # (B, 1, 128, 128) in [-1, 1]; (B,) indices or (B, 2) soft labels
    optimiser = CLASSIFIERS["siamese_gap"].recipe.make(model.parameters())

Parameters for two classes, and the multiplications (10^9) of one image's forward pass (a test holds both):

| key | parameters | at 128 px | at 299 px | file |
|---|---|---|---|---|
| densenet201 | 18,090,498 | 1.375 | 7.203 | standard.py |
| resnet18 | 11,171,266 | 0.566 | 3.253 | standard.py |
| vgg11 | 128,778,882 | 2.545 | 13.026 | standard.py |
| antony | 3,080,771 | 0.429 | 0.429 | antony.py |
| tiulpin | 149,314 | 0.223 | 0.223 | tiulpin.py |
| siamese_gap | 2,693,858 | 1.749 | 1.749 | siamese_gap.py |
| sspe_vit | 5,426,306 | 1.234 | 1.234 | sspe_vit.py; twice that in training |
| compact_vgg | 836,466 | 0.044 | 0.227 | compact.py, not in the paper |
| compact_resnet | 692,090 | 0.041 | 0.233 | compact.py, not in the paper |
| compact_densenet | 140,540 | 0.049 | 0.265 | compact.py, not in the paper |

antony to sspe_vit have layers made for one size and resize the image to it, see views.py. Recipes marked ``ours`` were
chosen by us and tuned by nobody; they are the same in every arm. The compact ones cost a fifth of the cheapest and
learn more in the same steps from scratch, so they are what can be run often enough to see a point or two. Discriminators of
the weights may be of the same kind (of the bundled ones all but DenseNet).
"""

from __future__ import annotations

from kecae_bench.classifiers.antony import Antony
from kecae_bench.classifiers.base import KneeClassifier, as_targets, cross_entropy, training_loss
from kecae_bench.classifiers.compact import compact
from kecae_bench.classifiers.siamese_gap import SiameseGAP
from kecae_bench.classifiers.spec import Recipe, Spec
from kecae_bench.classifiers.sspe_vit import SSPEViT
from kecae_bench.classifiers.standard import densenet_201, resnet_18, vgg_11
from kecae_bench.classifiers.tiulpin import Tiulpin

__all__ = [
    "CLASSIFIERS",
    "TABLE_2",
    "KneeClassifier",
    "Recipe",
    "Spec",
    "as_targets",
    "build",
    "cross_entropy",
    "training_loss",
]

PLAIN = Recipe("adamw", 1e-3, 0.02)
CAREFUL = Recipe("adamw", 3e-4, 0.02)  # hidden layers without BatchNorm after the convolutions
VIT = Recipe("adamw", 5e-4, 0.05)
COMPACT = Recipe("adamw", 2e-3, 0.02)
TIULPIN = Recipe("adam", 1e-3, 5e-5, 32, "published")

CLASSIFIERS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec("densenet201", "DenseNet-201", "DenseNet-201", (84.43, 85.64), None, densenet_201, PLAIN),
        Spec("resnet18", "ResNet-18", "ResNet-18", (83.59, 85.22), None, resnet_18, PLAIN),
        Spec("vgg11", "VGG-11", "VGG-11", (80.97, 82.95), None, vgg_11, CAREFUL),
        Spec("antony", "Antony", "Antony et al. [36]", (84.50, 85.92), (200, 300), Antony, CAREFUL),
        Spec("tiulpin", "Tiulpin", "Tiulpin et al. [8]", (87.33, 88.12), (299, 299), Tiulpin, TIULPIN),
        Spec("siamese_gap", "Siamese-GAP", "Wang et al. [9]", (88.38, 89.11), (299, 299), SiameseGAP, PLAIN),
        Spec("sspe_vit", "SSPE-ViT", "Wang et al. [28]", (88.86, 89.54), (224, 224), SSPEViT, VIT),
        Spec("compact_vgg", "compact VGG", None, None, None, compact("vgg"), COMPACT),
        Spec("compact_resnet", "compact ResNet", None, None, None, compact("resnet"), COMPACT),
        Spec("compact_densenet", "compact DenseNet", None, None, None, compact("densenet"), COMPACT),
    )
}
TABLE_2 = tuple(name for name, spec in CLASSIFIERS.items() if spec.paper)


def build(name: str, classes: int, image_size: int) -> KneeClassifier:
    """A freshly initialised classifier; torch's global generator draws its weights.

    Args:
        name: key of :data:`CLASSIFIERS`.
        classes: logits, 2 or more.
        image_size: side of the images it will be given, in pixels, 64 or more; 299 in the paper.

    Raises:
        ValueError: a name that is not there, or numbers out of range.
    """
    if name not in CLASSIFIERS:
        raise ValueError(f"name={name!r}: no such classifier; there are {', '.join(CLASSIFIERS)}")
    return CLASSIFIERS[name].build(classes, image_size)
