"""Order of the training images and their preparation in the step: pure functions of (seed, step).

Without an iterator or state, a resumed run sees the images that an uninterrupted one would have seen, on any number of
devices or processes: each computes the order of the whole batch and takes its part.
"""

import dataclasses
import functools
import operator
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.images import ValueRange, normalize
from ddpm_jax.keys import check_integer, check_keys

# "flip" in ASCII.  An image's key also serves its timestep, its noise and its dropout: draws must not repeat.
FLIP = 0x666C6970


class EpochShuffle:
    """The order of `size` training examples: consecutive shuffled epochs, without replacement.

    Epoch e is `jax.random.permutation(jax.random.fold_in(key, e), size)`, made when first needed; the two latest are
    kept, since a batch may span two epochs.

    Raises:
        ValueError: if the key is not one typed key (`jax.random.key`), or size is not in 1 .. 2^31 - 1.
    """

    def __init__(self, key: jax.Array, size: int) -> None:
        _check_keys("EpochShuffle", key, ())
        if not 1 <= size < 2**31:
            raise ValueError(f"EpochShuffle: expected a size of 1 to 2^31 - 1 examples, got {size}")

        @functools.lru_cache(maxsize=2)
        def make_epoch(epoch: int) -> np.ndarray:
            return np.asarray(_permutation(key, np.uint32(check_integer("epoch", epoch)), size))

        self._size, self._epoch = size, make_epoch
        self._lock = threading.Lock()  # batches are read ahead in threads

    def indices(self, step: int, batch: int) -> np.ndarray:
        """The examples of step `step` = 0, 1, ..., with `batch` examples per step.

        Returns:
            int32 [batch], each in 0 .. size - 1.  A batch may hold parts of any number of epochs.

        Raises:
            ValueError: if step < 0 or batch < 1.
        """
        step, batch = operator.index(step), operator.index(batch)
        if step < 0 or batch < 1:
            raise ValueError(f"EpochShuffle.indices: expected step >= 0 and batch >= 1, got step={step}, batch={batch}")
        start, stop = step * batch, (step + 1) * batch
        parts = []
        with self._lock:
            for epoch in range(start // self._size, (stop - 1) // self._size + 1):
                epoch_start = epoch * self._size
                parts.append(self._epoch(epoch)[max(start - epoch_start, 0) : stop - epoch_start])
        return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=2)
def _permutation(key: jax.Array, epoch: jax.Array, size: int) -> jax.Array:
    return jax.random.permutation(jax.random.fold_in(key, epoch), jnp.arange(size, dtype=jnp.int32))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["flat"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True)
class FlatImages:
    """Images on a device as rows of numbers, for gathering some of them.

    A TPU would lay out [N, H, W, C] with N along its lanes, and copy all images in every step to gather a few.

    Attributes:
        flat: [N, H W C].
        shape: of an image, (H, W, C) or (D, H, W, C).
    """

    flat: Any
    shape: tuple[int, ...]

    def __getitem__(self, indices: jax.Array) -> jax.Array:
        return self.flat[indices].reshape(*indices.shape, *self.shape)


@functools.partial(jax.jit, static_argnames=("levels", "flip"))
def gather_examples(
    keys: jax.Array, images: jax.Array | FlatImages, indices: jax.Array, *, levels: int | ValueRange, flip: bool
) -> jax.Array:
    """The images at `indices` as network inputs: in [-1, 1], with `flip` mirrored left to right with probability 1/2.

    The flip of example i depends on keys[i] alone.  It is meant for the inside of the training step: keep `images` on
    the device and pass them as an argument (closed over, they would be compiled into the program).

    Args:
        keys: typed keys [b], one for each example.
        images: uint8 or uint16 [N, H, W, C] or [N, D, H, W, C], values 0 .. levels - 1; float32 in a range.  Where N
            is large, `FlatImages` of them.
        indices: integers [b] in 0 .. N - 1; as in any compiled gather, others are not detected.
        flip: mirror images; not for digits or text.

    Returns:
        float32 [b, H, W, C], or [b, D, H, W, C], of which the last axis but one is mirrored.

    Raises:
        ValueError: if keys are not typed keys [b], images not integers [N, H, W, C], or indices not integers [b].
    """
    if indices.ndim != 1 or not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"gather_examples: expected integer indices [b], got {indices.dtype} {indices.shape}")
    _check_keys("gather_examples", keys, indices.shape)
    examples = images[indices]
    if examples.ndim not in (4, 5):
        raise ValueError(f"gather_examples: expected images [N, H, W, C], got shape {images.shape}")
    return normalize(random_flip(keys, examples) if flip else examples, levels)


def random_flip(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Images [b, ..., W, C], each mirrored left to right with probability 1/2 by its key of keys [b]."""
    check_keys("keys", keys)
    half = np.float32(0.5)
    flipped = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, FLIP), half))(keys)
    return jnp.where(jnp.expand_dims(flipped, range(1, images.ndim)), images[..., ::-1, :], images)


def _check_keys(caller: str, keys: jax.Array, shape: tuple[int, ...]) -> None:
    check_keys(f"{caller}: keys", keys)
    if keys.shape != shape:
        raise ValueError(f"{caller}: expected keys of shape {shape}, got {keys.shape}")
