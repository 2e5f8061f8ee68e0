"""Random keys: the key of every random stream, as a function of a seed and an index, whatever JAX's settings are.

All keys use one generator, threefry2x32.  JAX's others (rbg, unsafe_rbg) draw a vmapped batch from its first key alone,
so an image would depend on other keys than its own.

    stream                          numbers folded into the key of the seed, in this order
    image i                         i, below `MAX_IMAGES`; then 0 for x_T, t for the step that leaves t
    a run's training                TRAINING_STREAM, then split into parameters, steps, order of the data, evaluation
    noise of the bound, image i     VLB_STREAM, i
    noise of interpolation          ENCODING_STREAM, i for image i; DECODING_STREAM, p for the reverse process of pair p
    noise of a measurement          MEASUREMENT_STREAM, of seed 0

    of an image's key               RePaint: KNOWN_STREAM for known pixels, FORWARD_STREAM for forward steps, then s;
                                    before both, after the n-th forward step, REPEAT_STREAM, n
    of an example's key             CONDITION_DROPOUT_STREAM, CAPTION_STREAM; `split_keys` folds in 0, 1, ...
"""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

GENERATOR = "threefry2x32"

SEED_LIMIT = 2**32
"""Seeds and the numbers folded into a key are integers in 0 .. SEED_LIMIT - 1."""

TRAINING_STREAM, VLB_STREAM, ENCODING_STREAM, DECODING_STREAM, MEASUREMENT_STREAM = (
    SEED_LIMIT - n for n in (1, 2, 3, 4, 5)
)

KNOWN_STREAM, FORWARD_STREAM, REPEAT_STREAM = (SEED_LIMIT - n for n in (1, 2, 3))
CONDITION_DROPOUT_STREAM, CAPTION_STREAM = 0x64726F70, 0x64726F71
"""Folded into the key of an image or an example, which no time and no part of `split_keys` equals."""

MAX_IMAGES = SEED_LIMIT - 16
"""Upper limit of image indices; larger numbers are for a seed's other streams."""


def from_seed(seed: int) -> jax.Array:
    """The key of a seed, `jax.random.key(seed, impl="threefry2x32")`, 0 <= seed < 2^32.

    Raises:
        ValueError: if the seed is not such an integer.  A traced seed is taken modulo 2^32.
    """
    words = jnp.asarray([0, check_integer("seed", seed)], jnp.uint32)
    return jax.random.wrap_key_data(words, impl=GENERATOR)


def fold_in_each(key: jax.Array, numbers: jax.Array) -> jax.Array:
    """[B] keys, fold_in(key, n) for each n of numbers [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)


def fold_in_all(keys: jax.Array, number: ArrayLike) -> jax.Array:
    """[B] keys, fold_in(keys[i], number)."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, jnp.asarray(number, jnp.uint32))


def check_integer(name: str, value: Any, below: int = SEED_LIMIT) -> Any:
    """The value, if it is an integer in 0 .. below - 1; of a traced value only the type is checked.

    Raises:
        ValueError: naming it, if it is not.
    """
    if isinstance(value, Tracer) and jnp.issubdtype(value.dtype, jnp.integer):
        return value
    try:
        integer = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:  # not an integer
        integer = -1
    if not 0 <= integer < below:
        raise ValueError(f"{name} must be an integer in 0..{below - 1}, got {value}")
    return integer


def check_images(seed: int, start: int, num: int) -> None:
    """Raises a ValueError unless the seed and the indices start .. start + num - 1 of its images are valid."""
    check_integer("seed", seed)
    if start < 0 or num < 1 or start + num > MAX_IMAGES:
        hint = f"start must be at least 0, num at least 1, and start + num at most {MAX_IMAGES}, got {start} and {num}"
        raise ValueError(f"images have indices 0..{MAX_IMAGES - 1}: {hint}")


def check_keys(name: str, keys: jax.Array) -> None:
    """Raises a ValueError unless these are typed threefry2x32 keys."""
    if not (isinstance(keys, jax.Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)):
        raise ValueError(f"{name} must be typed (jax.random.key), got {getattr(keys, 'dtype', type(keys).__name__)}")
    if str(jax.random.key_impl(keys)) != GENERATOR:
        raise ValueError(
            f"{name} must be of the generator {GENERATOR}, got {keys.dtype}: under vmap others do not give each "
            f'image a draw of its own; make them by keys.from_seed(seed) or jax.random.key(seed, impl="{GENERATOR}")'
        )


def example_keys(key: jax.Array, batch: int) -> jax.Array:
    """One key per example: [B] keys as they are, or fold_in(key, i) of a single key.

    Each example's draws depend on its own key alone, not on its batch or its device.

    Raises:
        ValueError: if the key is not a typed key of shape [] or [batch], or of another generator than threefry2x32.
    """
    check_keys("keys", key)
    if key.ndim == 0:
        return fold_in_each(key, jnp.arange(batch, dtype=jnp.uint32))
    if key.shape != (batch,):
        raise ValueError(f"keys must be one key or one per example, [] or {(batch,)}, got {key.shape}")
    return key


def split_keys(keys: jax.Array, parts: int) -> list[jax.Array]:
    """Independent sets of keys [B] from keys [B]: set n is fold_in(keys[i], n), n = 0 .. parts - 1."""
    check_keys("keys", keys)
    return [fold_in_all(keys, n) for n in range(parts)]


def standard_normal(keys: jax.Array, like: jax.Array) -> jax.Array:
    """[B, ...] standard normal in the shape and dtype of `like`, example i drawn from keys[i]."""
    check_keys("keys", keys)
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(keys)


def uniform_on_host(key: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    """`jax.random.uniform(key, shape, minval=-1, maxval=1)` in float32, bit for bit, by numpy: nothing is compiled.

    Number i is made of the block of threefry2x32 with the counter (0, i), up to 2^32 numbers.
    """
    check_keys("key", key)
    words, numbers = np.asarray(jax.random.key_data(key)).tolist(), np.empty(math.prod(shape), np.float32)
    for start in range(0, numbers.size, _HOST_BLOCK):
        part = numbers[start : start + _HOST_BLOCK]
        bits = _threefry2x32(words, np.arange(start, start + part.size, dtype=np.uint32))
        part[:] = ((bits >> 9) | 0x3F800000).view(np.float32)  # in [1, 2)
        part -= 1
        part *= 2
        part -= 1
    return numbers.reshape(shape)


_HOST_BLOCK = 1 << 16
"""Numbers that are drawn together, as many as stay in a core's cache."""


def _threefry2x32(key: list[int], low: np.ndarray) -> np.ndarray:
    """The two words of threefry2x32 (Salmon et al., 2011) of the counters (0, low), in one by exclusive or."""
    words = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    x, y = np.full_like(low, words[0]), low + np.uint32(words[1])
    for i in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x += y
            y = (y << rotation | y >> (32 - rotation)) ^ x
        x += np.uint32(words[(i + 1) % 3])
        y += np.uint32((words[(i + 2) % 3] + i + 1) % 2**32)
    return x ^ y
