"""The kernels of a traced program: the most expensive ones, the time of each kind, and the gaps between them."""

import collections
import re
import warnings
from typing import Any

KINDS = {
    "normalisation": r"/norm\w*/",
    "attention": r"/attn_\d/",
    "random numbers": r"threefry|random_bits|shift_right_logical",
    "convolution": r"conv_general_dilated|/conv\w*/",
    "rest of the network": r"/net/",
    "loss, optimizer and EMA": r"^(jit|pmap)",
}
"""Kinds by the name scope of an operation; the first that matches counts.  A fusion has that of its last operation."""

LIBRARY_KINDS = {
    "convolution": r"conv|[fdw]prop|[dw]grad",
    "matrix products": r"gemm|nvjet|xmma|cutlass",
    "copies": r"mem(cpy|set)",
}
"""Kinds by the name of a kernel that is no operation of the program's: of cuDNN and cuBLAS."""


def table(data: Any, program: str, steps: int, on_cpu: bool) -> dict[str, Any]:
    """Rows of the time of a step, of each kind of kernel, and of the ten most expensive kernels.

    Args:
        data: a `jax.profiler.ProfileData` of `steps` calls of one program.
        program: its compiled text.
        on_cpu: whether a CPU has run it, whose operations count as kernels.
    """
    scopes = {
        plain(name): scope
        for name, scope in re.findall(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', program, re.M)
    }
    events = sorted(device_events(data, on_cpu))
    busy, end = 0.0, events[0][0]
    kinds, by_kernel = collections.defaultdict(float), collections.defaultdict(list)
    for start, duration, kernel, operation in events:
        busy += max(0.0, start + duration - max(start, end))
        end = max(end, start + duration)
        scope = scopes.get(plain(kernel)) or scopes.get(plain(operation), "")
        kinds[kind(scope, kernel)] += duration
        by_kernel[kernel].append((duration, scope))
    span, total, per_step = end - events[0][0], sum(kinds.values()), 1e-6 / steps
    rows: dict[str, Any] = {
        "step": {"ms": round(span * per_step, 4), "idle, share of it": round(1 - busy / span, 4)},
        "kinds, ms per step": {
            name: round(kinds[name] * per_step, 4) for name in sorted(kinds, key=kinds.__getitem__, reverse=True)
        },
    }
    times = {kernel: sum(duration for duration, _ in calls) for kernel, calls in by_kernel.items()}
    for i, kernel in enumerate(sorted(times, key=times.__getitem__, reverse=True)[:10], 1):
        rows[f"kernel {i}"] = {
            "name": kernel[:120], "operation": max(by_kernel[kernel])[1],
            "calls per step": round(len(by_kernel[kernel]) / steps, 2),
            "ms per step": round(times[kernel] * per_step, 4), "share": round(times[kernel] / total, 4),
        }  # fmt: skip
    return rows


def device_events(data: Any, on_cpu: bool) -> list[tuple[float, float, str, str]]:
    """(start, duration, kernel, operation) in ns: of a GPU's streams, or of a CPU's operations."""
    found = []
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # about jaxlib's own types, on 3.13
        for plane in data.planes:
            for line in plane.lines:
                stream = plane.name.startswith("/device:") and line.name.startswith("Stream")
                for event in line.events if on_cpu or stream else ():
                    operation = str(dict(event.stats).get("hlo_op", ""))
                    if stream or operation == event.name:
                        found.append((event.start_ns, event.duration_ns, event.name, operation))
    if not found:
        raise ValueError(f"the trace has no kernels, only {', '.join(plane.name for plane in data.planes)}")
    return found


def kind(scope: str, kernel: str) -> str:
    """Of a kernel, by the scope of its operation or, if that is unknown, by its name."""
    kinds, name = (KINDS, scope) if scope else (LIBRARY_KINDS, kernel)
    return next((found for found, pattern in kinds.items() if re.search(pattern, name, re.I)), "other")


def plain(name: str) -> str:
    """An operation's name as kernels are named after it."""
    return re.sub(r"\W", "_", name)
