"""Startup time of training: until the first step, with an empty compilation cache (cold) and at the next start (warm).

    python -m benchmarks.startup [--runs 3] [--root OTHER_CHECKOUT] [--python EXE]

Each start is a new process.  "run" is the end of a run of three steps with its checkpoint, samples with 20 function
evaluations and held-out evaluation.  CPU seconds are those of all threads; programs read from
the cache are not counted as compiled.
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

import tyro

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = """
from ddpm_jax.config import Config, Data, Evaluation, Net, Optim, Sampling, Schedule
config = Config(
    steps=3, batch=16, data=Data("digits", flip=True), schedule=Schedule(T=20, beta_1=0.005, beta_T=0.6),
    net=Net(8, (1,), 1, (8,), dropout=0.1), optim=Optim(learning_rate=3e-3, warmup=10, ema_decay=0.9),
    sampling=Sampling(tile=4, num=8), evaluation=Evaluation(images=32, strata=4),
)
"""
CHILD = """
import json, sys, time
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
    found[name] = {"seconds": time.time() - float(begun), "cpu": time.process_time(), "programs": programs}
try:
    from ddpm_jax.programs import train
except ImportError:  # an older checkout
    import train
try:
    from ddpm_jax import tracking
except ImportError:  # an older checkout
    from ddpm_jax import log as tracking
write = tracking.MetricsLog.write
def first(self, values):
    write(self, values)
    if "first step" not in found:
        mark("first step")
tracking.MetricsLog.write = first
status = train.main(argv); mark("run")
open(folder + "/found.json", "w").write(json.dumps(found))
sys.exit(status)
"""


@dataclass(frozen=True)
class Arguments:
    runs: int = 3
    """Cold and warm starts of each config; the medians are shown."""
    root: pathlib.Path = ROOT
    """The checkout whose train.py is started."""
    python: str = sys.executable
    """The interpreter that starts it."""


def main(argv: list[str]) -> None:
    args = tyro.cli(Arguments, prog="python -m benchmarks.startup", args=argv)
    print(f"| {args.root.resolve()} | until | CPU s | seconds | programs compiled |\n|---|---|---|---|---|")
    for name, config in (("digits", str(args.root / "configs" / "digits.py")), ("tiny", "tiny.py")):
        starts = {"cold": [], "warm": []}
        for _ in range(args.runs):
            with tempfile.TemporaryDirectory() as folder:
                for kind, found in starts.items():
                    found.append(time_start(args, config, pathlib.Path(folder), kind))
        for kind, found in starts.items():
            for until in ("first step", "run"):
                cpu, seconds, programs = (
                    statistics.median(one[until][what] for one in found) for what in ("cpu", "seconds", "programs")
                )
                print(f"| {name}, {kind} | {until} | {cpu:.1f} | {seconds:.1f} | {programs:g} |", flush=True)


def time_start(args: Arguments, config: str, folder: pathlib.Path, kind: str) -> dict[str, dict[str, float]]:
    """Seconds, CPU seconds and compiled programs of one start, until its first step and until its end."""
    (folder / "tiny.py").write_text(TINY)
    flags = ["--workdir", str(folder / kind), "--steps", "3", "--log-every", "1", "--sampling.steps", "20"]
    env = os.environ | {"XDG_CACHE_HOME": str(folder), "PYTHONPATH": str(args.root.resolve())}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)  # it would win
    command = [args.python, "-c", CHILD, str(time.time()), str(folder), config, *flags]
    subprocess.run(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return json.loads((folder / "found.json").read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
