"""Feature extractors: the package's classifiers, and Inception on all devices of all processes."""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from ddpm_jax import data, pipeline, process
from ddpm_jax.convert import inception as inception_weights
from ddpm_jax.metrics import classifier, fingerprint, frechet, inception
from ddpm_jax.pipeline import tiles

BATCH_SIZE = 1024  # images of which features are computed at a time

TILE = 32
"""Images per device and call of Inception; a convolution's bits depend on it."""


class FeatureStatistics(NamedTuple):
    """Features of a set of images, summarised."""

    halves: tuple[frechet.Moments, frechet.Moments]  # moments of the features of the set's first and second half
    features: np.ndarray  # [m, d] those of the first images
    scores: np.ndarray  # [n, c] class probabilities, or logits, of all images

    def moments(self) -> frechet.Moments:
        """Of the whole set."""
        return frechet.merge_moments(*self.halves)


class Extractor(NamedTuple):
    """A feature extractor."""

    name: str  # what it is, with the fingerprint of its weights
    distance_name: str  # what the Fréchet distance of its features is called
    dimension: int  # of its features
    # images [n, H, W, C] -> features [n, d], scores [n, c]
    extract: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    # (samples, reference) -> further numbers: name and value; a reference of moments alone has 0 features and scores
    extra_metrics: Callable[[FeatureStatistics, FeatureStatistics], list[tuple[str, float]]]
    # of several processes, what the others do while the first extracts, and what ends it
    assist: Callable[[], None] = lambda: None
    release: Callable[[], None] = lambda: None

    def extract_all(self, images: data.Pixels) -> tuple[np.ndarray, np.ndarray]:
        """Features and scores of any number of images, batch by batch."""
        batches = [self.extract(images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE)]
        features, scores = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return features, scores


def load_extractor(model: pipeline.Pipeline, features: str, weights: str) -> Extractor:
    """The feature extractor for a model's images; features is "classifier" or "inception", weights the latter's."""
    if features == "inception":
        return load_inception(model.integer_levels, pathlib.Path(weights))
    network = classifier.load(classifier.name_for_images(model.shape, model.integer_levels))

    def classes(statistics: FeatureStatistics, reference: FeatureStatistics) -> list[tuple[str, float]]:
        if not len(reference.scores):
            return []
        coverage = classifier.class_coverage(statistics.scores, reference.scores)
        known = float((reference.scores.max(1) > classifier.CONFIDENT).mean())
        if known < 0.5:
            print(f"warning: the {network.name} classifier has a confidence above 0.9 on {known:.0%} of the reference "
                  "images: was it trained on such images?", file=sys.stderr)  # fmt: skip
        return [
            (f"classes present, of {coverage.classes}", coverage.present),
            ("distance of class shares", coverage.total_variation),
            ("share with p > 0.9", coverage.confident),
        ]

    name = f"{network.name}-classifier {network.fingerprint}"
    return Extractor(name, "Fréchet distance", network.dimension, network, classes)


def load_inception(levels: int, weights: pathlib.Path) -> Extractor:
    """Inception for images of values 0 .. levels - 1, on all devices; errors as `convert.inception.read_weights`."""
    variables = inception_weights.read_weights(weights)
    mapped = tiles.parallelise(lambda inputs, key, images: inception.Inception().apply(inputs, images))
    on_device = jax.device_put(variables)

    def extract(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _map_tiles(mapped, on_device, _broadcast(inception.to_8_bit(images, levels)))

    def assist() -> None:
        while len(images := _broadcast(None)):
            _map_tiles(mapped, on_device, images)

    def release() -> None:
        _broadcast(np.zeros((0, 1, 1, 1), np.uint8))

    def scores(samples: FeatureStatistics, reference: FeatureStatistics) -> list[tuple[str, float]]:
        score = inception.inception_score(samples.scores)
        found = [("inception score", score.mean), ("inception score, deviation over 10 splits", score.std)]
        if len(reference.features):
            kid = inception.kernel_distance(samples.features, reference.features)
            found += [("KID", kid.mean), ("KID, deviation over 100 subsets", kid.std)]
        return found

    flat: dict[str, Any] = flatten_dict(variables, sep="/")
    name = f"inception-v3-compat {fingerprint(flat)}"
    return Extractor(name, "FID", inception.FEATURES, extract, scores, assist, release)


@contextlib.contextmanager
def extraction(extractor: Extractor) -> Iterator[None]:
    """Context manager of what the first process does alone with an extractor.

    The others compute their part of the features until it is done, and end here, by SystemExit.

    Raises:
        ValueError: if they have another extractor.
    """
    process.check_equal_across_processes({"features": extractor.name})
    if not process.is_main_process():
        extractor.assist()
        raise SystemExit(0)
    yield
    extractor.release()


def check_count(extractor: Extractor, num: int, flag: str = "--num") -> None:
    """Raises a ValueError if so few images have no Fréchet distance."""
    if num <= extractor.dimension:
        raise ValueError(
            f"{flag} must be above {extractor.dimension}, the dimension of the features of {extractor.name}: fewer "
            f"images have no covariance of full rank, and a Fréchet distance from them means nothing; got {num}"
        )


def _map_tiles(mapped: Callable[..., Any], inputs: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and logits of images, which every process has; the last round is padded with black ones."""
    size, n = jax.device_count() * TILE, len(images)
    rounds = np.pad(images, ((0, -n % size), (0, 0), (0, 0), (0, 0))).reshape(-1, size // TILE, TILE, *images.shape[1:])
    outputs = [mapped(inputs, None, process.local_shard(tile)) for tile in rounds]
    gathered = [process.all_gather(output) for output in outputs]
    features, logits = (
        np.concatenate([np.asarray(part).reshape(size, -1) for part in side])[:n]
        for side in zip(*gathered, strict=True)
    )
    return features, logits


def _broadcast(images: np.ndarray | None) -> np.ndarray:
    """The first process's images, uint8 or float32, in all; the others pass None."""
    header = np.zeros(5, np.int32)
    if images is not None:
        header[:] = *images.shape, images.dtype == np.float32
    *shape, is_float = process.broadcast(header)
    if images is None:
        images = np.zeros(shape, np.float32 if is_float else np.uint8)
    return process.broadcast(images) if images.size else images
