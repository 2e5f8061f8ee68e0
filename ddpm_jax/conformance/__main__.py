"""Prints the conformance table of the library's samplers.

python -m ddpm_jax.conformance
"""

import dataclasses
import sys

import jax

from ddpm_jax import conformance, process
from ddpm_jax.config import flags


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Prints what is measured of the library's samplers where the answer is known; it takes minutes."""


def main(argv: list[str]) -> int:
    """Measures in float64 and prints; exit status 0, or 2 for a wrong request."""
    try:
        flags.parse(Arguments, argv, prog="python -m ddpm_jax.conformance")
        process.prepare()  # which keeps what is compiled
    except ValueError as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2
    jax.config.update("jax_enable_x64", True)
    print(conformance.table([conformance.check(name, of) for name, of in conformance.BUILT_IN.items()]))
    return 0


if __name__ == "__main__":
    process.run(main)
