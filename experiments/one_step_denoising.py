"""One-step denoising from x_t to x_0 compared with chains, for the same images (section 2 of docs/experiments.md).

    python -m experiments.one_step_denoising jump-digits RUN [RUN ...] [--data npz:FILE]

Held-out images are noised to x_t.  From there the network predicts x_0 in one step, or a chain with equal strides
reaches x_0 in several: ancestral with variance beta-tilde, or DDIM.  The error to the image and the Fréchet distance to
the training images are written for each run, one of each seed, to docs/results/NAME.json, and the first images of the
first run with their results to docs/results/NAME-images.npz.
"""

import dataclasses
import pathlib
import sys
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import alternating
from ddpm_jax import data, editing, gaussian, keys, pipeline, process, samplers
from ddpm_jax.evaluate import context, likelihood
from ddpm_jax.metrics import classifier, frechet
from ddpm_jax.pipeline import tiles
from experiments.run import RESULTS, read_rows, save_row

START_FRACTIONS = (1.0, 0.75, 0.5, 0.25, 0.1)
"""Of T: the times t that are started from."""

NFE = (2, 5, 10, 50, 250, 1000)
"""Numbers of function evaluations of the chains from t; those above t are left out."""

NUM_PICTURES = 6
"""Images of which pictures are kept."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    name: tyro.conf.Positional[str]
    """Of the results."""
    run: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs, of one config and several seeds."""
    draws: int = 2
    """How often each held-out image is noised."""
    num: int | None = None
    """Only the first so many held-out images."""
    nfe: tuple[int, ...] = NFE
    """Numbers of function evaluations of the chains."""
    source: Annotated[str | None, tyro.conf.arg(name="data")] = None
    """Where the images are, if not where the config says."""


def main(argv: list[str]) -> None:
    args = tyro.cli(Arguments, prog="python -m experiments.one_step_denoising", args=argv)
    process.initialize()
    path = RESULTS / f"{args.name}.json"
    for run in args.run:
        model = pipeline.Pipeline(run, step=None, weights="ema", sampling={})
        which = context.CommonFlags(source=args.source)
        images = context.load_images(context.EvaluationContext(model, which, pathlib.Path(run)))
        expected_rows = {f"t={t}, {way}" for t, way, _, _ in sampler_grid(model.schedule.T, args.nfe)}
        if expected_rows <= {name for name, seeds in read_rows(path).items() if str(model.config.seed) in seeds}:
            continue
        pictures: dict[str, np.ndarray] = {}
        for name, row in measure(model, images, args, pictures):
            save_row(path, name, model.config.seed, row)
            print(f"{run}, {name}: {row['numbers']}", flush=True)
        if run == args.run[0]:
            np.savez_compressed(path.with_name(f"{args.name}-images.npz"), **pictures)  # pyright: ignore


def sampler_grid(T: int, nfe: tuple[int, ...]):
    """Start t, name, sampler and NFE of each row."""
    for part in START_FRACTIONS:
        t = round(part * T)
        yield t, "one jump", "ddim", 1
        for kind in ("ancestral", "ddim"):
            for n in (n for n in nfe if n <= t):
                yield t, f"{kind}, {n} calls", kind, n


def measure(model: pipeline.Pipeline, images: data.Dataset, args: Arguments, pictures: dict[str, np.ndarray]):
    """Rows by name with their numbers.  The first resulting images are put into `pictures`, by the same names."""
    extractor = classifier.load(classifier.name_for_images(model.shape, model.integer_levels))
    reference = frechet.moments(extractor(np.asarray(images.train)).features)
    held = np.asarray(images.test)[: args.num]
    integers = np.concatenate([held] * args.draws)
    provenance = {
        "images": len(held), "draws": args.draws, "run": model.fingerprint.removeprefix("sha256:")[:12],
        "commit": alternating.commit(), **alternating.environment("jax", "flax", "numpy"),
    }  # fmt: skip
    own = frechet.frechet_distance(frechet.moments(extractor(held).features), reference)
    yield "held-out images", {"numbers": {"Fréchet distance": own}, **provenance}
    pictures |= {"levels": np.array(model.integer_levels), "held-out images": held[:NUM_PICTURES]}
    pictures |= {f"t={t}": model.to_pixels(x) for t, x in noised_images(model, held[:NUM_PICTURES])}
    programs = {kind: tiles.parallelise(tile_function(model, kind)) for kind in ("ancestral", "ddim")}
    for t, way, kind, n in sampler_grid(model.schedule.T, args.nfe):
        x = draw_all(model, programs[kind], integers, samplers.times(t, n, spacing="trailing"))
        squared = ((x - data.normalize(integers, model.integer_levels)) ** 2).mean()
        denoised = model.to_pixels(x)
        features = extractor(denoised).features
        pictures[f"t={t}, {way}"] = denoised[: len(held)][:NUM_PICTURES]
        numbers = {
            "RMSE, 0..255": 127.5 * float(np.sqrt(squared)),
            "Fréchet distance": frechet.frechet_distance(frechet.moments(features), reference),
        }
        yield f"t={t}, {way}", {"numbers": {name: round(value, 4) for name, value in numbers.items()}, **provenance}


def tile_function(model: pipeline.Pipeline, kind: str) -> tiles.TileFunction:
    """((params, times), key, (indices [b], integers [b, H, W, C])) -> x_0 [b, H, W, C] from the images noised."""

    def tile(inputs, key, tile):
        (params, times), (indices, integers) = inputs, tile
        denoise = model.denoiser(params)
        sampler = {"ancestral": samplers.ancestral(model.schedule, denoise, variance_mix=0.0),
              "ddim": samplers.ddim(model.schedule, denoise)}[kind]  # fmt: skip
        partial_sampler = editing.sdedit(model.schedule, sampler, data.normalize(integers, model.integer_levels))
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
        return samplers.sample(keys, partial_sampler, samplers.initial_noise(keys, integers.shape[1:]), times)

    return tile


def noised_images(model: pipeline.Pipeline, integers: np.ndarray):
    """Start timesteps t, and x_t [n, H, W, C] of the first images there, with the chains' own noise."""
    keys = samplers.image_keys(model.config.seed, range(len(integers)))
    eps, x0 = samplers.initial_noise(keys, integers.shape[1:]), data.normalize(integers, model.integer_levels)
    for t in dict.fromkeys(t for t, *_ in sampler_grid(model.schedule.T, ())):
        yield t, np.asarray(gaussian.q_sample(model.schedule, x0, jnp.asarray(t), eps))


def draw_all(
    model: pipeline.Pipeline, mapped: tiles.TileFunction, integers: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """x_0 [n, H, W, C] of all images, without the padding of the last tiles."""
    devices, key, done = jax.device_count(), keys.from_seed(model.config.seed), []
    for start in range(0, len(integers), model.tile * devices):
        x = np.asarray(mapped((model.params, times), key, likelihood.device_tiles(integers, start, model.tile)))
        done.append(x.reshape(-1, *x.shape[2:]))
    return np.concatenate(done)[: len(integers)]


if __name__ == "__main__":
    main(sys.argv[1:])
