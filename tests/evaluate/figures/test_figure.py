"""Sampling continued from a visited time, against sample.py and against chains that start there."""

import jax
import numpy as np
import pytest
from shared_evaluation import evaluation_context, ideal_model, samples_of_sample_py

from ddpm_jax import data, samplers
from ddpm_jax.evaluate.figures import figure
from ddpm_jax.keys import from_seed


def test_a_chain_continued_from_its_beginning_is_the_image_that_sample_py_draws(run_folder):
    model = evaluation_context(run_folder, sampler="ddim", steps=4).model
    i = np.array([3, 0, 11], np.uint32)
    x_T = np.asarray(samplers.initial_noise(samplers.image_keys(3, i), model.shape))
    found = figure.continue_sampling(model, 3, i[:, None], x_T, np.full(3, 20))
    images = np.load(samples_of_sample_py(run_folder) / "samples.npz")["arr_0"]
    off = data.to_integer(found, 17).astype(int) - images[i]
    assert abs(off).max() <= 1 and (off != 0).mean() < 0.01  # in tiles of another size


def test_times_are_spread_over_the_chain_with_both_ends():
    times = samplers.times(1000, 50, spacing="ddim")
    selected = figure.evenly_spaced(times, 11)
    assert (selected[0], selected[-1], len(selected)) == (981, 0, 11) and set(selected) <= set(times)
    assert np.ptp(np.diff(selected)) <= 20
    np.testing.assert_array_equal(figure.evenly_spaced(times, 99), times)


@pytest.mark.parametrize("sampling", [{"variance_mix": 0.5}, {"sampler": "ddim", "eta": 0.3}])
def test_an_image_that_waits_goes_the_way_of_one_that_begins_there(run_folder, sampling):
    """Whatever their times, images in one program end where a chain from each one's time ends."""
    model = ideal_model(run_folder, steps=6, **sampling)
    rng, start = np.random.default_rng(0), np.array([20, 12, 0, 5, 12, 1, 20])
    x = rng.normal(size=(7, 8, 8, 1)).astype(np.float32)
    paths = rng.integers(0, 99, (7, 2))
    found = figure.continue_sampling(model, 3, paths, x, start)
    sampler = model.sampler(model.params)

    @jax.jit
    def plain(paths, x, times):
        keys = jax.vmap(lambda p: jax.random.fold_in(jax.random.fold_in(from_seed(3), p[0]), p[1]))(paths)
        return samplers.sample(keys, sampler, x, times)

    for t in (12, 1):
        expected = plain(paths, x, model.times[model.times <= t])
        np.testing.assert_allclose(found[start == t], np.asarray(expected)[start == t], atol=1e-5)
    np.testing.assert_array_equal(found[2], x[2])
