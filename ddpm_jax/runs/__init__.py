"""A run's folder: who owns it, what its checkpoints say of it, and how training watches over it.

config.json   metrics.jsonl   checkpoints/STEP   samples/STEP.png   x0_errors.json
"""

from ddpm_jax.runs import errors
from ddpm_jax.runs.begin import has_checkpoints, init_from_run, provenance, transfer_params
from ddpm_jax.runs.edits import Edit, edit_from_manifest, make_edit
from ddpm_jax.runs.manifest import read_manifest
from ddpm_jax.runs.memory import evaluation_oom_hints, explain_oom, sampling_oom_hints, step_oom_hints
from ddpm_jax.runs.model import Pipeline
from ddpm_jax.runs.pictures import image_hash
from ddpm_jax.runs.run import Run, describe_last_checkpoint, lock_run
from ddpm_jax.runs.said import ConditionRequest, DatasetConditions, parse_request, request_from_manifest
from ddpm_jax.runs.step import example_losses, parallelise, run_keys, stop_flag, stratified_times, train_step
from ddpm_jax.runs.watch import StepMetrics

__all__ = [
    "ConditionRequest", "DatasetConditions", "Edit", "Pipeline", "Run", "StepMetrics", "describe_last_checkpoint",
    "edit_from_manifest", "errors", "evaluation_oom_hints", "example_losses", "explain_oom", "has_checkpoints",
    "image_hash", "init_from_run", "lock_run", "make_edit", "parallelise", "parse_request", "provenance",
    "read_manifest", "request_from_manifest", "run_keys", "sampling_oom_hints", "step_oom_hints", "stop_flag",
    "stratified_times", "train_step", "transfer_params",
]  # fmt: skip
