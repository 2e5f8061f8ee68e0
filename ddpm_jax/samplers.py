"""Reverse processes: from noise to data, by one scan over falling times.

A sampler is a pair of pure functions, as an optax transformation is:

    init(x, t)               -> state                 before the first step
    step(keys, state, t, s)  -> state                 one transition from t to an earlier s

Any increasing strides are just another array of times; a schedule is never respaced.  Image i depends on its own key
and on nothing else: all its noise comes from fold_in(key_i, t), t being the time a step leaves, and its x_T from
fold_in(key_i, 0).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ddpm_jax import gaussian
from ddpm_jax.gaussian import Denoiser
from ddpm_jax.schedules import Schedule, at

Spacing = Literal["uniform", "leading", "trailing", "linspace", "ddim", "quadratic"]
Noise = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(keys [B], t [], like [B, ...]) -> standard normal [B, ...] for the step that leaves t."""


class State(NamedTuple):
    """Where a chain is: x = x_t [B, ...], the x_0 predicted on the way to it [B, ...], and t []."""

    x: jax.Array
    x0: jax.Array
    t: jax.Array


class Sampler(NamedTuple):
    """init(x, t) -> state; step(keys [B], state, t, s) -> state.  The state has at least the fields of `State`.

    rises: whether it also steps to an s > t, as what is built around samplers may; else times must fall.
    """

    init: Callable
    step: Callable
    rises: bool = False


def image_keys(seed: int, indices: Iterable[int]) -> jax.Array:
    """[B] keys, the one of image i being fold_in(key(seed), i)."""
    key = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(list(indices), jnp.uint32))


def step_noise(keys: jax.Array, t: jax.Array, like: jax.Array) -> jax.Array:
    """Standard normal [B, ...], image i's from fold_in(keys[i], t)."""
    return gaussian.standard_normal(jax.vmap(lambda k: jax.random.fold_in(k, t))(keys), like)


def initial_noise(keys: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
    """x_T: [B, *shape] standard normal, image i's from keys[i] alone."""
    keys = gaussian.example_keys(keys, keys.shape[0] if keys.ndim else 1)
    return step_noise(keys, jnp.zeros((), jnp.uint32), jnp.zeros((keys.shape[0], *shape), dtype))


def ancestral(schedule: Schedule, denoise: Denoiser, *, mix: float = 1.0, noise: Noise = step_noise) -> Sampler:
    """The reverse process of DDPM, algorithm 2: x_s = mean of q(x_s | x_t, x_0_hat) + std noise.

    Args:
        mix: the reverse variance, 0 for beta-tilde, 1 for beta; an `Estimate.mix` takes precedence.  The last step
            adds no noise, whatever the mix.
        noise: where a step's noise comes from.
    """

    def variance(found, state, t, s):
        # at the data a mix below 1 gives 0, whose root has no derivative, and one above 1 infinity: keep them out
        chosen = jnp.where(s > 0, mix if found.mix is None else found.mix, 1.0)
        return gaussian.reverse_variance(schedule, t, s, state.x, chosen)

    return _reverse(schedule, denoise, variance, noise)


def analytic(
    schedule: Schedule, denoise: Denoiser, x0_errors: np.ndarray | jax.Array, *, noise: Noise = step_noise
) -> Sampler:
    """The reverse process with the best variance there is for a mean: that of x_s given x_t, on average.

        noise_s^2 (1 - r) + (signal_s (1 - r))^2 x0_errors_t,    r = SNR_t / SNR_s

    The law of total variance: beta-tilde, and what is not known of x_0 (Bao et al., arXiv:2201.06503, theorem 1, with
    the error measured instead of derived from E|eps_hat|^2).  Exact for data that are one Gaussian with equal
    variances.  The last step adds no noise.

    Args:
        x0_errors: [T+1] mean squared error of x_0_hat at each t, per component, squared data units; row 0 is not
            read.  `likelihood.bound(...).mse.mean(1)` are the rows 1..T, for the same denoiser.
        noise: where a step's noise comes from.

    Raises:
        ValueError: if x0_errors has another shape.
    """
    if jnp.shape(x0_errors) != (schedule.T + 1,):
        raise ValueError(f"x0_errors must have a row for each t in 0..T, {(schedule.T + 1,)}: {jnp.shape(x0_errors)}")
    errors = jnp.asarray(x0_errors)

    def variance(found, state, t, s):
        fresh = gaussian.fresh_noise(schedule, t, s, state.x)
        signal_s, noise_s = at(schedule.signal, s, state.x), at(schedule.noise, s, state.x)
        return noise_s**2 * fresh + (signal_s * fresh) ** 2 * at(errors, t, state.x)

    return _reverse(schedule, denoise, variance, noise)


def _reverse(schedule: Schedule, denoise: Denoiser, variance: Callable, noise: Noise) -> Sampler:
    """x_s = mean of q(x_s | x_t, x_0_hat) + std noise, with variance(found, state, t, s)."""

    def step(keys, state, t, s):
        found = denoise(state.x, t)
        mean, _ = gaussian.posterior(schedule, found.x0, state.x, t, s)
        std = jnp.where(s > 0, jnp.sqrt(variance(found, state, t, s)), 0.0)
        return State(mean + std * noise(keys, t, state.x), found.x0, s)

    return Sampler(_start, step)


def ddim(schedule: Schedule, denoise: Denoiser, *, eta: float = 0.0, noise: Noise = step_noise) -> Sampler:
    """DDIM (Song et al., arXiv:2010.02502), equation 12.

        x_s = signal_s x_0_hat + noise_s sqrt(1 - eta^2 (1 - r)) eps_hat + eta noise_s sqrt(1 - r) z

    eta 0 is deterministic, and then also steps towards the noise (s > t), which encodes an image; eta 1 has the law of
    `ancestral` with mix 0.

    Args:
        eta: a number in [0, 1], or a traced scalar.
        noise: where z comes from.
    """

    def step(keys, state, t, s):
        found = denoise(state.x, t)
        signal_s, noise_s = at(schedule.signal, s, state.x), at(schedule.noise, s, state.x)
        fresh = gaussian.fresh_noise(schedule, t, s, state.x)
        random = noise_s * jnp.asarray(eta, state.x.dtype)
        # at the data it meets noise_s = 0, and for eta 1 would be 0 itself, whose root has no derivative
        kept = jnp.where(jnp.equal(s, 0), 1.0, 1 - eta**2 * fresh)
        x = signal_s * found.x0 + noise_s * jnp.sqrt(kept) * found.eps
        return State(x + random * jnp.sqrt(jnp.maximum(fresh, 0)) * noise(keys, t, state.x), found.x0, s)

    return Sampler(_start, step)


class Multistep(NamedTuple):
    """A `State` with what earlier steps have left; widths [] are in half log SNR, infinite where there is no step.

    x, x0, t: as in `State`.
    width: of the step to t.
    before, width_before: the x_0 predicted one step earlier [B, ...], and the width of that step.
    """

    x: jax.Array
    x0: jax.Array
    t: jax.Array
    width: jax.Array
    before: jax.Array
    width_before: jax.Array


def dpm_solver_pp(schedule: Schedule, denoise: Denoiser, *, order: Literal[1, 2, 3] = 2) -> Sampler:
    """DPM-Solver++ (Lu et al., arXiv:2211.01095), multistep: the deterministic flow, x_0_hat going on as it came.

        x_s = noise_s / noise_t x_t + signal_s int_0^h exp(u - h) p(u) du,    h = lambda_s - lambda_t

    where lambda = log(signal / noise) and p is the polynomial through the x_0_hat of the latest `order` calls, t's at
    u = 0.  Order 1 is `ddim` with eta 0; order 2 takes h / 2 for u, as the paper does; order 3 integrates exactly.  One
    call of the network for each step.  A step before which there were too few calls, and the step to the data, whose h
    is infinite, have the order that they can.

    Raises:
        ValueError: if the order is not 1, 2 or 3.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order!r}")

    def init(x, t):
        nothing, never = jnp.zeros_like(x), jnp.full((), jnp.inf, x.dtype)
        return Multistep(x, nothing, t, never, nothing, never)

    def step(keys, state, t, s):
        x0 = denoise(state.x, t).x0
        signal_s, noise_s = at(schedule.signal, s, state.x), at(schedule.noise, s, state.x)
        h = -0.5 * gaussian.log_snr_fall(schedule, t, s, state.x)
        finite = jnp.isfinite(h)
        u0 = -jnp.expm1(-h)  # the integrals of exp(u - h), and of u and u^2 times that
        u1 = jnp.where(finite, h - u0, 0.0)
        u2 = jnp.where(finite, h**2 - 2 * (h - u0), 0.0)
        # Newton's divided differences; those that reach back to where nothing was are 0
        slope = (x0 - state.x0) / state.width
        bend = (slope - (state.x0 - state.before) / state.width_before) / (state.width + state.width_before)
        found = u0 * x0
        if order == 2:
            found += jnp.where(finite, u0 * h / 2, 0.0) * slope
        if order == 3:
            reach = jnp.where(jnp.isfinite(state.width), state.width, 0.0)
            found += u1 * slope + (u2 + reach * u1) * bend
        x = noise_s / at(schedule.noise, t, state.x) * state.x + signal_s * found
        return Multistep(x, x0, s, h, state.x0, state.width)

    return Sampler(init, step)


def sample(keys: jax.Array, sampler: Sampler, x_T: jax.Array, times: np.ndarray | jax.Array) -> jax.Array:
    """x at the last of `times`, from x_T at the first, by one scan.

    Args:
        keys: [B] typed keys, one per image (`image_keys`).
        x_T: [B, ...] standard normal (`initial_noise`).
        times: [n+1] falling integers, e.g. `times(T, n)`; a sampler that says so takes others.

    Raises:
        ValueError: if times is not a falling vector of integers, or keys are not typed keys, one per image.
    """
    return _scan(keys, sampler, x_T, times, ())[0].x


def trajectory(
    keys: jax.Array, sampler: Sampler, x_T: jax.Array, times: np.ndarray | jax.Array, *, keep: Sequence[int]
) -> State:
    """The chain at the times in `keep`: x and the x_0 predicted on the way there, [len(keep), B, ...].

    Memory grows with `keep`, not with the number of steps.  At the first time nothing has been predicted yet and x0
    is 0, the mean of standardised data.  The images are those of `sample`.

    Args:
        keep: which of `times` to keep, in any order; the result is in this order.

    Raises:
        ValueError: if a time in `keep` is not visited.
    """
    chain = np.asarray(times)
    missing = [int(t) for t in keep if t not in chain]
    if missing:
        raise ValueError(f"keep asks for times that the chain does not visit: {missing}")
    return _scan(keys, sampler, x_T, chain, tuple(int(t) for t in keep))[1]


def times(T: int, steps: int, *, spacing: Spacing = "uniform") -> np.ndarray:
    """The times that a chain of `steps` network calls visits, falling to 0: int32 [steps + 1].

    Args:
        spacing: "uniform" has equal strides from T to 1 (OpenAI's "N"); "leading" the multiples of T // steps, plus
            one, "trailing" equal strides down from T, "linspace" rounded as diffusers does; "ddim" the smallest
            integer stride that gives `steps` times (OpenAI's "ddimN"), which need not exist; "quadratic" squares,
            dense near the data (DDIM, appendix D.2).

    Raises:
        ValueError: if steps is not in 1..T, the spacing is unknown, or "ddim" cannot give that many.
    """
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or not 1 <= steps <= T:
        raise ValueError(f"steps must be an integer in 1..T = {T}, got {steps!r}")
    i = np.arange(steps)
    if spacing == "uniform":
        rising = np.array([T]) if steps == 1 else 1 + np.round((T - 1) / (steps - 1) * i)
    elif spacing == "leading":
        rising = 1 + i * (T // steps)
    elif spacing == "trailing":
        rising = np.round(np.arange(T, 0, -T / steps))[::-1][-steps:]
    elif spacing == "linspace":
        rising = 1 + np.round(np.linspace(0, T - 1, steps))
    elif spacing == "ddim":
        stride = next((n for n in range(1, T + 1) if len(range(0, T, n)) == steps), None)
        if stride is None:
            raise ValueError(f"spacing 'ddim': no integer stride over {T} steps gives {steps} times")
        rising = 1 + i * stride
    elif spacing == "quadratic":
        squares = 1 + np.round((T - 1) * (i / max(steps - 1, 1)) ** 2)
        rising = np.array([T]) if steps == 1 else np.maximum(squares, i + 1)  # no time twice near the data
    else:
        legal = ", ".join(map(repr, Spacing.__args__))
        raise ValueError(f"spacing must be one of {legal}, got {spacing!r}")
    return np.concatenate([[0], rising]).astype(np.int32)[::-1].copy()


def section_times(T: int, counts: Sequence[int]) -> np.ndarray:
    """OpenAI's respacing: 1..T in len(counts) equal sections, counts[i] times evenly in the i-th; falling to 0.

    Args:
        counts: how many times from each section, the data's side first; a section may have none.

    Raises:
        ValueError: if a section has fewer steps than asked of it, or no time is left at all.
    """
    if not any(count > 0 for count in counts):
        raise ValueError(f"counts must ask for at least one time, got {list(counts)}")
    size, extra = divmod(T, len(counts))
    start, chosen = 0, set()
    for i, count in enumerate(counts):
        length = size + (i < extra)
        if length < count:
            raise ValueError(f"a section of {length} steps cannot give {count} times")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            # the positions are accumulated, as there, so that halves round alike
            chosen.add(start + round(position) + 1)
            position += stride
        start += length
    return np.array([*sorted(chosen, reverse=True), 0], np.int32)


def _start(x: jax.Array, t: jax.Array) -> State:
    return State(x, jnp.zeros_like(x), t)


def _scan(keys, sampler: Sampler, x_T, times, keep: tuple[int, ...]):
    """The one scan over reversed times: the last state, and the kept states [len(keep), B, ...]."""
    gaussian.check_batch(x_T=x_T)
    chain = jnp.asarray(_check_times(times, sampler.rises), jnp.int32)
    if keys.ndim != 1:
        raise ValueError(f"keys must be one per image, shape {x_T.shape[:1]} (see image_keys), got {keys.shape}")
    keys = gaussian.example_keys(keys, x_T.shape[0])

    def record(album: State, state) -> State:
        slots = jnp.asarray(keep, jnp.int32) == state.t

        def put(pages, value):
            return jnp.where(slots.reshape((-1,) + (1,) * value.ndim), value, pages)

        return State(put(album.x, state.x), put(album.x0, state.x0), album.t)

    def step(carry, ts):
        state, album = carry
        state = sampler.step(keys, state, *ts)
        return (state, record(album, state) if keep else album), None

    state = sampler.init(x_T, chain[0])
    blank = jnp.zeros((len(keep), *x_T.shape), x_T.dtype)
    album = State(blank, blank, jnp.asarray(keep, jnp.int32))
    carry = state, record(album, state) if keep else album
    return jax.lax.scan(step, carry, (chain[:-1], chain[1:]))[0]


def _check_times(times, rises: bool):
    if isinstance(times, Tracer):
        return times
    chain = np.asarray(times)
    vector = chain.ndim == 1 and len(chain) >= 2 and np.issubdtype(chain.dtype, np.integer)
    if rises:
        if not vector or (np.diff(chain) == 0).any() or chain.min() < 0:
            raise ValueError(f"times must be a vector of at least two integers, no two neighbours equal, got {chain}")
    elif not vector or (np.diff(chain) >= 0).any() or chain[-1] < 0:
        raise ValueError(f"times must be a falling vector of at least two integers, got {chain}")
    return chain
