"""The sampler type, its state, and sampling by one scan over times."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike

from ddpm_jax import gaussian
from ddpm_jax.keys import MAX_IMAGES, check_integer, example_keys, fold_in_all, fold_in_each, from_seed, standard_normal


class Noise(Protocol):
    """(keys [B], t [], like [B, ...]) -> standard normal [B, ...] for the step that leaves t."""

    def __call__(self, keys: jax.Array, t: jax.Array, like: jax.Array, /) -> jax.Array: ...


class SamplerState(Protocol):
    """The fields common to all samplers' states, which are NamedTuples: x, x0 and t of `State`."""

    @property
    def x(self) -> jax.Array: ...
    @property
    def x0(self) -> jax.Array: ...
    @property
    def t(self) -> jax.Array: ...
    def _replace(self, **changes: Any) -> Any: ...


class InitFn(Protocol):
    """(x [B, ...], t []) -> the state before the first step, which leaves t."""

    def __call__(self, x: jax.Array, t: jax.Array, /) -> SamplerState: ...


class StepFn(Protocol):
    """(keys [B], state, t [], s []) -> the state at s: one transition from t.  A sampler's states have its own type."""

    def __call__(self, keys: jax.Array, state: Any, t: jax.Array, s: jax.Array, /) -> SamplerState: ...


class State(NamedTuple):
    """The state of a reverse process: x = x_t [B, ...], the x_0 predicted in the last step [B, ...], and t []."""

    x: jax.Array
    x0: jax.Array
    t: jax.Array


class Sampler(NamedTuple):
    """A pair of pure functions, init(x, t) -> state and step(keys, state, t, s) -> state.

    allows_forward_steps: whether it also steps to an s > t, as `editing.inpainting` does; else times must fall.
    """

    init: InitFn
    step: StepFn
    allows_forward_steps: bool = False


def init_state(x: jax.Array, t: jax.Array) -> State:
    """The `init` of a one-step sampler."""
    return State(x, jnp.zeros_like(x), t)


def image_keys(seed: int, indices: Iterable[int]) -> jax.Array:
    """[B] keys of images: fold_in(key(seed), i) for image i, of the generator threefry2x32.

    Raises:
        ValueError: if the seed is not an integer in 0..2^32 - 1, or an index not one below
            `keys.MAX_IMAGES`, 2^32 - 16.
    """
    rows = jnp.asarray([check_integer("an image's index", i, MAX_IMAGES) for i in indices], jnp.uint32)
    return fold_in_each(from_seed(seed), rows)


def step_noise(keys: jax.Array, t: jax.Array, like: jax.Array) -> jax.Array:
    """Standard normal noise [B, ...], image i's from fold_in(keys[i], t)."""
    return standard_normal(fold_in_all(keys, t), like)


def initial_noise(keys: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """x_T: [B, *shape] standard normal, image i's from keys[i] alone."""
    keys = example_keys(keys, keys.shape[0] if keys.ndim else 1)
    return step_noise(keys, jnp.zeros((), jnp.uint32), jnp.zeros((keys.shape[0], *shape), dtype))


def sample(keys: jax.Array, sampler: Sampler, x_T: jax.Array, times: np.ndarray | jax.Array) -> jax.Array:
    """The images at the last of `times`, from x_T at the first, by one scan.

    Args:
        keys: [B] typed keys, one per image (`image_keys`).
        x_T: [B, ...] standard normal (`initial_noise`).
        times: [n+1] falling integers, e.g. `times(T, n)`; see `Sampler.allows_forward_steps`.

    Raises:
        ValueError: if times is not a falling vector of integers, or keys are not typed keys, one per image.
    """
    state, times = _first_state(sampler, x_T, times)
    return _scan(keys, sampler, state, times, ())[0].x


def advance(keys: jax.Array, sampler: Sampler, state: Any, times: np.ndarray | jax.Array) -> Any:
    """The state at the last of `times`, from the state at the first, by one scan.

    After `sampler.init`, one call for each piece of the times gives the images of `sample`.

    Args:
        keys, times: as of `sample`.
        state: the sampler's state at times[0].

    Raises:
        ValueError: as `sample`.
    """
    return _scan(keys, sampler, state, _check_times(times, sampler), ())[0]


def trajectory(
    keys: jax.Array, sampler: Sampler, x_T: jax.Array, times: np.ndarray | jax.Array, *, save_at: Sequence[int]
) -> State:
    """The states at the times in `save_at`: x and the x_0 predicted in the step there, [len(save_at), B, ...].

    Memory grows with `save_at`, not with the number of steps.  At the first time there is no prediction yet and x0 is
    0, the mean of standardised data.  The images are those of `sample`.

    Args:
        save_at: times of `times` to save, in any order; the result has this order.

    Raises:
        ValueError: if a time in `save_at` is not visited.
    """
    times = np.asarray(times)
    missing = [int(t) for t in save_at if t not in times]
    if missing:
        raise ValueError(f"save_at has times that the reverse process does not visit: {missing}")
    state, times = _first_state(sampler, x_T, times)
    return _scan(keys, sampler, state, times, tuple(int(t) for t in save_at))[1]


def _first_state(sampler: Sampler, x_T: jax.Array, times: np.ndarray | jax.Array) -> tuple[SamplerState, jax.Array]:
    """The state before the first step, and the times, checked."""
    gaussian.check_batch(x_T=x_T)
    times = _check_times(times, sampler)
    return sampler.init(x_T, times[0]), times


def _scan(
    keys: jax.Array, sampler: Sampler, state: SamplerState, times: jax.Array, save_at: tuple[int, ...]
) -> tuple[SamplerState, State]:
    """The scan over times: the last state, and the saved states [len(save_at), B, ...]."""
    x = state.x
    if keys.ndim != 1:
        raise ValueError(f"keys must be one per image, shape {x.shape[:1]} (see image_keys), got {keys.shape}")
    keys = example_keys(keys, x.shape[0])

    def record(saved: State, state: SamplerState) -> State:
        is_saved = jnp.asarray(save_at, jnp.int32) == state.t

        def put(old: jax.Array, value: jax.Array) -> jax.Array:
            return jnp.where(is_saved.reshape((-1,) + (1,) * value.ndim), value, old)

        return State(put(saved.x, state.x), put(saved.x0, state.x0), saved.t)

    def step(
        carry: tuple[SamplerState, State], ts: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[SamplerState, State], None]:
        state = sampler.step(keys, carry[0], *ts)
        return (state, record(carry[1], state) if save_at else carry[1]), None

    zeros = jnp.zeros((len(save_at), *x.shape), x.dtype)
    saved = State(zeros, zeros, jnp.asarray(save_at, jnp.int32))
    carry = state, record(saved, state) if save_at else saved
    return jax.lax.scan(step, carry, (times[:-1], times[1:]))[0]


def _check_times(times: np.ndarray | jax.Array, sampler: Sampler) -> jax.Array:
    if isinstance(times, Tracer):
        return times.astype(jnp.int32)
    times = np.asarray(times)
    vector = times.ndim == 1 and len(times) >= 2 and np.issubdtype(times.dtype, np.integer)
    if sampler.allows_forward_steps:
        if not vector or (np.diff(times) == 0).any() or times.min() < 0:
            raise ValueError(f"times must be a vector of at least two integers, no two neighbours equal, got {times}")
    elif not vector or (np.diff(times) >= 0).any() or times[-1] < 0:
        raise ValueError(f"times must be a falling vector of at least two integers, got {times}")
    return jnp.asarray(times, jnp.int32)
