"""The command `ddpm-jax plot`: draws the curves of metrics.jsonl.

ddpm-jax plot RUN [--out FILE.png]
"""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from ddpm_jax import process, tracking
from ddpm_jax.config import flags


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Draws the losses, metrics and speed of a run over its training steps, as a PNG file."""

    run: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
    """The run's folder, also during training."""
    out: flags.OptionalFlag[str] = None
    """The file (default: RUN/curves.png)."""


def main(argv: list[str]) -> int:
    """Draws the curves; returns exit status 0."""
    options = flags.parse(Arguments, argv, prog="ddpm-jax plot")

    from ddpm_jax.evaluate import plots

    metrics = pathlib.Path(options.run) / "metrics.jsonl"
    path = pathlib.Path(options.out) if options.out else metrics.with_name("curves.png")
    panels = plots.metric_panels(tracking.read_metrics(metrics))
    if not panels:
        raise ValueError(f"{metrics} has no metrics yet: training writes a line every --log-every steps")
    with process.explain_write_errors(path):
        plots.write_panels(path, panels, columns=3)
    print(f"curves in {path}")
    return 0
