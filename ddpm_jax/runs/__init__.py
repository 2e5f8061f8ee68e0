"""A run's folder: who owns it, what its checkpoints say of it, and how training watches over it.

config.json   metrics.jsonl   checkpoints/STEP   samples/STEP.png
"""

from ddpm_jax.runs.manifest import read_manifest
from ddpm_jax.runs.model import Model, image_hash
from ddpm_jax.runs.run import Run, claim, standing
from ddpm_jax.runs.step import keys_of, spreading_word, train_step, word
from ddpm_jax.runs.watch import Watch

__all__ = [
    "Model", "Run", "Watch", "claim", "image_hash", "keys_of", "read_manifest", "spreading_word", "standing",
    "train_step", "word",
]  # fmt: skip
