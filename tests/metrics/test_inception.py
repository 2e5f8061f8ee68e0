"""Inception's network against numpy's, and its scores against known answers and torch-fidelity's recorded ones."""

from typing import Any

import goldens_loader
import jax
import numpy as np
import numpy_inception
import pytest

from ddpm_jax.convert import inception as inception_weights
from ddpm_jax.metrics import inception

GOLDEN = np.load(goldens_loader.FOLDER / "frechet.npz")


@pytest.fixture(scope="module")
def variables(tmp_path_factory):
    network, _, _ = numpy_inception.example()
    path = tmp_path_factory.mktemp("weights") / "random.npz"
    np.savez(path, **network.weights)
    return inception_weights.read_weights(path)


# The network


def test_the_network_is_the_published_one_layer_by_layer(variables):
    """Features and logits of a colour image; another padding, pooling or resizing is off by 1e-2 and more."""
    _, image, (features, logits) = numpy_inception.example()
    found: Any = jax.device_get(jax.jit(inception.Inception().apply)(variables, image[None]))
    assert found[0].shape == (1, 2048) and found[1].shape == (1, 1008)
    for ours, theirs in zip(found, (features, logits), strict=True):
        assert np.abs(ours[0] - theirs).max() < 2e-5 * np.abs(theirs).max()
        assert theirs.std() > 0.1


def test_images_are_resized_from_the_corner_of_a_pixel():
    """Known answers: two pixels, as many pixels, twice as many; and any others by the formula."""
    two = np.array([0, 1], np.float32).reshape(1, 1, 2, 1)
    row = np.asarray(inception.resize(two))[0, 0, :, 0]
    np.testing.assert_allclose(row, np.minimum(np.arange(299) * 2 / 299, 1), atol=1e-6)
    draw = np.random.default_rng(0).uniform(0, 255, (598, 598, 1)).astype(np.float32)
    np.testing.assert_array_equal(inception.resize(draw[None, :299, :299])[0], draw[:299, :299])
    np.testing.assert_array_equal(inception.resize(draw[None])[0], draw[::2, ::2])
    small = draw[:32, :17]
    np.testing.assert_allclose(inception.resize(small[None])[0], numpy_inception.resized(small), atol=1e-3)


def test_averages_leave_out_the_padding_and_maxima_have_none():
    x = np.arange(1, 17, dtype=np.float32).reshape(1, 4, 4, 1)
    mean = np.asarray(inception.average_pool(x))[0, :, :, 0]
    assert mean[0, 0] == (1 + 2 + 5 + 6) / 4 and mean[0, 1] == (1 + 2 + 3 + 5 + 6 + 7) / 6 and mean[1, 1] == 6
    assert np.asarray(inception.max_pool(-x, 1, "SAME"))[0, 3, 3, 0] == -11
    assert np.asarray(inception.max_pool(x)).reshape(-1).tolist() == [11]


def test_integers_of_other_levels_are_rounded_to_8_bits_and_floats_are_not():
    values = np.arange(17).reshape(1, 1, 17, 1)  # 8 is 127.5, 1 is 15.9375
    whole = inception.to_8_bit(values.astype(np.uint8), 17)
    assert whole.dtype == np.uint8 and whole.shape == (1, 1, 17, 1)
    np.testing.assert_array_equal(whole[0, 0, [0, 1, 2, 3, 16], 0], [0, 16, 32, 48, 255])
    fine = inception.to_8_bit(values.astype(np.float32), 17)
    assert fine.dtype == np.float32
    np.testing.assert_allclose(fine[0, 0, [1, 16], 0], [15.9375, 255], rtol=1e-6)
    deep = inception.to_8_bit(values.astype(np.uint16) * 257, 65536)
    np.testing.assert_array_equal(deep, values)
    half = np.full((1, 1, 1, 3), 0.5, np.float32)
    assert inception.to_8_bit(half, 256) is half


# The scores


def test_torch_fidelity_finds_the_same_scores():
    generated, real = (GOLDEN[name].astype(np.float64) for name in ("generated", "real"))
    distance = inception.kernel_distance(generated, real, subset_size=100)
    expected = [float(GOLDEN[f"kernel_inception_distance_{part}"]) for part in ("mean", "std")]
    np.testing.assert_allclose(distance, expected, rtol=1e-9)
    score = inception.inception_score(generated)
    np.testing.assert_allclose(score, [float(GOLDEN[f"inception_score_{p}"]) for p in ("mean", "std")], rtol=1e-9)


def test_an_inception_score_counts_classes():
    np.testing.assert_allclose(inception.inception_score(np.ones((50, 1008), np.float32)), (1, 0), atol=1e-12)
    certain = 1000 * np.eye(8, dtype=np.float32)[np.arange(64) % 8]
    np.testing.assert_allclose(inception.inception_score(certain, splits=1), (8, 0), rtol=1e-9)


def test_the_kernel_distance_of_two_normal_laws():
    # With k(x, y) = (x y + 1)^3 and the moments of N(0, 1) and N(m, 1):
    m = 0.5
    among = (m**3 + 3 * m) ** 2 + 3 * (m**2 + 1) ** 2 + 3 * m**2 + 1
    expected = 4 + among - 2 * (3 * (m**2 + 1) + 1)
    draw = np.random.RandomState(0)
    found = inception.kernel_distance(draw.randn(20000, 1), m + draw.randn(20000, 1), subset_size=100)
    assert abs(found.mean - expected) < 4 * found.std / 100**0.5
    assert found.std < expected


def test_subsets_of_all_rows_are_all_the_same():
    draw = np.random.RandomState(0)
    found = inception.kernel_distance(draw.randn(50, 4), 1 + draw.randn(50, 4), subsets=5)
    assert found.mean > 0 and found.std < 1e-9


# Refusals


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: inception.inception_score(np.zeros(9)), r"logits float32 or float64 \[n, d\], got float64 \(9,\)"),
        (lambda: inception.inception_score(np.zeros((9, 2))), r"splits in 1 \.\. 9, the images, got 10"),
        (lambda: inception.kernel_distance(np.zeros((9, 2), int), np.zeros((9, 2))), "features float32 or .*got int64"),
        (lambda: inception.kernel_distance(np.zeros((9, 2)), np.zeros(9)), r"reference float32 .*got float64 \(9,\)"),
        (lambda: inception.kernel_distance(np.zeros((9, 2)), np.zeros((9, 3))), r"one d, got float64 \(9, 2\) and fl"),
        (lambda: inception.kernel_distance(np.zeros((9, 2)), np.zeros((1, 2))), "at least 2 rows, got .* 9 and 1 rows"),
        (lambda: inception.kernel_distance(*np.zeros((2, 9, 2)), subsets=0), "subsets >= 1 .* got subsets=0"),
    ],
)
def test_arguments_out_of_range_are_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (np.zeros((2, 8, 8, 3)), "images of type uint8, uint16 or float32, got float64"),
        (np.zeros((2, 8, 8, 3), np.int32), "got int32"),
        (np.zeros((8, 8, 3), np.uint8), r"images \[n, H, W, 1 \| 3\], none of them 0, got shape \(8, 8, 3\)"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"got shape \(2, 8, 8, 4\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"got shape \(0, 8, 8, 3\)"),
        (np.full((2, 8, 8, 3), 256, np.uint16), "values from 0 to levels - 1 = 255, got 256 to 256"),
        (np.full((2, 8, 8, 3), -0.5, np.float32), r"got -0\.5 to -0\.5"),
        (np.array([0, 1, np.nan], np.float32).reshape(1, 1, 1, 3), "got nan to nan"),
        (np.array([0, 1, np.inf], np.float32).reshape(1, 1, 1, 3), r"got 0\.0 to inf"),
    ],
)
def test_images_that_are_not_as_described_are_refused(images, text):
    with pytest.raises(ValueError, match=text):
        inception.to_8_bit(images, 256)
