"""References of the sample metrics: splits of the data, and .npz files of ADM, EDM and others."""

import itertools
import pathlib
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import process, tracking
from ddpm_jax.evaluate import protocol
from ddpm_jax.evaluate.context import EvaluationContext, Split, check_comparable, load_images, select_split
from ddpm_jax.evaluate.extractors import BATCH_SIZE, Extractor, FeatureStatistics, check_count
from ddpm_jax.metrics import frechet

MANIFOLD_IMAGES = 10_000  # the nearest-neighbour metrics take at most so many images of each side


class Reference(NamedTuple):
    """The images, the moments of features, or both that samples are compared with."""

    description: str
    split: Split | None = None  # images, for all metrics
    moments: frechet.Moments | None = None  # for the Fréchet distance, in place of those of the images


def find_reference(context: EvaluationContext, name: str, extractor: Extractor) -> Reference:
    """The reference of a name: a split, "train" or "test", or an .npz file with `mu` and `sigma`, `arr_0`, or both.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file has none of these, or its features or images are not comparable, or too few.
    """
    if name == "train" or name == "test":
        split = select_split(load_images(context), name)
        check_count(extractor, len(split.images), f"--reference {name}: the number of images")
        return Reference(split.describe(), split)
    path = pathlib.Path(name)
    if path.suffix != ".npz":
        raise ValueError(f"--reference must be train, test or an .npz file, got {name}")
    arrays = protocol.load_npz(path)
    parts, split, moments = [], None, None
    if "mu" in arrays and "sigma" in arrays:
        mu, sigma = arrays["mu"], arrays["sigma"]
        if mu.shape != (extractor.dimension,) or sigma.shape != mu.shape * 2:
            raise ValueError(
                f"{path}: expected mu [d] and sigma [d, d] of the {extractor.dimension} features of {extractor.name}, "
                f"got {mu.shape} and {sigma.shape}"
            )
        moments = frechet.moments_of_law(mu, sigma)
        parts.append(f"mu, sigma sha {protocol.data_hash(sigma)}")
    if "arr_0" in arrays:
        images = check_images(context, path, arrays["arr_0"])
        split = Split(f"{path.stem} sha {protocol.data_hash(images)}", images)
        parts.append(f"arr_0 {split.describe().removeprefix(path.stem).strip()}")
        if moments is None:
            check_count(extractor, len(images), f"--reference {path}: the number of images")
    if not parts:
        raise ValueError(f"{path}: expected mu and sigma, or images arr_0, found {', '.join(arrays) or 'none'}")
    return Reference(f"{path.name} {', '.join(parts)}", split, moments)


def check_images(context: EvaluationContext, path: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """The images of a file; a ValueError if they are no integers or differ from the model's in shape or levels."""
    if images.dtype not in (np.uint8, np.uint16) or images.ndim != 4:
        raise ValueError(f"{path}: expected integer images [n, H, W, C], got {images.dtype} {images.shape}")
    levels = context.model.integer_levels
    if images.size and images.max() >= levels:
        levels = int(images.max()) + 1
    check_comparable(str(path), images.shape[1:], levels, context.model)
    return images


def reference_statistics(context: EvaluationContext, reference: Reference, extractor: Extractor) -> FeatureStatistics:
    """The feature statistics of a reference; of one of moments alone, no features and no scores."""
    none = np.zeros((0, extractor.dimension), np.float32)
    empty = frechet.empty_moments(extractor.dimension)
    statistics = FeatureStatistics((empty, empty), none, none)
    if reference.split is not None:
        statistics = cached_reference(context, reference.split, extractor)
    if reference.moments is not None:
        statistics = statistics._replace(halves=(reference.moments, empty))
    return statistics


def cached_reference(context: EvaluationContext, split: Split, extractor: Extractor) -> FeatureStatistics:
    """Feature statistics of a complete split, cached in a file named by the hashes of extractor and split.

    The file also has mean and covariance of the features as `mu` and `sigma`, which other programs read.
    """
    name = f"{extractor.name}-{split.name}".replace(" ", "-")
    path = context.out / "references" / f"{name}.npz"
    if path.exists():
        stored = protocol.load_npz(path, protocol.RECOMPUTED)
        halves = tuple(frechet.Moments(int(stored[f"n{i}"]), stored[f"mean{i}"], stored[f"scatter{i}"]) for i in (0, 1))
        return FeatureStatistics((halves[0], halves[1]), stored["features"], stored["scores"])
    print(f"reference: {split.name}, {len(split.images)} images, through {extractor.name}", file=sys.stderr)
    # the manifold metrics take the first images: shuffle, so that these are a random sample
    order = np.random.RandomState(0).permutation(len(split.images))
    parts = (split.images[np.sort(order[i : i + BATCH_SIZE])] for i in range(0, len(order), BATCH_SIZE))
    statistics = accumulate(parts, extractor, len(order))
    whole = statistics.moments()
    with process.atomic_file(path) as file:
        halves = {f"{key}{i}": value for i in (0, 1) for key, value in statistics.halves[i]._asdict().items()}
        moments: dict[str, Any] = {**halves, "mu": whole.mean, "sigma": whole.covariance}
        np.savez(file, features=statistics.features, scores=statistics.scores, **moments)
    return statistics


def accumulate(chunks: Iterable[np.ndarray], extractor: Extractor, n: int) -> FeatureStatistics:
    """Feature statistics of n images, in chunks; features of the first MANIFOLD_IMAGES alone are kept."""
    halves, features, scores, done = [frechet.empty_moments(extractor.dimension)] * 2, [], [], 0
    with tracking.Activity("computing features") as shown:
        for chunk in chunks:
            edges = sorted(
                {0, len(chunk), *range(BATCH_SIZE, len(chunk), BATCH_SIZE), min(max(n // 2 - done, 0), len(chunk))}
            )
            for start, stop in itertools.pairwise(edges):
                shown.text = f"computing features, {done + start} of {n} images"
                batch_features, batch_scores = extractor.extract(np.asarray(chunk[start:stop]))
                half = int(done + start >= n // 2)
                halves[half] = frechet.merge_moments(halves[half], frechet.moments(batch_features))
                features.append(batch_features[: max(0, MANIFOLD_IMAGES - done - start)])
                scores.append(batch_scores)
            done += len(chunk)
    return FeatureStatistics((halves[0], halves[1]), np.concatenate(features), np.concatenate(scores))
