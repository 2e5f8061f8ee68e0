"""Images from trained parameters, tile by tile over the devices.

The bits of a convolution depend on the batch that it is computed in.  So the network always runs on tiles of one
size: tile k holds the images k * size ... (k + 1) * size - 1 of a seed, whichever of them were asked for, each with
noise from its own key.  An image is then the same, bit for bit, for any start and number of images, and for any number
of tiles in flight.

With several processes every one draws the tiles of its own devices, and the images of each round go to all of them.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import keys, process, samplers

Program = Callable[[Any, jax.Array, Any], Any]
"""(inputs, key, tile) -> results: what one device does with a tile, given what is the same for all, the parameters."""


class Tile(NamedTuple):
    """The images of a tile: their indices [n], and a pytree of arrays [n, ...], what is said of each."""

    indices: Any
    said: Any


class Drawn(NamedTuple):
    """A run of images: their indices [n], and the images x [n, ...] in data units, float32."""

    indices: np.ndarray
    x: np.ndarray


def over_devices(program: Program) -> Program:
    """A tile's program over all devices, a tile each: (params, key, tiles [devices, ...]).

    With several processes each passes and gets the rows of its own devices, see `process.share` and `gathered`.
    Compiled once, at its first call: keep it for as long as images are drawn.
    """
    return jax.pmap(program, axis_name="tiles", in_axes=(None, None, 0))


def draw(
    mapped: Program,
    inputs: Any,
    *,
    seed: int,
    start: int,
    num: int,
    tile: int,
    batch: int | None = None,
    said: Callable[[np.ndarray], Any] = lambda indices: None,
) -> Iterator[Drawn]:
    """Images start ... start + num - 1 of a seed, in order, as their tiles are done.

    Args:
        mapped: what `over_devices` made of a `program`.
        inputs: what `program` passes to its chain, on the host or on the devices.
        seed: image i has the key fold_in(key(seed), i), see `keys`.
        tile: images per device and network call.
        batch: how many images to have in flight; None is two rounds over the devices.
        said: indices [n] -> arrays [n, ...], what is said of these images: of each by its index alone.

    Raises:
        ValueError: if start < 0, num < 1, or tile or batch is below 1; or there is no such seed or image.
    """
    if start < 0 or num < 1 or tile < 1 or (batch is not None and batch < 1):
        raise ValueError(f"need start >= 0 and num, tile, batch >= 1, got {start=}, {num=}, {tile=}, {batch=}")
    keys.check_images(seed, start, num)
    key, everywhere = keys.of_seed(seed), jax.device_count()
    numbers = np.arange(start // tile, (start + num - 1) // tile + 1)
    ahead = 2 if batch is None else max(1, batch // (tile * everywhere))
    flying: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()

    def landed() -> Iterator[Drawn]:
        group, x = flying.popleft()
        indices = (group[:, None] * tile + np.arange(tile)).reshape(-1)
        wanted = (indices >= start) & (indices < start + num)
        flat = np.asarray(process.gathered(x))[: len(group)].reshape(-1, *x.shape[2:])
        yield Drawn(indices[wanted], flat[wanted])

    for i in range(0, len(numbers), everywhere):
        group = numbers[i : i + everywhere]
        padded = np.pad(group, (0, everywhere - len(group)), mode="edge")
        indices = (padded[:, None] * tile + np.arange(tile)).astype(np.uint32)
        mine = process.share(indices)
        rows = jax.tree.map(lambda leaf: leaf.reshape(*mine.shape, *leaf.shape[1:]), said(mine.reshape(-1)))
        flying.append((group, mapped(inputs, key, Tile(mine, rows))))
        if len(flying) >= ahead:
            yield from landed()
    while flying:
        yield from landed()


def program(
    chain: Callable[[Any, Tile], tuple[samplers.Sampler, Any]], shape: tuple[int, ...], keep: Sequence[int] = ()
) -> Program:
    """What one device does with one tile: (inputs, key, Tile) -> x [n, *shape].

    Args:
        chain: (inputs, tile) -> the sampler of a network with its parameters, for the images of this tile, and the
            times to visit, see `samplers.times`: an array, so that others need no compilation, or settled by it.
        shape: of one image, (H, W, C).
        keep: times to keep, of a chain whose times are settled; with any, the result is [n, 2, len(keep), *shape]:
            x_t and the x_0 predicted on the way.
    """

    def tile(inputs: Any, key: jax.Array, tile: Tile) -> jax.Array:
        own = keys.folded(key, tile.indices)
        sampler, times = chain(inputs, tile)
        x_T = samplers.initial_noise(own, shape)
        if not len(keep):
            return samplers.sample(own, sampler, x_T, times)
        kept = samplers.trajectory(own, sampler, x_T, times, keep=keep)
        return jnp.moveaxis(jnp.stack([kept.x, kept.x0]), 2, 0)

    return tile
