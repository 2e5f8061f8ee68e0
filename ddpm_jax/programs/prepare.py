"""Makes a data set for `tfds:NAME` of images from elsewhere.

ddpm-jax prepare SOURCE --name NAME --out FOLDER [--resolution 64 ...]
"""

from ddpm_jax import process
from ddpm_jax.config import flags


def main(argv: list[str]) -> int:
    """Makes it; exit status 0; 2 for a wrong request, 4 if interrupted (it can go on), 6 for a full disk."""
    options = flags.parse(flags.Prepare, argv, prog="ddpm-jax prepare")

    from ddpm_jax.data.tfds import prepare

    with process.explain_write_errors(options.out):
        return prepare.run(options)
