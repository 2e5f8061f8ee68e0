"""Samples with their nearest training images, and the memorisation report (DDPM, appendix D)."""

import math
from collections.abc import Callable

import numpy as np

from ddpm_jax import data
from ddpm_jax.evaluate import extractors, protocol, sample_cache
from ddpm_jax.evaluate.context import EvaluationContext, load_images, select_split
from ddpm_jax.evaluate.figures import figure
from ddpm_jax.evaluate.options import NeighboursOptions
from ddpm_jax.evaluate.protocol import Measurement
from ddpm_jax.metrics import manifold, monitors
from ddpm_jax.pipeline import image_parts

QUANTILES = {"5 % quantile": 0.05, "median": 0.5, "95 % quantile": 0.95}


def run(context: EvaluationContext, options: NeighboursOptions) -> None:
    """Writes the picture, the numbers, the verdict and each sample's neighbours."""
    loaded = load_images(context, stream=False)  # every sample is compared with all of them
    train, held = select_split(loaded, "train"), select_split(loaded, "test")
    num_train, flip = len(train.images), context.model.config.data.flip
    if not 1 <= options.rows <= options.num:
        raise ValueError(f"--rows must be 1 to --num, {options.num}, got {options.rows}")
    if not 1 <= options.k <= num_train:
        raise ValueError(f"--k must be 1 to {num_train}, the number of training images, got {options.k}")
    space, embed = feature_space(context, options)
    folder = sample_cache.ensure_samples(context, options.num, options.seed, "integer")
    drawn = np.concatenate(list(image_parts.read_chunks(folder, 0, options.num)))
    # the data may be 16-bit integers of at most 256 levels, whose samples have 8 bits
    reference, held_images = (np.asarray(side.images, drawn.dtype) for side in (train, held))
    if flip:
        reference = np.concatenate([reference, reference[..., ::-1, :]])  # mirrored as in training
    # Euclidean distances as root mean squares over the pixels, as the verdict has them; features as they are
    scale = math.prod(context.model.shape) ** 0.5 if space == "pixels" else 1.0
    embedded = embed(reference)
    distances, indices = manifold.nearest(embed(drawn), embedded, options.k)
    distances = distances / scale
    known = manifold.nearest(embed(held_images), embedded).distances[:, 0] / scale if len(held_images) else np.zeros(0)
    report = monitors.memorisation_report(drawn, monitors.distance_reference(reference, held_images))

    fields = {
        "n": options.num,
        "reference": train.describe() + " and mirrored" * flip,
        "features": space,
        **sample_cache.protocol_fields(context, options.seed, "integer"),
    }
    files = figure.FigureFiles(context, "neighbours", {**fields, "rows": options.rows, "k": options.k})
    order = np.argsort(distances[:, 0], kind="stable")  # the sample nearest to a training image first
    shown = order[: options.rows]
    legend = (
        f"rows: the {options.rows} of {options.num} samples of seed {options.seed} that are nearest to a training "
        f"image, nearest first: {figure.format_times(shown)}; columns: the sample, then its {options.k} nearest "
        f"training images by {space}"
    )
    nearest = reference[indices[shown]].reshape(-1, *drawn.shape[1:])
    grids = [(drawn[shown], 1), (nearest, options.k)]
    picture = [data.make_grid(images, loaded.levels, columns=columns) for images, columns in grids]
    files.save_image(np.concatenate(picture, axis=1), legend)

    of_held = {"n": len(held.images), "data": held.name, "reference": fields["reference"], "features": space}
    measured = distance_quantiles("samples", distances[:, 0], fields) + distance_quantiles("held-out", known, of_held)
    for name, value, of in (
        ("share of samples as near as the nearest 5 % of held-out images", report.near, fields),
        ("share of samples like copies of one training image", report.copied, fields),
        ("share of held-out images like copies of one training image", report.held_out_copied, of_held),
    ):
        measured.append(Measurement(name, value, math.nan, {**of, "features": "pixels"}))
    rows = [
        {
            "sample": int(i),
            "train": (indices[i] % num_train).tolist(),
            "mirrored": (indices[i] >= num_train).tolist(),
            "distance": distances[i].tolist(),
        }
        for i in order
    ]
    files.save_measurements(measured, {"verdict": report.verdict, "reason": report.reason, "neighbours": rows})
    print(f"verdict in pixels: {report.reason}")


def feature_space(
    context: EvaluationContext, options: NeighboursOptions
) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
    """The space of the distances: its name, and (integer images [n, H, W, C]) -> vectors [n, d]."""
    if options.features == "pixels":
        return "pixels", lambda integers: integers.reshape(len(integers), -1)
    extractor = extractors.load_extractor(context.model, options.features, options.inception_weights)
    return extractor.name, lambda integers: extractor.extract_all(integers)[0]


def distance_quantiles(who: str, distances: np.ndarray, fields: protocol.Protocol) -> list[Measurement]:
    """Quantiles of the distances [n] to the nearest training image; nan where there are none."""
    unit = "RMS in levels" if fields["features"] == "pixels" else "feature units"
    return [
        Measurement(
            f"nearest training image, {who}, {name}, {unit}",
            float(np.quantile(distances, q)) if len(distances) else math.nan,
            math.nan,
            fields,
        )
        for name, q in QUANTILES.items()
    ]
