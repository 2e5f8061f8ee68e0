"""Images tile by tile: image i is image i, whoever asked for it and with whom."""

import functools
import os

import jax.numpy as jnp
import numpy as np
import pytest
import shared_evaluation
import tiny_run

from ddpm_jax import gaussian, keys, samplers, schedules, tracking
from ddpm_jax.models.unet import UNet
from ddpm_jax.pipeline import tiles

SCHEDULE = schedules.linear(20, 0.005, 0.5)
TIMES = samplers.times(20, 4)
NET = UNet(channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=(), out_channels=1)


def make_sampler(params, tile):
    net = functools.partial(NET.apply, params)
    return samplers.ancestral(SCHEDULE, gaussian.denoiser(SCHEDULE, net, clip=True))


@functools.cache
def mapped_tiles(save_at=()):
    """A network of random weights, under the sampler, over all devices."""
    if save_at:
        return tiles.trajectory_program(tiles.trajectory_function(make_sampler, (8, 8, 1), TIMES, save_at))
    return functools.partial(tiles.sampling_program(make_sampler, (8, 8, 1)), times=TIMES)


@functools.cache
def params():
    return tiny_run.random_params(NET, jnp.zeros((1, 8, 8, 1)), jnp.ones(1, int))


def draw(start, num, batch=None, save_at=()):
    parts = list(tiles.draw(mapped_tiles(save_at), params(), seed=3, start=start, num=num, tile=2, batch=batch))
    indices = np.concatenate([part.indices for part in parts])
    np.testing.assert_array_equal(indices, np.arange(start, start + num))
    return np.concatenate([part.x for part in parts])


def test_every_image_alone_is_the_image_of_the_whole():
    whole = draw(0, 16)
    assert len({image.tobytes() for image in whole}) == 16
    for i in range(16):
        assert draw(i, 1)[0].tobytes() == whole[i].tobytes()


def test_images_in_pieces_are_those_of_one_scan_and_the_pieces_are_shown(monkeypatch):
    times, shown = samplers.times(20, 20), []
    monkeypatch.setattr(tiles, "MIN_PIECE", 5 * 2 * 64)
    monkeypatch.setattr(tracking, "show_part", lambda fraction, size: shown.append((fraction, size)))

    def whole(inputs, key, tile):
        own = keys.fold_in_each(key, tile.indices)
        return samplers.sample(own, make_sampler(inputs, tile), samplers.initial_noise(own, (8, 8, 1)), times)

    mapped = tiles.parallelise(whole)
    programs = [
        functools.partial(tiles.sampling_program(make_sampler, (8, 8, 1)), times=times),
        lambda *args: [(1.0, mapped(*args))],
    ]
    pieces, one_scan = (
        np.concatenate([part.x for part in tiles.draw(each, params(), seed=3, start=1, num=20, tile=2)])
        for each in programs
    )
    np.testing.assert_allclose(pieces, one_scan, rtol=0, atol=2e-6)
    if os.environ.get("OPTIMISED"):  # without optimisations, rounding may differ between two programs (jax 0.10.0)
        assert pieces.tobytes() == one_scan.tobytes()
    assert shown == [(k / 4, size) for size in (15, 5) for k in (1, 2, 3)]


@pytest.mark.parametrize(
    "steps, numbers, size",
    [(1, 10**6, 1), (4, 10**6, 1), (23, 10**6, 23), (50, 10**6, 5), (1000, 10**6, 50), (1000, 2048, 50),
     (250, 2048, 50), (100, 12544, 10), (50, 2048, 50), (7, 64, 7)],
)  # fmt: skip
def test_pieces_are_alike_not_too_small_and_not_too_many(steps, numbers, size):
    assert tiles.piece_steps(steps, numbers) == size


def test_how_many_are_in_flight_changes_nothing():
    usual = draw(0, 42)[5:]
    for batch in (1, 16, 100):  # a round over the devices, and six of them, for the usual two
        np.testing.assert_array_equal(draw(5, 37, batch), usual, err_msg=f"{batch}")


def test_the_way_there_ends_in_the_image():
    saved = draw(0, 6, save_at=(20, 0))
    assert saved.shape == (6, 2, 2, 8, 8, 1)
    np.testing.assert_allclose(saved[:, 0, 1], draw(0, 6), atol=1e-5)  # by another program
    x_T = samplers.initial_noise(samplers.image_keys(3, range(6)), (8, 8, 1))
    np.testing.assert_array_equal(saved[:, 0, 0], x_T)


@pytest.mark.parametrize("by", ["pmap", "shard_map"])
def test_what_is_said_of_an_image_comes_to_it_whatever_its_tile(by):
    """The images are their indices and what is said of them; over eight devices, in two rounds and a part of one."""

    def tile_function(inputs, key, tile):
        return jnp.stack([tile.indices, tile.condition["twice"]], axis=1)

    mapped = tiles.parallelise(tile_function, by)
    program = lambda *args: [(1.0, mapped(*args))]  # noqa: E731
    twice_the_index = lambda indices: {"twice": 2 * indices}  # noqa: E731
    parts = list(tiles.draw(program, np.zeros(1), seed=0, start=5, num=37, tile=2, conditions=twice_the_index))
    np.testing.assert_array_equal(np.concatenate([part.x for part in parts]), [[i, 2 * i] for i in range(5, 42)])


@pytest.mark.parametrize("wrong", [{"start": -1}, {"num": 0}, {"tile": 0}, {"batch": 0}])
def test_requests_for_nothing_are_refused(wrong):
    requested = {"seed": 0, "start": 0, "num": 1, "tile": 2, "batch": 1} | wrong
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=rf"need start >= 0 and num, tile, batch >= 1, got .*{name}={value}"):
        next(tiles.draw(mapped_tiles(), params(), **requested))


# A run's model


def test_what_was_compiled_serves_other_numbers_and_no_other_kind_of_sampling(run_folder):
    def drawn(**sampling):
        model = shared_evaluation.ideal_model(run_folder, steps=4, **sampling)
        images = np.concatenate([part.x for part in model.draw(seed=0, start=0, num=4)])
        return images, len(model._programs)

    (still, one), (noisy, same) = (drawn(sampler="ddim", eta=eta) for eta in (0.0, 0.5))
    assert one == same and (still != noisy).any()
    (order_1, two), (order_2, three) = (drawn(sampler="dpm_solver_pp", order=order) for order in (1, 2))
    assert (two, three) == (one + 1, one + 2) and (order_1 != order_2).any()
