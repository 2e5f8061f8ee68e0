"""The state of a run with `shard_update`: cut into shares for the devices, made whole for checkpoints and previews.

Checkpoints do not know of it: names and shapes are those of any other run.  See `training.make_step`.
"""

from typing import Any

import jax
import numpy as np
import optax

from ddpm_jax import process, training
from ddpm_jax.model import Model


def split_state(
    optimizer: optax.GradientTransformation, state: training.TrainState, devices: int
) -> training.TrainState:
    """The state with average and moments as `training.cut_shares`, and a copy [devices] of each count.

    Of numpy arrays on the host; of others for `jax.eval_shape`.
    """

    def split(kind: Any, part: Any) -> Any:
        if _is_shares(kind):
            return training.cut_shares(part, devices)
        return np.full(devices, part) if isinstance(part, np.ndarray) else jax.numpy.stack([part] * devices)

    ema = training.cut_shares(state.ema, devices)
    own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), ema)
    kinds = jax.eval_shape(optimizer.init, own)
    return state._replace(ema=ema, opt_state=jax.tree.map(split, kinds, state.opt_state, is_leaf=_is_shares))


def place_state(model: Model, state: training.TrainState) -> training.TrainState:
    """A whole state on the local devices, as the training step takes it."""
    if not model.config.shard_update:
        return process.replicate(state, "batch")
    split = split_state(model.optimizer, jax.tree.map(np.asarray, state), jax.device_count())
    shares = process.spread(process.local_shard((split.ema, split.opt_state)), "batch")
    return training.TrainState(*process.replicate((split.step, split.params), "batch"), *shares)


def whole_ema(model: Model, state: training.TrainState) -> training.Params:
    """The moving average of a state, whole on every local device; all processes must call it."""
    return process.replicate(_join(state.ema, state.params), "batch") if model.config.shard_update else state.ema


def whole_state(model: Model, state: training.TrainState) -> training.TrainState:
    """The inverse of `place_state`; all processes must call it.  Shares are gathered on the host."""
    if not model.config.shard_update:
        return state
    parts = state.ema, state.opt_state
    ema, opt_state = jax.tree.map(lambda part: _join(part, state.params), parts, is_leaf=_is_shares)
    return state._replace(ema=ema, opt_state=opt_state)


def _is_shares(part: Any) -> bool:
    return isinstance(part, dict)


def _join(part: Any, params: training.Params) -> Any:
    # a numpy view of a device's array would keep its buffer from being donated
    rows = process.all_gather(jax.tree.map(np.array, part))
    return training.join_shares(rows, params) if _is_shares(part) else rows[0]
