"""What a trained model is worth, in numbers that can be compared and in the paper's figures.

python -m ddpm_jax.evaluate --help
"""
