"""`python train.py ...` is `ddpm-jax train ...`: see ddpm_jax/programs/train.py."""

from ddpm_jax.programs import cli

if __name__ == "__main__":
    cli.main("train")
