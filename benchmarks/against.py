"""What another revision of this repository takes for the same work: a training step, and a tile of samples.

    python -m benchmarks.against REVISION RUN [--rounds 20]

RUN is the folder of a run that is told nothing, which both revisions can read.  Both have a process that compiles its
programs and then works when it is its turn: one does, then the other, and the first of each round changes.  Ratios are
this revision's time over the other's, paired by round, with the quartiles; operations are XLA's count.  Results are
printed and written to benchmarks/results/against.json.
"""

import argparse
import inspect
import io
import json
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
from typing import Any

from benchmarks import alternating
from benchmarks.alternating import Work, Worker

HERE = pathlib.Path(__file__).resolve()
STEPS, CALLS = 4, 50  # training steps, and network calls of the tile, in one turn
WORKS = ("training step", "tile of samples")


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
        "this": alternating.commit(), "other": alternating.commit(args.revision), "rounds": args.rounds,
        "command": "python -m benchmarks.against REVISION RUN", **alternating.about("jax", "flax"),
    }  # fmt: skip
    alternating.write("against", {"made": made, **found})
    print(json.dumps(found, indent=1))


def measured(other: pathlib.Path, root: pathlib.Path, run: str, rounds: int) -> dict[str, Any]:
    """Operations, medians and ratios of each kind of work."""
    with worker(root, root, run) as ours, worker(other, root, run) as theirs:
        operations = [each.said() for each in (ours, theirs)]
        times = alternating.alternate([ours, theirs], WORKS, rounds)
    return {
        name: {
            "seconds": [round(statistics.median(each), 4) for each in kept],
            "operations": [each[name]["operations"] for each in operations],
            **alternating.ratio(*kept),
        }
        for name, kept in times.items()
    }


def worker(package: pathlib.Path, root: pathlib.Path, run: str) -> Worker:
    """A process that works with the package in a folder, and with this file of ours."""
    # `benchmarks` from here, `ddpm_jax` from there
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r}); from benchmarks import against; sys.path.pop(0); "
        f"against.work({run!r})"
    )
    return Worker([sys.executable, "-c", code], cwd=package, env={"PYTHONPATH": str(package)})


def work(run: str) -> None:
    """Says the operations of each kind of work, then does what the lines of standard input name, and its seconds."""
    import ddpm_jax
    from ddpm_jax import process, runs

    assert pathlib.Path(ddpm_jax.__file__).is_relative_to(pathlib.Path.cwd()), ddpm_jax.__file__
    process.prepare()
    model = runs.Model(run, step=None, weights="ema", sampling={"sampler": "ddim", "steps": CALLS})
    alternating.serve(dict(zip(WORKS, (training(model), sampling(model)), strict=True)))


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
    bad, nothing, takes = [], [], inspect.signature(one).parameters
    if "rows" in takes:  # which revisions before conditions do not have
        from ddpm_jax.conditioning import Condition

        nothing = [Condition()]
    if "bad" in takes:  # which revisions before several steps a call do not have
        bad = [np.int32(0)]
    batches = feed(images.train, data.Order(order_key, len(images.train)), config.batch, devices)
    batch = next(batches.batches(0))
    step = runs.over_devices(one, batches.axis)
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.device_put(training.init(model.params, optimizer), everywhere)
    rest = batch.pixels, batch.places, *nothing, None
    compiled = step.lower(run_key, state, *bad, *rest).compile()
    kept = [state]

    def turn() -> None:
        for _ in range(STEPS):
            kept[0] = step(run_key, kept[0], *bad, *rest)[0]
        jax.block_until_ready(kept[0])

    return Work(turn, {"operations": operations(compiled)})


def sampling(model) -> Work:
    """The program that draws a tile on each device."""
    import jax
    import numpy as np

    from ddpm_jax import generate

    tile = getattr(model, "tile", model.config.sampling.tile)  # of revisions that leave it open, what suits the device
    indices = np.arange(jax.local_device_count() * tile).reshape(jax.local_device_count(), -1)
    if hasattr(generate, "Tile"):
        one = generate.program(lambda i, tile: (model.sampler_told(i, tile.said), i.times), model.shape)
        said = jax.tree.map(lambda a: a.reshape(*indices.shape, *a.shape[1:]),
                            model.asked.rows(model.config, model.shape, indices.reshape(-1)))  # fmt: skip
        inputs, tile = model.inputs, generate.Tile(indices, said)
    else:
        one = generate.program(model.sampler, model.times, model.shape)
        inputs, tile = model.params, indices
    mapped, key = generate.over_devices(one), jax.random.key(0, impl="threefry2x32")
    compiled = mapped.lower(inputs, key, tile).compile()
    return Work(lambda: jax.block_until_ready(mapped(inputs, key, tile)), {"operations": operations(compiled)})


def operations(compiled) -> float:
    """Of a program, by XLA's count."""
    found = compiled.cost_analysis()
    return float((found[0] if isinstance(found, list) else found)["flops"])


if __name__ == "__main__":
    main()
