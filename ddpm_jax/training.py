"""The training step as a pure function, its state, and the optimizer.

The state holds arrays only.  Step n draws everything from fold_in(key, n), and example i of its global batch from
fold_in of that with i, so results depend neither on the number of devices nor on interruptions.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.keys import check_integer, check_keys, fold_in_each

Params = Any
"""A pytree of arrays."""

Metrics = dict[str, jax.Array]

_T = TypeVar("_T")


class TrainState(NamedTuple):
    """The state of training: step [] int32, parameters, their exponential moving average, and the optimizer's state.

    With `make_step`'s shard_update the average and the optimizer's moments are a device's shares, see `cut_shares`.
    """

    step: jax.Array
    params: Params
    ema: Params
    opt_state: optax.OptState


class LossFn(Protocol):
    """(params, keys [b], batch, a pytree of arrays [b, ...]) -> the mean loss of these examples, a scalar."""

    def __call__(self, params: Params, keys: jax.Array, batch: Any, /) -> jax.Array: ...


class LossFnWithAux(Protocol):
    """A `LossFn` that returns a dict of arrays, too, to be averaged over micro-batches and devices."""

    def __call__(self, params: Params, keys: jax.Array, batch: Any, /) -> tuple[jax.Array, Metrics]: ...


class TrainStep(Protocol):
    """(the run's key, state, batch) -> (state, metrics)."""

    def __call__(self, key: jax.Array, state: TrainState, batch: Any, /) -> tuple[TrainState, Metrics]: ...


def init(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step.  Its parameters and average are copies: a donated state owns its buffers."""

    def copy(tree: _T) -> _T:  # with an explicit dtype: a weakly typed leaf would compile the step twice
        return jax.tree.map(lambda leaf: jnp.array(leaf, leaf.dtype), tree)

    return TrainState(jnp.zeros((), jnp.int32), copy(params), copy(params), optimizer.init(copy(params)))


def optimizer(
    learning_rate: float,
    *,
    warmup: int = 5000,
    decay: int = 0,
    clip: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    axis_name: str | None = None,
) -> "SkippingOptimizer":
    """Adam with linear warm-up, cosine decay and gradient clipping by global norm.

    DDPM, appendix B and its code: the first step of a warm-up has the rate 0.  The original clips on each core before
    it averages; here the mean gradient is clipped, as every later implementation does.

    Args:
        warmup: steps until the full rate; 0 starts with it.
        decay: steps, warm-up included, until the rate is 0, after a cosine (arXiv:1608.03983); 0 keeps the full rate,
            as the original does.
        clip: largest global norm; None never clips.
        axis_name: the axis of `pmap` over whose devices the gradients are cut into shares, as `make_step` does with
            shard_update: the norm is that of all shares together.

    Raises:
        ValueError: if a number lies outside its range, or decay is not longer than warmup.
    """
    if not 0 <= learning_rate < math.inf:
        raise ValueError(f"learning_rate must be 0 or a positive number, got {learning_rate}")
    if not all(isinstance(n, (int, np.integer)) and n >= 0 for n in (warmup, decay)):
        raise ValueError(f"warmup and decay must be integers of at least 0, steps, got {warmup} and {decay}")
    if not (clip is None or clip > 0):
        raise ValueError(f"clip must be positive, or None (no clipping), got {clip}")
    if not (0 <= b1 < 1 and 0 <= b2 < 1):
        raise ValueError(f"b1 and b2 must lie in [0, 1), got {b1} and {b2}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}: Adam divides by it where a gradient was always 0")
    if decay and decay <= warmup:
        raise ValueError(f"decay must be 0 or more steps than those of the warm-up, {warmup}, got {decay}")
    if decay:
        rate = optax.warmup_cosine_decay_schedule(0.0 if warmup else learning_rate, learning_rate, warmup, decay)
    else:
        rate = optax.linear_schedule(0.0, learning_rate, warmup) if warmup > 0 else learning_rate
    adam = _adam(rate, b1, b2, eps)
    return SkippingOptimizer(*(adam if clip is None else optax.chain(_clip_by_norm(clip, axis_name), adam)))


class SkippingOptimizer(optax.GradientTransformationExtraArgs):
    """An optax transformation whose `update` takes `finite` [], and returns the same state where that is False."""


def _adam(rate: float | optax.Schedule, b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """`optax.adam`, a `SkippingOptimizer` that updates its moments in place."""

    def update(
        updates: Any, state: Any, params: Params = None, *, finite: jax.Array | bool = True, **_: Any
    ) -> tuple[Any, Any]:
        moments, schedule = state
        select = functools.partial(jax.lax.select, jnp.asarray(finite))
        mu = jax.tree.map(lambda g, m: select((1 - b1) * g + b1 * m, m), updates, moments.mu)
        nu = jax.tree.map(lambda g, v: select((1 - b2) * g**2 + b2 * v, v), updates, moments.nu)
        mu, nu = _computed_once((mu, nu))
        count = moments.count + 1
        gain = -jnp.asarray(rate(schedule.count) if callable(rate) else rate) / (1 - b1**count)
        scale = (1 - b2**count) ** -0.5
        updates = jax.tree.map(
            lambda m, v: m * gain.astype(m.dtype) / (jnp.sqrt(v) * scale.astype(v.dtype) + eps), mu, nu
        )
        schedule = jax.tree.map(lambda n: select(n + 1, n), schedule)
        return updates, (optax.ScaleByAdamState(select(count, moments.count), mu, nu), schedule)

    return optax.GradientTransformationExtraArgs(optax.adam(rate, b1=b1, b2=b2, eps=eps).init, update)


def _computed_once(tree: _T) -> _T:
    """The same arrays; a CPU stores them before their uses, instead of computing them again for each.

    So each array of the state is read for one new array alone, which can take its place without a copy.
    """
    return jax.lax.platform_dependent(tree, cpu=jax.lax.optimization_barrier, default=lambda tree: tree)


def _clip_by_norm(clip: float, axis_name: str | None) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`; with an axis, of a gradient of which each device has a share."""

    def update(updates: Any, state: Any, params: Params = None) -> tuple[Any, Any]:
        norm = _norm_of_shares(updates, axis_name) if axis_name else optax.tree.norm(updates)
        factor = jnp.where(norm < clip, 1.0, clip / norm)
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _norm_of_shares(shares: Any, axis_name: str) -> jax.Array:
    return jnp.sqrt(jax.lax.psum(optax.tree.norm(shares, squared=True), axis_name))


def cut_shares(tree: Params, devices: int) -> dict[int, Any]:
    """The arrays of a tree as equal shares for so many devices: {columns: [devices, rows, columns]}.

    Arrays of one type; those with the same last axis stand one below the other, then zeros.  So there are few arrays to
    exchange and to update, and a TPU, which stores the last two axes in tiles, moves no single number.  Numpy arrays
    stay on the host.
    """
    blocks: dict[int, list[Any]] = {}
    for leaf in jax.tree.leaves(tree):
        columns = leaf.shape[-1] if leaf.ndim else 1
        blocks.setdefault(columns, []).append(leaf.reshape(-1, columns))

    def cut(columns: int, blocks: list[Any]) -> Any:
        xp: Any = np if isinstance(blocks[0], np.ndarray) else jnp
        zeros = xp.zeros((-sum(map(len, blocks)) % devices, columns), blocks[0].dtype)
        return xp.concatenate([*blocks, zeros]).reshape(devices, -1, columns)

    return {columns: cut(columns, blocks[columns]) for columns in sorted(blocks)}


def join_shares(shares: dict[int, Any], like: Params) -> Params:
    """The inverse of `cut_shares`: the tree, with the structure and shapes of `like`."""
    rows, taken = {columns: a.reshape(-1, columns) for columns, a in shares.items()}, dict.fromkeys(shares, 0)
    leaves, structure = jax.tree.flatten(like)
    found = []
    for leaf in leaves:
        columns = leaf.shape[-1] if leaf.ndim else 1
        start, taken[columns] = taken[columns], taken[columns] + leaf.size // columns
        found.append(rows[columns][start : taken[columns]].reshape(leaf.shape))
    return structure.unflatten(found)


def ema_update(ema: Params, params: Params, decay: jax.Array | float) -> Params:
    """The moving average decay * ema + (1 - decay) * params, computed as a correction of ema, which rounds less.

    In each array's own type: with a decay near 1, in bfloat16 or float16, corrections are rounded away.
    """
    return jax.tree.map(lambda e, p: e + jnp.asarray(1 - decay, e.dtype) * (p - e), ema, params)


def ema_warmup(decay: float) -> Callable[[jax.Array], jax.Array]:
    """The decay min(decay, (1 + n) / (10 + n)) at step n: early on, an average over about the last tenth of the steps.

    Without it a decay of 0.9999 still holds 37 % of the initial weights after 10,000 steps.
    """
    return lambda step: jnp.minimum(decay, (1 + step) / (10 + step))


def make_step(
    loss_fn: LossFn | LossFnWithAux,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float | Callable[[jax.Array], jax.Array] = 0.9999,
    accumulate: int = 1,
    axis_name: str | None = None,
    platform: str | None = None,
    has_aux: bool = False,
    shard_update: bool = False,
) -> TrainStep:
    """The training step, a pure function; `jit` it, or `pmap` or `shard_map` it with `axis_name`.

    A step whose loss or gradient is not finite changes nothing but the step number, and reports `skipped` = 1.

    Args:
        loss_fn: a `LossFn`, or with `has_aux` a `LossFnWithAux`; keys[i] is for example i.
        optimizer: any optax transformation; a `SkippingOptimizer` takes less memory and time.
        ema_decay: a number, or a function of the step number, e.g. `ema_warmup(0.9999)`.
        accumulate: number of micro-batches of a device's batch, computed one after the other.
        axis_name: the axis of `pmap` or `shard_map` over which the global batch is spread, device after device.
        platform: the one that the step is compiled for, such as "cpu"; None is JAX's default.
        shard_update: each device of `axis_name` updates a share of the parameters, see `cut_shares`, and has only
            this share of their average and of the optimizer's state.  The gradients are summed by a reduce-scatter, the
            parameters completed by an all-gather (Xu et al., arXiv:2004.13336).  The optimizer must be elementwise
            apart from clipping, see `optimizer`.

    Returns:
        The step.  Its metrics: `loss`, `grad_norm` (before clipping), `skipped`, and those of loss_fn.  Its `key` is
        the same in every step.

    Raises:
        ValueError: if ema_decay is a number outside [0, 1), or accumulate not an integer of at least 1; if there is no
            axis over which to shard the update.
    """
    if isinstance(ema_decay, (int, float)) and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must lie in [0, 1), got {ema_decay}")
    if not (isinstance(accumulate, (int, np.integer)) and accumulate >= 1):
        raise ValueError(f"accumulate must be an integer of at least 1, got {accumulate}")
    if shard_update and not axis_name:
        raise ValueError("shard_update needs an axis_name: the axis of pmap whose devices take the shares")
    grad_fn: Any = jax.value_and_grad(loss_fn if has_aux else lambda *args: (loss_fn(*args), {}), has_aux=True)

    def step(key: jax.Array, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        size = _batch_size(batch, accumulate)
        offset = jax.lax.axis_index(axis_name) * size if axis_name else 0
        keys = step_keys(key, state.step, offset + jnp.arange(size))
        params = _of_each_device(state.params, axis_name)
        (loss, aux), grads = _accumulate_gradients(grad_fn, params, keys, batch, accumulate, axis_name, platform)
        params = state.params
        if shard_update and axis_name:
            devices = jax.lax.axis_size(axis_name)
            loss, aux = jax.lax.pmean((loss, aux), axis_name)
            sums = jax.lax.psum_scatter(cut_shares(grads, devices), axis_name)
            grads = jax.tree.map(lambda leaf: leaf / devices, sums)
            params = jax.tree.map(lambda leaf: leaf[jax.lax.axis_index(axis_name)], cut_shares(params, devices))
            grad_norm = _norm_of_shares(grads, axis_name)
        else:
            if axis_name:
                loss, aux, grads = jax.lax.pmean((loss, aux, grads), axis_name)
            grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        select = functools.partial(jax.lax.select, finite)
        with jax.numpy_dtype_promotion("standard"):  # which optax takes for granted
            if isinstance(optimizer, SkippingOptimizer):
                updates, opt_state = optimizer.update(grads, state.opt_state, params, finite=finite)
            else:
                updates, opt_state = optimizer.update(grads, state.opt_state, params)
                opt_state = jax.tree.map(select, opt_state, state.opt_state)
        new_params = _computed_once(jax.tree.map(select, optax.apply_updates(params, updates), params))
        decay = ema_decay(state.step) if callable(ema_decay) else ema_decay
        ema = jax.tree.map(select, ema_update(state.ema, new_params, decay), state.ema)
        if shard_update and axis_name:
            new_params = join_shares(jax.lax.all_gather(new_params, axis_name), state.params)
        metrics = {"loss": loss, "grad_norm": grad_norm, "skipped": 1 - finite.astype(jnp.int32), **aux}
        return TrainState(state.step + 1, new_params, ema, opt_state), metrics

    return step


def step_keys(key: jax.Array, step: jax.Array | int, indices: jax.Array) -> jax.Array:
    """The keys of a step's examples, fold_in(fold_in(key, step), i) for indices i in the global batch."""
    check_keys("key", key)
    return fold_in_each(jax.random.fold_in(key, check_integer("step", step)), indices)


def _of_each_device(tree: _T, axis_name: str | None) -> _T:
    """The same arrays as each device's own: of shared ones `jax.shard_map` sums the gradient over devices itself."""
    if axis_name not in jax.sharding.get_abstract_mesh().manual_axes:  # no axis, or a `vmap`'s
        return tree
    try:
        return jax.lax.pcast(tree, axis_name, to="varying")
    except ValueError:  # they are so already
        return tree


def _batch_size(batch: Any, accumulate: int) -> int:
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(f"every array of a batch must have the same first axis, got {sorted(sizes)}")
    ((size,),) = sizes
    if size % accumulate:
        raise ValueError(f"a device's batch of {size} cannot be cut into accumulate = {accumulate} equal parts")
    return size


def _accumulate_gradients(
    grad_fn: Callable[[Params, jax.Array, Any], _T],
    params: Params,
    keys: jax.Array,
    batch: Any,
    parts: int,
    axis_name: str | None,
    platform: str | None,
) -> _T:
    """The mean of loss, aux and gradient over `parts` micro-batches."""
    if parts == 1:
        return grad_fn(params, keys, batch)
    cut = jax.tree.map(lambda a: a.reshape(parts, a.shape[0] // parts, *a.shape[1:]), (keys, batch))
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(grad_fn, params, *jax.tree.map(lambda a: a[0], cut)))
    zero = _of_each_device(zero, axis_name)

    def add(total: _T, part: tuple[jax.Array, Any]) -> tuple[_T, None]:
        return jax.tree.map(jnp.add, total, grad_fn(params, *part)), None

    # XLA's CPU back end runs the backward convolutions of a while loop many times slower: no loop there
    unroll = parts if (platform or jax.default_backend()) == "cpu" else 1
    total, _ = jax.lax.scan(add, zero, cut, unroll=unroll)
    return jax.tree.map(lambda a: a / parts, total)
