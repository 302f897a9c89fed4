"""Key-exchange data augmentation for medical image classifiers."""

from kecae_aug.bank import LatentBank
from kecae_aug.dataset import KeyExchangeDataset
from kecae_aug.engine.model import KECAE, Latents
from kecae_aug.engine.options import EngineOptions
from kecae_aug.gate import Gate
from kecae_aug.loader import KeyExchangeLoader
from kecae_aug.transform import KeyExchangeAugment
from kecae_aug.weights.io import load_weights, save_weights

__version__ = "0.1.0"

__all__ = [
    "KECAE",
    "EngineOptions",
    "Gate",
    "KeyExchangeAugment",
    "KeyExchangeDataset",
    "KeyExchangeLoader",
    "LatentBank",
    "Latents",
    "__version__",
    "load_weights",
    "save_weights",
]
