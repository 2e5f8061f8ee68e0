"""Networks of other projects' noise levels on ours, where they are known: Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_data import gaussian_samples, ideal_denoiser

from benchmarks import jax_trainers
from ddpm_jax import gaussian, likelihood, samplers, schedules
from ddpm_jax.keys import from_seed

MEAN, STD = 0.2, 0.5
SCHEDULE = schedules.linear(1000)


def velocity(x, level):
    """E[x_0 - eps | level x_0 + (1 - level) eps] for data N(MEAN, STD^2)."""
    level = level[:, None]
    score = (level * MEAN - x) / (level**2 * STD**2 + (1 - level) ** 2)
    return MEAN + (1 - level - level * STD**2) * score


def denoise(x, sigma):
    """E[x_0 | x_0 + sigma eps] for the same data."""
    return MEAN + STD**2 / (STD**2 + sigma[:, None] ** 2) * (x - MEAN)


NETS = {
    "velocity": jax_trainers.x0_from_velocity(SCHEDULE, velocity),
    "sigma": jax_trainers.x0_from_sigma(SCHEDULE, denoise),
}


@pytest.mark.parametrize("name", NETS)
def test_the_ideal_network_of_another_path_is_the_ideal_denoiser(name):
    t = jnp.arange(1, SCHEDULE.T + 1)
    x_t = jax.random.normal(from_seed(0), (SCHEDULE.T, 3))
    np.testing.assert_allclose(NETS[name](x_t, t), ideal_denoiser(SCHEDULE, MEAN, STD)(x_t, t).x0, atol=2e-5)


@pytest.mark.parametrize("name", NETS)
def test_bound_and_samples_of_gaussian_data_are_the_known_ones(name):
    ideal = gaussian.denoiser(SCHEDULE, NETS[name], "x0")
    x0 = gaussian_samples(64, 512, MEAN, STD)
    bound = jax.jit(lambda key: likelihood.vlb(key, SCHEDULE, ideal, x0, decoder=likelihood.gaussian_density).total)
    assert float(bound(from_seed(1)).mean()) / 512 == pytest.approx(0.840462, abs=0.02)  # tests/test_likelihood.py

    keys = samplers.image_keys(0, range(64))
    noise = samplers.initial_noise(keys, (64,))
    x = samplers.sample(keys, samplers.ddim(SCHEDULE, ideal), noise, samplers.times(1000, 250))
    np.testing.assert_allclose(x, MEAN + STD * noise, rtol=0.02, atol=0.02)  # the steps' error


def test_the_tutorials_networks_have_their_parameters():
    for channels, parameters in ((64, 58_733_185), (5, 402_835)):
        init = jax_trainers.TutorialUNet(channels).init
        shapes = jax.eval_shape(init, from_seed(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
