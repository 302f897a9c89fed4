"""Discriminators and oracles: classifiers of grades, frozen once they are trained.

:mod:`.model` what they are, and their files; :mod:`.learn` how they are trained; :mod:`.networks` and :mod:`.lite` their
architectures; :mod:`.adversarial` the attack of a robust one; :mod:`.panel` several as one.
"""

from kecae_training.discriminator.learn import train_discriminator
from kecae_training.discriminator.model import (
    Discriminator,
    DiscriminatorConfig,
    check_fits,
    device_of,
    ids_of,
    in_fold,
    load_discriminator,
    predict,
    save_discriminator,
)

__all__ = [
    "Discriminator",
    "DiscriminatorConfig",
    "check_fits",
    "device_of",
    "ids_of",
    "in_fold",
    "load_discriminator",
    "predict",
    "save_discriminator",
    "train_discriminator",
]
