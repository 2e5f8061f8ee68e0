"""From noise to image: x_t at times of the chain."""

from typing import NamedTuple

import numpy as np

from ddpm_jax import data, runs
from ddpm_jax.evaluate import draws, figures, protocol
from ddpm_jax.evaluate.options import Progressive
from ddpm_jax.evaluate.subject import Subject


class Chains(NamedTuple):
    """What is kept of chains.

    Attributes:
        times: [k] falling to 0.
        x: [n, k, H, W, C] x_t at these times, data units.
    """

    times: np.ndarray
    x: np.ndarray


def run(subject: Subject, options: Progressive) -> int:
    """Writes the picture, the animation and what they were made from, and says where."""
    model, found = subject.model, chains(subject.model, options)
    facts = {"n": options.num, "start": options.start, "frames": len(found.times)}
    name = f"progressive-{protocol.identity({**facts, **draws.fields(subject, options.seed, 'float')})}"
    last = options.start + options.num - 1
    legend = (
        f"rows: images {options.start}..{last} of seed {options.seed}; columns: x_t at t = "
        f"{figures.listed(found.times)}"
    )
    figures.save(subject, name, data.strip(list(found.x)), legend)
    integers = data.to_integer(found.x, 256)
    frames = [data.grid(integers[:, i], 256) for i in range(len(found.times))]
    data.write_gif(subject.out / f"{name}.gif", frames, scale=data.preview_scale(model.shape), duration=200)
    hashes = [runs.image_hash(image) for image in data.to_integer(found.x[:, -1], model.integer_levels)]
    made = {"seed": options.seed, "start": options.start, "num": options.num, "kept": found.times.tolist()}
    figures.written(subject.out / f"{name}.json", model.manifest() | made | {"sha256": hashes})
    print(f"animation in {name}.gif, hashes of the images in {name}.json")
    return 0


def chains(model: runs.Model, options: Progressive) -> Chains:
    """x_t of the images asked for, at times spread over the chain.

    Raises:
        ValueError: if there are no images or fewer than two frames.
    """
    times = figures.spread(model.times, options.frames)
    parts = model.draw(seed=options.seed, start=options.start, num=options.num, keep=times.tolist())
    return Chains(times, np.concatenate([part.x[:, 0] for part in parts]))
