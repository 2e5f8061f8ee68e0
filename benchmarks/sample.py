"""Sampling speed of this library and others, and of the function evaluations alone: same network and batch, in turns.

    python -m benchmarks.sample [CELLS] [--peer diffusers diffusers-compiled denoising-diffusion-pytorch]

"images per second" are images times function evaluations.  Ratios and operations are as in `benchmarks.train`.
"""

import sys

from benchmarks.compare_libraries import main

if __name__ == "__main__":
    main("sample", ("network", "sample"), sys.argv[1:])
