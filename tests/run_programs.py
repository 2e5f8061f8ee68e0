"""The programs as tests run them: in this process, or as processes of their own where the process is the point."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import time
import types
import warnings
from unittest import mock

import jax
import numpy as np

from ddpm_jax import checkpoint, process, trainer
from ddpm_jax import config as configs
from ddpm_jax.keys import from_seed
from ddpm_jax.model import build
from ddpm_jax.programs import cli

ROOT = pathlib.Path(__file__).parents[1]

TINY = """
from ddpm_jax.config import Config, Data, Evaluation, Net, Optim, Sampling, Schedule

config = Config(
    steps=3, batch=16, log_every=1, sample_every=0, save_every=10, keep=10, data=Data("digits", flip=True),
    schedule=Schedule(T=20, beta_1=0.005, beta_T=0.6), net=Net(8, (1,), 1, (), dropout=0.1),
    optim=Optim(learning_rate=3e-3, warmup=10, ema_decay=0.9), sampling=Sampling(steps=20, tile=4, num=8),
    evaluation=Evaluation(images=32, strata=4),
)
"""
"""A config file: a run of seconds.  Tests that train share its programs, so they change it as little as they can."""


@contextlib.contextmanager
def on_devices(number: int):
    """This process as the programs see one that has been divided into so many CPU devices."""
    devices = jax.local_devices()[:number]
    assert len(devices) == number, f"{number} devices, and the tests have {len(devices)}"
    with contextlib.ExitStack() as patches:
        for name in ("devices", "local_devices"):
            patches.enter_context(mock.patch.object(jax, name, lambda *_, **__: list(devices)))
        for name in ("device_count", "local_device_count"):
            patches.enter_context(mock.patch.object(jax, name, lambda *_, **__: number))
        for name in ("_set_cpu_devices", "tune_malloc"):  # what `prepare` does before JAX starts
            patches.enter_context(mock.patch.object(process, name, lambda *_: None))
        yield


def run(*args, status: int = 0, preview: bool = True, folder: pathlib.Path = ROOT):
    """A program in this process, its outputs caught: `run("train.py", ...)`, `run("-m", "ddpm_jax", "evaluate", ...)`.

    Args:
        args: as on the command line; without --devices it is one device.
        status: the exit status that it must have.
        preview: False leaves out what train.py draws and evaluates, a third of the time of a short run.
        folder: the working directory.
    """
    argv = [str(arg) for arg in args]
    if argv[0] == "-m":
        argv = argv[2:]
    argv[0] = argv[0].removesuffix(".py")
    number = int(argv[argv.index("--devices") + 1]) if "--devices" in argv else 1
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder), on_devices(number), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
        warnings.catch_warnings(record=True) as warned,
        contextlib.nullcontext() if preview else mock.patch.object(trainer.Run, "sample_and_evaluate", lambda *_: {}),
    ):  # fmt: skip
        warnings.simplefilter("default")
        warnings.filterwarnings("error", category=DeprecationWarning, module="ddpm_jax")
        try:
            code = cli.call(argv)
        except SystemExit as ended:
            code = ended.code or 0
    shown = "".join(warnings.formatwarning(w.message, w.category, w.filename, w.lineno) for w in warned)
    done = types.SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue() + shown)
    assert code == status, done.stdout + done.stderr
    return done


# --- processes of their own

TRAIN_WITHOUT_PREVIEWS = (
    "-c",
    "from ddpm_jax import trainer; from ddpm_jax.programs import cli; "
    "trainer.Run.sample_and_evaluate = lambda *_: {}; cli.main('train')",
)
"""train.py without samples and evaluation, for `command`."""


def environment() -> dict[str, str]:
    """The programs' own devices and threads; compiled as the tests are."""
    defaults = {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    return os.environ | defaults | {"JAX_DISABLE_MOST_OPTIMIZATIONS": str(not os.environ.get("OPTIMISED"))}


OPTIMISED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "False", "XLA_FLAGS": ""}
"""For a process that compiles as it does for users."""


def command(*args) -> list[str]:
    return [sys.executable, "-W", "error::DeprecationWarning:ddpm_jax", *map(str, args)]


def run_process(*args, status: int = 0, env=()):
    """A program in a process of its own, with its outputs."""
    settings = environment() | dict(env)
    done = subprocess.run(command(*args), cwd=ROOT, env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def start_process(*args, env=()) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command(*args), cwd=ROOT, env=environment() | dict(env), text=True, **pipes)


def wait_for(condition, process, seconds=300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


# --- what they leave


def saved_steps(workdir: pathlib.Path) -> list[int]:
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def load_state(workdir: pathlib.Path, step: int | None = None):
    """A checkpoint's whole state, of images of 8x8x1: as the config of the run says it is."""
    with checkpoint.Checkpoints(workdir / "checkpoints", read_only=True) as saved:
        config = configs.from_dict(saved.meta(step)["config"])
        return saved.restore(jax.eval_shape(build(config, (8, 8, 1), 17).init_state, from_seed(0)), step=step)


def assert_same_bytes(a, b) -> None:
    leaves = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    assert leaves and all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)


def logged_losses(workdir: pathlib.Path) -> list[float]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]
