"""Post-hoc EMA: the profiles in closed form, the averages of training, and averages of other lengths made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import posthoc_ema, training
from ddpm_jax.keys import from_seed
from ddpm_jax.posthoc_ema import Profiles, fit, gamma_of_length, inner_products


def length_of_gamma(gamma):
    """The length of profiles with these exponents."""
    gamma = np.asarray(gamma, np.float64)
    return np.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def shares(length, t, steps):
    """The weight of the parameters after each update 1 ... steps in the average after t: p integrated over a step."""
    ends = np.minimum(np.arange(steps + 1) / t, 1) ** (gamma_of_length(length) + 1)
    return np.diff(ends)


def random_path(steps, rng, size=300):
    """Parameters that wander and jitter: [steps, size]."""
    return (
        3 * rng.normal(size=size) + np.cumsum(rng.normal(size=(steps, size)), 0) * 0.02 + rng.normal(size=(steps, size))
    )


def test_gamma_and_length_are_those_of_the_paper_and_each_others_inverse():
    assert gamma_of_length(0.05) == pytest.approx(16.97, abs=0.005) and gamma_of_length(0.10) == pytest.approx(
        6.94, abs=0.005
    )
    lengths = np.geomspace(0.001, posthoc_ema.MAX_LENGTH, 50)
    np.testing.assert_allclose(length_of_gamma([gamma_of_length(length) for length in lengths]), lengths, rtol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 6.94, 16.97])
def test_the_length_is_the_standard_deviation_of_the_profile(gamma):
    tau = (np.arange(200_000) + 0.5) / 200_000  # of t = 1
    p = (gamma + 1) * tau**gamma / len(tau)
    mean = (p * tau).sum()
    assert p.sum() == pytest.approx(1, abs=1e-6)
    assert np.sqrt((p * (tau - mean) ** 2).sum()) == pytest.approx(length_of_gamma(gamma), rel=1e-4)


@pytest.mark.parametrize("length", [0, -0.1, 0.3, float("nan")])
def test_a_length_that_no_profile_has_is_refused(length):
    with pytest.raises(ValueError, match=rf"relative length must lie in \(0, 0.2887\], got {length}"):
        gamma_of_length(length)


def test_inner_products_are_the_integrals():
    a, b = (
        Profiles(np.array([2.0, 7.5]), np.array([30.0, 80.0])),
        Profiles(np.array([4.0, 0.0]), np.array([50.0, 50.0])),
    )
    tau = (np.arange(400_000) + 0.5) * 100 / 400_000

    def values(of):
        inside = tau <= of.t[:, None]
        return np.where(
            inside, (of.gamma[:, None] + 1) * tau ** of.gamma[:, None] / of.t[:, None] ** (of.gamma[:, None] + 1), 0
        )

    np.testing.assert_allclose(inner_products(a, b), values(a) @ values(b).T * 100 / 400_000, rtol=1e-4)


@pytest.mark.parametrize("length", [0.02, 0.05, 0.1, 0.25])
def test_the_average_of_training_has_its_closed_form(length):
    """Also for parameters of the first step, and for the ten-thousandth, where 1 - 1/t has few digits."""
    rng, steps = np.random.default_rng(0), 40
    path = rng.normal(size=(steps, 3)).astype(np.float32)
    transform = posthoc_ema.power_ema([length])
    state, previous = transform.init(jnp.zeros(3)), jnp.zeros(3)
    update = jax.jit(transform.update)
    for now in path:
        updates, state = update(now - previous, state, previous)
        np.testing.assert_array_equal(updates, now - previous)
        previous = optax.apply_updates(previous, updates)
        if state.count == 1:
            np.testing.assert_array_equal(state.averages[0], previous)
    np.testing.assert_allclose(state.averages[0], shares(length, steps, steps) @ path, atol=2e-6)
    late = posthoc_ema.PowerEmaState(jnp.int32(999_999), (jnp.zeros(1),))
    _, late = update(jnp.ones(1), late, jnp.zeros(1))
    np.testing.assert_allclose(late.averages[0], shares(length, 1e6, 1_000_000)[-1], rtol=1e-5)


def test_updates_without_parameters_are_refused():
    transform = posthoc_ema.power_ema([0.1])
    with pytest.raises(ValueError, match=r"power_ema averages parameters: call update\(updates, state, params\)"):
        transform.update(jnp.ones(2), transform.init(jnp.ones(2)))


def test_a_skipped_step_is_no_update_of_the_averages():
    def loss(params, keys, batch):
        return (params * batch).mean()

    optimizer = optax.chain(optax.sgd(0.1), posthoc_ema.power_ema([0.1]))
    step = jax.jit(training.make_step(loss, optimizer), donate_argnums=1)
    state = training.init(jnp.ones(3), optimizer)
    for scale in (1.0, np.nan, 1.0):
        state, _ = step(from_seed(0), state, np.full((2, 3), scale, np.float32))
    assert state.step == 3 and state.opt_state[-1].count == 2
    before, second = 1 - 0.1 / 3, 1 - 0.2 / 3
    np.testing.assert_allclose(
        state.opt_state[-1].averages[0], shares(0.1, 2, 2) @ [before, second] * np.ones(3), rtol=1e-6
    )


def test_snapshots_give_an_average_that_was_kept_directly_to_one_percent():
    """One percent of its distance from the last parameters, which is far less than of its own size."""
    steps, num_snapshots = 2000, 32
    path = random_path(steps, np.random.default_rng(1))
    ends = np.linspace(0, steps, num_snapshots + 1)[1:]
    profiles = Profiles(np.repeat([gamma_of_length(0.05), gamma_of_length(0.1)], num_snapshots), np.tile(ends, 2))
    averages = [shares(length, t, steps) @ path for length in (0.05, 0.1) for t in ends]
    for length in (0.03, 0.05, 0.07, 0.1, 0.15, 0.2):
        weights, error = fit(profiles, length, steps)
        direct, made = shares(length, steps, steps) @ path, posthoc_ema.weighted_sum(weights, averages)
        assert weights.sum() == 1 and error < 0.02
        assert np.linalg.norm(made - direct) < 0.01 * np.linalg.norm(direct - path[-1]), length
    # with the earlier half the average ends earlier, where the checkpoint is
    half = profiles.t <= steps / 2
    weights, _ = fit(Profiles(profiles.gamma[half], profiles.t[half]), 0.07, steps / 2)
    made = posthoc_ema.weighted_sum(weights, [average for average, early in zip(averages, half, strict=True) if early])
    direct = shares(0.07, steps / 2, steps) @ path
    assert np.linalg.norm(made - direct) < 0.01 * np.linalg.norm(direct - path[steps // 2 - 1])


def test_the_error_of_a_profile_is_the_integral_of_the_difference():
    profiles = Profiles(np.array([7.0, 7.0, 20.0, 20.0]), np.array([60.0, 100.0, 60.0, 100.0]))
    weights, error = fit(profiles, 0.06, 100)
    tau = (np.arange(200_000) + 0.5) * 100 / 200_000

    def profile(gamma, t):
        return np.where(tau <= t, (gamma + 1) * tau**gamma / t ** (gamma + 1), 0)

    target = profile(gamma_of_length(0.06), 100)
    made = sum(w * profile(g, t) for w, g, t in zip(weights, profiles.gamma, profiles.t, strict=True))
    assert error == pytest.approx(np.linalg.norm(made - target) / np.linalg.norm(target), rel=1e-3)
    # no other weights of the same sum are better
    for change in np.random.default_rng(0).normal(size=(20, 4)):
        other = weights + 0.01 * (change - change.mean())
        worse = sum(w * profile(g, t) for w, g, t in zip(other, profiles.gamma, profiles.t, strict=True))
        assert np.linalg.norm(worse - target) > np.linalg.norm(made - target)


def test_a_profile_that_is_kept_is_taken_as_it_is_and_rounding_errors_change_no_weight():
    profiles = Profiles(
        np.tile([gamma_of_length(0.05), gamma_of_length(0.1)], 40), np.repeat(np.arange(1, 41) * 25.0, 2)
    )
    weights, error = fit(profiles, 0.1, 1000)
    np.testing.assert_array_equal(weights, np.eye(80)[-1])
    assert error < 1e-6
    noisy = Profiles(profiles.gamma * (1 + 1e-15), profiles.t)
    np.testing.assert_array_equal(fit(profiles, 0.03, 1000)[0], fit(noisy, 0.03, 1000)[0])
