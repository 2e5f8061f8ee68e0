"""Traces of training steps for XProf and TensorBoard."""

import contextlib
import math
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ddpm_jax import process


def parse_steps(text: str | None, steps: float = math.inf) -> range:
    """The training steps that "START:STOP" names, both included; none for None.

    Raises:
        ValueError: if it names none of the steps 1 to `steps`.
    """
    if text is None:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    start, stop = map(int, match.groups()) if match else (0, 0)
    if not 1 <= start <= stop <= steps:
        raise ValueError(f"--profile must be START:STOP with 1 <= START <= STOP <= --steps {steps}, got {text!r}")
    return range(start, stop + 1)


@contextlib.contextmanager
def profile(
    steps: str | None, workdir: pathlib.Path, start: int, take_steps: Callable[[Any, Any, Any], Any]
) -> Iterator[Callable[[Any, Any, Any], Any]]:
    """Context with `take_steps`, annotated, of which the main process traces some to RUN/profile.

    Each call is annotated as a step "train" with the number of its last training step.  The trace begins when the steps
    before have been computed, and ends when its own have; both are printed, as is its folder.  A run that continues
    behind the steps has no trace, and prints so.

    Args:
        steps: the training steps to trace, as START:STOP; None for none.
        start: the last step before the first call.
        take_steps: (state, bad, batch) -> results, for as many steps as `batch.indices` is long.
    """
    folder, done, first_traced, traced = workdir / "profile", start, 0, parse_steps(steps)

    def stop() -> None:
        nonlocal first_traced
        jax.profiler.stop_trace()
        print(f"profile   steps {first_traced} to {done}: tensorboard --logdir {folder}, or xprof {folder}", flush=True)
        first_traced = 0

    def annotated(state: Any, bad: Any, batch: Any) -> Any:
        nonlocal done, first_traced
        last, traces = done + len(batch.indices), process.is_main_process()
        if traces and not first_traced and done < traced.stop - 1 and last >= traced.start:
            jax.block_until_ready(state)
            jax.profiler.start_trace(folder)
            first_traced = done + 1
        with jax.profiler.StepTraceAnnotation("train", step_num=last):
            results = take_steps(state, bad, batch)
        done = last
        if first_traced and done >= traced.stop - 1:
            jax.block_until_ready(results)
            stop()
        return results

    if traced and start >= traced.stop - 1:
        print(f"profile   none: steps {traced.start} to {traced.stop - 1} were taken before; the run is at {start}")
    try:
        yield annotated
    finally:
        if first_traced:  # the run ends before
            stop()
