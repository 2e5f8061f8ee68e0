"""The TPU compiler's estimate of a program's cycles, by kind of operation.

The compiler writes an estimate beside each operation that it schedules.  Their sum is the time of the
operations one after the other; prefetches, and transfers between devices that overlap with them, have no estimate and
are left out, as are the branches of conditions.
"""

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

CLOCK_HZ = {"v3": 0.94e9, "v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9}
"""Cycles per second, where it is published."""

PEAK_BFLOAT16_FLOPS = {"v2": 22.5e12, "v3": 61.5e12, "v4": 275e12, "v5e": 197e12, "v5p": 459e12, "v6e": 918e12}
"""Operations per second of bfloat16 products, of what is a device here, as published."""

KINDS = ("convolutions", "matrix products", "sums", "copies", "between devices", "the rest")

_COMPUTATION = re.compile(r"^(ENTRY )?%?(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?\S+ = .*?[})\]] ([a-z][a-z0-9-]*)\(")
_CALLS = re.compile(r"(?:calls|to_apply|body)=%?([^\s,)}]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NAME = re.compile(r'op_name="([^"]*)"')
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Instruction(NamedTuple):
    """An instruction of a program: operation, called computation, estimated cycles, trip count, name."""

    operation: str
    called: str
    cycles: int
    trip_count: int
    name: str


def estimated_cycles(text: str) -> dict[str, int]:
    """Estimated cycles by kind, the most first, of a program as the compiler prints it; empty without an estimate."""
    computations, entry = parse_computations(text)
    found: collections.Counter[str] = collections.Counter()
    for instruction, times in iterate_scheduled(computations, entry):
        if instruction.cycles:
            found[classify(computations, instruction)] += times * instruction.cycles
    return dict(found.most_common())


def iterate_scheduled(
    computations: dict[str, list[Instruction]], name: str, repeats: int = 1
) -> Iterator[tuple[Instruction, int]]:
    """The scheduled instructions, those of loops included, each with the number of its executions."""
    for instruction in computations.get(name, []):
        if instruction.operation in ("while", "call"):
            yield from iterate_scheduled(computations, instruction.called, repeats * instruction.trip_count)
        else:
            yield instruction, repeats


def classify(computations: dict[str, list[Instruction]], instruction: Instruction) -> str:
    """The kind of an instruction, by the operations fused into it: a convolution or product decides, then a sum."""
    inside = [instruction, *_nested_instructions(computations, instruction.called)]
    operations = {one.operation for one in inside}
    if operations & {"convolution", "dot"}:
        named = [one.name for one in inside if one.operation in ("convolution", "dot")]
        return KINDS[0] if any("conv_general_dilated" in name for name in named) else KINDS[1]
    if operations & {"reduce", "reduce-window"}:
        return KINDS[2]
    if any(operation.startswith(_COLLECTIVES) for operation in operations):
        return KINDS[4]
    moves = {"copy", "transpose", "bitcast", "fusion", "parameter", "tuple", "get-tuple-element", "reshape", "convert"}
    return KINDS[3] if operations <= moves else KINDS[5]


def parse_computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of a program by name, and the name of its entry computation."""
    computations: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        opened = _COMPUTATION.match(line)
        if opened:
            current = opened[2]
            entry = current if opened[1] else entry
            computations[current] = []
        elif current and (found := _INSTRUCTION.match(line)):
            callee, estimate, trips, name = (pattern.search(line) for pattern in (_CALLS, _CYCLES, _TRIPS, _NAME))
            computations[current].append(
                Instruction(
                    found[1], callee[1] if callee else "", int(estimate[1]) if estimate else 0,
                    int(trips[1]) if trips else 1, name[1] if name else "",
                )
            )  # fmt: skip
    return computations, entry


def _nested_instructions(computations: dict[str, list[Instruction]], name: str) -> Iterator[Instruction]:
    for instruction in computations.get(name, []):
        yield instruction
        if instruction.called:
            yield from _nested_instructions(computations, instruction.called)
