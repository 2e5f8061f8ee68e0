"""Sample metrics over features: Fréchet distance, precision and recall, density and coverage, class shares."""

import itertools
import math
import pathlib
import sys
from collections.abc import Iterable, Sequence

import numpy as np

from ddpm_jax.evaluate import protocol, references, sample_cache
from ddpm_jax.evaluate.context import EvaluationContext, load_images, select_split
from ddpm_jax.evaluate.extractors import Extractor, FeatureStatistics, check_count, extraction, load_extractor
from ddpm_jax.evaluate.options import SamplesOptions
from ddpm_jax.evaluate.protocol import Measurement
from ddpm_jax.metrics import frechet, manifold
from ddpm_jax.pipeline import image_parts, manifest

RECOMMENDED_NUM = 10_000
PRECISION_K, COVERAGE_K = 3, 5  # as in the papers


def run(context: EvaluationContext, options: SamplesOptions) -> None:
    """Measures, prints and writes the sample metrics."""
    measured = measure_and_write(context, options)
    print(*map(protocol.format_line, measured), sep="\n")
    print(f"written to {result_path(context, measured)}")


def measure_and_write(context: EvaluationContext, options: SamplesOptions) -> list[Measurement]:
    """The sample metrics, also written to the results folder."""
    measured = measure(context, options)
    protocol.write_measurements(result_path(context, measured), measured, context.made_with())
    return measured


def result_path(context: EvaluationContext, measured: Sequence[Measurement]) -> pathlib.Path:
    """The file for sample metrics of this protocol."""
    return context.out / f"samples-{manifest.short_hash(measured[0].protocol)}.json"


def measure(context: EvaluationContext, options: SamplesOptions) -> list[Measurement]:
    """The sample metrics; a ValueError before anything is drawn if there are too few samples or nothing to compare."""
    extractor = load_extractor(context.model, options.features, options.inception_weights)
    check_count(extractor, options.num)
    reference = references.find_reference(context, options.reference, extractor)
    if options.samples is not None:
        sets, fields = load_samples(context, pathlib.Path(options.samples), options)
    else:
        folder = sample_cache.ensure_samples(context, options.num * options.sets, options.seed, options.format)
        edges = [options.num * i for i in range(options.sets + 1)]
        sets = [image_parts.read_chunks(folder, start, stop) for start, stop in itertools.pairwise(edges)]
        fields = sample_cache.protocol_fields(context, options.seed, options.format)
    with extraction(extractor):
        return compare_sets(context, sets, options.num, reference, extractor, fields)


def held_out_baseline(context: EvaluationContext, options: SamplesOptions, num: int | None = None) -> list[Measurement]:
    """The metrics of `num` or all held-out images against the training images: the score of a perfect model."""
    extractor, loaded = load_extractor(context.model, options.features, options.inception_weights), load_images(context)
    held, train = select_split(loaded, "test"), select_split(loaded, "train")
    n = min(num or len(held.images), len(held.images))
    check_count(extractor, n, "--num" if n == num else "the number of held-out images")
    reference = references.Reference(train.describe(), train)
    return compare_sets(context, [[held.images[:n]]], n, reference, extractor, {"data": held.name})


def train_baseline(context: EvaluationContext, options: SamplesOptions) -> list[Measurement]:
    """The metrics of random training images against all others, of which there must be as many."""
    extractor = load_extractor(context.model, options.features, options.inception_weights)
    train = select_split(load_images(context), "train")
    check_count(extractor, options.num)
    total = len(train.images)
    features, scores = extractor.extract_all(train.images)
    precomputed = extractor._replace(extract=lambda places: (features[places], scores[places]))
    sets = []
    for i in range(options.sets):
        order = np.random.RandomState(i).permutation(total)
        out, others = (references.accumulate([part], precomputed, len(part)) for part in np.split(order, [options.num]))
        sets.append(compare_features(out, others, extractor))
    reference = f"{train.name} n={total - options.num}, the others"
    fields = {"n": options.num, "sets": options.sets, "reference": reference, "features": extractor.name,
             "data": f"{train.name}, left out"}  # fmt: skip
    return mean_over_sets(sets, fields)


def compare_sets(
    context: EvaluationContext,
    sets: Sequence[Iterable[np.ndarray]],
    n: int,
    reference: references.Reference,
    extractor: Extractor,
    fields: protocol.Protocol,
) -> list[Measurement]:
    """The metrics of sets against a reference; each set is n images, in chunks."""
    statistics = references.reference_statistics(context, reference, extractor)
    compared = [compare_features(references.accumulate(chunks, extractor, n), statistics, extractor) for chunks in sets]
    described = {"n": n, "sets": len(sets), "reference": reference.description, "features": extractor.name}
    return mean_over_sets(compared, {**described, **fields})


def compare_features(
    samples: FeatureStatistics, reference: FeatureStatistics, extractor: Extractor
) -> list[tuple[str, float]]:
    """Name and value of each number of one set against the reference; of moments alone, the Fréchet distance."""
    whole, manifolds = reference.moments(), []
    if len(reference.features):
        near = manifold.precision_recall(samples.features, reference.features, k=PRECISION_K)
        dense = manifold.density_coverage(samples.features, reference.features, k=COVERAGE_K)
        manifolds = [
            (f"precision, k={PRECISION_K}", near.precision),
            (f"recall, k={PRECISION_K}", near.recall),
            (f"density, k={COVERAGE_K}", dense.density),
            (f"coverage, k={COVERAGE_K}", dense.coverage),
        ]
    few = min(half.n for half in samples.halves) <= extractor.dimension
    bias = math.nan if few else frechet.sampling_bias(*samples.halves, whole)
    return [
        (extractor.distance_name, frechet.frechet_distance(samples.moments(), whole)),
        (f"bias of the {extractor.distance_name} at this n", bias),
        *manifolds,
        *extractor.extra_metrics(samples, reference),
    ]


def mean_over_sets(sets: Sequence[list[tuple[str, float]]], fields: protocol.Protocol) -> list[Measurement]:
    """Means over sets, and their standard errors; nan of a single set."""
    numbers = []
    for same in zip(*sets, strict=True):
        numbers.append(protocol.measure_mean(same[0][0], np.array([value for _, value in same]), fields))
    n, bias = fields["n"], numbers[1].value
    if isinstance(n, int) and n < RECOMMENDED_NUM:
        size = "an unknown amount" if math.isnan(bias) else f"about {bias:.3g}"
        print(f"warning: {n} images are fewer than {RECOMMENDED_NUM:,}: their Fréchet distance is too large by {size}; "
              "compare it only with others of the same n", file=sys.stderr)  # fmt: skip
    return numbers


def load_samples(
    context: EvaluationContext, path: pathlib.Path, options: SamplesOptions
) -> tuple[list[list[np.ndarray]], protocol.Protocol]:
    """Sets of images from an .npz file, and their protocol fields; a ValueError if too few or of another kind."""
    arrays = protocol.load_npz(path)
    if "arr_0" not in arrays:
        raise ValueError(f"{path}: expected images under the name arr_0, found {', '.join(arrays) or 'none'}")
    images = references.check_images(context, path, arrays["arr_0"])
    if len(images) < options.num * options.sets:
        raise ValueError(f"{path} holds {len(images)} images, --num {options.num} --sets {options.sets} ask for more")
    sets = [[images[options.num * i : options.num * (i + 1)]] for i in range(options.sets)]
    return sets, {"samples": f"{path.name} sha {protocol.data_hash(images)}", "format": str(images.dtype)}
