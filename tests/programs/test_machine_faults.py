"""What a run does when the machine fails it: a second trainer, a full disk, a folder that cannot be written."""

import re
import signal
import subprocess

import jax
import numpy as np
import pytest
from run_programs import (
    ROOT,
    TINY,
    TRAIN_WITHOUT_PREVIEWS,
    command,
    environment,
    load_state,
    run,
    run_process,
    saved_steps,
    start_process,
    wait_for,
)

from ddpm_jax import trainer
from ddpm_jax.data import device_loader
from ddpm_jax.pipeline import outputs


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    (folder / "tiny.py").write_text(TINY)
    return folder


def test_a_second_trainer_is_refused_until_the_first_is_gone(home):
    workdir = home / "two"
    args = (home / "tiny.py", "--workdir", workdir, "--devices", 1, "--steps")
    holder = start_process(*TRAIN_WITHOUT_PREVIEWS, *args, 100_000)
    try:
        wait_for(lambda: (workdir / "checkpoints" / "10").is_dir(), holder)
        refused = run("train.py", *args, 100_000, status=2)
        assert f"{workdir} is in use by process {holder.pid} on " in refused.stderr
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    steps = saved_steps(workdir)[-1]
    assert f"continued from step {steps}" in run("train.py", *args, steps + 1, preview=False).stdout


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MB."""
    mounted = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    try:
        subprocess.run(mounted, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a small disk")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_or_read_only_disk_ends_the_run_and_spares_what_was_saved(home, disk):
    workdir = disk / "run"
    args = (home / "tiny.py", "--workdir", workdir, "--devices", 1, "--save-every", 1, "--keep", 1000)
    # in a process of its own: what orbax was doing when the disk was full goes with it
    shown = run_process(*TRAIN_WITHOUT_PREVIEWS, *args, "--steps", 1000, status=6)
    message = re.search(
        r"No space left on device\. Step (\d+) was saved last; the same command continues", shown.stderr
    )
    assert message and f"train: {workdir} cannot be written" in shown.stderr
    steps = saved_steps(workdir)
    assert int(message[1]) == steps[-1] == load_state(workdir).tree.step
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == sorted(map(str, steps))  # no half ones

    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert "Read-only file system" in run("train.py", *args, "--steps", 1000, status=6).stderr
    subprocess.run(["mount", "-o", "remount,rw,size=9m", str(disk)], check=True)
    more = run("train.py", *args, "--steps", steps[-1] + 2, preview=False)
    assert f"continued from step {steps[-1]}" in more.stdout


@pytest.mark.parametrize(
    ("command_name", "args"),
    [
        ("sample.py", ("sample.py", "RUN", "--num", 1, "--out", "OUT")),
        ("evaluate", ("-m", "ddpm_jax", "evaluate", "RUN", "samples", "--num", 80, "--out", "OUT")),
        ("convert", ("-m", "ddpm_jax", "convert", "to", "plain", "RUN", "OUT")),
    ],
)
def test_what_cannot_be_written_ends_with_a_status_of_its_own(run_folder, tmp_path, command_name, args):
    (tmp_path / "file").touch()
    paths = {"RUN": run_folder, "OUT": tmp_path / "file" / "out"}  # a file is no folder
    shown = run(*(paths.get(arg, arg) for arg in args), status=6)
    assert re.match(rf"{command_name.removesuffix('.py')}: .*(Not a directory|File exists): ", shown.stderr)


@pytest.mark.slow
def test_files_of_limited_size_end_the_run_too(home, tmp_path):
    """As a quota does, and without the rights to mount anything."""
    workdir = tmp_path / "run"
    run("train.py", home / "tiny.py", "--workdir", workdir, "--steps", 2, "--save-every", 1, preview=False)
    code = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); " \
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.argv[:] = sys.argv[1:]; " \
        "runpy.run_path('train.py', run_name='__main__')"  # fmt: skip
    args = ("train.py", home / "tiny.py", "--workdir", workdir, "--devices", 1, "--steps", 40, "--save-every", 1)
    env = environment() | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000"}  # read, not written
    done = subprocess.run(command("-c", code, *args), cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 6, done.stderr
    assert "File too large. Step 2 was saved last" in done.stderr
    assert saved_steps(workdir) == [1, 2] and load_state(workdir).tree.step == 2
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["1", "2"]


def test_a_step_that_does_not_fit_says_what_to_try(home, tmp_path):
    """Attention among all pixels of four thousand images: terabytes, which no allocator promises."""
    np.savez(tmp_path / "large.npz", np.zeros((9, 96, 96, 1), np.uint8))
    flags = ("--data.source", f"npz:{tmp_path}/large.npz", "--batch", 4096, "--devices", 1)
    shown = run("train.py", home / "tiny.py", "--workdir", tmp_path / "run", *flags, status=7).stderr
    assert "train: a training step of 4096 images per device does not fit into a device's memory: " in shown
    assert "--optim.accumulate 2: the same step, 2048 images at a time" in shown
    assert "--net.remat: the same step" in shown and "--batch 2048: 2048 on each device" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("module", "name", "hint"),
    [
        (device_loader, "FlatImages", "--net.remat"),
        (trainer, "place_state", "--net.remat"),
        (trainer.Run, "sample_and_evaluate", "--sampling.tile 2"),  # at the start of a run that goes on
    ],
)
def test_images_state_and_previews_may_not_fit_either(home, tmp_path, monkeypatch, module, name, hint):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    args = ("train.py", home / "tiny.py", "--workdir", tmp_path / "run")
    if module is trainer.Run:
        run(*args, preview=False)
    monkeypatch.setattr(module, name, full)
    shown = run(*args, status=7).stderr
    assert "does not fit into a device's memory: JaxRuntimeError: RESOURCE_EXHAUSTED" in shown and hint in shown


def test_a_trajectory_that_does_not_fit_says_what_to_try(run_folder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    monkeypatch.setattr(outputs, "write_trajectory", full)
    shown = run("sample.py", run_folder, "--num", 1, "--out", tmp_path, "--trajectory", status=7).stderr
    assert "a tile of trajectories does not fit into a device's memory" in shown and "--tile 2" in shown


@pytest.mark.slow
def test_what_was_tried_already_is_not_said_again(home, tmp_path):
    np.savez(tmp_path / "large.npz", np.zeros((9, 96, 96, 1), np.uint8))
    flags = ("--data.source", f"npz:{tmp_path}/large.npz", "--batch", 4096, "--optim.accumulate", 2, "--net.remat")
    again = run("train.py", home / "tiny.py", "--workdir", tmp_path / "run", *flags, status=7)
    assert "--optim.accumulate 4: the same step, 1024 images at a time" in again.stderr
    assert "--net.remat" not in again.stderr
