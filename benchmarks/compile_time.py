"""Compilation time of a config's programs, at the first start and with the compilation cache.

    python -m benchmarks.compile_time [CELLS]

Each start is a new process.  "lowering" is tracing in Python, at every start; "compiling" is XLA's time, or that of
reading the cache.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any, Literal

import tyro

from benchmarks import alternating

HERE = pathlib.Path(__file__).resolve()
CELLS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "digits": ("digits.py:wide", (8, 8, 1), 128),
    "mnist": ("mnist.py:wide", (28, 28, 1), 64),
    "cifar10": ("cifar10.py", (32, 32, 3), 8),
    "celebahq256": ("celebahq256.py", (256, 256, 3), 2),
}
"""Config, shape of an image, images in a step."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    cells: tyro.conf.Positional[tuple[Literal["digits", "mnist", "cifar10", "celebahq256"], ...]] = tuple(CELLS)  # type: ignore
    """Configurations."""


def main(argv: list[str]) -> None:
    args = tyro.cli(Arguments, prog="python -m benchmarks.compile_time", args=argv)
    found = {}
    for cell in args.cells:
        with tempfile.TemporaryDirectory() as folder:
            found[cell] = {start: time_start(cell, folder) for start in ("first start", "second start")}
        print(cell, json.dumps(found[cell]), flush=True)
    made = {
        "commit": alternating.commit(),
        "command": "python -m benchmarks.compile_time",
        **alternating.environment("jax", "flax"),
    }
    alternating.write_results("compile_time", {"made": made, "cells": found})


def time_start(cell: str, folder: str) -> dict[str, Any]:
    """Seconds of each program, in a new process."""
    code = f"from benchmarks import compile_time; compile_time.time_programs({cell!r}, {folder!r})"
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}  # it would win
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE.parents[1], env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def time_programs(cell: str, folder: str) -> None:
    """Prints the seconds of each program, with a compilation cache."""
    from ddpm_jax import process

    process.initialize(compilation_cache_dir=folder)
    import jax

    from ddpm_jax import config as configs
    from ddpm_jax.model import build
    from ddpm_jax.preflight import lowering

    file, shape, batch = CELLS[cell]
    devices = jax.local_devices()
    config = configs.load(HERE.parents[1] / "configs" / file)
    sampling = dataclasses.replace(config.sampling, tile=max(1, batch // len(devices)))
    config = dataclasses.replace(config, batch=batch, sampling=sampling)
    images = lowering.load_images(config, shape, batch)
    found = {}
    model = build(config, shape, images.levels)
    programs = {
        "training step": lambda: lowering.lower_train_step(model, images, devices),
        "sampler": lambda: lowering.lower_sampler(model, devices),
    }
    for name, lower in programs.items():
        times = [time.perf_counter()]
        lowered = lower()
        times.append(time.perf_counter())
        lowered.compile()
        times.append(time.perf_counter())
        found[name] = {"lowering": round(times[1] - times[0], 2), "compiling": round(times[2] - times[1], 2)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
