"""What the network takes the image to be, all along the chain."""

import csv
import math
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ddpm_jax import data, pipeline, tracking
from ddpm_jax.evaluate import plots, protocol, sample_cache, samples
from ddpm_jax.evaluate.context import EvaluationContext, load_images, select_split
from ddpm_jax.evaluate.figures import figure
from ddpm_jax.evaluate.options import PredictionsOptions, SamplesOptions
from ddpm_jax.evaluate.protocol import Measurement
from ddpm_jax.metrics import frechet


class Predictions(NamedTuple):
    """Predictions along chains.

    Attributes:
        times: [k] falling; the times t of the x_t that are predicted from.
        x0: [num, k, H, W, C] x_0 predicted from x_t, data units.
        squared_error: [n, k] mean squared difference of prediction and image.
        quality: [k] at each time the Fréchet distance and its bias, or nothing.
    """

    times: np.ndarray
    x0: np.ndarray
    squared_error: np.ndarray
    quality: list[list[Measurement]]


def run(context: EvaluationContext, options: PredictionsOptions) -> int:
    """Writes the picture, the curve and the numbers, and says them and where they are."""
    predictions = measure(context, options)
    measured = measurements(context, options, predictions)
    name = result_name(context, options, predictions)
    legend = (
        f"rows: images {options.start}..{options.start + options.num - 1} of seed {options.seed}; columns: x_0 "
        f"predicted from x_t at t = {figure.format_times(predictions.times)}"
    )
    figure.save_image(context, name, data.make_trajectory_grid(list(predictions.x0)), legend)
    protocol.write_measurements(context.out / f"{name}.json", [n for at in measured for n in at], context.made_with())
    write_csv(context.out / f"{name}.csv", measured)
    for at in measured:
        said = [f"{n.name} {protocol.format_value(n.value, n.error)}" for n in at]
        print(f"  t = {at[0].protocol['t']:>5}: {'; '.join(said)}")
    print(f"numbers in {name}.json and {name}.csv")
    try:
        write_curve(context.out / f"{name}-curve.png", context.model.config.schedule.T, measured)
        print(f"curve in {name}-curve.png")
    except plots.MissingExtra as missing:
        print(f"no curve: {missing}")
    return 0


def measure(context: EvaluationContext, options: PredictionsOptions) -> Predictions:
    """The predictions of the images asked for.

    Raises:
        ValueError: if there are no images, fewer than two frames, or too few images for a Fréchet distance.
    """
    model = context.model
    positions = figure.evenly_spaced(np.arange(len(model.times) - 1), options.frames)
    if options.quality and options.quality < options.num:
        raise ValueError(f"--quality must be 0 or at least --num, {options.num}, got {options.quality}")
    quality = FrechetOverTime(context, options, len(positions)) if options.quality else None
    shown, squared = [], []
    for x0, image in iterate_predictions(model, options, positions):
        shown.append(x0[: max(0, options.num - sum(map(len, shown)))])
        off = (x0 - image[:, None]).astype(np.float64)
        squared.append((off**2).reshape(*off.shape[:2], -1).mean(-1))
        if quality is not None:
            quality.update(data.to_integer(x0, model.integer_levels))
    times = model.times[positions]
    distances = [] if quality is None else quality.measurements(times.tolist())
    return Predictions(times, np.concatenate(shown), np.concatenate(squared), distances)


def iterate_predictions(
    model: pipeline.Pipeline, options: PredictionsOptions, positions: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Groups of images: x_0 [b, k, H, W, C] predicted from x at these places of the chain, the images [b, H, W, C]."""
    n = max(options.num, options.quality)
    after = model.times[positions + 1].tolist()  # a chain keeps with each x the prediction that led there
    progress, done = tracking.Progress(n, unit="images", active=n > options.num), 0
    for part in model.draw(seed=options.seed, start=options.start, num=n, save_at=after):
        done += len(part.x)
        progress.update(done, {})
        yield part.x[:, 1], part.x[:, 0, -1]
    progress.close()


class FrechetOverTime:
    """Fréchet distances of the predictions at k times to the training images, while the images come."""

    def __init__(self, context: EvaluationContext, options: PredictionsOptions, k: int):
        asked = SamplesOptions(
            num=options.quality, features=options.features, inception_weights=options.inception_weights
        )
        self.extractor = samples.load_extractor(context.model, asked)
        if options.quality <= self.extractor.dimension:
            raise ValueError(
                f"--quality must be above {self.extractor.dimension}, the dimension of the features of "
                f"{self.extractor.name}: "
                f"fewer images have no Fréchet distance; got {options.quality}"
            )
        compared = select_split(load_images(context), "train")
        self.reference = samples.cached_reference(context, compared, self.extractor).moments()
        self.halves = [[frechet.empty_moments(self.extractor.dimension)] * 2 for _ in range(k)]
        self.fields = {
            "n": options.quality,
            "start": options.start,
            "reference": f"{compared.name} n={len(compared.images)}",
            "features": self.extractor.name,
            **sample_cache.protocol_fields(context, options.seed, "integer"),
        }

    def update(self, integers: np.ndarray) -> None:
        """Takes in predictions [b, k, H, W, C]; every other image belongs to the second half."""
        for k, halves in enumerate(self.halves):
            features, _ = self.extractor.extract(integers[:, k])
            for i in (0, 1):
                halves[i] = frechet.merge_moments(halves[i], frechet.moments(features[i::2]))

    def measurements(self, times: list[int]) -> list[list[Measurement]]:
        """For each time the distance, and its bias, nan where halves are too small to tell."""
        few = min(half.n for halves in self.halves for half in halves) <= self.extractor.dimension
        rows = []
        for t, (a, b) in zip(times, self.halves, strict=True):
            facts, nan = {"t": t, **self.fields}, math.nan
            distance = frechet.frechet_distance(frechet.merge_moments(a, b), self.reference)
            bias = nan if few else frechet.sampling_bias(a, b, self.reference)
            rows.append(
                [Measurement("Fréchet distance", distance, nan, facts), Measurement("its bias", bias, nan, facts)]
            )
        return rows


def result_name(context: EvaluationContext, options: PredictionsOptions, predictions: Predictions) -> str:
    """The name of the files, without a suffix."""
    quality = {"quality": options.quality, "features": options.features} if options.quality else {}
    return f"predictions-{protocol.short_hash({**protocol_fields(context, options, predictions), **quality})}"


def protocol_fields(
    context: EvaluationContext, options: PredictionsOptions, predictions: Predictions
) -> protocol.Protocol:
    """What the errors depend on, but for the t of each."""
    return {
        "n": len(predictions.squared_error),
        "start": options.start,
        "times": figure.format_times(predictions.times),
        **sample_cache.protocol_fields(context, options.seed, "float"),
    }


def measurements(
    context: EvaluationContext, options: PredictionsOptions, predictions: Predictions
) -> list[list[Measurement]]:
    """For each t the error of the prediction against the image, and with --quality its Fréchet distance."""
    fields = protocol_fields(context, options, predictions)
    quality = predictions.quality or [[]] * len(predictions.times)
    return [
        [
            Measurement(
                "RMSE to the image, 0..255", *figure.rmse(predictions.squared_error[:, k]), {"t": int(t), **fields}
            ),
            *quality[k],
        ]
        for k, t in enumerate(predictions.times)
    ]


def write_csv(path: pathlib.Path, measured: list[list[Measurement]]) -> None:
    """Writes the numbers as CSV, a line for each t; a number that is not known is left empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["t", measured[0][0].name, "standard error", *(number.name for number in measured[0][1:])])
        for error, *quality in measured:
            values = [error.value, error.error, *(number.value for number in quality)]
            rows.writerow([error.protocol["t"], *(f"{v:.7g}" if math.isfinite(v) else "" for v in values)])


def write_curve(path: pathlib.Path, T: int, measured: list[list[Measurement]]) -> None:
    """Draws the numbers over the steps of the reverse process, as figure 10 of the paper."""
    steps = [T - int(at[0].protocol["t"]) for at in measured]
    row = []
    for i, name in enumerate(number.name for number in measured[0] if number.name != "its bias"):
        values, errors = [at[i].value for at in measured], [at[i].error for at in measured]
        known = {name: errors} if np.isfinite(errors).any() else {}
        row.append(plots.Panel(steps, {name: values}, "reverse process steps, T - t", name, errors=known))
    plots.write_panels(path, row)
