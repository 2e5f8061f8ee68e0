"""Prints the conformance table of the library's samplers.

python -m ddpm_jax.conformance
"""

import jax

from ddpm_jax import conformance, process


def main() -> None:
    """Measures in float64 and prints."""
    process.prepare()  # which keeps what is compiled
    jax.config.update("jax_enable_x64", True)
    print(conformance.table([conformance.check(name, of) for name, of in conformance.BUILT_IN.items()]))


if __name__ == "__main__":
    main()
