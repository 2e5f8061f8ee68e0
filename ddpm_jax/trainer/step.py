"""The training step that a config stands for, and the keys of a run."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import config as configs
from ddpm_jax import data, gaussian, guidance, keys, losses, training
from ddpm_jax.config import objects
from ddpm_jax.guidance import Condition


def run_keys(seed: int):
    """The keys of a run: for its parameters, its steps, the order of its data, its evaluations."""
    return _split_run_keys(keys.from_seed(seed))


@jax.jit
def _split_run_keys(key):
    return tuple(jax.random.split(jax.random.fold_in(key, keys.TRAINING_STREAM), 4))


def example_losses(config: configs.Config, schedule, net, levels: int | data.ValueRange):
    """(params, keys [b], pixels [N, ...], places [b], t [b] | None, rows) -> (loss [b], t [b]).

    The examples are pixels[places], pixels as the data have them; a t of None is drawn from their keys; `rows` is what
    is said of them, see `said.DatasetConditions.gather`.
    """
    loss_of = objects.example_loss(config, levels)

    def losses_of(params, keys, pixels, places, t, rows):
        flip_keys, time_keys, draw_keys, dropout_keys, said_keys = gaussian.split_keys(keys, 5)
        x0 = data.gather_examples(flip_keys, pixels, places, levels=levels, flip=config.data.flip)
        t = losses.uniform_times(time_keys, config.schedule.T) if t is None else t
        if rows.image is not None and config.data.flip:
            rows = rows._replace(image=data.random_flip(flip_keys, rows.image))
        if config.condition.super_resolution_factor:
            rows = rows._replace(image=guidance.block_average(x0, config.condition.super_resolution_factor))
        condition = training_condition(config, said_keys, rows)

        def predict(x_t, t):
            dropped = dropout_keys if config.net.dropout else None
            return net.apply({"params": params}, x_t, t, condition, dropout_keys=dropped)

        return loss_of(draw_keys, schedule, predict, x0, t), t

    return losses_of


def stratified_times(config: configs.Config, key, step, places):
    """The times of a step's examples at `places` of the whole batch; None where each example draws its own."""
    if not config.loss.stratified:
        return None
    shared = jax.random.fold_in(jax.random.fold_in(key, step), config.batch)
    return losses.stratified_times(shared, config.schedule.T, places, config.batch)


def train_step(config: configs.Config, schedule, net, optimizer, levels: int | data.ValueRange):
    """(key, state, bad, pixels [N, ...], places [b], rows) -> (state, metrics): what each device does in a step.

    The examples are pixels[places], and `rows` what is said of them.  `bad` [] counts the steps in a row before this
    one that were skipped; from `optim.max_skipped` on all are, so that what is left is what the last good step left,
    however late the host hears of it.
    """
    losses_of, T = example_losses(config, schedule, net, levels), config.schedule.T

    def step(key, state, bad, pixels, places, rows):
        def loss_fn(params, keys, batch):
            loss, t = losses_of(params, keys, pixels, batch["index"], batch.get("t"), batch["condition"])
            quarter = jax.nn.one_hot((t - 1) * 4 // T, 4)
            mean = jnp.where(bad < config.optim.max_skipped, loss.mean(), jnp.nan)
            return mean, {"quarter_loss": (loss[:, None] * quarter).mean(0), "quarter_share": quarter.mean(0)}

        here = jax.lax.axis_index("batch") * places.shape[0] + jnp.arange(places.shape[0])
        t = stratified_times(config, key, state.step, here)
        batch = {"index": places, "condition": rows} | ({} if t is None else {"t": t})
        gradient_step = training.make_step(
            loss_fn, optimizer, ema_decay=objects.ema_decay(config), accumulate=config.optim.accumulate,
            axis_name="batch", has_aux=True,
        )  # fmt: skip
        return gradient_step(key, state, batch)

    return step


def parallelise(step, pixels_axis: int | None, devices: Sequence[Any] | None = None):
    """k training steps on all devices: (key, state, bad, pixels, places, rows, stop) -> (state, bad, metrics).

    Key, state and bad are whole on every device, and the state is donated; `pixels_axis` is `stream.Feed.axis`; pixels
    and places [devices, k, b] are those of `stream.Batch`, and `rows` is `said.DatasetConditions.device_batch`.
    The last argument is what `stop_flag` says.  `bad` [] int32 counts skipped steps in a row up to here, 0 at first.
    Metrics are [k, ...] but for the flag's.

    Args:
        step: see `train_step`.
        devices: those that the step is for, if not all.
    """
    return jax.pmap(
        _with_stop_flag(_scan_steps(step, pixels_axis is not None)), axis_name="batch",
        in_axes=(None, None, None, pixels_axis, 0, 0, 0), out_axes=None, donate_argnums=1, devices=devices,
    )  # fmt: skip


def _scan_steps(step, streamed: bool):
    """As many steps, one after the other, as there are places [k, b] for; `streamed` pixels are [k, b, ...]."""

    def steps(key, state, bad, pixels, places, rows):
        def scan_body(carry, each):
            state, bad = carry
            shown, places, rows = each
            state, metrics = step(key, state, bad, shown if streamed else pixels, places, rows)
            return (state, jnp.where(metrics["skipped"], bad + 1, 0)), metrics

        each = (pixels if streamed else None, places, rows)
        if len(places) == 1:
            (state, bad), metrics = scan_body((state, bad), jax.tree.map(lambda leaf: leaf[0], each))
            return state, bad, jax.tree.map(lambda leaf: leaf[None], metrics)
        # XLA's CPU back end runs the backward convolutions of a while loop many times slower: no loop there
        unroll = len(places) if jax.default_backend() == "cpu" else 1
        (state, bad), metrics = jax.lax.scan(scan_body, (state, bad), each, unroll=unroll)
        return state, bad, metrics

    return steps


def stop_flag(stop: bool):
    """What one of several processes says with a step to all, on each of its devices; None if it is alone."""
    return np.full(jax.local_device_count(), stop, np.float32) if jax.process_count() > 1 else None


def _with_stop_flag(step):
    """Training steps with one more argument, a `stop_flag`, whose sum over all devices is their metric "stop".

    So several processes hear at the same call that one of them was asked to stop, at the cost of four bytes in what
    they exchange anyway (a sum of floats, like the gradients, so that it travels with them).  A flag of None changes
    nothing.
    """

    def with_stop_flag(key, state, bad, pixels, places, rows, stop):
        state, bad, metrics = step(key, state, bad, pixels, places, rows)
        return state, bad, metrics if stop is None else metrics | {"stop": jax.lax.psum(stop, "batch")}

    return with_stop_flag


def training_condition(config: configs.Config, keys, condition: Condition) -> Condition:
    """What training tells of examples with keys [b], given `DatasetConditions.gather`: one text of each, or nothing."""
    if not objects.is_conditional(config):
        return condition
    if condition.tokens is not None:
        condition = condition._replace(tokens=guidance.random_caption(keys, condition.tokens))
    null = guidance.null_condition(condition, config.net.num_classes)
    return guidance.drop_condition(keys, condition, null, config.condition.dropout)
