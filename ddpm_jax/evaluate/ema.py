"""Sample quality by length of the parameters' average (post-hoc EMA): a table and a figure."""

import math
from typing import NamedTuple

import numpy as np

from ddpm_jax import checkpoint
from ddpm_jax.evaluate import likelihood, plots, samples, table
from ddpm_jax.evaluate.context import EvaluationContext, load_images, select_split
from ddpm_jax.evaluate.options import EmaOptions, LikelihoodOptions, SamplesOptions
from ddpm_jax.evaluate.protocol import Measurement
from ddpm_jax.pipeline.averages import KeptAverages

LENGTHS = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.14, 0.2, 0.25)
"""The lengths of a sweep, as far as the snapshots of a run reach."""

LEGEND = "metrics of the weights by relative length of the average (post-hoc EMA)"


class Row(NamedTuple):
    """Measurements of some weights."""

    weights: str  # the name, see `config.ranges.ema_length`
    length: float  # the relative length; nan of "raw" and "ema"
    measurements: list[Measurement]  # bits/dim, if they are measured, and the sample metrics


def run(context: EvaluationContext, options: EmaOptions) -> None:
    """Measures row by row, writes ema.md, ema.json and ema.png."""
    lengths = select_lengths(context, options)
    held = select_split(load_images(context), "test")
    sample_options = SamplesOptions(num=options.num, sets=options.sets, seed=options.seed)
    baseline = samples.held_out_baseline(context, sample_options)
    rows: list[Row] = []
    for weights, length in [("raw", math.nan), ("ema", math.nan), *((f"ema:{each:g}", each) for each in lengths)]:
        other = context._replace(model=context.model.with_weights(weights))  # compiled programs are shared
        measured: list[Measurement] = []
        if options.estimate is not None:
            vlb_options = LikelihoodOptions(seed=options.seed, estimate=options.estimate)
            full_chain = other.with_sampling(steps=other.model.config.schedule.T)
            measured = likelihood.load_or_measure(full_chain, held, vlb_options)[1][:1]
        rows.append(Row(weights, length, measured + samples.measure_and_write(other, sample_options)))
    table_rows = {row.weights: ([row.weights], row.measurements) for row in rows}
    table_rows["held-out images"] = [f"held-out images, {baseline[0].protocol['n']}"], baseline
    names = [number.name for number in rows[0].measurements]
    path = table.write_table(context, "ema", ["weights"], table_rows, names)
    metadata = {"run": f"{context.model.fingerprint} step {context.model.step}", "legend": LEGEND}
    panels = [panel(rows, baseline, name) for name in names if name in ("bits/dim", baseline[0].name)]
    plots.write_panels_if_installed(path.with_suffix(".png"), panels, text=metadata)


def select_lengths(context: EvaluationContext, options: EmaOptions) -> list[float]:
    """The lengths of a sweep, ascending; a ValueError if the run has no averages, or not of such a length."""
    model = context.model
    with checkpoint.Checkpoints(model.workdir / "checkpoints", read_only=True) as saved:
        averages_kept = KeptAverages(model.workdir, saved, model.model, model.step)
    if options.lengths is None:
        return sorted({*filter(averages_kept.can_reconstruct, LENGTHS), *model.config.optim.ema_lengths})
    if not options.lengths:
        raise ValueError("--lengths must be one or more lengths, got none")
    for length in options.lengths:
        averages_kept.weights(length)
    return sorted(set(options.lengths))


def panel(rows: list[Row], baseline: list[Measurement], name: str) -> plots.Panel:
    """A number by length of the average; the numbers of the other weights and of held-out images are level lines."""
    swept = [row for row in rows if math.isfinite(row.length)]
    level = {row.weights: row.measurements for row in rows if not math.isfinite(row.length)}
    lines = {"post-hoc EMA": [_number(row.measurements, name) for row in swept]}
    for weights, measured in [*level.items(), ("held-out images", baseline)]:
        if any(number.name == name for number in measured):
            lines[weights] = [_number(measured, name)] * len(swept)
    values = {label: [number.value for number in line] for label, line in lines.items()}
    standard_errors = {label: [number.error for number in line] for label, line in lines.items()}
    lengths, yscale = [row.length for row in swept], plots.scale(np.array([*values.values()]))
    return plots.Panel(
        lengths, values, "relative length of the average", name, standard_errors=standard_errors, xscale="log",
        yscale=yscale,
    )  # fmt: skip


def _number(measured: list[Measurement], name: str) -> Measurement:
    return next(number for number in measured if number.name == name)
