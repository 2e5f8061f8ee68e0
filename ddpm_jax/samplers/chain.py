"""States, samplers, and the one scan over times that every chain is."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ddpm_jax import gaussian
from ddpm_jax.keys import IMAGES, folded, number, of_seed

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


def begin(x: jax.Array, t: jax.Array) -> State:
    """The `init` of a sampler that remembers nothing."""
    return State(x, jnp.zeros_like(x), t)


def image_keys(seed: int, indices: Iterable[int]) -> jax.Array:
    """[B] keys, the one of image i being fold_in(key(seed), i), of the generator threefry2x32.

    Raises:
        ValueError: if the seed is not an integer in 0..2^32 - 1, or an index not one below `keys.IMAGES`, 2^32 - 16.
    """
    rows = jnp.asarray([number("an image's index", i, IMAGES) for i in indices], jnp.uint32)
    return folded(of_seed(seed), rows)


def step_noise(keys: jax.Array, t: jax.Array, like: jax.Array) -> jax.Array:
    """Standard normal [B, ...], image i's from fold_in(keys[i], t)."""
    return gaussian.standard_normal(jax.vmap(lambda k: jax.random.fold_in(k, t))(keys), like)


def initial_noise(keys: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
    """x_T: [B, *shape] standard normal, image i's from keys[i] alone."""
    keys = gaussian.example_keys(keys, keys.shape[0] if keys.ndim else 1)
    return step_noise(keys, jnp.zeros((), jnp.uint32), jnp.zeros((keys.shape[0], *shape), dtype))


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
