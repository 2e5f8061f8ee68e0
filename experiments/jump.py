"""One jump from x_t to x_0 against going there in steps, of the same images (the second question of docs/results.md).

    python -m experiments.jump jump-digits RUN [RUN ...] [--data npz:FILE]

Held-out images are noised to x_t.  From there the network says in one call what x_0 is, or a chain goes on to x_0 in
more calls, in equal strides: ancestral with the variance beta-tilde, which few calls need, or DDIM.  Kept are the error
to the image and the Fréchet distance to the training images for each run, one of each seed, in docs/results/NAME.json,
and the first images of the first run, and what became of them, in docs/results/NAME-images.npz.
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
from ddpm_jax import data, edits, gaussian, generate, keys, process, runs, samplers
from ddpm_jax.evaluate import likelihood, subject
from ddpm_jax.metrics import classifier, frechet
from experiments.run import RESULTS, keep, read

PARTS = (1.0, 0.75, 0.5, 0.25, 0.1)
"""Of T: the times t that are started from."""

CALLS = (2, 5, 10, 50, 250, 1000)
"""Of the network, from t on; those above t are left out."""

SHOWN = 6
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
    calls: tuple[int, ...] = CALLS
    """Network calls of the chains."""
    source: Annotated[str | None, tyro.conf.arg(name="data")] = None
    """Where the images are, if not where the config says."""


def main(argv: list[str]) -> None:
    args = tyro.cli(Arguments, prog="python -m experiments.jump", args=argv)
    process.prepare()
    path = RESULTS / f"{args.name}.json"
    for run in args.run:
        model = runs.Model(run, step=None, weights="ema", sampling={})
        which = subject.Which(source=args.source)
        found = subject.images(subject.Subject(model, which, pathlib.Path(run)))
        wanted = {f"t={t}, {way}" for t, way, _, _ in ways(model.schedule.T, args.calls)}
        if wanted <= {name for name, seeds in read(path).items() if str(model.config.seed) in seeds}:
            continue
        pictures: dict[str, np.ndarray] = {}
        for name, row in measured(model, found, args, pictures):
            keep(path, name, model.config.seed, row)
            print(f"{run}, {name}: {row['numbers']}", flush=True)
        if run == args.run[0]:
            np.savez_compressed(path.with_name(f"{args.name}-images.npz"), **pictures)  # pyright: ignore


def ways(T: int, calls: tuple[int, ...]):
    """Start, name, kind of sampler and calls of each row."""
    for part in PARTS:
        t = round(part * T)
        yield t, "one jump", "ddim", 1
        for kind in ("ancestral", "ddim"):
            for n in (n for n in calls if n <= t):
                yield t, f"{kind}, {n} calls", kind, n


def measured(model: runs.Model, images: data.Images, args: Arguments, pictures: dict[str, np.ndarray]):
    """Rows by name: what became of the images.  The first of them are put into `pictures`, by the same names."""
    judge = classifier.load(classifier.for_images(model.shape, model.integer_levels))
    reference = frechet.moments(judge.features(np.asarray(images.train)))
    held = np.asarray(images.test)[: args.num]
    integers = np.concatenate([held] * args.draws)
    facts = {
        "images": len(held), "draws": args.draws, "run": model.fingerprint.removeprefix("sha256:")[:12],
        "commit": alternating.commit(), **alternating.about("jax", "flax", "numpy"),
    }  # fmt: skip
    own = frechet.frechet_distance(frechet.moments(judge.features(held)), reference)
    yield "held-out images", {"numbers": {"Fréchet distance": own}, **facts}
    pictures |= {"levels": np.array(model.integer_levels), "held-out images": held[:SHOWN]}
    pictures |= {f"t={t}": model.images(x) for t, x in noised(model, held[:SHOWN])}
    programs = {kind: generate.over_devices(program(model, kind)) for kind in ("ancestral", "ddim")}
    for t, way, kind, n in ways(model.schedule.T, args.calls):
        x = drawn(model, programs[kind], integers, samplers.times(t, n, spacing="trailing"))
        squared = ((x - data.to_unit(integers, model.integer_levels)) ** 2).mean()
        became = model.images(x)
        features = judge.features(became)
        pictures[f"t={t}, {way}"] = became[: len(held)][:SHOWN]
        numbers = {
            "RMSE, 0..255": 127.5 * float(np.sqrt(squared)),
            "Fréchet distance": frechet.frechet_distance(frechet.moments(features), reference),
        }
        yield f"t={t}, {way}", {"numbers": {name: round(value, 4) for name, value in numbers.items()}, **facts}


def program(model: runs.Model, kind: str) -> generate.Program:
    """((params, times), key, (indices [b], integers [b, H, W, C])) -> x_0 [b, H, W, C] from the images noised."""

    def tile(inputs, key, tile):
        (params, times), (indices, integers) = inputs, tile
        denoise = model.denoiser(params)
        by = {"ancestral": samplers.ancestral(model.schedule, denoise, mix=0.0),
              "ddim": samplers.ddim(model.schedule, denoise)}[kind]  # fmt: skip
        started = edits.from_image(model.schedule, by, data.to_unit(integers, model.integer_levels))
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
        return samplers.sample(keys, started, samplers.initial_noise(keys, integers.shape[1:]), times)

    return tile


def noised(model: runs.Model, integers: np.ndarray):
    """The times that are started from, and x_t [n, H, W, C] of the first images there, with the chains' own noise."""
    keys = samplers.image_keys(model.config.seed, range(len(integers)))
    eps, x0 = samplers.initial_noise(keys, integers.shape[1:]), data.to_unit(integers, model.integer_levels)
    for t in dict.fromkeys(t for t, *_ in ways(model.schedule.T, ())):
        yield t, np.asarray(gaussian.q_sample(model.schedule, x0, jnp.asarray(t), eps))


def drawn(model: runs.Model, mapped: generate.Program, integers: np.ndarray, times: np.ndarray) -> np.ndarray:
    """x_0 [n, H, W, C] of all images; what fills the last tiles is left out."""
    devices, key, done = jax.device_count(), keys.of_seed(model.config.seed), []
    for first in range(0, len(integers), model.tile * devices):
        x = np.asarray(mapped((model.params, times), key, likelihood.group(integers, first, model.tile)))
        done.append(x.reshape(-1, *x.shape[2:]))
    return np.concatenate(done)[: len(integers)]


if __name__ == "__main__":
    main(sys.argv[1:])
