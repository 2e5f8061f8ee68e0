"""`python sample.py ...` is `ddpm-jax sample ...`: see ddpm_jax/programs/sample.py."""

from ddpm_jax.programs import cli

if __name__ == "__main__":
    cli.main("sample")
