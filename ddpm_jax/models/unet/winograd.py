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

_MIN_CHANNELS = 32
_MIN_PIXELS = 7**2
_MIN_PRODUCTS = 3 * 2**18
"""From so many channels, pixels, and pixels times both numbers of channels, the saved products outweigh transforms."""

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
    pixels, channels = math.prod(x.shape[1:3]), kernel.shape[2:]
    return (
        min(channels) >= _MIN_CHANNELS
        and pixels >= _MIN_PIXELS
        and pixels * math.prod(channels) >= _MIN_PRODUCTS
        and _bytes_of_windows(x) <= _MAX_WINDOW_BYTES
    )


@jax.jit
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B, H, W, C] convolved with a kernel [3, 3, C, D], with zeros around x -> [B, H, W, D]."""
    return _convolve(x, _transform_kernel(_KERNEL, kernel))


@jax.jit
def input_gradient(kernel: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient [B, H, W, C] of x, given dy [B, H, W, D]: dy convolved with the kernel turned by half a turn."""
    return _convolve(dy, [u.T for u in _transform_kernel([row[::-1] for row in _KERNEL], kernel)])


@jax.jit
def kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient [3, 3, C, D] of the kernel, given x [B, H, W, C] and dy [B, H, W, D]: `convolve` transposed."""
    x, dy, c, d = _pad_to_even(x), _pad_to_even(dy), x.shape[-1], dy.shape[-1]
    most_bytes = 4 * 16 * c * d * x.dtype.itemsize  # with fewer images at a time, adding to the sums would cost more
    images = _images_at_a_time(len(x), max(_bytes_of_windows(x), _bytes_of_windows(dy)), most_bytes)

    def of_piece(summed, piece):
        x, dy = piece
        tiles = [_every_second(row, 2, 2) for row in _every_second(dy, 1, 2)]
        gradients = [m.reshape(-1, d) for row in _in_two_axes(_transpose(_OUTPUT), tiles) for m in row]
        matrices, gradients = _computed_once((_windows_as_matrices(x), gradients))
        return [u + v.T @ m for u, v, m in zip(summed, matrices, gradients, strict=True)], None

    pieces = [a.reshape(-1, images, *a.shape[1:]) for a in (x, dy)]
    summed, _ = jax.lax.scan(of_piece, [jnp.zeros((c, d), x.dtype)] * 16, pieces)
    summed = _computed_once(summed)
    rows = _in_two_axes(_transpose(_KERNEL), [summed[i : i + 4] for i in range(0, 16, 4)])
    return jnp.stack([jnp.stack(row) for row in rows])


def _transform_kernel(transform: _Matrix, kernel: jax.Array) -> _Parts:
    """16 matrices [C, D] of a kernel."""
    columns = _computed_once([_combine(transform, [kernel[i, j] for i in range(3)]) for j in range(3)])
    rows = [_combine(transform, row) for row in zip(*columns, strict=True)]
    return _computed_once([u for row in rows for u in row])


def _convolve(x: jax.Array, transformed_kernel: _Parts) -> jax.Array:
    sides, x = x.shape[1:3], _pad_to_even(x)
    b, height, width, _ = x.shape
    images = _images_at_a_time(b, _bytes_of_windows(x), _WINDOW_BYTES)

    def convolve_piece(x):
        matrices = _computed_once(_windows_as_matrices(x))
        products = [v @ u for v, u in zip(matrices, transformed_kernel, strict=True)]
        tiles = [part.reshape(images, height // 2, width // 2, -1) for part in _computed_once(products)]
        rows = _in_two_axes(_OUTPUT, [tiles[i : i + 4] for i in range(0, 16, 4)])
        return _interleave([_interleave(row, 2) for row in rows], 1)

    pieces = jax.lax.map(convolve_piece, x.reshape(-1, images, *x.shape[1:]))
    return pieces.reshape(b, height, width, -1)[:, : sides[0], : sides[1]]


def _pad_to_even(x: jax.Array) -> jax.Array:
    """Zeros after the last row and column of x [B, H, W, C] where H or W is odd."""
    return jnp.pad(x, [(0, 0), *((0, side % 2) for side in x.shape[1:3]), (0, 0)])


def _images_at_a_time(images: int, bytes_of_windows: int, most_bytes: int) -> int:
    """The largest divisor of a number of images, the windows of so many of which have at most `most_bytes`."""
    most = max(most_bytes // bytes_of_windows, 1)
    return max(n for n in range(1, min(most, images) + 1) if images % n == 0)


def _windows_as_matrices(x: jax.Array) -> _Parts:
    """The 16 numbers of each window in transformed coordinates, [windows, C]."""
    padded = _computed_once(jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]))
    windows = _in_two_axes(_INPUT, [_every_second(row, 2, 4) for row in _every_second(padded, 1, 4)])
    return [part.reshape(-1, part.shape[-1]) for row in windows for part in row]


def _every_second(x: jax.Array, axis: int, size: int) -> _Parts:
    """The pixels 0 .. size - 1 of windows of that size which begin at 0, 2, 4, ... along an axis."""
    starts = x.shape[axis] - size
    return [jax.lax.slice_in_dim(x, i, i + starts + 1, 2, axis) for i in range(size)]


def _transpose(matrix: _Matrix) -> _Matrix:
    return list(zip(*matrix, strict=True))


def _in_two_axes(matrix: _Matrix, rows: list[_Parts]) -> list[_Parts]:
    """matrix @ rows @ matrix.T, where the entries of rows are arrays."""
    columns = [_combine(matrix, column) for column in zip(*rows, strict=True)]
    return [_combine(matrix, row) for row in zip(*columns, strict=True)]


def _combine(matrix: _Matrix, parts: Sequence[jax.Array]) -> _Parts:
    """matrix @ parts."""
    return [functools.reduce(jnp.add, (c * part for c, part in zip(row, parts, strict=True) if c)) for row in matrix]


def _interleave(parts: _Parts, axis: int) -> jax.Array:
    """Arrays of the pixels with even and with odd numbers along an axis as one."""
    return jnp.stack(parts, axis + 1).reshape(*parts[0].shape[:axis], -1, *parts[0].shape[axis + 1 :])


def _bytes_of_windows(x: jax.Array) -> int:
    """Of one image: each pixel is in four windows."""
    return 4 * math.prod(x.shape[1:]) * x.dtype.itemsize
