"""What the network takes the image to be, all along the chain."""

import csv
import math
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ddpm_jax import data, log, runs
from ddpm_jax.evaluate import draws, figures, plots, protocol, samples
from ddpm_jax.evaluate.options import Predictions, Samples
from ddpm_jax.evaluate.protocol import Number
from ddpm_jax.evaluate.subject import Subject, images, split
from ddpm_jax.metrics import frechet


class Found(NamedTuple):
    """Predictions along chains.

    Attributes:
        times: [k] falling; the times t of the x_t that are predicted from.
        shown: [num, k, H, W, C] x_0 predicted from x_t, data units.
        squared: [n, k] mean squared difference of prediction and image.
        quality: [k] at each time the Fréchet distance and its bias, or nothing.
    """

    times: np.ndarray
    shown: np.ndarray
    squared: np.ndarray
    quality: list[list[Number]]


def run(subject: Subject, options: Predictions) -> int:
    """Writes the picture, the curve and the numbers, and says them and where they are."""
    found = measure(subject, options)
    measured = numbers(subject, options, found)
    name = result(subject, options, found)
    legend = (
        f"rows: images {options.start}..{options.start + options.num - 1} of seed {options.seed}; columns: x_0 "
        f"predicted from x_t at t = {figures.listed(found.times)}"
    )
    figures.save(subject, name, data.strip(list(found.shown)), legend)
    protocol.write(subject.out / f"{name}.json", [n for at in measured for n in at], subject.made_with())
    table(subject.out / f"{name}.csv", measured)
    for at in measured:
        said = [f"{n.name} {protocol.said(n.value, n.error)}" for n in at]
        print(f"  t = {at[0].protocol['t']:>5}: {'; '.join(said)}")
    print(f"numbers in {name}.json and {name}.csv")
    try:
        curve(subject.out / f"{name}-curve.png", subject.model.config.schedule.T, measured)
        print(f"curve in {name}-curve.png")
    except plots.MissingExtra as missing:
        print(f"no curve: {missing}")
    return 0


def measure(subject: Subject, options: Predictions) -> Found:
    """The predictions of the images asked for.

    Raises:
        ValueError: if there are no images, fewer than two frames, or too few images for a Fréchet distance.
    """
    model = subject.model
    places = figures.spread(np.arange(len(model.times) - 1), options.frames)
    if options.quality and options.quality < options.num:
        raise ValueError(f"--quality must be 0 or at least --num, {options.num}, got {options.quality}")
    quality = Quality(subject, options, len(places)) if options.quality else None
    shown, squared = [], []
    for x0, image in predicted(model, options, places):
        shown.append(x0[: max(0, options.num - sum(map(len, shown)))])
        off = (x0 - image[:, None]).astype(np.float64)
        squared.append((off**2).reshape(*off.shape[:2], -1).mean(-1))
        if quality is not None:
            quality.see(data.to_integer(x0, model.integer_levels))
    times = model.times[places]
    distances = [] if quality is None else quality.numbers(times.tolist())
    return Found(times, np.concatenate(shown), np.concatenate(squared), distances)


def predicted(model: runs.Model, options: Predictions, places: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Groups of images: x_0 [b, k, H, W, C] predicted from x at these places of the chain, the images [b, H, W, C]."""
    n = max(options.num, options.quality)
    after = model.times[places + 1].tolist()  # a chain keeps with each x the prediction that led there
    progress, done = log.Progress(n, what="images", active=n > options.num), 0
    for part in model.draw(seed=options.seed, start=options.start, num=n, keep=after):
        done += len(part.x)
        progress.update(done, {})
        yield part.x[:, 1], part.x[:, 0, -1]
    progress.close()


class Quality:
    """Fréchet distances of the predictions at k times to the training images, while the images come."""

    def __init__(self, subject: Subject, options: Predictions, k: int):
        asked = Samples(num=options.quality, features=options.features, inception_weights=options.inception_weights)
        self.eye = samples.extractor(subject.model, asked)
        if options.quality <= self.eye.dimension:
            raise ValueError(
                f"--quality must be above {self.eye.dimension}, the dimension of the features of {self.eye.name}: "
                f"fewer images have no Fréchet distance; got {options.quality}"
            )
        compared = split(images(subject), "train")
        self.reference = samples.remembered(subject, compared, self.eye).moments()
        self.halves = [[frechet.empty(self.eye.dimension)] * 2 for _ in range(k)]
        self.facts = {
            "n": options.quality,
            "start": options.start,
            "reference": f"{compared.name} n={len(compared.images)}",
            "features": self.eye.name,
            **draws.fields(subject, options.seed, "integer"),
        }

    def see(self, integers: np.ndarray) -> None:
        """Takes in predictions [b, k, H, W, C]; every other image belongs to the second half."""
        for k, halves in enumerate(self.halves):
            features, _ = self.eye.judge(integers[:, k])
            for i in (0, 1):
                halves[i] = frechet.merge(halves[i], frechet.moments(features[i::2]))

    def numbers(self, times: list[int]) -> list[list[Number]]:
        """For each time the distance, and its bias, nan where halves are too small to tell."""
        few = min(half.n for halves in self.halves for half in halves) <= self.eye.dimension
        rows = []
        for t, (a, b) in zip(times, self.halves, strict=True):
            facts, nan = {"t": t, **self.facts}, math.nan
            distance = frechet.frechet_distance(frechet.merge(a, b), self.reference)
            bias = nan if few else frechet.sampling_bias(a, b, self.reference)
            rows.append([Number("Fréchet distance", distance, nan, facts), Number("its bias", bias, nan, facts)])
        return rows


def result(subject: Subject, options: Predictions, found: Found) -> str:
    """The name of the files, without a suffix."""
    quality = {"quality": options.quality, "features": options.features} if options.quality else {}
    return f"predictions-{protocol.identity({**fields(subject, options, found), **quality})}"


def fields(subject: Subject, options: Predictions, found: Found) -> protocol.Protocol:
    """What the errors depend on, but for the t of each."""
    return {
        "n": len(found.squared),
        "start": options.start,
        "times": figures.listed(found.times),
        **draws.fields(subject, options.seed, "float"),
    }


def numbers(subject: Subject, options: Predictions, found: Found) -> list[list[Number]]:
    """For each t the error of the prediction against the image, and with --quality its Fréchet distance."""
    facts = fields(subject, options, found)
    quality = found.quality or [[]] * len(found.times)
    return [
        [Number("RMSE to the image, 0..255", *figures.rmse(found.squared[:, k]), {"t": int(t), **facts}), *quality[k]]
        for k, t in enumerate(found.times)
    ]


def table(path: pathlib.Path, measured: list[list[Number]]) -> None:
    """Writes the numbers as CSV, a line for each t; a number that is not known is left empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["t", measured[0][0].name, "standard error", *(number.name for number in measured[0][1:])])
        for error, *quality in measured:
            values = [error.value, error.error, *(number.value for number in quality)]
            rows.writerow([error.protocol["t"], *(f"{v:.7g}" if math.isfinite(v) else "" for v in values)])


def curve(path: pathlib.Path, T: int, measured: list[list[Number]]) -> None:
    """Draws the numbers over the steps of the reverse process, as figure 10 of the paper."""
    steps = [T - int(at[0].protocol["t"]) for at in measured]
    row = []
    for i, name in enumerate(number.name for number in measured[0] if number.name != "its bias"):
        values, errors = [at[i].value for at in measured], [at[i].error for at in measured]
        known = {name: errors} if np.isfinite(errors).any() else {}
        row.append(plots.Panel(steps, {name: values}, "reverse process steps, T - t", name, errors=known))
    plots.panels(path, row)
