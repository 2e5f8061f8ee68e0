"""What the U-Net is made of: the time's embedding, dropout by image, changes of size, attention, residual blocks."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.unet.norm import GroupNorm

NEAR_ZERO = 1e-10
"""Scale of the initial variance where a branch should start as nothing (the original's TF refused an exact 0)."""

DROPOUT_STEP = 2.0**-16
"""What dropout rates are multiples of: masks are drawn from 16 random bits a number."""


def timestep_embedding(t, dim: int, *, cos_first: bool = False, shift: int = 1) -> jax.Array:
    """[sin(t w_i) | cos(t w_i)] with w_i = 10000^(-i / (half - shift)), i = 0 .. half - 1, half = dim // 2.

    The original takes shift 1 and the sines first; improved-diffusion (arXiv:2102.09672) shift 0 and the cosines first.

    Args:
        t: [B] the network's time: counted from zero, possibly fractional.
        dim: length of an embedding; an odd one ends in a zero.

    Returns:
        [B, dim], float32, or float64 if `t` is.
    """
    t = jnp.asarray(t)
    dtype = jnp.promote_types(t.dtype, jnp.float32) if jnp.issubdtype(t.dtype, jnp.floating) else jnp.float32
    half = dim // 2
    frequency = np.exp(-math.log(10000) * np.arange(half) / max(half - shift, 1))
    angle = t.astype(dtype)[:, None] * jnp.asarray(frequency, dtype)
    parts = (jnp.cos(angle), jnp.sin(angle)) if cos_first else (jnp.sin(angle), jnp.cos(angle))
    return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, dim % 2)))


def _init(scale: float = 1.0):
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform")


def conv(features: int, *, name: str, dtype, stride: int = 1, scale: float = 1.0) -> nn.Conv:
    """A 3x3 convolution, [B, H, W, C] -> [B, H/stride, W/stride, features]."""
    # SAME pads an even size for stride 2 at the bottom and the right alone, as TF does; PyTorch's padding=1 does not.
    return nn.Conv(features, (3, 3), stride, padding="SAME", kernel_init=_init(scale), dtype=dtype, name=name)


def dense(features: int, *, name: str, dtype, scale: float = 1.0) -> nn.Dense:
    """The same linear map at every pixel, [..., C] -> [..., features]."""
    return nn.Dense(features, kernel_init=_init(scale), dtype=dtype, name=name)


def dropout(x, keys, rate: float, place: int) -> jax.Array:
    """x with a share `rate` of its numbers at 0 and the rest divided by what is kept on average, exactly.

    The mask of image i is drawn from key i and `place` alone, so it does not depend on who else is in the batch or on
    how the batch lies over devices.  `rate` is rounded to a multiple of 2^-16.

    Args:
        x: [B, ...].
        keys: [B] typed keys, one per image; None leaves x as it is.
        place: which of the network's dropouts this is.
    """
    threshold = round(rate / DROPOUT_STEP)
    if keys is None or threshold == 0:
        return x
    shape, size = x.shape[1:], math.prod(x.shape[1:])

    def bits(key):  # two of 16 from each word of 32: jax draws a narrower type at the price of a whole word
        words = jax.random.bits(jax.random.fold_in(key, place), ((size + 1) // 2,), jnp.uint32)
        return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:size].reshape(shape)

    kept = jax.vmap(bits)(keys) >= np.uint16(threshold)
    return jnp.where(kept, x / (1 - threshold * DROPOUT_STEP), jnp.zeros((), x.dtype))


class Downsample(nn.Module):
    """Half the size, by a 3x3 convolution of stride 2 or, without it, by the mean of each 2x2 square."""

    with_conv: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[B, H, W, C] -> [B, H/2, W/2, C], for H and W even."""
        if self.with_conv:
            return conv(x.shape[-1], stride=2, name="conv", dtype=self.dtype)(x)
        return nn.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False)


class Upsample(nn.Module):
    """Twice the size: every pixel four times, then a 3x3 convolution unless `with_conv` is False."""

    with_conv: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[B, H, W, C] -> [B, 2H, 2W, C]."""
        b, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        return conv(c, name="conv", dtype=self.dtype)(x) if self.with_conv else x


class AttentionBlock(nn.Module):
    """Every pixel attends to every pixel of its image; the result, near 0 at the start, is added to the input."""

    heads: int = 1
    dtype: Any = jnp.float32
    groups: int = 32

    @nn.compact
    def __call__(self, x):
        """[B, H, W, C] -> the same, C a multiple of `heads`.  Memory B heads (HW)^2."""
        b, h, w, c = x.shape
        normed = jnp.reshape(GroupNorm(dtype=self.dtype, groups=self.groups, name="norm")(x), (b, h * w, c))
        split = (b, h * w, self.heads, c // self.heads)
        q, k, v = (jnp.reshape(dense(c, name=name, dtype=self.dtype)(normed), split) for name in ("q", "k", "v"))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        logits = jnp.einsum("bqnc,bknc->bnqk", q, k, preferred_element_type=wide) * (c // self.heads) ** -0.5
        weights = nn.softmax(logits).astype(self.dtype)
        mixed = jnp.einsum("bnqk,bknc->bqnc", weights, v).reshape(b, h, w, c)
        return x + dense(c, scale=NEAR_ZERO, name="proj_out", dtype=self.dtype)(mixed)


class ResnetBlock(nn.Module):
    """Two convolutions with the time added between them; the result, near 0 at the start, is added to the input.

    Attributes:
        conv_shortcut: where the channels change, the input is brought to `out_channels` by a 3x3 convolution, not 1x1.
        place: this block's number in the network, from 0: its dropout draws by it.
    """

    out_channels: int
    dropout: float = 0.0
    conv_shortcut: bool = False
    place: int = 0
    dtype: Any = jnp.float32
    groups: int = 32

    @nn.compact
    def __call__(self, x, temb, dropout_keys=None):
        """x [B, H, W, C], temb [B, D], dropout_keys [B] or None -> [B, H, W, out_channels]."""
        c, dtype = self.out_channels, self.dtype
        norm = functools.partial(GroupNorm, swish=True, dtype=dtype, groups=self.groups)
        h = conv(c, name="conv1", dtype=dtype)(norm(name="norm1")(x))
        h = h + dense(c, name="temb_proj", dtype=dtype)(nn.swish(temb))[:, None, None]
        h = norm(name="norm2")(h)
        h = dropout(h, dropout_keys, self.dropout, self.place)
        h = conv(c, scale=NEAR_ZERO, name="conv2", dtype=dtype)(h)
        if x.shape[-1] != c:
            x = (conv if self.conv_shortcut else dense)(
                c, name="conv_shortcut" if self.conv_shortcut else "nin_shortcut", dtype=dtype
            )(x)
        return x + h


class TimeEmbedding(nn.Module):
    """The network's time, counted from zero, as 4 x `channels` numbers; every block applies its own swish to them."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, t):
        """[B] floats -> [B, 4 x channels]."""
        h = timestep_embedding(t, self.channels)
        h = nn.swish(dense(4 * self.channels, name="dense0", dtype=self.dtype)(h))
        return dense(4 * self.channels, name="dense1", dtype=self.dtype)(h)
