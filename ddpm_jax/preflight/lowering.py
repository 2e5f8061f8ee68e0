"""The programs of a training run, lowered for given devices: local ones, or those of a TPU slice."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import conditions, data, keys, trainer, training
from ddpm_jax import config as configs
from ddpm_jax.data.device_loader import is_streamed
from ddpm_jax.model import Model, build
from ddpm_jax.pipeline import tiles

DEFAULT_NUM_IMAGES = 50_000
"""Number of training images where only their shape is given."""


def load_images(config: configs.Config, shape: tuple[int, ...], number: int | None) -> data.Dataset:
    """The training images as the config's source has them, or placeholders that take no memory.

    Args:
        shape: (H, W, C) or (D, H, W, C) of placeholders; () reads the source.
        number: of placeholders; None is 50,000.

    Raises:
        ValueError: if the source cannot be read and there is no shape, or the shape is not one.
    """
    if shape:
        count, held = DEFAULT_NUM_IMAGES if number is None else number, config.evaluation.images
        if len(shape) not in (3, 4):
            raise ValueError(f"--shape must be H W C, or D H W C of volumes, got {' '.join(map(str, shape))}")
        levels = 256 if config.data.levels is None else config.data.levels
        one = np.zeros((), np.uint8 if levels <= 256 else np.uint16)
        train, test = np.broadcast_to(one, (count, *shape)), np.broadcast_to(one, (held, *shape))
        # with labels and captions for a conditional network
        return data.Dataset(
            train, test, np.zeros(count, np.int32), np.zeros(held, np.int32), levels,
            f"{count:,} images that stand in for {config.data.source}",
            train_captions=("",) * count, test_captions=("",) * held,
        )  # fmt: skip
    if number is not None:
        raise ValueError(f"--images {number} needs --shape H W C: otherwise the images of the source count")
    try:
        return conditions.load_images(config.data)
    except FileNotFoundError as error:
        raise ValueError(
            f"{error}. Without the data, give the shape of the images, for example --shape 32 32 3, and their number, "
            f"--images N (default {DEFAULT_NUM_IMAGES:,})"
        ) from error


def train_state(model: Model) -> training.TrainState:
    """The shapes of the state of a run."""
    return jax.eval_shape(model.init_state, _key_shape())


def state_bytes(model: Model) -> int:
    """Bytes of the state's arrays, as they are in host memory."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(train_state(model)))


def params_bytes(model: Model) -> int:
    """Bytes of the parameters alone, or of their average."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(train_state(model).params))


def device_state_bytes(model: Model, devices: int) -> int:
    """Bytes of the state on each of so many devices."""
    whole, own = state_bytes(model), params_bytes(model)
    return own + (whole - own) // devices if model.config.shard_update else whole


def lower_train_step(model: Model, images: data.Dataset, devices: Sequence[Any]) -> jax.stages.Lowered:
    """The training step, lowered as `train.py` has it: the state whole or in shares, the batch spread.

    Raises:
        ValueError: if the batch does not divide over the devices, or a device's batch not into its micro-batches.
    """
    config = model.config
    if config.batch % len(devices):
        near = -(-config.batch // len(devices)) * len(devices)
        raise ValueError(
            f"batch must be divisible by the number of devices, got {config.batch} over {len(devices)}; --batch {near} "
            f"is {near // len(devices)} on each"
        )
    body = trainer.train_step(model, trainer.example_losses(model), devices[0].platform)
    places = jax.ShapeDtypeStruct((len(devices), config.steps_per_call, config.batch // len(devices)), jnp.int32)
    streamed = is_streamed(images.train, config.data.stream)
    step = trainer.parallelise(
        body, 0 if streamed else None, devices, by=config.parallel, shard_update=config.shard_update
    )
    one, dtype = images.train.shape[1:], images.train.dtype
    pixels: Any = jax.ShapeDtypeStruct((*places.shape, *one), dtype)
    if not streamed:
        pixels = data.FlatImages(jax.ShapeDtypeStruct((len(images.train), math.prod(one)), dtype), one)
    several = len({device.process_index for device in devices}) > 1
    stop_flag, bad = jax.ShapeDtypeStruct(places.shape[:1], jnp.float32) if several else None, jnp.int32(0)
    rows = _batched_shapes(conditions.DatasetConditions(config, images).gather(np.zeros(1, int)), places.shape)
    state = train_state(model)
    if config.shard_update:
        state = jax.eval_shape(lambda whole: trainer.split_state(model.optimizer, whole, len(devices)), state)
    return step.lower(_key_shape(), state, bad, pixels, places, rows, stop_flag)


def device_pixel_bytes(config: configs.Config, images: data.Dataset, devices: int) -> int:
    """Bytes of images on each device: all of them, or its share of the steps of this call and of the next."""
    if not is_streamed(images.train, config.data.stream):
        return images.train.nbytes
    return 2 * config.steps_per_call * config.batch // devices * images.train.nbytes // len(images.train)


def lower_sampler(model: Model, devices: Sequence[Any]) -> jax.stages.Lowered:
    """The sampler, lowered as training and `sample.py` have it: a tile of images on each device."""
    factory, shape = tiles.sampler_factory(model), (len(devices),)
    indices = jax.ShapeDtypeStruct((model.tile_size(devices[0].platform),), jnp.uint32)
    tile = tiles.Tile(indices, _batched_shapes(model.empty_condition(1), indices.shape))
    inputs = tiles.SamplerInputs(train_state(model).params, model.scalars())
    state = jax.eval_shape(tiles.begin_function(factory, model.shape), inputs, _key_shape(), tile, jnp.int32(0))
    in_axes = None, None, 0, 0, None
    advance = tiles.parallelise(tiles.advance_function(factory), model.config.parallel, devices, in_axes)
    on_devices = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*shape, *leaf.shape), leaf.dtype), (tile, state))
    size = tiles.piece_steps(len(model.times) - 1, indices.size * math.prod(model.shape))
    return advance.lower(inputs, _key_shape(), *on_devices, model.times[: size + 1])


def lower_evaluation(model: Model, images: data.Dataset, devices: Sequence[Any]) -> jax.stages.Lowered:
    """The held-out evaluation, lowered as training has it: the first device computes the whole batch."""
    run = trainer.Run(model, pathlib.Path(), images, key=None, interrupt=None)
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    count = min(model.config.batch, run.num_held_out)
    shapes = train_state(model).params
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
    own = jax.eval_shape(lambda: jax.random.split(keys.from_seed(0), count))
    examples = jax.ShapeDtypeStruct((count, *model.shape), jnp.float32), model.empty_condition(count)
    return run.evaluation_program.lower(params, own, examples)


def step_flops(model: Model, images: data.Dataset, devices: int) -> float:
    """Floating-point operations of a training step on each of so many devices.

    They are counted in the program before the compiler changes it, as a CPU has it in bfloat16: with plain
    convolutions, not Winograd's, and without loops over micro-batches and steps, of which it would know only one.
    """
    alone = dataclasses.replace(
        model.config,
        batch=model.config.batch // devices,
        steps_per_call=1,
        optim=dataclasses.replace(model.config.optim, accumulate=1),
        net=dataclasses.replace(model.config.net, dtype="bfloat16"),
    )
    alone = build(alone, model.shape, model.levels)
    return (lower_train_step(alone, images, jax.local_devices()[:1]).cost_analysis() or {}).get("flops", float("nan"))


def _batched_shapes(one: Any, shape: tuple[int, ...]) -> Any:
    """The conditions of images [*shape], as shapes, from those of one image [1]."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*shape, *leaf.shape[1:]), leaf.dtype), one)


def _key_shape() -> Any:
    return jax.eval_shape(lambda: keys.from_seed(0))
