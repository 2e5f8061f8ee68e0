"""Convolutions of images with kernels of size 3 with 4/9 of the products: F(2x2, 3x3) of Winograd.

Tiles of 2x2 pixels of the result depend on windows of 4x4 pixels of the input.  In transformed coordinates a window
times the kernel is one product for each of the 16 numbers (Lavin and Gray, 2015, arXiv:1509.09308), which for all
windows and channels are 16 matrix products.  In float32 results differ from those of a plain convolution by about 1e-6
of the largest.  For CPUs, whose convolutions are limited by products; a few images at a time, so that their windows
stay in the cache.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

_INPUT = [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]
_KERNEL = [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
_OUTPUT = [[1, 1, 1, 0], [0, 1, -1, -1]]
"""The transforms along an axis: of windows, of kernels, and back to pixels."""

_MIN_CHANNELS = 64
_MIN_SIZE = 2**13
"""From so many channels, and so many pixels times channels, the products saved outweigh the transforms."""

_WINDOW_BYTES = 2**22
"""Upper limit of the windows of the images that are convolved together, unless it is one image."""

_MAX_WINDOW_BYTES = 2**25
"""Upper limit of the windows of one image."""

_computed_once = jax.lax.optimization_barrier  # instead of again for each use

_Matrix = Sequence[Sequence[float]]
_Parts = list[jax.Array]


def is_faster(x: jax.Array, kernel: jax.Array) -> bool:
    """True for x [B, H, W, C] and a kernel [3, 3, C, D] for which `convolve` is faster than a plain convolution."""
    if x.ndim != 4 or kernel.shape[:2] != (3, 3) or x.dtype != jnp.float32:
        return False
    (_, height, width, _), channels = x.shape, min(kernel.shape[2:])
    large_enough = channels >= _MIN_CHANNELS and height * width * channels >= _MIN_SIZE
    return large_enough and height % 2 == width % 2 == 0 and _bytes_of_windows(x) <= _MAX_WINDOW_BYTES


@jax.jit
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B, H, W, C] convolved with a kernel [3, 3, C, D], with zeros around x -> [B, H, W, D]; H and W are even."""
    return _convolve(x, _transform_kernel(_KERNEL, kernel))


@jax.jit
def input_gradient(kernel: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient [B, H, W, C] of x, given dy [B, H, W, D]: dy convolved with the kernel turned by half a turn."""
    return _convolve(dy, [u.T for u in _transform_kernel([row[::-1] for row in _KERNEL], kernel)])


def _transform_kernel(transform: _Matrix, kernel: jax.Array) -> _Parts:
    """16 matrices [C, D] of a kernel."""
    columns = _computed_once([_combine(transform, [kernel[i, j] for i in range(3)]) for j in range(3)])
    rows = [_combine(transform, row) for row in zip(*columns, strict=True)]
    return _computed_once([u for row in rows for u in row])


def _convolve(x: jax.Array, transformed_kernel: _Parts) -> jax.Array:
    b, height, width, _ = x.shape
    most = max(_WINDOW_BYTES // _bytes_of_windows(x), 1)
    images = max(n for n in range(1, min(most, b) + 1) if b % n == 0)

    def convolve_piece(x):
        windows = _in_two_axes(_INPUT, [_windows(row, 2) for row in _windows(x, 1)])
        matrices = [part.reshape(-1, part.shape[-1]) for row in windows for part in row]
        products = [v @ u for v, u in zip(_computed_once(matrices), transformed_kernel, strict=True)]
        tiles = [part.reshape(images, height // 2, width // 2, -1) for part in _computed_once(products)]
        rows = _in_two_axes(_OUTPUT, [tiles[i : i + 4] for i in range(0, 16, 4)])
        return _interleave([_interleave(row, 2) for row in rows], 1)

    pieces = jax.lax.map(convolve_piece, x.reshape(-1, images, *x.shape[1:]))
    return pieces.reshape(b, height, width, -1)


def _in_two_axes(matrix: _Matrix, rows: list[_Parts]) -> list[_Parts]:
    """matrix @ rows @ matrix.T, where the entries of rows are arrays."""
    columns = [_combine(matrix, column) for column in zip(*rows, strict=True)]
    return [_combine(matrix, row) for row in zip(*columns, strict=True)]


def _combine(matrix: _Matrix, parts: Sequence[jax.Array]) -> _Parts:
    """matrix @ parts."""
    return [functools.reduce(jnp.add, (c * part for c, part in zip(row, parts, strict=True) if c)) for row in matrix]


def _windows(x: jax.Array, axis: int) -> _Parts:
    """The pixels 0 .. 3 of windows that begin at -1, 1, 3, ... along an axis, with zeros around x."""
    padded = jnp.pad(x, [(int(i == axis),) * 2 for i in range(x.ndim)])
    pairs = padded.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    even, odd = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    n = even.shape[axis]
    return [jax.lax.slice_in_dim(part, i, n - 1 + i, axis=axis) for i in (0, 1) for part in (even, odd)]


def _interleave(parts: _Parts, axis: int) -> jax.Array:
    """Arrays of the pixels with even and with odd numbers along an axis as one."""
    return jnp.stack(parts, axis + 1).reshape(*parts[0].shape[:axis], -1, *parts[0].shape[axis + 1 :])


def _bytes_of_windows(x: jax.Array) -> int:
    """Of one image: each pixel is in four windows."""
    return 4 * math.prod(x.shape[1:]) * x.dtype.itemsize
