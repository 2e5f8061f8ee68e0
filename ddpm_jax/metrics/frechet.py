"""The Fréchet distance between the normal laws of two sets of features.

    F(a, b) = |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a^1/2 C_b C_a^1/2)^1/2

Dowson & Landau (1982); for images Heusel et al. (2017), arXiv:1706.08500, equation 6.  With the features of the
Inception network it is the FID.  Mean and covariance come from `Moments`, which stream over batches and merge over
hosts.  Everything runs on the host in float64.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Moments(NamedTuple):
    """The first two moments of a set of features.

    Attributes:
        n: number of feature vectors.
        mean: [d] float64; 0 where n is 0.
        scatter: [d, d] float64, the sum of the outer products of their deviations from the mean.
    """

    n: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """[d, d] scatter / (n - 1), the unbiased one; a ValueError if n is less than 2."""
        if self.n < 2:
            raise ValueError(f"covariance: expected moments of at least 2 images, got {self.n}")
        return self.scatter / (self.n - 1)


def empty_moments(d: int) -> Moments:
    """The moments of no images with d features, the neutral element of `merge_moments`."""
    return Moments(0, np.zeros(d), np.zeros((d, d)))


def moments(features: np.ndarray) -> Moments:
    """The moments of a batch of features, summed in float64.

    Args:
        features: [n, d] floating point of any precision; n may be 0, and 1.

    Raises:
        ValueError: if features are not [n, d], not floating point, or some of them are not finite.
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"moments: expected features [n, d], got shape {features.shape}")
    if not jnp.issubdtype(features.dtype, jnp.floating):
        raise ValueError(f"moments: expected floating-point features, got {features.dtype}: are these images?")
    around = np.array(features, np.float64)
    n, d = around.shape
    bad = n - np.count_nonzero(np.isfinite(around).all(axis=1))
    if bad:
        raise ValueError(f"moments: {bad} of {n} rows of features are not finite (nan or inf)")
    if n == 0:
        return empty_moments(d)
    mean = around.mean(axis=0)
    around -= mean
    rest = around.mean(axis=0)  # the rounding error of a mean that is large against the standard deviation
    around -= rest
    return Moments(n, mean + rest, around.T @ around)


def moments_of_law(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    """The moments of a normal law, as of the statistics that others publish without their number of images.

    n is 2^31 + 1, so that the law counts as one of many images, and its covariance comes out to the bit.

    Args:
        mean, covariance: [d] and [d, d], floating point.

    Raises:
        ValueError: if they have other shapes.
    """
    if mean.ndim != 1 or covariance.shape != mean.shape * 2:
        raise ValueError(f"moments_of_law: expected [d] and [d, d], got {mean.shape} and {covariance.shape}")
    return Moments(2**31 + 1, mean.astype(np.float64), covariance.astype(np.float64) * 2**31)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of the union of two disjoint sets.

        mean    = m_a + (n_b / n) (m_b - m_a)
        scatter = S_a + S_b + (n_a n_b / n) (m_b - m_a) (m_b - m_a)^T

    Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance".  Without a sum of squares, so no
    digits are lost if the mean is large against the standard deviation.

    Raises:
        ValueError: if they have different numbers of features.
    """
    _check_dimensions("merge_moments", a, b)
    if a.n == 0 or b.n == 0:
        return b if a.n == 0 else a
    n, apart = a.n + b.n, b.mean - a.mean
    scatter = np.outer(apart, apart)
    scatter *= a.n * b.n / n
    scatter += a.scatter
    scatter += b.scatter
    return Moments(n, a.mean + (b.n / n) * apart, scatter)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Fréchet distance F(a, b) of the module, in squared units of the features.

    The trace of the root is the sum of the singular values of C_a^1/2 C_b^1/2, which is symmetric in a and b, needs no
    inverse, and holds for covariances of any rank.  The rounding error is about 1e-13 of tr C_a + tr C_b if both have
    full rank, otherwise 1e-8.  The result is never negative.

    It has a positive bias, larger for fewer images and different for each model: see `sampling_bias`.

    Raises:
        ValueError: if a and b have different numbers of features d, either has no more than d images, or their
            scatter is not that of finite features.
    """
    _check_dimensions("frechet_distance", a, b)
    root_a, root_b = _covariance_root(a), _covariance_root(b)
    # Not the eigenvalues of C_a C_b, whose square roots turn a rounding of 1e-16 into 1e-8 each.
    cross = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum()
    apart = a.mean - b.mean
    spread = (root_a**2).sum() + (root_b**2).sum()
    return max(0.0, float(apart @ apart + spread - 2 * cross))


def sampling_bias(first_half: Moments, second_half: Moments, reference: Moments) -> float:
    """An estimate of the bias of F of two halves together: its mean excess over F of infinitely many images.

    The bias falls as 1/n (Chong & Forsyth 2020, arXiv:1911.07023), so halves have twice the bias of the whole and

        bias(n)  ~  (F(first, reference) + F(second, reference)) / 2 - F(whole, reference)

    (for unequal halves divided by (n / n_first + n / n_second) / 2 - 1, which is then not 1).

    It neglects the next order in 1/n: for normal features against their own law it is too large by a quarter at
    n = 2 d, a twelfth at 4 d and a fiftieth at 10 d.  It neglects the bias of the reference's size, too, which all
    three distances share.  An estimate from one draw, it varies about as much as F itself.

    Args:
        first_half, second_half: of disjoint sets of images, each of more than d, the number of features.

    Raises:
        ValueError: as `frechet_distance`, so also if a half has no more than d images.
    """
    whole = merge_moments(first_half, second_half)
    halves = [frechet_distance(half, reference) for half in (first_half, second_half)]
    excess = (whole.n / first_half.n + whole.n / second_half.n) / 2 - 1
    return (sum(halves) / 2 - frechet_distance(whole, reference)) / excess


def _covariance_root(moments: Moments) -> np.ndarray:
    """A matrix R with R R^T the covariance: its eigenvectors, scaled by the standard deviation along each."""
    d = len(moments.mean)
    if moments.n <= d:
        raise ValueError(f"frechet_distance: a covariance of {d} features needs more than {d} images, got {moments.n}")
    if not (np.isfinite(moments.mean).all() and np.isfinite(moments.scatter).all()):
        raise ValueError("frechet_distance: the moments are not finite (nan or inf)")
    values, vectors = np.linalg.eigh(moments.covariance)
    # For covariances without full rank, rounding makes eigenvalues of either sign of those that are 0.
    if values[0] < -1e-8 * max(values[-1], 0.0):
        found = f"{values[0]:.3g} to {values[-1]:.3g}"
        raise ValueError(f"frechet_distance: expected a scatter without negative eigenvalues, got {found}")
    return vectors * np.sqrt(np.maximum(values, 0.0))


def _check_dimensions(caller: str, a: Moments, b: Moments) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"{caller}: expected as many features on both sides, got {len(a.mean)} and {len(b.mean)}")
