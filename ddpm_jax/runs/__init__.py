"""A run's folder: who owns it, what its checkpoints say of it, and how training watches over it.

config.json   metrics.jsonl   checkpoints/STEP   samples/STEP.png
"""

from ddpm_jax.runs.model import Model, image_hash
from ddpm_jax.runs.run import Run, claim
from ddpm_jax.runs.step import keys_of, train_step
from ddpm_jax.runs.watch import Watch

__all__ = ["Model", "Run", "Watch", "claim", "image_hash", "keys_of", "train_step"]
