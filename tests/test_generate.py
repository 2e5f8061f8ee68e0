"""Images tile by tile: image i is image i, whoever asked for it and with whom."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from ddpm_jax import gaussian, generate, samplers, schedules
from ddpm_jax.unet import UNet

SCHEDULE = schedules.linear(20, 0.005, 0.5)
TIMES = samplers.times(20, 4)
NET = UNet(channels=8, multipliers=(1, 2), blocks=1, attention_at=(4,), out_channels=1)


@functools.cache
def tiles(keep=()):
    """A network of random weights, under the sampler, over all devices."""

    def chain(params, tile):
        net = functools.partial(NET.apply, params)
        return samplers.ancestral(SCHEDULE, gaussian.denoiser(SCHEDULE, net)), TIMES

    return generate.over_devices(generate.program(chain, (8, 8, 1), keep))


@functools.cache
def params():
    return tiny_run.random_params(NET, jnp.zeros((1, 8, 8, 1)), jnp.ones(1, int))


def draw(start, num, batch=None, keep=()):
    parts = list(generate.draw(tiles(keep), params(), seed=3, start=start, num=num, tile=2, batch=batch))
    indices = np.concatenate([part.indices for part in parts])
    np.testing.assert_array_equal(indices, np.arange(start, start + num))
    return np.concatenate([part.x for part in parts])


def test_every_image_alone_is_the_image_of_the_whole():
    whole = draw(0, 16)
    assert len({image.tobytes() for image in whole}) == 16
    for i in range(16):
        assert draw(i, 1)[0].tobytes() == whole[i].tobytes()


@pytest.mark.parametrize("batch", [1, 4, 16, 100])
def test_how_many_are_in_flight_changes_nothing(batch):
    np.testing.assert_array_equal(draw(5, 37, batch), draw(0, 42)[5:])


def test_the_way_there_ends_in_the_image():
    kept = draw(0, 6, keep=(20, 0))
    assert kept.shape == (6, 2, 2, 8, 8, 1)
    np.testing.assert_array_equal(kept[:, 0, 1], draw(0, 6))
    x_T = samplers.initial_noise(samplers.image_keys(3, range(6)), (8, 8, 1))
    np.testing.assert_array_equal(kept[:, 0, 0], x_T)


@pytest.mark.parametrize("wrong", [{"start": -1}, {"num": 0}, {"tile": 0}, {"batch": 0}])
def test_requests_for_nothing_are_refused(wrong):
    asked = {"seed": 0, "start": 0, "num": 1, "tile": 2, "batch": 1} | wrong
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=rf"need start >= 0 and num, tile, batch >= 1, got .*{name}={value}"):
        next(generate.draw(tiles(), params(), **asked))
