"""What a program asks of its process, in processes of their own: none of it can be undone."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import types

import jax
import numpy as np
import pytest

from ddpm_jax import process
from ddpm_jax.process import compilation_cache, distributed, tpu

HERE = pathlib.Path(__file__).parents[2]


def run_python(code: str, *, cores: int | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    pretend = "" if cores is None else f"import os; os.sched_getaffinity = lambda pid: set(range({cores}))\n"
    code = pretend + "import json, os, sys\nfrom ddpm_jax import process\n" + code
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=HERE,
        env=inherited | env,
        capture_output=True,
        text=True,
        timeout=100,
    )


def printed_by(code: str, *, cores: int | None = None, **env: str):
    done = run_python(code, cores=cores, **env)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


SAY = "\nimport jax; print(json.dumps(jax.device_count()))"


def test_importing_brings_nothing_but_the_standard_library():
    """For programs import it before they know whether JAX is needed."""
    code = "import sys; before = set(sys.modules); import ddpm_jax.process; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    brought = {name.split(".")[0] for name in done.stdout.split()}
    assert "ddpm_jax" in brought and brought - {"ddpm_jax"} <= sys.stdlib_module_names


@pytest.mark.parametrize("cores, devices", [(1, 1), (2, 2), (6, 4), (8, 8), (100, 16)])
def test_a_cpu_is_divided_into_a_power_of_two(cores, devices):
    assert printed_by("process.initialize()" + SAY, cores=cores, JAX_PLATFORMS="cpu") == devices


def test_what_is_asked_for_or_has_been_said_before_counts():
    assert printed_by("process.initialize(devices=3)" + SAY, cores=2, JAX_PLATFORMS="cpu") == 3
    assert printed_by("process.initialize(devices=1)" + SAY, cores=2, JAX_PLATFORMS="cpu") == 1
    flag = "--xla_force_host_platform_device_count=5"
    assert printed_by("process.initialize()" + SAY, cores=2, JAX_PLATFORMS="cpu", XLA_FLAGS=flag) == 5
    before = "import jax; jax.config.update('jax_num_cpu_devices', 5)\n"
    assert (
        printed_by(before + "process.initialize(); process.initialize(devices=5)" + SAY, cores=2, JAX_PLATFORMS="cpu")
        == 5
    )


@pytest.mark.parametrize(
    "code, env, words",
    [
        ("process.initialize(devices=0)", {}, "ValueError: devices must be at least 1, got 0"),
        (
            "process.initialize(devices=2)", {"XLA_FLAGS": "--xla_force_host_platform_device_count=5"},
            "ValueError: devices = 2, but 5 are set (XLA_FLAGS or jax_num_cpu_devices)",
        ),
        (
            "process.initialize(devices=2)", {"JAX_PLATFORMS": "tpu"},
            "ValueError: devices = 2 divides a CPU, but JAX will run on tpu: leave it out",
        ),
        (
            "import jax; jax.devices(); process.initialize(); process.initialize(devices=1); "
            "process.initialize(devices=2)",
            {},
            "RuntimeError: JAX has already started: call initialize(devices=2) before its first use",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(code, env, words):
    done = run_python(code, cores=2, **({"JAX_PLATFORMS": "cpu"} | env))
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == words


@pytest.mark.parametrize("platform", ["cuda", "gpu"])
def test_an_accelerator_that_is_not_there_is_said(platform):
    done = run_python("process.initialize()", JAX_PLATFORMS=platform)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ValueError: JAX cannot run on {platform} here (")


def test_a_user_may_have_no_home():
    code = """
import os, pwd
def unknown(uid): raise KeyError(uid)
pwd.getpwuid = unknown
del os.environ["HOME"]
process.initialize()"""
    done = run_python(code, JAX_PLATFORMS="cpu", JAX_COMPILATION_CACHE_DIR="", XDG_CACHE_HOME="")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "compiled programs are not kept for the next time: Could not determine home directory.\n"


def test_the_platform_is_known_without_starting_jax(monkeypatch):
    code = "import jax; before = process.platform()\nprint(json.dumps([before, jax.default_backend()]))"
    assert printed_by(code, JAX_PLATFORMS="cpu") == ["cpu", "cpu"]
    monkeypatch.delitem(sys.modules, "jax")
    for value in ("cuda,cpu", "tpu"):
        monkeypatch.setenv("JAX_PLATFORMS", value)
        assert process.platform() == value.split(",")[0]


def test_a_plugin_counts_only_with_its_device(monkeypatch):
    class Point:
        name = "cuda"

    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(process.importlib.metadata, "entry_points", lambda group: [Point])
    monkeypatch.setattr(process.sys, "platform", "linux")
    monkeypatch.setattr(process, "_device_files", lambda: [])
    assert process.platform() == "cpu"
    monkeypatch.setattr(process, "_device_files", lambda: ["/dev/nvidia0"])
    assert process.platform() == "cuda"
    monkeypatch.setattr(process.importlib.metadata, "entry_points", lambda group: [])
    monkeypatch.setattr(process.importlib.util, "find_spec", lambda name: None)
    assert process.platform() == "cpu"


PLAIN, NEW = (f"--{flag}=false" for flag in tpu.DISABLED_FLAGS)


@pytest.mark.parametrize(
    "has, existing, expected_flags",
    [
        (tpu.DISABLED_FLAGS, None, f"{PLAIN} {NEW}"),
        (tpu.DISABLED_FLAGS, "--xla_other=1", f"--xla_other=1 {PLAIN} {NEW}"),
        (
            tpu.DISABLED_FLAGS,
            f"--{tpu.DISABLED_FLAGS[0]}=true --xla_other=1",
            f"--{tpu.DISABLED_FLAGS[0]}=true --xla_other=1 {NEW}",
        ),
        (tpu.DISABLED_FLAGS[1:], None, NEW),  # part of whose name is the other's: that alone does not make it known
        ((), None, None),
        ((), "--xla_other=1", "--xla_other=1"),
    ],
)
def test_libtpu_is_told_only_what_it_knows_and_nobody_has_said(monkeypatch, tmp_path, has, existing, expected_flags):
    library = tmp_path / "libtpu.so"
    library.write_bytes(b"\x7fELF" + b"".join(b"\0" + flag.encode() + b"\0" for flag in has))
    monkeypatch.setenv("TPU_LIBRARY_PATH", str(library))
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    if existing is not None:
        monkeypatch.setenv("LIBTPU_INIT_ARGS", existing)
    tpu.set_libtpu_flags()
    assert os.environ.get("LIBTPU_INIT_ARGS") == expected_flags
    tpu.set_libtpu_flags()
    assert os.environ.get("LIBTPU_INIT_ARGS") == expected_flags


def test_without_libtpu_nothing_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("TPU_LIBRARY_PATH", str(tmp_path / "none.so"))
    monkeypatch.setattr(tpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    tpu.set_libtpu_flags()
    assert "LIBTPU_INIT_ARGS" not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_stays_with_the_process():
    """Freed large blocks are handed out again without a page fault; before, every one of them faults in anew."""
    code = """
import resource
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        block = bytearray(64 << 20)  # above every threshold of malloc; zeroed, so every page is touched
        block[::4096] = bytes(len(block) // 4096)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults()
kept = process.tune_malloc()
faults()
print(json.dumps([kept, first, faults()]))"""
    tuned, before, after = printed_by(code)
    if not tuned:
        pytest.skip("not glibc")
    num_pages = 20 * (64 << 20) // 4096
    assert before > num_pages / 600 and after < before / 10  # with huge pages there are fewer faults, of 2 MiB


COMPILES = """
import jax; jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.jit(lambda x: x * 2)(1.0).block_until_ready(); print(json.dumps(jax.config.jax_compilation_cache_dir))"""


def test_compiled_programs_are_kept_in_the_folder_that_is_named(tmp_path):
    code = f"process.initialize(compilation_cache_dir={str(tmp_path / 'cache')!r})" + COMPILES
    printed_by(code, JAX_PLATFORMS="cpu", JAX_COMPILATION_CACHE_DIR="")
    assert any((tmp_path / "cache").iterdir())


def test_compiled_programs_are_kept_in_the_users_cache_and_once_for_each_kind_of_processor(tmp_path):
    settings = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path)}
    (folder,) = {printed_by("process.initialize()" + COMPILES, **settings) for _ in range(2)}
    assert folder == str(compiled_folder(tmp_path)) and any(pathlib.Path(folder).iterdir())
    before = set(pathlib.Path(folder).iterdir())
    assert not printed_by("process.initialize(compilation_cache_dir=False)" + COMPILES, **settings)
    own_folder = settings | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine")}
    assert printed_by("process.initialize()" + COMPILES, **own_folder) == str(tmp_path / "mine")
    assert set(pathlib.Path(folder).iterdir()) == before and any((tmp_path / "mine").iterdir())


def compiled_folder(caches):
    (folder,) = (caches / "ddpm_jax" / "compiled").iterdir()
    return folder


def test_where_nothing_can_be_kept_that_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    settings = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path / "file")}
    done = run_python("process.initialize()" + SAY, **settings)
    assert done.returncode == 0 and "compiled programs are not kept for the next time" in done.stderr


@pytest.mark.parametrize("mode, uid, message", [(0o777, 0, "others can write"), (0o775, 0, "others can write"),
                                             (0o700, 1, "belongs to another user")])  # fmt: skip
def test_a_folder_that_others_can_write_keeps_no_compiled_programs(tmp_path, monkeypatch, capsys, mode, uid, message):
    folder, uses = tmp_path / "cache", []
    folder.mkdir()
    folder.chmod(mode)
    owner = os.getuid() + uid
    monkeypatch.setattr(os, "getuid", lambda: owner)
    monkeypatch.setattr(jax, "config", types.SimpleNamespace(
        jax_compilation_cache_dir=None, update=lambda *setting: uses.append(setting)))  # fmt: skip
    compilation_cache.enable_compilation_cache(str(folder))
    assert message in capsys.readouterr().err and not uses
    owner -= uid
    folder.chmod(0o755)
    compilation_cache.enable_compilation_cache(str(folder))
    assert ("jax_compilation_cache_dir", str(folder)) in uses


def test_a_folder_for_compiled_programs_is_made_for_its_user_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "config", types.SimpleNamespace(jax_compilation_cache_dir=None, update=lambda *_: None))
    before = os.umask(0)
    try:
        compilation_cache.enable_compilation_cache(str(tmp_path / "cache"))
    finally:
        os.umask(before)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_of_too_many_compiled_programs_those_go_that_were_written_first(tmp_path):
    for i, name in enumerate(["b", "a", "d", "c"]):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (i, i))
    compilation_cache.prune(tmp_path, 40)
    assert len(list(tmp_path.iterdir())) == 4
    compilation_cache.prune(tmp_path, 25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "d"]


def test_a_compiled_program_that_another_process_deletes_first_is_no_error(tmp_path, monkeypatch):
    """Processes that start together share the folder, and all delete what is too much."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(bytes(10))
    monkeypatch.setattr(pathlib.Path, "is_file", lambda self: (tmp_path / "a").unlink(missing_ok=True) or True)
    compilation_cache.prune(tmp_path, 10)
    assert len(list(tmp_path.iterdir())) == 1


# --- several processes (what they do together: test_hosts.py)


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"coordinator": "a:1"}, "--coordinator, --processes and --process go together, got only --coordinator a:1"),
        ({"processes": 2, "process": 0}, "go together, got only --processes 2 --process 0"),
        ({"coordinator": "a", "processes": 2, "process": 0}, "--coordinator must be HOST:PORT, got 'a'"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "--process must be 0 to --processes - 1 = 1, got 2"),
        ({"heartbeat": 1}, "--heartbeat must be at least 5 seconds, got 1"),
    ],
)
def test_flags_that_do_not_say_who_is_where_are_refused(flags, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        distributed.check_options(process.DistributedOptions(**flags))


@pytest.mark.parametrize(
    "coordinator, address",
    [
        ("127.0.0.1:123", "127.0.0.1:123"),
        ("localhost:123", "127.0.0.1:123"),
        ("[::1]:123", "[::1]:123"),
        ("0.0.0.0:123", "0.0.0.0:123"),
        ("192.0.2.1:123", None),  # which is nobody's, RFC 5737
        ("some-host:123", None),
        (None, None),
    ],
)
def test_process_0_listens_where_it_is_told_to(coordinator, address):
    if address == "[::1]:123" and not pathlib.Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6")
    assert distributed.bind_address(coordinator) == address


def test_results_of_all_processes_come_in_the_order_of_the_processes(monkeypatch):
    monkeypatch.setattr(distributed, "_is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "_allgather", lambda mine: np.stack([mine, mine + 10, mine + 20]))
    np.testing.assert_array_equal(distributed.all_gather(np.array([[1], [2]])), [[1], [2], [11], [12], [21], [22]])


# --- the lock


HOLD = """
import pathlib, time
with process.FolderLock(pathlib.Path({folder!r})):
    print("held", flush=True)
    time.sleep(100)"""


def test_a_lock_says_whose_it_is_and_goes_with_its_process(tmp_path):
    code = "from ddpm_jax import process" + HOLD.format(folder=str(tmp_path))
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=HERE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    whose = f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()}, since "
    with pytest.raises(ValueError, match=re.escape(whose)), process.FolderLock(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    for _ in range(2):
        with process.FolderLock(tmp_path), pytest.raises(ValueError, match="only one process can write to it"):
            process.FolderLock(tmp_path).__enter__()


# --- outputs


PROGRAM = """
import sys
from ddpm_jax import process
def main(argv):
    for i in range(5000):
        print(f"9.9 ± 0.1 bits/dim {i}", flush=i < 2)
    print("done", file=sys.stderr)
    return 3
process.run_main(main)
"""
FULL = "standard output cannot be written (No space left on device): going on without it\n"


@pytest.mark.parametrize(
    "end, unbuffered, message",
    [
        ("| head -n 1", "", "9.9 ± 0.1 bits/dim 0\ndone\n"),
        ("> /dev/full", "", f"{FULL}done\n"),
        ("> /dev/full", "1", f"{FULL}done\n"),
        (">&-", "", "done\n"),
        ("2>&1 >&- | head -n 1", "", "done\n"),
    ],
)
def test_a_program_goes_on_where_its_words_cannot_be_written(end, unbuffered, message):
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered, "PYTHONIOENCODING": "utf-8"}
    line = ["bash", "-c", f'"$0" -c "$1" {end}; exit ${{PIPESTATUS[0]}}', sys.executable, PROGRAM]
    done = subprocess.run(line, cwd=HERE, env=env, capture_output=True, encoding="utf-8", timeout=100)
    assert (done.returncode, done.stdout + done.stderr) == (3, message)


def test_a_program_that_ctrl_c_stops_says_so_in_a_line():
    work = "print('begun') or os.kill(os.getpid(), signal.SIGINT)"
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # which a shell's background job ignores
    code = f"import os, signal; from ddpm_jax import process; {heard}; process.run_main(lambda _: {work})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "begun\n", "stopped by Ctrl-C\n")


def test_what_an_output_cannot_say_it_says_otherwise():
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=HERE, env=env, capture_output=True, text=True)
    assert done.returncode == 3 and done.stdout.endswith("9.9 \\xb1 0.1 bits/dim 4999\n")


def test_a_program_that_prints_nothing_says_that_it_runs():
    quiet, speaks = "time.sleep(1.6)", "[print(i, flush=True) or time.sleep(0.1) for i in range(16)]"
    for work, is_silent in ((quiet, True), (speaks, False)):
        code = "import time; from ddpm_jax.process import output; output._SILENCE_SECONDS = 0.4; "
        code += f"output.run_main(lambda _: bool({work}) and 0)"
        done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
        assert set(done.stderr.splitlines()) == ({"still running; nothing to show for 1 s"} if is_silent else set())


def test_what_cannot_be_written_is_named_where_the_error_names_nothing(tmp_path):
    """As numpy's own of a full disk, or the system's while a file is written."""
    for error in (OSError("65536 requested and 57216 written"), OSError(28, "No space left on device")):
        with pytest.raises(OSError, match=f"^{tmp_path} cannot be written: .*(57216|No space)"):
            with process.explain_write_errors(tmp_path):
                raise error
    for error in (FileNotFoundError("no file x: see y"), OSError(13, "Permission denied", "z")):
        with pytest.raises(OSError) as raised, process.explain_write_errors(tmp_path):
            raise error
        assert raised.value is error


def test_an_error_is_summed_up_in_a_line():
    assert process.first_line(RuntimeError("\nINTERNAL: x\nframe 1")) == "RuntimeError: INTERNAL: x"
    assert process.first_line(KeyError()) == "KeyError"
    assert process.first_line(ValueError("ab" * 200)) == f"ValueError: {'ab' * 150}"


# --- interrupts


def test_one_signal_asks_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        with process.Interrupt() as interrupt:
            assert not interrupt.requested
            os.kill(os.getpid(), number)
            assert interrupt.requested
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_ctrl_c_stops_at_once_and_a_second_sigterm_does_not():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), process.Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_under_nohup_a_closed_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with process.Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_the_main_thread_can_enter():
    messages = []

    def enter():
        try:
            process.Interrupt().__enter__()
        except RuntimeError as error:
            messages.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert messages == ["Interrupt handles signals: only the main thread can enter it"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_loop_ends_in_good_order(number, hangup):
    code = """
import time
from ddpm_jax.process import Interrupt
with Interrupt() as interrupt:
    print("ready", flush=True)
    while not interrupt.requested:
        time.sleep(0.01)
print("saved")
"""
    loop = subprocess.Popen(
        [sys.executable, "-c", code], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert loop.stdout is not None and loop.stdout.readline() == "ready\n"
    loop.send_signal(number)
    out, err = loop.communicate(timeout=30)
    assert (loop.returncode, out) == (0, "saved\n")
    assert err == "\nstopping in good order; Ctrl-C again stops at once\n"
