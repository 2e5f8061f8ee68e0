"""Repeats a non-finite training step on the CPU in float32 and names the first layer that is not finite.

ddpm-jax replay RUN/nonfinite-step-N.npz
"""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from ddpm_jax import process
from ddpm_jax.config import flags


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Repeats a non-finite training step and names the first layer that is not finite."""

    record: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECORD")]]
    """The record that training wrote: RUN/nonfinite-step-N.npz."""


def main(argv: list[str]) -> int:
    """Replays the record and prints the result; exit status 0 if the step is finite here, 1 if not, 2 if refused."""
    path = pathlib.Path(flags.parse(Arguments, argv, prog="ddpm-jax replay").record)

    import jax

    from ddpm_jax.trainer.replay import largest_parameter, load_record, replay, report_lines

    jax.config.update("jax_platforms", "cpu")
    process.initialize(devices=1)
    record = load_record(path)
    largest = largest_parameter(record)
    print(f"step {record.step} of {path.parent}: {len(record.images)} images, largest parameter {largest}")
    float32_replay = replay(record, "float32")
    print(*report_lines(float32_replay, record, "float32"), sep="\n", flush=True)
    if record.config.net.dtype != "float32":
        own = replay(record, record.config.net.dtype)
        print(*report_lines(own, record, record.config.net.dtype), sep="\n")
    return 0 if float32_replay.finite else 1
