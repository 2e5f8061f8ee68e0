"""Data N(mean, std^2), whose ideal denoiser is a line, and batches of any shape: what the tests of laws begin with."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import gaussian, schedules
from ddpm_jax.gaussian import Estimate

SHAPES = [(5,), (4, 3), (4, 2, 3), (2, 3, 2, 2)]
"""Of one example: vectors, sequences, images, volumes."""
PREDICTS = ["eps", "x0", "v", "mean"]


def ideal_denoiser(schedule, mean=0.2, std=0.5, variance_mix=None):
    """E[x_0 | x_t] for data N(mean, std^2); numbers may be traced.

    Args:
        variance_mix: a learned variance: a number, or a column [T+1] with one for each t.
    """

    def denoise(x_t, t):
        signal, noise = schedules.gather(schedule.signal, t, x_t), schedules.gather(schedule.noise, t, x_t)
        x0 = mean + std**2 * signal / (signal**2 * std**2 + noise**2) * (x_t - signal * mean)
        if variance_mix is None:
            return Estimate(x0, (x_t - signal * x0) / noise)
        selected = (
            jnp.asarray(variance_mix, x_t.dtype)
            if jnp.ndim(variance_mix) == 0
            else schedules.gather(variance_mix, t, x_t)
        )
        return Estimate(x0, (x_t - signal * x0) / noise, jnp.broadcast_to(selected, x_t.shape))

    return denoise


def ideal_net(schedule, predicts, denoise, variance_mix=None):
    """The network that predicts `predicts`, from what `denoise` finds; with variance_mix, of a learned variance too."""

    def net(x_t, t):
        found = denoise(x_t, t)
        out = gaussian.target(schedule, predicts, found.x0, found.eps, t)
        return out if variance_mix is None else jnp.concatenate([out, jnp.full_like(out, 2 * variance_mix - 1)], -1)

    return net


def gaussian_samples(n, dims, mean=0.2, std=0.5, seed=0):
    """[n, dims] draws of N(mean, std^2), float32."""
    return (mean + std * np.random.default_rng(seed).standard_normal((n, dims))).astype(np.float32)


def normals(shape, n=8, count=2, seed=7):
    """Arrays [n, *shape] of standard normal numbers, in the precision that JAX keeps."""
    rng = np.random.default_rng(seed)
    return [default_precision(rng.standard_normal((n, *shape))) for _ in range(count)]


def default_precision(a) -> np.ndarray:
    """A numpy array in the precision that JAX keeps: float32, or float64 where 64 bits are enabled."""
    return np.asarray(a).astype(jax.dtypes.canonicalize_dtype(np.float64))


def to_numpy(tree):
    """The leaves as numpy arrays: what is done to them is no program."""
    return jax.tree.map(np.asarray, tree)
