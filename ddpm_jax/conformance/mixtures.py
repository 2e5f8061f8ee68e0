"""Gaussian data and mixtures of Gaussians: their denoiser, their flow and their moments, exactly.

For x_0 ~ N(m, C) the law of x_t = signal x_0 + noise eps is N(signal m, V) with V = signal^2 C + noise^2, and

    E[x_0 | x_t] = m + signal C V^-1 (x_t - signal m),        E[eps | x_t] = noise V^-1 (x_t - signal m);

for a mixture these are weighted with each component's probability given x_t.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import gaussian
from ddpm_jax.gaussian import Denoiser, Estimate
from ddpm_jax.keys import example_keys, split_keys, standard_normal
from ddpm_jax.schedules import Schedule, gather


class GaussianMixture(NamedTuple):
    """A mixture of K normal laws in D dimensions, each by the eigenvalues and eigenvectors of its covariance."""

    weights: np.ndarray
    """[K] positive, of sum 1."""
    means: np.ndarray
    """[K, D]."""
    variances: np.ndarray
    """[K, D] the eigenvalues, variances in squared data units; they may be 0."""
    axes: np.ndarray
    """[K, D, D] the eigenvectors, as columns."""

    @property
    def dims(self) -> int:
        """D."""
        return self.means.shape[-1]


def gaussian_data(mean, cov) -> GaussianMixture:
    """The law N(mean, cov) of x_0.

    Args:
        mean: [D]; cov: [D, D], symmetric without negative eigenvalues (zeros: a point, a line).

    Raises:
        ValueError: if the shapes do not fit or cov is no covariance.
    """
    return mixture_data([1.0], np.asarray(mean)[None], np.asarray(cov)[None])


def mixture_data(weights, means, covs) -> GaussianMixture:
    """The law of x_0 that is N(means[k], covs[k]) with probability weights[k].

    Args:
        weights: [K] positive, of sum 1; means: [K, D]; covs: [K, D, D].

    Raises:
        ValueError: if the shapes do not fit, weights are no probabilities or one of covs is no covariance.
    """
    weights, means, covs = (np.asarray(a, np.float64) for a in (weights, means, covs))
    if means.ndim != 2 or weights.shape != means.shape[:1] or covs.shape != (*means.shape, means.shape[-1]):
        raise ValueError(
            "a mixture has weights [K], means [K, D] and covariances [K, D, D], "
            f"got {weights.shape}, {means.shape} and {covs.shape}"
        )
    if (weights <= 0).any() or abs(weights.sum() - 1) > 1e-9:
        raise ValueError(f"weights must be positive and of sum 1, got {weights}")
    spreads, axes = np.linalg.eigh(covs)
    if not np.allclose(covs, covs.swapaxes(1, 2)) or spreads.min() < -1e-9 * max(spreads.max(), 1):
        raise ValueError(f"covariances must be symmetric, without negative eigenvalues, got {covs.tolist()}")
    return GaussianMixture(weights, means, np.maximum(spreads, 0), axes)


def ideal_denoiser(schedule: Schedule, mixture: GaussianMixture) -> Denoiser:
    """The best of all denoisers: (x_t [B, D], t) -> Estimate(E[x_0 | x_t], E[eps | x_t])."""

    def denoise(x_t: jax.Array, t: jax.Array) -> Estimate:
        gaussian.check_batch(x_t=x_t)
        gaussian.check_times(schedule, t)
        t = jnp.broadcast_to(gaussian.mask_invalid_times(schedule, t), x_t.shape[:1])
        return _posterior_mean(jnp, mixture, x_t, gather(schedule.signal, t, x_t), gather(schedule.noise, t, x_t))

    return denoise


def marginal_moments(schedule: Schedule, mixture: GaussianMixture, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D] of x_t, float64; t = 0 is the data.

    Raises:
        ValueError: if t is not in 0..T.
    """
    signal, noise = _schedule_row(schedule, t)
    mean = mixture.weights @ mixture.means
    apart = mixture.means - mean
    within = np.einsum("kij,kj,klj->kil", mixture.axes, mixture.variances, mixture.axes)
    cov = np.einsum("k,kij->ij", mixture.weights, within + apart[:, :, None] * apart[:, None, :])
    return signal * mean, signal**2 * cov + noise**2 * np.eye(mixture.dims)


def sample_data(keys: jax.Array, mixture: GaussianMixture) -> jax.Array:
    """x_0 [B, D] of the law, float32, one from each of keys [B]."""
    which, spread = split_keys(example_keys(keys, keys.shape[0]), 2)
    log_p = jnp.log(jnp.asarray(mixture.weights, jnp.float32))
    k = jax.vmap(lambda key: jax.random.categorical(key, log_p))(which)
    z = standard_normal(spread, jnp.zeros((keys.shape[0], mixture.dims), jnp.float32))
    means, roots, axes = (jnp.asarray(a, z.dtype)[k] for a in (mixture.means, np.sqrt(mixture.variances), mixture.axes))
    return means + jnp.einsum("bij,bj->bi", axes, roots * z)


def probability_flow(schedule: Schedule, mixture: GaussianMixture, x: np.ndarray, t: int, s: int) -> np.ndarray:
    """x_s [B, D], float64: x_t carried along the probability flow.

        dx / dtheta = E[v | x],    signal = cos theta, noise = sin theta

    (Song et al., arXiv:2011.13456, equation 13; Salimans & Ho, arXiv:2202.00512, for the angle.)  For one Gaussian in
    closed form, which stretches each axis as the marginal's standard deviation.  For a mixture by steps of
    Runge-Kutta's fourth order in theta, halved until the result changes by less than 1e-9.

    Args:
        x: [B, D]; t, s: times in 0..T, in either direction.

    Raises:
        ValueError: if t or s is not in 0..T.
        RuntimeError: if 2^14 steps are not enough (components much narrower than 0.01).
    """
    x = np.asarray(x, np.float64)
    (signal_t, noise_t), (signal_s, noise_s) = _schedule_row(schedule, t), _schedule_row(schedule, s)
    if len(mixture.weights) == 1:
        (mean,), (spread,), (axes,) = mixture.means, mixture.variances, mixture.axes
        stretch = np.sqrt((signal_s**2 * spread + noise_s**2) / (signal_t**2 * spread + noise_t**2))
        return signal_s * mean + ((x - signal_t * mean) @ axes * stretch) @ axes.T
    start, end = np.arctan2(noise_t, signal_t), np.arctan2(noise_s, signal_s)
    before = _runge_kutta(mixture, x, start, end, 128)
    for steps in 2 ** np.arange(8, 15):
        found = _runge_kutta(mixture, x, start, end, int(steps))
        if np.abs(found - before).max() < 1e-9:
            return found
        before = found
    raise RuntimeError(f"2^14 steps from t = {t} to s = {s} do not settle the flow to 1e-9")


def _runge_kutta(mixture: GaussianMixture, x: np.ndarray, start: float, end: float, steps: int) -> np.ndarray:
    def velocity(x, theta):
        found = _posterior_mean(np, mixture, x, np.cos(theta), np.sin(theta))
        return np.cos(theta) * found.eps - np.sin(theta) * found.x0

    grid = np.linspace(start, end, steps + 1)
    for a, b in itertools.pairwise(grid):
        h, middle = b - a, (a + b) / 2
        k1 = velocity(x, a)
        k2 = velocity(x + h / 2 * k1, middle)
        k3 = velocity(x + h / 2 * k2, middle)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(x + h * k3, b))
    return x


def _posterior_mean(xp, mixture: GaussianMixture, x, signal, noise) -> Estimate:
    """E[x_0 | x] and E[eps | x] for x [B, D]; xp is numpy or jax.numpy, signal and noise [] or [B, 1]."""
    weights, means, spreads = (
        xp.asarray(a, x.dtype)[None] for a in (mixture.weights, mixture.means, mixture.variances)
    )
    axes = xp.asarray(mixture.axes, x.dtype)
    signal, noise = (xp.reshape(a, (-1, 1, 1)) for a in (signal, noise))
    off = xp.einsum("bki,kij->bkj", x[:, None] - signal * means, axes)  # along the axes of each component
    whole = signal**2 * spreads + noise**2
    log_p = xp.log(weights) - 0.5 * (off**2 / whole + xp.log(whole)).sum(-1)
    p = xp.exp(log_p - log_p.max(-1, keepdims=True))
    p = (p / p.sum(-1, keepdims=True))[..., None]
    back = lambda a: xp.einsum("bkj,kij->bki", a, axes)  # noqa: E731
    x0 = (p * (means + back(signal * spreads / whole * off))).sum(1)
    return Estimate(x0, (p * back(noise / whole * off)).sum(1))


def _schedule_row(schedule: Schedule, t: int) -> tuple[float, float]:
    """signal and noise of row t, float64."""
    if not 0 <= t <= schedule.T:
        raise ValueError(f"a time must lie in 0..{schedule.T}, got {t}")
    return float(schedule.signal[t]), float(schedule.noise[t])
