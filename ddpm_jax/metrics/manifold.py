"""Nearest neighbours of two sets of features: precision and recall, density and coverage.

The ball of a point has the distance to its k-th nearest neighbour in its own set as its radius; the balls of a set
together estimate the support of its law.  A point on the surface of a ball is inside.

Distances are Euclidean, in float64 on the host.  All pairs are first compared by |q|^2 - 2 q.r + |r|^2, block by block
in a few matrix products, with a bound on its rounding error; undecided pairs are computed again as |q - r|^2.  So the
results are those of the direct formula, and the distance of equal vectors is 0.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

BLOCK = 2**21  # numbers in a temporary array: 16 MiB, of which there are at most about ten at a time
QUERY_ROWS = 512  # queries at a time, for each of which all references are read once


class PrecisionRecall(NamedTuple):
    """Precision and recall, in [0, 1].

    Attributes:
        precision: share of the samples in the ball of a reference: their fidelity.
        recall: share of the references in the ball of a sample: the diversity of the samples.
    """

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density and coverage of samples.

    Attributes:
        density: mean number of references' balls around a sample, over k: 1 for samples of the references' law, larger
            for samples concentrated where references are dense.
        coverage: share of the references with a sample in their ball, in [0, 1].
    """

    density: float
    coverage: float


class Nearest(NamedTuple):
    """The k nearest references of each query, ascending.

    Attributes:
        distances: [n, k] float64.
        indices: [n, k] int64, rows of the references; for equal distances in ascending order.
    """

    distances: np.ndarray
    indices: np.ndarray


def precision_recall(samples: np.ndarray, reference: np.ndarray, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall: Kynkäänniemi et al. (2019), arXiv:1904.06991, equations 1 and 2.

    Both depend on n and m: compare results of equal sizes alone.  The paper takes 50,000 of each.

    Args:
        samples, reference: [n, d] and [m, d], of any integer or floating-point type.
        k: the neighbour at a ball's radius.

    Raises:
        ValueError: if the sets are empty, of different d or not finite, or k is not in 1 .. min(n, m) - 1.
    """
    samples, reference = _check_sets("precision_recall", samples=samples, reference=reference)
    of_samples = _radii("precision_recall", "samples", samples, k)
    of_reference = _radii("precision_recall", "reference", reference, k)
    precision = float((_count_balls(samples, reference, of_reference) > 0).mean())
    recall = float((_count_balls(reference, samples, of_samples) > 0).mean())
    return PrecisionRecall(precision, recall)


def density_coverage(samples: np.ndarray, reference: np.ndarray, k: int = 5) -> DensityCoverage:
    """Density and coverage: Naeem et al. (2020), arXiv:2002.09797.

    Only references have balls, so outliers among the samples have no effect.  For n samples and m references of any one
    law, the expected density is 1 and the expected coverage

        1 - ((m - 1) ... (m - k)) / ((n + m - 1) ... (n + m - k))

    Args:
        samples, reference: [n, d] and [m, d], of any integer or floating-point type.
        k: the neighbour at a ball's radius.

    Raises:
        ValueError: if the sets are empty, of different d or not finite, or k is not in 1 .. m - 1.
    """
    samples, reference = _check_sets("density_coverage", samples=samples, reference=reference)
    radii = _radii("density_coverage", "reference", reference, k)
    density = float(_count_balls(samples, reference, radii).mean()) / k
    coverage = float((nearest(reference, samples).distances[:, 0] <= radii).mean())
    return DensityCoverage(density, coverage)


def nearest(queries: np.ndarray, references: np.ndarray, k: int = 1) -> Nearest:
    """The k references nearest to each query, exactly, in less than 256 MiB besides the result, whatever the sizes.

    Args:
        queries: [n, d], of any integer or floating-point type; integers are converted block by block.
        references: [m, d].
        k: number of neighbours.

    Raises:
        ValueError: if the sets are empty, of different d or not finite, or k is not in 1 .. m.
    """
    queries, references = _check_sets("nearest", queries=queries, references=references)
    if not 1 <= k <= len(references):
        raise ValueError(f"nearest: expected k in 1 .. {len(references)}, the number of references, got k={k}")
    squares = np.full((len(queries), k), np.inf)
    indices = np.full((len(queries), k), len(references))
    for rows, columns, low, _ in _distance_blocks(queries, references):
        limit = squares[rows, -1].copy()
        crowded = np.flatnonzero(np.count_nonzero(low <= limit[:, None], axis=1) > 4 * k)
        if crowded.size:  # k distances of the block lower the limit for the others
            near = np.argpartition(low[crowded], k - 1, axis=1)[:, :k]
            i, j = np.repeat(crowded, k) + rows.start, near.ravel() + columns.start
            within = _squared_distances(queries, references, i, j).reshape(-1, k).max(axis=1)
            limit[crowded] = np.minimum(limit[crowded], within)
        i, j = np.nonzero(low <= limit[:, None])
        if i.size:
            candidates = _squared_distances(queries, references, i + rows.start, j + columns.start)
            squares[rows], indices[rows] = _smallest(squares[rows], indices[rows], i, j + columns.start, candidates)
    return Nearest(np.sqrt(squares), indices)


def _smallest(
    squares: np.ndarray, indices: np.ndarray, i: np.ndarray, j: np.ndarray, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest of each row of squares [a, k] and of the candidates [pairs], in rows i with indices j."""
    a, k = squares.shape
    row = np.concatenate([np.repeat(np.arange(a), k), i])
    squares, indices = np.concatenate([squares.ravel(), candidates]), np.concatenate([indices.ravel(), j])
    order = np.lexsort((squares, row))  # stable, and the references come in ascending order: the lower index wins
    smallest = order[np.searchsorted(row[order], np.arange(a))[:, None] + np.arange(k)]
    return squares[smallest], indices[smallest]


def _radii(caller: str, name: str, points: np.ndarray, k: int) -> np.ndarray:
    """The distance of each point to its k-th neighbour among the others."""
    if not 1 <= k < len(points):
        raise ValueError(f"{caller}: expected k in 1 .. {len(points) - 1}, one less than {name} has, got k={k}")
    # A point is itself one of its k + 1 nearest, or all of them have distance 0.
    return nearest(points, points, k + 1).distances[:, k]


def _count_balls(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """The number of balls around each point, [n] integers."""
    counts = np.zeros(len(points), np.int64)
    for rows, columns, low, width in _distance_blocks(points, centres):
        limit = radii[columns] ** 2
        possible = low <= limit
        low += width
        certain = low <= limit
        counts[rows] += np.count_nonzero(certain, axis=1)
        i, j = np.nonzero(possible & ~certain)
        i, j = i + rows.start, j + columns.start
        inside = np.sqrt(_squared_distances(points, centres, i, j)) <= radii[j]
        counts += np.bincount(i[inside], minlength=len(points))
    return counts


def _distance_blocks(
    queries: np.ndarray, references: np.ndarray
) -> Iterator[tuple[slice, slice, np.ndarray, np.ndarray]]:
    """All pairs, block by block, the references of a block of queries in ascending order.

    Yields:
        rows, columns: slices of the queries and of the references.
        low, width: [rows, columns], so that low <= |q - r|^2 <= low + width, as `_squared_distances` computes it.
    """
    d = queries.shape[1]
    # Sums of d products are off by less than d / 2 roundings of |q|^2 + |r|^2 each; there are three of them,
    # `_squared_distances` has its own, and the differences from the centre are rounded too.
    slack = 4 * (d + 8) * np.finfo(np.float64).eps
    # Far from 0 the three terms would cancel, and no pair could be decided by them.
    centre = references[0].astype(np.float64)
    at_once = max(1, min(QUERY_ROWS, BLOCK // d))
    for rows in _slices(len(queries), at_once):
        q = np.subtract(queries[rows], centre, dtype=np.float64)
        for columns in _slices(len(references), max(1, min(BLOCK // d, BLOCK // at_once))):
            r = np.subtract(references[columns], centre, dtype=np.float64)
            size = np.vecdot(q, q)[:, None] + np.vecdot(r, r)
            low = q @ r.T
            low *= -2
            low += size
            size *= slack
            low -= size
            size *= 2
            yield rows, columns, low, size


def _squared_distances(queries: np.ndarray, references: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """|q_i - r_j|^2 of pairs, [pairs] float64."""
    squares = np.empty(len(i))
    for part in _slices(len(i), max(1, BLOCK // queries.shape[1])):
        gap = queries[i[part]].astype(np.float64)
        gap -= references[j[part]].astype(np.float64)
        squares[part] = np.square(gap, out=gap).sum(axis=1)
    return squares


def _slices(n: int, length: int) -> Iterator[slice]:
    return (slice(start, min(start + length, n)) for start in range(0, n, length))


def _check_sets(caller: str, **sets: np.ndarray) -> list[np.ndarray]:
    """The two sets as numpy arrays, their shapes and values checked."""
    (a_name, a), (b_name, b) = ((name, np.asarray(points)) for name, points in sets.items())
    for name, points in ((a_name, a), (b_name, b)):
        if points.ndim != 2 or points.size == 0:
            raise ValueError(f"{caller}: expected {name} [n, d], neither of them 0, got shape {points.shape}")
        if not (jnp.issubdtype(points.dtype, jnp.floating) or jnp.issubdtype(points.dtype, jnp.integer)):
            raise ValueError(f"{caller}: expected {name} of an integer or floating-point type, got {points.dtype}")
        rows = _slices(len(points), max(1, BLOCK // points.shape[1]))
        bad = len(points) - sum(np.count_nonzero(np.isfinite(points[some]).all(axis=1)) for some in rows)
        if bad:
            raise ValueError(f"{caller}: {bad} of {len(points)} rows of {name} are not finite (nan or inf)")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{caller}: {a_name} have {a.shape[1]} components each and {b_name} {b.shape[1]}")
    return [a, b]
