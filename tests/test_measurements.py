"""Sampling from linear measurements where the answer is known: Gaussian images, and operators of other libraries."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from ddpm_jax import measurements, samplers, schedules
from ddpm_jax.gaussian import Estimate

SHAPE, DIM = (4, 2, 3), 24
MASK = np.array([[1, 0], [0, 0], [0, 1], [1, 1]], bool)[..., None]
MEAN = np.random.default_rng(0).uniform(-0.3, 0.3, SHAPE).reshape(-1)
COV = np.eye(1)
for size, correlation in zip(SHAPE, (0.8, 0.6, 0.7), strict=True):
    COV = np.kron(COV, correlation ** np.abs(np.subtract.outer(np.arange(size), np.arange(size))))
COV *= 0.25
OPERATORS = {
    "known pixels": measurements.known_pixels(MASK),
    "downsample": measurements.downsample(2),
    "blur": measurements.blur(0.6),
    "grey": measurements.grey,
}
each_operator = pytest.mark.parametrize("A", OPERATORS.values(), ids=OPERATORS.keys())


def ideal(schedule):
    """E[x_0 | x_t] for images with the distribution N(MEAN, COV)."""
    values, vectors = np.linalg.eigh(COV)

    def denoise(x_t, t):
        signal, noise = schedule.signal[t], schedule.noise[t]
        gain = signal * values / (signal**2 * values + noise**2)
        x0 = MEAN + ((x_t.reshape(-1, DIM) - signal * MEAN) @ vectors * gain) @ vectors.T
        x0 = x0.reshape(x_t.shape)
        return Estimate(x0, (x_t - signal * x0) / noise)

    return denoise


def equations(A, y):
    """A as a matrix and y as a vector, without what is 0 for all images."""
    H = np.asarray(A(jnp.eye(DIM).reshape(DIM, *SHAPE))).reshape(DIM, -1).T
    return H[H.any(1)], np.asarray(y).reshape(-1)[H.any(1)]


def conditional(H, R, y):
    """Mean and covariance of N(MEAN, COV) given y = H x + N(0, R)."""
    gain = COV @ H.T @ np.linalg.inv(H @ COV @ H.T + R)
    return MEAN + gain @ (y - H @ MEAN), COV - gain @ H @ COV


def measured(A, noise):
    """A measurement [1, ...], of another image than the mean."""
    x, n = np.random.default_rng(1).normal(size=(2, 1, *SHAPE))
    y = A(jnp.asarray(0.6 * x))
    return y + noise * A(jnp.asarray(n))


def affine(f):
    """The value at 0 and the slope [DIM, DIM] of an affine function of images."""
    points = np.concatenate([np.zeros((1, DIM)), np.eye(DIM)]).reshape(-1, *SHAPE)
    values = np.asarray(f(jnp.asarray(points))).reshape(-1, DIM)
    return values[0], (values[1:] - values[0]).T


@each_operator
def test_the_denoiser_is_the_conditional_mean_and_its_slope_the_conditional_covariance(A):
    """Against conditioning on x_t and y together, in float64."""
    with jax.enable_x64(True):
        schedule = schedules.linear(1000)
        denoise = jax.jit(
            lambda x, t, y, noise: measurements.condition_on_measurement(
                schedule, ideal(schedule), A, y, noise, iterations=48
            )(x, t)
        )
        for noise, t in itertools.product((0.0, 0.3), (1, 30, 300, 1000)):
            y, a, std = measured(A, noise), float(schedule.signal[t]), float(schedule.noise[t])
            H, values = equations(A, y)
            start, jacobian = affine(lambda x, t=t, y=y, noise=noise: denoise(x, t, y, noise).x0)
            R = np.diag([std**2] * DIM + [noise**2] * len(H))
            mean, cov = conditional(np.concatenate([a * np.eye(DIM), H]), R, np.concatenate([np.zeros(DIM), values]))
            np.testing.assert_allclose(start, mean, atol=1e-7, err_msg=f"t = {t}")
            np.testing.assert_allclose(std**2 / a * jacobian, cov, atol=1e-6, err_msg=f"t = {t}")
            x = np.random.default_rng(t).normal(size=(2, *SHAPE))
            found = denoise(x, t, y, noise)
            np.testing.assert_allclose(a * found.x0 + std * found.eps, x, atol=1e-12)


def test_each_image_may_have_a_measurement_of_its_own():
    schedule, x = schedules.linear(1000), np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    y = measurements.grey(-x)

    @jax.jit
    def both(y):
        return measurements.condition_on_measurement(schedule, ideal(schedule), measurements.grey, y, 0.1)(x, 300).x0

    alone = [both(y[:1])[0], both(y[1:])[1]]
    np.testing.assert_allclose(both(y), alone, rtol=1e-5, atol=1e-6)
    assert abs(alone[0] - both(y[1:])[0]).max() > 0.1


@each_operator
def test_samples_have_the_mean_and_covariance_of_the_data_given_the_measurement(A):
    """The deterministic chain is affine in x_T; what is left is the error of the solver."""
    with jax.enable_x64(True):
        schedule, keys = schedules.linear(1000), samplers.image_keys(0, range(DIM + 1))

        def sampler(y, noise):
            denoise = measurements.condition_on_measurement(schedule, ideal(schedule), A, y, noise, iterations=24)
            return samplers.dpm_solver_pp(schedule, denoise, order=3)

        step = jax.jit(lambda y, noise, state, t, s: sampler(y, noise).step(keys, state, t, s))
        for noise in (0.0, 0.3):
            y = measured(A, noise)
            H, values = equations(A, y)
            mean, cov = conditional(H, noise**2 * np.eye(len(H)), values)

            def end(x_T, y=y, noise=noise):
                state = sampler(y, noise).init(x_T, jnp.int32(1000))
                for t, s in itertools.pairwise(samplers.times(1000, 250)):
                    state = step(y, noise, state, t, s)
                return state.x

            start, matrix = affine(end)
            error = max(abs(start - mean).max(), abs(matrix @ matrix.T - cov).max())
            assert error < 2e-3, (noise, error)


@each_operator
def test_an_operator_is_linear_for_each_image_alone_and_jax_has_its_adjoint(A):
    with jax.enable_x64(True):
        x, other = np.random.default_rng(0).normal(size=(2, 3, *SHAPE))
        y = np.asarray(A(jnp.asarray(x)))
        np.testing.assert_allclose(A(jnp.asarray(2 * x - other)), 2 * y - A(jnp.asarray(other)), atol=1e-12)
        np.testing.assert_allclose(A(jnp.asarray(x[1:2])), y[1:2], atol=1e-12)
        v = np.random.default_rng(1).normal(size=y.shape)
        (back,) = jax.linear_transpose(A, jax.ShapeDtypeStruct(x.shape, x.dtype))(jnp.asarray(v))
        np.testing.assert_allclose(np.sum(y * v), np.sum(x * np.asarray(back)))


@pytest.mark.parametrize("std", [0.7, 3.0])
def test_the_blur_is_scipy_s(std):
    x = np.random.default_rng(0).normal(size=(2, 7, 5, 2)).astype(np.float32)
    expected = scipy.ndimage.gaussian_filter(x.astype(np.float64), (0, std, std, 0), mode="reflect")
    np.testing.assert_allclose(measurements.blur(std)(x), expected, atol=1e-6)


def test_grey_is_pillow_s_and_downsampling_numpy_s_mean():
    x = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    grey = measurements.grey(x[None].astype(np.float32))
    np.testing.assert_allclose(grey[0, ..., 0], np.asarray(Image.fromarray(x).convert("L"), np.float32), atol=0.51)
    small = measurements.downsample(2)(x[None].astype(np.float32))
    np.testing.assert_allclose(small[0, 1, 0], x[2:4, :2].mean((0, 1)), rtol=1e-6)
    assert small.shape == (1, 3, 2, 3)


def test_wrong_measurements_are_refused():
    schedule, x = schedules.linear(100), np.zeros((2, *SHAPE), np.float32)
    soft = np.full((4, 2, 1), 0.5, np.float32)

    def conditioned(A, y, **options):
        denoise = measurements.condition_on_measurement(schedule, ideal(schedule), A, y, **options)
        jax.eval_shape(lambda x: denoise(x, 5), x)

    for call, text in (
        (lambda: measurements.known_pixels(soft), "no soft masks), got float32"),
        (lambda: measurements.blur(0.0), "std must be positive and finite, got 0.0"),
        (lambda: measurements.downsample(3)(x), "a factor of 3 does not divide the image's sizes (4, 2)"),
        (lambda: measurements.grey(x[..., :1]), "grey is for images of 3 channels, got 1"),
        (lambda: conditioned(measurements.grey, x[..., :1], iterations=0), "iterations must be at least 1, got 0"),
        (lambda: conditioned(measurements.grey, x[..., :1], noise=-1.0), "noise must be at least 0, got -1.0"),
        (lambda: conditioned(measurements.grey, x), "y must have the shape of A(x), (2, 4, 2, 1), or of one for all"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            call()
