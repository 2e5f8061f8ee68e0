"""Likelihood and sample metrics of several samplers in one table, with the held-out baseline."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ddpm_jax.evaluate import likelihood, protocol, samples
from ddpm_jax.evaluate.context import EvaluationContext, load_images, select_split
from ddpm_jax.evaluate.options import LikelihoodOptions, SamplesOptions, TableOptions
from ddpm_jax.evaluate.protocol import Measurement
from ddpm_jax.model import has_learned_variance

VLB_COLUMNS = ("bits/dim", "rate, bits/dim", "distortion, bits/dim", "RMSE of x_0, 0..255")


def run(context: EvaluationContext, options: TableOptions) -> None:
    """Measures row by row, writes table.md and table.json, and prints the table.

    Raises:
        ValueError: before anything is measured, for more steps than the schedule has.
    """
    T = context.model.config.schedule.T
    if max(options.ddim, default=0) > T:
        raise ValueError(f"--ddim must be 1 to {T}, the steps of the schedule, got {' '.join(map(str, options.ddim))}")
    held = select_split(load_images(context), "test")
    num = options.num or min(len(held.images), samples.RECOMMENDED_NUM)
    sample_options = SamplesOptions(num=num, sets=options.sets, seed=options.seed)
    rows = {"held-out images": samples.held_out_baseline(context, sample_options, num)}
    if len(load_images(context).train) >= 2 * num:
        rows["training images, left out"] = samples.train_baseline(context, sample_options)
    variances: dict[str, dict[str, float]] = {"mix 0": {"variance_mix": 0.0}, "mix 1": {"variance_mix": 1.0}}
    if has_learned_variance(context.model.config):
        variances = {"learned variance": {}}
    sampler_grid: list[tuple[str, dict[str, Any]]] = [
        *((f"ancestral, {name}", {"sampler": "ancestral", "steps": T} | mix) for name, mix in variances.items()),
        *((f"DDIM, {steps} steps", {"sampler": "ddim", "steps": steps, "eta": 0.0}) for steps in options.ddim),
    ]
    for name, sampling in sampler_grid:
        rows[name] = measure_row(context.with_sampling(**sampling), options, sample_options)
    names = [*VLB_COLUMNS, *(number.name for number in rows["held-out images"])]
    write_table(context, "table", [""], {name: ([name], numbers) for name, numbers in rows.items()}, names)


def measure_row(context: EvaluationContext, options: TableOptions, sample_options: SamplesOptions) -> list[Measurement]:
    """The measurements of one sampler."""
    bounds: list[Measurement] = []
    if context.model.config.sampling.sampler == "ancestral":
        split = select_split(load_images(context), "test")
        likelihood_options = LikelihoodOptions(seed=options.seed, estimate=options.estimate)
        _, bounds = likelihood.load_or_measure(context, split, likelihood_options)
    return bounds + samples.measure_and_write(context, sample_options)


def write_table(
    context: EvaluationContext,
    stem: str,
    head: Sequence[str],
    rows: Mapping[str, tuple[Sequence[str], Sequence[Measurement]]],
    names: Sequence[str],
) -> pathlib.Path:
    """Writes and prints STEM.md, a table, and writes STEM.json, each number with its protocol; returns STEM.md.

    Args:
        head: of the columns before the numbers.
        rows: name in the JSON file -> cells of these columns, and the numbers.
        names: of the numbers in the table; one that a row does not have is a dash.
    """
    lines = ["| " + " | ".join([*head, *names]) + " |", "|---" * (len(head) + len(names)) + "|"]
    for cells, numbers in rows.values():
        values = {number.name: protocol.format_value(number.value, number.error) for number in numbers}
        lines.append("| " + " | ".join([*cells, *(values.get(name, "-") for name in names)]) + " |")
    text, path = "\n".join(lines) + "\n", context.out / f"{stem}.md"
    context.out.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    content = {
        "rows": {name: [*map(protocol.format_line, numbers)] for name, (_, numbers) in rows.items()},
        "made_with": context.made_with(),
    }
    json_text = json.dumps(content, indent=1, ensure_ascii=False)
    path.with_suffix(".json").write_text(json_text + "\n", encoding="utf-8")
    print(text)
    print(f"written to {path}; each number's protocol in {stem}.json")
    return path
