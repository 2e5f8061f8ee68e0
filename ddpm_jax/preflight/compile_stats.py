"""Statistics of compiled programs: memory, collectives, estimated cycles, and out-of-memory reports."""

import collections
import math
import re
import time
from typing import Any, NamedTuple

import jax

from ddpm_jax import process
from ddpm_jax.preflight import cost

_COLLECTIVE = re.compile(r"\s(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_GROUPS = re.compile(r"replica_groups=(\{\{.*?\}\}|\{\}|\[[\d,]+\]<=)")
_SIZE = r"\((?P<{0}>[\d.]+)(?P<{0}_unit>[KMGTP]?)i?B?\)"
_NEEDED, _AVAILABLE = (
    re.compile(r"required.*?" + _SIZE.format("size")),
    re.compile(r"available.*?" + _SIZE.format("size")),
)


class Memory(NamedTuple):
    """Memory of a compiled program, in bytes on each device.

    Attributes:
        arguments: the inputs, in the device's layout.
        temporaries: buffers for intermediate values.
        results: the outputs, apart from those in donated arguments.
        donated: arguments whose memory the results take.
        peak: the maximum in use at one time, arguments and results included.
    """

    arguments: int
    temporaries: int
    results: int
    donated: int
    peak: int


class Collective(NamedTuple):
    """Operations between devices of one kind, and how many groups of how many devices they are among."""

    kind: str
    count: int
    groups: int
    size: int


class OutOfMemory(NamedTuple):
    """Bytes that a program needs and bytes available, from the compiler's error; None where unknown."""

    needed: int | None
    available: int | None


class CompileStats(NamedTuple):
    """Statistics of a program.

    Attributes:
        memory: None if it did not fit.
        needed: bytes that it needs on each device, as far as they are known.
        limit: bytes that each device has for programs, as far as they are known.
        collectives: operations between devices.
        cycles: the compiler's estimate by kind of work, see `cost.estimated_cycles`; empty where it gives none.
        seconds: of compilation; 0 if it was clear without compiling that it does not fit.
        error: the compiler's message if it did not fit.
    """

    memory: Memory | None
    needed: int | None
    limit: int | None
    collectives: list[Collective]
    cycles: dict[str, int]
    seconds: float
    error: str

    @property
    def fits(self) -> bool:
        return self.memory is not None and (self.limit is None or self.memory.peak <= self.limit)


def compile_and_analyse(
    lowered: jax.stages.Lowered, devices: int, limit: int | None, options: dict[str, Any]
) -> tuple[CompileStats, jax.stages.Compiled | None]:
    """The statistics of a program and, if it fits, the compiled program.

    Args:
        devices: number of devices that it is compiled for.
        limit: bytes of memory that each has, if that is known.
        options: of the compiler.
    """
    start = time.perf_counter()
    least = argument_bytes(lowered)
    if limit is not None and least > limit:
        return CompileStats(None, least, limit, [], {}, 0.0, "its arguments alone are more than there is"), None
    try:
        compiled = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds, over = time.perf_counter() - start, parse_out_of_memory(str(error))
        available = limit if over.available is None else over.available
        return CompileStats(None, over.needed, available, [], {}, seconds, process.first_line(error)), None
    seconds, found, text = time.perf_counter() - start, compiled_memory(compiled), compiled.as_text() or ""
    between, cycles = find_collectives(text, devices), cost.estimated_cycles(text)
    return CompileStats(found, found.peak, limit, between, cycles, seconds, ""), compiled


def compiled_memory(compiled: jax.stages.Compiled) -> Memory:
    """The memory of a compiled program."""
    analysis: Any = compiled.memory_analysis()
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    # only the TPU's compiler reports the peak; elsewhere all temporaries are allocated together
    together = analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes
    peak = analysis.peak_memory_in_bytes if "TPU" in _device_kind(compiled) else together
    return Memory(
        analysis.argument_size_in_bytes, analysis.temp_size_in_bytes, results, analysis.alias_size_in_bytes, peak
    )


def find_collectives(text: str, devices: int) -> list[Collective]:
    """The collectives in a program's text, equal ones counted together."""
    found: collections.Counter[tuple[str, int, int]] = collections.Counter()
    for line in text.splitlines():
        kind = _COLLECTIVE.search(line)
        if kind:
            found[kind[1], *_replica_groups(line, devices)] += 1
    return [Collective(kind, count, groups, size) for (kind, groups, size), count in found.items()]


def parse_out_of_memory(message: str) -> OutOfMemory:
    """Bytes needed and available, from a compiler's RESOURCE_EXHAUSTED message."""
    return OutOfMemory(*(_parse_bytes(pattern.search(message)) for pattern in (_NEEDED, _AVAILABLE)))


def argument_bytes(lowered: jax.stages.Lowered) -> int:
    """Bytes of a program's arguments on each device, without padding; mapped ones count as a whole, they are small."""
    leaves = jax.tree.leaves(lowered.args_info)
    sizes = (math.prod(leaf.shape) * getattr(leaf.dtype, "itemsize", 4) for leaf in leaves)
    return sum(sizes)


def _device_kind(compiled: jax.stages.Compiled) -> str:
    shardings = jax.tree.leaves(compiled.input_shardings)
    return next(iter(shardings[0].device_set)).device_kind


def _replica_groups(line: str, devices: int) -> tuple[int, int]:
    """Number of groups and devices in each, of {{0,1},{2,3}}, or [groups,size]<=..., or {} for one of all."""
    found = _GROUPS.search(line)
    if found is None or found[1] == "{}":
        return 1, devices
    if found[1].startswith("["):
        groups, size = found[1].partition("]")[0][1:].split(",")[:2]
        return int(groups), int(size)
    groups = re.findall(r"\{([\d,]+)\}", found[1])
    return len(groups), len(groups[0].split(","))


def _parse_bytes(found: re.Match[str] | None) -> int | None:
    if found is None:
        return None
    return round(float(found["size"]) * 1024 ** " KMGTP".index(found["size_unit"] or " "))
