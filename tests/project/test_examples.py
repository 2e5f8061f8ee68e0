"""The files of examples/ run, in short, and do what they say; on the eight virtual devices of the suite."""

import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_example_has_a_test():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == set(re.findall(r" = load\(\"(\w+)\"\)", pathlib.Path(__file__).read_text()))


def test_a_plain_function_learns_a_spiral():
    example = load("own_network")
    learned = example.main(steps=500, num=200)
    noise = np.random.default_rng(0).normal(size=(200, 1, 2))
    points = np.asarray(example.spiral(jax.random.key(0), 500))
    untrained = np.linalg.norm(noise - points, axis=-1).min(1).mean()
    assert learned < 0.15 < untrained


def test_samples_under_every_schedule_have_the_moments_of_the_data():
    example = load("own_schedule")
    found = example.main(num=2000)
    assert len(found) == 3
    for mean, std in found.values():  # within four standard errors, and 1 % for the error of the solver
        assert mean == pytest.approx(example.MEAN, abs=4 * example.STD / 2000**0.5)
        assert std == pytest.approx(example.STD, rel=4 / 4000**0.5 + 0.01)


def test_an_encoder_of_words_has_a_vector_for_each_word():
    example = load("own_text_encoder")
    condition = example.encode(["the digit zero", "the digit one", "zero"])
    assert (condition.context[0, :2] == condition.context[1, :2]).all()
    assert (condition.context[0, 2] == condition.context[2, 0]).all()
    assert not (condition.context[0, 2] == condition.context[1, 2]).any()
    assert condition.mask.sum(1).tolist() == [3, 3, 1] and not condition.context[2, 1:].any()


@pytest.mark.slow
def test_texts_of_the_encoder_give_the_digits_that_they_name():
    from ddpm_jax.data import to_integer
    from ddpm_jax.metrics import classifier

    example = load("own_text_encoder")
    drawn = to_integer(example.main(), 17)
    found = classifier.load("digits")(drawn).probabilities.argmax(1)
    assert (found == np.arange(10)).mean() >= 0.8


def test_pmap_gives_the_losses_of_one_device():
    example = load("eight_devices_pmap")
    several, one = example.main(steps=2)
    np.testing.assert_allclose(several, one, rtol=1e-5)


def test_sharded_arrays_give_the_losses_of_one_device():
    example = load("eight_devices_sharding")
    several, one, x = example.main(steps=2)
    np.testing.assert_allclose(several, one, rtol=1e-5)
    assert len(x.sharding.device_set) == jax.device_count() and np.isfinite(x).all()


def test_an_nnx_module_trains():
    example = load("nnx_network")
    losses, x = example.main(steps=60, batch=32, channels=8)
    assert np.mean(losses[-5:]) < 0.75 < losses[0]
    assert x.shape == (16, 8, 8, 1) and np.isfinite(x).all()


@pytest.mark.slow
def test_the_unet_in_nnx_trains_in_place_as_it_does_as_a_function():
    example = load("unet_in_nnx")
    by_function, in_place, x = example.main(steps=60, batch=16, channels=8)
    np.testing.assert_allclose(in_place[:10], by_function[:10], rtol=1e-3)  # rounding grows
    for losses in (by_function, in_place):
        assert np.mean(losses[-10:]) < 0.8 * losses[0]
    assert x.shape == (16, 8, 8, 1) and np.isfinite(x).all()


@pytest.mark.parametrize(("library", "package"), [("equinox", "equinox"), ("haiku", "dm-haiku")])
def test_a_network_of_another_library_trains(library, package):
    pytest.importorskip(library, reason=f"needs {package}, which no other test does: pip install {package}")
    example = load("other_libraries")
    losses, x = example.main(library, steps=150)
    assert np.mean(losses[-10:]) < 0.6 < losses[0]
    assert x.shape == (16, 8, 8, 1) and np.isfinite(x).all()


def test_forward_mode_estimates_the_divergence_that_reverse_mode_computes():
    example = load("forward_mode")
    found, exact = example.main(num=400)
    assert found.std() > 0 and abs(found.mean() - exact) < 4 * found.std() / 400**0.5
