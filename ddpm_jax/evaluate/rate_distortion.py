"""How good an image is known after how many bits: the terms of the bound as a progressive code.

DDPM (arXiv:2006.11239), section 4.3, figure 5 and table 4.  The sender transmits x_T, and then for falling t what turns
x_t into x_s; after each step the receiver knows an x_t and estimates x_0 from it (equation 15).

    rate(t)       = L_T + the sum of the KL terms of all steps that end at t or before: bits/dim to be sent for x_t
    distortion(t) = sqrt(E |x_0 - x_0_hat(x_t)|^2 / D): RMSE on the scale 0..255

At t = T the rate is L_T alone; at t = 1 it is the whole bound but L_0.
"""

import csv
import math
import pathlib
from typing import NamedTuple

import numpy as np

from ddpm_jax.evaluate import likelihood, plots, protocol
from ddpm_jax.evaluate.options import Likelihood, RateDistortion
from ddpm_jax.evaluate.protocol import Number
from ddpm_jax.evaluate.subject import Subject, images, split

ROWS = 10


class Found(NamedTuple):
    """Means over n images, step by step.

    Attributes:
        times: [m] the falling times t of the x_t that is known.
        received: [m] bits/dim sent for x_t once the x before it is known; for the first, L_T.
        error: [m] standard errors of `received`.
        rate: [m] bits/dim sent until x_t is known: the sum of `received`.
        rmse: [m] of the x_0 predicted from x_t, 0..255.
    """

    times: np.ndarray
    received: np.ndarray
    error: np.ndarray
    rate: np.ndarray
    rmse: np.ndarray


def run(subject: Subject, options: RateDistortion) -> int:
    """Writes table, curves and numbers, and says them and where they are; status 4 if it is interrupted."""
    subject = likelihood.of_the_chain(subject)
    chosen = split(images(subject), options.split, options.num)
    asked = Likelihood(subject.which, options.split, options.num, seed=options.seed)
    bound = likelihood.bound(subject, chosen, asked)
    if bound is None:
        return 4
    found, T = of(bound), subject.model.config.schedule.T
    counted = numbers(bound, likelihood.numbers(subject, chosen, asked, bound)[-1])
    path = subject.out / f"rate_distortion-{protocol.identity(counted[0].protocol)}.json"
    protocol.write(path, counted, subject.made_with())
    write_csv(path.with_suffix(".csv"), found, T)
    table = markdown(found, T)
    path.with_suffix(".md").write_text("\n\n".join([table, *map(protocol.line, counted)]) + "\n", encoding="utf-8")
    print(table)
    for number in counted:
        print(protocol.line(number))
    print(f"written to {path}, the table to {path.stem}.md, all steps to {path.stem}.csv")
    try:
        curves(path.with_suffix(".png"), found, T, figures_text(subject, counted[0]))
        print(f"curves in {path.stem}.png")
    except plots.MissingExtra as missing:
        print(f"no curves: {missing}")
    return 0


def of(bound: likelihood.Found) -> Found:
    """Rate and distortion of an exact bound.

    Raises:
        ValueError: if it is an estimate, which does not have every step's term.
    """
    if not bound.chain.size:
        raise ValueError("rate and distortion need the exact bound: an estimate does not have the term of every step")
    n = len(bound.total)
    # ascending from L_0 = -log p(x_0 | x_t of the last step): the term of the step that ends at x_t is one further
    terms, squares = bound.terms[:0:-1] / n, bound.terms_squared[:0:-1] / n
    received = np.concatenate([[bound.prior.mean()], terms])
    spread = np.concatenate([[bound.prior.var()], np.maximum(squares - terms**2, 0)])
    error = np.sqrt(spread / (n - 1)) if n > 1 else np.full(len(received), math.nan)
    rmse = 127.5 * np.sqrt(bound.errors[::-1] / n)
    return Found(bound.chain[:-1], received, error, received.cumsum(), rmse)


def numbers(bound: likelihood.Found, rmse: Number) -> list[Number]:
    """The end of the curve, where x_t of the last step is known: the rate with its error over images, and the RMSE.

    Args:
        rmse: the likelihood command's last number.
    """
    n, sent = len(bound.total), bound.rate + bound.prior
    error = float(sent.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    rate = Number("rate with the prior, L_1 + ... + L_T, bits/dim", float(sent.mean()), error, rmse.protocol)
    return [rate, rmse._replace(name="distortion at the last step, RMSE of x_0, 0..255")]


def write_csv(path: pathlib.Path, found: Found, T: int) -> None:
    """Writes every step: t, reverse process time, RMSE, rate, and what x_t itself adds to the rate; nan is empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["t", "reverse process time", "RMSE, 0..255", "rate, bits/dim", "step's bits/dim", "its standard error"]
        )
        for t, received, error, rate, rmse in zip(*found, strict=True):
            values = [f"{v:.7g}" if math.isfinite(v) else "" for v in (rmse, rate, received, error)]
            rows.writerow([t, T - t + 1, *values])


def read_csv(path: pathlib.Path) -> Found:
    """What `write_csv` wrote, to seven digits."""
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    t, _, rmse, rate, received, error = np.array([[float(v or "nan") for v in row] for row in rows]).T
    return Found(t.astype(np.int32), received, error, rate, rmse)


def markdown(found: Found, T: int) -> str:
    """The table at ten evenly spread times, the last first, as in the paper."""
    m = len(found.times)
    lines = ["| reverse process time, T - t + 1 | rate, bits/dim | distortion, RMSE 0..255 |", "|---|---|---|"]
    for k in sorted({math.ceil(m * j / ROWS) - 1 for j in range(1, ROWS + 1)}, reverse=True):
        lines.append(f"| {T - found.times[k] + 1} | {found.rate[k]:.5f} | {found.rmse[k]:.5f} |")
    return "\n".join(lines)


def figures_text(subject: Subject, number: Number) -> dict[str, str]:
    """What is kept in the picture's file."""
    legend = "distortion and rate over the steps of the reverse process, and distortion over rate"
    facts = protocol.line(number).split(" | ", 1)[1]
    return {"run": f"{subject.model.fingerprint} step {subject.model.step}", "legend": legend, "protocol": facts}


def curves(path: pathlib.Path, found: Found, T: int, text: dict[str, str]) -> None:
    """Draws distortion and rate over the steps, and distortion over rate, as figure 5 of the paper."""
    steps, over = T - found.times, "reverse process steps, T - t"
    rate, distortion = "rate, bits/dim", "distortion, RMSE 0..255"
    row = [
        plots.Panel(steps, {distortion: found.rmse}, over, distortion),
        plots.Panel(steps, {rate: found.rate}, over, rate),
        plots.Panel(found.rate, {distortion: found.rmse}, rate, distortion),
    ]
    plots.panels(path, row, text=text)
