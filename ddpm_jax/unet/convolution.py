"""Convolutions of 3, and what doubles the size before one; of any number of spatial axes."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.unet.conventions import Padding
from ddpm_jax.unet.parameters import biased, fan_average, parameter, widened

_AT_ONCE = 2**20
"""Bytes of a result's gradient of which a CPU makes the kernel's at a time: they are to stay in a core's cache."""

_MOST_PIECES = 16
"""Each is compiled."""


def spatial(x) -> int:
    """How many spatial axes x [B, ..., C] has: 2 for images, 3 for volumes."""
    return x.ndim - 2


class Conv(nn.Module):
    """A convolution of 3 along each spatial axis, and a bias.

    Attributes:
        scale: of the kernel's initial variance.
        padding: of an even size for stride 2: "end" pads at the bottom and the right alone, as TensorFlow does,
            "both" on all sides, as PyTorch's padding=1 does.
    """

    features: int
    stride: int = 1
    scale: float = 1.0
    padding: Padding = "end"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[B, H, W, C] -> [B, H/stride, W/stride, features], likewise of one or three spatial axes."""
        kernel, bias = _parameters(self, x, self.scale)
        x = convolved(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)
        return biased(x, bias)


class DoublingConv(nn.Module):
    """`doubled`, then a convolution of 3, as one where that is faster."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[B, H, W, C] -> [B, 2H, 2W, features], likewise of one or three spatial axes."""
        kernel, bias = _parameters(self, x)
        # on a TPU alone: a CPU multiplies with the zeros, and of GPUs nothing is known
        out = jax.lax.platform_dependent(x.astype(self.dtype), kernel, tpu=doubled_in_one, default=doubled_in_two)
        return biased(out, bias)


def _parameters(layer: Conv | DoublingConv, x, scale: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """The kernel and the bias of a layer that is given x."""
    shape = (3,) * spatial(x) + (x.shape[-1], layer.features)
    kernel = parameter(layer, "kernel", fan_average(scale), shape)
    return kernel, parameter(layer, "bias", nn.initializers.zeros, (layer.features,))


def convolved(x, kernel, stride: int = 1, padding: Padding = "end") -> Any:
    """x [B, H, W, C] by a kernel [3, 3, C, D], both of one dtype -> [B, H/stride, W/stride, D].

    On a CPU, the kernel's gradient is a sum over pieces of the batch, up to four times as fast as from all at once.
    Its gradient may be differentiated again; it has no forward derivative (`jax.jvp`) itself.
    """
    return _with_gradients(x, kernel, stride, padding)


def _convolved(x, kernel, stride, padding):
    axes = spatial(x)
    zeros = "SAME" if padding == "end" else [(1, 1)] * axes
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * axes, zeros, dimension_numbers=_numbers(axes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _with_gradients(x, kernel, stride, padding):
    return _convolved(x, kernel, stride, padding)


def _forward(x, kernel, stride, padding):
    return _convolved(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, saved, dy):
    x, kernel = saved
    back = jax.linear_transpose(lambda x: _convolved(x, kernel, stride, padding), x)
    (dx,) = back(dy)
    return dx, _of_kernel(stride, padding, x, kernel, dy)


def _of_kernel(stride, padding, x, kernel, dy):
    """The kernel's gradient."""

    def whole(x, dy):
        (back,) = jax.linear_transpose(lambda kernel: _convolved(x, kernel, stride, padding), kernel)(dy)
        return back

    def in_pieces(x, dy):
        wide = widened(dy.dtype)
        pieces = (whole(x[i : i + images], dy[i : i + images]).astype(wide) for i in range(0, len(x), images))
        return functools.reduce(jnp.add, pieces).astype(kernel.dtype)

    images = max(_AT_ONCE * len(dy) // max(dy.size * dy.dtype.itemsize, 1), -(-len(dy) // _MOST_PIECES), 1)
    if images >= len(dy):
        return whole(x, dy)
    return jax.lax.platform_dependent(x, dy, cpu=in_pieces, default=whole)


_with_gradients.defvjp(_forward, _backward)


def doubled_in_two(x, kernel) -> jax.Array:
    """`doubled` x [B, H, W, C], then the convolution with a kernel [3, 3, C, D], in x's dtype."""
    return convolved(doubled(x), kernel.astype(x.dtype))


def doubled_in_one(x, kernel) -> jax.Array:
    """As `doubled_in_two`, with 4/9 of the products (of images): each new pixel sees 2x2 old ones.

    Zeros are put between the pixels, and the kernel is spread: where it would meet a pixel twice, it meets it once and
    zero once, with the sum of its two numbers.
    """
    axes = spatial(x)
    for axis in range(axes):
        before, after = ([(0, 0)] * kernel.ndim for _ in range(2))
        before[axis], after[axis] = (1, 0), (0, 1)
        kernel = jnp.pad(kernel, after) + jnp.pad(kernel, before)
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (1,) * axes, [(2, 2)] * axes, lhs_dilation=(2,) * axes,
        dimension_numbers=_numbers(axes),
    )  # fmt: skip


def _numbers(axes: int) -> tuple[str, str, str]:
    """The order of a convolution's axes: images, kernel, result."""
    sides = "DHW"[-axes:]
    return f"N{sides}C", f"{sides}IO", f"N{sides}C"


def doubled(x) -> jax.Array:
    """[B, H, W, C] -> [B, 2H, 2W, C]: every pixel twice along each axis, of any spatial axes."""
    (b, *sides, c), axes = x.shape, spatial(x)
    pairs = (n for side in sides for n in (side, 2))
    x = jnp.broadcast_to(jnp.expand_dims(x, range(2, 2 * axes + 1, 2)), (b, *pairs, c))
    return x.reshape(b, *(2 * side for side in sides), c)
