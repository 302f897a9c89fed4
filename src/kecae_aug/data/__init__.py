"""Radiographs: folders and tables, preparation, splits. The phantom is in ``kecae_aug.data.phantom``."""

from kecae_aug.data.preparation import Preparation, inversion_score, is_inverted
from kecae_aug.data.radiographs import RadiographFolder, Radiographs, RadiographTable
from kecae_aug.data.reading import BadImageError, BadImagesError, read_image
from kecae_aug.data.splits import PatientOverlapError, check_disjoint, split_patients

__all__ = [
    "BadImageError",
    "BadImagesError",
    "PatientOverlapError",
    "Preparation",
    "RadiographFolder",
    "RadiographTable",
    "Radiographs",
    "check_disjoint",
    "inversion_score",
    "is_inverted",
    "read_image",
    "split_patients",
]
