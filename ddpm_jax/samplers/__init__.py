"""Samplers: reverse processes from noise to data, by one scan over falling times.

A sampler is a pair of pure functions, as an optax transformation is:

    init(x, t)               -> state                 before the first step
    step(keys, state, t, s)  -> state                 one transition from t to an earlier s

Other strides are another array of times; a schedule is never respaced.  Image i depends on its own key alone: the noise
of the step that leaves t comes from fold_in(key_i, t), and x_T from fold_in(key_i, 0).
"""

from ddpm_jax.samplers.chain import (
    InitFn,
    Noise,
    Sampler,
    SamplerState,
    State,
    StepFn,
    advance,
    image_keys,
    initial_noise,
    sample,
    step_noise,
    trajectory,
)
from ddpm_jax.samplers.multistep import dpm_solver_pp, unipc
from ddpm_jax.samplers.onestep import analytic, ancestral, ddim
from ddpm_jax.samplers.spacing import Spacing, section_times, times

__all__ = [
    "InitFn", "Noise", "Sampler", "SamplerState", "Spacing", "State", "StepFn", "advance", "analytic", "ancestral",
    "ddim", "dpm_solver_pp", "image_keys", "initial_noise", "sample", "section_times", "step_noise", "times",
    "trajectory", "unipc",
]  # fmt: skip
