"""bits/dim over a split: the variational bound, its rate and its distortion."""

import math
import os
import pathlib
import time
from typing import NamedTuple

import jax
import numpy as np

from ddpm_jax import data, generate, keys, likelihood, log, process, runs
from ddpm_jax.config import objects
from ddpm_jax.evaluate import protocol
from ddpm_jax.evaluate.options import Likelihood
from ddpm_jax.evaluate.protocol import Number
from ddpm_jax.evaluate.subject import Split, Subject, images, split

SAVE_SECONDS = 20.0


class Found(NamedTuple):
    """The bound of n images, in bits per dimension unless said otherwise.

    Attributes:
        chain: [m+1] the falling times, or an empty array of an estimate.
        total, rate, distortion, prior: [n] the bound, and its three parts: KL terms without the prior's, L_0, L_T.
        squared_error: [n] of the last predicted x_0, data units.
        terms, terms_squared, errors: [m] sums over images of each step's term, of its square, and of the squared
            error of x_0 there, ascending from L_0; empty of an estimate.
        done: [] how many images have been counted.
    """

    chain: np.ndarray
    total: np.ndarray
    rate: np.ndarray
    distortion: np.ndarray
    prior: np.ndarray
    squared_error: np.ndarray
    terms: np.ndarray
    terms_squared: np.ndarray
    errors: np.ndarray
    done: np.ndarray


def run(subject: Subject, options: Likelihood) -> int:
    """Says the numbers and where they are; status 4 if it is interrupted."""
    subject = of_the_chain(subject)
    chosen = split(images(subject), options.split, options.num)
    found = bound(subject, chosen, options)
    if found is None:
        return 4
    for number in numbers(subject, chosen, options, found):
        print(protocol.line(number))
    name = result(subject, chosen, options)
    print(f"written to {name}.json; values of each image and of each step in {name}.npz")
    if subject.which.out is None and len(found.chain) == subject.model.config.schedule.T + 1 and process.first():
        print(f"errors of x_0 at each t, for --sampler analytic: {keep_errors(subject, found)}")
    return 0


def of_the_chain(subject: Subject) -> Subject:
    """With as many steps as flags say or, where the config may have fewer for samples, with all."""
    if subject.which.sampling.steps is not None:
        return subject
    model = subject.model
    return subject._replace(model=model.asking(model.asked, steps=model.config.schedule.T))


def keep_errors(subject: Subject, found: Found) -> pathlib.Path:
    """Where in the run the errors are that this bound of the whole chain has met, for the analytic sampler."""
    model, n = subject.model, len(found.total)
    return runs.errors.keep(model.workdir, model.fingerprint, model.config, found.errors / n, n)


def bound(subject: Subject, chosen: Split, options: Likelihood) -> Found | None:
    """The bound of each image: what the results folder holds of it, or measured and written there as NAME.json, .npz.

    None if it was interrupted.
    """
    name = result(subject, chosen, options)
    if process.agree(name.with_suffix(".json").exists()):
        if process.first():
            name.with_suffix(".part.npz").unlink(missing_ok=True)  # of a process that was killed as it ended
        return load(name.with_suffix(".npz"))
    found = measure(subject, chosen, options, name.with_suffix(".part.npz"))
    if found is not None and process.first():
        save(name.with_suffix(".npz"), found)
        protocol.write(name.with_suffix(".json"), numbers(subject, chosen, options, found), subject.made_with())
        name.with_suffix(".part.npz").unlink(missing_ok=True)
    return found


def result(subject: Subject, chosen: Split, options: Likelihood) -> pathlib.Path:
    """Where the result belongs, without a suffix."""
    return subject.out / f"likelihood-{protocol.identity(fields(subject, chosen, options))}"


def measure(subject: Subject, chosen: Split, options: Likelihood, part: pathlib.Path) -> Found | None:
    """The bound of each image, over all devices; None if it was interrupted, what is done being kept in `part`.

    Image i has noise of its own key, and tiles are always the same images: the numbers do not depend on where an
    interrupted measurement was taken up again, nor on how many devices there are.
    """
    model, n = subject.model, len(chosen.images)
    tile = model.tile
    mapped = generate.over_devices(program(model, options))
    key = jax.random.fold_in(keys.of_seed(options.seed), keys.BOUND)
    found = resumed(part, blank(model, options, n), tile)
    progress = log.Progress(n, start=int(found.done), what="images", active=process.first())
    saved = time.monotonic()
    with process.Interrupt() as interrupt:
        for first in range(int(found.done), n, tile * jax.device_count()):
            results = mapped(model.params, key, process.share(group(chosen.images, first, tile)))
            count(found, process.gathered(results), first, chosen.images.shape)
            progress.update(int(found.done), {})
            stopping = process.agree(interrupt.requested)
            if process.first() and (stopping or time.monotonic() - saved > SAVE_SECONDS):
                save(part, found)
                saved = time.monotonic()
            if stopping and found.done < n:
                progress.close()
                print(f"interrupted: {found.done} of {n} images are kept; the same command continues")
                return None
    progress.close()
    return found


def program(model: runs.Model, options: Likelihood) -> generate.Program:
    """(params, key, (indices [b], integers [b, H, W, C])) -> prior [b], terms [m, b], squared errors [m, b]; in nats.

    An estimate has two rows of terms, L_0 and the estimated sum of the others.
    """
    decoder = {"discretized": likelihood.discretized, "tanh": likelihood.discretized_tanh}[options.decoder]
    decoder, schedule, mix = decoder(model.integer_levels), model.schedule, model.config.sampling.mix

    def tile(params, key, tile):
        indices, integers = tile
        own = keys.folded(key, indices)
        x0, denoise = data.to_unit(integers, model.integer_levels), model.denoiser(params)
        if options.estimate is None:
            bound = likelihood.bound(own, schedule, denoise, x0, mix=mix, decoder=decoder, times=model.times)
            return bound.prior, bound.terms, bound.mse
        guess = likelihood.bound_estimate(own, schedule, denoise, x0, strata=options.estimate, mix=mix, decoder=decoder)
        others = guess.total - guess.prior - guess.decoder
        return guess.prior, jax.numpy.stack([guess.decoder, others]), guess.decoder_mse[None]

    return tile


def group(integers: data.Pixels, first: int, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices [devices, tile] and images [devices, tile, H, W, C] from `first` on; the last are repeated."""
    devices = jax.device_count()
    indices = (first + np.arange(devices * tile, dtype=np.uint32)).reshape(devices, tile)
    return indices, integers[np.minimum(indices, len(integers) - 1)]


def blank(model: runs.Model, options: Likelihood, n: int) -> Found:
    """A measurement before its first image."""
    steps = 0 if options.estimate else len(model.times) - 1
    chain = np.zeros(0, np.int32) if options.estimate else model.times
    return Found(chain, *np.zeros((5, n)), *np.zeros((3, steps)), np.zeros((), np.int64))  # pyright: ignore


def count(found: Found, results, first: int, shape: tuple[int, ...]) -> None:
    """Takes in a group's results, in float64 and in the order of the images."""
    scale = 1 / (math.prod(shape[1:]) * math.log(2))
    for prior, terms, errors in zip(*(np.asarray(r, np.float64) for r in results), strict=True):
        valid = min(prior.shape[0], shape[0] - first)
        if valid <= 0:
            return
        here = slice(first, first + valid)
        prior, terms, errors = prior[:valid] * scale, terms[:, :valid] * scale, errors[:, :valid]
        found.prior[here], found.distortion[here], found.rate[here] = prior, terms[0], terms[1:].sum(0)
        found.total[here] = prior + terms.sum(0)
        found.squared_error[here] = errors[0]
        if found.chain.size:
            found.terms[:] += terms.sum(1)
            found.terms_squared[:] += (terms**2).sum(1)
            found.errors[:] += errors.sum(1)
        first += valid
        found.done[...] = first


def fields(subject: Subject, chosen: Split, options: Likelihood) -> protocol.Protocol:
    """What the bound depends on.

    Raises:
        ValueError: if an option makes no sense.
    """
    model, c = subject.model, subject.model.config
    T, steps = c.schedule.T, len(model.times) - 1
    if options.estimate is not None:
        if options.estimate < 1:
            raise ValueError(f"--estimate must be at least 1 stratum, got {options.estimate}")
        if steps != T:
            raise ValueError(f"--estimate draws from all {T} steps of the chain: leave out --steps {steps}")
        method = f"estimate of T={T}, 2 of each of {options.estimate} strata"
    else:
        method = f"exact T={T}" if steps == T else f"exact {steps} of T={T} {c.sampling.spacing}"
    return {
        "n": len(chosen.images),
        "data": chosen.name,
        "method": method,
        "variance": "learned variance" if objects.learned_variance(c) else f"mix={c.sampling.mix:g}",
        "decoder": f"{options.decoder}-{model.integer_levels}",
        **objects.refinements(c),
        **subject.weights(),
        "seed": options.seed,
    }


def numbers(subject: Subject, chosen: Split, options: Likelihood, found: Found) -> list[Number]:
    """The bound over the set, its three parts, and the distortion as a root mean square error of 0..255."""
    facts, n = fields(subject, chosen, options), len(found.total)

    def mean(name: str, values: np.ndarray) -> Number:
        error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        return Number(name, float(values.mean()), error, facts)

    squared = mean("", found.squared_error * 127.5**2)
    rmse = math.sqrt(squared.value)
    return [
        mean("bits/dim", found.total),
        mean("rate, bits/dim", found.rate),
        mean("distortion, bits/dim", found.distortion),
        mean("prior, bits/dim", found.prior),
        Number("RMSE of x_0, 0..255", rmse, squared.error / (2 * rmse) if rmse else math.nan, facts),
    ]


def save(path: pathlib.Path, found: Found) -> None:
    """Writes a measurement, done or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".new")
    with part.open("wb") as file:
        np.savez(file, **found._asdict())
    os.replace(part, path)


def load(path: pathlib.Path) -> Found:
    """A measurement that `save` wrote.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    arrays = protocol.arrays(path)
    if set(arrays) != set(Found._fields):
        raise ValueError(f"{path} holds {', '.join(sorted(arrays))}, which is no measurement: remove it")
    return Found(**arrays)


def resumed(part: pathlib.Path, fresh: Found, tile: int) -> Found:
    """What an interrupted measurement left, or the fresh one."""
    if not part.exists():
        return fresh
    found = load(part)
    if found.total.shape != fresh.total.shape or not np.array_equal(found.chain, fresh.chain) or found.done % tile:
        raise ValueError(f"{part} is not what this measurement would have left: remove it to begin anew")
    print(f"continued after {found.done} of {len(fresh.total)} images")
    return found
