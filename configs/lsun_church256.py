"""LSUN Church, 256x256: the original's configuration (arXiv:2006.11239, appendix B and its code).

    ddpm-jax train lsun_church256 --workdir runs/church --data.source npz:church256.npz

Published for this configuration: FID 7.89 after 1,200,000 steps.
"""

import pathlib
from dataclasses import replace

from ddpm_jax.config import Data, load

config = replace(
    load(pathlib.Path(__file__).with_name("celebahq256.py")),
    steps=1_200_000,
    data=Data("npz:church256.npz", flip=True),
)
