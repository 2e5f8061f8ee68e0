"""Sample metrics over features: Fréchet distance, precision and recall, density and coverage, class shares."""

import itertools
import math
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax import pipeline, process
from ddpm_jax.evaluate import protocol, sample_cache
from ddpm_jax.evaluate.context import EvaluationContext, Split, check_comparable, load_images, select_split
from ddpm_jax.evaluate.options import SamplesOptions
from ddpm_jax.evaluate.protocol import Measurement
from ddpm_jax.metrics import classifier, frechet, inception, manifold
from ddpm_jax.pipeline import image_parts, manifest

BATCH_SIZE = 1024
MANIFOLD_IMAGES = 10_000  # the nearest-neighbour metrics take at most so many images of each side
RECOMMENDED_NUM = 10_000
PRECISION_K, COVERAGE_K = 3, 5  # as in the papers


class FeatureStatistics(NamedTuple):
    """Features of a set of images, summarised."""

    halves: tuple[frechet.Moments, frechet.Moments]  # moments of the features of the set's first and second half
    features: np.ndarray  # [m, d] those of the first images, at most MANIFOLD_IMAGES
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
    # (samples, reference) -> further numbers: name and value
    extra_metrics: Callable[[FeatureStatistics, FeatureStatistics], list[tuple[str, float]]]


def run(context: EvaluationContext, options: SamplesOptions) -> int:
    """Measures, prints and writes the sample metrics; status 4 if interrupted."""
    measured = measure_and_write(context, options)
    if measured is None:
        return 4
    print(*map(protocol.format_line, measured), sep="\n")
    print(f"written to {result_path(context, measured)}")
    return 0


def measure_and_write(context: EvaluationContext, options: SamplesOptions) -> list[Measurement] | None:
    """The sample metrics, also written to the results folder; None if interrupted."""
    measured = measure(context, options)
    if measured is not None:
        protocol.write_measurements(result_path(context, measured), measured, context.made_with())
    return measured


def result_path(context: EvaluationContext, measured: Sequence[Measurement]) -> pathlib.Path:
    """The file for sample metrics of this protocol."""
    return context.out / f"samples-{manifest.short_hash(measured[0].protocol)}.json"


def measure(context: EvaluationContext, options: SamplesOptions) -> list[Measurement] | None:
    """The sample metrics; None if drawing the samples was interrupted.

    Raises:
        ValueError: before anything is drawn, if there would be too few samples for the features, or nothing to compare.
    """
    extractor = load_extractor(context.model, options.features, options.inception_weights)
    check_count(extractor, options.num)
    reference_split = select_split(load_images(context), options.reference)
    if options.samples is not None:
        sets, fields = load_samples(context, pathlib.Path(options.samples), options)
    else:
        folder = sample_cache.ensure_samples(context, options.num * options.sets, options.seed, options.format)
        if folder is None:
            return None
        edges = [options.num * i for i in range(options.sets + 1)]
        sets = [image_parts.read_chunks(folder, start, stop) for start, stop in itertools.pairwise(edges)]
        fields = sample_cache.protocol_fields(context, options.seed, options.format)
    return compare_sets(context, sets, options.num, reference_split, extractor, fields)


def held_out_baseline(context: EvaluationContext, options: SamplesOptions) -> list[Measurement]:
    """The metrics of held-out images: the score of a perfect model with as many samples."""
    extractor, loaded = load_extractor(context.model, options.features, options.inception_weights), load_images(context)
    held, reference_split = select_split(loaded, "test"), select_split(loaded, options.reference)
    n = min(options.num, len(held.images))
    check_count(extractor, n)
    return compare_sets(context, [[held.images[:n]]], n, reference_split, extractor, {"data": held.name})


def train_baseline(context: EvaluationContext, options: SamplesOptions) -> list[Measurement]:
    """The metrics of random training images against all other training images.

    Raises:
        ValueError: if fewer training images would be left than are taken out.
    """
    extractor = load_extractor(context.model, options.features, options.inception_weights)
    train = select_split(load_images(context), "train")
    check_count(extractor, options.num)
    total = len(train.images)
    if total < 2 * options.num:
        raise ValueError(f"--num {options.num} of {total} training images cannot be held against the others")
    extracted = [extractor.extract(train.images[i : i + BATCH_SIZE]) for i in range(0, total, BATCH_SIZE)]
    features, scores = (np.concatenate(parts) for parts in zip(*extracted, strict=True))
    precomputed = extractor._replace(extract=lambda places: (features[places], scores[places]))
    sets = []
    for i in range(options.sets):
        order = np.random.RandomState(i).permutation(total)
        out, others = (accumulate([part], precomputed, len(part)) for part in np.split(order, [options.num]))
        sets.append(compare_features(out, others, extractor))
    reference = f"{train.name} n={total - options.num}, the others"
    fields = {"n": options.num, "sets": options.sets, "reference": reference, "features": extractor.name,
             "data": f"{train.name}, left out"}  # fmt: skip
    return mean_over_sets(sets, fields)


def load_extractor(model: pipeline.Pipeline, features: str, inception_weights: str | None = None) -> Extractor:
    """The feature extractor for a model's images; features is "classifier" or "inception"."""
    if features == "inception":
        net = inception.load(model.integer_levels, weights=inception_weights)

        def scores(statistics: FeatureStatistics, reference: FeatureStatistics) -> list[tuple[str, float]]:
            kid = inception.kernel_distance(statistics.features, reference.features)
            score = inception.inception_score(statistics.scores)
            return [
                ("inception score", score.mean),
                ("inception score, deviation over 10 splits", score.std),
                ("KID", kid.mean),
                ("KID, deviation over 100 subsets", kid.std),
            ]

        return Extractor(f"{net.name} {net.fingerprint}", "FID", net.dimension, net, scores)
    network = classifier.load(classifier.name_for_images(model.shape, model.integer_levels))

    def classes(statistics: FeatureStatistics, reference: FeatureStatistics) -> list[tuple[str, float]]:
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


def check_count(extractor: Extractor, num: int, flag: str = "--num") -> None:
    """Raises a ValueError if so few images have no Fréchet distance."""
    if num <= extractor.dimension:
        raise ValueError(
            f"{flag} must be above {extractor.dimension}, the dimension of the features of {extractor.name}: fewer "
            f"images have no covariance of full rank, and a Fréchet distance from them means nothing; got {num}"
        )


def accumulate(chunks: Iterable[np.ndarray], extractor: Extractor, n: int) -> FeatureStatistics:
    """Feature statistics of n images, in chunks; features of the first MANIFOLD_IMAGES alone are kept."""
    halves, features, scores, done = [frechet.empty_moments(extractor.dimension)] * 2, [], [], 0
    for chunk in chunks:
        edges = sorted(
            {0, len(chunk), *range(BATCH_SIZE, len(chunk), BATCH_SIZE), min(max(n // 2 - done, 0), len(chunk))}
        )
        for start, stop in itertools.pairwise(edges):
            batch_features, batch_scores = extractor.extract(np.asarray(chunk[start:stop]))
            half = int(done + start >= n // 2)
            halves[half] = frechet.merge_moments(halves[half], frechet.moments(batch_features))
            features.append(batch_features[: max(0, MANIFOLD_IMAGES - done - start)])
            scores.append(batch_scores)
        done += len(chunk)
    return FeatureStatistics((halves[0], halves[1]), np.concatenate(features), np.concatenate(scores))


def compare_sets(
    context: EvaluationContext,
    sets: Sequence[Iterable[np.ndarray]],
    n: int,
    split: Split,
    extractor: Extractor,
    fields: protocol.Protocol,
) -> list[Measurement]:
    """The metrics of sets against a split; each set is n images, in chunks."""
    reference = cached_reference(context, split, extractor)
    compared = [compare_features(accumulate(chunks, extractor, n), reference, extractor) for chunks in sets]
    described = {"n": n, "sets": len(sets), "reference": split.describe(), "features": extractor.name}
    return mean_over_sets(compared, {**described, **fields})


def compare_features(
    samples: FeatureStatistics, reference: FeatureStatistics, extractor: Extractor
) -> list[tuple[str, float]]:
    """Name and value of each number of one set against the reference."""
    whole = reference.moments()
    near = manifold.precision_recall(samples.features, reference.features, k=PRECISION_K)
    dense = manifold.density_coverage(samples.features, reference.features, k=COVERAGE_K)
    few = min(half.n for half in samples.halves) <= extractor.dimension
    bias = math.nan if few else frechet.sampling_bias(*samples.halves, whole)
    return [
        (extractor.distance_name, frechet.frechet_distance(samples.moments(), whole)),
        (f"bias of the {extractor.distance_name} at this n", bias),
        (f"precision, k={PRECISION_K}", near.precision),
        (f"recall, k={PRECISION_K}", near.recall),
        (f"density, k={COVERAGE_K}", dense.density),
        (f"coverage, k={COVERAGE_K}", dense.coverage),
        *extractor.extra_metrics(samples, reference),
    ]


def mean_over_sets(sets: Sequence[list[tuple[str, float]]], fields: protocol.Protocol) -> list[Measurement]:
    """Means over sets, and their standard errors; nan of a single set."""
    numbers = []
    for same in zip(*sets, strict=True):
        values = np.array([value for _, value in same])
        error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        numbers.append(Measurement(same[0][0], float(values.mean()), error, fields))
    n, bias = fields["n"], numbers[1].value
    if isinstance(n, int) and n < RECOMMENDED_NUM:
        size = "an unknown amount" if math.isnan(bias) else f"about {bias:.3g}"
        print(f"warning: {n} images are fewer than {RECOMMENDED_NUM:,}: their Fréchet distance is too large by {size}; "
              "compare it only with others of the same n", file=sys.stderr)  # fmt: skip
    return numbers


def cached_reference(context: EvaluationContext, split: Split, extractor: Extractor) -> FeatureStatistics:
    """Feature statistics of a complete split, cached in a file named by the hashes of extractor and split."""
    name = f"{extractor.name}-{split.name}".replace(" ", "-")
    path = context.out / "references" / f"{name}.npz"
    if path.exists():
        stored = protocol.load_npz(path)
        halves = tuple(frechet.Moments(int(stored[f"n{i}"]), stored[f"mean{i}"], stored[f"scatter{i}"]) for i in (0, 1))
        return FeatureStatistics((halves[0], halves[1]), stored["features"], stored["scores"])
    print(f"reference: {split.name}, {len(split.images)} images, through {extractor.name}", file=sys.stderr)
    # the manifold metrics take the first images: shuffle, so that these are a random sample
    order = np.random.RandomState(0).permutation(len(split.images))
    parts = (split.images[np.sort(order[i : i + BATCH_SIZE])] for i in range(0, len(order), BATCH_SIZE))
    statistics = accumulate(parts, extractor, len(order))
    with process.atomic_file(path) as file:
        halves = {f"{key}{i}": value for i in (0, 1) for key, value in statistics.halves[i]._asdict().items()}
        np.savez(file, features=statistics.features, scores=statistics.scores, **halves)
    return statistics


def load_samples(
    context: EvaluationContext, path: pathlib.Path, options: SamplesOptions
) -> tuple[list[list[np.ndarray]], protocol.Protocol]:
    """Sets of images from an .npz file, and their protocol fields.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its images differ from the model's in shape or levels, or are too few.
    """
    arrays = protocol.load_npz(path)
    if "arr_0" not in arrays:
        raise ValueError(f"{path}: expected images under the name arr_0, found {', '.join(arrays) or 'none'}")
    images = arrays["arr_0"]
    if images.dtype not in (np.uint8, np.uint16) or images.ndim != 4:
        raise ValueError(f"{path}: expected integer images [n, H, W, C], got {images.dtype} {images.shape}")
    levels = context.model.integer_levels
    if images.size and images.max() >= levels:
        levels = int(images.max()) + 1
    check_comparable(str(path), images.shape[1:], levels, context.model)
    if len(images) < options.num * options.sets:
        raise ValueError(f"{path} holds {len(images)} images, --num {options.num} --sets {options.sets} ask for more")
    sets = [[images[options.num * i : options.num * (i + 1)]] for i in range(options.sets)]
    return sets, {"samples": f"{path.name} sha {protocol.data_hash(images)}", "format": str(images.dtype)}
