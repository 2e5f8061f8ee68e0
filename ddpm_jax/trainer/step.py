"""The training step of a model, its first state, and the keys of a run."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ddpm_jax import config as configs
from ddpm_jax import data, guidance, keys, losses, process, training
from ddpm_jax.keys import split_keys
from ddpm_jax.model import Model, training_condition
from ddpm_jax.models.unet.parameters import drawn_on_host


def run_keys(seed: int):
    """The keys of a run: for its parameters, its steps, the order of its data, its evaluations."""
    return _split_run_keys(keys.from_seed(seed))


@jax.jit
def _split_run_keys(key):
    return tuple(jax.random.split(jax.random.fold_in(key, keys.TRAINING_STREAM), 4))


def init_params(model: Model, key) -> Any:
    """`model.init(key)` on the host, by numpy as far as possible: a program that runs once takes long to compile."""
    drawn = {}
    with drawn_on_host():
        jax.eval_shape(lambda: drawn.update(model.init(key)))

    def draw_traced(key):
        return jax.tree.map(lambda leaf, own: own if isinstance(leaf, Tracer) else None, drawn, model.init(key))

    # those of flax's own layers; on a CPU without optimisations, which take longer than they save
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(drawn)):
        traced = jax.jit(draw_traced, compiler_options=options)(key)
        return jax.tree.map(lambda leaf, own: leaf if own is None else np.asarray(own), drawn, traced)
    return drawn


def init_state(model: Model, params) -> training.TrainState:
    """The state before the first step, as `training.init` has it, on the host: nothing is compiled."""
    shapes = jax.eval_shape(lambda: training.init(params, model.optimizer))
    opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.opt_state)
    return shapes._replace(step=np.int32(0), params=params, ema=params, opt_state=opt_state)


def example_losses(model: Model):
    """(params, keys [b], pixels [N, ...], indices [b], t [b] | None, conditions) -> (loss [b], t [b]).

    The examples are pixels[indices], pixels as the data have them; a t of None is drawn from their keys; `conditions`
    are those of `DatasetConditions.gather`.
    """
    config = model.config

    def losses_of(params, keys, pixels, indices, t, conditions):
        flip_keys, time_keys, draw_keys, dropout_keys, condition_keys = split_keys(keys, 5)
        x0 = data.gather_examples(flip_keys, pixels, indices, levels=model.levels, flip=config.data.flip)
        t = losses.uniform_times(time_keys, config.schedule.T) if t is None else t
        if conditions.image is not None and config.data.flip:
            conditions = conditions._replace(image=data.random_flip(flip_keys, conditions.image))
        if config.condition.super_resolution_factor:
            low = guidance.block_average(x0, config.condition.super_resolution_factor)
            conditions = conditions._replace(image=low)
        condition = training_condition(config, condition_keys, conditions)
        net = model.net(params, condition, dropout_keys if config.net.dropout else None)
        return model.example_loss(draw_keys, model.schedule, net, x0, t), t

    return losses_of


def stratified_times(config: configs.Config, key, step, indices):
    """The times of a step's examples at these indices of the whole batch; None where each example draws its own."""
    if not config.loss.stratified:
        return None
    shared = jax.random.fold_in(jax.random.fold_in(key, step), config.batch)
    return losses.stratified_times(shared, config.schedule.T, indices, config.batch)


def train_step(model: Model, losses_of, platform: str | None = None):
    """(key, state, bad, pixels [N, ...], indices [b], conditions) -> (state, metrics): a step on each device.

    The mean loss of the examples pixels[indices], its gradient, averaged over the devices, and one update of the
    parameters and their moving average.  `bad` [] counts the steps in a row before this one that were skipped; from
    `optim.max_skipped` on all are, so that what is left is what the last good step left, however late the host hears
    of it.

    Args:
        losses_of: see `example_losses`.
        platform: as in `training.make_step`.
    """
    config, T = model.config, model.config.schedule.T

    def step(key, state, bad, pixels, indices, conditions):
        def loss_fn(params, keys, batch):
            loss, t = losses_of(params, keys, pixels, batch["index"], batch.get("t"), batch["condition"])
            quarter = jax.nn.one_hot((t - 1) * 4 // T, 4)
            mean = jnp.where(bad < config.optim.max_skipped, loss.mean(), jnp.nan)
            return mean, {"quarter_loss": (loss[:, None] * quarter).mean(0), "quarter_share": quarter.mean(0)}

        batch_positions = jax.lax.axis_index("batch") * indices.shape[0] + jnp.arange(indices.shape[0])
        t = stratified_times(config, key, state.step, batch_positions)
        batch = {"index": indices, "condition": conditions} | ({} if t is None else {"t": t})
        gradient_step = training.make_step(
            loss_fn, model.optimizer, ema_decay=model.ema_decay, accumulate=config.optim.accumulate,
            axis_name="batch", platform=platform, has_aux=True, shard_update=config.shard_update,
        )  # fmt: skip
        return gradient_step(key, state, batch)

    return step


def parallelise(
    step, pixels_axis: int | None, devices: Sequence[Any] | None = None, *, by: configs.Parallel = "pmap",
    shard_update: bool = False,
):  # fmt: skip
    """k training steps on all devices: (key, state, bad, pixels, indices, conditions, stop) -> (state, bad, metrics).

    Key, state and bad are whole on every device, and the state is donated; `pixels_axis` is `DeviceLoader.in_axis`;
    pixels and indices [devices, k, b] are those of its batches, conditions those of `DatasetConditions.device_batch`.
    The last argument is `stop_flag`'s.  `bad` [] int32 counts skipped steps in a row up to here, 0 at first.
    Metrics are [k, ...] but for the flag's.

    Args:
        step: see `train_step`.
        devices: those that the step is for, if not all.
        by: see `process.map_over_devices`.
        shard_update: the step's state is that of `sharded_update.split_state`, [devices, ...] where it is cut.
    """
    state_axes = training.TrainState._make((None, None, 0, 0)) if shard_update else None
    platform = devices[0].platform if devices else jax.default_backend()
    return process.map_over_devices(
        _scan_steps(step, pixels_axis is not None, platform), by, axis_name="batch",
        in_axes=(None, state_axes, None, pixels_axis, 0, 0, 0),
        out_axes=(state_axes, None, None) if shard_update else None, donate_argnums=1, devices=devices,
    )  # fmt: skip


def _scan_steps(step, streamed: bool, platform: str):
    """k consecutive steps for indices [k, b]; `streamed` pixels are [k, b, ...].

    The sum of the `stop_flag` over all devices is their metric "stop".  So several processes hear at the same call that
    one of them was asked to stop, at the cost of four bytes in what they exchange anyway (a sum of floats, like the
    gradients, so that it travels with them).
    """

    def steps(key, state, bad, pixels, indices, conditions, stop):
        def scan_body(carry, each):
            state, bad = carry
            shown, indices, conditions = each
            state, metrics = step(key, state, bad, shown if streamed else pixels, indices, conditions)
            return (state, jnp.where(metrics["skipped"], bad + 1, 0)), metrics

        each = (pixels if streamed else None, indices, conditions)
        if len(indices) == 1:
            (state, bad), metrics = scan_body((state, bad), jax.tree.map(lambda leaf: leaf[0], each))
            metrics = jax.tree.map(lambda leaf: leaf[None], metrics)
        else:
            # XLA's CPU back end runs the backward convolutions of a while loop many times slower: no loop there
            unroll = len(indices) if platform == "cpu" else 1
            (state, bad), metrics = jax.lax.scan(scan_body, (state, bad), each, unroll=unroll)
        return state, bad, metrics if stop is None else metrics | {"stop": jax.lax.psum(stop, "batch")}

    return steps


def stop_flag(stop: bool):
    """The stop flag that each of several processes sends with a step, once per device; None for one process."""
    return np.full(jax.local_device_count(), stop, np.float32) if jax.process_count() > 1 else None
