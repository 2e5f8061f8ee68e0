"""Metrics of samples and models, as functions of arrays.

`held_out` is the validation of training; `frechet` and `manifold` compare two sets of features; `monitors` compares the
colours of samples and finds memorisation; `classifier` and `inception` are feature extractors.
"""

import hashlib
from collections.abc import Mapping

import numpy as np


def check_values(name: str, images: np.ndarray, levels: int) -> None:
    """Raises a ValueError, naming the feature extractor, unless images hold values 0 .. levels - 1.

    They are integers, or float32 for samples as the network returns them, clipped but not rounded to levels.
    """
    if images.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"{name}: expected images of type uint8, uint16 or float32, got {images.dtype}")
    low, high = images.min(), images.max()  # both nan if any is
    if not (low >= 0 and high <= levels - 1):
        raise ValueError(f"{name}: expected values from 0 to levels - 1 = {levels - 1}, got {low} to {high}")


def fingerprint(weights: Mapping[str, np.ndarray]) -> str:
    """12 hex digits of the SHA-256 of weights by "layer/weight"; scores of different fingerprints do not compare."""
    digest = hashlib.sha256()
    for path, weight in sorted(weights.items()):
        digest.update(f"{path} {weight.shape} ".encode())
        digest.update(weight.astype("<f4").tobytes())
    return digest.hexdigest()[:12]
