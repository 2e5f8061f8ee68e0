"""Group normalisation with modulation and swish in the same pass, and a gradient that keeps only the input."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.guidance import Array
from ddpm_jax.models.unet.parameters import at_least_float32, constant, parameter

Parts = Sequence[jax.Array]
"""Arrays [B, ..., C_i] that lie one after the other along C."""


def group_count(channels: int, groups: int = 32) -> int:
    """`groups` if it divides `channels`; else the largest number, up to `groups`, with two channels or more per group.

    The normalisation of a single channel removes a constant added to all of its pixels, such as the time embedding.
    This happens in the original, with 32 groups everywhere, at 32 channels, and here unless `groups` is smaller.
    """
    most = groups if channels % groups == 0 else min(groups, max(1, channels // 2))
    return next(n for n in range(most, 0, -1) if channels % n == 0)


def _group_mean(per_channel: jax.Array, groups: int) -> jax.Array:
    """[B, C] -> [B, C], the mean of each channel's group of consecutive channels."""
    grouped = per_channel.reshape(per_channel.shape[0], groups, -1)
    return jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape).reshape(per_channel.shape)


def _upcast(x: jax.Array) -> jax.Array:
    return x.astype(at_least_float32(x.dtype))


def _channel_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean and variance of each channel of each image, [B, C], in float32 or wider and in two passes."""
    x, inner = _upcast(x), tuple(range(1, x.ndim - 1))
    mean = x.mean(inner)
    return mean, jnp.square(x - jnp.expand_dims(mean, inner)).mean(inner)


def _moments(parts: Parts, groups: int) -> tuple[jax.Array, jax.Array]:
    """The mean and variance [B, C] of each channel's group, of the parts together.

    Moments are first those of each channel, and then combined on [B, C], which costs nothing.  So the sums over a part
    that is normalised elsewhere too, as a skip connection is, are computed once: the compiler finds them equal.
    """
    own_mean, own_var = (_concatenate(each) for each in zip(*map(_channel_moments, parts), strict=True))
    return _group_moments(own_mean, own_var, groups)


MAX_SQUARED_MEAN_TO_VARIANCE = 1e4
"""The largest ratio with which E[x^2] - E[x]^2 in float32 has three digits."""


def _moments_in_one_pass(parts: Parts, groups: int) -> tuple[jax.Array, jax.Array]:
    """`_moments` to three digits, by E[x^2] - E[x]^2, which a TPU sums where x is computed.

    If there would be fewer digits, x is read again.  For x of bfloat16, which has two digits and a half.
    """
    wide = [_upcast(part) for part in parts]
    inner = tuple(range(1, parts[0].ndim - 1))
    own_mean, square = (
        _concatenate([x.mean(inner) for x in wide]),
        _concatenate([jnp.square(x).mean(inner) for x in wide]),
    )
    mean, var = _group_moments(own_mean, square - jnp.square(own_mean), groups)
    lost = jnp.any(jnp.square(own_mean) > MAX_SQUARED_MEAN_TO_VARIANCE * var)
    return jax.lax.cond(lost, lambda: _moments(parts, groups), lambda: (mean, var))


def _concatenate(parts: Parts) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def _group_moments(own_mean: jax.Array, own_var: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
    mean = _group_mean(own_mean, groups)
    return mean, _group_mean(own_var + jnp.square(own_mean - mean), groups)


def _mean_and_inverse_std(parts: Parts, groups: int, eps: float) -> tuple[jax.Array, jax.Array]:
    """The mean and 1 / std [B, C] of each channel's group, of the parts together."""
    if parts[0].dtype.itemsize == 2:
        # not on GPUs, where a condition waits for the host, nor on CPUs, where x is still in the cache
        mean, var = jax.lax.platform_dependent(
            parts,
            tpu=functools.partial(_moments_in_one_pass, groups=groups),
            default=functools.partial(_moments, groups=groups),
        )
    else:
        mean, var = _moments(parts, groups)
    return mean, jax.lax.rsqrt(var + eps)


def split_indices(parts: Sequence[Array]) -> list[int]:
    """The end of each part but the last in their concatenation along C."""
    return list(itertools.accumulate(part.shape[-1] for part in parts))[:-1]


def _split_channels(parts: Parts, *of_channels: jax.Array) -> Iterator[tuple[jax.Array, ...]]:
    """Each part in float32 or wider, with its channels of arrays [B, C] or [1, C], shaped to broadcast to it."""
    cut = [jnp.split(each, split_indices(parts), axis=-1) for each in of_channels]
    for part, *its in zip(parts, *cut, strict=True):
        inner = tuple(range(1, part.ndim - 1))
        yield _upcast(part), *(jnp.expand_dims(each, inner) for each in its)


def _materialise(parts: Parts) -> jax.Array:
    """`_concatenate` of large parts that are still to be computed."""
    if len(parts) == 1:
        return parts[0]
    return jax.lax.platform_dependent(parts, cpu=_write_one_by_one, default=_concatenate)


def _write_one_by_one(parts: Parts) -> jax.Array:
    """`_concatenate` for CPUs, where computation fused into a concatenation takes more than twice the time."""
    channels = sum(part.shape[-1] for part in parts)
    # a barrier, as the compiler would turn an update of zeros into padding, as slow as a concatenation
    y = jax.lax.optimization_barrier(jnp.zeros((*parts[0].shape[:-1], channels), parts[0].dtype))
    for part, start in zip(parts, [0, *split_indices(parts)], strict=True):
        y = jax.lax.dynamic_update_slice_in_dim(y, part, start, axis=-1)
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _group_norm_with_vjp(parts, scale, bias, groups, eps, swish, dtype):
    return _group_norm_forward(parts, scale, bias, groups, eps, swish, dtype)[0]


def _group_norm_forward(parts, scale, bias, groups, eps, swish, dtype):
    mean, inverse = _mean_and_inverse_std(parts, groups, eps)
    ys = [(x - m) * gain + b for x, m, gain, b in _split_channels(parts, mean, inverse * scale, bias)]
    ys = [y * jax.nn.sigmoid(y) if swish else y for y in ys]
    return _materialise([y.astype(dtype) for y in ys]), (parts, mean, inverse, scale, bias)


def _group_norm_backward(groups, eps, swish, dtype, saved, dy):
    """The gradient in one pass over x and dy for the sums and one for dx; y is computed again."""
    parts, mean, inverse, scale, bias = saved
    inner = tuple(range(1, dy.ndim - 1))

    def unit_gradients(parts, dy):
        dys = [part.astype(mean.dtype) for part in jnp.split(dy, split_indices(parts), axis=-1)]
        units = [(x - m) * i for x, m, i in _split_channels(parts, mean, inverse)]
        if swish:
            ys = [unit * s + b for unit, s, b in _split_channels(units, scale, bias)]
            gates = [jax.nn.sigmoid(y) for y in ys]
            dys = [dy * (gate * (1 + y * (1 - gate))) for dy, gate, y in zip(dys, gates, ys, strict=True)]
        return units, dys

    units, dys = unit_gradients(parts, dy)
    pixels = math.prod(dy.shape[1:-1])
    d_bias = _concatenate([dy.sum(inner) for dy in dys])
    d_scale = _concatenate([(dy * unit).sum(inner) for dy, unit in zip(dys, units, strict=True)])
    along_one, along_unit = (_group_mean(each * scale, groups) / pixels for each in (d_bias, d_scale))
    if dy.dtype.itemsize == 2:  # computed again, or a TPU would write float32 and read it
        units, dys = unit_gradients(*jax.lax.optimization_barrier((parts, dy)))
    small = _split_channels(dys, scale, inverse, along_one, along_unit)
    d_parts = tuple(
        (i * (dy * s - one - unit * along)).astype(part.dtype)
        for part, unit, (dy, s, i, one, along) in zip(parts, units, small, strict=True)
    )
    if len(scale) == 1:
        d_scale, d_bias = d_scale.sum(0, keepdims=True), d_bias.sum(0, keepdims=True)
    return d_parts, d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


_group_norm_with_vjp.defvjp(_group_norm_forward, _group_norm_backward)
_group_norm = jax.jit(_group_norm_with_vjp, static_argnums=(3, 4, 5, 6))  # so traced once for each shape


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _plain_group_norm(parts, scale, bias, groups, eps, swish, dtype):
    """`_group_norm` with JAX's own derivatives, in forward mode, too."""
    return _group_norm_forward(parts, scale, bias, groups, eps, swish, dtype)[0]


class GroupNorm(nn.Module):
    """Group normalisation (arXiv:1803.08494) over groups of consecutive channels, then optionally swish.

    Statistics are float32 (float64 for float64) in two passes, exact even for a mean of thousands of standard
    deviations; of bfloat16 on a TPU in one pass, if that is precise enough.  The gradient is a custom one, which keeps
    only the input and may be differentiated again; `jax.jvp` of the layer itself needs `forward_mode`.

    Attributes:
        groups: see `group_count`.
        eps: added to the variance, in squared units of the input.
        dtype: of the result; the input's if None.
        forward_mode: see `network.UNet`.
    """

    swish: bool = False
    eps: float = 1e-6
    dtype: DTypeLike | None = None
    groups: int = 32
    forward_mode: bool = False

    @nn.compact
    def __call__(self, x: jax.Array | tuple[jax.Array, ...], modulation: jax.Array | None = None) -> jax.Array:
        """[B, ..., C] or a tuple of its parts along C -> [B, ..., C].

        A modulation [B, 2C] multiplies the result, before the swish, by 1 + its first half and adds its second half
        (FiLM, arXiv:1709.07871).
        """
        parts = x if isinstance(x, tuple) else (x,)
        channels = sum(part.shape[-1] for part in parts)
        scale = parameter(self, "scale", constant(1), (channels,))[None]
        bias = parameter(self, "bias", constant(0), (channels,))[None]
        if modulation is not None:  # the composition of two affine maps is one, per image
            wide = at_least_float32(modulation.dtype)
            factor, shift = jnp.split(modulation.astype(wide), 2, axis=-1)
            scale, bias = scale * (1 + factor), bias * (1 + factor) + shift
        dtype = jnp.dtype(parts[0].dtype if self.dtype is None else self.dtype)
        normalise = _plain_group_norm if self.forward_mode else _group_norm
        return normalise(parts, scale, bias, group_count(channels, self.groups), self.eps, self.swish, dtype)
