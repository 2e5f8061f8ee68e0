"""Conditions of a network, condition dropout in training, and classifier-free guidance.

A conditional network is a function (x_t, t, condition) -> output.  A condition is any pytree of arrays [B, ...];
`Condition` is the one of this library's networks.  Closing such a network over a condition gives the `gaussian.Net`
that samplers, losses and the bound take.
"""

from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax.gaussian import Net
from ddpm_jax.keys import CAPTION_STREAM, CONDITION_DROPOUT_STREAM, check_keys

Array = jax.Array | np.ndarray

Tree = TypeVar("Tree")
"""A pytree of arrays [B, ...]."""


class ConditionalNet(Protocol):
    """(x_t [B, ...], t [B], condition, a pytree of arrays [B, ...]) -> the network's prediction [B, ...]."""

    def __call__(self, x_t: jax.Array, t: jax.Array, condition: Any, /) -> jax.Array: ...


class Condition(NamedTuple):
    """The condition of each image: a label, a text, an encoded text, an image; None if the network does not take it.

    label: [B] integers; num_classes is the null label.
    tokens: [B, L] uint8, the bytes of a text, 0 after its end; all 0 is the null text (see `text.tokenize`).
    context: [B, L, D] floats, an encoded text.
    mask: [B, L], True for the tokens of the context that count; all False is the null context.
    image: as the images but for C: a conditioning image, for example of lower resolution.
    """

    label: Array | None = None
    tokens: Array | None = None
    context: Array | None = None
    mask: Array | None = None
    image: Array | None = None


def null_condition(condition: Condition, num_classes: int) -> Condition:
    """The unconditional condition, of the same shapes; a conditioning image stays, as there is no null image.

    Raises:
        ValueError: if there is a context without a mask, which is needed to hide it, or the type of the labels does not
            hold the null label.
    """
    if condition.context is not None and condition.mask is None:
        raise ValueError("a context without its mask cannot be hidden: give jnp.ones(context.shape[:2], bool)")
    label = condition.label
    if label is not None:
        if num_classes > jnp.iinfo(label.dtype).max:
            raise ValueError(f"labels of {label.dtype} cannot hold the null label {num_classes}: give them as int32")
        label = jnp.full_like(label, num_classes)
    mask = None if condition.mask is None else jnp.zeros_like(condition.mask)
    tokens = None if condition.tokens is None else jnp.zeros_like(condition.tokens)
    return Condition(label, tokens, condition.context, mask, condition.image)


def condition_on(net: ConditionalNet, condition: Any) -> Net:
    """The network closed over a condition."""
    return lambda x_t, t: net(x_t, t, condition)


def drop_condition(keys: jax.Array, condition: Tree, null: Tree, rate: float) -> Tree:
    """The condition with `null` in its place for a share `rate` of the examples (arXiv:2207.12598, algorithm 1).

    Args:
        keys: [B] typed keys; example i is dropped or not by its own key alone.
        condition, null: pytrees of the same structure, of arrays [B, ...] of the same shapes.
        rate: in [0, 1].

    Raises:
        ValueError: if the rate is not in [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must lie in [0, 1], got {rate}: it is the share of conditions that are dropped")
    check_keys("keys", keys)
    probability = np.float32(rate)
    dropped = jax.vmap(
        lambda key: jax.random.bernoulli(jax.random.fold_in(key, CONDITION_DROPOUT_STREAM), probability)
    )(keys)
    return select_examples(dropped, null, condition)


def select_examples(mask: jax.Array, on_true: Tree, on_false: Tree) -> Tree:
    """`on_true` for the examples of the mask [B] and `on_false` for the others, pytrees of arrays [B, ...]."""

    def pick(this: jax.Array, that: jax.Array) -> jax.Array:
        return jnp.where(jnp.expand_dims(mask, range(1, that.ndim)), this, that)

    return jax.tree.map(pick, on_true, on_false)


def classifier_free_guidance(
    net: ConditionalNet,
    condition: Tree,
    null: Tree,
    scale: float | jax.Array,
    *,
    interval: tuple[ArrayLike, ArrayLike] | None = None,
) -> Net:
    """Classifier-free guidance (Ho & Salimans, arXiv:2207.12598, equation 6, with their w = scale - 1):

        out = scale out(condition) + (1 - scale) out(null)

    Scale 1 is the conditional network, 0 the unconditional one, and more than 1 amplifies the condition.  This holds
    for every predicted quantity, all being linear in eps_hat.  A learned variance, whose output has twice the channels,
    stays the conditional one.  Both outputs come from one evaluation with a doubled batch; at scale 1 and outside of
    the interval only the conditional network is evaluated.

    Args:
        condition, null: pytrees of the same structure, of arrays [B, ...].
        scale: a number; if it is traced, a new value needs no compilation.
        interval: (first, last), the times, both included, with guidance; at others the scale is 1
            (Kynkäänniemi et al., arXiv:2404.07724).  Traced or not; None is all times.

    Raises:
        ValueError: if scale is not a single number.
    """
    if jnp.ndim(scale) != 0:
        raise ValueError(f"scale must be a single number, got an array {jnp.shape(scale)}")

    def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
        t = jnp.broadcast_to(t, x_t.shape[:1])
        scales = jnp.full(t.shape, scale, x_t.dtype)
        if interval is not None:
            scales = jnp.where((t >= interval[0]) & (t <= interval[1]), scales, 1)

        def unguided() -> jax.Array:
            return net(x_t, t, condition)

        def with_guidance() -> jax.Array:
            double = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), (x_t, t, condition), (x_t, t, null))
            conditional, unconditional = jnp.split(net(*double), 2)
            # twice the channels are a learned variance
            mean, channels = conditional, x_t.shape[-1]
            if conditional.shape[-1] == 2 * channels:
                mean, unconditional = conditional[..., :channels], unconditional[..., :channels]
            w = jnp.expand_dims(scales, range(1, x_t.ndim)).astype(conditional.dtype)
            mixed = w * mean + (1 - w) * unconditional
            if mixed.shape == conditional.shape:
                return mixed
            return jnp.concatenate([mixed, conditional[..., channels:]], axis=-1)

        return jax.lax.cond((scales == 1).all(), unguided, with_guidance)

    return predict


def block_average(x: Array, factor: int) -> jax.Array:
    """The image with each block of factor x factor pixels (a cube, of volumes) replaced by its mean.

    Args:
        x: [B, H, W, C], of any spatial axes.

    Raises:
        ValueError: if the factor does not divide the sizes.
    """
    sides = x.shape[1:-1]
    if factor < 1 or any(side % factor for side in sides):
        raise ValueError(f"a factor of {factor} does not divide the image's sizes {sides}")
    split = [n for side in sides for n in (side // factor, factor)]
    squares = jnp.reshape(x, (x.shape[0], *split, x.shape[-1]))
    means = squares.mean(tuple(range(2, 2 * len(sides) + 1, 2)), keepdims=True)
    return jnp.broadcast_to(means, (x.shape[0], *split, x.shape[-1])).reshape(x.shape)


def random_caption(keys: jax.Array, tokens: Array) -> jax.Array:
    """A text of each example, drawn uniformly.

    Args:
        keys: [B] typed keys; example i's text is drawn from its own key alone.
        tokens: [B, K, L] up to K texts of each example, then rows of 0.

    Returns:
        [B, L].
    """
    check_keys("keys", keys)
    num_captions = jnp.maximum((tokens > 0).any(-1).sum(-1, dtype=jnp.int32), 1)
    draw = lambda key, n: jax.random.randint(jax.random.fold_in(key, CAPTION_STREAM), (), 0, n, jnp.int32)  # noqa: E731
    drawn = jax.vmap(draw)(keys, num_captions)
    return jnp.take_along_axis(tokens, drawn[:, None, None], axis=1)[:, 0]
