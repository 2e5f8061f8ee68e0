"""Conditions: how they are dropped and drawn in training, and guidance on data whose answer is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_data import to_numpy

from ddpm_jax import conformance, gaussian, guidance, samplers, schedules
from ddpm_jax.guidance import Condition
from ddpm_jax.keys import from_seed

SCHEDULE = schedules.linear(100, 1e-3, 0.1)
X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
T = np.array([1, 20, 40, 60, 80, 100])


def net(x_t, t, condition):
    """Some function of all three, without sums, which compilers round in ways of their own."""
    return jnp.where(t[:, None] > 50, x_t, jnp.abs(x_t)) * condition[:, None]


LABELS, NULL = np.arange(6, dtype=np.float32), np.full(6, -3, np.float32)


@functools.cache
def guided_outputs(with_interval=False):
    """(scale, start, end) -> the guided network's output, the conditional one's and the other one's, of X."""

    @jax.jit
    def outputs(scale, start, end):
        interval = (start, end) if with_interval else None
        found = guidance.classifier_free_guidance(net, LABELS, NULL, scale, interval=interval)(X, T)
        return found, net(X, T, LABELS), net(X, T, NULL)

    return lambda scale, start=0, end=0: to_numpy(outputs(np.float32(scale), start, end))


def test_guidance_of_1_is_the_conditional_network_and_of_0_the_other_one():
    one, conditional, free = guided_outputs()(1.0)
    np.testing.assert_array_equal(one, conditional)
    np.testing.assert_array_equal(guided_outputs()(0.0)[0], free)
    # and it goes on in a line
    np.testing.assert_allclose(guided_outputs()(3.5)[0] - conditional, 2.5 * (conditional - free), rtol=1e-5, atol=1e-5)


def test_outside_of_its_interval_guidance_does_nothing():
    found, conditional, _ = guided_outputs(True)(4.0, 20, 60)
    inside = np.array([False, True, True, True, False, False])
    np.testing.assert_array_equal(found[inside], guided_outputs()(4.0)[0][inside])
    np.testing.assert_array_equal(found[~inside], conditional[~inside])


def test_a_learned_variance_stays_that_of_the_condition():
    def net_with_variance(x_t, t, condition):
        return jnp.concatenate([net(x_t, t, condition), x_t * condition[:, None]], axis=-1)

    found = np.asarray(jax.jit(lambda: guidance.classifier_free_guidance(net_with_variance, LABELS, NULL, 2.0)(X, T))())
    np.testing.assert_allclose(found[:, :4], guided_outputs()(2.0)[0], rtol=1e-6)
    np.testing.assert_allclose(found[:, 4:], X * LABELS[:, None], rtol=1e-6)


def test_another_scale_or_interval_is_no_other_program():
    traced = []

    @jax.jit
    def some(scale, interval):
        traced.append(scale)
        return guidance.classifier_free_guidance(net, LABELS, NULL, scale, interval=interval)(X, T)

    for scale, interval in ((1.0, (1, 100)), (0.0, (5, 9)), (7.5, (2, 2))):
        some(jnp.float32(scale), jnp.array(interval))
    assert len(traced) == 1


def test_guidance_must_be_one_number():
    with pytest.raises(ValueError, match=r"scale must be a single number, got an array \(2,\)"):
        guidance.classifier_free_guidance(net, LABELS, NULL, np.ones(2))


def test_guided_normal_data_are_those_of_the_guided_mean():
    """With the mean m as condition, data are N(m, C), unconditionally N(0, C): with scale w they are N(w m, C)."""
    cov = np.diag([0.5, 0.1, 0.02])
    means = np.array([[1.0, -0.5, 0.2], [-0.3, 0.4, 0.1]])

    def eps_of(mean, x_t, t):
        law = conformance.gaussian_data(mean, cov)
        return conformance.ideal_denoiser(SCHEDULE, law)(x_t, t).eps

    def normal(x_t, t, labels):
        exact = jnp.stack([eps_of(mean, x_t, t) for mean in (*means, np.zeros(3))])
        return exact[labels, jnp.arange(len(labels))]

    labels, null = np.array([0, 1, 0, 1]), np.full(4, 2)
    x_T = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)
    times = conformance.uniform_log_snr_times(SCHEDULE, 30, 5)

    @jax.jit
    def images(keys, scale):
        denoise = gaussian.denoiser(
            SCHEDULE, guidance.classifier_free_guidance(normal, labels, null, scale), clip=False
        )
        return samplers.sample(keys, samplers.dpm_solver_pp(SCHEDULE, denoise, order=3), x_T, times)

    for scale in (0.0, 1.0, 2.5):
        x = np.asarray(images(samplers.image_keys(0, range(4)), np.float32(scale)))
        for i, k in enumerate([0, 1, 0, 1]):
            law = conformance.gaussian_data(scale * means[k], cov)
            expected = conformance.probability_flow(SCHEDULE, law, x_T[i : i + 1], int(times[0]), int(times[-1]))[0]
            np.testing.assert_allclose(x[i], expected, atol=5e-3, err_msg=f"scale {scale}")


# --- training


def keys(n):
    return jax.random.split(from_seed(5), n)


def condition(n):
    fields = (np.arange(n), np.ones((n, 3, 2), "f4"), np.ones((n, 4, 5), "f4"), np.ones((n, 4), bool))
    return Condition(*fields)


def test_the_share_of_dropped_conditions_is_the_rate_and_each_is_dropped_whole():
    n, rate = 4000, 0.2
    some = condition(n)._replace(tokens=np.ones((n, 7), np.uint8), image=np.ones((n, 2, 2, 1), np.float32))
    dropped = jax.jit(lambda keys, batch: guidance.drop_condition(keys, batch, guidance.null_condition(batch, n), rate))
    found = to_numpy(dropped(keys(n), some))
    gone = found.label == n
    assert abs(gone.mean() - rate) < 4 * (rate * (1 - rate) / n) ** 0.5
    np.testing.assert_array_equal(found.tokens.any(-1), ~gone)
    np.testing.assert_array_equal(found.mask.any(-1), ~gone)
    np.testing.assert_array_equal(found.image, some.image)
    np.testing.assert_array_equal(found.context, some.context)
    # dropped or not by its own key alone
    again = dropped(keys(n)[10:20], jax.tree.map(lambda leaf: leaf[10:20], some))
    np.testing.assert_array_equal(again.label, found.label[10:20])


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_a_share_outside_of_0_to_1_is_refused(rate):
    some = condition(3)
    with pytest.raises(ValueError, match=rf"rate must lie in \[0, 1\], got {rate}"):
        guidance.drop_condition(keys(3), some, some, rate)


def test_each_text_of_an_example_is_as_likely_and_what_is_not_there_never_comes():
    n = 6000
    texts = np.zeros((n, 4, 5), np.uint8)
    texts[:, 0, :2], texts[:, 1, :3], texts[:, 2, :1] = 1, 2, 3
    texts[::2, 1:] = 0
    found = np.asarray(jax.jit(guidance.random_caption)(keys(n), texts))[:, 0]
    np.testing.assert_array_equal(found[::2], 1)
    shares = np.bincount(found[1::2], minlength=4)[1:] / (n / 2)
    assert found.min() == 1 and np.abs(shares - 1 / 3).max() < 4 * (2 / 9 / (n / 2)) ** 0.5


def test_an_example_of_the_empty_text_alone_is_unconditional():
    found = np.asarray(jax.jit(guidance.random_caption)(keys(3), np.zeros((3, 2, 5), np.uint8)))
    assert found.shape == (3, 5) and not found.any()


def test_given_is_the_network_with_its_condition():
    chosen_examples = np.arange(6) < 3

    @jax.jit
    def outputs():
        selected = guidance.select_examples(chosen_examples, (LABELS, X), (NULL, -X))
        return guidance.condition_on(net, LABELS)(X, T), net(X, T, LABELS), selected

    conditioned, expected, selected = to_numpy(outputs())
    np.testing.assert_array_equal(conditioned, expected)
    np.testing.assert_array_equal(selected[0], np.where(chosen_examples, LABELS, NULL))
    np.testing.assert_array_equal(selected[1], np.concatenate([X[:3], -X[3:]]))
