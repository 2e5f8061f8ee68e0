"""Metrics of samples and models, as functions of arrays.

`held_out` is the validation of training; `frechet` and `manifold` compare two sets of features; `monitors` compares the
colours of samples and finds memorisation; `classifier` and `inception` are feature extractors; `attributes` recognises
the contents of generated images.
"""

from typing import Protocol

import numpy as np


class Features(Protocol):
    """Images [n, H, W, C] -> features [n, d], floating point.

    The images' values lie in 0 .. levels - 1: integers (uint8 or uint16), or float32 where samples are compared as they
    came out of the network, clipped but not rounded to levels.
    """

    def __call__(self, images: np.ndarray, /) -> np.ndarray: ...
