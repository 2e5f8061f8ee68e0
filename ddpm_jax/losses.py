"""Training losses, one value per example, with weightings and distributions of timesteps.

Each loss is a mean over an example's components, so its size does not depend on the image's.  The deterministic
`denoising_loss` takes times and noise as arguments; `simple_loss`, `variational_loss` and `hybrid_loss` draw them,
example by example, from one key each: the loss of an example does not depend on its batch.

A weighting is a function of log SNR that multiplies the squared error *of x_0*.  There every published one is finite,
and the same function applies to every predicted quantity:

    |x_0 - x_0_hat|^2 = |eps - eps_hat|^2 / SNR = |v - v_hat|^2 / (1 + SNR)
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax import gaussian, likelihood
from ddpm_jax.gaussian import Estimate, Net, Predicts
from ddpm_jax.keys import check_keys, example_keys, split_keys, standard_normal
from ddpm_jax.likelihood import Decoder
from ddpm_jax.schedules import Schedule, gather

Weight = Callable[[jax.Array], jax.Array]
"""log SNR [B] -> the weight of the squared error of x_0 [B]."""

Space = Literal["predicted", "eps", "x0", "v"]
"""The quantity whose squared error is the loss; "predicted": that which the network predicts."""


def denoising_loss(
    schedule: Schedule,
    net: Net,
    x0: jax.Array,
    t: jax.Array,
    eps: jax.Array,
    *,
    predicts: Predicts = "eps",
    weight: Weight | None = None,
    learned_variance: bool = False,
) -> jax.Array:
    """Mean squared error of what the network predicts, at given times and noise: DDPM equation 14 before its mean.

    Args:
        net: (x_t [B, ...], t [B]) -> [B, ...].
        x0, eps: [B, ...]; t: [B] integers in 1..T.
        weight: None leaves the error of the predicted quantity as it is (L_simple for "eps"); a function of log SNR
            weighs the error of x_0 that it implies.
        learned_variance: the network's last axis is doubled; the variance half is not used.

    Returns:
        [B], mean over components.

    Raises:
        ValueError: if shapes differ or `predicts` is unknown.
    """
    x_t = gaussian.q_sample(schedule, x0, t, eps)
    out = net(x_t, t)
    if learned_variance:
        out, _ = gaussian.split_variance(out, x_t)
    return _prediction_loss(schedule, out, x0, t, eps, predicts, weight)


def simple_loss(
    key: jax.Array,
    schedule: Schedule,
    net: Net,
    x0: jax.Array,
    *,
    predicts: Predicts = "eps",
    weight: Weight | None = None,
    t: jax.Array | None = None,
    eps: jax.Array | None = None,
) -> jax.Array:
    """L_simple, DDPM equation 14: `denoising_loss` at drawn times and noise.

    Args:
        key: one key, or [B] keys, one per example.
        t: [B] times in place of independent uniform ones, e.g. `stratified_times`.
        eps: [B, ...] noise in place of a draw.

    Returns:
        [B], mean over components.
    """
    t, eps = draw_times_and_noise(key, schedule, x0, t, eps)
    return denoising_loss(schedule, net, x0, t, eps, predicts=predicts, weight=weight)


def variational_loss(
    key: jax.Array,
    schedule: Schedule,
    net: Net,
    x0: jax.Array,
    *,
    predicts: Predicts = "eps",
    variance_mix: float = 1.0,
    decoder: Decoder = likelihood.decoder_8bit,
    learned_variance: bool = False,
    t: jax.Array | None = None,
    eps: jax.Array | None = None,
) -> jax.Array:
    """The bound, estimated by one of its terms: T times L_{t-1} at a drawn t, in nats per component.

    Its expectation is the bound without L_T, divided by the number of components.  Nothing is clipped here (the
    original clips when it evaluates, not when it trains).

    Args:
        key: one key, or [B] keys.
        variance_mix: the reverse variance where it is not learned: 0 beta-tilde, 1 beta.
        decoder: for the term at t = 1.
        learned_variance: the network's last axis is doubled, see `gaussian.denoiser`; gradients reach both halves.
        t, eps: times [B] and noise [B, ...] in place of draws.
    """
    gaussian.check_unit_interval("variance_mix", variance_mix)
    t, eps = draw_times_and_noise(key, schedule, x0, t, eps)
    x_t = gaussian.q_sample(schedule, x0, t, eps)
    denoise = gaussian.denoiser(schedule, net, predicts, clip=False, learned_variance=learned_variance)
    return schedule.T * _vlb_term(schedule, denoise(x_t, t), x0, t, variance_mix, decoder)


def hybrid_loss(
    key: jax.Array,
    schedule: Schedule,
    net: Net,
    x0: jax.Array,
    *,
    predicts: Predicts = "eps",
    weight: Weight | None = None,
    vlb_scale: float = 1e-3,
    decoder: Decoder = likelihood.decoder_8bit,
    t: jax.Array | None = None,
    eps: jax.Array | None = None,
) -> jax.Array:
    """L_simple + vlb_scale * L_vlb for a learned variance; the bound's gradient reaches the variance half alone.

    Nichol & Dhariwal (arXiv:2102.09672), equation 16.  L_vlb is in nats per component; the authors' code counts it
    in bits, which is vlb_scale = 1e-3 / ln 2 here.

    Args:
        net: (x_t [B, ..., C], t [B]) -> [B, ..., 2C].

    See `simple_loss` and `variational_loss` for the other arguments.
    """
    t, eps = draw_times_and_noise(key, schedule, x0, t, eps)
    x_t = gaussian.q_sample(schedule, x0, t, eps)
    out, mix = gaussian.split_variance(net(x_t, t), x_t)
    estimate = gaussian.estimate(schedule, predicts, jax.lax.stop_gradient(out), x_t, t)._replace(variance_mix=mix)
    vlb = schedule.T * _vlb_term(schedule, estimate, x0, t, 1.0, decoder)
    return _prediction_loss(schedule, out, x0, t, eps, predicts, weight) + vlb_scale * vlb


def weighted_loss(
    schedule: Schedule,
    net: Net,
    x0: jax.Array,
    t: jax.Array,
    eps: jax.Array,
    *,
    predicts: Predicts = "eps",
    variance_mix: float = 1.0,
) -> jax.Array:
    """The weighted variational loss, DDPM equation 12: `variational_weight` times the squared error of the noise.

    The part of KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) that depends on the network, in nats per component.

    Args:
        x0, eps: [B, ...]; t: [B] integers in 1..T; infinite at t = 1 for every mix below 1.

    Returns:
        [B], mean over components.
    """
    x_t = gaussian.q_sample(schedule, x0, t, eps)
    estimate = gaussian.estimate(schedule, predicts, net(x_t, t), x_t, t)
    return variational_weight(schedule, t, variance_mix) * _mean((eps - estimate.eps) ** 2)


def variational_weight(schedule: Schedule, t: jax.Array, variance_mix: float = 1.0) -> jax.Array:
    """The weight of the noise's error in the bound, 1 / (2 std^2) (1 - alpha_t)^2 / ((1 - alpha-bar_t) alpha_t).

    std^2 is the reverse variance of `variance_mix`.  For mix = 0 it equals (SNR_{t-1} / SNR_t - 1) / 2, infinite at
    t = 1, where the bound has L_0 instead.

    Args:
        t: [] or [B] integers in 1..T.
    """
    gaussian.check_times(schedule, t)
    like, t = schedule.noise[:1], gaussian.mask_invalid_times(schedule, t)
    s = t - 1
    signal = gather(schedule.signal, s, like) / gather(schedule.signal, t, like)
    shrink = (gather(schedule.noise, s, like) / gather(schedule.noise, t, like)) ** 2
    return 0.5 * gaussian.one_minus_snr_ratio(schedule, t, s, like) * signal**2 * shrink ** (variance_mix - 1)


def min_snr(gamma: float = 5.0) -> Weight:
    """Min-SNR weighting, min(SNR, gamma): Hang et al. (arXiv:2303.09556)."""
    return lambda log_snr: jnp.minimum(jnp.exp(log_snr), gamma)


def truncated_snr(least: float = 1.0) -> Weight:
    """Truncated SNR weighting, max(SNR, least): Salimans & Ho (arXiv:2202.00512), where least is 1."""
    return lambda log_snr: jnp.maximum(jnp.exp(log_snr), least)


def snr_plus_one(log_snr: jax.Array) -> jax.Array:
    """SNR + 1 weighting, the plain squared error of v (arXiv:2202.00512)."""
    return 1 + jnp.exp(log_snr)


def snr(log_snr: jax.Array) -> jax.Array:
    """SNR weighting, the plain squared error of the noise: L_simple in terms of x_0."""
    return jnp.exp(log_snr)


def space_weight(space: Space) -> Weight | None:
    """The weighting whose loss is the squared error of eps, x_0 or v (SNR, 1, SNR + 1); None for "predicted".

    Without signal, at t = T, the error of eps is 0, as eps is x_t.  A network that predicts eps has there its own error
    of it, and infinite others.
    """
    return {"predicted": None, "eps": snr, "x0": jnp.ones_like, "v": snr_plus_one}[space]


def p2(gamma: float = 1.0, k: float = 1.0) -> Weight:
    """P2 weighting, SNR / (k + SNR)^gamma: Choi et al. (arXiv:2204.00227), who give the weight of the noise's error."""
    return lambda log_snr: jnp.exp(log_snr - gamma * jnp.log(k + jnp.exp(log_snr)))


def draw_times_and_noise(
    key: jax.Array, schedule: Schedule, x0: jax.Array, t: jax.Array | None = None, eps: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Uniform times [B] in 1..T and standard normal noise [B, ...], from each example's own key; t and eps if given.

    Args:
        key: one key, or [B] keys.
    """
    gaussian.check_batch(x0=x0)
    keys = example_keys(key, x0.shape[0])
    t_keys, eps_keys = split_keys(keys, 2)
    if t is None:
        t = uniform_times(t_keys, schedule.T)
    return t, standard_normal(eps_keys, x0) if eps is None else eps


def uniform_times(keys: jax.Array, T: int) -> jax.Array:
    """[B] independent times, uniform on 1..T, from keys [B]."""
    check_keys("keys", keys)
    return jax.vmap(lambda key: jax.random.randint(key, (), 1, T + 1, jnp.int32))(keys)


def stratified_times(key: jax.Array, T: int, index: jax.Array, batch: int) -> jax.Array:
    """Stratified times, each uniform and evenly spread within a batch: t_i = 1 + floor(T ((u + i / B) mod 1)).

    The low-discrepancy sampler of Variational Diffusion Models (arXiv:2107.00630, appendix I.1), which lowers the
    variance of a batch's loss.

    Args:
        key: ONE key, the same for the whole batch on all devices; u is drawn from it.
        index: [b] indices i of these examples in the global batch; batch: its size B.
    """
    u = jax.random.uniform(key, dtype=jnp.float32)
    return 1 + jnp.floor(T * jnp.mod(u + index / batch, 1.0)).astype(jnp.int32).clip(0, T - 1)


class LossHistory(NamedTuple):
    """The latest losses at each time, for importance sampling of t.

    Attributes:
        losses: [T, n] the latest n losses of each t, oldest first; row t - 1 is time t.
        counts: [T] number of valid losses in each row.
    """

    losses: jax.Array
    counts: jax.Array


def empty_loss_history(T: int, length: int = 10) -> LossHistory:
    """An empty history of `length` losses for each of T times."""
    return LossHistory(jnp.zeros((T, length)), jnp.zeros(T, jnp.int32))


def record_losses(history: LossHistory, t: jax.Array, losses: jax.Array) -> LossHistory:
    """The history after one batch, its examples entered in order; a t outside 1..T enters NaN.

    Args:
        t, losses: [B].
    """
    losses = jnp.where((t >= 1) & (t <= history.losses.shape[0]), losses, jnp.nan)
    t = jnp.clip(t, 1, history.losses.shape[0])

    def enter(history: LossHistory, pair: tuple[jax.Array, jax.Array]) -> tuple[LossHistory, None]:
        row, loss = pair[0] - 1, pair[1]
        old, n = history.losses[row], history.counts[row]
        full = n == old.shape[0]
        new = jnp.where(full, jnp.roll(old, -1).at[-1].set(loss), old.at[jnp.minimum(n, old.shape[0] - 1)].set(loss))
        return LossHistory(history.losses.at[row].set(new), history.counts.at[row].set(jnp.where(full, n, n + 1))), None

    return jax.lax.scan(enter, history, (t, losses.astype(history.losses.dtype)))[0]


def importance_probabilities(history: LossHistory, uniform: float = 1e-3) -> jax.Array:
    """Probabilities [T] of drawing t = 1..T in proportion to the root mean square of its losses.

    Uniform until every t has a full history; after that mixed with a share `uniform` of the uniform law.  An example
    drawn with probability p_t is weighted by 1 / (T p_t).  Nichol & Dhariwal (arXiv:2102.09672), section 3.3.
    """
    T = history.losses.shape[0]
    rms = jnp.sqrt((history.losses**2).mean(-1))
    learned = (1 - uniform) * rms / jnp.maximum(rms.sum(), jnp.finfo(rms.dtype).tiny) + uniform / T
    return jnp.where((history.counts == history.losses.shape[1]).all(), learned, 1 / T)


def _prediction_loss(
    schedule: Schedule,
    out: jax.Array,
    x0: jax.Array,
    t: jax.Array,
    eps: jax.Array,
    predicts: Predicts,
    weight: Weight | None,
) -> jax.Array:
    if out.shape != x0.shape:
        raise ValueError(f"the network must return the shape of x_t, {x0.shape}, got {out.shape}")
    error = _mean((out - gaussian.target(schedule, predicts, x0, eps, t)) ** 2)
    return error if weight is None else _x0_factor(schedule, predicts, t, weight) * error


def _x0_factor(schedule: Schedule, predicts: Predicts, t: jax.Array, weight: Weight) -> jax.Array:
    """weight times |x_0 - x_0_hat|^2 / |target - output|^2, [B]."""
    log_snr = schedule.log_snr[t]
    if predicts == "eps":
        factor = weight(log_snr) * jnp.exp(-log_snr)
        weak = jnp.maximum(log_snr, -64.0)  # without signal 0 times infinity, whose limit this is
        return jnp.where(jnp.isnan(factor), weight(weak) * jnp.exp(-weak), factor)
    if predicts == "x0":
        return weight(log_snr)
    if predicts == "v":
        return weight(log_snr) * jax.nn.sigmoid(-log_snr)
    like = schedule.noise[:1]
    one_minus_r = gaussian.one_minus_snr_ratio(schedule, t, t - 1, like)
    return weight(log_snr) / (schedule.signal[t - 1] * one_minus_r) ** 2


def _vlb_term(
    schedule: Schedule, estimate: Estimate, x0: jax.Array, t: jax.Array, variance_mix: float, decoder: Decoder
) -> jax.Array:
    var = likelihood.decoder_variance(schedule)
    nats = likelihood.vlb_term_from_estimate(
        schedule, estimate, x0, t, t - 1, variance_mix=variance_mix, decoder=decoder, decoder_var=var
    )
    return _mean(nats)


def _mean(x: jax.Array) -> jax.Array:
    return x.mean(tuple(range(1, x.ndim)))
