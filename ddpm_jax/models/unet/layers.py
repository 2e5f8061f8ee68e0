"""Layers of the U-Net: time embedding, dropout with one key per image, resampling, residual blocks."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from ddpm_jax.guidance import Array
from ddpm_jax.models.unet.compat import Padding, TimeConditioning
from ddpm_jax.models.unet.convolution import Conv, UpsampleConv, num_spatial_axes, upsample_nearest
from ddpm_jax.models.unet.norm import GroupNorm, split_indices
from ddpm_jax.models.unet.parameters import add_bias, at_least_float32, constant, fan_average, parameter

NEAR_ZERO = 1e-10
"""Scale of the initial variance of branches that start at 0 (the original's TF refused an exact 0)."""

DROPOUT_STEP = 2.0**-16
"""The unit of dropout rates: masks are drawn from 16 random bits a number."""


def timestep_embedding(t: ArrayLike, dim: int, *, cos_first: bool = False, shift: int = 1) -> jax.Array:
    """Sinusoidal embedding [sin(t w_i) | cos(t w_i)], w_i = 10000^(-i / (half - shift)), i < half = dim // 2.

    The original takes shift 1 and the sines first; improved-diffusion (arXiv:2102.09672) shift 0 and the cosines first.

    Args:
        t: [B] the network's time: counted from zero, possibly fractional.
        dim: dimension of the embedding; an odd one ends in a zero.

    Returns:
        [B, dim], float32, or float64 if `t` is.
    """
    t = jnp.asarray(t)
    dtype = at_least_float32(t.dtype) if jnp.issubdtype(t.dtype, jnp.floating) else jnp.float32
    half = dim // 2
    frequency = np.exp(-math.log(10000) * np.arange(half) / max(half - shift, 1))
    angle = t.astype(dtype)[:, None] * jnp.asarray(frequency, dtype)[None]
    parts = (jnp.cos(angle), jnp.sin(angle)) if cos_first else (jnp.sin(angle), jnp.cos(angle))
    return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, dim % 2)))


class Dense(nn.Module):
    """A linear map of the channels of every pixel; of several arrays, as if they were concatenated along C.

    Unlike flax's, it sums the gradient of a bfloat16 bias in float32.

    Attributes:
        scale: of the kernel's initial variance.
        dtype: of the computation.
        kernel_init: the kernel's initialisation, in place of the uniform one with `scale`.
    """

    features: int
    scale: float = 1.0
    dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: Array | tuple[Array, ...]) -> jax.Array:
        """[..., C] -> [..., features].  A tuple x stands for its concatenation along C."""
        parts = x if isinstance(x, tuple) else (x,)
        shape = (sum(part.shape[-1] for part in parts), self.features)
        if self.kernel_init is None:
            kernel = parameter(self, "kernel", fan_average(self.scale), shape)
        else:
            kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = parameter(self, "bias", constant(0), (self.features,))
        kernels = jnp.split(kernel.astype(self.dtype), split_indices(parts))
        products = (jnp.asarray(part, self.dtype) @ of for part, of in zip(parts, kernels, strict=True))
        return add_bias(functools.reduce(jnp.add, products), bias)


def dropout(x: jax.Array, keys: jax.Array | None, rate: float, index: int) -> jax.Array:
    """Dropout: x with a share `rate` of its numbers 0 and the rest divided by 1 - rate.

    The mask of image i is drawn from key i and `index` alone, so it does not depend on the batch or the devices.
    `rate` is rounded to a multiple of 2^-16.

    Args:
        x: [B, ...].
        keys: [B] typed keys, one per image; None leaves x as it is.
        index: the number of this dropout in the network.
    """
    rate_in_steps = round(rate / DROPOUT_STEP)
    if keys is None or rate_in_steps == 0:
        return x
    # Two numbers of 16 bits from each word of 32, as jax draws a narrower type at the price of a whole word.  One is
    # for the first half of the rows, the other for the second, which needs no interleaving.  The barrier keeps the
    # compiler from fusing the masks with their use, which is slower.
    half = (x.shape[1] + 1) // 2
    draw = lambda key: jax.random.bits(jax.random.fold_in(key, index), (half, *x.shape[2:]), jnp.uint32)  # noqa: E731
    words = jax.vmap(draw)(keys)
    halves = jax.lax.optimization_barrier(
        ((words & 0xFFFF) >= np.uint32(rate_in_steps), words >> 16 >= np.uint32(rate_in_steps))
    )
    keep_mask = jnp.concatenate(halves, axis=1)[:, : x.shape[1]]
    return jnp.where(keep_mask, x / (1 - rate_in_steps * DROPOUT_STEP), jnp.zeros((), x.dtype))


def average_pool(x: jax.Array) -> jax.Array:
    """Average pooling, [B, H, W, C] -> [B, H/2, W/2, C] for even H and W, of any spatial axes."""
    twos = (2,) * num_spatial_axes(x)
    with jax.numpy_dtype_promotion("standard"):  # which flax assumes
        return nn.avg_pool(x, twos, twos)


class Downsample(nn.Module):
    """Downsampling by 2, by a convolution of stride 2 or, if `with_conv` is False, `average_pool`."""

    with_conv: bool = True
    dtype: DTypeLike = jnp.float32
    padding: Padding = "end"
    forward_mode: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H/2, W/2, C], for H and W even; likewise of one or three spatial axes."""
        if not self.with_conv:
            return average_pool(x)
        conv = Conv(x.shape[-1], 2, 1.0, self.padding, self.dtype, self.forward_mode, name="conv")
        return conv(x)


class Upsample(nn.Module):
    """Upsampling by 2: `upsample_nearest`, then a convolution unless `with_conv` is False."""

    with_conv: bool = True
    dtype: DTypeLike = jnp.float32
    forward_mode: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, 2H, 2W, C], likewise of one or three spatial axes."""
        if not self.with_conv:
            return upsample_nearest(x)
        return UpsampleConv(x.shape[-1], self.dtype, self.forward_mode, name="conv")(x)


Resize = Callable[[jax.Array], jax.Array]
"""`average_pool` or `upsample_nearest`: [B, H, W, C] -> the same of another size."""


class ResnetBlock(nn.Module):
    """A residual block: two convolutions with the time embedding between them, near 0 at initialisation.

    Attributes:
        conv_shortcut: where the number of channels changes, the shortcut is a convolution of kernel size 3, not 1.
        dropout_index: the `index` of its `dropout`.
        eps: of both normalisations.
        time_conditioning: "add" adds a projection of the time embedding to the first convolution's result;
            "scale_shift" multiplies the second normalisation's by 1 plus such a scale, and adds a shift
            (arXiv:2102.09672).
        resize: applied to the shortcut and to the first convolution's input (arXiv:1809.11096); None keeps the size.
    """

    out_channels: int
    dropout: float = 0.0
    conv_shortcut: bool = False
    dropout_index: int = 0
    dtype: DTypeLike = jnp.float32
    groups: int = 32
    eps: float = 1e-6
    time_conditioning: TimeConditioning = "add"
    resize: Resize | None = None
    forward_mode: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array | tuple[jax.Array, ...], temb: jax.Array, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """x [B, H, W, C] or a tuple of its parts along C, temb [B, D], dropout_keys [B] -> [B, H, W, out_channels]."""
        parts = x if isinstance(x, tuple) else (x,)
        c, dtype = self.out_channels, self.dtype
        numerics = {"dtype": dtype, "forward_mode": self.forward_mode}
        norm = functools.partial(GroupNorm, swish=True, groups=self.groups, eps=self.eps, **numerics)
        conv = functools.partial(Conv, c, **numerics)
        h = norm(name="norm1")(parts)
        if self.resize is not None:
            h, parts = self.resize(h), tuple(map(self.resize, parts))
        if self.time_conditioning == "add":
            h = conv(name="conv1")(h, Dense(c, name="temb_proj", dtype=dtype)(nn.swish(temb)))
            h = norm(name="norm2")(h)
        else:
            h = conv(name="conv1")(h)
            h = norm(name="norm2")(h, Dense(2 * c, name="temb_proj", dtype=dtype)(nn.swish(temb)))
        h = dropout(h, dropout_keys, self.dropout, self.dropout_index)
        h = conv(scale=NEAR_ZERO, name="conv2")(h)
        if sum(part.shape[-1] for part in parts) == c:
            return jnp.concatenate(parts, axis=-1) + h
        if self.conv_shortcut:
            return conv(name="conv_shortcut")(jnp.concatenate(parts, axis=-1)) + h
        return Dense(c, dtype=dtype, name="nin_shortcut")(parts) + h


class TimeEmbedding(nn.Module):
    """The time embedding [B, 4 x channels] of the network's time, counted from zero; blocks apply a swish to it.

    Attributes:
        cos_first, shift: see `timestep_embedding`.
    """

    channels: int
    dtype: DTypeLike = jnp.float32
    cos_first: bool = False
    shift: int = 1

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """[B] floats -> [B, 4 x channels]."""
        h = timestep_embedding(t, self.channels, cos_first=self.cos_first, shift=self.shift)
        h = nn.swish(Dense(4 * self.channels, name="dense0", dtype=self.dtype)(h))
        return Dense(4 * self.channels, name="dense1", dtype=self.dtype)(h)


class LabelEmbedding(nn.Module):
    """A label's embedding, added to the time embedding; 0 at initialisation; `num_classes` is the null label."""

    num_classes: int
    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, label: Array) -> jax.Array:
        """[B] integers 0 .. num_classes -> [B, features]; NaN for others."""
        rows, zeros = self.num_classes + 1, nn.initializers.zeros_init()
        return nn.Embed(rows, self.features, embedding_init=zeros, dtype=self.dtype, name="table")(label)


class PooledContext(nn.Module):
    """A projection of a context's mean token, added to the time embedding; 0 at initialisation and without tokens."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, context: Array, mask: Array) -> jax.Array:
        """context [B, L, D], mask [B, L], True for tokens that count -> [B, features]."""
        shown = mask[..., None].astype(self.dtype)
        mean = (context * shown).sum(1) / jnp.maximum(shown.sum(1), 1)
        zeros = nn.initializers.zeros_init()
        return nn.Dense(self.features, use_bias=False, kernel_init=zeros, dtype=self.dtype, name="proj")(mean)
