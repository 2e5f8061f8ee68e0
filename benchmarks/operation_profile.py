"""Time of a training step by kind of operation, on one core of a CPU.

    taskset -c 0 python -m benchmarks.operation_profile cifar10 --batch 4

From a trace of `jax.profiler` and the text of the compiled program, whose operations carry the names of the layers.
"""

import collections
import dataclasses
import pathlib
import re
import tempfile
from typing import Literal

import tyro

from benchmarks import compare_libraries, kernels, workloads

KINDS = {
    "products of Winograd's convolutions": r"(dot|ynn)\S* .*jit\((convolve|input_gradient|kernel_gradient)\)",
    "transforms of Winograd's convolutions": r"jit\((convolve|input_gradient|kernel_gradient)\)",
    "kernel gradients of convolutions": r"conv\S* f32\[\d+,[123],[123],\d+\]",
    "convolutions, gradient of the input": r"conv\S* .*transpose\(jvp",
    "convolutions, forward": r"conv\S* ",
    "other matrix products": r"dot",
    "dropout's random numbers": r" (u32|pred)\[|vmap\(",
    "normalisation": r"/norm|group_norm",
    "transposes and copies": r"copy",
    "optimizer and EMA": r"^(?!.*ConditionalNetwork)",
    "other operations of the network": r"",
}
"""Patterns, of which the first that is found in "NAME SHAPE LAYER" gives an operation's kind.

A fusion of matrix products or convolutions (`ynn`) counts as what it contains.
"""


@dataclasses.dataclass(frozen=True)
class Arguments:
    cell: tyro.conf.Positional[Literal["digits", "mnist", "cifar10"]]
    """Configuration."""
    batch: int = 4
    """Images of a step."""
    steps: int = 3
    """Steps in the trace."""


def main() -> None:
    """Prints the table."""
    args = tyro.cli(Arguments, prog="python -m benchmarks.operation_profile")
    file, shape, *_ = compare_libraries.CELLS[args.cell]
    spec = compare_libraries.workload_spec(file, shape, args.batch, 1, 1, compare_libraries.Arguments())
    from ddpm_jax import process

    process.initialize()
    train, step, _ = workloads.train_workload(*workloads.make_model(spec), 1)

    import jax

    for _ in range(2):
        train.run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(args.steps):
                train.run()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        events = kernels.device_events(jax.profiler.ProfileData.from_file(str(path)), on_cpu=True)
    kinds = kinds_of_operations(step.as_text())
    seconds, counts = collections.Counter(), collections.Counter()
    for _, duration, name, _ in events:
        if name in kinds:
            seconds[kinds[name]] += duration / 1e9 / args.steps
            counts[kinds[name]] += 1 / args.steps
    total = sum(seconds.values())
    print(f"{args.cell}, {args.batch} images: {1e3 * total:.0f} ms\n\n| | ms | % | operations |\n|---|---|---|---|")
    for kind, each in seconds.most_common():
        print(f"| {kind} | {1e3 * each:.0f} | {100 * each / total:.1f} | {counts[kind]:.0f} |")


def kinds_of_operations(program: str) -> dict[str, str]:
    """The kind of each operation of a compiled program's entry and of its loops, by name."""
    found, contents = {}, {}
    for computation in re.split(r"\n\n", program):
        head = re.match(r"\s*(?:ENTRY )?%([\w.\-]+) ", computation)
        if head:
            contents[head[1]] = re.search(r" (convolution|dot)\(", computation)
    for line in program.splitlines():
        parts = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\S+) [\w\-]+\(", line)
        if parts:
            layer, called = re.search(r'op_name="([^"]*)"', line), re.search(r"calls=%([\w.\-]+)", line)
            inside = contents.get(called[1]) if called else None
            text = f"{inside[1] if inside else parts[1]} {parts[2]} {layer[1] if layer else 'ConditionalNetwork'}"
            found[parts[1]] = next(kind for kind, pattern in KINDS.items() if re.search(pattern, text))
    return found


if __name__ == "__main__":
    main()
