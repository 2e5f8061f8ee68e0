"""Prints the conformance table of the library's samplers.

ddpm-jax conformance
"""

import dataclasses

from ddpm_jax import process
from ddpm_jax.config import flags


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Checks the library's samplers on data with a known solution and prints a table; takes minutes."""


def main(argv: list[str]) -> int:
    """Measures in float64 and prints; exit status 0, or 2 for a wrong request."""
    flags.parse(Arguments, argv, prog="ddpm-jax conformance")
    process.initialize()  # which keeps what is compiled

    import jax

    from ddpm_jax import conformance

    jax.config.update("jax_enable_x64", True)
    print(conformance.format_table([conformance.check(name, of) for name, of in conformance.BUILT_IN.items()]))
    return 0
