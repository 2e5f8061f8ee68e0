"""Nearest neighbours: answers known by hand, laws that hold for any features, brute force, another implementation."""

import tracemalloc

import goldens_loader
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.metrics import manifold
from ddpm_jax.metrics.manifold import density_coverage, nearest, precision_recall

GOLDEN = np.load(goldens_loader.FOLDER / "frechet.npz")


def normal(seed, n, d, dtype: type = np.float64):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


# Precision, recall, density, coverage

LINE_SAMPLES = np.array([[0.5], [4.0], [17.0], [17.5], [-1.0], [-1.5], [2.0]])
"""Their balls with k = 1:  [-1, 2]  [2, 6]  [16.5, 17.5]  [17, 18]  [-1.5, -0.5]  [-2, -1]  [0.5, 3.5]"""

LINE_REFERENCE = np.array([[0], [1], [2], [3], [10], [100], [100.5]])
"""Their balls with k = 1:  [-1, 1]  [0, 2]  [1, 3]  [2, 4]  [3, 17]  [99.5, 100.5]  [100, 101]"""


def test_points_on_a_line_have_the_answers_found_by_hand():
    """Of the samples 17.5 and -1.5 are in no ball; the others in 2, 2, 1, 1 and 3 (4, 17 and -1 on rims)."""
    found = precision_recall(LINE_SAMPLES, LINE_REFERENCE, k=1)
    assert found.precision == 5 / 7
    assert found.recall == 4 / 7  # 10, 100 and 100.5 are in no sample's ball
    found = density_coverage(LINE_SAMPLES, LINE_REFERENCE, k=1)
    assert found.density == 9 / 7
    assert found.coverage == 5 / 7  # 100 and 100.5 have no sample


def test_torch_fidelity_finds_the_same_precision_and_recall():
    for k, end in ((3, ""), (5, "_5")):
        found = precision_recall(GOLDEN["generated"], GOLDEN["real"], k=k)
        # which it keeps in float32
        assert np.float32(found.precision) == GOLDEN[f"precision{end}"]
        assert np.float32(found.recall) == GOLDEN[f"recall{end}"]


def test_a_set_is_precise_about_itself_and_recalls_itself():
    """Each point lies in its own ball, and each ball holds its centre and k others."""
    points = normal(0, 400, 8)
    assert precision_recall(points, points[::-1]) == (1, 1)
    found = density_coverage(points, points[::-1], k=5)
    assert found.coverage == 1
    assert found.density == pytest.approx(6 / 5)


def test_sets_that_are_far_apart_have_nothing_of_each_other():
    assert precision_recall(normal(0, 300, 8), normal(1, 200, 8) + 1000) == (0, 0)
    assert density_coverage(normal(0, 300, 8), normal(1, 200, 8) + 1000) == (0, 0)


def test_a_collapsed_sampler_is_precise_and_recalls_little():
    reference = np.concatenate([normal(0, 300, 4) + 20 * i for i in range(5)])
    collapsed = 0.3 * normal(1, 1500, 4) + 40
    found = precision_recall(collapsed, reference)
    assert found.precision > 0.99 and found.recall < 0.2
    found = density_coverage(collapsed, reference)
    assert found.density > 1.2 and found.coverage <= 0.2


def test_a_few_outliers_among_the_samples_raise_recall_but_not_coverage():
    """The weakness of recall that coverage was made for: samples far from all others have balls around everything."""
    reference, narrow = normal(0, 500, 2), 0.05 * normal(1, 496, 2)
    samples = np.concatenate([narrow, [[50, 0], [-50, 0], [0, 50], [0, -50]]])
    assert precision_recall(narrow, reference).recall < 0.1
    assert precision_recall(samples, reference).recall > 0.95
    assert density_coverage(samples, reference).coverage == density_coverage(narrow, reference).coverage < 0.1


@pytest.mark.parametrize(("n", "m", "k"), [(60, 60, 5), (150, 60, 3), (40, 100, 1)])
def test_one_law_has_the_density_and_coverage_of_naeem_and_others(n, m, k):
    """Whatever the law and the dimension: density 1, coverage 1 - prod (m - j) / (n + m - j)."""
    found = np.array([density_coverage(normal(2 * s, n, 3), normal(2 * s + 1, m, 3), k) for s in range(300)])
    j = np.arange(1, k + 1)
    expected = [1, 1 - np.prod((m - j) / (n + m - j))]
    standard_error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert (standard_error < 0.01).all()
    assert (np.abs(found.mean(axis=0) - expected) < 4 * standard_error).all()


def test_moving_turning_and_scaling_both_sets_changes_nothing():
    samples, reference = normal(0, 300, 6), normal(1, 200, 6) * 1.3
    turn = np.linalg.qr(normal(2, 6, 6))[0]
    there, data = (7 * x @ turn + 1e5 for x in (samples, reference))
    assert precision_recall(there, data) == precision_recall(samples, reference)
    assert density_coverage(there, data) == density_coverage(samples, reference)


def test_a_point_that_comes_k_times_more_has_a_ball_of_itself_alone():
    """Radius 0, and a sample equal to it is inside, however the sums are rounded."""
    points = normal(0, 3, 50)
    reference = np.repeat(points, 4, axis=0)
    assert precision_recall(reference, reference, k=3) == (1, 1)
    assert density_coverage(points + 1e-9, reference, k=3) == (0, 0)


# Nearest


def brute(queries, references, k):
    q, r = (np.asarray(x).astype(np.float64) for x in (queries, references))
    squares = np.stack([((row - r) ** 2).sum(axis=1) for row in q])
    order = np.argsort(squares, axis=1, kind="stable")[:, :k]
    return np.sqrt(np.take_along_axis(squares, order, axis=1)), order


def same_as_brute(queries, references, k):
    found, (distances, indices) = nearest(queries, references, k), brute(queries, references, k)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.distances, distances)


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float16, np.float32, np.float64, jnp.bfloat16])
def test_it_is_brute_force_with_copies_among_the_references(dtype, k):
    rng = np.random.default_rng(0)
    references = (rng.integers(0, 256, (300, 48)) if np.dtype(dtype).kind in "iu" else normal(0, 300, 48)).astype(dtype)
    references = references[rng.integers(0, 300, 400)]  # some of them several times
    queries = np.concatenate([references[rng.integers(0, 400, 20)], references[:5] + references[5:10]])
    same_as_brute(queries, references, k)
    assert (nearest(queries[:20], references).distances == 0).all()


def test_of_equal_distances_the_lower_index_comes_first():
    """Corners of a cube around the query, all equally far, and twenty copies of the query."""
    corners = np.array([[x, y, z] for x in (1, 9) for y in (1, 9) for z in (1, 9)], np.uint8)
    references = np.concatenate([corners, np.full((20, 3), 5, np.uint8), corners])
    found = nearest(np.full((1, 3), 5, np.uint8), references, 30)
    np.testing.assert_array_equal(found.indices[0], [*range(8, 28), *range(8), 28, 29])
    np.testing.assert_array_equal(found.distances[0], [0] * 20 + [np.sqrt(48)] * 10)


@pytest.mark.parametrize("block", [4, 60, 400])
@pytest.mark.parametrize("order", ["as drawn", "coming nearer", "going farther", "all the same"])
def test_blocks_leave_no_trace(monkeypatch, block, order):
    """Whatever the size of the blocks and however the references are sorted; few values, so that many are tied."""
    rng = np.random.default_rng(1)
    queries, references = rng.integers(0, 4, (11, 4)).astype(np.uint8), rng.integers(0, 4, (83, 4)).astype(np.uint8)
    if order == "all the same":
        references[:] = 2
    elif order != "as drawn":
        far = np.argsort(brute(queries[:1], references, 83)[1][0])
        references = references[far if order == "going farther" else far[::-1]]
    whole = precision_recall(queries, references), density_coverage(queries, references)
    monkeypatch.setattr(manifold, "BLOCK", block)
    monkeypatch.setattr(manifold, "QUERY_ROWS", 7)
    for k in (1, 3, 30):
        same_as_brute(queries, references, k)
    assert (precision_recall(queries, references), density_coverage(queries, references)) == whole


def test_several_blocks_of_features_are_brute_force_too():
    same_as_brute(normal(0, 600, 8, np.float32), normal(1, 4500, 8, np.float32), 3)


def test_features_far_from_zero_keep_their_neighbours():
    """At 1e8 the three terms of the expanded square are 1e17 and their difference is about 10."""
    same_as_brute(normal(0, 50, 10) + 1e8, normal(1, 2000, 10) + 1e8, 4)


def test_an_outlier_among_the_references_harms_nobody():
    references = normal(0, 2000, 10)
    references[[0, 700]] = 1e12
    same_as_brute(normal(1, 50, 10), references, 4)


def test_many_large_images_are_searched_in_little_memory():
    """As for a page of samples against a training set: copies are found, 0 away, and what differs by one level 1."""
    rng = np.random.default_rng(0)
    references = rng.integers(0, 256, (12_000, 3072), dtype=np.uint8)
    indices = rng.choice(12_000, 64, replace=False)
    queries = references[indices]
    queries[32:, 5] ^= 1
    tracemalloc.start()
    found = nearest(queries, references, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**28
    np.testing.assert_array_equal(found.indices[:, 0], indices)
    np.testing.assert_array_equal(found.distances[:, 0], [0] * 32 + [1] * 32)
    # two images of independent levels are 256 sqrt(d / 6) apart, and the nearest of 12,000 little less
    assert (np.abs(found.distances[:, 1] / (256 * np.sqrt(3072 / 6)) - 0.95) < 0.05).all()


def test_many_features_are_searched_in_little_memory():
    points = normal(0, 6000, 64, np.float32)
    tracemalloc.start()
    precision_recall(points[:3000], points[3000:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**28


# Refusals

THREE, FOUR = np.zeros((3, 2)), np.ones((4, 2))
HOLES = np.array([[0, np.nan], [np.inf, 0], [1, 1], [2, 2]])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: nearest(THREE, FOUR, 5), r"nearest: expected k in 1 \.\. 4, the number of references, got k=5"),
        (lambda: nearest(THREE, FOUR, 0), "got k=0"),
        (lambda: nearest(THREE[0], FOUR), r"nearest: expected queries \[n, d\], neither of them 0, got shape \(2,\)"),
        (lambda: nearest(THREE, FOUR[:0]), r"expected references \[n, d\].*got shape \(0, 2\)"),
        (lambda: nearest(THREE, FOUR[:, :0]), r"expected references \[n, d\].*got shape \(4, 0\)"),
        (lambda: nearest(THREE, np.ones((4, 3))), "queries have 2 components each and references 3"),
        (lambda: nearest(HOLES, FOUR), "nearest: 2 of 4 rows of queries are not finite"),
        (lambda: nearest(THREE > 0, FOUR), "expected queries of an integer or floating-point type, got bool"),
        (lambda: nearest(THREE, FOUR * 1j), "expected references of an integer or .*, got complex128"),
        (
            lambda: precision_recall(THREE, FOUR, 3),
            r"precision_recall: .* 1 \.\. 2, one less than samples has, got k=3",
        ),
        (lambda: precision_recall(FOUR, THREE, 3), r"1 \.\. 2, one less than reference has, got k=3"),
        (lambda: precision_recall(FOUR, FOUR, 0), "got k=0"),
        (lambda: precision_recall(FOUR, HOLES, 1), "precision_recall: 2 of 4 rows of reference are not finite"),
        (lambda: precision_recall(FOUR[:0], THREE), r"precision_recall: expected samples .*got shape \(0, 2\)"),
        (lambda: precision_recall(FOUR, np.ones((4, 3))), "samples have 2 components each and reference 3"),
        (lambda: density_coverage(THREE, FOUR, 4), r"density_coverage: .* 1 \.\. 3, one less than reference has"),
        (lambda: density_coverage(HOLES, FOUR, 1), "density_coverage: 2 of 4 rows of samples are not finite"),
        (lambda: density_coverage(FOUR, np.ones((4, 3))), "samples have 2 components each and reference 3"),
    ],
)
def test_refusals(call, text):
    with pytest.raises(ValueError, match=text):
        call()
