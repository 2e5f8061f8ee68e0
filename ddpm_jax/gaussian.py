"""The Gaussian laws of a diffusion, forward and reverse, and the quantities that a network may predict.

Every function works on any batch [B, ...]: vectors, sequences, images, volumes.  Times are integers, t the noisier
and s the cleaner, 0 <= s < t <= T, one for the batch ([]) or one per example ([B]).  With

    r = SNR_t / SNR_s        (0 when s is the data, towards 1 when s meets t)

every transition is computed from `1 - r = -expm1(log SNR_t - log SNR_s)`, which keeps the digits that `1 - r` would
lose when s is next to t.

`estimate` converts a network's output to the pair (x0, eps), and `target` is what it is trained towards; nothing else
in the library depends on the predicted quantity.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, ParamSpec, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax.schedules import Schedule, gather, log_snr_ratio

Predicts = Literal["eps", "x0", "v", "mean"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Net(Protocol):
    """A network closed over its parameters and its condition: (x_t [B, ...], t [B]) -> its prediction [B, ...]."""

    def __call__(self, x_t: jax.Array, t: jax.Array, /) -> jax.Array: ...


class Gaussian(NamedTuple):
    """A normal law with independent components: `mean` [B, ...] and `var`, which broadcasts to it."""

    mean: jax.Array
    var: jax.Array


class Estimate(NamedTuple):
    """The predicted data and noise of an x_t and, if it is learned, the mix of the reverse variance."""

    x0: jax.Array
    eps: jax.Array
    variance_mix: jax.Array | None = None


class Denoiser(Protocol):
    """(x_t [B, ...], t [B]) -> Estimate: the only interface through which samplers and likelihood see a network."""

    def __call__(self, x_t: jax.Array, t: jax.Array, /) -> Estimate: ...


def _jit_checking_times(*static: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """`jax.jit` that keeps a function's signature and first checks the range of its times, where they are concrete."""

    def decorate(f: Callable[_P, _R]) -> Callable[_P, _R]:
        compiled, signature = jax.jit(f, static_argnames=static), inspect.signature(f)

        @functools.wraps(f)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            arguments = signature.bind(*args, **kwargs).arguments
            if "t" in arguments:
                check_times(arguments["schedule"], arguments["t"], arguments.get("s"))
            return compiled(*args, **kwargs)

        return call

    return decorate


@_jit_checking_times()
def q_sample(schedule: Schedule, x0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """x_t = signal_t x_0 + noise_t eps: the data after t steps, in one jump.  DDPM equation 4.

    Args:
        x0: [B, ...] data (images lie in [-1, 1]).
        t: [B] or [] integers in 1..T.
        eps: [B, ...] standard normal.

    Raises:
        ValueError: if x0 and eps differ in shape, are not float, or t is neither [] nor [B] integers.
    """
    check_batch(t, x0=x0, eps=eps)
    t = mask_invalid_times(schedule, t)
    return gather(schedule.signal, t, x0) * x0 + gather(schedule.noise, t, x0) * eps


@_jit_checking_times()
def marginal(schedule: Schedule, x0: jax.Array, t: jax.Array) -> Gaussian:
    """q(x_t | x_0) = N(signal_t x_0, noise_t^2): the law that `q_sample` draws from.  DDPM equation 4.

    Args:
        x0: [B, ...] data.
        t: [B] or [] integers in 1..T.
    """
    check_batch(t, x0=x0)
    t = mask_invalid_times(schedule, t)
    return Gaussian(gather(schedule.signal, t, x0) * x0, gather(schedule.noise, t, x0) ** 2)


@_jit_checking_times()
def transition(schedule: Schedule, x_s: jax.Array, t: jax.Array, s: jax.Array) -> Gaussian:
    """q(x_t | x_s): the forward process from s to t, which `mean + sqrt(var) * eps` draws from.

        mean = signal_t / signal_s x_s
        var  = noise_t^2 (1 - SNR_t / SNR_s)

    For s = t - 1 this is one step, N(sqrt(1 - beta_t) x_{t-1}, beta_t), DDPM equation 2; for s = 0 it is `marginal`.

    Args:
        x_s: [B, ...], data units.
        t, s: [B] or [] integers with 0 <= s < t <= T.

    Returns:
        mean [B, ...]; var, in squared data units, broadcasting to it.

    Raises:
        ValueError: if x_s is not float, or t or s is neither [] nor [B] integers.
    """
    check_batch(t, s, x_s=x_s)
    t = mask_invalid_times(schedule, t, s)
    var = gather(schedule.noise, t, x_s) ** 2 * one_minus_snr_ratio(schedule, t, s, x_s)
    return Gaussian(gather(schedule.signal, t, x_s) / gather(schedule.signal, s, x_s) * x_s, var)


@_jit_checking_times()
def posterior(schedule: Schedule, x0: jax.Array, x_t: jax.Array, t: jax.Array, s: jax.Array) -> Gaussian:
    """q(x_s | x_t, x_0): the posterior of x_s given the data and a later x_t.

    With r = SNR_t / SNR_s, from 0 (s is the data) to 1 (s = t):

        mean = signal_s (1 - r) x_0 + (signal_t / signal_s) (noise_s / noise_t)^2 x_t
        var  = noise_s^2 (1 - r)

    For s = t - 1 this is equations 6 and 7 of DDPM (arXiv:2006.11239v2); for longer jumps it is the same law of the
    skipped chain.

    Args:
        x0, x_t: [B, ...], data units.
        t, s: [B] or [] integers with 0 <= s < t <= T.  At s = 0 the mean is x_0 and the variance 0 (its log is -inf).

    Returns:
        mean [B, ...]; var, in squared data units, broadcasting to it.

    Raises:
        ValueError: if x0 and x_t differ in shape, or t is neither [] nor [B].
    """
    check_batch(t, s, x0=x0, x_t=x_t)
    t = mask_invalid_times(schedule, t, s)
    one_minus_r = one_minus_snr_ratio(schedule, t, s, x0)
    signal_s, noise_s = gather(schedule.signal, s, x0), gather(schedule.noise, s, x0)
    x_t_coefficient = gather(schedule.signal, t, x0) / signal_s * (noise_s / gather(schedule.noise, t, x0)) ** 2
    return Gaussian(signal_s * one_minus_r * x0 + x_t_coefficient * x_t, noise_s**2 * one_minus_r)


@_jit_checking_times()
def reverse_variance(
    schedule: Schedule, t: jax.Array, s: jax.Array, like: jax.Array, variance_mix: jax.Array | float = 1.0
) -> jax.Array:
    """The variance of p(x_s | x_t): (1 - SNR_t / SNR_s) noise_s^(2 (1 - mix)) noise_t^(2 mix).

    mix 0 is the posterior's variance, the paper's beta-tilde ("fixedsmall"); mix 1 is beta ("fixedlarge"); between them
    logs are interpolated, as with the learned variance of Nichol & Dhariwal (arXiv:2102.09672, equation 15).
    At s = 0 it is beta_1 for mix 1, 0 for every smaller mix and infinite for a larger one.

    Args:
        t, s: [B] or [] integers with 0 <= s < t <= T.
        like: [B, ...] the array that the result is combined with.
        variance_mix: a number, or an array that broadcasts to `like`.

    Returns:
        The variance in squared data units, broadcasting to `like`.
    """
    check_batch(t, s, like=like)
    t = mask_invalid_times(schedule, t, s)
    noise_t, mix = gather(schedule.noise, t, like), jnp.asarray(variance_mix, like.dtype)
    shrink = (gather(schedule.noise, s, like) / noise_t) ** 2
    return one_minus_snr_ratio(schedule, t, s, like) * noise_t**2 * shrink ** (1 - mix)


@_jit_checking_times("predicts")
def target(schedule: Schedule, predicts: Predicts, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """The correct output for x_t = q_sample(x0, t, eps) of a network that predicts `predicts`.

    "eps" is the noise (DDPM section 3.2), "x0" the data, "v" is signal_t eps - noise_t x_0 (Salimans & Ho,
    arXiv:2202.00512), "mean" the mean of q(x_{t-1} | x_t, x_0) (the paper's mu-tilde).

    Args:
        x0, eps: [B, ...]; t: [B] or [] integers in 1..T.
    """
    check_batch(t, x0=x0, eps=eps)
    if predicts == "eps":
        return eps
    if predicts == "x0":
        return x0
    t = mask_invalid_times(schedule, t)
    if predicts == "v":
        return gather(schedule.signal, t, x0) * eps - gather(schedule.noise, t, x0) * x0
    if predicts == "mean":
        x_t = gather(schedule.signal, t, x0) * x0 + gather(schedule.noise, t, x0) * eps
        return posterior(schedule, x0, x_t, t, t - 1).mean
    raise _unknown_prediction(predicts)


@_jit_checking_times("predicts")
def estimate(schedule: Schedule, predicts: Predicts, out: jax.Array, x_t: jax.Array, t: jax.Array) -> Estimate:
    """The data and the noise in x_t, from a network's output: the inverse of `target`.

    Args:
        predicts: see `target`.
        out: [B, ...] the network's output.
        x_t: [B, ...] its input; t: [B] or [] integers in 1..T.

    Returns:
        Estimate(x0, eps) with x_t = signal_t x0 + noise_t eps.  From "eps" at a t without signal x0 is not finite.
    """
    check_batch(t, x_t=x_t, out=out)
    t = mask_invalid_times(schedule, t)
    signal, noise = gather(schedule.signal, t, x_t), gather(schedule.noise, t, x_t)
    if predicts == "eps":
        return Estimate((x_t - noise * out) / signal, jnp.where(noise > 0, out, jnp.nan))
    if predicts == "x0":
        return Estimate(jnp.where(noise > 0, out, jnp.nan), (x_t - signal * out) / noise)
    if predicts == "v":
        return Estimate(signal * x_t - noise * out, noise * x_t + signal * out)
    if predicts == "mean":
        s = t - 1
        signal_s = gather(schedule.signal, s, x_t)
        x_t_coefficient = signal / signal_s * (gather(schedule.noise, s, x_t) / noise) ** 2
        x0 = (out - x_t_coefficient * x_t) / (signal_s * one_minus_snr_ratio(schedule, t, s, x_t))
        return Estimate(x0, (x_t - signal * x0) / noise)
    raise _unknown_prediction(predicts)


def denoiser(
    schedule: Schedule, net: Net, predicts: Predicts = "eps", *, clip: bool = False, learned_variance: bool = False
) -> Denoiser:
    """The `Denoiser` of a network, given the quantity that it predicts.

    Args:
        net: (x_t [B, ...], t [B]) -> [B, ...]; with a learned variance its last axis is twice as long.
        clip: bring x0 into [-1, 1] and derive eps again from it, as the original does with images when it samples and
            when it computes bits per dimension (never in a training loss).  Not for data beyond [-1, 1].
        learned_variance: the second half of the last axis is v in [-1, 1], and mix = (v + 1) / 2
            (arXiv:2102.09672, equation 15; v is not clamped, as in the authors' code).

    Raises:
        ValueError: if `predicts` is unknown, or the output's last axis cannot be halved.
    """
    if predicts not in ("eps", "x0", "v", "mean"):
        raise _unknown_prediction(predicts)

    def denoise(x_t: jax.Array, t: jax.Array) -> Estimate:
        check_times(schedule, t)
        t = jnp.broadcast_to(t, x_t.shape[:1])
        out, mix = net(x_t, t), None
        if learned_variance:
            out, mix = split_variance(out, x_t)
        result = estimate(schedule, predicts, out, x_t, t)
        if clip:
            x0 = jnp.clip(result.x0, -1, 1)
            eps = (x_t - gather(schedule.signal, t, x_t) * x0) / gather(schedule.noise, t, x_t)
            result = Estimate(x0, eps)
        return result._replace(variance_mix=mix)

    return denoise


def split_variance(out: jax.Array, x_t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two halves of the last axis: the prediction, and mix = (v + 1) / 2 from the learned variance v.

    Raises:
        ValueError: if the last axis of `out` is not twice that of `x_t`.
    """
    expected = (*x_t.shape[:-1], 2 * x_t.shape[-1])
    if out.shape != expected:
        raise ValueError(f"a learned variance doubles channels: the network must return {expected}, got {out.shape}")
    prediction, v = jnp.split(out, 2, axis=-1)
    return prediction, (v + 1) / 2


def apply_denoiser(denoise: Denoiser, x_t: jax.Array, t: jax.Array) -> Estimate:
    """denoise(x_t, t), its shapes checked.

    Raises:
        ValueError: if x0 or eps have another shape than x_t, or the mix is neither [] nor [B, ...].
    """
    result, expected = denoise(x_t, t), x_t.shape
    for name, shape in (("x0", jnp.shape(result.x0)), ("eps", jnp.shape(result.eps))):
        if shape != expected:
            raise ValueError(f"a denoiser's {name} must have the shape of x_t, {expected}, got {shape}")
    mix = () if result.variance_mix is None else jnp.shape(result.variance_mix)
    if mix and (len(mix) != len(expected) or any(m not in (1, n) for m, n in zip(mix, expected, strict=True))):
        raise ValueError(f"a denoiser's mix must have the shape of x_t, {expected}, or 1 for what is shared, got {mix}")
    return result


@_jit_checking_times()
def kl(p: Gaussian, q: Gaussian) -> jax.Array:
    """KL(p || q) of two normal laws, in nats, component by component.

        0.5 (var_p / var_q - 1 - log(var_p / var_q) + (mean_p - mean_q)^2 / var_q)

    Near var_p = var_q the first three terms cancel; there they are taken as d - log1p(d), d = var_p / var_q - 1.
    """
    ratio = p.var / q.var
    excess = (p.var - q.var) / q.var
    near = jnp.abs(excess) < 0.5
    # each branch sees a harmless argument where the other one is taken, or its gradient would be NaN
    close = jnp.where(near, excess, 0.0)
    far = jnp.where(near, 1.0, ratio)
    spread = jnp.where(near, close - jnp.log1p(close), far - 1 - jnp.log(far))
    return 0.5 * (spread + (p.mean - q.mean) ** 2 / q.var)


def one_minus_snr_ratio(schedule: Schedule, t: jax.Array, s: jax.Array, like: jax.Array) -> jax.Array:
    """1 - SNR_t / SNR_s: the share of x_s that x_t does not determine; 1 at s = 0."""
    return -jnp.expm1(log_snr_ratio(schedule, t, s, like))


def check_batch(*times: jax.Array, **arrays: jax.Array) -> None:
    """Raises a ValueError unless arrays have one shape [B, ...], float32 or 64, and times are integers [] or [B]."""
    (first_name, x), *rest = arrays.items()
    for name, a in arrays.items():
        dtype = a.dtype
        if dtype not in (np.float32, np.float64):
            hint = "scale images to [-1, 1] first" if jnp.issubdtype(dtype, jnp.integer) else "cast it up first"
            raise ValueError(f"{name} must be float32 or float64, got {dtype}: {hint}")
        if a.ndim == 0:
            raise ValueError(f"{name} must have a batch axis, got shape ()")
    for name, a in rest:
        if a.shape != x.shape:
            raise ValueError(f"{name} must have the shape of {first_name}, {x.shape}, got {a.shape}")
    for t in times:
        dtype, shape = jnp.result_type(t), jnp.shape(t)
        if not jnp.issubdtype(dtype, jnp.integer) or shape not in ((), x.shape[:1]):
            raise ValueError(f"times must be integers of shape () or {x.shape[:1]}, got {dtype} {shape}")


def check_times(schedule: Schedule, t: ArrayLike, s: ArrayLike | None = None) -> None:
    """Raises a ValueError for times outside 0 <= s < t <= T, if their values are known without a transfer."""
    known = (int, np.integer, np.ndarray)
    for name, value, least, most in (("t", t, 1, schedule.T), ("s", s, 0, schedule.T - 1)):
        if isinstance(value, known) and np.size(value) and not (least <= np.min(value) and np.max(value) <= most):
            raise ValueError(f"{name} must lie in {least}..{most} (steps count from 1, 0 is the data), got {value}")
    if isinstance(t, known) and isinstance(s, known) and not np.all(np.less(s, t)):
        raise ValueError(f"s must be smaller than t, got s = {s} and t = {t}")


def mask_invalid_times(schedule: Schedule, t: jax.Array, s: jax.Array | None = None) -> jax.Array:
    """The times t, with T + 1 for those below 1 or not above s: `gather` makes NaN of it."""
    t = jnp.asarray(t)
    if not jnp.issubdtype(t.dtype, jnp.integer):
        raise ValueError(f"times must be integers, got {t.dtype}")
    valid = t >= 1 if s is None else (t >= 1) & (t > jnp.asarray(s))
    return jnp.where(valid, t.astype(jnp.int32), schedule.T + 1)


def check_unit_interval(name: str, value: Any) -> None:
    """Raises a ValueError for a number outside [0, 1]; arrays are not checked."""
    if isinstance(value, (int, float, np.number)) and not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


def _unknown_prediction(predicts: str) -> ValueError:
    return ValueError(f"predicts must be one of 'eps', 'x0', 'v', 'mean', got {predicts!r}")
