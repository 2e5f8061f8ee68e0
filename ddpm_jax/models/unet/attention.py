"""Attention: of pixels to each other, and to the tokens of a context."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.guidance import Array
from ddpm_jax.models.unet.layers import NEAR_ZERO, Dense
from ddpm_jax.models.unet.norm import GroupNorm
from ddpm_jax.models.unet.parameters import at_least_float32


def head_count(channels: int, heads: int, head_channels: int) -> int:
    """How many heads an attention over `channels` has: as many as have `head_channels` each; `heads` if that is 0."""
    return channels // head_channels if head_channels else heads


class AttentionBlock(nn.Module):
    """Every pixel attends to every pixel of its image; the result, near 0 at the start, is added to the input.

    Attributes:
        heads: as many, each of the same number of consecutive channels; or, if `head_channels` is not 0, as many as
            have so many channels.
        eps: of the normalisation.
    """

    heads: int = 1
    dtype: DTypeLike = jnp.float32
    groups: int = 32
    eps: float = 1e-6
    head_channels: int = 0
    forward_mode: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> the same, of any spatial axes.  Memory B heads (HW)^2."""
        b, *sides, c = x.shape
        pixels, heads = math.prod(sides), head_count(c, self.heads, self.head_channels)
        norm = GroupNorm(False, self.eps, self.dtype, self.groups, self.forward_mode, name="norm")
        normed = jnp.reshape(norm(x), (b, pixels, c))
        q, k, v = (Dense(c, name=name, dtype=self.dtype)(normed) for name in ("q", "k", "v"))
        mixed = jnp.reshape(attend(q, k, v, heads), x.shape)
        return x + Dense(c, scale=NEAR_ZERO, name="proj_out", dtype=self.dtype)(mixed)


class CrossAttention(nn.Module):
    """Every pixel attends to the tokens of a context; the result, 0 at the start, is added to the input.

    What a pixel asks for depends on what it is and on where it is: a text says what is to be where, and where there is
    only noise as yet, nothing else tells one pixel from another.  An image whose mask shows no token passes as it came.
    """

    heads: int = 1
    dtype: DTypeLike = jnp.float32
    groups: int = 32
    eps: float = 1e-6
    head_channels: int = 0
    forward_mode: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: Array, mask: Array) -> jax.Array:
        """x [B, H, W, C] of any spatial axes, context [B, L, D], mask [B, L], True for tokens that count -> as x."""
        b, *sides, c = x.shape
        pixels, heads = math.prod(sides), head_count(c, self.heads, self.head_channels)
        norm = GroupNorm(False, self.eps, self.dtype, self.groups, self.forward_mode, name="norm")
        normed = jnp.reshape(norm(x), (b, pixels, c))
        position = nn.Dense(c, use_bias=False, dtype=self.dtype, name="where")(position_features(sides, self.dtype))
        q = Dense(c, name="q", dtype=self.dtype)(normed) + jnp.reshape(position, (1, pixels, c))
        k, v = (Dense(c, name=name, dtype=self.dtype)(context) for name in ("k", "v"))
        mixed = jnp.reshape(attend(q, k, v, heads, mask), x.shape)
        out = nn.Dense(c, kernel_init=nn.initializers.zeros_init(), dtype=self.dtype, name="proj_out")(mixed)
        return x + jnp.where(jnp.expand_dims(mask.any(-1), range(1, x.ndim)), out, jnp.zeros((), out.dtype))


POSITION_FREQUENCIES = 4
"""Numbers that say where a pixel is along each side."""


def position_features(sides: Sequence[int], dtype: DTypeLike) -> jax.Array:
    """Where each pixel is, whatever their number: cosines of 1, 2, ... half waves along each side.

    Returns:
        [*sides, POSITION_FREQUENCIES * len(sides)] in [-1, 1].
    """
    halves = jnp.arange(1, POSITION_FREQUENCIES + 1, dtype=float)
    along = [jnp.cos(jnp.pi * jnp.outer((jnp.arange(side, dtype=float) + 0.5) / side, halves)) for side in sides]
    spread = [jnp.expand_dims(wave, [j for j in range(len(sides)) if j != i]) for i, wave in enumerate(along)]
    return jnp.concatenate([jnp.broadcast_to(wave, (*sides, POSITION_FREQUENCIES)) for wave in spread], axis=-1).astype(
        dtype
    )


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    heads: int,
    mask: Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k / sqrt(C) + bias) v over the keys that the mask shows, in float32 at least; 0 where it shows none.

    `jax.nn.dot_product_attention` is the same but in float64, where its softmax has the digits of float32; and one head
    as an axis of length 1 costs a TPU a sixth of the time.

    Args:
        q: [B, Q, heads C].
        k, v: [B, K, heads C].
        heads: each of C consecutive channels.
        mask: [B, K] booleans, or all.
        bias: [heads, Q, K], or none.

    Returns:
        As q.
    """
    split_heads = heads > 1 or bias is not None
    n, shape = ("n" if split_heads else ""), q.shape
    if split_heads:
        q, k, v = (jnp.reshape(x, (*x.shape[:2], heads, -1)) for x in (q, k, v))
    wide = at_least_float32(q.dtype)
    logits = jnp.einsum(f"bq{n}c,bk{n}c->b{n}qk", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    logits = logits if bias is None else logits + bias[None].astype(logits.dtype)
    if mask is None:
        weights = nn.softmax(logits)
    else:
        shown = jnp.expand_dims(mask, range(1, logits.ndim - 1))
        weights = jnp.where(shown, nn.softmax(jnp.where(shown, logits, jnp.finfo(wide).min)), 0.0)
    return jnp.reshape(jnp.einsum(f"b{n}qk,bk{n}c->bq{n}c", weights.astype(q.dtype), v), shape)
