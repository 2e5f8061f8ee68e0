"""One-step samplers: DDPM's reverse process with fixed or analytic variance, and DDIM."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import gaussian
from ddpm_jax.gaussian import Denoiser, Estimate
from ddpm_jax.samplers.chain import Noise, Sampler, State, init_state, step_noise
from ddpm_jax.schedules import Schedule, gather

_Variance = Callable[[Estimate, jax.Array, jax.Array, jax.Array], jax.Array]
"""(estimate, x_t, t, s) -> the variance of x_s."""


def ancestral(
    schedule: Schedule, denoise: Denoiser, *, variance_mix: float = 1.0, noise: Noise = step_noise
) -> Sampler:
    """Ancestral sampling, DDPM's algorithm 2: x_s = mean of q(x_s | x_t, x_0_hat) + std noise.

    Args:
        variance_mix: the reverse variance, 0 for beta-tilde, 1 for beta; an `Estimate.variance_mix` takes precedence.
            The last step adds no noise, whatever the mix.
        noise: source of a step's noise.

    Raises:
        ValueError: if the mix is a number outside [0, 1].
    """
    gaussian.check_unit_interval("variance_mix", variance_mix)

    def variance(estimate: Estimate, x_t: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
        # at the data a mix below 1 gives 0, whose root has no derivative, and one above 1 infinity: keep them out
        mix = jnp.where(s > 0, variance_mix if estimate.variance_mix is None else estimate.variance_mix, 1.0)
        return gaussian.reverse_variance(schedule, t, s, x_t, mix)

    return _reverse_process(schedule, denoise, variance, noise)


def analytic(
    schedule: Schedule, denoise: Denoiser, x0_mse: np.ndarray | jax.Array, *, noise: Noise = step_noise
) -> Sampler:
    """Ancestral sampling with the optimal variance (Analytic-DPM): that of x_s given x_t, on average.

        noise_s^2 (1 - r) + (signal_s (1 - r))^2 x0_mse_t,    r = SNR_t / SNR_s

    The law of total variance: beta-tilde, and the uncertainty of x_0 (Bao et al., arXiv:2201.06503, theorem 1, with
    the error measured instead of derived from E|eps_hat|^2).  Exact for data that are one Gaussian with equal
    variances.  The last step adds no noise.

    Args:
        x0_mse: [T+1] mean squared error of x_0_hat at each t, per component, squared data units; row 0 is
            not used.  `likelihood.vlb(...).x0_mse.mean(1)` are the rows 1..T, for the same denoiser.
        noise: source of a step's noise.

    Raises:
        ValueError: if x0_mse has another shape.
    """
    if jnp.shape(x0_mse) != (schedule.T + 1,):
        raise ValueError(f"x0_mse must have a row for each t in 0..T, {(schedule.T + 1,)}: {jnp.shape(x0_mse)}")
    mse = jnp.asarray(x0_mse)

    def variance(estimate: Estimate, x_t: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
        one_minus_r = gaussian.one_minus_snr_ratio(schedule, t, s, x_t)
        signal_s, noise_s = gather(schedule.signal, s, x_t), gather(schedule.noise, s, x_t)
        return noise_s**2 * one_minus_r + (signal_s * one_minus_r) ** 2 * gather(mse, t, x_t)

    return _reverse_process(schedule, denoise, variance, noise)


def _reverse_process(schedule: Schedule, denoise: Denoiser, variance: _Variance, noise: Noise) -> Sampler:
    """x_s = mean of q(x_s | x_t, x_0_hat) + std noise."""

    def step(keys: jax.Array, state: State, t: jax.Array, s: jax.Array) -> State:
        estimate = gaussian.apply_denoiser(denoise, state.x, t)
        mean, _ = gaussian.posterior(schedule, estimate.x0, state.x, t, s)
        std = jnp.where(s > 0, jnp.sqrt(variance(estimate, state.x, t, s)), 0.0)
        return State(mean + std * noise(keys, t, state.x), estimate.x0, s)

    return Sampler(init_state, step)


def ddim(schedule: Schedule, denoise: Denoiser, *, eta: float | jax.Array = 0.0, noise: Noise = step_noise) -> Sampler:
    """DDIM (Song et al., arXiv:2010.02502), equation 12.

        x_s = signal_s x_0_hat + noise_s sqrt(1 - eta^2 (1 - r)) eps_hat + eta noise_s sqrt(1 - r) z

    eta 0 is deterministic, and then also steps towards the noise (s > t), which encodes an image; eta 1 has the law of
    `ancestral` with mix 0.

    Args:
        eta: a number in [0, 1], or a traced scalar; samples are NaN for one outside [0, 1].
        noise: source of z.

    Raises:
        ValueError: if eta is a number outside [0, 1].
    """
    gaussian.check_unit_interval("eta", eta)
    if isinstance(eta, jax.Array):
        eta = jnp.where((eta >= 0) & (eta <= 1), eta, jnp.nan)

    def step(keys: jax.Array, state: State, t: jax.Array, s: jax.Array) -> State:
        estimate = gaussian.apply_denoiser(denoise, state.x, t)
        signal_s, noise_s = gather(schedule.signal, s, state.x), gather(schedule.noise, s, state.x)
        one_minus_r = gaussian.one_minus_snr_ratio(schedule, t, s, state.x)
        z_std = noise_s * jnp.asarray(eta, state.x.dtype)
        # at the data noise_s is 0, and for eta 1 this would be 0 itself, whose root has no derivative
        eps_fraction = jnp.where(jnp.equal(s, 0), 1.0, 1 - jnp.asarray(eta**2, state.x.dtype) * one_minus_r)
        x = signal_s * estimate.x0 + noise_s * jnp.sqrt(eps_fraction) * estimate.eps
        return State(x + z_std * jnp.sqrt(jnp.maximum(one_minus_r, 0)) * noise(keys, t, state.x), estimate.x0, s)

    return Sampler(init_state, step)
