"""Held-out evaluation: a mean and its error over all images, whatever the batch."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import gaussian, likelihood, losses, schedules
from ddpm_jax.keys import from_seed
from ddpm_jax.metrics import held_out

X0 = np.random.default_rng(0).normal(0, 0.5, (23, 4, 4, 1)).astype(np.float32)


@jax.jit
def examine(keys, x0):
    """A time and a loss that know the image, and a bits/dim that knows the key."""
    return jnp.round(100 * x0[:, 0, 0, 0]), x0.mean((1, 2, 3)), jax.vmap(jax.random.uniform)(keys)


@pytest.mark.parametrize("batch", [1, 4, 8, 23])
def test_every_image_counts_once_whatever_the_batch(batch):
    found = held_out.evaluate_held_out(examine, from_seed(0), X0, batch)
    whole = held_out.evaluate_held_out(examine, from_seed(0), X0, len(X0))
    np.testing.assert_array_equal(found.times, np.round(100 * X0[:, 0, 0, 0]))
    np.testing.assert_allclose(found.losses, X0.mean((1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(found[:3], whole[:3], rtol=1e-6)
    np.testing.assert_allclose(found.loss, X0.mean(), rtol=1e-5)


def test_the_error_is_that_of_a_mean():
    """Uniform numbers have a standard deviation of 12^-1/2; that of 400 such errors is known to 5 %."""
    found = held_out.evaluate_held_out(examine, from_seed(1), np.zeros((400, 2, 2, 1), np.float32), 100)
    assert found.standard_error == pytest.approx(12**-0.5 / 20, rel=4 * 0.05)
    assert abs(found.bits_per_dim - 0.5) < 4 * found.standard_error


def test_a_model_that_knows_the_data_has_the_bits_of_the_data():
    """Data N(0, 1/64) on a fine grid and its exact denoiser: the bound is the entropy of the grid, and a little."""
    schedule, levels = schedules.linear(200, 5e-4, 0.1), 65536
    x0 = np.random.default_rng(1).normal(0, 1 / 8, (256, 8, 8, 1))
    x0 = (np.rint((x0 + 1) * (levels - 1) / 2) * 2 / (levels - 1) - 1).astype(np.float32)

    def net(x, t):
        signal, noise = (schedules.gather(column, t, x) for column in (schedule.signal, schedule.noise))
        return noise * x / (signal**2 / 64 + noise**2)

    def loss(keys, schedule, net, x0, t):
        return losses.simple_loss(keys, schedule, net, x0, t=t)

    denoise = gaussian.denoiser(schedule, net, clip=True)
    decoder = likelihood.discretized_gaussian(levels)
    examination = held_out.make_evaluate_batch(
        schedule, net, denoise, loss, variance_mix=1.0, decoder=decoder, strata=32
    )
    found = held_out.evaluate_held_out(jax.jit(examination), from_seed(2), x0, 64)
    entropy = 0.5 * np.log2(2 * np.pi * np.e / 64) + np.log2((levels - 1) / 2)
    # mix 1 is not the best variance for data as narrow as this, which costs some tenths of a bit
    assert entropy - 4 * found.standard_error < found.bits_per_dim < entropy + 0.6
    assert likelihood.bits_per_dim(jnp.log(2.0) * 64, jnp.zeros((1, 8, 8, 1))) == pytest.approx(1.0)


def test_one_image_has_no_error_bar():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = held_out.evaluate_held_out(examine, from_seed(0), X0[:1], 4)
    assert np.isfinite(found.bits_per_dim) and np.isnan(found.standard_error)
