"""Several processes that train or sample together: initialisation, collectives, shutdown.

In a single process, these functions wait for nothing and compile nothing.  With several processes, all must call the
same functions in the same order, as with any collective of JAX.
"""

import contextlib
import dataclasses
import hashlib
import ipaddress
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from ddpm_jax.process.output import first_line

EXIT_PROCESS_LOST, EXIT_UNWRITABLE, EXIT_OUT_OF_MEMORY = 5, 6, 7
"""Exit statuses of all programs."""

_CONNECT_TIMEOUT = 300  # seconds to wait for the others at the start
_SHUTDOWN_TIMEOUT = 7 * 24 * 3600  # at the end the first process may still be writing; a dead one is noticed earlier


@dataclasses.dataclass(frozen=True)
class DistributedOptions:
    coordinator: str | None = None
    """HOST:PORT of process 0: connects several processes without a cluster manager."""
    processes: Annotated[int | None, "[1, 2147483647]"] = None
    """Number of processes (with --coordinator); 1 without it: this process alone, whatever cluster it is in."""
    process: Annotated[int | None, "[0, 2147483647]"] = None
    """Index of this process, from 0 (with --coordinator)."""
    heartbeat: Annotated[int, "[5, 1000000]"] = 60
    """With several processes: seconds without an answer after which a process counts as lost; the others then end."""


def check_options(options: DistributedOptions) -> None:
    """Checks the flags of several processes: a ValueError names one that does not fit the others, or its range."""
    flags = {"--coordinator": options.coordinator, "--processes": options.processes, "--process": options.process}
    set_flags = {name: value for name, value in flags.items() if value is not None}
    if 0 < len(set_flags) < len(flags) and set_flags != {"--processes": 1}:
        got = " ".join(f"{name} {value}" for name, value in set_flags.items())
        raise ValueError(f"--coordinator, --processes and --process go together, got only {got}")
    if options.coordinator is not None:
        host, _, port = options.coordinator.rpartition(":")
        if not (host and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"--coordinator must be HOST:PORT, got {options.coordinator!r}")
    if options.processes is not None and options.process is not None and not 0 <= options.process < options.processes:
        raise ValueError(f"--process must be 0 to --processes - 1 = {options.processes - 1}, got {options.process}")
    if options.heartbeat < 5:
        raise ValueError(f"--heartbeat must be at least 5 seconds, got {options.heartbeat}")


def connect_processes(options: DistributedOptions) -> None:
    """Connects to the other processes, if flags or a cluster that JAX detects name any.

    From then on only the first process prints: standard output of the others is discarded.

    Raises:
        ValueError: see `check_options`; or if a launcher or a cluster was found, and the processes do not connect.
    """
    check_options(options)
    launched = launched_processes() if options.coordinator is None else options.processes
    if 1 in (launched, options.processes):
        return
    import jax

    # the preemption service would take SIGTERM away from Interrupt
    jax.config.update("jax_enable_preemption_service", False)
    # flags alone count: JAX would add Slurm's assignment of devices
    method = None if options.coordinator is None else "deactivate"
    try:
        jax.distributed.initialize(
            options.coordinator, options.processes, options.process,
            cluster_detection_method=method, heartbeat_timeout_seconds=options.heartbeat,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT, initialization_timeout=_CONNECT_TIMEOUT,
            coordinator_bind_address=bind_address(options.coordinator),
        )  # fmt: skip
    except Exception as error:  # detection asks servers, whose clients have errors of their own
        reason = first_line(error)
        if launched is None and type(error) is RuntimeError:  # JAX is in use: this process has been alone until now
            return
        if "coordinator_address" in reason:  # JAX's words for no cluster
            if launched is None:
                return
            reason = f"{launched or 'several'} were launched, but JAX detects no cluster"
        where = f"to {options.coordinator} in {_CONNECT_TIMEOUT} s" if options.coordinator else "(--processes 1: alone)"
        raise ValueError(f"the processes did not connect {where}: {reason}") from error
    counts = {len(jax.local_devices(i)) for i in range(jax.process_count())}
    if len(counts) > 1:
        raise ValueError(f"every process must have the same number of devices, got {sorted(counts)}")
    if not is_main_process():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def bind_address(coordinator: str | None) -> str | None:
    """The address where process 0 listens: that of `coordinator`, if it is one of this machine's.

    None is JAX's default, every address of the machine.  It is used for all names but localhost: many a machine
    resolves its own name to an address that no other can reach.
    """
    host, _, port = (coordinator or "").rpartition(":")
    address = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        with socket.socket(family) as probe:
            probe.bind((address, 0))
    except (ValueError, OSError):  # no address, or another machine's, as behind a NAT router
        return None
    return f"[{address}]:{port}" if family == socket.AF_INET6 else f"{address}:{port}"


def launched_processes() -> int | None:
    """The number of processes that a launcher's variables name; 0 if only JAX can read it, None without a launcher.

    JAX detects clusters, but does not let a single process alone: it would have one of its GPUs only (srun, mpirun), or
    wait for the other tasks of the Slurm job around it.  In Kubernetes, only the pods of an Indexed Job are several.
    """
    env = os.environ
    if tasks := env.get("OMPI_COMM_WORLD_SIZE") or env.get("SLURM_STEP_NUM_TASKS"):
        return int(tasks)
    if "TPU_PROCESS_ADDRESSES_PATH" in env:
        return 0
    if hosts := env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES"):
        return len(hosts.split(",")) * int(env.get("MEGASCALE_NUM_SLICES") or 1)
    if "KUBERNETES_SERVICE_HOST" in env:
        return 0 if "JOB_COMPLETION_INDEX" in env else 1
    return None


def is_main_process() -> bool:
    """True in the process that writes and prints."""
    import jax

    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """True if `flag` is true in any process; a collective."""
    import numpy as np

    return bool(np.any(_allgather(np.array(flag)))) if _is_distributed() else flag


def local_shard(arrays: Any) -> Any:
    """This process's rows, [local devices, ...], of rows for all devices, [devices, ...]."""
    import jax

    size, index = jax.local_device_count(), jax.process_index()
    return jax.tree.map(lambda a: a[index * size : (index + 1) * size], arrays) if _is_distributed() else arrays


def all_gather(arrays: Any) -> Any:
    """The inverse of `local_shard`: [local devices, ...] of each process -> [devices, ...]."""
    import jax
    import numpy as np

    if not _is_distributed():
        return arrays
    return jax.tree.map(lambda a: _allgather(np.asarray(a)).reshape(-1, *a.shape[1:]), arrays)


def broadcast(array: Any) -> Any:
    """The first process's numpy array, in every process; the others pass one of its shape and type."""
    import numpy as np
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def check_equal_across_processes(values: Mapping[str, Any]) -> None:
    """Checks that every process has the same JSON values, by their hashes.

    Raises:
        ValueError: in every process, with the name of a value that differs and the processes where it does.
    """
    import numpy as np

    if not _is_distributed():
        return
    hashes = [hashlib.sha256(json.dumps(value).encode()).digest()[:16] for value in values.values()]
    digests = [np.frombuffer(each, np.uint32) for each in hashes]
    all_digests = _allgather(np.stack(digests))
    for name, column in zip(values, np.moveaxis(all_digests, 1, 0), strict=True):
        others = [str(i) for i in range(len(column)) if (column[i] != column[0]).any()]
        if others:
            raise ValueError(f"processes must have the same {name}: it differs in process {', '.join(others)}")


@contextlib.contextmanager
def abort_together(program_name: str, details: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Context manager that ends this process at once if an error ends its part of a common task.

    At a normal exit, or at an unfinished checkpoint, it would wait for processes that wait for it.  So after an error
    it prints the reason, with `details` such as the step saved last, and leaves by `os._exit`: with status 5 if another
    process was lost, which JAX reports where the connection breaks.  A process that is silent for --heartbeat seconds
    is noticed by JAX, which then aborts the others itself, with status 134.  In a single process, errors are raised as
    usual.
    """
    try:
        yield
    except SystemExit:  # a normal exit
        raise
    except BaseException as error:
        if not _is_distributed():
            raise
        import jax

        status = _exit_status(error)
        with contextlib.suppress(Exception):
            me = f"{program_name}, process {jax.process_index()} of {jax.process_count()}"
            if status == EXIT_PROCESS_LOST:
                print(f"{me}: another process was lost ({first_line(error)}). {details()}", file=sys.stderr)
            elif status == 1:
                traceback.print_exception(error)
                print(f"{me}: stopped, and with it the others", file=sys.stderr)
            else:
                print(f"{me}: {error}. {details()}", file=sys.stderr)
        exit_process(status)


def exit_process(status: int) -> int:
    """Ends one of several processes at once, without waiting for the others; in a single one returns the status."""
    if not _is_distributed():
        return status
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _exit_status(error: BaseException) -> int:
    import jax

    causes, cause = [], error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, MemoryError):
        return EXIT_OUT_OF_MEMORY
    if any(isinstance(e, jax.errors.JaxRuntimeError) for e in causes):
        return EXIT_PROCESS_LOST
    if isinstance(error, KeyboardInterrupt):
        return 130
    return EXIT_UNWRITABLE if isinstance(error, OSError) else 2 if isinstance(error, ValueError) else 1


def _is_distributed() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def _allgather(value: Any) -> Any:
    """The values of all processes, [processes, ...]."""
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(value)
