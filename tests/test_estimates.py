"""Limits and scalings of an estimate: what they leave alone, and what they do to a chain."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import estimates, gaussian, samplers, schedules

SCHEDULE = schedules.linear(100)
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 6)) * 1.5, jnp.float32)
NET = lambda x, t: jnp.sin(3 * x)  # noqa: E731


def free(t=60):
    return gaussian.denoiser(SCHEDULE, NET, "v", clip=False)(X, jnp.int32(t))


def test_a_clip_as_a_limit_is_the_denoiser_s_own():
    ours = estimates.limited(SCHEDULE, gaussian.denoiser(SCHEDULE, NET, "v", clip=False), estimates.clip)
    theirs = gaussian.denoiser(SCHEDULE, NET, "v", clip=True)
    for mine, its in zip(ours(X, jnp.int32(60))[:2], theirs(X, jnp.int32(60))[:2], strict=True):
        np.testing.assert_array_equal(mine, its)


def test_a_threshold_divides_by_its_percentile_and_never_by_less_than_1():
    # of 0, 1, ..., 100 hundredths times 4 the 75th percentile is 3; of an example within [-1, 1] nothing changes
    far = jnp.linspace(0, 4, 101) * jnp.where(jnp.arange(101) % 2, 1, -1)
    near = far / 5
    found = estimates.threshold(75)(jnp.stack([far, near]))
    np.testing.assert_allclose(found[0], np.clip(far / 3, -1, 1), rtol=1e-6)
    np.testing.assert_array_equal(found[1], near)
    # the largest of all as the percentile: the picture is scaled, and keeps its shape
    np.testing.assert_allclose(estimates.threshold(100)(far[None])[0], far / 4, rtol=1e-6)


def test_an_image_s_threshold_is_its_own():
    limit = estimates.threshold(90)
    together, alone = limit(X), jnp.concatenate([limit(x[None]) for x in X])
    np.testing.assert_allclose(together, alone, rtol=1e-6)  # batches are programs of their own


@pytest.mark.parametrize("t", [1, 60, 100])
@pytest.mark.parametrize("how", ["threshold", "scaled"])
def test_x_t_stays_signal_x0_plus_noise_eps(how, t):
    denoise = gaussian.denoiser(SCHEDULE, NET, "v", clip=False)
    if how == "threshold":
        denoise = estimates.limited(SCHEDULE, denoise, estimates.threshold(80))
    else:
        denoise = estimates.scaled(SCHEDULE, denoise, 1.05)
    found = denoise(X, jnp.int32(t))
    np.testing.assert_allclose(SCHEDULE.signal[t] * found.x0 + SCHEDULE.noise[t] * found.eps, X, atol=2e-6)


def test_scaling_by_1_is_nothing_and_a_column_has_a_factor_for_each_time():
    denoise, at_60 = gaussian.denoiser(SCHEDULE, NET, "v", clip=False), jnp.int32(60)
    np.testing.assert_allclose(estimates.scaled(SCHEDULE, denoise, 1.0)(X, at_60).x0, free().x0, rtol=0, atol=2e-6)
    column = jnp.ones(101).at[60].set(1.1)
    np.testing.assert_allclose(estimates.scaled(SCHEDULE, denoise, column)(X, at_60).eps, free().eps / 1.1, rtol=1e-6)
    np.testing.assert_allclose(estimates.scaled(SCHEDULE, denoise, column)(X, jnp.int32(59)).eps, free(59).eps)


def test_scaling_repairs_a_network_that_overestimates_the_noise():
    # a network with 3 % too much eps everywhere, scaled by 1.03, is the one without, along a whole chain
    def loud(x, t):
        return 1.03 * 0.5 * jnp.sin(x)

    keys, chain = samplers.image_keys(0, range(4)), samplers.times(100, 20)
    ends = []
    for net, factor in ((loud, 1.03), (lambda x, t: 0.5 * jnp.sin(x), 1.0)):
        denoise = estimates.scaled(SCHEDULE, gaussian.denoiser(SCHEDULE, net, clip=False), factor)
        denoise = estimates.limited(SCHEDULE, denoise, estimates.threshold(95))
        ends.append(samplers.sample(keys, samplers.ddim(SCHEDULE, denoise), X, chain))
    np.testing.assert_allclose(ends[0], ends[1], atol=2e-5)
    assert np.abs(ends[0]).max() <= 1


@pytest.mark.parametrize("percentile", [0, -1, 100.5])
def test_a_percentile_is_one(percentile):
    with pytest.raises(ValueError, match=re.escape(f"percentile must lie in (0, 100], got {percentile}")):
        estimates.threshold(percentile)
