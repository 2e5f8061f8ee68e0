"""Metrics of samples and models, as functions of arrays.

`held_out` is the validation of training; `frechet` and `manifold` compare two sets of features; `monitors` compares the
colours of samples and finds memorisation; `classifier` and `inception` are feature extractors; `attributes` recognises
the contents of generated images.
"""

from collections.abc import Callable

import numpy as np

Features = Callable[[np.ndarray], np.ndarray]
"""Images [n, H, W, C] -> features [n, d], floating point.

The images' values lie in 0 .. levels - 1: integers (uint8 or uint16), or float32 for samples as the network returns
them, clipped but not rounded to levels.
"""
