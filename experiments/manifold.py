"""Prediction targets on a curve hidden in D dimensions (section 9 of docs/experiments.md).

    python -m experiments.manifold
    python -m experiments.manifold manifold-long --steps 8000 --dimensions 8 32 --targets ε v

Points of a spiral in the plane are embedded into D dimensions by a fixed orthonormal projection.  One small MLP per
target (eps, x_0, v) and D is trained with the squared error of v.  The distances of its samples to the curve are
written to docs/results/NAME.json; for the figure, samples of the first seed of `manifold`, projected back, are written
to manifold-samples.npz.
"""

import dataclasses
import functools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen as nn

from benchmarks import alternating
from ddpm_jax import gaussian, keys, losses, process, samplers, schedules, training
from ddpm_jax.gaussian import Predicts
from ddpm_jax.models.unet.layers import timestep_embedding
from experiments.run import RESULTS, save_row

TARGETS: dict[str, Predicts] = {"ε": "eps", "x₀": "x0", "v": "v"}
DIMENSIONS = (2, 8, 32, 128, 512)
NOISE = "pure noise"
IN_PLANE, OFF_PLANE = "distance to the curve in the plane", "distance to the plane"
TOTAL, COVERAGE = "distance to the curve", "distance from the curve to the nearest sample"
NUM_PICTURED = 400
"""Samples that the figure shows."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    name: tyro.conf.Positional[str] = "manifold"
    """Of the results."""
    dimensions: tuple[int, ...] = DIMENSIONS
    """Only these D."""
    targets: tuple[str, ...] = tuple(TARGETS)
    """Only these of ε, x₀, v."""
    width: int = 128
    """Of each hidden layer."""
    steps: int = 2000
    """Of training."""
    batch: int = 128
    """Points in a batch."""
    learning_rate: float = 3e-3
    """Adam's, decaying to 0."""
    samples: int = 1000
    """For each measurement."""
    nfe: int = 50
    """Function evaluations of DDIM."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Trained together."""


class MLP(nn.Module):
    """Four hidden layers on x_t [B, D] and an embedding of t [B]: -> [B, D]."""

    width: int

    @nn.compact
    def __call__(self, x_t: jax.Array, t: jax.Array) -> jax.Array:
        h = jnp.concatenate([x_t, timestep_embedding(t, 32)], -1)
        for _ in range(4):
            h = nn.relu(nn.Dense(self.width)(h))
        return nn.Dense(x_t.shape[-1])(h)


def main(argv: list[str]) -> None:
    args = tyro.cli(Arguments, prog="python -m experiments.manifold", args=argv)
    process.initialize()
    path, pictured = RESULTS / f"{args.name}.json", {}
    provenance = {
        "settings": dataclasses.asdict(args), "commit": alternating.commit(),
        **alternating.environment("jax", "flax", "optax", "numpy"),
    }  # fmt: skip

    def record(name: str, D: int, samples: np.ndarray, seconds: float) -> None:
        rows = [distances(x, embedding(D)) for x in samples]
        for seed, numbers in zip(args.seeds, rows, strict=True):
            save_row(
                path, f"{name}, D={D}", seed, {"numbers": numbers, "CPU seconds of all seeds": seconds, **provenance}
            )
        pictured[f"{name}, D={D}"] = (samples[0, :NUM_PICTURED] @ embedding(D)).astype(np.float16)
        print(f"{name}, D={D}: {rows[0]}", flush=True)

    for D in args.dimensions:
        record(NOISE, D, np.stack([initial_noise(seed, args.samples, D) for seed in args.seeds]), 0.0)
        for name in args.targets:
            began = time.process_time()
            samples = np.asarray(train_and_sample(args, TARGETS[name], D))
            record(name, D, samples, round(time.process_time() - began, 1))
    if args.name == "manifold":
        np.savez_compressed(path.with_name("manifold-samples.npz"), **pictured)  # pyright: ignore


def spiral(s: Any) -> Any:
    """Points [..., 2] of the curve, 1.1 turns of a spiral, for s in [0, 1], with a mean squared norm of 2."""
    first, last = (0.5 * np.pi) ** 2, (2.75 * np.pi) ** 2
    angle = (first + (last - first) * s) ** 0.5  # uniform s are then almost uniform along the curve
    return (angle / (0.25 * (first + last)) ** 0.5)[..., None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)


def embedding(D: int) -> np.ndarray:
    """[D, 2] orthonormal columns, the same in every run."""
    return np.linalg.qr(np.asarray(jax.random.normal(keys.from_seed(D), (D, 2))))[0]


def flow_schedule(T: int = 1000) -> schedules.Schedule:
    """Signal : noise = 1 - u : u for u from 0.05 to 0.95: the straight path of flow matching, variance-preserving."""

    def log_snr(part: np.ndarray) -> np.ndarray:
        u = 0.05 + 0.9 * part
        return 2 * np.log((1 - u) / u)

    return schedules.from_log_snr(log_snr, T)


def initial_noise(seed: int, num: int, D: int) -> np.ndarray:
    """x_T [num, D] of a seed's samples."""
    return np.asarray(samplers.initial_noise(samplers.image_keys(seed, range(num)), (D,)))


def train_and_sample(args: Arguments, predicts: Predicts, D: int) -> jax.Array:
    """Samples [seeds, samples, D] of networks trained with the squared error of v, all seeds in one program."""
    net: Any = MLP(args.width)
    schedule, plane = flow_schedule(), jnp.asarray(embedding(D))

    def loss(params: Any, example_keys: jax.Array, batch: jax.Array) -> jax.Array:
        data_keys, loss_keys = keys.split_keys(example_keys, 2)
        x0 = spiral(jax.vmap(jax.random.uniform)(data_keys)) @ plane.T
        apply, weight = functools.partial(net.apply, params), losses.snr_plus_one
        return losses.simple_loss(loss_keys, schedule, apply, x0, predicts=predicts, weight=weight).mean()

    optimizer = training.optimizer(args.learning_rate, warmup=0, decay=args.steps)
    step = training.make_step(loss, optimizer, ema_decay=training.ema_warmup(0.999))

    def one_seed(key: jax.Array, sample_keys: jax.Array) -> jax.Array:
        init_key, step_key = jax.random.split(jax.random.fold_in(key, keys.TRAINING_STREAM))
        params = net.init(init_key, jnp.zeros((1, D)), jnp.ones(1, jnp.int32))
        state = training.init(params, optimizer)
        state, _ = jax.lax.scan(
            lambda state, _: (step(step_key, state, jnp.zeros(args.batch))[0], None), state, length=args.steps
        )
        denoise = gaussian.denoiser(schedule, functools.partial(net.apply, state.ema), predicts)
        x_T = samplers.initial_noise(sample_keys, (D,))
        sampler = samplers.ddim(schedule, denoise)
        return samplers.sample(sample_keys, sampler, x_T, samplers.times(schedule.T, args.nfe))

    run_keys = jnp.stack([keys.from_seed(seed) for seed in args.seeds])
    sample_keys = jnp.stack([samplers.image_keys(seed, range(args.samples)) for seed in args.seeds])
    return jax.jit(jax.vmap(one_seed))(run_keys, sample_keys)


def distances(x: np.ndarray, plane: np.ndarray) -> dict[str, float]:
    """Mean distances between samples x [n, D] and the curve in the plane spanned by the columns of `plane` [D, 2]."""
    inside = x @ plane
    off_plane = np.linalg.norm(x - inside @ plane.T, axis=1)
    curve = np.asarray(spiral(np.linspace(0, 1, 2000)))
    pairs = np.linalg.norm(inside[:, None] - curve, axis=-1)
    in_plane = pairs.min(1)
    to_samples = np.sqrt(pairs**2 + off_plane[:, None] ** 2).min(0)
    means = {IN_PLANE: in_plane, OFF_PLANE: off_plane, TOTAL: np.hypot(in_plane, off_plane), COVERAGE: to_samples}
    return {name: round(float(values.mean()), 5) for name, values in means.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
