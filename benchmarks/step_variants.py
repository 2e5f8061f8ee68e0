"""Time of a training step under other settings, beside that of the config, in turns.

    python -m benchmarks.step_variants digits

Prints for each setting the median time of a step, and the quartiles of its ratio to the config's own.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable

import numpy as np

from ddpm_jax import config as configs


def variants(config: configs.Config) -> dict[str, configs.Config]:
    """The config, and what is compared with it."""
    averages = dataclasses.replace(config.optim, ema_lengths=(0.05, 0.1))
    return {
        "as it is": config,
        "--parallel shard_map": dataclasses.replace(config, parallel="shard_map"),
        "--optim.ema-lengths 0.05 0.1": dataclasses.replace(config, optim=averages),
    }


def make_turn(config: configs.Config, steps: int) -> Callable[[], float]:
    """A function that takes some training steps and returns the seconds of one."""
    import jax

    from ddpm_jax import data, process, trainer
    from ddpm_jax.conditions import DatasetConditions, load_images
    from ddpm_jax.data.device_loader import make_device_loader
    from ddpm_jax.model import build

    images = load_images(config.data)
    model = build(config, images.train.shape[1:], images.levels)
    init_key, run_key, order_key, _ = trainer.run_keys(config.seed)
    loader = make_device_loader(
        images.train, data.EpochShuffle(order_key, len(images.train)), config.batch, jax.local_devices(),
        steps_per_call=config.steps_per_call,
    )  # fmt: skip
    step = trainer.parallelise(
        trainer.train_step(model, trainer.example_losses(model)), loader.in_axis, by=config.parallel
    )
    batch = next(loader.batches(0))
    rows = DatasetConditions(config, images).device_batch(batch.indices)
    run_key, bad = process.replicate((run_key, np.int32(0)), "batch")
    latest = [trainer.place_state(model, trainer.init_state(model, trainer.init_params(model, init_key))), bad]

    def turn() -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            latest[:] = step(run_key, *latest, batch.pixels, batch.pixel_indices, rows, None)[:2]
        jax.block_until_ready(latest)
        return (time.perf_counter() - begun) / steps / config.steps_per_call

    return turn


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=configs.load)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10, help="of each setting and round")
    args = parser.parse_args()

    from ddpm_jax import process

    process.initialize()
    turns = {name: make_turn(config, args.steps) for name, config in variants(args.config).items()}
    for turn in turns.values():  # compilation
        turn()
    seconds = {name: [] for name in turns}
    for i in range(args.rounds):
        for name in turns if i % 2 else reversed(turns):
            seconds[name].append(turns[name]())
    for name, each in seconds.items():
        low, middle, high = np.quantile(np.array(each) / np.array(seconds["as it is"]), [0.25, 0.5, 0.75])
        print(f"{name}: {1e3 * np.median(each):.1f} ms, ratio {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
