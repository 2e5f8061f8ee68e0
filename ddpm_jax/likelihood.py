"""The variational bound on the log likelihood, term by term, and the decoders that turn densities into probabilities.

    -log p(x_0)  <=  L_T + sum over s < t of L_s + L_0

    L_T = KL(q(x_T | x_0) || N(0, I))                  the prior: the information about the data left in x_T
    L_s = KL(q(x_s | x_t, x_0) || p(x_s | x_t))        the rate of each reverse step
    L_0 = -log p(x_0 | x_1)                            the distortion, by a decoder of its own

DDPM (arXiv:2006.11239), equation 5 and section 3.3.  Everything is in nats, summed over an example's components;
`bits_per_dim` converts.

The last step has a variance of its own.  beta-tilde_1 is 0 and has no logarithm; the original takes beta-tilde_2
instead, for both of its fixed variances, and a learned variance lies between beta-tilde_2 and beta_1.  This holds for
the likelihood alone (samplers add no noise in the last step).
"""

import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from ddpm_jax import gaussian
from ddpm_jax.gaussian import Denoiser, Estimate, Gaussian
from ddpm_jax.keys import example_keys, split_keys, standard_normal
from ddpm_jax.schedules import Schedule, gather


class Decoder(Protocol):
    """(x0 [B, ...], p) -> log probability of each component under p [B, ...], in nats."""

    def __call__(self, x0: jax.Array, p: Gaussian, /) -> jax.Array: ...


class VLB(NamedTuple):
    """The bound of each example, in nats summed over its components.

    Attributes:
        total: [B] prior + the sum of terms: an upper bound on -log p(x_0).
        prior: [B] L_T.
        terms: [n, B] one per step of the chain, ascending: L_0 first, then the KL terms.
        x0_mse: [n, B] mean squared error of the predicted x_0 in that step, in squared data units.
    """

    total: jax.Array
    prior: jax.Array
    terms: jax.Array
    x0_mse: jax.Array


class VLBEstimate(NamedTuple):
    """An unbiased estimate of the bound from a sample of its terms, in nats summed over components.

    Attributes:
        total: [B] estimate of `VLB.total`.
        standard_error: [B] of that estimate, for each example alone.
        prior: [B] L_T, exact.
        decoder_nll: [B] L_0, always evaluated.
        decoder_x0_mse: [B] mean squared error of the x_0 predicted there, in squared data units.
    """

    total: jax.Array
    standard_error: jax.Array
    prior: jax.Array
    decoder_nll: jax.Array
    decoder_x0_mse: jax.Array


def vlb(
    key: jax.Array,
    schedule: Schedule,
    denoise: Denoiser,
    x0: jax.Array,
    *,
    variance_mix: float = 1.0,
    decoder: Decoder,
    decoder_var: float | None = None,
    times: np.ndarray | None = None,
) -> VLB:
    """The variational bound with every term evaluated, one draw of eps each, by a scan over the reverse process.

    Args:
        key: one key, or [B] keys; the eps of example i at t is drawn from its key and t alone.
        denoise: an `Estimate.variance_mix` that it returns takes precedence over `variance_mix`.
        x0: [B, ...] data in [-1, 1].
        variance_mix: the reverse variance, 0 for beta-tilde, 1 for beta.
        decoder: log p(x_0 | x_1) component by component, e.g. `decoder_8bit`.
        decoder_var: variance of the decoder's Gaussian; None is the original's (see the module).
        times: falling timesteps T ... 0, as of `samplers.times`; None is all of them.

    Returns:
        VLB, its terms [len(times) - 1, B].

    Raises:
        ValueError: if `times` does not fall to 0, or x0 is not a float batch.
    """
    gaussian.check_batch(x0=x0)
    gaussian.check_unit_interval("variance_mix", variance_mix)
    keys = example_keys(key, x0.shape[0])
    times = np.arange(schedule.T, -1, -1) if times is None else np.asarray(times)
    _check_times(times, schedule.T)
    first_var = decoder_variance(schedule, times) if decoder_var is None else decoder_var

    evaluate_term = functools.partial(vlb_term, variance_mix=variance_mix, decoder=decoder, decoder_var=first_var)

    def step(_: None, ts: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        return None, evaluate_term(keys, schedule, denoise, x0, *ts)

    pairs = jnp.asarray(times[:-1][::-1]), jnp.asarray(times[1:][::-1])
    _, (terms, mse) = jax.lax.scan(step, None, pairs)
    prior = prior_kl(schedule, x0, int(times[0]))
    return VLB(prior + terms.sum(0), prior, terms, mse)


def estimate_vlb(
    key: jax.Array,
    schedule: Schedule,
    denoise: Denoiser,
    x0: jax.Array,
    *,
    strata: int = 16,
    variance_mix: float = 1.0,
    decoder: Decoder,
    decoder_var: float | None = None,
) -> VLBEstimate:
    """An estimate of the bound from at most 2 * strata + 1 function evaluations, with its standard error.

    L_0 is evaluated.  The steps 2..T are cut into strata, finer at small t where the terms are large; from each
    stratum two independent times are drawn, with an eps each: their mean, times the stratum's length, estimates its
    sum, and half their difference its standard error.

    Args:
        key: one key, or [B] keys, one per example.
        strata: number of parts of 2..T (fewer if the smallest would hold no time).

    See `vlb` for the other arguments.
    """
    gaussian.check_batch(x0=x0)
    gaussian.check_unit_interval("variance_mix", variance_mix)
    keys = example_keys(key, x0.shape[0])
    first_var = decoder_variance(schedule) if decoder_var is None else decoder_var
    evaluate_term = functools.partial(vlb_term, variance_mix=variance_mix, decoder=decoder, decoder_var=first_var)
    low, high = _strata(schedule.T, strata)

    def draw(draw_index: int, lo: jax.Array, hi: jax.Array) -> jax.Array:
        """The terms at one time for each example, uniform on lo..hi."""
        own = jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, lo), draw_index))(keys)
        time_keys, eps_keys = split_keys(own, 2)
        t = jax.vmap(lambda k: jax.random.randint(k, (), lo, hi + 1, jnp.int32))(time_keys)
        return evaluate_term(eps_keys, schedule, denoise, x0, t, t - 1)[0]

    def stratum(_: None, ends: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        lo, hi = ends
        a, b = draw(1, lo, hi), draw(2, lo, hi)
        length = (hi - lo + 1).astype(x0.dtype)
        return None, (length * (a + b) / 2, (length * (a - b) / 2) ** 2)

    one = jnp.ones((), jnp.int32)
    decoded, mse = evaluate_term(keys, schedule, denoise, x0, one, one - 1)
    prior = prior_kl(schedule, x0, schedule.T)
    if low.size == 0:
        return VLBEstimate(prior + decoded, jnp.zeros_like(prior), prior, decoded, mse)
    _, (sums, variances) = jax.lax.scan(stratum, None, (jnp.asarray(low), jnp.asarray(high)))
    return VLBEstimate(prior + decoded + sums.sum(0), jnp.sqrt(variances.sum(0)), prior, decoded, mse)


def vlb_term(
    keys: jax.Array,
    schedule: Schedule,
    denoise: Denoiser,
    x0: jax.Array,
    t: jax.Array,
    s: jax.Array,
    *,
    variance_mix: float = 1.0,
    decoder: Decoder,
    decoder_var: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """One term of the bound, at an x_t drawn from q(x_t | x_0): L_0 where s is 0, the KL elsewhere.

    Args:
        keys: [B]; the eps of example i is drawn from fold_in(keys[i], t).
        t, s: [] or [B] integers, 0 <= s < t.
        decoder_var: variance of p(x_0 | x_t), used where s is 0; see `decoder_variance`.

    Returns:
        The term [B] in nats summed over components; the mean squared error of x_0 [B] in squared data units.
    """
    gaussian.check_times(schedule, t, s)
    t = gaussian.mask_invalid_times(schedule, t, s)
    own = jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(t, x0.shape[:1]))
    x_t = gaussian.q_sample(schedule, x0, t, standard_normal(own, x0))
    estimate = gaussian.apply_denoiser(denoise, x_t, t)
    nats = vlb_term_from_estimate(
        schedule, estimate, x0, t, s, variance_mix=variance_mix, decoder=decoder, decoder_var=decoder_var
    )
    components = tuple(range(1, x0.ndim))
    return nats.sum(components), ((estimate.x0 - x0) ** 2).mean(components)


def vlb_term_from_estimate(
    schedule: Schedule,
    estimate: Estimate,
    x0: jax.Array,
    t: jax.Array,
    s: jax.Array,
    *,
    variance_mix: jax.Array | float = 1.0,
    decoder: Decoder,
    decoder_var: jax.Array | float,
) -> jax.Array:
    """The integrand of one term, [B, ...] nats per component, from the estimate at x_t.

    The means of the two laws differ by signal_s (1 - r) (x_0 - x0_hat) and their variances by the factor
    (noise_t / noise_s)^(2 mix), so

        KL = 0.5 (expm1(-w) + w) + 0.5 e^-w (SNR_s - SNR_t) (x_0 - x0_hat)^2,   w = 2 mix log(noise_t / noise_s)

    without a difference of nearly equal numbers (cf. arXiv:2107.00630, equation 15, which is mix = 0).
    """
    variance_mix = variance_mix if estimate.variance_mix is None else estimate.variance_mix
    is_l0 = jnp.broadcast_to(s, x0.shape[:1]).reshape((-1,) + (1,) * (x0.ndim - 1)) == 0
    later = jnp.where(jnp.equal(s, 0), 1, s)  # the KL's own branch never has row 0: its SNR is infinite
    from_t = jnp.where(jnp.equal(s, 0), jnp.minimum(later + 1, schedule.T), t)
    noise_t, noise_s = gather(schedule.noise, from_t, x0), gather(schedule.noise, later, x0)
    w = 2 * variance_mix * jnp.log(noise_t / noise_s)
    snr_s = jnp.exp(gather(schedule.log_snr, later, x0))
    ratio = gaussian.one_minus_snr_ratio(schedule, from_t, later, x0)
    gap = jnp.where(is_l0, 0.0, snr_s * ratio)  # at a T = 1 without signal the ratio is that of two zeros
    rate = 0.5 * (jnp.expm1(-w) + w) + 0.5 * jnp.exp(-w) * gap * (x0 - estimate.x0) ** 2

    var = jnp.asarray(decoder_var, x0.dtype)
    if estimate.variance_mix is not None:
        largest = gather(schedule.noise, jnp.where(jnp.equal(s, 0), t, 1), x0)
        variance_mix = jnp.where(is_l0, variance_mix, 0.0)  # nor the decoder's a mix with which its range overflows
        var = jnp.exp((1 - variance_mix) * jnp.log(var) + 2 * variance_mix * jnp.log(largest))
    distortion = -decoder(x0, Gaussian(estimate.x0, var))
    return jnp.where(is_l0, distortion, rate)


def decoder_variance(schedule: Schedule, times: np.ndarray | None = None) -> jax.Array:
    """The variance of p(x_0 | x_1) in the original: beta-tilde_2, or beta_1 where there is no second step.

    Args:
        times: falling timesteps T ... 0; the second step is theirs.  None is every step.
    """
    times = np.arange(schedule.T, -1, -1) if times is None else times
    if len(times) == 2:
        return schedule.noise[times[0]] ** 2
    return gaussian.reverse_variance(schedule, times[-3], times[-2], schedule.noise[:1], 0.0)[()]


def prior_kl(schedule: Schedule, x0: jax.Array, t: int) -> jax.Array:
    """L_T = KL(q(x_t | x_0) || N(0, I)) at t = T, [B] nats summed over components."""
    gaussian.check_times(schedule, t)
    standard = Gaussian(jnp.zeros((), x0.dtype), jnp.ones((), x0.dtype))
    return gaussian.kl(gaussian.marginal(schedule, x0, jnp.asarray(t)), standard).sum(tuple(range(1, x0.ndim)))


def bits_per_dim(nats: jax.Array, x0: jax.Array) -> jax.Array:
    """Nats summed over an example's components -> bits per component of x0 [B, ...]."""
    return nats / (np.prod(x0.shape[1:]) * np.log(2))


def discretized_gaussian(levels: int) -> Decoder:
    """The Gaussian's mass on each of `levels` equal bins of [-1, 1], the outer two open: DDPM equation 13.

    By the exact normal CDF to full relative precision, without a lower limit: a difference of log CDFs on the side of
    the tail and, for bins narrow against the standard deviation, density times width with its second-order correction.

    Args:
        levels: how many values the data can take: 256 for 8 bits; x_0 must lie on that grid.

    Raises:
        ValueError: if there are fewer than two levels.
    """
    width = _bin_width(levels)

    def log_prob(x0: jax.Array, p: Gaussian) -> jax.Array:
        std = jnp.sqrt(p.var)
        z, w = (x0 - p.mean) / std, width / std
        # a bin so narrow that the CDF hardly changes across it: the density's second-order Taylor sum
        limit = 0.05 if x0.dtype == jnp.float32 else 1e-3
        narrow = (w < limit) & (jnp.abs(z) * w < 4 * limit)
        correction = jnp.where(narrow, (z**2 - 1) * w**2 / 24, 0.0)
        taylor = -0.5 * z**2 - 0.5 * np.log(2 * np.pi) + jnp.log(w) + jnp.log1p(correction)
        # otherwise the difference of the log CDFs, mirrored to the lower tail where they differ most
        log_upper, log_lower = log_ndtr(-jnp.abs(z) + w / 2), log_ndtr(-jnp.abs(z) - w / 2)
        log_ratio = jnp.where(narrow, -1.0, log_lower - log_upper)
        inside = jnp.where(narrow, taylor, log_upper + jnp.log(-jnp.expm1(log_ratio)))
        lowest, highest = x0 < -1 + width / 2, x0 > 1 - width / 2
        return jnp.where(lowest, log_ndtr(z + w / 2), jnp.where(highest, log_ndtr(-z + w / 2), inside))

    return log_prob


def discretized_gaussian_tanh(levels: int) -> Decoder:
    """`discretized_gaussian` as the original computes it, for parity: tanh for the CDF, at least 1e-12.

    The approximation is off by up to 0.07 nats where log p > -6 and 0.25 where log p > -8, and the lower limit caps
    every component at 27.6 nats.
    """
    width = _bin_width(levels)

    def cdf(z: jax.Array) -> jax.Array:
        return 0.5 * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

    def log_prob(x0: jax.Array, p: Gaussian) -> jax.Array:
        std = jnp.sqrt(p.var)
        upper, lower = cdf((x0 - p.mean + width / 2) / std), cdf((x0 - p.mean - width / 2) / std)
        lowest, highest = x0 < -1 + width / 2, x0 > 1 - width / 2
        mass = jnp.where(lowest, upper, jnp.where(highest, 1 - lower, upper - lower))
        return jnp.log(jnp.maximum(mass, 1e-12))

    return log_prob


def softmax_decoder(levels: int, low: float = -1.0, high: float = 1.0) -> Decoder:
    """The Gaussian's density at the `levels` values between low and high, normalised over them.

    The decoder of Variational Diffusion Models (arXiv:2107.00630), whose own grid is low = 1 / 256 - 1,
    high = 1 - 1 / 256.
    """
    _bin_width(levels)
    values = np.linspace(low, high, levels)

    def log_prob(x0: jax.Array, p: Gaussian) -> jax.Array:
        var = jnp.asarray(p.var)
        v, x = jnp.asarray(values, x0.dtype).reshape((1,) * x0.ndim + (-1,)), x0[..., None]
        # log p(v) - log p(x0) as a product, exact at v = x0: a difference of squares would cost all digits
        relative = -0.5 * (v - x) * (v + x - 2 * p.mean[..., None]) / (var[..., None] if var.ndim else var)
        return -jax.nn.logsumexp(relative, axis=-1)

    return log_prob


def gaussian_density(x0: jax.Array, p: Gaussian) -> jax.Array:
    """The log density of the Gaussian itself: the decoder of continuous data."""
    return -0.5 * ((x0 - p.mean) ** 2 / p.var + jnp.log(p.var) + np.log(2 * np.pi))


def _bin_width(levels: int) -> float:
    if isinstance(levels, bool) or not isinstance(levels, (int, np.integer)) or levels < 2:
        raise ValueError(f"levels must be an integer of at least 2, got {levels!r}")
    return 2.0 / (levels - 1)


def _check_times(times: np.ndarray, T: int) -> None:
    falls = (
        times.ndim == 1 and len(times) >= 2 and np.issubdtype(times.dtype, np.integer) and (np.diff(times) < 0).all()
    )
    if not falls or times[-1] != 0 or times[0] > T:
        raise ValueError(f"times must be integers that fall from at most T = {T} to 0, got {times}")


def _strata(T: int, strata: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last time of each stratum of 2..T, its ends spaced as fourth powers.

    For ideal denoisers of simple data, 1000 linear steps, 16 strata and an example of many components this leaves two
    fifths of the standard error that squares do, and three quarters of that of cubes.
    """
    if strata < 1:
        raise ValueError(f"strata must be at least 1, got {strata}")
    ends = np.unique(np.round(1 + (T - 1) * (np.arange(strata + 1) / strata) ** 4).astype(np.int32))
    return ends[:-1] + 1, ends[1:]


decoder_8bit = discretized_gaussian(256)
"""The decoder of 8-bit images."""
