"""Closures around a `Denoiser`: clipping, dynamic thresholding, epsilon scaling.

Each keeps x_t = signal_t x0 + noise_t eps: it changes one of the two and derives the other from it.  Apply scaling
first and a limit last, so that the sampler's x0 lies within the limit:

    denoise = gaussian.denoiser(schedule, net)
    denoise = denoisers.scale_eps(schedule, denoise, 1.017)
    denoise = denoisers.limit_x0(schedule, denoise, denoisers.dynamic_threshold(99.5))
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.gaussian import Denoiser, Estimate, apply_denoiser, check_times
from ddpm_jax.schedules import Schedule, gather

Limit = Callable[[jax.Array], jax.Array]
"""x0 [B, ...] -> x0 [B, ...] within some range, each example for itself."""


def limit_x0(schedule: Schedule, denoise: Denoiser, limit: Limit) -> Denoiser:
    """The denoiser with x0 limited, and eps = (x_t - signal_t x0) / noise_t derived from it."""

    def limited_denoise(x_t: jax.Array, t: jax.Array) -> Estimate:
        check_times(schedule, t)
        estimate = apply_denoiser(denoise, x_t, t)
        x0 = limit(estimate.x0)
        eps = (x_t - gather(schedule.signal, t, x_t) * x0) / gather(schedule.noise, t, x_t)
        return Estimate(x0, eps, estimate.variance_mix)

    return limited_denoise


def clip(x0: jax.Array) -> jax.Array:
    """x0 with each component clipped to [-1, 1]: the limit of DDPM's own code, `gaussian.denoiser`'s clip."""
    return jnp.clip(x0, -1, 1)


def dynamic_threshold(percentile: float) -> Limit:
    """Dynamic thresholding: x0 clipped to [-s, s] and divided by s, where s is a percentile of |x0|, at least 1.

    Imagen (Saharia et al., arXiv:2205.11487, section 2.3), where guidance is strong: an example with many components
    beyond 1 keeps their differences, one without is only clipped.  s is each example's own, over all its components.

    Args:
        percentile: in (0, 100], e.g. 99.5; at 100 no component is cut off, all are divided by the largest.

    Raises:
        ValueError: if the percentile lies elsewhere.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must lie in (0, 100], got {percentile}")

    def limit(x0: jax.Array) -> jax.Array:
        components = tuple(range(1, x0.ndim))
        s = jnp.maximum(jnp.percentile(jnp.abs(x0), percentile, axis=components, keepdims=True), 1)
        return jnp.clip(x0, -s, s) / s

    return limit


def scale_eps(schedule: Schedule, denoise: Denoiser, factor: float | jax.Array) -> Denoiser:
    """Epsilon scaling: the denoiser with eps divided by a factor, and x0 = (x_t - noise_t eps) / signal_t.

    Ning et al. (arXiv:2308.15321): in sampling a network overestimates the noise, as its inputs have its own errors; at
    100 steps on CIFAR-10 they divide by 1.017.  For a denoiser without a limit: the eps of a clipped x0 is another one.

    Args:
        factor: a number, or a column [T+1] with the factor of each t.  Where signal_t is 0, x0 is not finite.

    Raises:
        ValueError: if it is a number that is not positive, or an array of another shape.
    """
    if isinstance(factor, (int, float, np.generic)) and not factor > 0:
        raise ValueError(f"factor must be positive, got {factor}: eps is divided by it")
    if jnp.shape(factor) not in ((), (schedule.T + 1,)):
        raise ValueError(f"factor must be a number or a column {(schedule.T + 1,)}, got {jnp.shape(factor)}")

    def scaled_denoise(x_t: jax.Array, t: jax.Array) -> Estimate:
        check_times(schedule, t)
        estimate = apply_denoiser(denoise, x_t, t)
        divisor = jnp.asarray(factor, x_t.dtype)
        eps = estimate.eps / (divisor if divisor.ndim == 0 else gather(divisor, t, x_t))
        return Estimate(
            (x_t - gather(schedule.noise, t, x_t) * eps) / gather(schedule.signal, t, x_t), eps, estimate.variance_mix
        )

    return scaled_denoise
