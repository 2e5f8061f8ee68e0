"""Interpolation of two images in the space of x_t (DDPM, figures 8 and 9)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import data, gaussian, keys, pipeline
from ddpm_jax.evaluate import protocol, sample_cache
from ddpm_jax.evaluate.context import EvaluationContext, load_images, select_split
from ddpm_jax.evaluate.figures import figure
from ddpm_jax.evaluate.options import InterpolationOptions
from ddpm_jax.evaluate.protocol import Measurement


class Interpolations(NamedTuple):
    """Interpolations, row by row."""

    times: np.ndarray  # [r] of each row's mixture
    pairs: np.ndarray  # [r, 2] indices of each row's images
    sources: np.ndarray  # [r, 2, H, W, C] the images, data units
    decoded: np.ndarray  # [r, columns, H, W, C] the decoded mixtures, from lambda 0 to lambda 1


def run(context: EvaluationContext, options: InterpolationOptions) -> None:
    """Writes the picture and the numbers."""
    split = select_split(load_images(context), options.split)
    result = interpolate(context.model, split.images, options)
    times = figure.format_times(result.times)
    fields = {
        "data": split.name,
        "pairs": " ".join(sorted({f"{a}-{b}" for a, b in result.pairs})),
        "times": times,
        "columns": options.columns,
        **sample_cache.protocol_fields(context, options.seed, "float"),
    }
    files = figure.FigureFiles(context, "interpolation", fields)
    rows = [np.concatenate([s[:1], x, s[1:]]) for s, x in zip(result.sources, result.decoded, strict=True)]
    pairs = ", ".join(dict.fromkeys(f"{a} and {b}" for a, b in result.pairs))
    shown = f"{options.split} images {pairs} at t = {times if options.coarse_to_fine else result.times[0]}"
    lambdas = ", ".join(f"{w:.3g}" for w in np.linspace(0, 1, options.columns))
    legend = f"rows: {shown}; columns: image a, lambda = {lambdas}, image b"
    files.save_image(data.make_trajectory_grid(rows), legend)
    files.save_measurements(measurements(result, fields))


def interpolate(model: pipeline.Pipeline, integers: data.Pixels, options: InterpolationOptions) -> Interpolations:
    """The interpolations that the options request, of a split [n, H, W, C].

    An image's noise has its own key and is the same at every t; each pair has one key for the reverse process.

    Raises:
        ValueError: if there is no such image, a time is not visited, or the options contradict one another.
    """
    times, pairs = row_times_and_pairs(model, len(integers), options)
    key = jax.random.fold_in(keys.from_seed(options.seed), keys.ENCODING_STREAM)

    def encode(i: int, t: int) -> np.ndarray:
        x0 = data.normalize(integers[i : i + 1], model.levels)
        eps = keys.standard_normal(jax.random.fold_in(key, i)[None], x0)
        return np.asarray(gaussian.q_sample(model.schedule, x0, jnp.asarray(t), eps) if t else x0)[0]

    rows = list(zip(pairs.tolist(), times.tolist(), strict=True))
    sources = np.stack([[encode(a, 0), encode(b, 0)] for (a, b), _ in rows])
    ends = np.stack([[encode(a, t), encode(b, t)] for (a, b), t in rows])
    to_b = np.linspace(0, 1, options.columns, dtype=np.float32).reshape(1, -1, *(1 for _ in model.shape))
    x_t = to_b[:, ::-1] * ends[:, :1] + to_b * ends[:, 1:]  # reversed, so that a pair the other way round is mirrored
    numbered = np.zeros(len(times)) if options.coarse_to_fine else np.arange(options.pairs)
    paths = np.stack([np.full(len(times), keys.DECODING_STREAM), numbered], axis=1).astype(np.uint32)
    n = options.columns
    flat = figure.continue_sampling(
        model, options.seed, np.repeat(paths, n, 0), x_t.reshape(-1, *model.shape), np.repeat(times, n)
    )
    return Interpolations(times, pairs, sources, flat.reshape(x_t.shape))


def row_times_and_pairs(
    model: pipeline.Pipeline, n: int, options: InterpolationOptions
) -> tuple[np.ndarray, np.ndarray]:
    """The time [r] and the images [r, 2] of each row."""
    T, count, last = model.config.schedule.T, options.pairs, max(options.first, options.second) + 2 * options.pairs - 2
    if min(options.first, options.second) < 0 or last >= n:
        raise ValueError(
            f"--first, --second and --pairs must stay within images 0 to {n - 1} of the {options.split} split, got "
            f"{options.first}, {options.second} and {count}"
        )
    pairs = np.array([(options.first + 2 * p, options.second + 2 * p) for p in range(count)])
    if options.coarse_to_fine:
        if options.t is not None or count != 1:
            raise ValueError("--coarse-to-fine has times of its own and one pair: leave out --t and --pairs")
        times = np.array(figure.nearest_times(model.times, np.linspace(T, 0, 9).tolist()))
        return times, np.repeat(pairs, len(times), 0)
    t = figure.nearest_times(model.times[:-1], [T / 2])[0] if options.t is None else options.t
    figure.check_visited("--t", [t], model.times)
    return np.full(count, t), pairs


def measurements(result: Interpolations, fields: protocol.Protocol) -> list[Measurement]:
    """For each t the errors of the reconstructions at lambda 0 and at lambda 1, over the pairs."""
    squared = figure.mean_squared(result.decoded[:, [0, -1]].astype(np.float64) - result.sources)  # [r, 2]
    name, times = "RMSE of the reconstruction at lambda {}, 0..255", sorted(set(result.times.tolist()), reverse=True)
    return [
        Measurement(name.format(end), *figure.rmse(squared[result.times == t, end]), {"t": t, **fields})
        for t in times
        for end in (0, 1)
    ]
