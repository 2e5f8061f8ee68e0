"""Predicted x_0 over time, its error and its Fréchet distance (DDPM, figures 6, 10 and 14)."""

import math
from typing import NamedTuple

import numpy as np

from ddpm_jax import data, tracking
from ddpm_jax.evaluate import extractors, plots, protocol, references, sample_cache
from ddpm_jax.evaluate.context import EvaluationContext, load_images, select_split
from ddpm_jax.evaluate.figures import figure
from ddpm_jax.evaluate.options import PredictionsOptions
from ddpm_jax.evaluate.protocol import Measurement
from ddpm_jax.metrics import frechet


class Predictions(NamedTuple):
    """Predictions along chains."""

    times: np.ndarray  # [k] falling; the times t of the x_t that are predicted from
    x0: np.ndarray  # [num, k, H, W, C] x_0 predicted from x_t, data units
    squared_error: np.ndarray  # [n, k] mean squared difference of prediction and image
    quality: list[list[Measurement]]  # [k] at each time the Fréchet distance and its bias, or nothing


def run(context: EvaluationContext, options: PredictionsOptions) -> None:
    """Writes the picture, the numbers, and these as a table and a curve over the steps (figure 10 of the paper)."""
    predictions = measure(context, options)
    times = figure.format_times(predictions.times)
    fields = {
        "n": len(predictions.squared_error),
        "start": options.start,
        "times": times,
        **sample_cache.protocol_fields(context, options.seed, "float"),
    }
    quality = {"quality": options.quality, "features": options.features} if options.quality else {}
    files = figure.FigureFiles(context, "predictions", {**fields, **quality})
    legend = f"rows: {options.describe_images()}; columns: x_0 predicted from x_t at t = {times}"
    files.save_image(data.make_trajectory_grid(list(predictions.x0)), legend)
    measured = measurements(predictions, fields)
    files.save_measurements([number for row in measured for number in row])
    error, *others = measured[0]
    files.save_csv(
        ["t", error.name, "standard error", *(number.name for number in others)],
        [(int(t), row[0].value, row[0].error, *(number.value for number in row[1:]))
         for t, row in zip(predictions.times, measured, strict=True)],
    )  # fmt: skip
    steps = context.model.config.schedule.T - predictions.times
    panels = []
    for numbers in zip(*measured, strict=True):  # of one name, over the times
        name, standard_errors = numbers[0].name, [number.error for number in numbers]
        if name != "its bias":
            values = {name: [number.value for number in numbers]}
            known = {name: standard_errors} if np.isfinite(standard_errors).any() else {}
            panels.append(plots.Panel(steps, values, "reverse process steps, T - t", name, standard_errors=known))
    plots.write_panels_if_installed(files.path.with_name(f"{files.path.name}-curve.png"), panels)


def measure(context: EvaluationContext, options: PredictionsOptions) -> Predictions:
    """The predictions of the requested images; a ValueError if these are too few for a Fréchet distance."""
    model = context.model
    positions = figure.evenly_spaced(np.arange(len(model.times) - 1), options.frames)
    if options.quality and options.quality < options.num:
        raise ValueError(f"--quality must be 0 or at least --num, {options.num}, got {options.quality}")
    quality = FrechetOverTime(context, options, len(positions)) if options.quality else None
    n, shown, squared = max(options.num, options.quality), [], []
    after = model.times[positions + 1].tolist()  # a chain keeps with each x the prediction that led there
    with tracking.Progress(n, unit="images") as progress:
        for part in model.draw(seed=options.seed, start=options.start, num=n, save_at=after):
            x0, image = part.x[:, 1], part.x[:, 0, -1]
            shown.append(x0[: max(0, options.num - sum(map(len, shown)))])
            squared.append(figure.mean_squared(x0 - image[:, None]))
            if quality is not None:
                quality.update(data.to_integer(x0, model.integer_levels))
            progress.update(sum(map(len, squared)))
    times = model.times[positions]
    distances = [] if quality is None else quality.measurements(times.tolist())
    return Predictions(times, np.concatenate(shown), np.concatenate(squared), distances)


class FrechetOverTime:
    """Fréchet distances of the predictions at k times to the training images, accumulated batch by batch."""

    def __init__(self, context: EvaluationContext, options: PredictionsOptions, k: int):
        self.extractor = extractors.load_extractor(context.model, options.features, options.inception_weights)
        extractors.check_count(self.extractor, options.quality, "--quality")
        compared = select_split(load_images(context), "train")
        extractors.check_count(self.extractor, len(compared.images), "the number of training images")
        self.reference = references.cached_reference(context, compared, self.extractor).moments()
        self.halves = [[frechet.empty_moments(self.extractor.dimension)] * 2 for _ in range(k)]
        self.fields = {
            "n": options.quality,
            "start": options.start,
            "reference": compared.describe(),
            "features": self.extractor.name,
            **sample_cache.protocol_fields(context, options.seed, "integer"),
        }

    def update(self, integers: np.ndarray) -> None:
        """Adds predictions [b, k, H, W, C]; every other image belongs to the second half."""
        for k, halves in enumerate(self.halves):
            features, _ = self.extractor.extract(integers[:, k])
            for i in (0, 1):
                halves[i] = frechet.merge_moments(halves[i], frechet.moments(features[i::2]))

    def measurements(self, times: list[int]) -> list[list[Measurement]]:
        """For each time the distance and its bias; the bias of too few images is nan."""
        few = min(half.n for halves in self.halves for half in halves) <= self.extractor.dimension
        rows = []
        for t, (a, b) in zip(times, self.halves, strict=True):
            distance = frechet.frechet_distance(frechet.merge_moments(a, b), self.reference)
            bias = math.nan if few else frechet.sampling_bias(a, b, self.reference)
            values = {"Fréchet distance": distance, "its bias": bias}
            rows.append([Measurement(name, v, math.nan, {"t": t, **self.fields}) for name, v in values.items()])
        return rows


def measurements(predictions: Predictions, fields: protocol.Protocol) -> list[list[Measurement]]:
    """For each t the error of the prediction against the image, and with --quality its Fréchet distance."""
    quality, name = predictions.quality or [[]] * len(predictions.times), "RMSE to the image, 0..255"
    return [
        [Measurement(name, *figure.rmse(predictions.squared_error[:, k]), {"t": int(t), **fields}), *quality[k]]
        for k, t in enumerate(predictions.times)
    ]
