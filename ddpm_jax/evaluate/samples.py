"""Samples against data, by features: Fréchet distance, precision and recall, density and coverage, classes."""

import dataclasses
import itertools
import math
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax import runs
from ddpm_jax.evaluate import draws, protocol
from ddpm_jax.evaluate.options import Samples
from ddpm_jax.evaluate.protocol import Number
from ddpm_jax.evaluate.subject import Split, Subject, check_alike, images, split
from ddpm_jax.metrics import classifier, frechet, inception, manifold

BATCH = 1024
MANIFOLD = 10_000  # the nearest-neighbour metrics take at most so many images of each side
ENOUGH = 10_000
PRECISION_K, COVERAGE_K = 3, 5  # as in the papers


class Seen(NamedTuple):
    """What an extractor makes of a set of images.

    Attributes:
        halves: moments of the features of the set's first and second half.
        features: [m, d] those of the first images, at most MANIFOLD.
        scores: [n, c] class probabilities, or logits, of all images.
    """

    halves: tuple[frechet.Moments, frechet.Moments]
    features: np.ndarray
    scores: np.ndarray

    def moments(self) -> frechet.Moments:
        """Of the whole set."""
        return frechet.merge(*self.halves)


class Extractor(NamedTuple):
    """Something that sees images.

    Attributes:
        name: what it is, with the fingerprint of its weights.
        distance: what the Fréchet distance of its features is called.
        dimension: of its features.
        judge: images [n, H, W, C] -> features [n, d], scores [n, c].
        also: (samples, reference) -> further numbers: name, value, error.
    """

    name: str
    distance: str
    dimension: int
    judge: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    also: Callable[[Seen, Seen], list[tuple[str, float, float]]]


def run(subject: Subject, options: Samples) -> int:
    """Says the numbers and where they are; status 4 if it is interrupted."""
    found = measured(subject, options)
    if found is None:
        return 4
    for number in found:
        print(protocol.line(number))
    print(f"written to {result(subject, found)}")
    return 0


def measured(subject: Subject, options: Samples) -> list[Number] | None:
    """The numbers of samples, also written to the results folder; None if drawing them was interrupted."""
    found = measure(subject, options)
    if found is not None:
        protocol.write(result(subject, found), found, subject.made_with())
    return found


def result(subject: Subject, found: Sequence[Number]) -> pathlib.Path:
    """Where numbers of samples belong."""
    return subject.out / f"samples-{protocol.identity(found[0].protocol)}.json"


def measure(subject: Subject, options: Samples) -> list[Number] | None:
    """The numbers of samples; None if drawing them was interrupted.

    Raises:
        ValueError: before anything is drawn, if there would be too few samples for the features, or nothing to compare.
    """
    eye = extractor(subject.model, options)
    check_counts(eye, options)
    compared = split(images(subject), options.reference)
    if options.samples is not None:
        sets, facts = written(subject, pathlib.Path(options.samples), options)
    else:
        folder = draws.ensure(subject, options.num * options.sets, options.seed, options.format)
        if folder is None:
            return None
        edges = [options.num * i for i in range(options.sets + 1)]
        sets = [draws.chunks(folder, first, stop) for first, stop in itertools.pairwise(edges)]
        facts = draws.fields(subject, options.seed, options.format)
    reference = remembered(subject, compared, eye)
    facts = {
        "n": options.num,
        "sets": options.sets,
        "reference": f"{compared.name} n={len(compared.images)}",
        "features": eye.name,
        **facts,
    }
    return summary([compare(look(chunks, eye, options.num), reference, eye) for chunks in sets], facts)


def floor(subject: Subject, options: Samples) -> list[Number]:
    """The same numbers for held-out images: what a perfect model could reach with as many samples."""
    eye, found = extractor(subject.model, options), images(subject)
    held, compared = split(found, "test"), split(found, options.reference)
    n = min(options.num, len(held.images))
    check_counts(eye, dataclasses.replace(options, num=n))
    facts = {
        "n": n, "sets": 1, "reference": f"{compared.name} n={len(compared.images)}", "features": eye.name,
        "data": held.name,
    }  # fmt: skip
    return summary([compare(look([held.images[:n]], eye, n), remembered(subject, compared, eye), eye)], facts)


def left_out(subject: Subject, options: Samples) -> list[Number]:
    """The same numbers for random training images against all others: a floor whatever held-out images were chosen by.

    Raises:
        ValueError: if what is left does not outnumber what is taken out.
    """
    eye, compared = extractor(subject.model, options), split(images(subject), "train")
    check_counts(eye, options)
    total = len(compared.images)
    if total < 2 * options.num:
        raise ValueError(f"--num {options.num} of {total} training images cannot be held against the others")
    judged = [eye.judge(compared.images[i : i + BATCH]) for i in range(0, total, BATCH)]
    features, scores = (np.concatenate(parts) for parts in zip(*judged, strict=True))
    known = eye._replace(judge=lambda places: (features[places], scores[places]))
    found = []
    for i in range(options.sets):
        order = np.random.RandomState(i).permutation(total)
        out, others = (look([part], known, len(part)) for part in np.split(order, [options.num]))
        found.append(compare(out, others, eye))
    reference = f"{compared.name} n={total - options.num}, the others"
    facts = {"n": options.num, "sets": options.sets, "reference": reference, "features": eye.name,
             "data": f"{compared.name}, left out"}  # fmt: skip
    return summary(found, facts)


def extractor(model: runs.Model, options: Samples) -> Extractor:
    """What is to see the images of a model."""
    if options.features == "inception":
        net = inception.load(model.integer_levels, weights=options.inception_weights)

        def scores(seen: Seen, reference: Seen) -> list[tuple[str, float, float]]:
            kid, score = (
                inception.kernel_distance(seen.features, reference.features),
                inception.inception_score(seen.scores),
            )
            return [
                ("inception score", score.mean, math.nan),
                ("inception score, deviation over 10 splits", score.std, math.nan),
                ("KID", kid.mean, math.nan),
                ("KID, deviation over 100 subsets", kid.std, math.nan),
            ]

        return Extractor(f"{net.name} {net.fingerprint}", "FID", net.dimension, net, scores)
    judge = classifier.load(classifier.for_images(model.shape, model.integer_levels))

    def classes(seen: Seen, reference: Seen) -> list[tuple[str, float, float]]:
        found = classifier.class_coverage(seen.scores, reference.scores)
        known, nan = float((reference.scores.max(1) > classifier.SURE).mean()), math.nan
        if known < 0.5:
            print(f"warning: the {judge.name} classifier is sure of {known:.0%} of the reference images: are they of "
                  "what it knows?", file=sys.stderr)  # fmt: skip
        return [
            (f"classes present, of {found.classes}", found.present, nan),
            ("distance of class shares", found.total_variation, nan),
            ("share with p > 0.9", found.sure, nan),
        ]

    return Extractor(
        f"{judge.name}-classifier {judge.fingerprint}", "Fréchet distance", judge.dimension, judge, classes
    )


def check_counts(eye: Extractor, options: Samples) -> None:
    """Refuses what cannot be measured; warns of what is measured with a bias."""
    if options.num <= eye.dimension:
        raise ValueError(
            f"--num must be above {eye.dimension}, the dimension of the features of {eye.name}: fewer images have no "
            f"covariance of full rank, and a Fréchet distance from them means nothing; got {options.num}"
        )


def look(chunks: Iterable[np.ndarray], eye: Extractor, n: int) -> Seen:
    """What an extractor makes of n images, in memory that does not grow with them but for MANIFOLD features."""
    halves, features, scores, done = [frechet.empty(eye.dimension)] * 2, [], [], 0
    for chunk in chunks:
        edges = sorted({0, len(chunk), *range(BATCH, len(chunk), BATCH), min(max(n // 2 - done, 0), len(chunk))})
        for first, stop in itertools.pairwise(edges):
            seen, marks = eye.judge(np.asarray(chunk[first:stop]))
            half = int(done + first >= n // 2)
            halves[half] = frechet.merge(halves[half], frechet.moments(seen))
            features.append(seen[: max(0, MANIFOLD - done - first)])
            scores.append(marks)
        done += len(chunk)
    return Seen((halves[0], halves[1]), np.concatenate(features), np.concatenate(scores))


def compare(seen: Seen, reference: Seen, eye: Extractor) -> list[tuple[str, float, float]]:
    """Name, value and error of each number of one set against the reference."""
    whole = reference.moments()
    near = manifold.precision_recall(seen.features, reference.features, k=PRECISION_K)
    dense = manifold.density_coverage(seen.features, reference.features, k=COVERAGE_K)
    few = min(half.n for half in seen.halves) <= eye.dimension
    bias = math.nan if few else frechet.sampling_bias(*seen.halves, whole)
    nan = math.nan
    return [
        (eye.distance, frechet.frechet_distance(seen.moments(), whole), nan),
        (f"bias of the {eye.distance} at this n", bias, nan),
        (f"precision, k={PRECISION_K}", near.precision, nan),
        (f"recall, k={PRECISION_K}", near.recall, nan),
        (f"density, k={COVERAGE_K}", dense.density, nan),
        (f"coverage, k={COVERAGE_K}", dense.coverage, nan),
        *eye.also(seen, reference),
    ]


def summary(found: Sequence[list[tuple[str, float, float]]], facts: protocol.Protocol) -> list[Number]:
    """Means over sets, and their standard errors; of a single set, its own."""
    numbers = []
    for same in zip(*found, strict=True):
        values = np.array([value for _, value, _ in same])
        error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else same[0][2]
        numbers.append(Number(same[0][0], float(values.mean()), error, facts))
    n, bias = facts["n"], numbers[1].value
    if isinstance(n, int) and n < ENOUGH:
        size = "an unknown amount" if math.isnan(bias) else f"about {bias:.3g}"
        print(f"warning: {n} images are fewer than {ENOUGH:,}: their Fréchet distance is too large by {size}; compare "
              "it only with others of the same n", file=sys.stderr)  # fmt: skip
    return numbers


def remembered(subject: Subject, compared: Split, eye: Extractor) -> Seen:
    """What an extractor makes of a complete split, kept in a file named by the hashes of both."""
    name = f"{eye.name}-{compared.name}".replace(" ", "-")
    path = subject.out / "references" / f"{name}.npz"
    if path.exists():
        kept = protocol.arrays(path)
        halves = tuple(frechet.Moments(int(kept[f"n{i}"]), kept[f"mean{i}"], kept[f"scatter{i}"]) for i in (0, 1))
        return Seen((halves[0], halves[1]), kept["features"], kept["scores"])
    print(f"reference: {compared.name}, {len(compared.images)} images, through {eye.name}", file=sys.stderr)
    # its first images stand for it where not all are taken: they must be of every kind
    order = np.random.RandomState(0).permutation(len(compared.images))
    parts = (compared.images[np.sort(order[i : i + BATCH])] for i in range(0, len(order), BATCH))
    seen = look(parts, eye, len(order))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        halves = {f"{key}{i}": value for i in (0, 1) for key, value in seen.halves[i]._asdict().items()}
        np.savez(file, features=seen.features, scores=seen.scores, **halves)
    part.replace(path)
    return seen


def written(subject: Subject, path: pathlib.Path, options: Samples) -> tuple[list[list[np.ndarray]], protocol.Protocol]:
    """Sets of images from a file, and what is known of them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no images such as the model makes, or too few.
    """
    arrays = protocol.arrays(path)
    if "arr_0" not in arrays:
        raise ValueError(f"{path}: expected images under the name arr_0, found {', '.join(arrays) or 'none'}")
    found = arrays["arr_0"]
    if found.dtype not in (np.uint8, np.uint16) or found.ndim != 4:
        raise ValueError(f"{path}: expected integer images [n, H, W, C], got {found.dtype} {found.shape}")
    levels = subject.model.integer_levels
    if found.size and found.max() >= levels:
        levels = int(found.max()) + 1
    check_alike(str(path), found.shape[1:], levels, subject.model)
    if len(found) < options.num * options.sets:
        raise ValueError(f"{path} holds {len(found)} images, --num {options.num} --sets {options.sets} ask for more")
    sets = [[found[options.num * i : options.num * (i + 1)]] for i in range(options.sets)]
    return sets, {"samples": f"{path.name} sha {protocol.data_hash(found)}", "format": str(found.dtype)}
