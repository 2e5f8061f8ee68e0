"""Samples with their nearest training images, and the memorisation report (DDPM, appendix D)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ddpm_jax import data
from ddpm_jax.evaluate import protocol, sample_cache, samples
from ddpm_jax.evaluate.context import EvaluationContext, Split, load_images, select_split
from ddpm_jax.evaluate.figures import figure
from ddpm_jax.evaluate.options import NeighboursOptions
from ddpm_jax.evaluate.protocol import Measurement
from ddpm_jax.metrics import manifold, monitors
from ddpm_jax.pipeline import image_parts

QUANTILES = {"5 % quantile": 0.05, "median": 0.5, "95 % quantile": 0.95}


class FeatureSpace(NamedTuple):
    """A space in which distances are measured.

    Attributes:
        name: "pixels", or the extractor with its fingerprint.
        unit: of the distances, in words.
        embed: integer images [n, H, W, C] -> vectors [n, d].
        scale: what Euclidean distances of these are divided by.
    """

    name: str
    unit: str
    embed: Callable[[np.ndarray], np.ndarray]
    scale: float


class Neighbours(NamedTuple):
    """Nearest training images of samples and of held-out images.

    Attributes:
        distances: [n, k] of each sample, ascending.
        indices: [n, k] rows of the reference.
        held_out: [h] distances of the held-out images to the nearest.
        memorisation: the verdict, in pixels.
    """

    distances: np.ndarray
    indices: np.ndarray
    held_out: np.ndarray
    memorisation: monitors.MemorisationReport


def run(context: EvaluationContext, options: NeighboursOptions) -> int:
    """Writes the picture, the numbers, the verdict and each sample's neighbours; status 4 if it is interrupted."""
    loaded = load_images(context, stream=False)  # every sample is compared with all of them
    train, held = select_split(loaded, "train"), select_split(loaded, "test")
    num_train, flip = len(train.images), context.model.config.data.flip
    if not 1 <= options.rows <= options.num:
        raise ValueError(f"--rows must be 1 to --num, {options.num}, got {options.rows}")
    if not 1 <= options.k <= num_train:
        raise ValueError(f"--k must be 1 to {num_train}, the number of training images, got {options.k}")
    space = feature_space(context, options)
    folder = sample_cache.ensure_samples(context, options.num, options.seed, "integer")
    if folder is None:
        return 4
    drawn = np.concatenate(list(image_parts.read_chunks(folder, 0, options.num)))
    reference = np.asarray(train.images)
    if flip:
        reference = np.concatenate([reference, reference[:, :, ::-1]])  # mirrored as in training
    neighbours = find_neighbours(drawn, reference, np.asarray(loaded.test), space, options.k)
    fields = {
        "n": options.num,
        "reference": f"{train.name} n={num_train}{' and mirrored' if flip else ''}",
        "features": space.name,
        **sample_cache.protocol_fields(context, options.seed, "integer"),
    }
    files = figure.FigureFiles(context, "neighbours", {**fields, "rows": options.rows, "k": options.k})
    order = np.argsort(neighbours.distances[:, 0], kind="stable")  # the sample nearest to a training image first
    first = order[: options.rows]
    legend = (
        f"rows: the {options.rows} of {options.num} samples of seed {options.seed} that are nearest to a training "
        f"image, nearest first: {figure.format_times(first)}; columns: the sample, then its {options.k} nearest "
        f"training images by {space.name}"
    )
    nearest = reference[neighbours.indices[first]].reshape(-1, *drawn.shape[1:])
    grids = [(drawn[first], 1), (nearest, options.k)]
    picture = [data.make_grid(images, loaded.levels, columns=columns) for images, columns in grids]
    files.save_image(np.concatenate(picture, axis=1), legend)
    rows = [
        {
            "sample": int(i),
            "train": (neighbours.indices[i] % num_train).tolist(),
            "mirrored": (neighbours.indices[i] >= num_train).tolist(),
            "distance": neighbours.distances[i].tolist(),
        }
        for i in order
    ]
    verdict, reason = neighbours.memorisation.verdict, neighbours.memorisation.reason
    extra = {"verdict": verdict, "reason": reason, "neighbours": rows}
    files.save_measurements(measurements(neighbours, held, space, fields), extra)
    print(f"verdict in pixels: {reason}")
    return 0


def feature_space(context: EvaluationContext, options: NeighboursOptions) -> FeatureSpace:
    """The space that distances are measured in."""
    if options.features == "pixels":
        scale = math.prod(context.model.shape) ** 0.5  # root mean squares over the pixels, as the verdict has them
        return FeatureSpace("pixels", "RMS in levels", lambda integers: integers.reshape(len(integers), -1), scale)
    extractor = samples.load_extractor(context.model, options.features, options.inception_weights)

    def features(integers: np.ndarray) -> np.ndarray:
        parts = range(0, len(integers), samples.BATCH_SIZE)
        return np.concatenate([extractor.extract(integers[i : i + samples.BATCH_SIZE])[0] for i in parts])

    return FeatureSpace(extractor.name, "feature units", features, 1.0)


def find_neighbours(
    drawn: np.ndarray, reference: np.ndarray, held_out: np.ndarray, space: FeatureSpace, k: int
) -> Neighbours:
    """The k nearest reference images of each sample, and the distances of held-out images to theirs.

    Args:
        drawn, reference, held_out: integer images [n, H, W, C], alike; only `held_out` may be empty.
    """
    embedded = space.embed(reference)
    near = manifold.nearest(space.embed(drawn), embedded, k)
    known = manifold.nearest(space.embed(held_out), embedded).distances[:, 0] if len(held_out) else np.zeros(0)
    verdict = monitors.memorisation_report(drawn, monitors.distance_reference(reference, held_out))
    return Neighbours(near.distances / space.scale, near.indices, known / space.scale, verdict)


def measurements(
    neighbours: Neighbours, held: Split, space: FeatureSpace, fields: protocol.Protocol
) -> list[Measurement]:
    """Of samples and of held-out images: quantiles of the distance to the nearest training image, shares of copies."""
    of_held = {"n": len(held.images), "data": held.name, "reference": fields["reference"]}
    memorisation, nan, rows = neighbours.memorisation, math.nan, []
    for who, distances, known in (
        ("samples", neighbours.distances[:, 0], fields),
        ("held-out", neighbours.held_out, of_held),
    ):
        for name, q in QUANTILES.items():
            value = float(np.quantile(distances, q)) if len(distances) else nan
            what = f"nearest training image, {who}, {name}, {space.unit}"
            rows.append(Measurement(what, value, nan, {**known, "features": space.name}))
    for name, value, known in (
        ("share of samples as near as the nearest 5 % of held-out images", memorisation.near, fields),
        ("share of samples like copies of one training image", memorisation.copied, fields),
        ("share of held-out images like copies of one training image", memorisation.held_out_copied, of_held),
    ):
        rows.append(Measurement(name, value, nan, {**known, "features": "pixels"}))
    return rows
