"""Speed of this revision compared with another: a training step, and a tile of samples.

    python -m benchmarks.compare_revisions REVISION RUN [--rounds 20]

RUN is the folder of an unconditional run that both revisions can read.  Each revision has a process that compiles its
programs; the two take turns, in an order that alternates.  Ratios are this revision's time over the other's, paired by
round, with the quartiles; operations are XLA's count.  Results are printed and written to
benchmarks/results/compare_revisions.json.
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
from benchmarks.alternating import Worker, Workload

HERE = pathlib.Path(__file__).resolve()
STEPS, NFE = 4, 50  # training steps, and function evaluations of the tile, in one turn
WORKLOADS = ("training step", "tile of samples")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_revisions")
    parser.add_argument("revision", help="of git: a branch, a tag, a commit")
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    if args.rounds < 4:
        sys.exit(f"compare_revisions: --rounds must be at least 4, for quartiles to mean something, got {args.rounds}")
    root = HERE.parents[1]
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", args.revision], cwd=root, capture_output=True)
        if archive.returncode:
            sys.exit(f"compare_revisions: no revision {args.revision!r}: {archive.stderr.decode().strip()}")
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
        found = measure(pathlib.Path(folder), root, str(pathlib.Path(args.run).resolve()), args.rounds)
    provenance = {
        "this": alternating.commit(), "other": alternating.commit(args.revision), "rounds": args.rounds,
        "command": "python -m benchmarks.compare_revisions REVISION RUN", **alternating.environment("jax", "flax"),
    }  # fmt: skip
    alternating.write_results("compare_revisions", {"made": provenance, **found})
    print(json.dumps(found, indent=1))


def measure(other: pathlib.Path, root: pathlib.Path, run: str, rounds: int) -> dict[str, Any]:
    """Operations, median seconds and ratios of each workload."""
    with start_worker(root, root, run) as ours, start_worker(other, root, run) as theirs:
        operations = [each.receive() for each in (ours, theirs)]
        times = alternating.alternate([ours, theirs], WORKLOADS, rounds)
    return {
        name: {
            "seconds": [round(statistics.median(each), 4) for each in seconds],
            "operations": [each[name]["operations"] for each in operations],
            **alternating.ratio(*seconds),
        }
        for name, seconds in times.items()
    }


def start_worker(package: pathlib.Path, root: pathlib.Path, run: str) -> Worker:
    """Worker with the package of another checkout and this module of ours."""
    # `benchmarks` from here, `ddpm_jax` from there
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r}); from benchmarks import compare_revisions; sys.path.pop(0); "
        f"compare_revisions.serve_run({run!r})"
    )
    return Worker([sys.executable, "-c", code], cwd=package, env={"PYTHONPATH": str(package)})


def serve_run(run: str) -> None:
    """Serves the two workloads, see `alternating.serve`."""
    import ddpm_jax
    from ddpm_jax import pipeline, process

    assert pathlib.Path(ddpm_jax.__file__).is_relative_to(pathlib.Path.cwd()), ddpm_jax.__file__
    process.initialize()
    model = pipeline.Pipeline(run, step=None, weights="ema", sampling={"sampler": "ddim", "steps": NFE})
    alternating.serve(dict(zip(WORKLOADS, (training_workload(model), sampling_workload(model)), strict=True)))


def training_workload(model) -> Workload:
    """The program's training step."""
    import jax
    import numpy as np

    from ddpm_jax import data, trainer, training
    from ddpm_jax.data.device_loader import make_device_loader

    config, devices = model.config, jax.local_devices()
    images, optimizer = data.load(config.data.source, levels=model.levels), model.model.optimizer
    _, run_key, order_key, _ = trainer.run_keys(0)
    one = trainer.train_step(model.model, trainer.example_losses(model.model))
    skipped_steps, empty_condition, parameters = [], [], inspect.signature(one).parameters
    if "conditions" in parameters:  # which revisions before conditions do not have
        from ddpm_jax.guidance import Condition

        empty_condition = [Condition()]
    if "bad" in parameters:  # which revisions before several steps a call do not have
        skipped_steps = [np.int32(0)]
    batches = make_device_loader(images.train, data.EpochShuffle(order_key, len(images.train)), config.batch, devices)
    batch = next(batches.batches(0))
    step = trainer.parallelise(one, batches.in_axis)
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.device_put(training.init(model.params, optimizer), replicated)
    rest = batch.pixels, batch.pixel_indices, *empty_condition, None
    compiled = step.lower(run_key, state, *skipped_steps, *rest).compile()
    latest = [state]

    def turn() -> None:
        for _ in range(STEPS):
            latest[0] = step(run_key, latest[0], *skipped_steps, *rest)[0]
        jax.block_until_ready(latest[0])

    return Workload(turn, {"operations": program_flops(compiled)})


def sampling_workload(model) -> Workload:
    """The program that draws a tile on each device."""
    import jax
    import numpy as np

    from ddpm_jax.pipeline import tiles

    tile = getattr(model, "tile", model.config.sampling.tile)  # of revisions that leave it open, what suits the device
    indices = np.arange(jax.local_device_count() * tile).reshape(jax.local_device_count(), -1)
    if hasattr(tiles, "Tile"):
        one = tile_function(model, tiles)
        conditions = jax.tree.map(lambda a: a.reshape(*indices.shape, *a.shape[1:]),
                            model.request.gather(model.config, model.shape, indices.reshape(-1)))  # fmt: skip
        inputs, tile = model.inputs, tiles.Tile(indices, conditions)
    else:
        one = tiles.tile_function(model.sampler, model.times, model.shape)
        inputs, tile = model.params, indices
    mapped, key = tiles.parallelise(one), jax.random.key(0, impl="threefry2x32")
    compiled = mapped.lower(inputs, key, tile).compile()
    return Workload(lambda: jax.block_until_ready(mapped(inputs, key, tile)), {"operations": program_flops(compiled)})


def tile_function(model, tiles):
    """(inputs, key, tile) -> images, of a revision whose tiles have conditions."""
    if hasattr(tiles, "tile_function"):
        return tiles.tile_function(lambda i, tile: (model.conditioned_sampler(i, tile.condition), i.times), model.shape)
    factory = lambda inputs, tile: model.conditioned_sampler(inputs, tile.condition)  # noqa: E731
    begin, advance = tiles.begin_function(factory, model.shape), tiles.advance_function(factory)

    def draw(inputs, key, tile):
        return advance(inputs, key, tile, begin(inputs, key, tile, model.times[0]), model.times).x

    return draw


def program_flops(compiled) -> float:
    """Floating-point operations of a program, by XLA's count."""
    found = compiled.cost_analysis()
    return float((found[0] if isinstance(found, list) else found)["flops"])


if __name__ == "__main__":
    main()
