"""The Fréchet distance: closed forms, two other implementations, and how it depends on the number of images.

goldens/frechet.npz holds two small sets of features and what torch-fidelity computes of them, made by
goldens/make_frechet.py.
"""

import functools
import tracemalloc

import goldens_loader
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from ddpm_jax.metrics import frechet
from ddpm_jax.metrics.frechet import Moments

GOLDEN = np.load(goldens_loader.FOLDER / "frechet.npz")


def law(mean, covariance, n=10**6):
    """The moments of n images that have exactly this mean and covariance."""
    return Moments(n, np.asarray(mean, np.float64), np.asarray(covariance, np.float64) * (n - 1))


def rotation(seed, d):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


def correlated(seed, n, d, dtype: type = np.float32):
    """Features as a network makes them: not negative, skewed, a few directions much wider than the many."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) / np.arange(1, d + 1)[:, None] ** 0.7
    return np.maximum(rng.normal(size=(n, d)) @ mixing + 0.3, 0).astype(dtype)


def close(a: Moments, b: Moments, rtol):
    """Equal to rtol, in units of the spread."""
    assert a.n == b.n
    spread = np.sqrt(np.trace(b.covariance))
    np.testing.assert_allclose(a.mean, b.mean, rtol=0, atol=rtol * spread)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=0, atol=rtol * np.trace(b.scatter))


# Moments


def test_moments_are_numpys_mean_and_covariance():
    features = correlated(0, 500, 24)
    found = frechet.moments(features)
    np.testing.assert_allclose(found.mean, features.mean(0, dtype=np.float64), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(features, rowvar=False), rtol=1e-11, atol=1e-13)


def test_batches_of_any_size_have_the_moments_of_the_whole():
    features = correlated(1, 1000, 40)
    whole = frechet.moments(features)
    for cuts in ([1], [1, 2, 3], [0, 0, 400, 1000], [7, 500, 501, 999], list(range(0, 1000, 37))):
        parts = [frechet.moments(part) for part in np.split(features, cuts)]
        close(functools.reduce(frechet.merge_moments, parts), whole, 1e-13)
        close(functools.reduce(frechet.merge_moments, reversed(parts)), whole, 1e-13)
    tree = [frechet.moments(part) for part in np.split(features, 8)]
    while len(tree) > 1:
        tree = [frechet.merge_moments(a, b) for a, b in zip(tree[::2], tree[1::2], strict=True)]
    close(tree[0], whole, 1e-13)


def test_no_images_change_nothing():
    some, none = frechet.moments(correlated(3, 9, 4)), frechet.moments(np.zeros((0, 4)))
    assert none.n == 0 and frechet.merge_moments(none, frechet.empty_moments(4)).n == 0
    for found in (
        frechet.merge_moments(some, none),
        frechet.merge_moments(none, some),
        frechet.merge_moments(frechet.empty_moments(4), some),
    ):
        assert found.n == 9
        np.testing.assert_array_equal(found.mean, some.mean)
        np.testing.assert_array_equal(found.scatter, some.scatter)


def test_a_mean_large_against_the_spread_costs_the_spread_no_digits():
    """At 1e8, float64 has a grid of 1.5e-8, and a sum of squares would have one of 2."""
    far = np.random.default_rng(4).normal(size=(4000, 12)) @ rotation(4, 12) + 1e8
    expected = frechet.moments(far - 1e8)
    batches = [frechet.moments(part) for part in np.split(far, [5, 700, 701, 2500])]
    for found in (frechet.moments(far), functools.reduce(frechet.merge_moments, batches)):
        np.testing.assert_allclose(found.mean - 1e8, expected.mean, rtol=0, atol=6e-8)
        close(found._replace(mean=expected.mean), expected, 1e-9)


def test_features_of_low_precision_are_summed_in_float64():
    features = jnp.asarray(correlated(5, 700, 6), jnp.bfloat16)
    exact = np.asarray(features).astype(np.float64)
    close(frechet.moments(np.asarray(features)), frechet.moments(exact), 0)
    close(frechet.moments(exact.astype(np.float16)), frechet.moments(exact), 0)


@pytest.mark.slow
def test_fifty_thousand_inception_features_stream_through_less_than_a_gigabyte():
    """Two thousand and forty-eight features in batches of 500, each batch the one before with its columns turned."""
    block = correlated(6, 500, 2048)
    tracemalloc.start()
    total = frechet.empty_moments(2048)
    for i in range(100):
        total = frechet.merge_moments(total, frechet.moments(np.roll(block, i, axis=1)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total.n == 50_000
    assert peak < 2**28  # eight matrices of 2048 x 2048
    one = frechet.moments(block)
    turned = np.mean([np.roll(one.mean, i) for i in range(100)], axis=0)
    np.testing.assert_allclose(total.mean, turned, rtol=1e-11)
    # what the batches spread in themselves does not depend on how they are turned
    between = 500 * sum(((np.roll(one.mean, i) - turned) ** 2).sum() for i in range(100))
    assert np.trace(total.scatter) == pytest.approx(100 * np.trace(one.scatter) + between, rel=1e-10)


# The distance


def test_numbers_on_a_line():
    """F = (m_a - m_b)^2 + (s_a - s_b)^2."""
    assert frechet.frechet_distance(law([1.0], [[4.0]]), law([-2.0], [[0.25]])) == pytest.approx(9 + 1.5**2, rel=1e-13)


def test_covariances_with_the_same_axes():
    """F is the squared distance of the means and of the standard deviations along the axes."""
    rng, axes = np.random.default_rng(0), rotation(0, 30)
    (m_a, m_b), (s_a, s_b) = rng.normal(size=(2, 30)), 10 ** rng.uniform(-4, 2, (2, 30))
    a, b = (law(m, axes * s**2 @ axes.T) for m, s in ((m_a, s_a), (m_b, s_b)))
    expected = ((m_a - m_b) ** 2).sum() + ((s_a - s_b) ** 2).sum()
    assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.7, np.pi / 2])
def test_laws_on_two_lines(angle):
    """Of rank 1, with axes that differ: the trace of the root is s_a s_b |cos|."""
    axes = rotation(1, 10)
    u, v = axes[0], np.cos(angle) * axes[0] + np.sin(angle) * axes[1]
    found = frechet.frechet_distance(law(np.zeros(10), 9 * np.outer(u, u)), law(np.zeros(10), 4 * np.outer(v, v)))
    assert found == pytest.approx(9 + 4 - 2 * 6 * np.cos(angle), abs=1e-6)


def test_features_on_two_planes():
    """Images whose features have rank 2 in 16 dimensions, on planes that meet in a line."""
    rng, axes = np.random.default_rng(2), rotation(2, 16)
    plane = rng.normal(size=(50, 2))
    plane = (plane - plane.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(plane, rowvar=False))).T
    a = frechet.moments(plane * [3, 2] @ axes[[0, 1]] + 5)
    b = frechet.moments(plane * [1, 4] @ axes[[0, 2]] + 5)
    # along the line 3 and 1; across it one has 2 and the other 4, alone
    assert frechet.frechet_distance(a, b) == pytest.approx((3 - 1) ** 2 + 2**2 + 4**2, rel=1e-6)


@pytest.mark.parametrize("d", [64, 512])
def test_the_square_root_of_the_product_gives_the_same(d):
    """The formula as it was first published, with a matrix root that is not symmetric."""
    a, b = (frechet.moments(correlated(seed, 3 * d, d)) for seed in (10, 11))
    root = np.real(scipy.linalg.sqrtm(a.covariance @ b.covariance))
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_torch_fidelity_computes_the_same():
    generated, real = (frechet.moments(GOLDEN[name]) for name in ("generated", "real"))
    found = frechet.frechet_distance(generated, real)
    assert found == pytest.approx(float(GOLDEN["frechet_inception_distance"]), rel=1e-9)


def test_a_law_of_others_has_the_distance_of_its_images():
    features, others = correlated(26, 300, 32), frechet.moments(correlated(27, 300, 32))
    own = frechet.moments(features)
    law_of_it = frechet.moments_of_law(own.mean, own.covariance)
    np.testing.assert_array_equal(law_of_it.covariance, own.covariance)
    distance = frechet.frechet_distance(own, others)
    assert frechet.frechet_distance(law_of_it, others) == pytest.approx(distance, rel=1e-9)


def test_it_is_symmetric_and_above_zero():
    a, b = (frechet.moments(correlated(seed, 200, 32)) for seed in (20, 21))
    there, back = frechet.frechet_distance(a, b), frechet.frechet_distance(b, a)
    assert there > 0
    assert there == pytest.approx(back, rel=1e-12)


def test_moving_and_turning_both_sets_changes_nothing_and_scaling_them_squares():
    features, turn = [correlated(seed, 200, 32, np.float64) for seed in (22, 23)], rotation(22, 32)
    near, far = ([frechet.moments(x) for x in xs] for xs in (features, [3 * x @ turn + 100 for x in features]))
    assert frechet.frechet_distance(*far) == pytest.approx(9 * frechet.frechet_distance(*near), rel=1e-9)


def test_features_are_no_distance_from_themselves():
    features = correlated(24, 300, 128)
    in_parts = frechet.merge_moments(frechet.moments(features[:100]), frechet.moments(features[100:]))
    assert 0 <= frechet.frechet_distance(frechet.moments(features), in_parts) < 1e-9


@pytest.mark.slow
def test_two_thousand_features_are_no_distance_from_themselves():
    features = correlated(25, 3000, 2048)
    whole = frechet.moments(features)
    in_parts = frechet.merge_moments(frechet.moments(features[:1100]), frechet.moments(features[1100:]))
    assert 0 <= frechet.frechet_distance(whole, in_parts) < 1e-9 * np.trace(whole.covariance)


# Its bias


def pairs_of_moments(seeds, n_first, n_second, mean, std):
    """For each seed, the moments of normal features in two disjoint sets."""
    for seed in range(seeds):
        z = np.random.default_rng(seed).normal(mean, std, (n_first + n_second, len(mean)))
        yield frechet.moments(z[:n_first]), frechet.moments(z[n_first:])


@pytest.mark.parametrize(("n_first", "n_second"), [(150, 150), (100, 200)])
def test_the_bias_of_normal_features_is_found(n_first, n_second):
    """Against the law that they are drawn from, F has the mean d / n + d (d + 1) / 4 (n - 1), and terms in 1/n^2:

    |m|^2 has the mean d / n, and with C = 1 + E, tr C + d - 2 tr C^1/2 is tr E^2 / 4 to second order.
    """
    d, n, standard = 4, n_first + n_second, law(np.zeros(4), np.eye(4))
    pairs = pairs_of_moments(800, n_first, n_second, np.zeros(d), np.ones(d))
    found = [frechet.sampling_bias(*halves, standard) for halves in pairs]
    expected = d / n + d * (d + 1) / (4 * (n - 1))
    standard_error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert standard_error < 0.02 * expected
    assert abs(np.mean(found) - expected) < 4 * standard_error + expected * d / n


def test_without_its_bias_the_distance_is_that_of_endlessly_many_images():
    mean, std = np.array([0.3, 0, 0, 0]), np.array([1, 0.8, 1.3, 1])
    limit = (mean**2).sum() + ((std - 1) ** 2).sum()
    standard, biased, corrected = law(np.zeros(4), np.eye(4)), [], []
    for halves in pairs_of_moments(600, 60, 60, mean, std):
        biased.append(frechet.frechet_distance(frechet.merge_moments(*halves), standard))
        corrected.append(biased[-1] - frechet.sampling_bias(*halves, standard))
    standard_error = np.std(corrected, ddof=1) / np.sqrt(600)
    bias = np.mean(biased) - limit
    assert bias > 20 * standard_error
    assert abs(np.mean(corrected) - limit) < 4 * standard_error + bias * 4 / 120


# Refusals


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: frechet.moments(np.zeros(3)), r"moments: expected features \[n, d\], got shape \(3,\)"),
        (lambda: frechet.moments(np.zeros((3, 0))), r"got shape \(3, 0\)"),
        (lambda: frechet.moments(np.zeros((3, 2), np.uint8)), "floating-point features, got uint8: are these images"),
        (
            lambda: frechet.moments(np.array([[1, np.nan], [np.inf, np.nan], [0, 0]])),
            r"moments: 2 of 3 rows of features are not finite",
        ),
        (
            lambda: frechet.merge_moments(frechet.empty_moments(2), frechet.empty_moments(3)),
            "merge_moments: .* on both sides, got 2 and 3",
        ),
        (
            lambda: frechet.frechet_distance(law([0], [[1]]), frechet.empty_moments(3)),
            "frechet_distance: .*, got 1 and 3",
        ),
        (
            lambda: frechet.frechet_distance(frechet.moments(np.eye(5)), law(np.zeros(5), np.eye(5))),
            "a covariance of 5 features needs more than 5 images, got 5",
        ),
        (
            lambda: frechet.frechet_distance(law(np.zeros(5), np.eye(5)), law(np.zeros(5), np.eye(5), n=1)),
            "a covariance of 5 features needs more than 5 images, got 1",
        ),
        (lambda: frechet.frechet_distance(law([0], [[np.inf]]), law([0], [[1]])), "the moments are not finite"),
        (lambda: frechet.frechet_distance(law([0], [[1]]), law([np.nan], [[1]])), "the moments are not finite"),
        (
            lambda: frechet.frechet_distance(law([0, 0], [[1, 0], [0, -1]]), law([0, 0], np.eye(2))),
            "without negative eigenvalues, got -1 to 1",
        ),
        (
            lambda: frechet.moments_of_law(np.zeros(3), np.eye(2)),
            r"moments_of_law: expected \[d\] and \[d, d\], got \(3,\) and \(2, 2\)",
        ),
        (lambda: frechet.empty_moments(3).covariance, "covariance: expected moments of at least 2 images, got 0"),
    ],
)
def test_refusals(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_a_half_needs_as_many_images_as_a_whole():
    features, standard = correlated(30, 12, 6), law(np.zeros(6), np.eye(6))
    halves = frechet.moments(features[:6]), frechet.moments(features[6:])
    assert frechet.frechet_distance(frechet.merge_moments(*halves), standard) > 0
    with pytest.raises(ValueError, match="a covariance of 6 features needs more than 6 images, got 6"):
        frechet.sampling_bias(*halves, standard)
