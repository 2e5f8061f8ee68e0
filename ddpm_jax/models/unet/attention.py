"""Self-attention of pixels, and cross-attention to the tokens of a context."""

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

ContextAndMask = tuple[Array, Array]
"""A context [B, L, D], and its mask [B, L], True for tokens that count."""


def context_and_mask(dim: int, x: jax.Array, context: Array | None, mask: Array | None) -> ContextAndMask | None:
    """The context of x [B, ...] and its mask, of zeros if there is none; None if the network takes none, `dim` 0."""
    if not dim:
        return None
    if context is None:
        return jnp.zeros((x.shape[0], 1, dim), x.dtype), jnp.zeros((x.shape[0], 1), bool)
    return context, jnp.ones(context.shape[:2], bool) if mask is None else mask


def head_count(channels: int, heads: int, head_channels: int) -> int:
    """The number of heads over `channels`: of `head_channels` channels each or, if that is 0, `heads`."""
    return channels // head_channels if head_channels else heads


class AttentionBlock(nn.Module):
    """Residual self-attention of the pixels of an image; the branch is near 0 at initialisation.

    Attributes:
        heads, head_channels: see `head_count`; each head has consecutive channels.
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
    """Residual cross-attention of pixels to the tokens of a context; the branch is 0 at initialisation.

    Queries include the pixel's position, as texts can describe positions and pixels of pure noise differ in nothing
    else.  An image without a token in its mask is returned unchanged.
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
        q, wide = Dense(c, name="q", dtype=self.dtype)(normed), at_least_float32(self.dtype)
        # in float32, as the gradient of the position is a sum over images
        q = (q.astype(wide) + jnp.reshape(position, (1, pixels, c)).astype(wide)).astype(self.dtype)
        k, v = (Dense(c, name=name, dtype=self.dtype)(context) for name in ("k", "v"))
        mixed = jnp.reshape(attend(q, k, v, heads, mask), x.shape)
        out = Dense(c, kernel_init=nn.initializers.zeros_init(), name="proj_out", dtype=self.dtype)(mixed)
        return x + jnp.where(jnp.expand_dims(mask.any(-1), range(1, x.ndim)), out, jnp.zeros((), out.dtype))


POSITION_FREQUENCIES = 4
"""Number of position features along each side."""


def position_features(sides: Sequence[int], dtype: DTypeLike) -> jax.Array:
    """Position features of pixels: cosines of 1, 2, ... half waves along each side, whatever its length.

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
    q: jax.Array, k: jax.Array, v: jax.Array, heads: int, mask: Array | None = None, bias: jax.Array | None = None
) -> jax.Array:
    """Attention softmax(q k / sqrt(C) + bias) v over the keys in the mask, in float32 at least; 0 if there are none.

    `jax.nn.dot_product_attention` computes the softmax of float64 in float32; and one head as an axis of length 1 costs
    a TPU a sixth of the time.

    Args:
        q: [B, Q, heads C].
        k, v: [B, K, heads C].
        heads: each of C consecutive channels.
        mask: [B, K] booleans; None is all.
        bias: [heads, Q, K].

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
