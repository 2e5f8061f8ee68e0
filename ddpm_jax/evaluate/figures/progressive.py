"""From noise to image: x_t at times of the chain."""

from typing import NamedTuple

import numpy as np

from ddpm_jax import data, pipeline
from ddpm_jax.evaluate import protocol, sample_cache
from ddpm_jax.evaluate.context import EvaluationContext
from ddpm_jax.evaluate.figures import figure
from ddpm_jax.evaluate.options import ProgressiveOptions


class Trajectories(NamedTuple):
    """What is kept of chains.

    Attributes:
        times: [k] falling to 0.
        x: [n, k, H, W, C] x_t at these times, data units.
    """

    times: np.ndarray
    x: np.ndarray


def run(context: EvaluationContext, options: ProgressiveOptions) -> int:
    """Writes the picture, the animation and what they were made from, and says where."""
    model, trajectories = context.model, sample_trajectories(context.model, options)
    fields = {"n": options.num, "start": options.start, "frames": len(trajectories.times)}
    name = (
        f"progressive-{protocol.short_hash({**fields, **sample_cache.protocol_fields(context, options.seed, 'float')})}"
    )
    last = options.start + options.num - 1
    legend = (
        f"rows: images {options.start}..{last} of seed {options.seed}; columns: x_t at t = "
        f"{figure.format_times(trajectories.times)}"
    )
    figure.save_image(context, name, data.make_trajectory_grid(list(trajectories.x)), legend)
    integers = data.to_integer(trajectories.x, 256)
    frames = [data.make_grid(integers[:, i], 256) for i in range(len(trajectories.times))]
    data.write_gif(context.out / f"{name}.gif", frames, scale=data.preview_scale(model.shape), duration=200)
    hashes = [pipeline.image_hash(image) for image in data.to_integer(trajectories.x[:, -1], model.integer_levels)]
    made = {"seed": options.seed, "start": options.start, "num": options.num, "kept": trajectories.times.tolist()}
    figure.write_json(context.out / f"{name}.json", model.manifest() | made | {"sha256": hashes})
    print(f"animation in {name}.gif, hashes of the images in {name}.json")
    return 0


def sample_trajectories(model: pipeline.Pipeline, options: ProgressiveOptions) -> Trajectories:
    """x_t of the images asked for, at times spread over the chain.

    Raises:
        ValueError: if there are no images or fewer than two frames.
    """
    times = figure.evenly_spaced(model.times, options.frames)
    parts = model.draw(seed=options.seed, start=options.start, num=options.num, save_at=times.tolist())
    return Trajectories(times, np.concatenate([part.x[:, 0] for part in parts]))
