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
_SIZE = r"\((?P<size>[\d.]+)(?P<unit>[KMGTP]?)i?B?\)"
_NEEDED, _AVAILABLE = (re.compile(f"{quantity}.*?{_SIZE}") for quantity in ("required", "available"))


class Memory(NamedTuple):
    """Memory of a compiled program, in bytes on each device."""

    arguments: int  # the inputs, in the device's layout
    temporaries: int  # buffers for intermediate values
    results: int  # the outputs, apart from those in donated arguments
    donated: int  # arguments whose memory the results take
    peak: int  # the maximum in use at one time, arguments and results included


class Collective(NamedTuple):
    """Operations between devices of one kind, and how many groups of how many devices they are among."""

    kind: str
    count: int
    groups: int
    size: int


class CompileStats(NamedTuple):
    """Statistics of a program."""

    memory: Memory | None  # None if it did not fit
    needed: int | None  # bytes that it needs on each device, as far as they are known
    collectives: list[Collective]  # operations between devices
    # the compiler's estimate by kind of work, see `cost.estimated_cycles`; empty where it gives none
    cycles: dict[str, int]
    seconds: float  # of compilation; 0 if it was clear without compiling that it does not fit
    error: str  # the compiler's message if it did not fit


def compile_and_analyse(
    lowered: jax.stages.Lowered, devices: int, limit: int | None, options: dict[str, Any]
) -> tuple[CompileStats, jax.stages.Compiled | None]:
    """The statistics of a program for `devices` that have `limit` bytes each, and the compiled program if it fits."""
    start = time.perf_counter()
    # a lower bound of the arguments on each device, without padding: [devices, ...] is taken for a row on each
    arguments = [(leaf.shape, getattr(leaf.dtype, "itemsize", 4)) for leaf in jax.tree.leaves(lowered.args_info)]
    least = sum(math.prod(shape) * size // (devices if shape[:1] == (devices,) else 1) for shape, size in arguments)
    if limit is not None and least > limit:
        return CompileStats(None, least, [], {}, 0.0, "its arguments alone are more than there is"), None
    try:
        compiled = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        seconds, needed = time.perf_counter() - start, parse_out_of_memory(str(error))[0]
        return CompileStats(None, needed, [], {}, seconds, process.first_line(error)), None
    seconds, found, text = time.perf_counter() - start, compiled_memory(compiled), compiled.as_text() or ""
    between, cycles = find_collectives(text, devices), cost.estimated_cycles(text)
    return CompileStats(found, found.peak, between, cycles, seconds, ""), compiled


def compiled_memory(compiled: jax.stages.Compiled) -> Memory:
    """The memory of a compiled program."""
    analysis: Any = compiled.memory_analysis()
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    # only the TPU's compiler reports the peak; elsewhere all temporaries are allocated together
    together = analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes
    device = next(iter(jax.tree.leaves(compiled.input_shardings)[0].device_set))
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        results=results,
        donated=analysis.alias_size_in_bytes,
        peak=analysis.peak_memory_in_bytes if "TPU" in device.device_kind else together,
    )


def find_collectives(text: str, devices: int) -> list[Collective]:
    """The collectives in a program's text, equal ones counted together."""
    found: collections.Counter[tuple[str, int, int]] = collections.Counter()
    for line in text.splitlines():
        kind = _COLLECTIVE.search(line)
        if kind:
            found[kind[1], *_replica_groups(line, devices)] += 1
    return [Collective(kind, count, groups, size) for (kind, groups, size), count in found.items()]


def parse_out_of_memory(message: str) -> tuple[int | None, int | None]:
    """Bytes needed and available, from a compiler's RESOURCE_EXHAUSTED message; None where it does not say."""

    def parse(pattern: re.Pattern[str]) -> int | None:
        found = pattern.search(message)
        return round(float(found["size"]) * 1024 ** " KMGTP".index(found["unit"] or " ")) if found else None

    return parse(_NEEDED), parse(_AVAILABLE)


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
