"""Parts of training: the step, its metrics, the run's folder and checks, fine-tuning, and memory hints.

config.json   metrics.jsonl   checkpoints/STEP   samples/STEP.png   snapshots/STEP.npz
"""

from ddpm_jax.trainer.finetune import has_checkpoints, init_from_run, provenance, transfer_params
from ddpm_jax.trainer.memory import SHARD_HINT, explain_evaluation_oom, explain_step_oom, step_oom_hints
from ddpm_jax.trainer.profiler import profile
from ddpm_jax.trainer.run import Run, describe_last_checkpoint, lock_run
from ddpm_jax.trainer.sharded_update import place_state, split_state, whole_state
from ddpm_jax.trainer.step import (
    example_losses,
    init_params,
    init_state,
    parallelise,
    run_keys,
    stop_flag,
    stratified_times,
    train_step,
)
from ddpm_jax.trainer.step_metrics import StepMetrics
from ddpm_jax.trainer.trackers import check_tracking, track

__all__ = [
    "SHARD_HINT", "Run", "StepMetrics", "check_tracking", "describe_last_checkpoint", "example_losses",
    "explain_evaluation_oom", "explain_step_oom", "has_checkpoints", "init_from_run", "init_params", "init_state",
    "lock_run", "parallelise", "place_state", "profile", "provenance", "run_keys", "split_state", "step_oom_hints",
    "stop_flag", "stratified_times", "track", "train_step", "transfer_params", "whole_state",
]  # fmt: skip
