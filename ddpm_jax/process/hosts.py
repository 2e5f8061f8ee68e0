"""Several processes that train or sample as one: how they meet, agree and part.

Every function here does in a single process what needs no other: nothing is waited for and nothing compiled.  With
several, all of them must call the same functions in the same order, as with any collective of JAX.
"""

import contextlib
import dataclasses
import hashlib
import ipaddress
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

LOST, UNWRITABLE, TOO_LARGE = 5, 6, 7
"""Exit statuses that all programs share."""

_MEETING = 300  # seconds to wait for the others at the start
_PARTING = 7 * 24 * 3600  # and at the end, where the first process may still be writing; a dead one is noticed earlier


@dataclasses.dataclass(frozen=True)
class Hosts:
    coordinator: str | None = None
    """HOST:PORT at process 0, for one of several processes that nothing else has introduced to each other."""
    processes: int | None = None
    """How many processes there are (with --coordinator)."""
    process: int | None = None
    """Which of them this one is, from 0 (with --coordinator)."""
    heartbeat: int = 60
    """With several processes: seconds after which one that no longer answers is given up, and with it the others."""


def check(hosts: Hosts) -> None:
    """Refuses flags that do not say who is where.

    Raises:
        ValueError: naming the flag, its value and what would be right.
    """
    given = {"--coordinator": hosts.coordinator, "--processes": hosts.processes, "--process": hosts.process}
    if any(value is None for value in given.values()) and any(value is not None for value in given.values()):
        told = " ".join(f"{name} {value}" for name, value in given.items() if value is not None)
        raise ValueError(f"--coordinator, --processes and --process go together, got only {told}")
    if hosts.coordinator is not None and not _address(hosts.coordinator):
        raise ValueError(f"--coordinator must be HOST:PORT, got {hosts.coordinator!r}")
    if hosts.processes is not None and hosts.process is not None and not 0 <= hosts.process < hosts.processes:
        raise ValueError(f"--process must be 0 to --processes - 1 = {hosts.processes - 1}, got {hosts.process}")
    if hosts.heartbeat < 5:
        raise ValueError(f"--heartbeat must be at least 5 seconds, got {hosts.heartbeat}")


def join(hosts: Hosts, platform: str) -> None:
    """Meets the other processes, if flags or surroundings say that there are any: see `surroundings`.

    From then on only the first process prints: standard output of the others leads nowhere.

    Args:
        platform: what JAX will run on, see `ddpm_jax.process.platform`.

    Raises:
        ValueError: see `check`; or if the others do not come.
    """
    check(hosts)
    flags = hosts.coordinator, hosts.processes, hosts.process
    if hosts.processes == 1 or (hosts.coordinator is None and not surroundings(platform)):
        return
    import jax

    # it would take SIGTERM away from Interrupt
    jax.config.update("jax_enable_preemption_service", False)
    # flags are the whole truth: JAX would add what Slurm says of devices
    method = None if hosts.coordinator is None else "deactivate"
    try:
        jax.distributed.initialize(
            *flags, cluster_detection_method=method, heartbeat_timeout_seconds=hosts.heartbeat,
            shutdown_timeout_seconds=_PARTING, initialization_timeout=_MEETING,
            coordinator_bind_address=bind_address(hosts.coordinator),
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        where = hosts.coordinator or "the first process"
        raise ValueError(f"the processes did not meet at {where} in {_MEETING} s: {_first_line(error)}") from error
    counts = {len(jax.local_devices(i)) for i in range(jax.process_count())}
    if len(counts) > 1:
        raise ValueError(f"every process must have the same number of devices, got {sorted(counts)}")
    if not first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def bind_address(coordinator: str | None) -> str | None:
    """Where process 0 listens for the others: at the address that it is told, if that is one of this machine's.

    None is every address that the machine has, JAX's choice.  So it is for a name, but localhost: many a machine takes
    its own name for an address that no other can reach.
    """
    host, _, port = (coordinator or "").rpartition(":")
    address = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        with socket.socket(family) as probe:
            probe.bind((address, 0))
    except (ValueError, OSError):  # no address, or another machine's, as behind a router that translates them
        return None
    return f"[{address}]:{port}" if family == socket.AF_INET6 else f"{address}:{port}"


def surroundings(platform: str) -> str | None:
    """What has started several processes, such that JAX finds them by itself: "Slurm", "Open MPI" or "TPU".

    None on a single machine, and for a single task.  A host of a TPU slice learns from its environment, or else from
    Google's metadata server, how many hosts the slice has; that server is asked only where JAX will run on a TPU.
    """
    env = os.environ
    # the variables that JAX reads; SLURM_STEP_NODELIST is there only for what srun has started
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in env for name in slurm):
        tasks = int(env.get("SLURM_STEP_NUM_TASKS", env["SLURM_NTASKS"]))
        return "Slurm" if tasks > 1 and int(env["SLURM_NTASKS"]) > 1 else None
    if "OMPI_MCA_orte_hnp_uri" in env:
        return "Open MPI" if int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1 else None
    return "TPU" if platform == "tpu" and _tpu_hosts() > 1 else None


def first() -> bool:
    """Whether this process is the one that writes and prints."""
    import jax

    return jax.process_index() == 0


def agree(flag: bool) -> bool:
    """Whether any process says so; all ask, and wait for each other."""
    import numpy as np

    return bool(np.any(_from_all(np.array(flag)))) if _several() else flag


def share(rows: Any) -> Any:
    """Of rows for all devices, [devices, ...], those of this process's: [local devices, ...]."""
    import jax

    size, index = jax.local_device_count(), jax.process_index()
    return jax.tree.map(lambda a: a[index * size : (index + 1) * size], rows) if _several() else rows


def gathered(rows: Any) -> Any:
    """The inverse of `share`: results of this process's devices, [local devices, ...], joined by all others'."""
    import jax
    import numpy as np

    if not _several():
        return rows
    return jax.tree.map(lambda a: _from_all(np.asarray(a)).reshape(-1, *a.shape[1:]), rows)


def check_same(values: Mapping[str, bytes]) -> None:
    """Makes sure that every process has the same.

    Raises:
        ValueError: in every process, naming what differs and where.
    """
    import numpy as np

    if not _several():
        return
    digests = [np.frombuffer(hashlib.sha256(value).digest()[:16], np.uint32) for value in values.values()]
    seen = _from_all(np.stack(digests))
    for name, column in zip(values, np.moveaxis(seen, 1, 0), strict=True):
        others = [str(i) for i in range(len(column)) if (column[i] != column[0]).any()]
        if others:
            raise ValueError(f"processes must have the same {name}: in process {', '.join(others)} it is another")


@contextlib.contextmanager
def as_one(program: str, standing: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Around what several processes do together: whatever ends one of them early ends it at once.

    A process that waited in good order for the others, at its exit or for a checkpoint under way, would wait for those
    that wait for it.  So after an error it says what happened and leaves by `os._exit`: with status 5 if another
    process was lost, which JAX reports where the connection breaks.  Of one that has merely fallen silent JAX takes
    notice after --heartbeat seconds and then aborts the process itself, with status 134.  A single process just sees
    its errors.

    Args:
        program: who speaks.
        standing: what to add, such as which step was saved last.
    """
    try:
        yield
    except SystemExit:  # in good order
        raise
    except BaseException as error:
        if not _several():
            raise
        with contextlib.suppress(Exception):
            _say_why(program, error, standing())
        leave(_status(error))


def leave(status: int) -> int:
    """Ends one of several processes at once, without waiting for the others; a single one just gets its status."""
    if _several():
        _exit(status)
    return status


def _exit(status: int) -> NoReturn:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _say_why(program: str, error: BaseException, standing: str) -> None:
    import jax

    me = f"{program}, process {jax.process_index()} of {jax.process_count()}"
    if _status(error) == LOST:
        print(f"{me}: another process was lost ({_first_line(error)}). {standing}", file=sys.stderr)
    elif _status(error) == 1:
        traceback.print_exception(error)
        print(f"{me}: stopped, and with it the others", file=sys.stderr)
    else:
        print(f"{me}: {error}. {standing}", file=sys.stderr)


def _status(error: BaseException) -> int:
    import jax

    chain, at = [], error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    if isinstance(error, MemoryError):
        return TOO_LARGE
    if any(isinstance(e, jax.errors.JaxRuntimeError) for e in chain):
        return LOST
    if isinstance(error, KeyboardInterrupt):
        return 130
    return UNWRITABLE if isinstance(error, OSError) else 2 if isinstance(error, ValueError) else 1


def _several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def _from_all(value: Any) -> Any:
    """[processes, ...]: each one's value."""
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(value)


def _address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and 0 < int(port) < 65536


def _tpu_hosts() -> int:
    """How many hosts take part in this one's TPU job."""
    env = os.environ
    names = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
    if names is None and "TPU_SKIP_MDS_QUERY" not in env:
        names = _metadata("worker-network-endpoints")
    return len((names or "").split(",")) * int(env.get("MEGASCALE_NUM_SLICES") or 1)


def _metadata(name: str) -> str | None:
    """An attribute of a virtual machine of Google's; None where there is no such server."""
    import urllib.request  # which costs more to import than all else here

    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    address = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
    ask = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(ask, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return None


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
