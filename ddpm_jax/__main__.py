"""`python -m ddpm_jax COMMAND ...` is `ddpm-jax COMMAND ...`."""

from ddpm_jax.programs import cli

cli.main()
