"""The training step that a config stands for, and the keys of a run."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import config as configs
from ddpm_jax import data, gaussian, losses, training
from ddpm_jax.config import objects


def keys_of(seed: int):
    """The keys of a run: for its parameters, its steps, the order of its data, its evaluations."""
    # image i of a seed has fold_in(key(seed), i): training takes an index that no image has
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), 2**32 - 1), 4)


def train_step(config: configs.Config, schedule, net, optimizer, levels: int | data.Range):
    """(key, state, pixels [N, ...], indices [b]) -> (state, metrics): what each device does in a step."""
    loss_of = objects.example_loss(config, levels)
    T = config.schedule.T

    def step(key, state, pixels, indices):
        def loss_fn(params, keys, batch):
            flip_keys, time_keys, draw_keys, dropout_keys = gaussian.split_keys(keys, 4)
            x0 = data.examples(flip_keys, pixels, batch["index"], levels=levels, flip=config.data.flip)
            t = batch["t"] if config.loss.stratified else losses.uniform_times(time_keys, T)

            def predict(x_t, t):
                return net.apply({"params": params}, x_t, t, dropout_keys=dropout_keys if config.net.dropout else None)

            loss = loss_of(draw_keys, schedule, predict, x0, t)
            quarter = jax.nn.one_hot((t - 1) * 4 // T, 4)
            return loss.mean(), {"quarter_loss": (loss[:, None] * quarter).mean(0), "quarter_share": quarter.mean(0)}

        batch = {"index": indices}
        if config.loss.stratified:
            shared = jax.random.fold_in(jax.random.fold_in(key, state.step), config.batch)
            place = jax.lax.axis_index("batch") * indices.shape[0] + jnp.arange(indices.shape[0])
            batch["t"] = losses.stratified_times(shared, T, place, config.batch)
        take = training.make_step(
            loss_fn, optimizer, ema_decay=objects.ema_decay(config), accumulate=config.optim.accumulate,
            axis_name="batch", has_aux=True,
        )  # fmt: skip
        return take(key, state, batch)

    return step


def word(stop: bool):
    """What one of several processes says with a step to all, on each of its devices; None if it is alone."""
    return np.full(jax.local_device_count(), stop, np.int32) if jax.process_count() > 1 else None


def spreading_word(step):
    """A training step with one more argument, a `word`, whose largest value over all devices is its metric "word".

    So several processes hear in the same step that one of them was asked to stop, at the cost of four bytes in what
    they exchange anyway.  A word of None changes nothing.
    """

    def with_word(key, state, pixels, indices, word):
        state, metrics = step(key, state, pixels, indices)
        return state, metrics if word is None else metrics | {"word": jax.lax.pmax(word, "batch")}

    return with_word
