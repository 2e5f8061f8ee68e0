"""LSUN Bedroom, 256x256: the original's configuration (arXiv:2006.11239, appendix B and its code).

    ddpm-jax train lsun_bedroom256 --workdir runs/bedroom --data.source npz:bedroom256.npz

Published for this configuration: FID 6.36 after 2,400,000 steps; the only data set trained without flips.  The paper's
large model (FID 4.90) has 256 million parameters; 192 channels give 255,677,955.
"""

import pathlib
from dataclasses import replace

from ddpm_jax.config import Data, load

config = replace(
    load(pathlib.Path(__file__).with_name("celebahq256.py")),
    steps=2_400_000,
    data=Data("npz:bedroom256.npz", flip=False),
)

large = replace(config, steps=1_150_000, net=replace(config.net, channels=192))
