"""Stochastic predictions: several images that share an x_t (DDPM, figure 7)."""

import itertools
from typing import NamedTuple

import numpy as np

from ddpm_jax import data, pipeline
from ddpm_jax.evaluate import protocol, sample_cache
from ddpm_jax.evaluate.context import EvaluationContext
from ddpm_jax.evaluate.figures import figure
from ddpm_jax.evaluate.options import StochasticOptions
from ddpm_jax.evaluate.protocol import Measurement


class Continuations(NamedTuple):
    """Images that share an x_t."""

    times: list[int]  # the shared times, falling
    shared: np.ndarray  # [n, k, H, W, C] x_t of each image at these times, data units
    ends: np.ndarray  # [n, k, c, H, W, C] x_0 of the continuations; the first is the chain's own


def run(context: EvaluationContext, options: StochasticOptions) -> None:
    """Writes the picture and the numbers."""
    continuations = sample_continuations(context.model, options)
    times = figure.format_times(continuations.times)
    fields = {
        "n": options.num,
        "start": options.start,
        "continuations": options.continuations,
        "times": times,
        **sample_cache.protocol_fields(context, options.seed, "float"),
    }
    files = figure.FigureFiles(context, "stochastic", fields)
    cells = np.concatenate([continuations.shared[:, :, None], continuations.ends], axis=2)
    grids = [data.make_trajectory_grid(list(column)) for column in np.moveaxis(cells, 1, 0)]
    legend = (
        f"rows: {options.describe_images()}; blocks from left to right: t = {times}; in a block: x_t, the image's own "
        f"x_0, then {options.continuations - 1} others from the same x_t"
    )
    files.save_image(np.concatenate(grids, axis=1), legend)
    files.save_measurements(measurements(continuations, fields))


def sample_continuations(model: pipeline.Pipeline, options: StochasticOptions) -> Continuations:
    """x_t of each image's chain at the shared times, and the ends of several chains from there.

    Continuation j > 0 of image i from t has the key of image i with 2^32 - 1 - j and then t folded in.  The chain folds
    its times into the image's key, and these are smaller: no key is used twice.

    Raises:
        ValueError: if the sampler is deterministic, a time is not visited, or a condition is requested.
    """
    times, c = shared_times(model, options), options.continuations
    model.denoiser(model.params)  # raises for a condition
    states = figure.draw_states(model, options, [*times, 0])
    shared, own = states[:, :-1], states[:, -1:]
    cells = list(itertools.product(range(options.num), range(len(times)), range(1, c)))
    paths = np.array([(options.start + i, 2**32 - 1 - j, times[k]) for i, k, j in cells], np.uint32)
    x = np.stack([shared[i, k] for i, k, _ in cells])
    others = figure.continue_sampling(model, options.seed, paths, x, np.array([times[k] for _, k, _ in cells]))
    others = others.reshape(options.num, len(times), c - 1, *model.shape)
    own_ends = np.broadcast_to(own[:, :, None], (options.num, len(times), 1, *model.shape))
    return Continuations(times, shared, np.concatenate([own_ends, others], axis=2))


def shared_times(model: pipeline.Pipeline, options: StochasticOptions) -> list[int]:
    """The requested times, falling, or those nearest to the quarters of T."""
    c = model.config.sampling
    if c.sampler in ("dpm_solver_pp", "unipc") or (c.sampler == "ddim" and c.eta == 0):
        name = {"ddim": "DDIM with eta 0", "dpm_solver_pp": "DPM-Solver++", "unipc": "UniPC"}[c.sampler]
        hint = "take --sampler ancestral, or DDIM with an --eta above 0"
        raise ValueError(f"{name} adds no noise: all continuations of an x_t would be one and the same image; {hint}")
    if options.times is None:
        T = model.config.schedule.T
        return figure.nearest_times(model.times[:-1], [T, 3 * T / 4, T / 2, T / 4])
    if not options.times:
        raise ValueError("--times must be one or more times, got none")
    figure.check_visited("--times", options.times, model.times)
    return sorted(set(options.times), reverse=True)


def measurements(continuations: Continuations, fields: protocol.Protocol) -> list[Measurement]:
    """For each t the root mean square difference of two continuations, 0..255; its error is that over images."""
    pairs = itertools.combinations(np.moveaxis(continuations.ends, 2, 0), 2)
    squared = figure.mean_squared(np.stack([a - b for a, b in pairs], axis=2))  # [n, k]
    name = "RMSE between continuations of x_t, 0..255"
    return [
        Measurement(name, *figure.rmse(squared[:, k]), {"t": t, **fields}) for k, t in enumerate(continuations.times)
    ]
