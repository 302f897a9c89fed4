"""Radiomic features of radiographs, for the Frechet Radiomics Distance (FRD, version 1; Konz, Osuala et al. 2026).

Settings and steps are those of the package ``frd-score`` 1.0.1 (Apache-2.0), with features from pyradiomics. The
package itself is not used: it needs opencv-contrib-python-headless, which overwrites the ``cv2`` of albumentations'
opencv-python-headless, and it would extract the features of the real images anew for every comparison.

Needs the extra ``[radiomics]``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from kecae_training.images import to_bytes

# frd_score/configs/extraction_2d.yaml of frd-score 1.0.1
SETTINGS: dict[str, Any] = {
    "imageType": {"Original": {}, "LoG": {"sigma": [2.0, 3.0, 4.0, 5.0]}, "Wavelet": {}},
    "featureClass": {
        "firstorder": None,
        "glcm": [
            "Autocorrelation", "JointAverage", "ClusterProminence", "ClusterShade", "ClusterTendency", "Contrast",
            "Correlation", "DifferenceAverage", "DifferenceEntropy", "DifferenceVariance", "JointEnergy",
            "JointEntropy", "Imc1", "Imc2", "Idm", "Idmn", "Id", "Idn", "InverseVariance", "MaximumProbability",
            "SumEntropy", "SumSquares",
        ],
        "glrlm": None,
        "glszm": None,
        "ngtdm": None,
    },
    "setting": {
        "normalize": True, "normalizeScale": 100, "interpolator": "sitkBSpline", "resampledPixelSpacing": [2, 2, 0],
        "padDistance": 10, "preCrop": True, "force2D": True, "force2Ddimension": 0, "binWidth": 5,
        "voxelArrayShift": 300, "label": 1,
    },
}  # fmt: skip


def radiomic_features(images: Tensor, name: str = "images") -> NDArray[np.float32]:
    """Features of whole images, about 0.15 s each at 128 px on one core.

    Args:
        images: (N, 1, S, S) in [-1, 1]; read as 8-bit greys.
        name: shown by the progress criterion.

    Returns:
        (N, F) float32, F about 470: first order and texture (GLCM, GLRLM, GLSZM, NGTDM) of the image, of its
        Laplacians of Gaussian and of its wavelets, and pyradiomics' numbers about the image itself. NaN where a
        feature has no value.

    Raises:
        ModuleNotFoundError: pyradiomics is not installed.
    """
    try:
        import SimpleITK
        from radiomics import featureextractor, setVerbosity
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"radiomic features need {error.name}: pip install 'kecae-aug[radiomics]' (it compiles a C extension), or "
            "leave them out"
        ) from error
    setVerbosity(60)  # pyradiomics tells of every image that it is two-dimensional
    extractor = featureextractor.RadiomicsFeatureExtractor(SETTINGS)
    rows = []
    for image in tqdm(to_bytes(images)[:, 0].numpy(), desc=f"radiomics of {name}", leave=False):
        inside = np.ones((1, *image.shape), dtype=np.uint8)
        inside[0, 0, 0] = 0  # pyradiomics takes a mask that is true everywhere for one that is empty
        found = extractor.execute(
            SimpleITK.GetImageFromArray(image[None].astype(np.float32)), SimpleITK.GetImageFromArray(inside)
        )
        rows.append([value for v in found.values() if (value := _number(v)) is not None])
    return np.asarray(rows, dtype=np.float32)


def _number(value: Any) -> float | None:
    """Features and the numeric diagnostics, as in frd-score; versions, sizes and hashes are no numbers."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def standardised(features: dict[str, NDArray[np.float32]], reference: str) -> dict[str, NDArray[np.float64]]:
    """Z-scores by the mean and deviation of one kind; features without a finite z-score in all kinds are left out.

    Args:
        features: by kind, (N, F).
        reference: the kind whose mean and deviation count, the real images.
    """
    base = features[reference].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = {kind: (values - base.mean(0)) / base.std(0) for kind, values in features.items()}
    keep = np.all([np.isfinite(values).all(0) for values in scores.values()], axis=0)
    if not keep.any():
        raise ValueError(
            "features: none is finite and varies in all kinds of images; are the images constant?"
        )
    return {kind: values[:, keep] for kind, values in scores.items()}
