"""The command `ddpm-jax prepare`: converts images (a folder, .npz, .npy, another data set) to a TFDS data set.

ddpm-jax prepare SOURCE --name NAME --out FOLDER [--resolution 64 ...]
"""

from ddpm_jax import process
from ddpm_jax.config import flags


def main(argv: list[str]) -> int:
    """Runs the command; returns exit status 0, or 4 if interrupted (the same command resumes).

    Raises:
        ValueError, OSError: which `cli.call` turns into statuses.
    """
    options = flags.parse(flags.Prepare, argv, prog="ddpm-jax prepare")

    from ddpm_jax.data.tfds import prepare

    with process.explain_write_errors(options.out):
        return prepare.run(options)
