"""Benchmarks in processes that take turns, so that other load of the machine affects all of them alike.

`Worker` starts such a process and asks for turns; `serve` runs inside it, prints the metadata of its workloads, then
runs the requested ones and prints their seconds.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

RESULTS = pathlib.Path(__file__).resolve().parent / "results"


class Workload(NamedTuple):
    """Something that a worker process can run.

    Attributes:
        run: runs it once.
        metadata: counts and sizes.
    """

    run: Callable[[], Any]
    metadata: Mapping[str, Any]


class Worker:
    """A process that runs workloads by name, one turn at a time.

    Args:
        argv: its command, which ends in `serve`.
        cwd, env: of the process; env is added to this one's.
    """

    def __init__(self, argv: Sequence[str], *, cwd: pathlib.Path | None = None, env: Mapping[str, str] | None = None):
        self.process = subprocess.Popen(
            argv, cwd=cwd, env={**os.environ, **(env or {})}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.argv = list(argv)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def receive(self) -> Any:
        """The next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"a process ended, see above: {' '.join(self.argv)}")
        return json.loads(line)

    def run_turn(self, workload: str) -> float:
        """Seconds of a turn."""
        assert self.process.stdin is not None
        print(workload, file=self.process.stdin, flush=True)
        return self.receive()


def max_rss() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(workloads: Mapping[str, Workload], peak_memory: Callable[[], int] = max_rss) -> None:
    """Prints the metadata of all workloads, then runs those named by lines of standard input and prints their seconds.

    The line "memory" is answered with the peak memory in bytes.
    """
    print(json.dumps({name: dict(work.metadata) for name, work in workloads.items()}), flush=True)
    for line in sys.stdin:
        if line.strip() == "memory":
            print(peak_memory(), flush=True)
            continue
        begun = time.perf_counter()
        workloads[line.strip()].run()
        print(time.perf_counter() - begun, flush=True)


def alternate(workers: Sequence[Worker], workloads: Sequence[str], rounds: int) -> dict[str, list[list[float]]]:
    """Seconds of each workload's turns, by worker and round; the order of workers is reversed every round.

    The first round warms up and is dropped.
    """
    times = {work: [[] for _ in workers] for work in workloads}
    for i in range(rounds + 1):
        for work in workloads:
            for j in [*range(len(workers))][:: 1 if i % 2 else -1]:
                taken = workers[j].run_turn(work)
                if i:
                    times[work][j].append(taken)
    return times


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of ours / theirs, paired by round."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
    return {"ratio": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}


def environment(*packages: str) -> dict[str, Any]:
    """Machine, and versions of Python and packages."""
    return {
        "machine": {"system": platform.platform(), "processor": processor(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }


def processor() -> str:
    """Name of the processor, from /proc/cpuinfo if it exists."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit(revision: str = "HEAD") -> str:
    """Short hash of a commit, with "-dirty" if files other than results and pages were changed."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=RESULTS.parents[1], capture_output=True, text=True, check=True).stdout

    name = git("rev-parse", "--short", revision).strip()
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!docs")
    return f"{name}-dirty" if revision == "HEAD" and changed else name


def write_results(name: str, results: Mapping[str, Any]) -> None:
    """Writes results to benchmarks/results/NAME.json."""
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
