"""One table of a run: samplers beside each other, and held-out images as the floor."""

import dataclasses
import json
from typing import Any

from ddpm_jax.config import objects
from ddpm_jax.evaluate import likelihood, protocol, samples
from ddpm_jax.evaluate.options import Likelihood, Samples, Table
from ddpm_jax.evaluate.protocol import Number
from ddpm_jax.evaluate.subject import Subject, images, split

BOUND = ("bits/dim", "rate, bits/dim", "distortion, bits/dim", "RMSE of x_0, 0..255")


def run(subject: Subject, options: Table) -> int:
    """Measures row by row, writes table.md and table.json, and prints the table; status 4 if it is interrupted."""
    held = split(images(subject), "test")
    num = options.num or min(len(held.images), samples.ENOUGH)
    asked = Samples(which=subject.which, num=num, sets=options.sets, seed=options.seed)
    rows: list[tuple[str, list[Number]]] = [("held-out images", samples.floor(subject, asked))]
    if len(images(subject).train) >= 2 * num:
        rows.append(("training images, left out", samples.left_out(subject, asked)))
    T = subject.model.config.schedule.T
    variances: dict[str, dict[str, float]] = {"mix 0": {"mix": 0.0}, "mix 1": {"mix": 1.0}}
    if objects.learned_variance(subject.model.config):
        variances = {"learned variance": {}}
    ways: list[tuple[str, dict[str, Any]]] = [
        *((f"ancestral, {name}", {"sampler": "ancestral", "steps": T} | mix) for name, mix in variances.items()),
        *((f"DDIM, {steps} steps", {"sampler": "ddim", "steps": steps, "eta": 0.0}) for steps in options.ddim),
    ]
    for name, sampling in ways:
        found = row(replaced(subject, sampling), options, asked)
        if found is None:
            return 4
        rows.append((name, found))
    text = markdown(rows)
    subject.out.mkdir(parents=True, exist_ok=True)
    (subject.out / "table.md").write_text(text, encoding="utf-8")
    facts = {name: [protocol.line(number) for number in numbers] for name, numbers in rows}
    (subject.out / "table.json").write_text(
        json.dumps({"rows": facts, "made_with": subject.made_with()}, indent=1, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    print(text)
    print(f"written to {subject.out / 'table.md'}; each number's protocol in {subject.out / 'table.json'}")
    return 0


def replaced(old: Subject, sampling: dict[str, Any]) -> Subject:
    """The subject with other sampling; what was compiled for the old one serves this one as far as it can."""
    flags = dataclasses.replace(old.which.sampling, **sampling)
    weights = dataclasses.replace(old.which.model, checkpoint=old.model.step)
    which = dataclasses.replace(old.which, sampling=flags, model=weights)
    return old._replace(which=which, model=old.model.asking(old.model.asked, **flags.chosen()))


def row(subject: Subject, options: Table, asked: Samples) -> list[Number] | None:
    """The numbers of one sampler; None if they were interrupted."""
    bounds: list[Number] = []
    if subject.model.config.sampling.sampler == "ancestral":
        coded = Likelihood(which=subject.which, seed=options.seed, estimate=options.estimate)
        chosen = split(images(subject), coded.split)
        found = likelihood.bound(subject, chosen, coded)
        if found is None:
            return None
        bounds = likelihood.numbers(subject, chosen, coded, found)
    drawn = samples.measured(subject, dataclasses.replace(asked, which=subject.which))
    return None if drawn is None else bounds + drawn


def markdown(rows: list[tuple[str, list[Number]]]) -> str:
    """The table, a line for each row; what a row does not have is a dash."""
    names = [*BOUND, *(number.name for number in rows[0][1])]
    lines = ["| " + " | ".join(["", *names]) + " |", "|---" * (len(names) + 1) + "|"]
    for label, numbers in rows:
        found = {number.name: number for number in numbers}
        cells = [protocol.said(found[n].value, found[n].error) if n in found else "-" for n in names]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines) + "\n"
