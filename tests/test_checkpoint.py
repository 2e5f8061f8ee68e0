"""Checkpoints come back bit for bit, or say what is wrong with them."""

import concurrent.futures
import importlib.util
import itertools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import checkpoint
from ddpm_jax.checkpoint import CheckpointError, Checkpoints, CheckpointWarning, records
from ddpm_jax.keys import from_seed

HERE = pathlib.Path(__file__).parents[1]


class State(NamedTuple):
    step: Any
    params: Any
    ema: Any
    opt_state: Any


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))


def make_state(seed: int = 0) -> State:
    rng = np.random.default_rng(seed)

    def tree(dtype):
        return {
            "conv_in": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 1, 8)), dtype), "bias": jnp.zeros(8, dtype)},
            "half": jnp.asarray(rng.normal(size=(5,)), jnp.bfloat16),
            "gain": jnp.asarray(rng.normal(), dtype),
        }

    params = tree(jnp.float32)
    moved = OPTIMIZER.update(tree(jnp.float32), OPTIMIZER.init(params), params)[1]
    return State(jnp.int32(17 + seed), params, tree(jnp.float32), moved)


STATE = make_state()
TARGET = jax.eval_shape(lambda: STATE)


def same_bits(a, b) -> bool:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    pairs = [(np.asarray(x), np.asarray(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return all(x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in pairs)


def run_python(code: str, *args: Any, env: dict[str, str] | None = None) -> str:
    """What a fresh process prints; its warnings are errors, and it says nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, args)],
        cwd=HERE, env=os.environ | {"JAX_PLATFORMS": "cpu"} | (env or {}), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def two(tmp_path) -> pathlib.Path:
    """A folder with the steps 1 and 2, of states 1 and 2."""
    with Checkpoints(tmp_path / "run") as saved:
        for step in (1, 2):
            saved.save(step, make_state(step), {"step": step})
    return tmp_path / "run"


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bit(path: pathlib.Path, where: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(bytes(data))


# --- round trip


def test_a_state_comes_back_bit_for_bit(tmp_path):
    with Checkpoints(tmp_path / "a" / "run") as saved:
        assert saved.steps() == [] and saved.latest() is None
        saved.save(3, STATE, {"name": "x", "tuple": (1, 2), 5: None})
        back = saved.restore(TARGET)
    assert back.step == 3 and type(back.tree) is State
    assert same_bits(back.tree, STATE)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(back.tree))
    prints = {name: checkpoint.fingerprint(part) for name, part in STATE._asdict().items()}
    assert back.meta == {"name": "x", "tuple": [1, 2], "5": None, "fingerprint": prints}


def test_a_dict_of_parts_works_too_and_parts_may_be_empty(tmp_path):
    state = {"params": {"w": np.arange(3.0)}, "opt_state": optax.sgd(0.1).init({}), "count": 7}
    with Checkpoints(tmp_path) as saved:
        saved.save(0, state, {})
        back = saved.restore(state).tree
    assert same_bits(back, state) and back["count"].dtype == np.int64


def test_steps_are_plain_folders(two):
    assert {p.name for p in two.iterdir() if p.is_dir()} == {"1", "2"}


def test_a_relative_folder_is_one_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints("run") as saved:
        saved.save(1, STATE, {})
        monkeypatch.chdir("/")
        assert saved.latest() == 1
    assert (tmp_path / "run" / "1").is_dir()


def test_a_folder_may_have_any_name(tmp_path, monkeypatch):
    """Of a pattern, of another system, of another machine: what has been saved elsewhere is read there, too."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    state = {"x": np.arange(3.0)}
    with Checkpoints(tmp_path / "plain") as saved:
        saved.save(1, state, {})
    for name in ("lr[1e-4]", "a\\b", "gs:", "*?"):
        folder = tmp_path / name / "checkpoints"
        shutil.copytree(tmp_path / "plain", folder)
        with Checkpoints(folder, keep=2) as saved:
            for step in (2, 3):
                saved.save(step, {"x": state["x"] + step}, {})
        with Checkpoints(folder, read_only=True) as saved:
            assert saved.steps() == [2, 3] and saved.restore(state).tree["x"].tolist() == [3, 4, 5]
        with Checkpoints(tmp_path / name / "new") as saved:
            saved.save(1, state, {})
            assert saved.restore(state).step == 1
    assert not list((tmp_path / "temporary").iterdir())


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.device_put({"w": jnp.arange(2.0**20)}, everywhere)
    before = {shard.data.unsafe_buffer_pointer() for shard in state["w"].addressable_shards}
    with Checkpoints(tmp_path) as saved:
        saved.save(1, state, {})
        state = jax.jit(lambda s: {"w": -s["w"]}, donate_argnums=0, out_shardings=everywhere)(state)
        after = {shard.data.unsafe_buffer_pointer() for shard in state["w"].addressable_shards}
        assert after == before, "a view of the old state kept it from being donated"
        assert np.array_equal(saved.restore(state).tree["w"], np.arange(2.0**20, dtype=np.float32))


def test_what_is_saved_is_a_copy():
    """Whether or not a view, which this machine may allow, would keep an array from being donated."""
    host = np.arange(4.0)
    for array in (host, jnp.asarray(host)):
        found = records.to_host({"w": array}, "params")["w"]
        assert found.flags.owndata and not np.shares_memory(found, np.asarray(array))


def test_a_restored_state_survives_donation(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with Checkpoints(tmp_path) as saved:
        saved.save(1, {"w": np.arange(4096.0, dtype=np.float32)}, {})
        tree = saved.restore({"w": np.zeros(4096, np.float32)}).tree
    add = jax.jit(lambda s: {"w": s["w"] + 1}, donate_argnums=0, out_shardings=everywhere)
    state = add(add(jax.device_put(tree, everywhere)))
    for shard in state["w"].addressable_shards:
        assert np.array_equal(shard.data, np.arange(4096.0) + 2)


def test_eight_devices_write_and_one_reads(tmp_path):
    assert len(jax.devices()) == 8
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    replicated = jax.device_put(STATE.params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    split = jax.device_put(jnp.arange(16.0), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch")))
    state = {"params": replicated, "split": split}
    with Checkpoints(tmp_path) as saved:
        saved.save(1, state, {})
    code = """
import sys, jax, numpy as np
from ddpm_jax import checkpoint
target = {"conv_in": {"kernel": np.zeros((3, 3, 1, 8), np.float32), "bias": np.zeros(8, np.float32)},
          "half": np.zeros(5, jax.numpy.bfloat16), "gain": np.float32(0)}
with checkpoint.Checkpoints(sys.argv[1], read_only=True) as saved:
    tree = saved.restore({"params": target, "split": np.zeros(16, np.float32)}).tree
print(jax.device_count(), checkpoint.fingerprint(tree))
"""
    out = run_python(code, tmp_path, env={"XLA_FLAGS": ""})
    assert out.split() == ["1", checkpoint.fingerprint(state)]


def test_two_processes_write_and_one_reads(tmp_path):
    """The first reads back what it has saved; where one cannot read the newest step, both take the one before."""
    code = """
import sys, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[3]))
from ddpm_jax import checkpoint
host = {"params": {"w": np.arange(6, dtype=np.float32)}, "step": np.int32(4)}
here = jax.device_put(host["params"], NamedSharding(Mesh(np.array(jax.local_devices()), "b"), PartitionSpec()))
everywhere = jax.device_put(host["step"], NamedSharding(Mesh(np.array(jax.devices()), "b"), PartitionSpec()))

def read_part(self, step, *rest):
    if jax.process_index() == 1 and step != 2:
        raise self._unreadable_error(step, "its part 'params': Input/output error")
    return read(self, step, *rest)

read, checkpoint.Checkpoints._read_part = checkpoint.Checkpoints._read_part, read_part
with checkpoint.Checkpoints(sys.argv[1]) as saved:
    for step in (1, 2, 3):
        saved.save(step, {"params": here, "step": everywhere}, {})
with checkpoint.Checkpoints(sys.argv[1]) as saved:
    print(saved.restore(host).step, file=sys.stderr)
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    commands = [[sys.executable, "-c", code, str(tmp_path / "run"), str(port), str(i)] for i in (0, 1)]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    quiet = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    both = [subprocess.Popen(command, cwd=HERE, env=env, text=True, **quiet) for command in commands]
    reasons = "another process says why", "its part 'params': Input/output error"
    for process, reason in zip(both, reasons, strict=True):
        _, err = process.communicate(timeout=100)
        assert process.returncode == 0, err[-2000:]
        assert (
            err.endswith("2\n")
            and f"cannot be read: {reason}; step 2 is taken instead (renamed to 3.unreadable)" in err
        ), err[-2000:]
    assert (tmp_path / "run" / "3.unreadable").is_dir()
    with Checkpoints(tmp_path / "run", read_only=True) as saved:
        assert saved.steps() == [1, 2]
        back = saved.restore({"params": {"w": np.zeros(6, np.float32)}, "step": np.int32(0)}).tree
    assert back["step"] == 4 and np.array_equal(back["params"]["w"], np.arange(6))


def test_fingerprints_see_every_bit_and_nothing_else():
    tree = {"a": np.zeros(3, np.float32), "b": {"c": np.int32(1)}}
    found = checkpoint.fingerprint(tree)
    assert found.startswith("sha256:") and len(found) == 7 + 64
    assert found == checkpoint.fingerprint({"b": {"c": jnp.int32(1)}, "a": jnp.zeros(3)})
    minus = np.array([0, 0, -0.0], np.float32)
    others = [
        {**tree, "a": minus}, {**tree, "a": np.zeros((3, 1), np.float32)}, {**tree, "a": np.zeros(3, np.int32)},
        {"A": tree["a"], "b": tree["b"]}, {**tree, "b": {"c": np.int32(2)}},
    ]  # fmt: skip
    assert len({found, *map(checkpoint.fingerprint, others)}) == 6


def test_importing_does_not_import_orbax():
    out = run_python("import sys, ddpm_jax.checkpoint; print([m for m in sys.modules if m.startswith('orbax')])")
    assert out == "[]\n"


# --- what is kept


def test_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as saved:
        for step in range(1, 12):
            saved.save(step, {"x": np.full(3, step)}, {})
    with Checkpoints(tmp_path, read_only=True) as saved:
        assert saved.steps() == [10, 11]
        assert [saved.restore({"x": np.zeros(3, int)}, step=s).tree["x"][0] for s in saved.steps()] == [10, 11]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "11"]


def test_keeping_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpoints(tmp_path, keep=0)


# --- killed, stale, shared


def test_a_killed_save_leaves_the_one_before(tmp_path):
    code = """
import sys, numpy as np
from ddpm_jax.checkpoint import Checkpoints
with Checkpoints(sys.argv[1]) as saved:
    state = {"x": np.random.default_rng(0).integers(0, 2**62, 12_000_000)}
    saved.save(1, {"x": state["x"] + 1}, {})
    saved.wait()
    saved.save(2, state, {})
"""
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=HERE, env=os.environ)
    while not any(folder.glob("2.*/x*/*")):
        assert process.poll() is None and not (folder / "2").exists()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [p.name for p in folder.iterdir() if p.name != "1"]
    assert left and "2" not in left

    target = {"x": jax.ShapeDtypeStruct((12_000_000,), np.int64)}
    with Checkpoints(folder, read_only=True) as saved:
        assert saved.steps() == [1]
    assert [p.name for p in folder.iterdir() if p.name != "1"] == left
    with Checkpoints(folder) as saved:
        back = saved.restore(target)
        want = np.random.default_rng(0).integers(0, 2**62, 12_000_000) + 1
        assert back.step == 1 and np.array_equal(back.tree["x"], want)
        saved.save(2, {"x": want[:5]}, {})
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2"]


def test_a_reader_leaves_a_save_under_way_alone_and_a_trainer_cleans_up(two):
    stale = two / "9.orbax-checkpoint-tmp" / "params.orbax-checkpoint-tmp"
    stale.mkdir(parents=True)
    (stale / "data").write_text("half")
    with Checkpoints(two, read_only=True) as saved:
        assert saved.restore(TARGET).step == 2
    assert (stale / "data").exists()
    with Checkpoints(two) as saved:
        saved.save(3, STATE, {})
    assert not stale.parent.exists()


def test_a_reader_sees_what_is_written_meanwhile(two):
    with Checkpoints(two, read_only=True) as reader, Checkpoints(two) as writer:
        writer.save(3, STATE, {})
        writer.wait()
        assert reader.latest() == 3 and same_bits(reader.restore(TARGET).tree, STATE)


def test_a_step_removed_while_it_is_read_gives_way_to_the_newest(two, monkeypatch):
    """A trainer that keeps one step saves the next while a reader is at it."""
    record, last = Checkpoints._read_record, 4
    with Checkpoints(two, keep=1) as writer, Checkpoints(two, read_only=True) as reader:

        def removed_meanwhile(self, step):
            if self is reader and (newest := writer.latest()) < last:
                writer.save(newest + 1, STATE, {})
                writer.wait()
            return record(self, step)

        monkeypatch.setattr(Checkpoints, "_read_record", removed_meanwhile)
        assert reader.restore(TARGET).step == 4
        last = 5
        with pytest.raises(FileNotFoundError, match=r"checkpoint 4 .* was removed while it was read; without a step"):
            reader.meta(4)
        last = 100
        with pytest.raises(FileNotFoundError, match="was removed 20 times while it was read"):
            reader.meta()


def test_a_reader_lists_steps_that_come_and_go(two):
    """As a fast trainer makes and removes them: between seeing a step and looking at it, it may be gone."""
    stop = threading.Event()

    def churn():
        for step in itertools.count(3):
            if stop.is_set():
                return
            shutil.copytree(two / "2", two / "copy")
            (two / "copy").rename(two / str(step))
            if step > 3:
                shutil.rmtree(two / str(step - 1))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        churning = pool.submit(churn)
        try:
            with Checkpoints(two, read_only=True) as reader:
                for _ in range(200):
                    assert {1, 2} <= set(reader.steps())
            for _ in range(20):
                Checkpoints(two, read_only=True).close()
        finally:
            stop.set()
        churning.result()


def test_a_reader_cannot_save(two):
    with Checkpoints(two, read_only=True) as saved, pytest.raises(ValueError, match="is open for reading only"):
        saved.save(5, STATE, {})


def test_a_reader_needs_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is no folder of checkpoints {tmp_path}/none"):
        Checkpoints(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no checkpoint$"):
        Checkpoints(tmp_path, read_only=True)
    with Checkpoints(tmp_path) as saved, pytest.raises(FileNotFoundError, match=r"holds no checkpoint$"):
        saved.restore(TARGET)


@pytest.mark.parametrize("step", [1, 2])
def test_an_old_step_is_refused(two, step):
    with Checkpoints(two) as saved, pytest.raises(ValueError, match=f"cannot save step {step}: .* holds step 2, and"):
        saved.save(step, STATE, {})


def test_a_negative_step_is_refused(tmp_path):
    with Checkpoints(tmp_path) as saved, pytest.raises(ValueError, match="a step must not be negative, got -1"):
        saved.save(-1, STATE, {})


def test_a_failing_save_is_raised_and_not_lost(tmp_path):
    folder = tmp_path / "run"

    def fail():
        with Checkpoints(folder) as saved:
            saved.save(1, STATE, {})
            saved.wait()
            folder.rename(tmp_path / "away")
            folder.write_text("in the way")
            saved.save(2, STATE, {})

    with pytest.raises(OSError, match=f"saving to {folder} failed: "):
        fail()


def test_a_full_disk_is_an_error_and_the_step_before_stays(tmp_path):
    code = """
import resource, sys, numpy as np
from ddpm_jax.checkpoint import Checkpoints
try:
    with Checkpoints(sys.argv[1]) as saved:
        saved.save(1, {"x": np.ones(3)}, {})
        saved.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        saved.save(2, {"x": np.random.default_rng(0).random(1 << 20)}, {})
except OSError as error:
    print(str(error)[:60])
with Checkpoints(sys.argv[1], read_only=True) as saved:
    print(saved.steps())
"""
    out = run_python(code, tmp_path / "r").splitlines()
    assert out[0].startswith(f"saving to {tmp_path / 'r'} failed: "[:60]) and out[1] == "[1]"


def test_what_was_saved_first_is_read_back_once(tmp_path):
    with Checkpoints(tmp_path / "good") as saved:
        saved.save(1, STATE, {})
        saved.wait()
        flip_bit(largest_file(tmp_path / "good" / "1" / "ema"))
        saved.save(2, STATE, {})  # the first was read, when it was there
    with pytest.raises(
        OSError, match=r"cannot be read back: checkpoint 1 .* its part 'ema': .*\(renamed to 1.unreadable\)"
    ):
        with Checkpoints(tmp_path / "bad") as saved:
            saved.save(1, STATE, {})
            saved._manager.wait_until_finished()
            flip_bit(largest_file(tmp_path / "bad" / "1" / "ema"))
            saved.save(2, STATE, {})
    assert [path.name for path in (tmp_path / "bad").iterdir()] == ["1.unreadable"]


def test_an_error_in_the_body_is_not_hidden(tmp_path):
    def fail():
        with Checkpoints(tmp_path) as saved:
            saved.save(1, STATE, {})
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert (tmp_path / "1").is_dir()


# --- damage


@pytest.mark.parametrize("damage", ["flip", "cut", "no record", "no part", "a bit of the record"])
def test_a_damaged_newest_step_gives_way_to_the_one_before(two, damage):
    if damage == "flip":
        flip_bit(largest_file(two / "2" / "opt_state"))
    elif damage == "cut":
        file = largest_file(two / "2" / "opt_state")
        file.write_bytes(file.read_bytes()[:-20])
    elif damage == "no record":
        (two / "2" / "meta" / "metadata").unlink()
    elif damage == "no part":
        (two / "2" / "opt_state").rename(two / "elsewhere")
    else:
        flip_bit(two / "2" / "meta" / "metadata", 0.3)
    about = "its record meta" if "record" in damage else "its part 'opt_state'"
    words = f"checkpoint 2 in {two} cannot be read: {about}.*; step 1 is taken instead"
    with Checkpoints(two, read_only=True) as saved:
        with pytest.warns(CheckpointWarning, match=words):
            back = saved.restore(TARGET)
        assert back.step == 1 and same_bits(back.tree, make_state(1))
        with pytest.raises(CheckpointError, match=f"checkpoint 2 in {two} cannot be read: {about}"):
            saved.restore(TARGET, step=2)
        if "record" not in damage:
            assert saved.meta()["step"] == 2
            assert same_bits(saved.restore_part("ema", TARGET.ema).tree, make_state(2).ema)
    assert (two / "2").is_dir()


def test_a_step_copied_over_another_is_not_taken_for_it(two):
    shutil.rmtree(two / "2")
    shutil.copytree(two / "1", two / "2")
    words = f"checkpoint 2 in {two} cannot be read: its record meta is that of step 1"
    with Checkpoints(two) as saved:
        with pytest.warns(CheckpointWarning, match=rf"{words}; step 1 is taken instead \(renamed to 2.unreadable\)"):
            assert saved.restore(TARGET).step == 1
        with pytest.raises(ValueError, match="cannot save step 2 with the metadata of step 1"):
            saved.save(2, STATE, {"step": 1})


def test_a_flipped_value_that_orbax_does_not_see_is_seen(two):
    """The numbers themselves, exchanged for others that read well: only the fingerprint can tell."""
    import orbax.checkpoint as ocp

    part = two / "2" / "ema"
    part.rename(two / "old")
    with ocp.StandardCheckpointer() as writer:
        writer.save(part, make_state(3).ema)
    with (
        Checkpoints(two, read_only=True) as saved,
        pytest.raises(CheckpointError, match="its part 'ema' is not what was written: the fingerprint differs"),
    ):
        saved.restore_part("ema", TARGET.ema, step=2)


def test_the_next_api_of_orbax_reads_every_part(two):
    """orbax-checkpoint 1 is not out; its API is in the versions before it, as experimental."""
    names = ("orbax.checkpoint.v1", "orbax.checkpoint.experimental.v1")
    ocp = importlib.import_module(next(name for name in names if importlib.util.find_spec(name)))
    back, state = ocp.load_checkpointables(two / "2"), make_state(2)._asdict()
    assert set(back) == {*state, "meta"} and back["meta"]["meta"]["step"] == 2
    for name, part in state.items():
        expected, found = jax.tree.leaves(part), jax.tree.leaves(back[name])
        assert len(found) == len(expected) and all(map(same_bits, found, expected)), name


def test_a_trainer_goes_on_past_a_damaged_step(two):
    flip_bit(largest_file(two / "2" / "params"))
    with Checkpoints(two) as saved:
        with pytest.warns(CheckpointWarning, match=r"step 1 is taken instead \(renamed to 2.unreadable\)"):
            assert saved.restore(TARGET).step == 1
        saved.save(2, make_state(2), {})
        assert saved.steps() == [1, 2] and same_bits(saved.restore(TARGET).tree, make_state(2))
    assert (two / "2.unreadable" / "params").is_dir()


def test_nothing_readable_names_every_step(two):
    for step in ("1", "2"):
        flip_bit(two / step / "meta" / "metadata", 0.3)
    with Checkpoints(two) as saved:
        with pytest.raises(CheckpointError, match=r"checkpoint 2 in .* cannot be .*; checkpoint 1 in .* cannot be"):
            saved.restore(TARGET)
        with pytest.raises(CheckpointError, match=r"checkpoint 2 in .* cannot be read: its record meta"):
            saved.meta()
    assert (two / "2").is_dir() and (two / "1").is_dir()


def test_a_part_is_read_alone(two):
    for name in ("params", "opt_state", "step"):
        for file in [p for p in (two / "2" / name).rglob("*") if p.is_file()]:
            file.unlink()
    with Checkpoints(two, read_only=True) as saved, warnings.catch_warnings():
        warnings.simplefilter("error")
        back = saved.restore_part("ema", TARGET.ema)
    assert back.step == 2 and same_bits(back.tree, make_state(2).ema)
    assert back.meta["fingerprint"]["ema"] == checkpoint.fingerprint(make_state(2).ema)


def test_a_step_that_is_not_there(two):
    with Checkpoints(two, read_only=True) as saved:
        for read in (lambda: saved.restore(TARGET, step=7), lambda: saved.meta(7)):
            with pytest.raises(FileNotFoundError, match=f"{two} holds no checkpoint 7; it holds 1, 2"):
                read()


# --- another configuration


def test_a_mismatch_names_the_paths_and_older_steps_are_not_tried(two):
    wide = jax.eval_shape(
        lambda: {**STATE.params, "conv_in": {"kernel": jnp.zeros((3, 3, 1, 64)), "scale": jnp.ones(2)}}
    )
    with Checkpoints(two) as saved, pytest.raises(ValueError) as caught:
        saved.restore(TARGET._replace(params=wide))
    assert str(caught.value) == (
        "checkpoint 2 does not fit the configuration. "
        "params/conv_in/kernel: the checkpoint has (3, 3, 1, 8) float32, "
        "the configuration wants (3, 3, 1, 64) float32; "
        "params/conv_in/scale: the checkpoint has nothing, the configuration wants (2,) float32; "
        "params/conv_in/bias: the checkpoint has (8,) float32, the configuration wants nothing"
    )
    assert not isinstance(caught.value, CheckpointError)


def test_dtype_and_missing_parts_are_mismatches_and_the_list_is_short(two):
    half = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, np.float16), TARGET)
    with Checkpoints(two, read_only=True) as saved:
        with pytest.raises(ValueError, match=r"\(\) int32, the configuration wants \(\) float16; .*; and 13 more$"):
            saved.restore(half)
        with pytest.raises(ValueError, match=r"ema/gain: the checkpoint has .* float32, .* wants .* float16; ema/half"):
            saved.restore_part("ema", {**TARGET.ema, "gain": half.ema["gain"], "half": half.ema["half"]})
        with pytest.raises(ValueError, match="checkpoint 2 has no part 'emma'; it has step, params, ema, opt_state"):
            saved.restore_part("emma", TARGET.ema)
        with pytest.raises(ValueError, match=r"step: the checkpoint has \(\) int32, the configuration wants nothing"):
            saved.restore({name: part for name, part in TARGET._asdict().items() if name != "step"})


# --- what a state may hold


@pytest.mark.parametrize(
    "state, words",
    [
        ({"params": {"w": np.ones(2), "key": from_seed(0)}}, "params/key is a PRNG key: keep the seed instead"),
        ({"params": {"w": None}}, "params/w must be an array of numbers, got NoneType"),
        ({"params": {"w": "text"}}, "params/w must be an array of numbers, got str"),
        ({"params": {"w": np.array(["text"])}}, "params/w must be an array of numbers, got ndarray"),
        ({"params": {"w": np.ones((0, 3))}}, r"params/w has no elements, shape \(0, 3\)"),
        ([np.ones(3)], "a state must be a NamedTuple or a dict of named parts, got list"),
        ({"meta": np.ones(3)}, "must have the name of a variable other than 'meta', got 'meta'"),
        ({"a/b": np.ones(3)}, "must have the name of a variable other than 'meta', got 'a/b'"),
    ],
)
def test_what_a_state_cannot_hold(tmp_path, state, words):
    with Checkpoints(tmp_path) as saved:
        with pytest.raises(ValueError, match=words):
            saved.save(1, state, {})
        saved.save(1, STATE, {})
        with pytest.raises(ValueError, match=words):
            saved.restore(state)


@pytest.mark.parametrize(
    "meta, words",
    [
        ({"x": np.float32(1)}, "meta must have JSON values: Object of type float32 is not JSON"),
        ({"x": float("nan")}, "meta must have JSON values: Out of range float"),
        ({"fingerprint": 1}, "meta must not have the name 'fingerprint'"),
    ],
)
def test_what_meta_cannot_hold(tmp_path, meta, words):
    with Checkpoints(tmp_path) as saved, pytest.raises(ValueError, match=words):
        saved.save(1, STATE, meta)


def test_a_program_is_not_told_orbax_s_troubles(two):
    """Nothing on stderr for save, restore, a killed save's leftovers, and deletion."""
    (two / "9.orbax-checkpoint-tmp").mkdir()
    code = """
import sys, json, numpy as np
from ddpm_jax.checkpoint import Checkpoints
with Checkpoints(sys.argv[1], keep=1) as saved:
    for step in (9, 10, 11):
        saved.save(step, {"x": np.arange(9)}, {"a": 1})
with Checkpoints(sys.argv[1], read_only=True) as saved:
    print(json.dumps([saved.steps(), saved.restore({"x": np.zeros(9, int)}).tree["x"].tolist()]))
import sys; sys.stdout.flush(); print("end", file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(two)],
        cwd=HERE, env=os.environ, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stderr == "end\n"
    assert json.loads(done.stdout) == [[11], list(range(9))]
