"""Workloads of this library and of others in turns: the program of `benchmarks.train`, `sample` and `likelihood`."""

import dataclasses
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any, Literal

import tyro

from benchmarks import alternating
from benchmarks.workloads import WorkloadSpec

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
CELLS = {
    "digits": ("digits.py:wide", (8, 8, 1), 128, 4, 16),
    "mnist": ("mnist.py:wide", (28, 28, 1), 64, 2, 4),
    "cifar10": ("cifar10.py", (32, 32, 3), 8, 1, 2),
}
"""Config, shape of an image, images at a time, training steps and function evaluations in a turn."""

Peer = Literal["ours-sharded", "diffusers", "diffusers-compiled", "denoising-diffusion-pytorch"]
SAME_NETWORK = ("diffusers", "diffusers-compiled")
"""Whose network is ours, to the parameter and the operation."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    cells: tyro.conf.Positional[tuple[Literal["digits", "mnist", "cifar10"], ...]] = ("digits", "mnist", "cifar10")
    """Configurations."""
    peer: tuple[Peer, ...] = ()
    """Other programs, as well as this library."""
    rounds: int = 10
    """Turns that count, of each."""
    batch: int | None = None
    """Images at a time (default: the cell's)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation."""
    python: str = sys.executable
    """The interpreter of the environment that the peers are installed in."""


def main(name: str, workloads: Sequence[str], argv: Sequence[str]) -> None:
    """Measures, prints a line for each library and workload, and writes benchmarks/results/NAME.json."""
    args = tyro.cli(Arguments, prog=f"python -m benchmarks.{name}", args=argv)
    if args.rounds < 4:
        sys.exit(f"{name}: --rounds must be at least 4, for quartiles to mean something, got {args.rounds}")
    if args.peer and "likelihood" in workloads:
        sys.exit(f"{name}: {', '.join(args.peer)} have no likelihood to compare with: leave --peer out")
    shown_argv = [arg for arg in argv if arg not in ("--python", args.python)]  # where that is means nothing elsewhere
    provenance = {
        "commit": alternating.commit(), "command": f"python -m benchmarks.{name} {' '.join(shown_argv)}".strip(),
        "rounds": args.rounds, "dtype": args.dtype, **alternating.environment("jax", "flax", "optax", "numpy"),
    }  # fmt: skip
    path = alternating.RESULTS / f"{name}.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() else {}
    for cell in args.cells:
        found = measure(workload_spec(*CELLS[cell], args), args.peer, workloads, args)
        cells[cell] = {"made": provenance, **found}
        for line in report_lines(cell, found):
            print(line, flush=True)
        alternating.write_results(name, {"cells": cells})


def workload_spec(file: str, shape: tuple[int, ...], batch: int, steps: int, nfe: int, args: Arguments) -> WorkloadSpec:
    """Specification of the workloads for a row of CELLS."""
    import jax

    from ddpm_jax import config as configs
    from ddpm_jax.convert.diffusers import network
    from ddpm_jax.model import build

    config = configs.load(CONFIGS / file)
    leaves = jax.tree.leaves(jax.eval_shape(build(config, shape, 256).init, jax.random.key(0)))
    return WorkloadSpec(
        str(CONFIGS / file), shape, args.batch or batch, network.to_diffusers(config, shape),
        sum(x.size for x in leaves), steps, nfe, args.dtype,
    )  # fmt: skip


def measure(spec: WorkloadSpec, peers: Sequence[str], workloads: Sequence[str], args: Arguments) -> dict[str, Any]:
    """Images per second, memory, share of the peak, and ratios to each library."""
    names = ("ours", *peers)
    spec_json = json.dumps(dataclasses.asdict(spec))
    root = pathlib.Path(__file__).resolve().parents[1]
    workers = [
        alternating.Worker(
            [sys.executable if name.startswith("ours") else args.python, "-m", "benchmarks.workloads", name, spec_json],
            cwd=root,
        )
        for name in names
    ]
    try:
        metadata = [worker.receive() for worker in workers]
        for name, each in zip(names, metadata, strict=True):
            same = all(each["train"][key] == metadata[0]["train"][key] for key in ("parameters", "operations"))
            if name in SAME_NETWORK and not same:
                sys.exit(f"{name} is not the same network: {each['train']} where ours has {metadata[0]['train']}")
        times = alternating.alternate(workers, (*workloads, "product"), args.rounds)
        memory = [worker.run_turn("memory") for worker in workers]
    finally:
        for worker in workers:
            worker.__exit__()
    peaks = [each["product"]["operations"] / min(turns) for each, turns in zip(metadata, times["product"], strict=True)]
    rows: dict[str, Any] = {}
    for work in workloads:
        images = spec.batch * (spec.steps if work == "train" else spec.nfe)
        for i, name in enumerate(names):
            seconds = statistics.median(times[work][i])
            operations = images * metadata[i]["train"]["operations"] * (3 if work == "train" else 1)
            rows[f"{name}: {work}"] = {
                "images per second": round(images / seconds, 2),
                "share of the peak": round(operations / seconds / max(peaks), 3),
                **({} if i == 0 else {"ours over it": alternating.ratio(times[work][i], times[work][0])}),
            }
    return {
        "batch": spec.batch, "shape": list(spec.shape),
        "networks": {name: each["train"] for name, each in zip(names, metadata, strict=True)},
        "peak, operations per second": round(max(peaks)),
        "most memory, bytes": dict(zip(names, memory, strict=True)),
        "rows": rows,
    }  # fmt: skip


def report_lines(cell: str, results: dict[str, Any]):
    """Readable lines of the results."""
    yield f"{cell}, batch {results['batch']}; peak {results['peak, operations per second'] / 1e9:.0f} GFLOP/s"
    for name, row in results["rows"].items():
        ratio = row.get("ours over it")
        comparison = (
            f"   ours: {ratio['ratio']:.2f} ({ratio['quartiles'][0]:.2f} to {ratio['quartiles'][1]:.2f})"
            if ratio
            else ""
        )
        yield f"  {name:38}{row['images per second']:10.1f} images/s {row['share of the peak']:6.1%}{comparison}"
