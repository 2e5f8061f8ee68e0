"""A run's folder: who owns it, what its checkpoints say of it, and how training watches over it.

config.json   metrics.jsonl   checkpoints/STEP   samples/STEP.png   x0_errors.json
"""

from ddpm_jax.runs import errors
from ddpm_jax.runs.begin import adopt, begin, kept, under_way
from ddpm_jax.runs.edits import Edit, edit, repeated
from ddpm_jax.runs.manifest import read_manifest
from ddpm_jax.runs.memory import fitting, lighter_look, lighter_samples, lighter_step
from ddpm_jax.runs.model import Model
from ddpm_jax.runs.pictures import image_hash
from ddpm_jax.runs.run import Run, claim, standing
from ddpm_jax.runs.said import Asked, Said, asked, asked_again
from ddpm_jax.runs.step import example_losses, keys_of, over_devices, stratified_times, train_step, word
from ddpm_jax.runs.watch import Watch

__all__ = [
    "Asked", "Edit", "Model", "Run", "Said", "Watch", "adopt", "asked", "asked_again", "begin", "claim", "edit",
    "errors", "example_losses", "fitting", "image_hash", "kept", "keys_of", "lighter_look", "lighter_samples",
    "lighter_step", "over_devices", "read_manifest", "repeated", "standing", "stratified_times", "train_step",
    "under_way", "word",
]  # fmt: skip
