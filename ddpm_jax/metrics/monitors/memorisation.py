"""Memorisation: tests for copies of training images among samples.

Distances between images are root mean squares over pixels, in levels.
"""

import hashlib
import math
from typing import Literal, NamedTuple

import numpy as np

from ddpm_jax.metrics.manifold import nearest
from ddpm_jax.metrics.monitors.colours import check_images

P_FLAGGED, P_DOUBTFUL = (math.erfc(z / 2**0.5) / 2 for z in (4, 3))
"""One-sided probabilities of more than 4 and 3 standard errors, for the exact tests."""
MIN_HELD_OUT = 20
"""Number of held-out images below which training images are added to them."""


class MemorisationReport(NamedTuple):
    """The test for copies among samples.

    Attributes:
        verdict: "new", no sign of copies; "near", nearer to the training images than held-out images are; "copies", too
            many are near to a single training image; "unknown", half of the samples could be copies unnoticed.
        reason: the verdict as text.
        samples, held_out: [3] 5 % quantile, median and 95 % quantile of the distances to the nearest training image.
        near: share of the samples no farther from it than the 5 % of held-out images that are nearest.
        copied, held_out_copied: shares that are at least three times nearer to it than to any other training image.
        held_out_kind: name of the held-out images.
    """

    verdict: Literal["new", "near", "copies", "unknown"]
    reason: str
    samples: np.ndarray
    held_out: np.ndarray
    near: float
    copied: float
    held_out_copied: float
    held_out_kind: str


class DistanceReference(NamedTuple):
    """Training images, and the distances of new images to them.

    Attributes:
        train: [m, D] the training images without repetitions.
        distances: [r, 2] of images that are not copies of them, see `memorisation_from_distances`.
        held_out_kind: name of these images.
    """

    train: np.ndarray
    distances: np.ndarray
    held_out_kind: str


def distance_reference(train: np.ndarray, held_out: np.ndarray) -> DistanceReference:
    """The distances of held-out images to the training images.

    To fewer than 20 held-out images, at most 300 training images are added, each against all others.

    Args:
        train, held_out: uint8 or uint16 [n, H, W, C], of one shape and type.  Repetitions in `train` count once, so
            that the copy of a repeated image still has a single nearest image.

    Raises:
        ValueError: if they are not as described or differ, or there are no training images.
    """
    check_images("distance_reference", train)
    if (held_out.shape[1:], held_out.dtype) != (train.shape[1:], train.dtype):
        raise ValueError(
            "distance_reference: training and held-out images must be alike, got "
            f"{train.dtype} {train.shape} and {held_out.dtype} {held_out.shape}"
        )
    rows = train.reshape(len(train), -1)
    places = {hashlib.blake2b(row.tobytes(), digest_size=16).digest(): i for i, row in enumerate(rows)}
    rows = rows if len(places) == len(rows) else rows[sorted(places.values())]
    distances = _distances(held_out.reshape(len(held_out), rows.shape[1]), rows, 0)
    if len(held_out) >= MIN_HELD_OUT or len(rows) == 1:
        return DistanceReference(rows, distances, "held-out")
    others = _distances(rows[:: -(-len(rows) // 300)], rows, 1)
    return DistanceReference(rows, np.concatenate([distances, others]), "held-out and left-out training")


def memorisation_report(samples: np.ndarray, reference: DistanceReference) -> MemorisationReport:
    """The test for copies among samples, uint8 or uint16 [n, H, W, C] as the training images.

    Raises:
        ValueError: if there are no samples, or they differ from the training images in size or type.
    """
    check_images("memorisation_report", samples)
    rows = samples.reshape(len(samples), -1)
    if (rows.shape[1], rows.dtype) != (reference.train.shape[1], reference.train.dtype):
        raise ValueError(
            f"memorisation_report: expected samples like the training images, {reference.train.shape[1]} values of "
            f"type {reference.train.dtype} each, got {rows.shape[1]} of type {rows.dtype}"
        )
    return memorisation_from_distances(
        _distances(rows, reference.train, 0), reference.distances, held_out_kind=reference.held_out_kind
    )


def memorisation_from_distances(
    samples: np.ndarray, held_out: np.ndarray, *, held_out_kind: str = "held-out"
) -> MemorisationReport:
    """The test for copies, from distances to the nearest and the second nearest training image.

    Two shares of the samples are compared with those of the held-out images:

        near:    d1 <= q, the 5 % quantile of the held-out images' d1
        copied:  d1 < d2 / 3, or d1 = 0

    The second is the memorisation criterion of Yoon et al. ("Diffusion Probabilistic Models Generalize when They Fail
    to Memorize", 2023), after Carlini et al. (arXiv:2301.13188); it alone gives "copies".  Smooth samples, which are
    near to many images, are "near".  A share is too large if its probability by Fisher's exact test is below that of 4
    standard errors, 3e-5: if samples had the law of held-out images, all divisions of the images into the two sets
    would be equally probable, whatever their sizes.

    Args:
        samples: [n, 2] distances d1 <= d2; d2 is nan if there is only one training image.
        held_out: [m, 2] of images known to be new.
        held_out_kind: name of these images, for the reason.

    Raises:
        ValueError: if they are not [n, 2], samples are empty, or a d1 is nan or negative.
    """
    for name, rows in (("samples", samples), ("held_out", held_out)):
        if rows.ndim != 2 or rows.shape[1] != 2 or not np.all(rows[:, 0] >= 0):
            raise ValueError(f"memorisation_from_distances: expected {name} [n, 2], d1 >= 0, got shape {rows.shape}")
    n, m = len(samples), len(held_out)
    if not n:
        raise ValueError("memorisation_from_distances: expected at least one sample, got none")
    edge = np.quantile(held_out[:, 0], 0.05, method="inverted_cdf") if m else -1.0
    near, near_known = (int(np.sum(rows[:, 0] <= edge)) for rows in (samples, held_out))
    copied, copied_known = (int(np.sum((d[:, 0] == 0) | (3 * d[:, 0] < d[:, 1]))) for d in (samples, held_out))
    alone = (
        f"{copied} of {n} samples are each near to one training image alone ({held_out_kind}: {copied_known} of {m})"
    )
    chance = _fisher_p_value(copied, n, copied_known, m)
    if chance < P_FLAGGED:
        verdict, reason = "copies", f"copies: {alone}"
    elif _fisher_p_value(near, n, near_known, m) < P_FLAGGED:
        verdict, reason = "near", f"{near} of {n} are as near as 5 % of the {held_out_kind} images; compare them by eye"
    elif chance < P_DOUBTFUL:
        verdict, reason = "unknown", f"perhaps copies, more samples would tell: {alone}"
    elif _fisher_p_value(n // 2, n, copied_known, m) >= P_FLAGGED:
        copies = f", {copied_known} of which are copies themselves" if copied_known else ""
        verdict, reason = "unknown", f"cannot judge copying by {n} samples and {m} {held_out_kind} images{copies}"
    else:
        verdict, reason = "new", "no sign of copying"
    return MemorisationReport(
        verdict, reason, _quantiles(samples), _quantiles(held_out),
        near=near / n, copied=copied / n,
        held_out_copied=copied_known / m if m else math.nan, held_out_kind=held_out_kind,
    )  # fmt: skip


def _quantiles(distances: np.ndarray) -> np.ndarray:
    return np.quantile(distances[:, 0], [0.05, 0.5, 0.95]) if len(distances) else np.full(3, np.nan)


def _distances(queries: np.ndarray, train: np.ndarray, skip: int) -> np.ndarray:
    """[n, 2] root mean square distances to the two nearest training images after the first `skip`, else nan."""
    distances = np.full((len(queries), 2), np.nan)
    k = min(2, len(train) - skip)
    if len(queries):
        distances[:, :k] = nearest(queries, train, k + skip).distances[:, skip:] / math.sqrt(train.shape[1])
    return distances


def _fisher_p_value(hits: int, n: int, known_hits: int, m: int) -> float:
    """The probability that n of n + m images, drawn at random, include at least `hits` of all hits."""
    every = hits + known_hits
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + m + 1)))])

    def log_choose(a: int, b: np.ndarray | int) -> np.ndarray:
        return log_factorial[a] - log_factorial[b] - log_factorial[a - b]

    k = np.arange(hits, min(n, every) + 1)
    k = k[n - k <= n + m - every]
    return float(np.exp(log_choose(every, k) + log_choose(n + m - every, n - k) - log_choose(n + m, n)).sum())
