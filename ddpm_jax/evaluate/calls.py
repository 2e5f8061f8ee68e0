"""Quality against network calls: samplers beside each other at several numbers of steps, one table and one figure."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from ddpm_jax.evaluate import plots, protocol, samples
from ddpm_jax.evaluate.options import Calls, Samples
from ddpm_jax.evaluate.protocol import Number
from ddpm_jax.evaluate.subject import Subject, images, split
from ddpm_jax.evaluate.table import replaced

NAMES = {"ancestral": "ancestral", "ddim": "DDIM", "dpm_solver_pp": "DPM-Solver++", "unipc": "UniPC"}
LEGEND = "the distance of samples from the training images against the network calls that each took"


class Row(NamedTuple):
    """A sampler with its steps, and what was measured.

    Attributes:
        label: of its line in the figure: the sampler and the spacing.
        calls: of the network, per image.
        numbers: of `samples.measured`.
    """

    label: str
    calls: int
    numbers: list[Number]


def run(subject: Subject, options: Calls) -> int:
    """Measures row by row, writes calls.md, calls.json and calls.png; status 4 if it is interrupted.

    Raises:
        ValueError: if there is nothing to measure, or a sampler would take more steps than the schedule has.
    """
    held = split(images(subject), "test")
    asked = Samples(which=subject.which, num=options.num, sets=options.sets, seed=options.seed)
    each = list(ways(options, subject.model.config.schedule.T))
    floor = samples.floor(subject, dataclasses.replace(asked, num=len(held.images)))
    rows: list[Row] = []
    for label, sampling in each:
        other = replaced(subject, sampling)
        found = samples.measured(other, dataclasses.replace(asked, which=other.which))
        if found is None:
            return 4
        rows.append(Row(label, sampling["steps"], found))
    text = markdown(rows, floor)
    path = subject.out / "calls.md"
    path.write_text(text, encoding="utf-8")
    facts = {f"{row.label}, {row.calls} calls": [*map(protocol.line, row.numbers)] for row in rows}
    facts["held-out images"] = [*map(protocol.line, floor)]
    path.with_suffix(".json").write_text(
        json.dumps({"rows": facts, "made_with": subject.made_with()}, indent=1, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    print(text)
    print(f"written to {path}; each number's protocol in {path.stem}.json")
    try:
        said = {"run": f"{subject.model.fingerprint} step {subject.model.step}", "legend": LEGEND}
        plots.panels(path.with_suffix(".png"), [panel(rows)], text=said)
        print(f"the figure in {path.stem}.png")
    except plots.MissingExtra as missing:
        print(f"no figure: {missing}")
    return 0


def ways(options: Calls, T: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The label and the sampling of each row.

    Raises:
        ValueError: as `run`.
    """
    chosen = {name: sorted(set(getattr(options, name))) for name in NAMES}
    if not any(chosen.values()):
        raise ValueError(f"nothing to measure: --{', --'.join(name.replace('_', '-') for name in NAMES)} are all empty")
    for sampler, steps in chosen.items():
        if steps and not 1 <= steps[0] <= steps[-1] <= T:
            flag = sampler.replace("_", "-")
            raise ValueError(f"--{flag} must be 1 to {T}, the steps of the schedule, got {' '.join(map(str, steps))}")
        for spacing in options.spacings:
            for n in steps:
                if n < T or spacing == options.spacings[0]:
                    label = NAMES[sampler] if n == T else f"{NAMES[sampler]}, {spacing}"
                    yield label, {"sampler": sampler, "steps": n, "spacing": spacing}


def markdown(rows: list[Row], floor: list[Number]) -> str:
    """The table, a line for each row and one for the floor."""
    names = [number.name for number in floor]
    lines = ["| " + " | ".join(["", "calls", *names]) + " |", "|---" * (len(names) + 2) + "|"]
    for label, calls, numbers in [*rows, Row(f"held-out images, {floor[0].protocol['n']}", 0, floor)]:
        found = {number.name: number for number in numbers}
        cells = [protocol.said(found[name].value, found[name].error) for name in names]
        lines.append("| " + " | ".join([label, f"{calls:,}" if calls else "-", *cells]) + " |")
    return "\n".join(lines) + "\n"


def panel(rows: list[Row]) -> plots.Panel:
    """The Fréchet distance over the calls, a line for each sampler and spacing."""
    calls, labels = sorted({row.calls for row in rows}), list(dict.fromkeys(row.label for row in rows))
    at = {(row.label, row.calls): row.numbers[0] for row in rows}
    nothing = rows[0].numbers[0]._replace(value=float("nan"), error=float("nan"))
    lines = {label: [at.get((label, n), nothing) for n in calls] for label in labels}
    return plots.Panel(
        calls,
        {label: [number.value for number in line] for label, line in lines.items()},
        "network calls",
        nothing.name,
        errors={label: [number.error for number in line] for label, line in lines.items()},
        xscale="log",
        yscale="log",
    )
