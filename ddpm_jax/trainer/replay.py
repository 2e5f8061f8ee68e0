"""Takes a training step again that was not finite, on the CPU in float32, and names the layer where it began.

`train.py` leaves such a record when too many steps in a row were not finite: parameters and images of the first.  Its
keys follow from the run's seed, so times, noise, mirroring and dropout are those of the step.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ddpm_jax import config as configs
from ddpm_jax import data, trainer, training
from ddpm_jax.guidance import Condition
from ddpm_jax.model import build, empty_condition

CHUNK = 8
"""Examples at a time: each has its own keys, so that nothing depends on it."""


class Record(NamedTuple):
    """The record of a step that was not finite."""

    config: configs.Config
    step: int  # its number, from 1
    images: np.ndarray  # [batch, ...] as the data have them
    levels: int | data.ValueRange  # of the images
    params: Any  # before the step
    condition: Condition = Condition()  # the conditions of the images, see `DatasetConditions.gather`


class Replay(NamedTuple):
    """The result of a replay."""

    loss: float  # the mean over the batch
    times: np.ndarray  # [batch] t of each example
    losses: np.ndarray  # [batch]
    grad_norm: float  # of the mean loss, before clipping
    # the first layer in the order of the forward pass whose output is not finite, for the first example whose loss is
    # not; "" if there is none
    forward: str
    backward: str  # the first one in the order of the backward pass whose parameters have a gradient that is not finite

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def load_record(path: pathlib.Path) -> Record:
    """The record in a file, with the config of the run that it lies in.

    Raises:
        FileNotFoundError: if there is no such file, or no config.json beside it.
        ValueError: naming the file, if it is not such a record, is damaged, or is not of this run.
    """
    config_path = path.with_name("config.json")
    for file in (path, config_path):
        if not file.is_file():
            raise FileNotFoundError(f"no file {file}: a record must be in the folder of its run, next to config.json")
    config = configs.read(config_path)
    try:
        configs.check(config)
    except ValueError as error:
        raise ValueError(f"{config_path} is not the config of a run: {error}") from error
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as npz:  # numpy leaves it open where it fails
            params = {name: npz[name] for name in npz.files if name.startswith("params[")}
            condition = {name: npz[f"said.{name}"] for name in Condition._fields if f"said.{name}" in npz.files}
            step, levels, images = int(npz["step"]), npz["levels"].tolist(), npz["images"]
        leaves = {tuple(name.removeprefix("params")[2:-2].split("']['")): leaf for name, leaf in params.items()}
        levels = levels if isinstance(levels, int) else data.ValueRange(*levels)
        record = Record(config, step, images, levels, traverse_util.unflatten_dict(leaves), Condition(**condition))
        check_record(record)
    except Exception as error:  # an archive may be damaged in any way
        raise ValueError(f"{path} is not a record of a step, or not a whole one: {error}") from error
    return record


def check_record(record: Record) -> None:
    """Raises a ValueError with the reason if a record cannot be of a step of its run."""
    config, images, shape = record.config, record.images, record.images.shape[1:]
    if record.step < 1 or images.shape[:1] != (config.batch,):
        raise ValueError(f"step {record.step} of images {images.shape}, but the run's batch is {config.batch}")
    data.normalize(images[:1], record.levels)
    if isinstance(record.levels, int) and images.max() >= record.levels:
        raise ValueError(f"images hold the value {images.max()}, and have levels 0 to {record.levels - 1}")
    wanted, found = _expected_params(config, shape), _describe_params(record.params)
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            raise ValueError(f"{name} is {found.get(name)}, the run's network has {wanted.get(name)}")
    expected = empty_condition(config, config.batch, shape)._asdict()
    if config.condition.super_resolution_factor:
        expected["image"] = None  # the step makes these images itself
    for name, rows in record.condition._asdict().items():
        if (rows is None) != (expected[name] is None) or (rows is not None and len(rows) != config.batch):
            raise ValueError(f"the record has no {name}, or not for every image, or the network takes none")


@functools.lru_cache
def _expected_params(config: configs.Config, shape: tuple[int, ...]) -> dict[str, str]:
    init_key = trainer.run_keys(config.seed)[0]
    return _describe_params(jax.eval_shape(build(config, shape, levels=256).init, init_key))


def _describe_params(params: Any) -> dict[str, str]:
    leaves: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    return {name: f"{leaf.dtype} {leaf.shape}" for name, leaf in leaves.items()}


def replay(record: Record, dtype: str) -> Replay:
    """The step again, its network computed in `dtype`."""
    # without remat, which has the same values and traces layers, whose outputs could not be looked at
    net = dataclasses.replace(record.config.net, dtype=dtype, remat=False)
    config = dataclasses.replace(record.config, net=net)
    size, run_key = len(record.images), trainer.run_keys(config.seed)[1]

    def some(start: int, stop: int):
        """The arguments of the functions of `loss_and_gradient`, for the examples start ... stop - 1."""
        places, before = jnp.arange(start, min(stop, size)), record.step - 1
        keys = training.step_keys(run_key, before, places)
        t = trainer.stratified_times(config, run_key, before, places)
        rows = jax.tree.map(lambda leaf: leaf[start:stop], record.condition)
        return record.params, keys, record.images[start:stop], t, rows

    total, gradient = loss_and_gradient(config, record.images.shape[1:], record.levels)
    grads, found = jax.tree.map(np.zeros_like, record.params), []
    for start in range(0, size, CHUNK):
        more, aux = gradient(*some(start, start + CHUNK))
        with np.errstate(all="ignore"):  # what is not finite is looked for below
            grads = jax.tree.map(np.add, grads, jax.device_get(more))
        found.append(aux)
    grads = jax.tree.map(lambda leaf: leaf / size, grads)
    losses, times = (np.concatenate(parts) for parts in zip(*found, strict=True))

    bad = np.flatnonzero(~np.isfinite(losses))
    leaves: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(grads)
    spoilt = {"/".join(path[:-1]) for path, leaf in leaves.items() if not np.isfinite(leaf).all()}
    example = int(bad[0]) if len(bad) else 0
    layers = layer_outputs(lambda: total(*some(example, example + 1))) if len(bad) or spoilt else []
    forward = next((name for name, output in layers if not np.isfinite(output).all()), "") if len(bad) else ""
    backward = next((name for name, _ in reversed(layers) if name in spoilt), "")
    norm = math.sqrt(sum(float(np.square(leaf, dtype=np.float64).sum()) for leaf in jax.tree.leaves(grads)))
    return Replay(float(losses.mean()), times, losses, norm, forward, backward)


@functools.lru_cache
def loss_and_gradient(config: configs.Config, shape: tuple[int, ...], levels: int | data.ValueRange):
    """The sum of some examples' losses, with loss and time of each, and the compiled gradient of that sum."""
    losses_of = trainer.example_losses(build(config, shape, levels))

    def total(params, keys, images, t, rows):
        loss, times = losses_of(params, keys, images, jnp.arange(len(images)), t, rows)
        return loss.sum(), (loss, times)

    return total, jax.jit(jax.grad(total, has_aux=True))


def layer_outputs(call) -> list[tuple[str, np.ndarray]]:
    """The path and the output of every layer that has parameters or sublayers, in the order in which they end."""
    outputs: list[tuple[str, np.ndarray]] = []

    def watch(of, args, kwargs, context):
        result = of(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(result, jax.Array) and context.module.path:
            outputs.append(("/".join(context.module.path), np.asarray(result, np.float32)))
        return result

    with nn.intercept_methods(watch):
        call()
    return outputs


def report_lines(result: Replay, record: Record, dtype: str) -> Iterator[str]:
    """The lines that describe a replay."""
    yield f"in {dtype}: loss {result.loss:.6g}, norm of the gradient {result.grad_norm:.6g}"
    bad = np.flatnonzero(~np.isfinite(result.losses))
    if len(bad):
        worst = ", ".join(f"{i} at t = {result.times[i]}" for i in bad[:5])
        yield f"  the loss of {len(bad)} of {len(record.images)} examples is not finite: {worst}"
        where = result.forward or "no layer: it is the loss itself"
        yield f"  forward, the first output that is not finite is that of {where}"
    if result.backward:
        yield f"  backward, the first gradient that is not finite is that of {result.backward}"
    if result.finite:
        yield "  finite: the step can be taken so"


def largest_parameter(record: Record) -> str:
    """The parameter of the largest value, or the first that is not finite."""
    leaves: dict[str, Any] = traverse_util.flatten_dict(record.params, sep="/")
    sizes = {name: float(np.abs(leaf).max()) for name, leaf in leaves.items()}
    name = next((name for name, size in sizes.items() if not math.isfinite(size)), max(sizes, key=sizes.__getitem__))
    return f"{sizes[name]:.4g} in {name}"
