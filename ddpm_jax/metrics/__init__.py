"""How good samples and models are: numbers of arrays, which know nothing of runs or configs.

`held_out` is what training looks at; `frechet` and `manifold` compare two sets of features; `monitors` compares samples
with data as they are; `classifier` and `inception` make features of images; `attributes` reads generated pictures.
"""

from typing import Protocol

import numpy as np


class Features(Protocol):
    """Images [n, H, W, C] -> features [n, d], floating point.

    The images' values lie in 0 .. levels - 1: integers (uint8 or uint16), or float32 where samples are compared as they
    came out of the network, clipped but not rounded to levels.
    """

    def __call__(self, images: np.ndarray, /) -> np.ndarray: ...
