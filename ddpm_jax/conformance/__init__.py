"""Samplers where the answer is known: data whose denoiser, flow and moments have closed forms, and checks against them.

`gaussian_data` and `mixture_data` are laws of x_0 in D dimensions.  `ideal` is the denoiser that knows the law, `flow`
carries a point along the exact probability flow, `moments` are those of x_t.  `terminal` propagates mean and covariance
exactly through a sampler, without Monte Carlo; `check` measures a sampler's orders, its terminal moments and what its
images depend on; `ddpm-jax conformance` prints this for the samplers of the library.

A sampler under test is given as `(schedule, denoise, noise) -> Sampler`, where noise is a `samplers.Noise`:

    check("mine", lambda schedule, denoise, noise: my_sampler(schedule, denoise, noise=noise))
"""

from ddpm_jax.conformance.checks import (
    BUILT_IN,
    Report,
    SamplerOf,
    check,
    even_in_log_snr,
    flow_errors,
    reproducibility,
    table,
    terminal,
)
from ddpm_jax.conformance.laws import Law, draw, flow, gaussian_data, ideal, mixture_data, moments

__all__ = [
    "BUILT_IN",
    "Law",
    "Report",
    "SamplerOf",
    "check",
    "draw",
    "even_in_log_snr",
    "flow",
    "flow_errors",
    "gaussian_data",
    "ideal",
    "mixture_data",
    "moments",
    "reproducibility",
    "table",
    "terminal",
]
