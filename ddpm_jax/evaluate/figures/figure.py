"""Common parts of the figures: their files, and sampling continued from an intermediate time."""

import csv
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import data, keys, pipeline, process, samplers, tracking
from ddpm_jax.evaluate import protocol
from ddpm_jax.evaluate.context import EvaluationContext
from ddpm_jax.evaluate.options import ImageOptions
from ddpm_jax.evaluate.protocol import Measurement
from ddpm_jax.pipeline import manifest, tiles


class FigureFiles:
    """The files of one figure, COMMAND-HASH.png and others; each method writes one and prints its name.

    `path` is that of the files, without a suffix.  The hash is that of the fields, all that the figure depends on.
    """

    def __init__(self, context: EvaluationContext, command: str, fields: protocol.Protocol):
        self.context, self.path = context, context.out / f"{command}-{manifest.short_hash(fields)}"
        context.out.mkdir(parents=True, exist_ok=True)

    def save_image(self, picture: np.ndarray, legend: str) -> None:
        """Writes the picture; the legend and the sampling are kept in the file."""
        model, path = self.context.model, self.path.with_suffix(".png")
        text = model.png_text() | {"legend": legend}
        data.write_png(path, picture, scale=data.preview_scale(model.shape), text=text)
        print(f"{path}\n  {legend}")

    def save_measurements(self, measured: Sequence[Measurement], extra: dict[str, Any] | None = None) -> None:
        """Writes the numbers and prints them, those of the same t on one line; `extra` goes beside them."""
        path, made_with = self.path.with_suffix(".json"), self.context.made_with()
        if extra is None:
            protocol.write_measurements(path, measured, made_with)
        else:
            process.atomic_write_json(path, {**protocol.to_json(measured, made_with), **extra})
        for t, group in itertools.groupby(measured, lambda number: number.protocol.get("t")):
            if t is None:
                print(*map(protocol.format_line, group), sep="\n")
            else:
                values = [f"{number.name} {protocol.format_value(number.value, number.error)}" for number in group]
                print(f"  t = {t:>5}: {'; '.join(values)}")
        print(f"numbers in {path.name}")

    def save_csv(self, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Writes a table of integers and floats, these to seven digits; nan is left empty."""

        def cell(value: Any) -> Any:
            return value if isinstance(value, int | np.integer) else f"{value:.7g}" if math.isfinite(value) else ""

        with self.path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(header)
            table.writerows(map(cell, row) for row in rows)
        print(f"table in {self.path.name}.csv")


def draw_states(model: pipeline.Pipeline, options: ImageOptions, times: Sequence[int]) -> np.ndarray:
    """x_t [n, k, H, W, C] of the images asked for, at k falling times that the chain visits, data units."""
    parts = model.draw(seed=options.seed, start=options.start, num=options.num, save_at=times)
    with tracking.Activity("drawing images"):
        return np.concatenate([part.x[:, 0] for part in parts])


def evenly_spaced(times: np.ndarray, frames: int) -> np.ndarray:
    """At most `frames` of a chain's times, evenly spread, both ends included."""
    return times[np.linspace(0, len(times) - 1, min(frames, len(times))).round().astype(int)]


def nearest_times(times: np.ndarray, targets: Sequence[float]) -> list[int]:
    """The visited time nearest to each target, falling, without repetitions."""
    return sorted({int(times[np.argmin(np.abs(times - t))]) for t in targets}, reverse=True)


def check_visited(flag: str, requested: Sequence[int], times: np.ndarray) -> None:
    """Raises a ValueError with the nearest visited times if the chain does not visit a requested time."""
    for t in requested:
        if t not in times:
            near = [*map(str, times[times > t][-1:]), *map(str, times[times < t][:1])]
            hint = f"nearest to it are the visited {' and '.join(near)}"
            raise ValueError(f"{flag}: the reverse process of {len(times) - 1} steps does not visit t = {t}; {hint}")


def with_start_times(sampler: samplers.Sampler, start: jax.Array) -> samplers.Sampler:
    """The sampler for images that each start at their own time, [B]; before it, and of start 0, an image stays."""

    def step(keys, state, t, s):
        def select(new, old):
            if new.ndim == 0:
                return new
            return jnp.where((t <= start).reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

        return jax.tree.map(select, sampler.step(keys, state, t, s), state)

    return samplers.Sampler(sampler.init, step)


def continue_sampling(
    model: pipeline.Pipeline, seed: int, paths: np.ndarray, x: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """x_0 [n, H, W, C] from images x, each at its own time, by the reverse process from there on.

    Image i is x[i] at time start[i] and goes through every visited time below it.  One program serves all
    start times: it begins at the noisiest of them, and the other images wait.

    Args:
        paths: [n, d] uint32; image i's key is key(seed) with each number of its path folded in, one after the other.
        x: [n, H, W, C] in data units.
        start: [n] visited times; an image of start 0 is returned unchanged.
    """
    times = model.times[model.times <= start.max()]
    if len(times) < 2:
        return x
    n, everywhere = len(x), jax.local_device_count()
    rounds = math.ceil(n / (model.tile * everywhere))
    size = math.ceil(n / (rounds * everywhere))

    def sample_tile(params, key, tile):
        paths, x, start = tile
        own = jax.vmap(lambda path: functools.reduce(jax.random.fold_in, path, key))(paths)
        return samplers.sample(own, with_start_times(model.sampler(params), start), x, times)

    mapped, key, parts = tiles.parallelise(sample_tile, model.config.parallel), keys.from_seed(seed), []
    with tracking.Activity("drawing images") as shown:
        for offset in range(0, n, size * everywhere):
            shown.text = f"drawing images, {offset} of {n}"
            rows = np.minimum(offset + np.arange(size * everywhere), n - 1).reshape(everywhere, size)
            tile = paths[rows].astype(np.uint32), x[rows], start[rows].astype(np.int32)
            parts.append(np.asarray(mapped(model.params, key, tile)).reshape(-1, *x.shape[1:])[: n - offset])
    return np.concatenate(parts)


def mean_squared(difference: np.ndarray) -> np.ndarray:
    """[n, k] means of the squares of differences [n, k, ...], in float64."""
    return (difference.astype(np.float64) ** 2).reshape(*difference.shape[:2], -1).mean(-1)


def rmse(squared: np.ndarray) -> tuple[float, float]:
    """The root of the mean of images' mean squared errors [n], and its standard error; nan for one image.

    The squared errors are in data units, the results on the scale 0..255.
    """
    value, n = 127.5 * math.sqrt(squared.mean()), len(squared)
    error = 127.5**2 * squared.std(ddof=1) / math.sqrt(n) / (2 * value) if n > 1 and value else math.nan
    return value, error


def format_times(times: Iterable[int]) -> str:
    """Times for a legend: "1000, 900, 800"."""
    return ", ".join(str(int(t)) for t in times)
