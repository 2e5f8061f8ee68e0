"""Denoising diffusion probabilistic models (Ho et al., 2020, arXiv:2006.11239) in JAX and Flax.

`from ddpm_jax import schedules, gaussian, losses, likelihood, samplers, training` and `from ddpm_jax.unet import UNet`
are the pieces; each module's docstring says what it holds.  Nothing is imported before it is asked for.
"""

import importlib

__version__ = "0.1.0"

_MODULES = (
    "keys", "schedules", "gaussian", "estimates", "losses", "likelihood", "samplers", "edits", "conditioning", "unet",
    "text", "training", "config", "data", "checkpoint", "log", "process", "metrics", "evaluate", "conformance",
)  # fmt: skip

__all__ = ["UNet", "__version__"]


def __getattr__(name: str):
    if name == "UNet":
        return importlib.import_module("ddpm_jax.unet").UNet
    if name in _MODULES:
        return importlib.import_module(f"ddpm_jax.{name}")
    raise AttributeError(f"module 'ddpm_jax' has no attribute {name!r}")
