"""Settings of a program's process: devices, memory, signals, several processes, output, files.

Nothing here happens on import: a library must not decide how its user's process allocates memory or handles signals.
"""

import contextlib
import ctypes
import glob
import importlib.metadata
import importlib.util
import os
import pkgutil
import re
import signal
import sys
import threading

from ddpm_jax.process import compilation_cache, tpu
from ddpm_jax.process.atomic import atomic_file, atomic_folder, atomic_write_json, atomic_write_text
from ddpm_jax.process.distributed import (
    EXIT_OUT_OF_MEMORY,
    EXIT_PROCESS_LOST,
    EXIT_UNWRITABLE,
    DistributedOptions,
    abort_together,
    all_gather,
    any_process,
    broadcast,
    check_equal_across_processes,
    connect_processes,
    exit_process,
    is_main_process,
    local_shard,
)
from ddpm_jax.process.lock import FolderLock
from ddpm_jax.process.memory import explain_oom, sampling_oom_hints
from ddpm_jax.process.output import explain_write_errors, first_line, run_main
from ddpm_jax.process.parallel import map_over_devices, replicate, spread

__all__ = [
    "EXIT_OUT_OF_MEMORY", "EXIT_PROCESS_LOST", "EXIT_UNWRITABLE", "DistributedOptions", "FolderLock", "Interrupt",
    "abort_together", "all_gather", "any_process", "atomic_file", "atomic_folder", "atomic_write_json",
    "atomic_write_text", "broadcast", "check_equal_across_processes", "exit_process", "explain_oom",
    "explain_write_errors", "first_line", "initialize", "is_main_process", "local_shard", "map_over_devices",
    "num_cores", "platform", "replicate", "run_main", "sampling_oom_hints", "spread", "start_jax", "tune_malloc",
]  # fmt: skip

_MAX_CPU_DEVICES = 16  # each holds the whole train state


def initialize(
    *,
    devices: int | None = None,
    compilation_cache_dir: str | bool = True,
    distributed: DistributedOptions | None = None,
) -> None:
    """Prepares the process and starts JAX.

    On a CPU, one JAX device per core is faster than one device with all cores, and memory that is not returned to the
    kernel after every step is faster than memory that is.  So glibc keeps freed memory, and the CPU is divided into the
    largest power of two of devices that does not exceed the number of cores, at most 16.  XLA's pool has as many
    threads as there are cores, or devices if those are more.  A number of devices set by XLA_FLAGS or
    jax_num_cpu_devices stays.  On a TPU, `tpu.set_libtpu_flags` is called instead.

    Settings that would change random draws or precision (JAX_THREEFRY_PARTITIONABLE, JAX_ENABLE_X64) are set to JAX's
    defaults whatever the environment says, so runs continue and images come out the same everywhere.

    Args:
        devices: number of devices into which to divide the CPU; None for the number above.
        compilation_cache_dir: folder of the persistent compilation cache; True for one in the user's cache folder, see
            `compilation_cache.enable_compilation_cache`.
        distributed: connect to the other processes of these options or of a cluster; None for a single process.

    Raises:
        ValueError: if devices is below 1, not the number set before, or JAX will not run on a CPU; if the requested
            accelerator is missing; or as `connect_processes`.
        RuntimeError: if JAX has already started with another number of devices.
    """
    if devices is not None and devices < 1:
        raise ValueError(f"devices must be at least 1, got {devices}")
    backend = platform()
    if backend == "cpu":
        tune_malloc()
        _set_cpu_devices(devices)
    elif devices is not None:
        raise ValueError(f"devices = {devices} divides a CPU, but JAX will run on {backend}: leave it out")
    elif backend == "tpu":
        tpu.set_libtpu_flags()
    import jax

    jax.config.update("jax_threefry_partitionable", True)
    jax.config.update("jax_enable_x64", False)
    compilation_cache.enable_compilation_cache(compilation_cache_dir)
    if distributed is not None:
        connect_processes(distributed)
    start_jax()


def start_jax() -> None:
    """Starts JAX's backend.

    Raises:
        ValueError: if the requested accelerator is missing.
    """
    import jax

    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the second where there is no plugin for it
        why = str(error).partition(" (set JAX_PLATFORMS")[0].strip()[:200] or "JAX has no plugin for it"
        raise ValueError(
            f"JAX cannot run on {platform()} here ({why}): install its plugin, or set JAX_PLATFORMS=cpu"
        ) from error


def platform() -> str:
    """The platform JAX will run on, without starting it: "cpu", or the accelerator's name as far as it is known.

    JAX_PLATFORMS (or jax's own setting) decides.  Without it, JAX uses an accelerator if a plugin for one is installed;
    on Linux the device must be present, too, since a plugin without one falls back to the CPU.
    """
    jax = sys.modules.get("jax")
    named = (jax.config.jax_platforms if jax else None) or os.environ.get("JAX_PLATFORMS", "")
    if named:
        return named.split(",")[0]
    plugins = [point.name for point in importlib.metadata.entry_points(group="jax_plugins")]
    namespace = importlib.util.find_spec("jax_plugins")
    if namespace is not None:
        plugins += [module.name for module in pkgutil.iter_modules(namespace.submodule_search_locations)]
    if importlib.util.find_spec("libtpu") is not None:
        plugins.append("tpu")
    if not plugins or (sys.platform == "linux" and not _device_files()):
        return "cpu"
    return plugins[0]


def tune_malloc() -> bool:
    """Makes glibc keep freed memory instead of returning it to the kernel; False without glibc.

    XLA's large temporaries are otherwise returned after every step and paged in again, zeroed, in the next.  Each
    thread keeps its own arena: with one for all, the devices' threads wait for each other, the longer the more has been
    compiled in the process.
    """
    if sys.platform != "linux":
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  other C libraries have a mallopt that does nothing, or none
        mallopt = library.mallopt
    except (OSError, AttributeError):
        return False
    mmap_max, top_pad, trim_threshold = -4, -2, -1
    # free memory at an arena's end beyond the pad is returned, whatever the threshold
    settings = {mmap_max: 0, top_pad: 2**27, trim_threshold: 2**31 - 1}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])


class Interrupt:
    """Context manager in which `SIGNALS` only set `requested`, the stop flag of a loop.

    A second SIGINT raises KeyboardInterrupt.  A SIGHUP that is ignored, as under nohup, stays ignored.  Leaving
    restores the handlers.  Only the main thread can enter it.
    """

    SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
    )
    """Ctrl-C; the end of a job; a closed terminal; what Slurm is often set to send.  Windows has the first two."""

    def __init__(self) -> None:
        self.requested = False
        self._previous_handlers: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Interrupt handles signals: only the main thread can enter it")
        before = {number: signal.getsignal(number) for number in self.SIGNALS}
        heeded = [n for n, was in before.items() if was is not signal.SIG_IGN or n in (signal.SIGINT, signal.SIGTERM)]
        self._previous_handlers = {number: signal.signal(number, self._handle) for number in heeded}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # pyright: ignore[reportArgumentType]

    def _handle(self, number: int, frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        with contextlib.suppress(OSError):  # of a terminal that was closed
            # not print: the signal may have come in the middle of one
            os.write(2, b"\nstopping in good order; Ctrl-C again stops at once\n")


def num_cores() -> int:
    """The number of CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _set_cpu_devices(devices: int | None) -> None:
    import jax

    flag = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    configured = int(flag.group(1)) if flag else jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    if configured and configured > 0:
        if devices not in (None, configured):
            raise ValueError(f"devices = {devices}, but {configured} are set (XLA_FLAGS or jax_num_cpu_devices)")
        return
    number = devices or min(_MAX_CPU_DEVICES, 2 ** (num_cores().bit_length() - 1))
    try:
        jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError:
        if devices not in (None, jax.local_device_count("cpu")):
            raise RuntimeError(
                f"JAX has already started: call initialize(devices={devices}) before its first use"
            ) from None


def _device_files() -> list[str]:
    patterns = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")
    return [path for pattern in patterns for path in glob.glob(pattern)]
