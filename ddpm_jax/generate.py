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

from ddpm_jax import process, samplers

Program = Callable[[Any, jax.Array, Any], Any]
"""(params, key, tile) -> results: what one device does with a tile, such as the indices of the images to draw."""


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
    params: Any,
    *,
    seed: int,
    start: int,
    num: int,
    tile: int,
    batch: int | None = None,
) -> Iterator[Drawn]:
    """Images start ... start + num - 1 of a seed, in order, as their tiles are done.

    Args:
        mapped: what `over_devices` made.
        seed: image i has the key fold_in(key(seed), i).
        tile: images per device and network call.
        batch: how many images to have in flight; None is two rounds over the devices.

    Raises:
        ValueError: if start < 0, num < 1, or tile or batch is below 1.
    """
    if start < 0 or num < 1 or tile < 1 or (batch is not None and batch < 1):
        raise ValueError(f"need start >= 0 and num, tile, batch >= 1, got {start=}, {num=}, {tile=}, {batch=}")
    key, everywhere = jax.random.key(seed), jax.device_count()
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
        flying.append((group, mapped(params, key, jnp.asarray(process.share(indices)))))
        if len(flying) >= ahead:
            yield from landed()
    while flying:
        yield from landed()


def program(
    sampler: Callable[[Any], samplers.Sampler], times: np.ndarray, shape: tuple[int, ...], keep: Sequence[int] = ()
) -> Program:
    """What one device does with one tile: (params, key, indices [n]) -> x [n, *shape].

    Args:
        sampler: params -> the sampler of a network with these parameters.
        times: the times to visit, see `samplers.times`.
        shape: of one image, (H, W, C).
        keep: times to keep; with any, the result is [n, 2, len(keep), *shape]: x_t and the x_0 predicted on the way.
    """

    def tile(params: Any, key: jax.Array, indices: jax.Array) -> jax.Array:
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
        x_T = samplers.initial_noise(keys, shape)
        if not len(keep):
            return samplers.sample(keys, sampler(params), x_T, times)
        kept = samplers.trajectory(keys, sampler(params), x_T, times, keep=keep)
        return jnp.moveaxis(jnp.stack([kept.x, kept.x0]), 2, 0)

    return tile
