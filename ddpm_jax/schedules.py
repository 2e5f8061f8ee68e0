"""Noise schedules: tables of the signal and the noise in x_t.

Row t of a schedule's columns defines x_t:

    x_t = signal_t x_0 + noise_t eps,        signal_t^2 + noise_t^2 = 1,

with t = 1..T the paper's timesteps and row 0 the data itself (signal 1, noise 0).  So `t - 1` is always a row, and
two rows define the transition from t to any earlier s.

Tables are built in float64 on the host and kept in float32, or in float64 under `jax_enable_x64`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Schedule(NamedTuple):
    """A noise schedule as a table of T + 1 rows; row 0 is the data, row T the noise.

    Attributes:
        signal: [T+1] the factor of x_0 in x_t: the root of the paper's alpha-bar; row 0 is 1.
        noise: [T+1] the standard deviation of the noise in x_t; row 0 is 0.
        log_snr: [T+1] log(signal^2 / noise^2), falling from +inf in row 0.
        log_snr_tail: [T+1] the rounding error of `log_snr` in float32 (zero in float64).  A transition from t to
            s = t - 1 needs the difference of two neighbouring rows, a hundred times smaller than the rows: with the
            tail it has seven digits, without it four.
    """

    signal: jax.Array
    noise: jax.Array
    log_snr: jax.Array
    log_snr_tail: jax.Array

    @property
    def T(self) -> int:
        """The number of noise steps."""
        return self.signal.shape[0] - 1

    @property
    def alpha_bar(self) -> jax.Array:
        """[T+1] the paper's alpha-bar_t = signal_t^2; row 0 is 1."""
        return self.signal**2

    @property
    def beta(self) -> jax.Array:
        """[T+1] the paper's beta_t, the variance of the noise that step t adds to x_{t-1}; row 0, the data, is 0."""
        t = jnp.arange(1, self.T + 1)
        added = self.noise[1:] ** 2 * -jnp.expm1(log_snr_ratio(self, t, t - 1, self.noise[1:]))
        return jnp.concatenate([jnp.zeros_like(added[:1]), added])


def gather(column: jax.Array, t: jax.Array, like: jax.Array) -> jax.Array:
    """Row t of a column, in the dtype of `like` and shaped to broadcast to it; NaN where there is no such row.

    Args:
        column: [T+1] a column of a schedule.
        t: [] or [B] integers in 0..T.
        like: [B, ...] the array that the result is combined with.

    Returns:
        [B, 1, ...] for t of shape [B], [] for t of shape [].
    """
    row = column.at[t].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False).astype(like.dtype)
    return row if row.ndim == 0 else row.reshape(row.shape + (1,) * (like.ndim - 1))


def log_snr_ratio(schedule: Schedule, t: jax.Array, s: jax.Array, like: jax.Array) -> jax.Array:
    """log(SNR_t / SNR_s), negative for s < t, to full precision; -inf at s = 0.

    Args:
        t, s: [] or [B] integers in 0..T.
        like: [B, ...] the array that the result is combined with.
    """
    difference = gather(schedule.log_snr, t, like) - gather(schedule.log_snr, s, like)
    return difference + (gather(schedule.log_snr_tail, t, like) - gather(schedule.log_snr_tail, s, like))


def from_betas(betas: np.ndarray) -> Schedule:
    """The schedule of given betas, the noise variances of its steps: alpha-bar_t = (1 - beta_1) ... (1 - beta_t).

    DDPM (arXiv:2006.11239), section 2.

    Args:
        betas: [T] float64, beta_1..beta_T, each in (0, 1].

    Raises:
        ValueError: if betas is not a vector of float64, a value lies outside (0, 1], or one before the last is 1.
    """
    betas = np.asarray(betas)
    if betas.ndim != 1 or betas.size == 0 or betas.dtype != np.float64:
        raise ValueError(f"betas must be a float64 vector [T], got {betas.dtype} {betas.shape}")
    wrong = ~((betas > 0) & (betas <= 1))
    if wrong.any():
        t = int(np.argmax(wrong))
        raise ValueError(f"betas must lie in (0, 1]: beta_{t + 1} is {betas[t]}")
    if (betas[:-1] == 1).any():
        raise ValueError(f"only the last beta may be 1, beta_{int(np.argmax(betas == 1)) + 1} of {len(betas)} is")
    with np.errstate(divide="ignore"):
        log_alpha_bar = np.cumsum(np.log1p(-betas))
    noise_var = -np.expm1(log_alpha_bar)  # 1 - alpha-bar would lose the digits of the first steps
    return _table(np.sqrt(np.cumprod(1 - betas)), np.sqrt(noise_var), log_alpha_bar - np.log(noise_var))


def from_log_snr(f: Callable[[np.ndarray], np.ndarray], T: int) -> Schedule:
    """The schedule with log SNR_t = f((t - 1) / (T - 1)), from f(0) at t = 1 to f(1) at t = T.

    The parameterisation of Variational Diffusion Models (arXiv:2107.00630), where gamma = -log SNR.

    Args:
        f: maps a float64 array of values in [0, 1] to log signal-to-noise ratios, strictly falling.
        T: number of steps, at least 2.

    Raises:
        ValueError: if T < 2, or f returns another shape, a NaN or +inf, or does not fall.
    """
    check_steps(T, least=2)
    log_snr = np.asarray(f(np.linspace(0.0, 1.0, T)), np.float64)
    if log_snr.shape != (T,):
        raise ValueError(f"f must map [T] to [T] = {(T,)}, it returned {log_snr.shape}")
    if np.isnan(log_snr).any() or np.isposinf(log_snr).any() or not (log_snr[1:] < log_snr[:-1]).all():
        raise ValueError("f must fall strictly from f(0) to f(1), without NaN or +inf")
    with np.errstate(over="ignore"):
        signal, noise = 1 / np.sqrt(1 + np.exp(-log_snr)), 1 / np.sqrt(1 + np.exp(log_snr))
    return _table(signal, noise, log_snr)


def linear(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """Linear schedule of DDPM, section 4: beta_t rises linearly from beta_1 to beta_T.

    The ends are not rescaled with T.  The convention beta * 1000 / T of later code is
    `linear(T, 1e-4 * 1000 / T, 0.02 * 1000 / T)`.
    """
    check_steps(T)
    return from_betas(np.linspace(beta_1, beta_T, T, dtype=np.float64))


def cosine(T: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """Cosine schedule: alpha-bar_t = f(t / T) / f(0), f(u) = cos^2((u + offset) / (1 + offset) pi / 2).

    Each beta is at most max_beta.  Nichol & Dhariwal (arXiv:2102.09672), equation 17.
    """
    check_steps(T)
    u = np.arange(T + 1, dtype=np.float64) / T
    alpha_bar = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta))


def quad(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """Quadratic schedule, the original's "quad": the root of beta_t rises linearly."""
    check_steps(T)
    if not (beta_1 > 0 and beta_T > 0):
        raise ValueError(f"beta_1 and beta_T must be positive, got {beta_1} and {beta_T}")
    return from_betas(np.linspace(beta_1**0.5, beta_T**0.5, T, dtype=np.float64) ** 2)


def const(T: int = 1000, beta: float = 0.02) -> Schedule:
    """Constant schedule, the original's "const": the same beta in every step."""
    check_steps(T)
    return from_betas(np.full(T, beta, np.float64))


def jsd(T: int = 1000) -> Schedule:
    """The original's "jsd" schedule, beta_t = 1 / (T - t + 1) (Sohl-Dickstein et al., arXiv:1503.03585).

    beta_T is 1: x_T has no signal, so a prediction of the noise gives no x_0 at T.
    """
    check_steps(T)
    return from_betas(1.0 / np.linspace(T, 1, T, dtype=np.float64))


def warmup10(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """The original's "warmup10" schedule: beta_t rises linearly over the first tenth and then stays at beta_T."""
    return _warmup(T, 0.1, beta_1, beta_T)


def warmup50(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """The original's "warmup50" schedule: beta_t rises linearly over the first half and then stays at beta_T."""
    return _warmup(T, 0.5, beta_1, beta_T)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """The schedule rescaled to zero signal at T, with the same signal at t = 1.

        signal_1 (signal_t - signal_T) / (signal_1 - signal_T)

    Lin et al. (arXiv:2305.08891), algorithm 1.  A prediction of the noise gives no x_0 at T: predict v or x0.

    Raises:
        ValueError: if there is a single step.
    """
    check_steps(schedule.T, least=2)
    log_snr = np.asarray(schedule.log_snr, np.float64) + np.asarray(schedule.log_snr_tail, np.float64)
    signal = np.exp(-0.5 * np.logaddexp(0, -log_snr))  # to float64 precision, which schedule.signal does not have
    rescaled = signal[1] * (signal[1:] - signal[-1]) / (signal[1] - signal[-1])
    return from_betas(1 - (rescaled / np.append(1.0, rescaled[:-1])) ** 2)


def _warmup(T: int, fraction: float, beta_1: float, beta_T: float) -> Schedule:
    check_steps(T)
    betas = np.full(T, beta_T, np.float64)
    rising = int(T * fraction)
    betas[:rising] = np.linspace(beta_1, beta_T, rising, dtype=np.float64)
    return from_betas(betas)


def check_steps(T: int, least: int = 1) -> None:
    """Raises a ValueError unless T is an integer of at least `least`."""
    if isinstance(T, bool) or not isinstance(T, (int, np.integer)) or T < least:
        raise ValueError(f"T must be an integer of at least {least}, got {T!r}")


def _table(signal: np.ndarray, noise: np.ndarray, log_snr: np.ndarray) -> Schedule:
    """The table, with row 0 and in JAX's precision, of rows 1..T in float64."""
    log_snr = np.concatenate([[np.inf], log_snr])
    rounded = log_snr.astype(jax.dtypes.canonicalize_dtype(np.float64))  # by numpy, as this may run inside a jit
    finite = np.isfinite(log_snr)
    tail = np.where(finite, log_snr, 0.0) - np.where(finite, rounded.astype(np.float64), 0.0)
    return Schedule(
        signal=jnp.asarray(np.concatenate([[1.0], signal])),
        noise=jnp.asarray(np.concatenate([[0.0], noise])),
        log_snr=jnp.asarray(rounded),
        log_snr_tail=jnp.asarray(tail),
    )
