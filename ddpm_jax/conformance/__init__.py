"""Conformance checks of samplers against data whose denoiser, flow and moments have closed forms.

`gaussian_data` and `mixture_data` are distributions of x_0 in D dimensions.  `ideal_denoiser` is their exact denoiser,
`probability_flow` carries a point along the exact probability flow, `marginal_moments` are the moments of x_t.
`terminal_moments` propagates mean and covariance exactly through a sampler, without Monte Carlo; `check` measures a
sampler's orders, terminal moments and reproducibility;
`ddpm-jax conformance` prints this for the samplers of the library.

A sampler under test is given as `(schedule, denoise, noise) -> Sampler`, where noise is a `samplers.Noise`:

    check("mine", lambda schedule, denoise, noise: my_sampler(schedule, denoise, noise=noise))
"""

from ddpm_jax.conformance.checks import (
    BUILT_IN,
    ConformanceReport,
    SamplerFactory,
    check,
    flow_errors,
    format_table,
    reproducibility,
    terminal_moments,
    uniform_log_snr_times,
)
from ddpm_jax.conformance.mixtures import (
    GaussianMixture,
    gaussian_data,
    ideal_denoiser,
    marginal_moments,
    mixture_data,
    probability_flow,
    sample_data,
)

__all__ = [
    "BUILT_IN", "ConformanceReport", "GaussianMixture", "SamplerFactory", "check", "flow_errors", "format_table",
    "gaussian_data", "ideal_denoiser", "marginal_moments", "mixture_data", "probability_flow", "reproducibility",
    "sample_data", "terminal_moments", "uniform_log_snr_times",
]  # fmt: skip
