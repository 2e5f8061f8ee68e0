"""Keys: what a seed and an index become, whatever JAX's settings say.

All keys are of one generator, threefry2x32.  Of the others that JAX has (rbg, unsafe_rbg), a batch is drawn from its
first key alone, so that no image would depend on its own key and nothing else.

    what                            path of numbers folded into the key of the seed
    image i                         i, below `MAX_IMAGES`; at x_T then 0, and a step that leaves t then t
    a run's training                TRAINING_STREAM, split into parameters, steps, order of the data, evaluation
    noise of the bound, image i     VLB_STREAM, i
    noise of interpolation          ENCODING_STREAM, i for image i's, DECODING_STREAM, p for the reverse process of
                                    pair p
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

GENERATOR = "threefry2x32"

SEED_LIMIT = 2**32
"""Seeds, and what is folded into a key, are integers from 0 to below this."""

TRAINING_STREAM, VLB_STREAM, ENCODING_STREAM, DECODING_STREAM = (SEED_LIMIT - n for n in (1, 2, 3, 4))

MAX_IMAGES = SEED_LIMIT - 16
"""Images have indices below this; the numbers from here on are for a seed's other streams."""


def from_seed(seed: int) -> jax.Array:
    """The key of a seed: `jax.random.key(seed, impl="threefry2x32")`, of 0 <= seed < 2^32.

    Raises:
        ValueError: if the seed is no such integer.  A traced one is taken modulo 2^32.
    """
    words = jnp.asarray([0, check_integer("seed", seed)], jnp.uint32)
    return jax.random.wrap_key_data(words, impl=GENERATOR)


def fold_in_each(key: jax.Array, numbers: jax.Array) -> jax.Array:
    """fold_in(key, n) for each of numbers [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)


def check_integer(name: str, value: Any, below: int = SEED_LIMIT) -> Any:
    """The value, which must be an integer in 0 .. below - 1; of a traced one only its type is known.

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
    """Refuses a seed that is none, or images of it that there are not.

    Raises:
        ValueError: naming the value.
    """
    check_integer("seed", seed)
    if start < 0 or num < 1 or start + num > MAX_IMAGES:
        raise ValueError(
            f"images have indices 0..{MAX_IMAGES - 1}: start must be at least 0, num at least 1, and start + num at "
            f"most {MAX_IMAGES}, got {start} and {num}"
        )


def check_keys(name: str, keys: jax.Array) -> None:
    """Refuses what are not typed keys of the generator that gives each image of a batch its own draw.

    Raises:
        ValueError: naming it.
    """
    if not (isinstance(keys, jax.Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)):
        raise ValueError(f"{name} must be typed (jax.random.key), got {getattr(keys, 'dtype', type(keys).__name__)}")
    if str(jax.random.key_impl(keys)) != GENERATOR:
        raise ValueError(
            f"{name} must be of the generator {GENERATOR}, got {keys.dtype}: under vmap others do not give each "
            f'image a draw of its own; make them by keys.from_seed(seed) or jax.random.key(seed, impl="{GENERATOR}")'
        )


def example_keys(key: jax.Array, batch: int) -> jax.Array:
    """One key per example: `key` itself if it holds [B] keys, or key i = fold_in(key, i) from a single one.

    Whatever is drawn for an example is drawn from its own key, so it does not depend on the batch or the device
    that the example happens to be in.

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
    """So many independent sets of keys from one: set n has the keys fold_in(keys[i], n).  keys: [B]."""
    check_keys("keys", keys)
    return [jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n) for n in range(parts)]


def standard_normal(keys: jax.Array, like: jax.Array) -> jax.Array:
    """[B, ...] standard normal in the shape and dtype of `like`, example i drawn from keys[i]."""
    check_keys("keys", keys)
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(keys)
