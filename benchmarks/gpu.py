"""What a GPU does with this library: correctness, training, sampling, the kernels of a step, attention.

    python -m benchmarks.gpu correctness training --peers --out DIR [--peak TFLOPS]
    python -m benchmarks.gpu sampling profile attention --out DIR

Two calls of at most seven minutes each.  DIR/SECTION.json is written after each part of a section.  A part for which
less time is left than it takes by estimate is left out, one that fails is noted with its error; both are named in the
file and at the end.  `--small` tries the program on a CPU.  Images and parameters are random.

tyro (with docstring-parser and typeguard) and the peers, diffusers and denoising-diffusion-pytorch (with ema-pytorch
and pytorch-fid), need not be installed: PYTHONPATH to a folder with their unpacked wheels is enough.  Golden cases need
pytest and pytest-xdist.  Where there is no git, `--commit` names what is measured.
"""

import concurrent.futures
import dataclasses
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks import alternating, compare_libraries, gpu_correctness, kernels, startup, workloads

PEERS = {"diffusers-compiled": "diffusers", "denoising-diffusion-pytorch": "denoising_diffusion_pytorch"}
TRAINING = [
    ("bfloat16", 128), ("bfloat16", 512), ("float32", 128), ("bfloat16", 1024), ("float32", 512), ("float32", 1024),
]  # fmt: skip
"""Precision and batch, the most wanted first; the peers take turns in the first."""
SAMPLERS = {"ddim": 50, "dpm_solver_pp": 20, "ancestral": 1000}
Rows = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Arguments:
    sections: tyro.conf.Positional[tuple[Literal["correctness", "training", "sampling", "profile", "attention"], ...]]
    """What to measure, in this order."""
    out: pathlib.Path
    """The folder for SECTION.json."""
    budget: float = 410.0
    """Seconds for all sections."""
    peak: float | None = None
    """The device's published peak in bfloat16, TFLOP/s, to compare with."""
    peers: bool = False
    """Train other libraries in turns with this one."""
    commit: str | None = None
    """The commit that is measured (default: the checkout's)."""
    small: bool = False
    """A tiny network and few steps, on any device."""


class Report:
    """Results of a section, in a file that is written after each part."""

    def __init__(self, path: pathlib.Path, made: Rows, deadline: float):
        self.path, self.deadline = path, deadline
        self.results: Rows = {"made": made, "parts": {}, "left out": {}, "failed": {}}

    def allows(self, name: str, seconds: float) -> bool:
        """Whether there is time for a part that takes about so many seconds; else it is noted as left out."""
        left = self.deadline - time.monotonic()
        if left < seconds:
            self.results["left out"][name] = f"takes about {seconds:.0f} s, {left:.0f} s were left"
        return left >= seconds

    def part(self, name: str, seconds: float | None, measure: Callable[[], Rows]) -> bool:
        """Whether a part was measured; prints a line for each of its rows.

        Args:
            seconds: see `allows`; None if it is measured in any case.
        """
        begun = time.monotonic()
        if seconds is None or self.allows(name, seconds):
            try:
                rows = measure()
            except (Exception, SystemExit) as error:  # of a worker; the next part is measured nevertheless
                traceback.print_exc()
                self.results["failed"][name] = f"{type(error).__name__}: {error}"[:1000]
            else:
                self.results["parts"][name] = {"seconds": round(time.monotonic() - begun, 1), **rows}
                for row, values in rows.items():
                    print(f"{self.path.stem}: {name}: {row}: {json.dumps(values)}", flush=True)
        self.path.write_text(json.dumps(self.results, indent=1) + "\n")
        return name in self.results["parts"]

    def complaints(self) -> list[str]:
        """A line for each part that was left out or failed, and for each golden case that was missed."""
        found = [
            f"{kind}: {name}: {why}" for kind in ("left out", "failed") for name, why in self.results[kind].items()
        ]
        wrong = self.results["parts"].get("golden cases", {}).get("wrong", {})
        return [
            f"{self.path.stem}: {line}" for line in found + [f"wrong: {case}: {why}" for case, why in wrong.items()]
        ]


def main(argv: Sequence[str]) -> None:
    """Measures the sections; the exit status is 1 if a part was left out or failed, or a golden case is wrong."""
    deadline = time.monotonic()
    args = tyro.cli(Arguments, prog="python -m benchmarks.gpu", args=argv)
    deadline += args.budget
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # processes share the device
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # compilation starts cold
        from ddpm_jax import process

        process.initialize()
        import jax

        if jax.default_backend() != "gpu" and not args.small:
            sys.exit(f"gpu: JAX runs on {jax.default_backend()}; with --small the program can be tried there")
        devices = jax.devices()
        made = {
            "commit": args.commit or alternating.commit(), "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
            "command": f"python -m benchmarks.gpu {' '.join(argv)}",
            "device": f"{len(devices)} x {devices[0].device_kind}",
            "versions": alternating.environment("jax", "jaxlib", "flax", "optax", "numpy")["versions"],
        }  # fmt: skip
        args.out.mkdir(parents=True, exist_ok=True)
        tiny = startup.TINY.replace("Net(8,", "Net(64,")  # diffusers' network needs 32 groups
        (pathlib.Path(folder) / "tiny.py").write_text(tiny)
        measures = dict(
            correctness=correctness, training=training, sampling=sampling, profile=profile, attention=attention
        )
        complaints = []
        for section in args.sections:
            report = Report(args.out / f"{section}.json", made, deadline)
            measures[section](report, args, pathlib.Path(folder))
            complaints += report.complaints()
    if complaints:
        sys.exit("\n".join(complaints))


def make_spec(args: Arguments, folder: pathlib.Path, dtype: str, batch: int, **fields: Any) -> workloads.WorkloadSpec:
    """Workloads of cifar10, or of a tiny network."""
    tiny = str(folder / "tiny.py"), (8, 8, 1)
    cell = tiny if args.small else compare_libraries.CELLS["cifar10"][:2]
    options = compare_libraries.Arguments(batch=min(batch, 16) if args.small else batch, dtype=dtype)  # type: ignore
    spec = compare_libraries.workload_spec(*cell, batch, max(2560 // batch, 3), 4, options)
    return dataclasses.replace(spec, **fields)


def correctness(report: Report, args: Arguments, folder: pathlib.Path) -> None:
    """Golden cases, how far other precisions depart, and what is the same bit for bit; nothing here is timed."""
    spec = make_spec(args, folder, "float32", 16, nfe=4 if args.small else 50)
    tests = gpu_correctness.GOLDENS[-1:] if args.small else gpu_correctness.GOLDENS
    flags = [gpu_correctness.DETERMINISTIC] if args.small else ["", gpu_correctness.DETERMINISTIC]
    options = ("--batch", "4") if args.small else gpu_correctness.SMALLER
    limit = (report.deadline - time.monotonic()) / 2
    beside = {
        "golden cases": lambda: gpu_correctness.golden_cases(gpu_correctness.ROOT, tests, limit),
        "repeated runs": lambda: gpu_correctness.repeated_runs(spec, flags, options, limit),
    }
    with concurrent.futures.ThreadPoolExecutor() as pool:
        begun = {name: pool.submit(measure) for name, measure in beside.items() if report.allows(name, 150)}
        report.part("precision", 60, gpu_correctness.departures)
        report.part("noise", 10, gpu_correctness.noise)
        for dtype in ("float32",) if args.small else ("float32", "bfloat16"):
            own, sizes = dataclasses.replace(spec, dtype=dtype), (1, 4) if args.small else (1, 16, 256)
            report.part(f"images, {dtype}", 50, lambda: gpu_correctness.images_by_tile(own, sizes))
        for name, future in begun.items():
            report.part(name, None, future.result)


def training(report: Report, args: Arguments, folder: pathlib.Path) -> None:
    """Speed, memory and compilation of training, beside other libraries in bfloat16."""
    peers = []
    for peer, module in PEERS.items() if args.peers else ():
        tried = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True)
        if tried.returncode:
            report.results["left out"][peer] = f"cannot be imported: {tried.stderr.strip().splitlines()[-1]}"
        else:
            peers.append(peer)
    for dtype, batch in TRAINING[:1] if args.small else TRAINING:
        beside = peers if (dtype, batch) == TRAINING[0] else []
        spec = make_spec(args, folder, dtype, batch)
        name = f"{dtype}, batch {spec.batch}"
        if beside and report.part(f"{name}, peers", 140, lambda: training_speed(spec, beside, args.peak)):
            continue
        report.part(name, 60, lambda: training_speed(spec, [], args.peak))


def training_speed(spec: workloads.WorkloadSpec, peers: Sequence[str], peak: float | None) -> Rows:
    """What `benchmarks.train` measures, the time of a step, and the share of the published peak."""
    options = compare_libraries.Arguments(rounds=5)
    found = compare_libraries.measure(spec, peers, ("train",), options)
    rows: Rows = {"peak of products, TFLOP/s": round(found["peak, operations per second"] / 1e12, 3)}
    for name, network in found["networks"].items():
        row = found["rows"][f"{name}: train"]
        rate = row["images per second"]
        published = round(3 * network["operations"] * rate / peak / 1e12, 3) if peak else None
        rows[name] = {
            **row, "ms per step": round(1000 * spec.batch / rate, 2), "share of the published peak": published,
            "most memory, bytes": found["most memory, bytes"][name],
            **{key: value for key, value in network.items() if key.endswith("seconds")},
        }  # fmt: skip
    return rows


def sampling(report: Report, args: Arguments, folder: pathlib.Path) -> None:
    """Rates of three samplers with 256 images in a tile."""
    for dtype in ("bfloat16",) if args.small else ("bfloat16", "float32"):
        for sampler, nfe in SAMPLERS.items():
            spec = make_spec(args, folder, dtype, 256, sampler=sampler, nfe=min(nfe, 4) if args.small else nfe)
            report.part(f"{sampler}, {spec.nfe} steps, {dtype}", 80 if nfe > 50 else 30, lambda: sampling_rate(spec))


def sampling_rate(spec: workloads.WorkloadSpec) -> Rows:
    """Images per second, and the share of the time that as many function evaluations alone do not take."""
    from ddpm_jax import process

    model, params = gpu_correctness.random_model(spec)
    evaluations = min(spec.nfe, 50)
    runs = workloads.sampling(model, process.replicate(params, "batch"), spec.batch, evaluations)
    seconds = {name: statistics.median(turns) for name, turns in take_turns(runs, 2 if spec.nfe > 50 else 4).items()}
    alone, rate = seconds["network"] / evaluations, spec.batch / seconds["sample"]
    return {
        "images per second": round(rate, 2),
        "seconds for 50,000 images": round(50_000 / rate, 1),
        "ms of a function evaluation": round(1000 * alone, 3),
        "share of time outside the network": round(1 - spec.nfe * alone / seconds["sample"], 4),
    }


def profile(report: Report, args: Arguments, folder: pathlib.Path) -> None:
    """The kernels of training steps."""
    spec = make_spec(args, folder, "bfloat16", 128, steps=3)
    report.part(f"training step, bfloat16, batch {spec.batch}", 75, lambda: traced_kernels(spec, folder / "trace"))


def traced_kernels(spec: workloads.WorkloadSpec, folder: pathlib.Path) -> Rows:
    """See `kernels.table`."""
    import jax

    model, images = workloads.make_model(spec)
    train, step, _ = workloads.train_workload(model, images, spec.steps)
    train.run()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        train.run()
    (path,) = folder.rglob("*.xplane.pb")
    return kernels.table(
        jax.profiler.ProfileData.from_file(str(path)), step.as_text(), spec.steps, jax.default_backend() == "cpu"
    )


def attention(report: Report, args: Arguments, folder: pathlib.Path) -> None:
    """Attention of the library and of `jax.nn`, for the images, pixels and channels of two configs."""
    for name, shape in {"cifar10": (128, 256, 256), "celebahq256": (8, 256, 512)}.items():
        for dtype in ("bfloat16", "float32"):
            size = (2, 16, 16) if args.small else shape
            report.part(f"{name} {size}, {dtype}", 25, lambda: attention_times(size, dtype, 2 if args.small else 50))


def attention_times(shape: tuple[int, int, int], dtype: str, repeats: int) -> Rows:
    """Time of one call and largest error of each implementation, forward and with gradients; or why it refuses."""
    import jax
    import jax.numpy as jnp

    from ddpm_jax.models.unet.attention import attend

    def ours(q, k, v):
        return attend(q, k, v, 1)

    def of_jax(implementation: Any):
        def attention(q, k, v):
            q, k, v = (x[:, :, None] for x in (q, k, v))
            return jax.nn.dot_product_attention(q, k, v, implementation=implementation)[:, :, 0]

        return attention

    rng = np.random.default_rng(0)
    q, k, v, weights = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(4))
    with jax.default_matmul_precision("highest"):
        exact = np.asarray(ours(*(x.astype(jnp.float32) for x in (q, k, v))))
    runs: dict[str, Callable[[], Any]] = {}
    rows: Rows = {}
    for name, one in {"ours": ours, "xla": of_jax("xla"), "cudnn": of_jax("cudnn")}.items():
        # each call takes what the last gave, so that none is left out
        def forward(q, k, v, weights, one=one):
            return jax.lax.fori_loop(0, repeats, lambda _, q: one(q, k, v), q)

        def gradient(q, k, v, weights, one=one):
            return jax.lax.fori_loop(0, repeats, lambda _, qkv: jax.vjp(one, *qkv)[1](weights), (q, k, v))

        try:
            error = float(np.abs(np.asarray(jax.jit(one)(q, k, v), np.float32) - exact).max())
            compiled = {f.__name__: jax.jit(f).lower(q, k, v, weights).compile() for f in (forward, gradient)}
        except Exception as refusal:  # of shapes, precisions or devices that it does not take
            rows[name] = {"refused": f"{type(refusal).__name__}: {refusal}".splitlines()[0][:300]}
            continue
        rows[name] = {"largest error": error}
        for kind, program in compiled.items():
            runs[f"{name}, {kind}"] = lambda program=program: jax.block_until_ready(program(q, k, v, weights))
    for name, seconds in take_turns(runs, 5).items():
        rows[name] = {"microseconds": round(1e6 * statistics.median(seconds) / repeats, 2)}
    return rows


def take_turns(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, by round; the order is reversed every round, and the first round is dropped."""
    seconds = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name in list(runs)[:: 1 if i % 2 else -1]:
            begun = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - begun)
    return {name: each[1:] for name, each in seconds.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
