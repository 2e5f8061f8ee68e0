"""Images from trained parameters, tile by tile over the devices.

The bits of a convolution depend on the batch that it is computed in.  So the network always runs on tiles of one
size: tile k holds the images k * size ... (k + 1) * size - 1 of a seed, whichever of them were asked for, each with
noise from its own key.  An image is then the same, bit for bit, for any start and number of images, and for any number
of tiles in flight.

With several processes every one draws the tiles of its own devices, and the images of each round go to all of them.
"""

import collections
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import config as configs
from ddpm_jax import keys, process, samplers, tracking
from ddpm_jax.model import Model, SamplingScalars

TileFunction = Callable[[Any, jax.Array, Any], Any]
"""(inputs, key, tile) -> results: what one device does with a tile, given what is the same for all, the parameters."""

SamplerFactory = Callable[[Any, "Tile"], samplers.Sampler]
"""(inputs, tile) -> the sampler of a network with its parameters, for the images of the tile."""

TileProgram = Callable[[Any, jax.Array, "Tile"], Iterator[tuple[float, jax.Array]]]
"""(inputs, key, tiles [devices, ...]) -> the fraction done and x, after each piece of the work; the last x counts."""

MAX_PIECES = 20  # of a reverse process, whose progress is shown after each
MIN_PIECE = 100_000  # numbers in a tile times steps: on a CPU a piece waits for all devices, so it must be long


class Tile(NamedTuple):
    """The images of a tile: their indices [n], and a pytree of arrays [n, ...], their conditions."""

    indices: Any
    condition: Any


class SamplerInputs(NamedTuple):
    """The arguments of a program that draws: other values need no other program.

    params: the network's.
    scalars: of `Model.scalars`.
    """

    params: Any
    scalars: SamplingScalars


class Drawn(NamedTuple):
    """A run of images: their indices [n], and the images x [n, ...] in data units, float32."""

    indices: np.ndarray
    x: np.ndarray


def parallelise(
    tile_function: Callable[..., Any],
    by: configs.Parallel = "pmap",
    devices: Sequence[Any] | None = None,
    in_axes: tuple[int | None, ...] = (None, None, 0),
) -> Any:
    """A tile's function over all devices, a tile each: (inputs, key, tiles [devices, ...]).

    With several processes each passes and gets the rows of its own devices, see `process.local_shard` and
    `all_gather`.
    Compiled once, at its first call: keep it for as long as images are drawn.  See `process.map_over_devices`.
    """
    return process.map_over_devices(tile_function, by, axis_name="tiles", in_axes=in_axes, devices=devices)


def draw(
    program: TileProgram,
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
        program: of `sampling_program` or `trajectory_program`.
        inputs: what they pass to their sampler factory, on the host or on the devices.
        seed: image i has the key fold_in(key(seed), i), see `keys`.
        tile: images per device and network call.
        batch: how many images to have in flight, each with a piece of its work; None is two rounds over the devices.
        conditions: indices [n] -> arrays [n, ...], the conditions of these images: of each by its index alone.

    Raises:
        ValueError: if start < 0, num < 1, or tile or batch is below 1; or there is no such seed or image.
    """
    if start < 0 or num < 1 or tile < 1 or (batch is not None and batch < 1):
        raise ValueError(f"need start >= 0 and num, tile, batch >= 1, got {start=}, {num=}, {tile=}, {batch=}")
    keys.check_images(seed, start, num)
    (inputs, key), num_devices = process.replicate((inputs, keys.from_seed(seed)), "tiles"), jax.device_count()
    numbers = np.arange(start // tile, (start + num - 1) // tile + 1)
    max_in_flight = 2 if batch is None else max(1, batch // (tile * num_devices))
    in_flight: collections.deque[tuple[np.ndarray, float, jax.Array]] = collections.deque()

    def collect() -> Iterator[Drawn]:
        group, fraction, x = in_flight.popleft()
        indices = (group[:, None] * tile + np.arange(tile)).reshape(-1)
        wanted = (indices >= start) & (indices < start + num)
        if fraction < 1:
            jax.block_until_ready(x)
            tracking.show_part(fraction, int(wanted.sum()))
            return
        flat = np.asarray(process.all_gather(x))[: len(group)].reshape(-1, *x.shape[2:])
        yield Drawn(indices[wanted], flat[wanted])

    for i in range(0, len(numbers), num_devices):
        group = numbers[i : i + num_devices]
        padded = np.pad(group, (0, num_devices - len(group)), mode="edge")
        indices = (padded[:, None] * tile + np.arange(tile)).astype(np.uint32)
        mine = process.local_shard(indices)
        rows = jax.tree.map(lambda leaf: leaf.reshape(*mine.shape, *leaf.shape[1:]), conditions(mine.reshape(-1)))
        for fraction, x in program(inputs, key, Tile(mine, rows)):
            in_flight.append((group, fraction, x))
            if len(in_flight) >= max_in_flight:
                yield from collect()
    while in_flight:
        yield from collect()


def sampler_factory(model: Model) -> SamplerFactory:
    """The model's sampler, from `SamplerInputs` and a tile."""
    return lambda inputs, tile: model.sampler(inputs.params, tile.condition, inputs.scalars)


def sampling_program(
    sampler_factory: SamplerFactory,
    shape: tuple[int, ...],
    by: configs.Parallel = "pmap",
) -> Callable[..., Iterator[tuple[float, jax.Array]]]:
    """The `TileProgram` of images [n, *shape], with the further argument `times`: see `samplers.times`.

    It calls a program for each of up to 20 equal pieces of the times, so that progress can be shown; compiled with
    XLA's optimisations, the images are those of one scan, bit for bit.

    Args:
        shape: of one image, (H, W, C).
    """
    begin = parallelise(begin_function(sampler_factory, shape), by, in_axes=(None, None, 0, None))
    advance = parallelise(advance_function(sampler_factory), by, in_axes=(None, None, 0, 0, None))
    advance = tracking.show_first_call("compiling the sampler", advance)

    def run(inputs: Any, key: jax.Array, tile: Tile, times: np.ndarray) -> Iterator[tuple[float, jax.Array]]:
        steps = len(times) - 1
        state, size = begin(inputs, key, tile, times[0]), piece_steps(steps, tile.indices.shape[-1] * math.prod(shape))
        for i in range(0, steps, size):
            state = advance(inputs, key, tile, state, times[i : i + size + 1])
            yield (i + size) / steps, state.x

    return run


def piece_steps(steps: int, numbers: int) -> int:
    """The steps of a piece of a reverse process of so many, whose tile has so many numbers; all pieces are alike."""
    smallest = max(math.ceil(MIN_PIECE / numbers), math.ceil(steps / MAX_PIECES))
    return next((size for size in range(smallest, steps) if steps % size == 0), steps)


def begin_function(sampler_factory: SamplerFactory, shape: tuple[int, ...]) -> Callable[..., samplers.SamplerState]:
    """(inputs, key, tile, t) -> the sampler's state before the first step, which leaves t, on one device."""

    def begin(inputs: Any, key: jax.Array, tile: Tile, t: jax.Array) -> samplers.SamplerState:
        x_T = samplers.initial_noise(keys.fold_in_each(key, tile.indices), shape)
        return sampler_factory(inputs, tile).init(x_T, t)

    return begin


def advance_function(sampler_factory: SamplerFactory) -> Callable[..., samplers.SamplerState]:
    """(inputs, key, tile, state, times) -> the state at the last of `times`, on one device."""

    def advance(inputs: Any, key: jax.Array, tile: Tile, state: Any, times: jax.Array) -> samplers.SamplerState:
        return samplers.advance(keys.fold_in_each(key, tile.indices), sampler_factory(inputs, tile), state, times)

    return advance


def trajectory_program(trajectory: TileFunction, by: configs.Parallel = "pmap") -> TileProgram:
    """The `TileProgram` of a `trajectory_function`."""
    mapped = tracking.show_first_call("compiling the sampler", parallelise(trajectory, by))
    return lambda inputs, key, tile: iter([(1.0, mapped(inputs, key, tile))])


def trajectory_function(
    sampler_factory: SamplerFactory, shape: tuple[int, ...], times: np.ndarray, save_at: Sequence[int]
) -> TileFunction:
    """(inputs, key, tile) -> x_t and the x_0 predicted on the way, [n, 2, len(save_at), *shape], on one device.

    Args:
        shape: of one image, (H, W, C).
        times: to visit; other times are another program.
    """

    def trajectory(inputs: Any, key: jax.Array, tile: Tile) -> jax.Array:
        own = keys.fold_in_each(key, tile.indices)
        x_T = samplers.initial_noise(own, shape)
        states = samplers.trajectory(own, sampler_factory(inputs, tile), x_T, times, save_at=save_at)
        return jnp.moveaxis(jnp.stack([states.x, states.x0]), 2, 0)

    return trajectory
