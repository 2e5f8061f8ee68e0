"""Prepares data sets.

    python -m ddpm_jax.data prepare SOURCE --name NAME --out FOLDER [--resolution 64 ...]

`prepare --help` lists its flags.
"""

import sys

from ddpm_jax import process
from ddpm_jax.config import flags
from ddpm_jax.data import prepare


def main(argv: list[str]) -> int:
    """Runs a command; exit status 0; 2 for a wrong request, 4 if interrupted (it can go on), 6 for a full disk."""
    if argv[:1] != ["prepare"]:
        asked = bool({"-h", "--help"} & set(argv))
        usage = "usage: python -m ddpm_jax.data prepare SOURCE --name NAME --out FOLDER [flags]     (prepare --help)"
        print(usage, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        options = flags.parse(prepare.Prepare, argv[1:], prog="python -m ddpm_jax.data prepare")
        with process.writing(options.out):
            return prepare.run(options)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that is not ours to write
        print(f"prepare: {error}", file=sys.stderr)
        return process.UNWRITABLE


if __name__ == "__main__":
    process.run(main)
