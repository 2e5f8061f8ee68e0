"""Rate and distortion along the chain: the terms of the bound as a progressive code.

DDPM (arXiv:2006.11239), section 4.3, figure 5 and table 4.  The sender transmits x_T, and then for falling t what turns
x_t into x_s; after each step the receiver knows an x_t and estimates x_0 from it (equation 15).

    rate(t)       = L_T + the sum of the KL terms of all steps that end at t or before: bits/dim to be sent for x_t
    distortion(t) = sqrt(E |x_0 - x_0_hat(x_t)|^2 / D): RMSE on the scale 0..255

At t = T the rate is L_T alone; at t = 1 it is the whole bound but L_0.
"""

import math
from typing import NamedTuple

import numpy as np

from ddpm_jax.evaluate import likelihood, plots, protocol
from ddpm_jax.evaluate.context import EvaluationContext, load_images, select_split
from ddpm_jax.evaluate.figures import figure
from ddpm_jax.evaluate.options import LikelihoodOptions, RateDistortionOptions
from ddpm_jax.evaluate.protocol import Measurement

TABLE_ROWS = 10
CSV_HEADER = ["t", "reverse process time", "RMSE, 0..255", "rate, bits/dim", "step's bits/dim", "its standard error"]


class RateDistortion(NamedTuple):
    """Means over n images, step by step."""

    times: np.ndarray  # [m] the falling times t of the x_t that is known
    received: np.ndarray  # [m] bits/dim sent for x_t once the x before it is known; for the first, L_T
    error: np.ndarray  # [m] standard errors of `received`
    rate: np.ndarray  # [m] bits/dim sent until x_t is known: the sum of `received`
    rmse: np.ndarray  # [m] of the x_0 predicted from x_t, 0..255


def run(context: EvaluationContext, options: RateDistortionOptions) -> None:
    """Writes table, curves (figure 5 of the paper) and numbers."""
    context = likelihood.with_full_chain(context)
    split = select_split(load_images(context), options.split, options.num)
    likelihood_options = LikelihoodOptions(split=options.split, num=options.num, seed=options.seed)
    vlb, vlb_measurements = likelihood.load_or_measure(context, split, likelihood_options)
    curve, T = from_vlb(vlb), context.model.config.schedule.T
    measured = measurements(vlb, vlb_measurements[-1])
    files = figure.FigureFiles(context, "rate_distortion", measured[0].protocol)
    table = markdown(curve, T)
    page = "\n\n".join([table, *map(protocol.format_line, measured)]) + "\n"
    files.path.with_suffix(".md").write_text(page, encoding="utf-8")
    print(table)
    files.save_measurements(measured)
    files.save_csv(
        CSV_HEADER,
        zip(curve.times, T - curve.times + 1, curve.rmse, curve.rate, curve.received, curve.error, strict=True),
    )
    text = {
        "run": f"{context.model.fingerprint} step {context.model.step}",
        "legend": "distortion and rate over the steps of the reverse process, and distortion over rate",
        "protocol": protocol.format_line(measured[0]).split(" | ", 1)[1],
    }
    steps, over = T - curve.times, "reverse process steps, T - t"
    rate, distortion = "rate, bits/dim", "distortion, RMSE 0..255"
    panels = [
        plots.Panel(steps, {distortion: curve.rmse}, over, distortion),
        plots.Panel(steps, {rate: curve.rate}, over, rate),
        plots.Panel(curve.rate, {distortion: curve.rmse}, rate, distortion),
    ]
    plots.write_panels_if_installed(files.path.with_suffix(".png"), panels, text=text)


def from_vlb(vlb: likelihood.VlbResult) -> RateDistortion:
    """Rate and distortion of an exact bound."""
    n = len(vlb.total)
    # ascending from L_0 = -log p(x_0 | x_t of the last step): the term of the step that ends at x_t is one further
    terms, squares = vlb.terms[:0:-1] / n, vlb.terms_squared[:0:-1] / n
    received = np.concatenate([[vlb.prior.mean()], terms])
    spread = np.concatenate([[vlb.prior.var()], np.maximum(squares - terms**2, 0)])
    error = np.sqrt(spread / (n - 1)) if n > 1 else np.full(len(received), math.nan)
    rmse = 127.5 * np.sqrt(vlb.errors[::-1] / n)
    return RateDistortion(vlb.chain[:-1], received, error, received.cumsum(), rmse)


def measurements(vlb: likelihood.VlbResult, rmse: Measurement) -> list[Measurement]:
    """The last point of the curve: the rate with its standard error over images, and the bound's RMSE."""
    name = "rate with the prior, L_1 + ... + L_T, bits/dim"
    rate = protocol.measure_mean(name, vlb.rate + vlb.prior, rmse.protocol)
    return [rate, rmse._replace(name="distortion at the last step, RMSE of x_0, 0..255")]


def markdown(curve: RateDistortion, T: int) -> str:
    """The table at ten evenly spread times, the last first, as in the paper."""
    m = len(curve.times)
    lines = ["| reverse process time, T - t + 1 | rate, bits/dim | distortion, RMSE 0..255 |", "|---|---|---|"]
    for k in sorted({math.ceil(m * j / TABLE_ROWS) - 1 for j in range(1, TABLE_ROWS + 1)}, reverse=True):
        lines.append(f"| {T - curve.times[k] + 1} | {curve.rate[k]:.5f} | {curve.rmse[k]:.5f} |")
    return "\n".join(lines)
