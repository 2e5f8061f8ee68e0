"""Convolutions of kernel size 3 and nearest-neighbour upsampling, for any number of spatial axes."""

import functools
import itertools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.models.unet import winograd
from ddpm_jax.models.unet.compat import Padding
from ddpm_jax.models.unet.parameters import add_bias, at_least_float32, constant, fan_average, parameter

_PIECE_BYTES = 2**20
"""Bytes of a result's gradient from which a CPU computes the kernel's at a time, so that they stay in its cache."""

Zeros = tuple[tuple[int, int], ...]
"""Numbers of zeros (before, after) the pixels of each axis."""

_MAX_PIECES = 16
"""Upper limit of pieces, each of which is compiled."""


def num_spatial_axes(x: jax.Array) -> int:
    """The number of spatial axes of x [B, ..., C]: 2 for images, 3 for volumes."""
    return x.ndim - 2


class Conv(nn.Module):
    """A convolution of kernel size 3 along each spatial axis, with bias.

    Attributes:
        scale: of the kernel's initial variance.
        padding: of an even size for stride 2: "end" pads at the bottom and the right alone, as TensorFlow does,
            "both" on all sides, as PyTorch's padding=1 does.
        forward_mode: see `network.UNet`.
    """

    features: int
    stride: int = 1
    scale: float = 1.0
    padding: Padding = "end"
    dtype: DTypeLike = jnp.float32
    forward_mode: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, shift: jax.Array | None = None) -> jax.Array:
        """[B, H, W, C] -> [B, H/stride, W/stride, features], likewise of one or three spatial axes.

        A shift [B, features] is added with the bias.
        """
        kernel, bias = _parameters(self, x, self.scale)
        convolution = _conv_general_dilated if self.forward_mode else convolve
        y = convolution(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)
        return add_bias(y, bias, shift)


class UpsampleConv(nn.Module):
    """`upsample_nearest`, then a convolution of kernel size 3, in one with fewer products on CPUs and TPUs."""

    features: int
    dtype: DTypeLike = jnp.float32
    forward_mode: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, 2H, 2W, features], likewise of one or three spatial axes."""
        kernel, bias = _parameters(self, x)
        convolution = _conv_general_dilated if self.forward_mode else convolve
        # a CPU would multiply with the zeros of the fused form; GPUs have not been measured
        out = jax.lax.platform_dependent(
            x.astype(self.dtype),
            kernel,
            cpu=functools.partial(subpixel_upsample_convolve, convolution=convolution),
            tpu=fused_upsample_convolve,
            default=functools.partial(upsample_then_convolve, convolution=convolution),
        )
        return add_bias(out, bias)


def _parameters(layer: Conv | UpsampleConv, x: jax.Array, scale: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """The kernel and the bias of a layer that is given x."""
    shape = (3,) * num_spatial_axes(x) + (x.shape[-1], layer.features)
    kernel = parameter(layer, "kernel", fan_average(scale), shape)
    return kernel, parameter(layer, "bias", constant(0), (layer.features,))


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding | Zeros = "end") -> jax.Array:
    """x [B, H, W, C] convolved with a kernel [3, 3, C, D] of the same dtype -> [B, H/stride, W/stride, D].

    With `Zeros` as padding the kernel may have any size.

    On a CPU, large convolutions of images in float32 and their gradients are computed by `winograd`; the kernel's
    gradient of others is a sum over pieces of the batch, up to four times as fast as from all at once.
    The gradient may be differentiated again; forward-mode differentiation (`jax.jvp`) is not possible.
    """
    return _convolve_with_vjp(x, kernel, stride, padding)


def _conv_general_dilated(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding | Zeros = "end"
) -> jax.Array:
    """`convolve` with JAX's own derivatives, in forward mode, too."""
    axes = num_spatial_axes(x)
    zeros = "SAME" if padding == "end" else [(1, 1)] * axes if padding == "both" else padding
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * axes, zeros, dimension_numbers=_dimension_numbers(axes))


def _convolve(x, kernel, stride, padding):
    plain = functools.partial(_conv_general_dilated, stride=stride, padding=padding)
    if _by_winograd(x, kernel, stride, padding):
        return jax.lax.platform_dependent(x, kernel, cpu=winograd.convolve, default=plain)
    return plain(x, kernel)


def _forward(x, kernel, stride, padding):
    return _convolve(x, kernel, stride, padding), (x, kernel)


def _by_winograd(x, kernel, stride, padding):
    """True for convolutions that a CPU computes by `winograd`."""
    return stride == 1 and padding in ("end", "both") and winograd.is_faster(x, kernel)


def _backward(stride, padding, saved, dy):
    def plain(kernel, dy):
        back = jax.linear_transpose(lambda x: _conv_general_dilated(x, kernel, stride, padding), x)
        return back(dy)[0]

    x, kernel = saved
    if _by_winograd(dy, kernel, stride, padding):
        dx = jax.lax.platform_dependent(kernel, dy, cpu=winograd.input_gradient, default=plain)
    else:
        dx = plain(kernel, dy)
    return dx, _kernel_gradient(stride, padding, x, kernel, dy)


def _kernel_gradient(stride, padding, x, kernel, dy):
    """The kernel's gradient."""

    def whole(x, dy):
        (back,) = jax.linear_transpose(lambda kernel: _conv_general_dilated(x, kernel, stride, padding), kernel)(dy)
        return back

    def in_pieces(x, dy):
        wide = at_least_float32(dy.dtype)
        pieces = (whole(x[i : i + images], dy[i : i + images]).astype(wide) for i in range(0, len(x), images))
        return functools.reduce(jnp.add, pieces).astype(kernel.dtype)

    if _by_winograd(x, kernel, stride, padding):
        return jax.lax.platform_dependent(x, dy, cpu=winograd.kernel_gradient, default=whole)
    images = max(_PIECE_BYTES * len(dy) // max(dy.size * dy.dtype.itemsize, 1), -(-len(dy) // _MAX_PIECES), 1)
    if images >= len(dy):
        return whole(x, dy)
    return jax.lax.platform_dependent(x, dy, cpu=in_pieces, default=whole)


_convolve_with_vjp = jax.custom_vjp(_convolve, nondiff_argnums=(2, 3))
_convolve_with_vjp.defvjp(_forward, _backward)


def upsample_then_convolve(
    x: jax.Array, kernel: jax.Array, convolution: Callable[..., jax.Array] = convolve
) -> jax.Array:
    """`upsample_nearest` x [B, H, W, C], then the convolution with a kernel [3, 3, C, D], in x's dtype."""
    return convolution(upsample_nearest(x), kernel.astype(x.dtype))


def subpixel_upsample_convolve(
    x: jax.Array, kernel: jax.Array, convolution: Callable[..., jax.Array] = convolve
) -> jax.Array:
    """As `upsample_then_convolve`, with 4/9 of the products (of images): each new pixel depends on 2x2 old ones.

    For each of the positions of a new pixel within an old one, a convolution with a kernel of size 2: the sums of the
    weights that the kernel would multiply with the same old pixel (sub-pixel convolution, arXiv:1609.05158).
    """
    axes = num_spatial_axes(x)
    phases = []
    for position in itertools.product((0, 1), repeat=axes):
        summed = kernel
        for axis, after in enumerate(position):
            first, middle, last = jnp.split(summed, 3, axis)
            summed = jnp.concatenate([first + middle, last] if after else [first, middle + last], axis)
        zeros = tuple((1 - after, after) for after in position)
        phases.append(convolution(x, summed.astype(x.dtype), 1, zeros))
    for axis in reversed(range(1, 1 + axes)):  # of each two, one after the other along the axis
        pairs = zip(phases[::2], phases[1::2], strict=True)
        phases = [
            jnp.stack(pair, axis + 1).reshape(*pair[0].shape[:axis], -1, *pair[0].shape[axis + 1 :]) for pair in pairs
        ]
    return phases[0]


def fused_upsample_convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `upsample_then_convolve`, with 4/9 of the products (of images): each new pixel depends on 2x2 old ones.

    Zeros are inserted between the pixels, and the kernel is widened: where it would multiply a repeated pixel twice, it
    multiplies the pixel once, with the sum of the two weights, and a zero once.
    """
    axes = num_spatial_axes(x)
    for axis in range(axes):
        before, after = ([(0, 0)] * kernel.ndim for _ in range(2))
        before[axis], after[axis] = (1, 0), (0, 1)
        kernel = jnp.pad(kernel, after) + jnp.pad(kernel, before)
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (1,) * axes, [(2, 2)] * axes, lhs_dilation=(2,) * axes,
        dimension_numbers=_dimension_numbers(axes),
    )  # fmt: skip


def _dimension_numbers(axes: int) -> tuple[str, str, str]:
    """The axes of a convolution's images, kernel and result."""
    sides = "DHW"[-axes:]
    return f"N{sides}C", f"{sides}IO", f"N{sides}C"


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Nearest-neighbour upsampling, [B, H, W, C] -> [B, 2H, 2W, C], of any spatial axes."""
    (b, *sides, c), axes = x.shape, num_spatial_axes(x)
    pairs = (n for side in sides for n in (side, 2))
    x = jnp.broadcast_to(jnp.expand_dims(x, range(2, 2 * axes + 1, 2)), (b, *pairs, c))
    return x.reshape(b, *(2 * side for side in sides), c)
