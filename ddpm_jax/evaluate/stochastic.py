"""What x_t has settled: several images that share it."""

import itertools
from typing import NamedTuple

import numpy as np

from ddpm_jax import data, runs
from ddpm_jax.evaluate import draws, figures, protocol
from ddpm_jax.evaluate.options import Stochastic
from ddpm_jax.evaluate.protocol import Number
from ddpm_jax.evaluate.subject import Subject


class Found(NamedTuple):
    """Images that share an x_t.

    Attributes:
        times: the shared times, falling.
        shared: [n, k, H, W, C] x_t of each image at these times, data units.
        ends: [n, k, c, H, W, C] where it leads; the first is the chain's own x_0.
    """

    times: list[int]
    shared: np.ndarray
    ends: np.ndarray


def run(subject: Subject, options: Stochastic) -> int:
    """Writes the picture and the numbers, and says them and where they are."""
    found = continuations(subject.model, options)
    measured = numbers(subject, options, found)
    name = f"stochastic-{protocol.identity(fields(subject, options, found.times))}"
    cells = np.concatenate([found.shared[:, :, None], found.ends], axis=2)  # x_t before where it leads
    blocks = [data.strip(list(cells[:, k])) for k in range(len(found.times))]
    legend = (
        f"rows: images {options.start}..{options.start + options.num - 1} of seed {options.seed}; blocks from left to "
        f"right: t = {figures.listed(found.times)}; in a block: x_t, the chain's own x_0, then "
        f"{options.continuations - 1} others from the same x_t"
    )
    figures.save(subject, name, np.concatenate(blocks, axis=1), legend)
    for number in measured:
        print(f"  t = {number.protocol['t']:>5}: they differ by {protocol.said(number.value, number.error)} of 0..255")
    protocol.write(subject.out / f"{name}.json", measured, subject.made_with())
    print(f"numbers in {name}.json")
    return 0


def continuations(model: runs.Model, options: Stochastic) -> Found:
    """x_t of each image's chain at the shared times, and the ends of several chains from there.

    Continuation j > 0 of image i from t has the key of image i with 2^32 - 1 - j and then t folded in.  The chain folds
    its times into the image's key, and these are smaller: no key is used twice.

    Raises:
        ValueError: if the sampler is deterministic, there would be nothing to compare, or a time is 0 or not visited.
    """
    times, c = shared_times(model, options), options.continuations
    if c < 2:
        raise ValueError(f"--continuations must be at least 2, or nothing can differ, got {c}")
    parts = model.draw(seed=options.seed, start=options.start, num=options.num, keep=[*times, 0])
    kept = np.concatenate([part.x[:, 0] for part in parts])
    shared, own = kept[:, :-1], kept[:, -1:]
    cells = list(itertools.product(range(options.num), range(len(times)), range(1, c)))
    paths = np.array([(options.start + i, 2**32 - 1 - j, times[k]) for i, k, j in cells], np.uint32)
    x = np.stack([shared[i, k] for i, k, _ in cells])
    others = figures.continued(model, options.seed, paths, x, np.array([times[k] for _, k, _ in cells]))
    others = others.reshape(options.num, len(times), c - 1, *model.shape)
    chain = np.broadcast_to(own[:, :, None], (options.num, len(times), 1, *model.shape))
    return Found(times, shared, np.concatenate([chain, others], axis=2))


def shared_times(model: runs.Model, options: Stochastic) -> list[int]:
    """The times asked for, falling, or those nearest to the quarters of T."""
    c = model.config.sampling
    if c.sampler in ("dpm_solver_pp", "unipc") or (c.sampler == "ddim" and c.eta == 0):
        name = {"ddim": "DDIM with eta 0", "dpm_solver_pp": "DPM-Solver++", "unipc": "UniPC"}[c.sampler]
        raise ValueError(
            f"{name} adds no noise: all continuations of an x_t would be one and the same image; take "
            "--sampler ancestral, or DDIM with an --eta above 0"
        )
    if options.times is None:
        T = model.config.schedule.T
        return figures.nearest(model.times[:-1], [T, 3 * T / 4, T / 2, T / 4])
    if not options.times or min(options.times) < 1:
        raise ValueError(f"--times must be one or more times above 0, the data, got {options.times}")
    figures.check_visited("--times", options.times, model.times)
    return sorted(set(options.times), reverse=True)


def fields(subject: Subject, options: Stochastic, times: list[int]) -> protocol.Protocol:
    """What the numbers depend on, but for the t of each."""
    return {
        "n": options.num,
        "start": options.start,
        "continuations": options.continuations,
        "times": figures.listed(times),
        **draws.fields(subject, options.seed, "float"),
    }


def numbers(subject: Subject, options: Stochastic, found: Found) -> list[Number]:
    """For each t the root mean square difference of two continuations, 0..255; its error is that over images."""
    pairs = list(itertools.combinations(range(options.continuations), 2))
    apart = np.stack([found.ends[:, :, a] - found.ends[:, :, b] for a, b in pairs], axis=2).astype(np.float64)
    squared = (apart**2).reshape(*apart.shape[:2], -1).mean(-1)  # [n, k]
    facts = fields(subject, options, found.times)
    name = "RMSE between continuations of x_t, 0..255"
    return [Number(name, *figures.rmse(squared[:, k]), {"t": t, **facts}) for k, t in enumerate(found.times)]
