"""What a trained model is worth, in numbers that can be compared and in the paper's figures.

ddpm-jax evaluate --help
"""
