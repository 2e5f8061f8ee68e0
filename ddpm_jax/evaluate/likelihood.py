"""Likelihood of a split in bits/dim: the variational bound with its rate and distortion."""

import math
import pathlib
import time
from typing import NamedTuple

import jax
import numpy as np

from ddpm_jax import data, keys, likelihood, pipeline, process, tracking
from ddpm_jax.evaluate import protocol
from ddpm_jax.evaluate.context import EvaluationContext, Interrupted, Split, load_images, select_split
from ddpm_jax.evaluate.options import LikelihoodOptions
from ddpm_jax.evaluate.protocol import Measurement
from ddpm_jax.model import denoiser_options, has_learned_variance
from ddpm_jax.pipeline import manifest, tiles, x0_mse

SAVE_SECONDS = 20.0


class VlbResult(NamedTuple):
    """The bound of n images, in bits per dimension where no other unit is given.

    The chain, and the sums over images for each of its m steps, ascending from L_0, are empty for an estimate.
    """

    chain: np.ndarray  # [m+1] the falling times
    total: np.ndarray  # [n] the bound, of the following three parts
    rate: np.ndarray  # [n] the KL terms without the prior's
    distortion: np.ndarray  # [n] L_0
    prior: np.ndarray  # [n] L_T
    squared_error: np.ndarray  # [n] of the last predicted x_0, data units
    terms: np.ndarray  # [m] sums of each step's term
    terms_squared: np.ndarray  # [m] sums of its square
    errors: np.ndarray  # [m] sums of the squared error of x_0 there
    done: np.ndarray  # [] number of images measured so far


def run(context: EvaluationContext, options: LikelihoodOptions) -> None:
    """Measures, prints and writes the bound."""
    context = with_full_chain(context)
    split = select_split(load_images(context), options.split, options.num)
    vlb, measured = load_or_measure(context, split, options)
    print(*map(protocol.format_line, measured), sep="\n")
    name = result_path(context, split, options)
    print(f"written to {name}.json; values of each image and of each step in {name}.npz")
    model, n = context.model, len(vlb.total)
    whole_chain = len(vlb.chain) == model.config.schedule.T + 1
    if context.flags.out is None and whole_chain and process.is_main_process():
        path = x0_mse.save(model.workdir, model.fingerprint, model.config, vlb.errors / n, n)
        print(f"errors of x_0 at each t, for --sampler analytic: {path}")


def with_full_chain(context: EvaluationContext) -> EvaluationContext:
    """The context with the chain of --steps, or else all T steps, even if the config samples with fewer.

    Raises:
        ValueError: if the flags ask for another sampler than the ancestral one, whose bound it is.
    """
    given = context.flags.sampling
    for flag, value in (("--sampler", given.sampler), ("--eta", given.eta), ("--order", given.order)):
        if value not in (None, "ancestral"):
            raise ValueError(f"the bound is that of ancestral sampling: leave out {flag} {value}")
    if context.flags.sampling.steps is not None:
        return context
    return context.with_sampling(steps=context.model.config.schedule.T)


def load_or_measure(
    context: EvaluationContext, split: Split, options: LikelihoodOptions
) -> tuple[VlbResult, list[Measurement]]:
    """The bound: read from the results folder, or measured and written there as NAME.json and NAME.npz.

    The numbers are the bound over the set, its three parts, and the distortion as a root mean square error of 0..255.
    Of several processes only the first one reads and writes; where the result is there, the others end by SystemExit.
    """
    context.model.denoiser(context.model.params)  # raises for a condition, which the protocol does not have
    fields, name = protocol_fields(context, split, options), result_path(context, split, options)
    process.check_equal_across_processes({"weights, flags and images": [fields, context.model.tile]})
    part, main = name.with_suffix(".part.npz"), process.is_main_process()
    is_there = process.any_process(main and name.with_suffix(".json").exists())
    if is_there and not main:
        raise SystemExit(0)
    vlb = load(name.with_suffix(".npz")) if is_there else measure(context, split, options, part)
    measured = measurements(vlb, fields)
    if main:
        if not is_there:
            save(name.with_suffix(".npz"), vlb)
            protocol.write_measurements(name.with_suffix(".json"), measured, context.made_with())
        part.unlink(missing_ok=True)  # also that of a process that was killed as it ended
    return vlb, measured


def result_path(context: EvaluationContext, split: Split, options: LikelihoodOptions) -> pathlib.Path:
    """The path of the result, without a suffix."""
    return context.out / f"likelihood-{manifest.short_hash(protocol_fields(context, split, options))}"


def measure(context: EvaluationContext, split: Split, options: LikelihoodOptions, part: pathlib.Path) -> VlbResult:
    """The bound of each image, over all devices; an interruption leaves the finished images in `part`.

    Image i has its own key, and tiles hold the same images always: the numbers do not depend on where an interrupted
    measurement was resumed, nor on the number of devices.
    """
    model, n = context.model, len(split.images)
    tile = model.tile
    mapped = tracking.show_first_call(
        "compiling the bound", tiles.parallelise(tile_function(model, options), model.config.parallel)
    )
    key = jax.random.fold_in(keys.from_seed(options.seed), keys.VLB_STREAM)
    vlb = empty_result(model, options, n)
    if process.is_main_process():
        vlb = resume(part, vlb, tile)
    vlb.done[...] = process.broadcast(np.int32(vlb.done))  # of the others' results nothing else is used
    progress = tracking.Progress(n, start=int(vlb.done), unit="images", active=process.is_main_process())
    saved = time.monotonic()
    with process.Interrupt() as interrupt, progress:
        for start_index in range(int(vlb.done), n, tile * jax.device_count()):
            results = mapped(model.params, key, process.local_shard(device_tiles(split.images, start_index, tile)))
            accumulate(vlb, process.all_gather(results), start_index, split.images.shape)
            progress.update(int(vlb.done))
            stopping = process.any_process(interrupt.requested)
            if process.is_main_process() and (stopping or time.monotonic() - saved > SAVE_SECONDS):
                save(part, vlb)
                saved = time.monotonic()
            if stopping and vlb.done < n:
                progress.close()
                print(f"interrupted: {vlb.done} of {n} images are kept; the same command continues")
                raise Interrupted
    return vlb


def tile_function(model: pipeline.Pipeline, options: LikelihoodOptions) -> tiles.TileFunction:
    """(params, key, (indices [b], integers [b, H, W, C])) -> prior [b], terms [m, b], squared errors [m, b]; in nats.

    An estimate has two rows of terms, L_0 and the estimated sum of the others.
    """
    decoders = {"discretized": likelihood.discretized_gaussian, "tanh": likelihood.discretized_gaussian_tanh}
    decoder = decoders[options.decoder](model.integer_levels)
    schedule, mix = model.schedule, model.config.sampling.variance_mix

    def tile(params, key, tile):
        indices, integers = tile
        own = keys.fold_in_each(key, indices)
        x0, denoise = data.normalize(integers, model.integer_levels), model.denoiser(params)
        if options.estimate is None:
            vlb = likelihood.vlb(own, schedule, denoise, x0, variance_mix=mix, decoder=decoder, times=model.times)
            return vlb.prior, vlb.terms, vlb.x0_mse
        estimate = likelihood.estimate_vlb(
            own, schedule, denoise, x0, strata=options.estimate, variance_mix=mix, decoder=decoder
        )
        others = estimate.total - estimate.prior - estimate.decoder_nll
        return estimate.prior, jax.numpy.stack([estimate.decoder_nll, others]), estimate.decoder_x0_mse[None]

    return tile


def device_tiles(integers: data.Pixels, start_index: int, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices [devices, tile] and images [devices, tile, H, W, C] from `start_index` on; the last are repeated."""
    devices = jax.device_count()
    indices = (start_index + np.arange(devices * tile, dtype=np.uint32)).reshape(devices, tile)
    return indices, integers[np.minimum(indices, len(integers) - 1)]


def empty_result(model: pipeline.Pipeline, options: LikelihoodOptions, n: int) -> VlbResult:
    """A result without measured images."""
    steps = 0 if options.estimate else len(model.times) - 1
    times = np.zeros(0, np.int32) if options.estimate else model.times
    return VlbResult(times, *np.zeros((5, n)), *np.zeros((3, steps)), np.zeros((), np.int64))  # pyright: ignore


def accumulate(vlb: VlbResult, results, start_index: int, shape: tuple[int, ...]) -> None:
    """Adds the results of a group of tiles, in float64 and in the order of the images."""
    scale = 1 / (math.prod(shape[1:]) * math.log(2))
    for prior, terms, squared_errors in zip(*(np.asarray(r, np.float64) for r in results), strict=True):
        valid = min(prior.shape[0], shape[0] - start_index)
        if valid <= 0:
            return
        rows = slice(start_index, start_index + valid)
        prior, terms, squared_errors = prior[:valid] * scale, terms[:, :valid] * scale, squared_errors[:, :valid]
        vlb.prior[rows], vlb.distortion[rows], vlb.rate[rows] = prior, terms[0], terms[1:].sum(0)
        vlb.total[rows] = prior + terms.sum(0)
        vlb.squared_error[rows] = squared_errors[0]
        if vlb.chain.size:
            vlb.terms[:] += terms.sum(1)
            vlb.terms_squared[:] += (terms**2).sum(1)
            vlb.errors[:] += squared_errors.sum(1)
        start_index += valid
        vlb.done[...] = start_index


def protocol_fields(context: EvaluationContext, split: Split, options: LikelihoodOptions) -> protocol.Protocol:
    """The protocol fields of the bound; a ValueError if --estimate is combined with fewer steps."""
    model, c = context.model, context.model.config
    T, steps = c.schedule.T, len(model.times) - 1
    if options.estimate is not None:
        if steps != T:
            raise ValueError(f"--estimate draws from all {T} timesteps: leave out --steps {steps}")
        method = f"estimate of T={T}, 2 of each of {options.estimate} strata"
    else:
        method = f"exact T={T}" if steps == T else f"exact {steps} of T={T} {c.sampling.spacing}"
    return {
        "n": len(split.images),
        "data": split.name,
        "method": method,
        "variance": "learned variance" if has_learned_variance(c) else f"mix={c.sampling.variance_mix:g}",
        "decoder": f"{options.decoder}-{model.integer_levels}",
        **denoiser_options(c),
        **context.weights_fields(),
        "seed": options.seed,
    }


def measurements(vlb: VlbResult, fields: protocol.Protocol) -> list[Measurement]:
    """The numbers of a bound, see `load_or_measure`."""
    squared = protocol.measure_mean("", vlb.squared_error * 127.5**2, fields)
    rmse = math.sqrt(squared.value)
    return [
        protocol.measure_mean("bits/dim", vlb.total, fields),
        protocol.measure_mean("rate, bits/dim", vlb.rate, fields),
        protocol.measure_mean("distortion, bits/dim", vlb.distortion, fields),
        protocol.measure_mean("prior, bits/dim", vlb.prior, fields),
        Measurement("RMSE of x_0, 0..255", rmse, squared.error / (2 * rmse) if rmse else math.nan, fields),
    ]


def save(path: pathlib.Path, vlb: VlbResult) -> None:
    """Writes a result, complete or not, atomically."""
    with process.atomic_file(path) as file:
        np.savez(file, **vlb._asdict())


def load(path: pathlib.Path) -> VlbResult:
    """A result that `save` wrote; a ValueError names a damaged file."""
    arrays = protocol.load_npz(path, protocol.RECOMPUTED)
    if set(arrays) != set(VlbResult._fields):
        raise ValueError(f"{path} holds {', '.join(sorted(arrays))}, which is no bound: remove it")
    return VlbResult(**arrays)


def resume(part: pathlib.Path, empty: VlbResult, tile: int) -> VlbResult:
    """The result of an interrupted measurement, or the empty one."""
    if not part.exists():
        return empty
    vlb = load(part)
    between_tiles = vlb.done % tile == 0 or vlb.done == len(vlb.total)
    if vlb.total.shape != empty.total.shape or not np.array_equal(vlb.chain, empty.chain) or not between_tiles:
        raise ValueError(f"{part} belongs to another measurement: remove it to start again")
    print(f"continued after {vlb.done} of {len(empty.total)} images")
    return vlb
