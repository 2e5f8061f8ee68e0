"""Sampling by this library and by others, and calls of the network alone: the same network and batch, taking turns.

    python -m benchmarks.sample [CELLS] [--peer diffusers diffusers-compiled denoising-diffusion-pytorch]

"images per second" are images times network calls.  Ratios and operations are as in `benchmarks.train`; what sampling
takes beyond the network's calls is the sampler's own.
"""

import sys

from benchmarks.compare_libraries import main

if __name__ == "__main__":
    main("sample", ("network", "sample"), sys.argv[1:])
