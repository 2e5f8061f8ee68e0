"""Denoising diffusion probabilistic models (Ho et al., 2020, arXiv:2006.11239) in JAX and Flax.

`from ddpm_jax import schedules, gaussian, losses, likelihood, samplers, training, UNet` are the pieces; each module's
docstring says what it holds.  Nothing is imported before it is asked for.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddpm_jax import (
        checkpoint,
        config,
        conformance,
        convert,
        data,
        denoisers,
        editing,
        evaluate,
        gaussian,
        guidance,
        keys,
        likelihood,
        losses,
        measurements,
        metrics,
        models,
        pipeline,
        preflight,
        process,
        samplers,
        schedules,
        tracking,
        trainer,
        training,
    )  # fmt: skip
    from ddpm_jax.models.unet import UNet

__version__ = "0.1.0"

__all__ = [
    "UNet", "__version__", "checkpoint", "config", "conformance", "convert", "data", "denoisers", "editing", "evaluate",
    "gaussian", "guidance", "keys", "likelihood", "losses", "measurements", "metrics", "models", "pipeline",
    "preflight", "process", "samplers", "schedules", "tracking", "trainer", "training",
]  # fmt: skip


def __getattr__(name: str):
    if name == "UNet":
        return importlib.import_module("ddpm_jax.models.unet").UNet
    if name in __all__:
        return importlib.import_module(f"ddpm_jax.{name}")
    raise AttributeError(f"module 'ddpm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
