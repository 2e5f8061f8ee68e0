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

from ddpm_jax import config as configs
from ddpm_jax import keys, process, samplers
from ddpm_jax.model import Model, SamplingScalars

TileFunction = Callable[[Any, jax.Array, Any], Any]
"""(inputs, key, tile) -> results: what one device does with a tile, given what is the same for all, the parameters."""


class Tile(NamedTuple):
    """The images of a tile: their indices [n], and a pytree of arrays [n, ...], their conditions."""

    indices: Any
    condition: Any


class SamplerInputs(NamedTuple):
    """The arguments of a program that draws: other values need no other program.

    params: the network's.
    times: int32 [steps + 1], to visit.
    scalars: of `Model.scalars`.
    """

    params: Any
    times: Any
    scalars: SamplingScalars


class Drawn(NamedTuple):
    """A run of images: their indices [n], and the images x [n, ...] in data units, float32."""

    indices: np.ndarray
    x: np.ndarray


def parallelise(tile_program: TileFunction, by: configs.Parallel = "pmap", devices: Sequence[Any] | None = None) -> Any:
    """A tile's program over all devices, a tile each: (params, key, tiles [devices, ...]).

    With several processes each passes and gets the rows of its own devices, see `process.local_shard` and
    `all_gather`.
    Compiled once, at its first call: keep it for as long as images are drawn.  See `process.map_over_devices`.
    """
    return process.map_over_devices(tile_program, by, axis_name="tiles", in_axes=(None, None, 0), devices=devices)


def draw(
    mapped: TileFunction,
    inputs: Any,
    *,
    seed: int,
    start: int,
    num: int,
    tile: int,
    batch: int | None = None,
    conditions: Callable[[np.ndarray], Any] = lambda indices: None,
) -> Iterator[Drawn]:
    """Images start ... start + num - 1 of a seed, in order, as their tiles are done.

    Args:
        mapped: what `parallelise` made of a `tile_function`.
        inputs: what `tile_function` passes to its sampler factory, on the host or on the devices.
        seed: image i has the key fold_in(key(seed), i), see `keys`.
        tile: images per device and network call.
        batch: how many images to have in flight; None is two rounds over the devices.
        conditions: indices [n] -> arrays [n, ...], the conditions of these images: of each by its index alone.

    Raises:
        ValueError: if start < 0, num < 1, or tile or batch is below 1; or there is no such seed or image.
    """
    if start < 0 or num < 1 or tile < 1 or (batch is not None and batch < 1):
        raise ValueError(f"need start >= 0 and num, tile, batch >= 1, got {start=}, {num=}, {tile=}, {batch=}")
    keys.check_images(seed, start, num)
    key, num_devices = keys.from_seed(seed), jax.device_count()
    numbers = np.arange(start // tile, (start + num - 1) // tile + 1)
    max_in_flight = 2 if batch is None else max(1, batch // (tile * num_devices))
    in_flight: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()

    def collect() -> Iterator[Drawn]:
        group, x = in_flight.popleft()
        indices = (group[:, None] * tile + np.arange(tile)).reshape(-1)
        wanted = (indices >= start) & (indices < start + num)
        flat = np.asarray(process.all_gather(x))[: len(group)].reshape(-1, *x.shape[2:])
        yield Drawn(indices[wanted], flat[wanted])

    for i in range(0, len(numbers), num_devices):
        group = numbers[i : i + num_devices]
        padded = np.pad(group, (0, num_devices - len(group)), mode="edge")
        indices = (padded[:, None] * tile + np.arange(tile)).astype(np.uint32)
        mine = process.local_shard(indices)
        rows = jax.tree.map(lambda leaf: leaf.reshape(*mine.shape, *leaf.shape[1:]), conditions(mine.reshape(-1)))
        in_flight.append((group, mapped(inputs, key, Tile(mine, rows))))
        if len(in_flight) >= max_in_flight:
            yield from collect()
    while in_flight:
        yield from collect()


def sampler_factory(model: Model) -> Callable[[SamplerInputs, Tile], tuple[samplers.Sampler, Any]]:
    """(inputs, tile) -> the model's sampler for the images of the tile, and the times to visit."""
    return lambda inputs, tile: (model.sampler(inputs.params, tile.condition, inputs.scalars), inputs.times)


def tile_function(
    sampler_factory: Callable[[Any, Tile], tuple[samplers.Sampler, Any]],
    shape: tuple[int, ...],
    save_at: Sequence[int] = (),
) -> TileFunction:
    """The program of one tile on one device: (inputs, key, Tile) -> x [n, *shape].

    Args:
        sampler_factory: (inputs, tile) -> the sampler of a network with its parameters, for the images of this tile,
            and the times to visit, see `samplers.times`: an array, so that others need no compilation, or settled by
            it.
        shape: of one image, (H, W, C).
        save_at: times to keep, of a chain whose times are settled; with any, the result is
            [n, 2, len(save_at), *shape]: x_t and the x_0 predicted on the way.
    """

    def tile(inputs: Any, key: jax.Array, tile: Tile) -> jax.Array:
        own = keys.fold_in_each(key, tile.indices)
        sampler, times = sampler_factory(inputs, tile)
        x_T = samplers.initial_noise(own, shape)
        if not len(save_at):
            return samplers.sample(own, sampler, x_T, times)
        states = samplers.trajectory(own, sampler, x_T, times, save_at=save_at)
        return jnp.moveaxis(jnp.stack([states.x, states.x0]), 2, 0)

    return tile
