"""Training speed of this library and others: same network and batch, in turns.

    python -m benchmarks.train [CELLS] [--peer diffusers diffusers-compiled denoising-diffusion-pytorch]

Ratios are their time over ours, paired by round, with the quartiles: above 1, ours is faster.  Operations are those of
convolutions and matrix products, three times a call's for a step, and the peak is the fastest matrix product that any
of the processes did in the same run.
"""

import sys

from benchmarks.compare_libraries import main

if __name__ == "__main__":
    main("train", ("train",), sys.argv[1:])
