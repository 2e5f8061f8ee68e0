"""Sampling from a linear measurement of an image: inpainting, super-resolution, deblurring, colourisation.

    A = measurements.downsample(4)
    denoise = measurements.condition_on_measurement(schedule, denoise, A, y, noise=0.02)

makes of one unconditional network a denoiser for images with the measurement y, which any sampler takes.  A is any
linear function of images [B, ...]:

    known_pixels  pixels of a mask
    downsample    means of blocks of pixels
    blur          Gaussian blur
    grey          luminance of RGB images
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import gaussian
from ddpm_jax.editing import check_image, check_mask
from ddpm_jax.gaussian import Denoiser, Estimate
from ddpm_jax.guidance import block_average
from ddpm_jax.schedules import Schedule, gather

LinearMap = Callable[[jax.Array], jax.Array]
"""Images [B, ...] -> measurements [B, ...] of any shape: linear (0 becomes 0), each image for itself."""

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue, ITU-R BT.601: those of Pillow's grey images."""


def condition_on_measurement(
    schedule: Schedule,
    denoise: Denoiser,
    A: LinearMap,
    y: jax.Array,
    noise: float | jax.Array = 0.0,
    *,
    iterations: int = 5,
) -> Denoiser:
    """The denoiser of images with the measurement y = A x_0 + noise N(0, I): E[x_0 | x_t, y] instead of E[x_0 | x_t].

    By Tweedie's formula the covariance of x_0 given x_t is C = (noise_t^2 / signal_t) d x_0_hat / d x_t, and

        x_0 = x_0_hat + C A' (A C A' + noise^2)^-1 (y - A x_0_hat)

    is exact for Gaussian data of any mean and covariance, at every t.  So any sampler draws, up to its own error, from
    the law of the data given y.  Pseudoinverse guidance (Song et al., ICLR 2023) takes a constant for C; here the
    system is solved by conjugate gradients.  A' is `jax.linear_transpose` of A.

    Limit x0 afterwards: `denoisers.limit_x0` with `denoisers.clip`, or with a function that sets known pixels, which
    conjugate gradients reach only nearly.

    Args:
        denoise: should not clip, where its derivatives would vanish.
        y: [B, ...] or [1, ...], as A returns it, data units.
        noise: [] the standard deviation of the measurement's noise, data units; 0 is an exact measurement.
        iterations: of conjugate gradients, each a derivative of the network in reverse mode (the cost of two or three
            function evaluations).  Gaussian data with d measured numbers need d at most, networks few.

    Raises:
        ValueError: if iterations is below 1, noise is negative, or y has not the shape that A returns.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if isinstance(noise, (int, float, np.generic)) and not noise >= 0:
        raise ValueError(f"noise must be at least 0, got {noise}: it is a standard deviation")

    def conditioned(x_t: jax.Array, t: jax.Array) -> Estimate:
        def predict(x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
            estimate = gaussian.apply_denoiser(denoise, x, t)
            return estimate.x0, estimate.variance_mix

        x0, vjp_fn, mix = jax.vjp(predict, x_t, has_aux=True)
        signal, noise_t = gather(schedule.signal, t, x_t), gather(schedule.noise, t, x_t)
        transpose = jax.linear_transpose(A, x_t)

        def covariance(v: jax.Array) -> jax.Array:
            """C A' v, but for noise_t^2 / signal, which cancels: an infinite one at signal 0 would not."""
            return vjp_fn(transpose(v)[0])[0]

        measured = A(x0)
        check_image("y", y, measured, "A(x)")
        std = jnp.asarray(noise, measured.dtype)
        variance = std**2 * gather(schedule.signal, t, measured) / gather(schedule.noise, t, measured) ** 2

        def operator(v: jax.Array) -> jax.Array:
            product = A(covariance(v))
            return product if isinstance(noise, (int, float)) and noise == 0 else product + variance * v

        x0 = x0 + covariance(_conjugate_gradients(operator, jnp.asarray(y, measured.dtype) - measured, iterations))
        return Estimate(x0, (x_t - signal * x0) / noise_t, mix)

    return conditioned


def known_pixels(mask: jax.Array) -> LinearMap:
    """Inpainting: the pixels where the mask is True, and 0 for the others.

    Raises:
        ValueError: if the mask is not boolean; when it measures, if its shape does not broadcast to the images'.
    """
    check_mask(mask)

    def measure(x: jax.Array) -> jax.Array:
        check_mask(mask, x)
        return jnp.where(mask, x, 0)

    return measure


def downsample(factor: int) -> LinearMap:
    """Super-resolution: means of blocks of factor pixels along each spatial axis, [B, H / factor, W / factor, C].

    The function raises a ValueError if the factor does not divide the sizes.
    """

    def measure(x: jax.Array) -> jax.Array:
        return block_average(x, factor)[:, *[slice(None, None, factor)] * (x.ndim - 2)]

    return measure


def blur(std: float) -> LinearMap:
    """Deblurring: convolution with a Gaussian of this standard deviation in pixels along each spatial axis.

    The Gaussian ends at four standard deviations, and images go on mirrored at their edges, as in
    scipy.ndimage.gaussian_filter.

    Raises:
        ValueError: if std is not positive.
    """
    if not 0 < std < np.inf:
        raise ValueError(f"std must be positive and finite, got {std}")

    def measure(x: jax.Array) -> jax.Array:
        for axis in range(1, x.ndim - 1):
            matrix = jnp.asarray(_blur_matrix(x.shape[axis], std), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(matrix, x, (1, axis), precision="highest"), 0, axis)
        return x

    return measure


def grey(x: jax.Array) -> jax.Array:
    """Colourisation: the luminance of RGB images, [B, ..., 1].

    Raises:
        ValueError: if images have not three channels.
    """
    if x.shape[-1] != 3:
        raise ValueError(f"grey is for images of 3 channels, got {x.shape[-1]}")
    return jnp.tensordot(x, jnp.asarray(LUMINANCE, x.dtype)[:, None], 1, precision="highest")


def _blur_matrix(size: int, std: float) -> np.ndarray:
    """[size, size] the blur of a line of pixels."""
    radius = int(4 * std + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    mirrored = np.pad(np.eye(size), ((radius, radius), (0, 0)), mode="symmetric")
    return np.lib.stride_tricks.sliding_window_view(mirrored, len(weights), axis=0) @ (weights / weights.sum())


def _conjugate_gradients(operator: LinearMap, b: jax.Array, iterations: int) -> jax.Array:
    """w with operator(w) about b, image by image; stops for an image whose curvature is not positive."""
    axes = tuple(range(1, b.ndim))

    def dot(u: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(u * v, axes, keepdims=True)

    def iterate(_, carry):
        w, residual, direction, square = carry
        product = operator(direction)
        curvature = dot(direction, product)
        good = (curvature > 0) & (square > 0)
        length = jnp.where(good, square / jnp.where(good, curvature, 1), 0)
        w, residual = w + length * direction, residual - length * product
        left = dot(residual, residual)
        direction = residual + jnp.where(good, left / jnp.where(good, square, 1), 0) * direction
        return w, residual, direction, jnp.where(good, left, 0)

    return jax.lax.fori_loop(0, iterations, iterate, (jnp.zeros_like(b), b, b, dot(b, b)))[0]
