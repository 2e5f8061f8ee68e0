"""Correctness on a GPU, for `benchmarks.gpu`: golden cases, precisions, noise, images in tiles, repeated runs."""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

from benchmarks import workloads

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDENS = (
    "tests/models/unet/test_unet.py::test_unet_with_the_originals_variables_is_the_original",
    "tests/goldens/test_goldens_networks.py",
    "tests/goldens/test_goldens_chains.py",
    "tests/goldens/test_goldens.py::test_one_ancestral_step",
    "tests/goldens/test_goldens.py::test_one_ddim_step",
)
PRECISIONS = {
    "float32, highest": ("float32", "highest"), "float32": ("float32", "default"), "bfloat16": ("bfloat16", "default"),
}  # fmt: skip
"""Of the network, and of its products."""

SMALLER = ("--net.channels", "64", "--net.num-res-blocks", "1", "--batch", "64")
"""Flags for `repeated_runs` of cifar10, whose programs take a minute each to compile."""

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
Rows = dict[str, Any]


def golden_cases(root: pathlib.Path, tests: Sequence[str], limit: float) -> Rows:
    """How many golden cases of a checkout hold in float32 with products in full precision, and what the others say.

    Args:
        limit: seconds after which it is an error.
    """
    import jax

    on_cpu = jax.default_backend() == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        found = pathlib.Path(folder) / "tests.xml"
        command = [
            sys.executable, "-m", "pytest", *tests, "-k", "float32", "-q", "-n", "0" if on_cpu else "8",
            "-W", "default", "-p", "no:cacheprovider", f"--junitxml={found}",
        ]  # fmt: skip
        env = os.environ | {
            "JAX_PLATFORMS": "cpu" if on_cpu else "cuda,cpu", "JAX_DEFAULT_MATMUL_PRECISION": "highest",
            "OPTIMISED": "1", "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}",
        }  # fmt: skip
        done = subprocess.run(command, cwd=root, env=env, stdout=subprocess.PIPE, text=True, timeout=limit)
        if done.returncode not in (0, 1):
            raise RuntimeError(f"pytest ended with status {done.returncode}: {done.stdout[-600:]}")
        cases = list(ElementTree.parse(found).iter("testcase"))
    wrong = {
        case.attrib["name"]: child.attrib["message"][:400]
        for case in cases
        for child in case
        if child.tag in ("failure", "error")
    }
    return {"right": len(cases) - len(wrong), "wrong": wrong}


def departures() -> Rows:
    """How far the golden U-Net is from the original's output, and its gradients from those of float32."""
    import jax
    import jax.numpy as jnp

    sys.path.append(str(ROOT / "tests"))
    from goldens_loader import Golden  # pyright: ignore[reportMissingImports]
    from networks import ORIGINAL, ORIGINAL_GOLDEN, original_tree, tensors  # pyright: ignore[reportMissingImports]

    from ddpm_jax.model import network

    def relative(found, wanted) -> float:
        pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True))
        return float(np.sqrt(sum(np.sum((a - b) ** 2) for a, b in pairs) / sum(np.sum(b**2) for _, b in pairs)))

    golden = Golden(ORIGINAL_GOLDEN, "float32")
    original, variables = network(ORIGINAL, golden.args["out_ch"]), original_tree(tensors(golden, "var:"))
    rows, exact = {}, None
    for name, (dtype, precision) in PRECISIONS.items():
        net = original.clone(net=original.net.clone(dtype=jnp.dtype(dtype), parent=None))

        def loss(params, net=net):
            out = net.apply({"params": params}, golden["x"], golden["t"] + 1).astype(jnp.float32)
            return jnp.mean(out**2), out

        with jax.default_matmul_precision(precision):
            grads, out = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(variables))
        exact = exact or grads
        rows[name] = {
            "output, relative to the golden one": relative(out, golden["out"]),
            "output, largest difference": float(np.abs(out - golden["out"]).max()),
            "gradient, relative to the first row's": relative(grads, exact),
        }
    return rows


def noise() -> Rows:
    """Whether the noise of images is the same, bit for bit, in batches of 1, 16 and 256, and how far from a CPU's."""
    import jax
    import jax.numpy as jnp

    from ddpm_jax import keys, samplers

    def draw(key, indices):
        own = keys.fold_in_each(key, indices)
        x_T = samplers.initial_noise(own, (32, 32, 3))
        return x_T, samplers.step_noise(own, jnp.asarray(7), x_T)

    def drawn(batch: int, device):
        starts = range(0, 16, batch)
        with jax.default_device(device):
            parts = [jax.jit(draw)(keys.from_seed(0), np.arange(i, i + batch, dtype=np.uint32)) for i in starts]
        return np.concatenate([np.stack(part, 1)[:16] for part in parts])

    device = jax.local_devices()[0]
    found = {batch: drawn(batch, device) for batch in (1, 16, 256)}
    off = float(np.abs(found[16] - drawn(16, jax.local_devices(backend="cpu")[0])).max())
    equal = {f"batch {batch}": found[batch].tobytes() == found[16].tobytes() for batch in found}
    return {"equal to that of batch 16": equal, "largest difference from a CPU's": off}


def images_by_tile(spec: workloads.WorkloadSpec, sizes: Sequence[int]) -> Rows:
    """How far images drawn in tiles of these sizes are from those of the second size, in data units of [-1, 1]."""
    from ddpm_jax.pipeline import tiles

    model, params = random_model(spec)
    program = functools.partial(tiles.sampling_program(tiles.sampler_factory(model), model.shape), times=model.times)
    inputs = tiles.SamplerInputs(params, model.scalars())
    found = {}
    for size in sizes:
        drawn = tiles.draw(program, inputs, seed=0, start=0, num=16, tile=size,
                           conditions=lambda indices: model.empty_condition(len(indices)))  # fmt: skip
        found[size] = np.concatenate([part.x for part in drawn])
    rows = {}
    for size, x in found.items():
        off = np.abs(x - found[sizes[1]])
        levels = {"pixels off by a grey level": float((off > 2 / 255).mean())}
        rows[f"tile {size}"] = {"largest": float(off.max()), "mean": float(off.mean()), **levels}
    return rows


def repeated_runs(spec: workloads.WorkloadSpec, flags: Sequence[str], options: Sequence[str], limit: float) -> Rows:
    """Whether trainings of ten steps and their samples come out again, with the cached programs and compiled anew.

    Those that compile do it at the same time, so they disturb each other's choice of kernels.

    Args:
        flags: for XLA, of one comparison each.
        options: of each training.
        limit: seconds after which a training is an error.
    """
    from ddpm_jax import checkpoint

    command = [
        sys.executable, "-m", "ddpm_jax", "train", spec.config, *options, "--data.source", "npz:images.npz",
        "--steps", "10", "--sampling.num", "4", "--sampling.sampler", "ddim", "--sampling.steps", "10",
        "--evaluation.images", "4", "--evaluation.strata", "1", "--workdir",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        here = pathlib.Path(folder)
        images = np.random.default_rng(0).integers(0, 256, (512, *spec.shape), np.uint8)
        np.savez(here / "images.npz", train=images)
        started: list[subprocess.Popen] = []

        def start(run: str, cache: str, flag: str) -> tuple[pathlib.Path, subprocess.Popen]:
            workdir = here / f"{run}{flag}"
            env = os.environ | {
                "XDG_CACHE_HOME": str(here / f"cache-{cache}{flag}"),
                "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}",
                "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
            }  # fmt: skip
            env.pop("JAX_COMPILATION_CACHE_DIR", None)  # it would win
            started.append(subprocess.Popen([*command, str(workdir)], env=env, cwd=here, stdout=subprocess.DEVNULL))
            return workdir, started[-1]

        def result(workdir: pathlib.Path, process: subprocess.Popen) -> tuple[str, list[bytes]]:
            if process.wait(limit):
                raise RuntimeError(f"training ended with status {process.returncode}, see above")
            with checkpoint.Checkpoints(workdir / "checkpoints", read_only=True) as saved:
                params = saved.meta()["fingerprint"]["params"]
            return params, [path.read_bytes() for path in sorted((workdir / "samples").glob("*.png"))]

        rows: Rows = {}
        try:
            begun = {flag: [start("first", "a", flag), start("anew", "b", flag)] for flag in flags}
            for flag, (first, anew) in begun.items():
                wanted = result(*first)
                for name, other in {"cached": start("cached", "a", flag), "compiled anew": anew}.items():
                    params, samples = result(*other)
                    same = {"equal parameters": params == wanted[0], "equal samples": samples == wanted[1]}
                    rows[f"{name} {flag}".strip()] = same
        finally:
            for process in started:
                process.kill()
    return rows


def random_model(spec: workloads.WorkloadSpec) -> tuple[Any, Any]:
    """A model and random parameters of ordinary size: those of the start are near 0 in half of the network."""
    import jax

    model, _ = workloads.make_model(spec)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0))

    def draw(path, leaf):
        spread = 0.2 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        return ((path[-1].key == "scale") + spread * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    return model, jax.tree.map_with_path(draw, shapes)
