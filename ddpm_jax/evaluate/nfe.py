"""Sample quality against function evaluations (NFE): a table and a figure of several samplers."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from ddpm_jax.evaluate import plots, samples, table
from ddpm_jax.evaluate.context import EvaluationContext
from ddpm_jax.evaluate.options import NfeOptions, SamplesOptions
from ddpm_jax.evaluate.protocol import Measurement

SAMPLER_NAMES = {"ancestral": "ancestral", "ddim": "DDIM", "dpm_solver_pp": "DPM-Solver++", "unipc": "UniPC"}
LEGEND = "Fréchet distance of samples to the training images against function evaluations (NFE) per image"


class Row(NamedTuple):
    """Sample metrics of a sampler with a spacing, its label in the figure, at so many function evaluations."""

    label: str
    nfe: int
    measurements: list[Measurement]


def run(context: EvaluationContext, options: NfeOptions) -> None:
    """Measures row by row, writes nfe.md, nfe.json and nfe.png."""
    sample_options = SamplesOptions(num=options.num, sets=options.sets, seed=options.seed)
    each = list(sampler_grid(options, context.model.config.schedule.T))
    baseline = samples.held_out_baseline(context, sample_options)
    rows: list[Row] = []
    for label, sampling in each:
        measured = samples.measure_and_write(context.with_sampling(**sampling), sample_options)
        rows.append(Row(label, sampling["steps"], measured))
    held_out = f"held-out images, {baseline[0].protocol['n']}"
    table_rows = {f"{row.label}, {row.nfe} calls": ([row.label, f"{row.nfe:,}"], row.measurements) for row in rows}
    table_rows["held-out images"] = [held_out, "-"], baseline
    path = table.write_table(context, "nfe", ["", "NFE"], table_rows, [number.name for number in baseline])
    metadata = {"run": f"{context.model.fingerprint} step {context.model.step}", "legend": LEGEND}
    plots.write_panels_if_installed(path.with_suffix(".png"), [panel(rows)], text=metadata)


def sampler_grid(options: NfeOptions, T: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and sampling options of each row; a ValueError if there are none, or more steps than the schedule has."""
    steps_of = {name: sorted(set(getattr(options, name))) for name in SAMPLER_NAMES}
    if not any(steps_of.values()) or not options.spacings:
        raise ValueError(
            f"nothing to measure: --{', --'.join(name.replace('_', '-') for name in SAMPLER_NAMES)} are all empty, or "
            "--spacings is"
        )
    for sampler, steps in steps_of.items():
        if steps and steps[-1] > T:
            flag = sampler.replace("_", "-")
            raise ValueError(f"--{flag} must be 1 to {T}, the steps of the schedule, got {' '.join(map(str, steps))}")
        for spacing in options.spacings:
            for n in steps:
                if n < T or spacing == options.spacings[0]:
                    label = SAMPLER_NAMES[sampler] if n == T else f"{SAMPLER_NAMES[sampler]}, {spacing}"
                    yield label, {"sampler": sampler, "steps": n, "spacing": spacing}


def panel(rows: list[Row]) -> plots.Panel:
    """The Fréchet distance over NFE, a line for each sampler and spacing."""
    nfes, labels = sorted({row.nfe for row in rows}), list(dict.fromkeys(row.label for row in rows))
    by_label_and_nfe = {(row.label, row.nfe): row.measurements[0] for row in rows}
    missing = rows[0].measurements[0]._replace(value=float("nan"), error=float("nan"))
    lines = {label: [by_label_and_nfe.get((label, n), missing) for n in nfes] for label in labels}
    return plots.Panel(
        nfes,
        {label: [number.value for number in line] for label, line in lines.items()},
        "function evaluations (NFE)",
        missing.name,
        standard_errors={label: [number.error for number in line] for label, line in lines.items()},
        xscale="log",
        yscale="log",
    )
