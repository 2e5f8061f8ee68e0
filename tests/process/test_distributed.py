"""Several processes as one, on one machine: each in a process of its own, as on the hosts of a cluster."""

import json
import re
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
from run_programs import (
    ROOT,
    TINY,
    TRAIN_WITHOUT_PREVIEWS,
    assert_same_bytes,
    command,
    environment,
    load_state,
    logged_losses,
    run,
    run_process,
    saved_steps,
    wait_for,
)

from ddpm_jax import posthoc_ema, trainer
from ddpm_jax.checkpoint import snapshots
from ddpm_jax.keys import from_seed


class Together:
    """A command in several processes."""

    def __init__(self, *args, processes=2, devices=1, **flags):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = ["--devices", devices, "--coordinator", f"127.0.0.1:{port}", "--processes", processes]
        for name, value in flags.items():
            shared += [f"--{name.replace('_', '-')}", value]
        self.processes = [
            subprocess.Popen(
                command(*args, *shared, "--process", i), cwd=ROOT, env=environment(), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for i in range(processes)
        ]  # fmt: skip

    def __getitem__(self, i):
        return self.processes[i]

    def ended(self, *statuses, seconds=240):
        """What the processes have said, once all have ended with these statuses."""
        end = time.monotonic() + seconds
        while any(p.poll() is None for p in self.processes) and time.monotonic() < end:
            wrong = [p.poll() not in (None, status) for p, status in zip(self.processes, statuses, strict=True)]
            time.sleep(0.05 if not any(wrong) else 1)
            end = min(end, time.monotonic() + 5) if any(wrong) else end
        for process in self.processes:
            process.kill()
        outputs = [process.communicate() for process in self.processes]
        assert [process.returncode for process in self.processes] == [*statuses], outputs
        return outputs


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "tiny.py").write_text(TINY)
    return folder


def train(home, workdir, *, processes=1, devices=1, steps=3, **flags):
    """In this process, or in several; without previews."""
    settings = {"workdir": workdir, "steps": steps, **flags}
    if processes > 1:
        return Together(*TRAIN_WITHOUT_PREVIEWS, home / "tiny.py", processes=processes, devices=devices, **settings)
    flags_given = [argument for name, value in settings.items() for argument in (f"--{name.replace('_', '-')}", value)]
    return run("train.py", home / "tiny.py", "--devices", devices, *flags_given, preview=False)


@pytest.fixture(scope="module")
def straight(home):
    """Nine steps in one process on one device."""
    train(home, home / "straight", steps=9)
    return home / "straight"


@pytest.fixture(scope="module")
def pair(home):
    """Three steps in two processes, and what they said."""
    outputs = train(home, home / "pair", processes=2).ended(0, 0)
    return home / "pair", outputs


def test_two_processes_take_the_steps_of_one(pair, straight):
    np.testing.assert_allclose(logged_losses(pair[0]), logged_losses(straight)[:3], atol=1e-5)


def test_only_the_first_of_them_speaks(pair):
    (main_output, _), (other_output, silence) = pair[1]
    assert "1 in each of 2 processes" in main_output and "steps 1 to 3 took" in main_output
    assert "run " not in other_output and "steps" not in silence


@pytest.mark.parametrize("by", ["pmap", "shard_map"])
def test_a_word_of_one_device_is_heard_by_all(by):
    def step(key, state, bad, pixels, places, rows):
        return state + places.sum(), {"skipped": places[0]}

    steps, places = trainer.parallelise(step, None, jax.devices()[:2], by=by), np.zeros((2, 1, 3), np.int32)
    pixels, stop = np.zeros(1), np.array([0, 1], np.float32)
    flags_given, silent = (
        steps(from_seed(0), np.int32(0), np.int32(0), pixels, places, places, outputs)[2] for outputs in (stop, None)
    )
    assert flags_given["stop"] == 1 and "stop" not in silent


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices", "stream"), [(1, 8, False), (2, 2, True)])
def test_how_many_there_are_changes_no_batch(home, straight, processes, devices, stream):
    workdir = home / f"{processes}x{devices}"
    done = train(home, workdir, processes=processes, devices=devices, **{"data.stream": stream})
    if isinstance(done, Together):
        done.ended(0, 0)
    np.testing.assert_allclose(logged_losses(workdir), logged_losses(straight)[:3], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["pmap", "shard_map"])
def test_two_draw_and_evaluate_previews_and_one_speaks(home, pair, parallel):
    """And by shard_map, on global arrays, they take the very steps of pmap."""
    workdir = home / f"previews-{parallel}"
    outputs = Together("train.py", home / "tiny.py", workdir=workdir, parallel=parallel).ended(0, 0)
    assert "held-out loss" in outputs[0][0] and "held-out loss" not in outputs[1][0]
    assert (workdir / "samples" / "3.png").exists()
    assert_same_bytes(load_state(workdir, 3).tree, load_state(pair[0], 3).tree)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["pmap", "shard_map"])
def test_two_take_shares_of_the_update_and_save_the_whole_state(home, pair, parallel):
    workdir = home / f"shares-{parallel}"
    flags = {"workdir": workdir, "parallel": parallel, "optim.ema-lengths": 0.1, "snapshot-every": 1}
    outputs = Together("train.py", home / "tiny.py", "--shard-update", **flags).ended(0, 0)
    assert "held-out loss" in outputs[0][0]
    averages = posthoc_ema.kept_averages(load_state(workdir).tree.opt_state).averages
    assert_same_bytes(snapshots.load(workdir / "snapshots", 3, averages), averages)
    shared, whole = (load_state(folder, 3).tree for folder in (workdir, pair[0]))
    for one, other in ((shared.params, whole.params), (shared.ema, whole.ema), (shared.opt_state[0], whole.opt_state)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), one, other)


@pytest.mark.slow
def test_two_draw_the_images_of_one_to_the_byte(home, pair):
    flags = ("--num", 13, "--start", 3)
    Together("sample.py", pair[0], *flags, out=home / "two").ended(0, 0)
    run_process("sample.py", pair[0], *flags, "--out", home / "one", "--devices", 2)
    one, two = (np.load(home / name / "samples.npz")["arr_0"] for name in ("one", "two"))
    assert one.shape == (13, 8, 8, 1) and len({image.tobytes() for image in one}) == 13
    np.testing.assert_array_equal(two, one)


@pytest.mark.slow
def test_two_measure_the_bound_of_one(home, pair):
    command = ("-m", "ddpm_jax", "evaluate", pair[0], "likelihood", "--num", 21)
    Together(*command, out=home / "bound2").ended(0, 0)
    run_process(*command, "--out", home / "bound1", "--devices", 2)
    one, two = (np.load(next((home / name).glob("likelihood-*.npz"))) for name in ("bound1", "bound2"))
    assert one["done"] == 21 and (one["total"] > 0).all()
    for name in one.files:
        np.testing.assert_array_equal(two[name], one[name], err_msg=name)


@pytest.mark.slow
def test_a_run_moves_from_two_to_one_and_back(home, pair, straight):
    """After the tests above, which read checkpoint 3 as the newest one."""
    workdir = pair[0]
    assert "continued from step 3" in train(home, workdir, steps=6).stdout
    (out, _), _ = train(home, workdir, steps=9, processes=2).ended(0, 0)
    assert "continued from step 6" in out
    assert load_state(workdir).step == 9
    np.testing.assert_allclose(logged_losses(workdir), logged_losses(straight), atol=1e-5)


@pytest.mark.slow
def test_sigterm_to_one_stops_both_at_the_same_step_and_saves(home):
    workdir = home / "stopped"
    both = train(home, workdir, processes=2, steps=100_000, save_every=100_000)
    wait_for(lambda: (workdir / "metrics.jsonl").exists(), both[0])
    both[1].send_signal(signal.SIGTERM)
    (out, _), _ = both.ended(0, 0)
    (step,) = saved_steps(workdir)
    assert f"saved step {step}" in out and load_state(workdir).tree.step == step
    assert json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"] == step


@pytest.mark.slow
def test_both_give_up_at_the_same_step_and_one_leaves_the_record(home):
    workdir = home / "burnt"
    flags = {"optim.learning_rate": 1e30, "optim.warmup": 1, "optim.max_skipped": 4}
    (_, err), (_, silence) = train(home, workdir, processes=2, steps=60, **flags).ended(3, 3)
    (record,) = workdir.glob("nonfinite-step-*.npz")
    with np.load(record) as dump:
        assert dump["indices"].shape == (16,) and f"the first being step {dump['step']}" in err
    assert "not finite" not in silence


@pytest.mark.slow
def test_when_one_is_killed_the_other_says_so_and_ends(home):
    workdir = home / "killed"
    both = train(home, workdir, processes=2, steps=100_000, heartbeat=10)
    wait_for(lambda: saved_steps(workdir), both[0])
    both[1].kill()
    begun = time.monotonic()
    (_, err), _ = both.ended(5, -signal.SIGKILL)
    assert time.monotonic() - begun < 30
    last = re.search(r"train, process 0 of 2: another process was lost .* Step (\d+) was saved last", err)
    assert last and int(last[1]) == saved_steps(workdir)[-1]
    steps = saved_steps(workdir)[-1]
    assert f"continued from step {steps}" in train(home, workdir, steps=steps + 1).stdout


@pytest.mark.slow
def test_a_frozen_one_is_given_up_after_the_heartbeat(home):
    """Nothing breaks then, and JAX aborts the process that waits."""
    both = train(home, home / "frozen", processes=2, steps=100_000, heartbeat=10)
    wait_for(lambda: (home / "frozen" / "metrics.jsonl").exists(), both[0])
    both[1].send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    _, err = both[0].communicate(timeout=60)
    assert time.monotonic() - begun < 40 and both[0].returncode in (5, -signal.SIGABRT), err
    both[1].kill()
    both[1].communicate()
