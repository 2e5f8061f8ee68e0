"""Limits and scalings of an estimate: what they leave alone, and what they do to a chain."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_data import to_numpy

from ddpm_jax import denoisers, gaussian, samplers, schedules

SCHEDULE = schedules.linear(100)
X = (np.random.default_rng(0).normal(size=(4, 5, 6)) * 1.5).astype(np.float32)
NET = lambda x, t: jnp.sin(3 * x)  # noqa: E731
FREE = gaussian.denoiser(SCHEDULE, NET, "v", clip=False)
COLUMN = np.where(np.arange(101) == 60, 1.1, 1).astype(np.float32)


@functools.cache
def found(t):
    """The estimate at t as it is, clipped by the denoiser, by a limit and by a percentile, and scaled."""
    return to_numpy(_found(np.int32(t)))


@jax.jit
def _found(t):
    variants = {
        "free": FREE,
        "clipped": gaussian.denoiser(SCHEDULE, NET, "v", clip=True),
        "limited": denoisers.limit_x0(SCHEDULE, FREE, denoisers.clip),
        "threshold": denoisers.limit_x0(SCHEDULE, FREE, denoisers.dynamic_threshold(80)),
        "scaled": denoisers.scale_eps(SCHEDULE, FREE, 1.05),
        "scaled by 1": denoisers.scale_eps(SCHEDULE, FREE, 1.0),
        "column": denoisers.scale_eps(SCHEDULE, FREE, COLUMN),
    }
    return {name: denoise(X, t) for name, denoise in variants.items()}


def test_a_clip_as_a_limit_is_the_denoiser_s_own():
    for mine, its in zip(found(60)["limited"][:2], found(60)["clipped"][:2], strict=True):
        np.testing.assert_array_equal(mine, its)
    assert np.abs(found(60)["free"].x0).max() > 1


def test_a_threshold_divides_by_its_percentile_and_never_by_less_than_1():
    # of 0, 1, ..., 100 hundredths times 4 the 75th percentile is 3; of an example within [-1, 1] nothing changes
    far = (np.linspace(0, 4, 101) * np.where(np.arange(101) % 2, 1, -1)).astype(np.float32)
    near = far / 5
    by_75, by_100 = jax.jit(lambda x: [denoisers.dynamic_threshold(percentile)(x) for percentile in (75, 100)])(
        np.stack([far, near])
    )
    np.testing.assert_allclose(by_75[0], np.clip(far / 3, -1, 1), rtol=1e-6)
    np.testing.assert_array_equal(by_75[1], near)
    # the largest of all as the percentile: the picture is scaled, and keeps its shape
    np.testing.assert_allclose(by_100[0], far / 4, rtol=1e-6)


def test_an_image_s_threshold_is_its_own():
    limit = jax.jit(denoisers.dynamic_threshold(90))
    together, alone = limit(X), np.concatenate([limit(x[None]) for x in X])
    np.testing.assert_allclose(together, alone, rtol=1e-6)  # batches are programs of their own


@pytest.mark.parametrize("t", [1, 60, 100])
@pytest.mark.parametrize("how", ["threshold", "scaled", "limited"])
def test_x_t_stays_signal_x0_plus_noise_eps(how, t):
    signal, noise = (float(column[t]) for column in SCHEDULE[:2])
    np.testing.assert_allclose(signal * found(t)[how].x0 + noise * found(t)[how].eps, X, atol=2e-6)


def test_scaling_by_1_is_nothing_and_a_column_has_a_factor_for_each_time():
    at_60, at_59 = found(60), found(59)
    np.testing.assert_allclose(at_60["scaled by 1"].x0, at_60["free"].x0, rtol=0, atol=2e-6)
    np.testing.assert_allclose(at_60["scaled"].eps, at_60["free"].eps / 1.05, rtol=1e-6)
    np.testing.assert_allclose(at_60["column"].eps, at_60["free"].eps / 1.1, rtol=1e-6)
    np.testing.assert_allclose(at_59["column"].eps, at_59["free"].eps)


def test_scaling_repairs_a_network_that_overestimates_the_noise():
    # a network with 3 % too much eps everywhere, scaled by 1.03, is the one without, along a whole chain
    times = samplers.times(100, 20)

    @jax.jit
    def end(keys, factor):
        denoise = gaussian.denoiser(SCHEDULE, lambda x, t: factor * 0.5 * jnp.sin(x), clip=False)
        denoise = denoisers.scale_eps(SCHEDULE, denoise, factor)
        denoise = denoisers.limit_x0(SCHEDULE, denoise, denoisers.dynamic_threshold(95))
        return samplers.sample(keys, samplers.ddim(SCHEDULE, denoise), X, times)

    loud, plain = (np.asarray(end(samplers.image_keys(0, range(4)), np.float32(factor))) for factor in (1.03, 1.0))
    np.testing.assert_allclose(loud, plain, atol=2e-5)
    assert np.abs(loud).max() <= 1


@pytest.mark.parametrize("percentile", [0, -1, 100.5])
def test_a_percentile_is_one(percentile):
    with pytest.raises(ValueError, match=re.escape(f"percentile must lie in (0, 100], got {percentile}")):
        denoisers.dynamic_threshold(percentile)
