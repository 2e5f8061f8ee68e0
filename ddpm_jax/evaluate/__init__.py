"""Evaluation of a trained model: likelihood, sample quality, the paper's figures and a model card.

ddpm-jax evaluate --help
"""
