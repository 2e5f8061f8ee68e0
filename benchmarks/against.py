"""What another revision of this repository takes for the same work: a training step, and a tile of samples.

    python -m benchmarks.against REVISION RUN [--rounds 20]

RUN is the folder of a run that is told nothing, which both revisions can read.  Both have a process that compiles its
programs and then works when it is its turn: one does, then the other, and the first of each round changes.  Ratios are
this revision's time over the other's, paired by round, with the quartiles; operations are XLA's count.  Results are
printed and written to benchmarks/results/against.json.
"""

import argparse
import importlib.metadata
import inspect
import io
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).resolve()
RESULTS = HERE.parent / "results" / "against.json"
STEPS, CALLS = 4, 50  # training steps, and network calls of the tile, in one turn


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against")
    parser.add_argument("revision", help="of git: a branch, a tag, a commit")
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    if args.rounds < 4:
        sys.exit(f"against: --rounds must be at least 4, for quartiles to mean something, got {args.rounds}")
    root = HERE.parents[1]
    with tempfile.TemporaryDirectory() as folder:
        taken = subprocess.run(["git", "archive", args.revision], cwd=root, capture_output=True)
        if taken.returncode:
            sys.exit(f"against: no revision {args.revision!r}: {taken.stderr.decode().strip()}")
        with tarfile.open(fileobj=io.BytesIO(taken.stdout)) as files:
            files.extractall(folder, filter="data")
        found = measured(pathlib.Path(folder), root, str(pathlib.Path(args.run).resolve()), args.rounds)
    made = {
        "this": commit("HEAD", root), "other": commit(args.revision, root), "rounds": args.rounds,
        "command": "python -m benchmarks.against REVISION RUN",
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "jax": importlib.metadata.version("jax")},
    }  # fmt: skip
    RESULTS.write_text(json.dumps({"made": made, **found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def commit(revision: str, root: pathlib.Path) -> str:
    """The commit's name, with what was changed since if that is the one checked out."""
    named = ["describe", "--always", "--dirty"] if revision == "HEAD" else ["rev-parse", "--short", revision]
    return subprocess.run(["git", *named], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def measured(other: pathlib.Path, root: pathlib.Path, run: str, rounds: int) -> dict[str, Any]:
    """Operations, medians and ratios of each kind of work."""
    with Worker(root, run) as ours, Worker(other, run) as theirs:
        operations = [worker.said() for worker in (ours, theirs)]
        times = {work: ([], []) for work in operations[0]}
        for i in range(rounds + 1):
            for work, (our_times, their_times) in times.items():
                pair = [(ours, our_times), (theirs, their_times)]
                for worker, kept in pair if i % 2 else pair[::-1]:
                    kept.append(worker.does(work))
    found = {}
    for work, (our_times, their_times) in times.items():
        ratios = [a / b for a, b in zip(our_times[1:], their_times[1:], strict=True)]  # the first turn warms up
        low, middle, high = statistics.quantiles(ratios, n=4)
        found[work] = {
            "seconds": [round(statistics.median(kept[1:]), 4) for kept in (our_times, their_times)],
            "operations": [each[work] for each in operations],
            "ratio": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)],
        }  # fmt: skip
    return found


class Worker:
    """A process that works with the package in a folder."""

    def __init__(self, folder: pathlib.Path, run: str):
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"import runpy; runpy.run_path({str(HERE)!r})['work']({run!r})"],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def said(self) -> Any:
        """The next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("against: a process ended, see above")
        return json.loads(line)

    def does(self, work: str) -> float:
        """Seconds of a turn."""
        assert self.process.stdin is not None
        print(work, file=self.process.stdin, flush=True)
        return self.said()


def work(run: str) -> None:
    """Says the operations of each kind of work, then does what the lines of standard input name, and its seconds."""
    import ddpm_jax
    from ddpm_jax import process, runs

    assert pathlib.Path(ddpm_jax.__file__).is_relative_to(pathlib.Path.cwd()), ddpm_jax.__file__
    process.prepare()
    model = runs.Model(run, step=None, weights="ema", sampling={"sampler": "ddim", "steps": CALLS})
    works = {"training step": training(model), "tile of samples": sampling(model)}
    print(json.dumps({name: counted for name, (counted, _) in works.items()}), flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        works[line.strip()][1]()
        print(time.perf_counter() - begun, flush=True)


Work = tuple[float, Callable[[], Any]]


def training(model) -> Work:
    """The program's training step."""
    import jax
    import numpy as np

    from ddpm_jax import data, runs, training
    from ddpm_jax.config import objects
    from ddpm_jax.data.stream import feed

    config, devices = model.config, jax.local_devices()
    images, optimizer = data.load(config.data.source, levels=model.levels), objects.optimizer(config)
    _, run_key, order_key, _ = runs.keys_of(0)
    one = runs.train_step(config, model.schedule, objects.network(config, model.shape[-1]), optimizer, images.levels)
    nothing = []
    if "rows" in inspect.signature(one).parameters:  # which revisions before conditions do not have
        from ddpm_jax.conditioning import Condition

        nothing = [Condition()]
    batches = feed(images.train, data.Order(order_key, len(images.train)), config.batch, devices)
    batch = next(batches.batches(0))
    step = runs.over_devices(one, batches.axis)
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.device_put(training.init(model.params, optimizer), everywhere)
    rest = batch.pixels, batch.places, *nothing, None
    compiled = step.lower(run_key, state, *rest).compile()
    kept = [state]

    def turn() -> None:
        for _ in range(STEPS):
            kept[0], _ = step(run_key, kept[0], *rest)
        jax.block_until_ready(kept[0])

    return operations(compiled), turn


def sampling(model) -> Work:
    """The program that draws a tile on each device."""
    import jax
    import numpy as np

    from ddpm_jax import generate

    indices = np.arange(jax.local_device_count() * model.config.sampling.tile).reshape(jax.local_device_count(), -1)
    if hasattr(generate, "Tile"):
        one = generate.program(lambda i, tile: (model.sampler_told(i, tile.said), i.times), model.shape)
        said = jax.tree.map(lambda a: a.reshape(*indices.shape, *a.shape[1:]),
                            model.asked.rows(model.config, model.shape, indices.reshape(-1)))  # fmt: skip
        inputs, tile = model.inputs, generate.Tile(indices, said)
    else:
        one = generate.program(model.sampler, model.times, model.shape)
        inputs, tile = model.params, indices
    mapped, key = generate.over_devices(one), jax.random.key(0)
    compiled = mapped.lower(inputs, key, tile).compile()
    return operations(compiled), lambda: jax.block_until_ready(mapped(inputs, key, tile))


def operations(compiled) -> float:
    """Of a program, by XLA's count."""
    found = compiled.cost_analysis()
    return float((found[0] if isinstance(found, list) else found)["flops"])


if __name__ == "__main__":
    main()
