"""Time from the command to the first step and to the first image of training, with an empty compilation cache (cold)
and at the next start (warm).

    python -m benchmarks.startup [CELLS] [--runs 3] [--root OTHER_CHECKOUT] [--python EXE]

Each start is a new process, which ends when the first grid of samples, 8 images by 20 function evaluations, is written.
CPU seconds are those of all threads; programs read from the cache are not counted as compiled.  mnist and cifar10 take
random images.  celebahq256 is in `benchmarks.compile_time`: a step of it does not fit into a small machine.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tyro

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = """
from ddpm_jax.config import Config, Data, Evaluation, Net, Optim, Sampling, Schedule
config = Config(
    batch=16, data=Data("digits", flip=True), schedule=Schedule(T=20, beta_1=0.005, beta_T=0.6),
    net=Net(8, (1,), 1, (8,), dropout=0.1), optim=Optim(learning_rate=3e-3, warmup=10, ema_decay=0.9),
    sampling=Sampling(steps=20, tile=4), evaluation=Evaluation(images=32, strata=4),
)
"""
CELLS = {
    "tiny": ("tiny.py", ()),
    "digits": ("digits.py", ()),
    "mnist": ("mnist.py", (28, 28, 1)),
    "cifar10": ("cifar10.py", (32, 32, 3)),
}
"""Config, its variant `wide` if it has one, and the shape of random images."""
UNTIL = "first step", "first image"
CHILD = """
import json, os, sys, time
import jax.monitoring
counts = {"backend_compile_duration": 0, "cache_hits": 0}
def count(event, *_, **__):
    name = event.rpartition("/")[2]
    if name in counts:
        counts[name] += 1
jax.monitoring.register_event_listener(count)
jax.monitoring.register_event_duration_secs_listener(count)
begun, folder, *argv = sys.argv[1:]
found = {}
def mark(name):
    programs = counts["backend_compile_duration"] - counts["cache_hits"]
    found.setdefault(name, {"seconds": time.time() - float(begun), "cpu": time.process_time(), "programs": programs})
try:
    from ddpm_jax.programs import train
except ImportError:  # an older checkout
    import train
try:
    from ddpm_jax import tracking
except ImportError:  # an older checkout
    from ddpm_jax import log as tracking
from ddpm_jax import data
write, write_png = tracking.MetricsLog.write, data.write_png
def first_step(self, values):
    write(self, values)
    mark("first step")
def first_image(*args, **options):
    write_png(*args, **options)
    mark("first image")
    open(folder + "/found.json", "w").write(json.dumps(found))
    os._exit(0)
tracking.MetricsLog.write, data.write_png = first_step, first_image
train.main(argv)
"""


@dataclass(frozen=True)
class Arguments:
    cells: tyro.conf.Positional[tuple[Literal["tiny", "digits", "mnist", "cifar10"], ...]] = tuple(CELLS)  # type: ignore
    """Configurations."""
    runs: int = 3
    """Cold and warm starts of each; the medians are shown."""
    root: pathlib.Path = ROOT
    """The checkout whose training is started."""
    python: str = sys.executable
    """The interpreter that starts it."""


def main(argv: list[str]) -> None:
    args = tyro.cli(Arguments, prog="python -m benchmarks.startup", args=argv)
    print(f"| {args.root.resolve()} | until | CPU s | seconds | programs compiled |\n|---|---|---|---|---|")
    for cell in args.cells:
        starts = {"cold": [], "warm": []}
        for _ in range(args.runs):
            with tempfile.TemporaryDirectory() as folder:
                for kind, found in starts.items():
                    found.append(time_start(args, cell, pathlib.Path(folder), kind))
        for kind, found in starts.items():
            for until in UNTIL:
                cpu, seconds, programs = (
                    statistics.median(one[until][what] for one in found) for what in ("cpu", "seconds", "programs")
                )
                print(f"| {cell}, {kind} | {until} | {cpu:.1f} | {seconds:.1f} | {programs:g} |", flush=True)


def time_start(args: Arguments, cell: str, folder: pathlib.Path, kind: str) -> dict[str, dict[str, float]]:
    """Seconds, CPU seconds and compiled programs of one start, until its first step and until its first image."""
    file, shape = CELLS[cell]
    (folder / "tiny.py").write_text(TINY)
    config = folder / file if cell == "tiny" else args.root.resolve() / "configs" / file
    variant = ":wide" if "\nwide = " in config.read_text() else ""
    flags = ["--steps", "1", "--log-every", "1", "--sampling.steps", "20", "--sampling.num", "8"]
    if shape:
        rng = np.random.default_rng(0)
        np.savez(folder / "images.npz", train=rng.integers(0, 256, (2000, *shape), np.uint8))
        flags += ["--data.source", f"npz:{folder / 'images.npz'}"]
    flags += ["--batch", "8"] if cell == "cifar10" else []
    env = os.environ | {"XDG_CACHE_HOME": str(folder), "PYTHONPATH": str(args.root.resolve())}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)  # it would win
    flags += ["--workdir", str(folder / kind)]
    command = [args.python, "-c", CHILD, str(time.time()), str(folder), f"{config}{variant}", *flags]
    subprocess.run(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return json.loads((folder / "found.json").read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
