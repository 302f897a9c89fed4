"""Radiographs: folders and tables, preprocessing, splits. The phantom is in ``kecae_aug.phantom``."""

from kecae_aug.data.folder import RadiographFolder, Radiographs
from kecae_aug.data.preprocessing import Preprocessing, inversion_score, is_inverted
from kecae_aug.data.reading import BadImageError, BadImagesError, read_image
from kecae_aug.data.source import open_radiographs
from kecae_aug.data.splits import PatientOverlapError, check_disjoint, split_patients
from kecae_aug.data.table import RadiographTable

__all__ = [
    "BadImageError",
    "BadImagesError",
    "PatientOverlapError",
    "Preprocessing",
    "RadiographFolder",
    "RadiographTable",
    "Radiographs",
    "check_disjoint",
    "inversion_score",
    "is_inverted",
    "open_radiographs",
    "read_image",
    "split_patients",
]
