"""Errors of ODE solvers at equal numbers of function evaluations (NFE).

    python -m benchmarks.solvers

The largest distance of 64 points to where the exact flow carries them, in data units, float64, for data that are one
Gaussian and that are three (those of `ddpm_jax.conformance`), on six grids of times: T = 1000 down to the data with
four of the library's spacings; and T = 100,000 down to a hundredth of the noise, even in log SNR, or even in
sigma^(1/7), sigma = noise / signal (Karras et al., arXiv:2206.00364, equation 5).
"""

import functools
import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import conformance, process, samplers, schedules
from ddpm_jax.conformance.checks import GAUSSIAN, MIXTURE
from ddpm_jax.samplers import Sampler
from ddpm_jax.schedules import gather

NFE = (5, 10, 20, 40)
RESULTS = pathlib.Path(__file__).parent / "results" / "solvers.json"


def heun(schedule, denoise, single) -> Sampler:
    """Heun's method in sigma (Karras et al., arXiv:2206.00364, algorithm 1), but Euler's from time `single` down."""

    def step(keys, state, t, s):
        signal_t, noise_t = gather(schedule.signal, t, state.x), gather(schedule.noise, t, state.x)
        signal_s, noise_s = gather(schedule.signal, s, state.x), gather(schedule.noise, s, state.x)
        found = denoise(state.x, t)
        width = noise_s / signal_s - noise_t / signal_t  # dx/dsigma = eps where x = signal (x_0 + sigma eps)
        euler = state.x / signal_t + width * found.eps
        again = denoise(signal_s * euler, jnp.maximum(s, 1)).eps
        twice = state.x / signal_t + width * (found.eps + again) / 2
        return samplers.State(signal_s * jnp.where(t <= single, euler, twice), found.x0, s)

    return Sampler(lambda x, t: samplers.State(x, jnp.zeros_like(x), t), step)


class PublishedUniPCState(NamedTuple):
    """A state with lambda, x_0_hat and x of the latest calls, newest first; n of them have been."""

    x: jax.Array
    x0: jax.Array
    t: jax.Array
    n: jax.Array
    lambdas: jax.Array
    x0s: jax.Array
    corrected: jax.Array


def published_unipc(schedule, denoise, *, order) -> Sampler:
    """UniPC as arXiv:2302.04867 has it: B(h) = expm1(h), coefficients from the linear system, halves where it says."""

    def step(keys, state, t, s):
        x0 = denoise(state.x, t).x0
        now = 0.5 * gather(schedule.log_snr, t, state.x)
        # the step that led here, once more with what is known of its end
        x = state.x
        for p in range(1, order + 1):
            again = _solve(schedule, state.corrected, state.lambdas[:p], state.x0s[:p], now, at_end=x0, t=t)
            x = jnp.where(jnp.minimum(state.n, order) == p, again, x)
        knots = jnp.concatenate([now[None], state.lambdas[:-1]])
        past = jnp.concatenate([x0[None], state.x0s[:-1]])
        end, found = 0.5 * gather(schedule.log_snr, s, x), x
        for p in range(1, order + 1):
            there = _solve(schedule, x, knots[:p], past[:p], end, at_end=None, t=s)
            found = jnp.where(jnp.minimum(state.n + 1, order) == p, there, found)
        found = jnp.where(s == 0, x0, found)
        return PublishedUniPCState(found, x0, s, state.n + 1, knots, past, x)

    def init(x, t):
        none = jnp.arange(order) + 1.0
        return PublishedUniPCState(x, jnp.zeros_like(x), t, jnp.int32(0), none, jnp.zeros((order, *x.shape)), x)

    return Sampler(init, step)


def _solve(schedule, x, knots, past, end, *, at_end, t):
    """x at lambda = end from x at knots[0], through the x_0_hat at the knots and, where it is given, at the end."""
    h = end - knots[0]
    r, d = [(k - knots[0]) / h for k in knots[1:]], [m - past[0] for m in past[1:]]
    if at_end is not None:
        r, d = [*r, 1.0], [*d, at_end - past[0]]
    big = -jnp.expm1(-h)
    sigma = jnp.exp(-knots[0]), jnp.exp(-end)  # noise / signal
    signal = [1 / jnp.sqrt(1 + each**2) for each in sigma]
    noise = [each * s for each, s in zip(sigma, signal, strict=True)]
    total = big * past[0]
    if len(r) == 1:  # UniP-2 and UniC-1
        total += big * 0.5 * d[0] / r[0]
    elif r:
        phi, rows = big, []
        for k in range(1, len(r) + 1):  # int_0^h exp(u - h) (u / h)^k du = 1 - k int ... (u / h)^(k-1) / h
            phi = 1 - k * phi / h
            rows.append(phi)
        powers = jnp.stack([jnp.stack([jnp.asarray(a) ** k for a in r]) for k in range(1, len(r) + 1)])
        weights = jnp.linalg.solve(powers, jnp.stack(rows))
        total += sum(w * each for w, each in zip(weights, d, strict=True))
    return noise[1] / noise[0] * x + signal[1] * total


def time_grids() -> dict:
    """Name -> schedule, and times for a number of steps."""
    usual, fine = schedules.linear(1000), schedules.linear(100_000, 1e-6, 2e-4)
    end = int(np.abs(np.asarray(fine.noise) - 0.01).argmin())
    sigma = np.asarray(fine.noise) / np.asarray(fine.signal)

    def karras(n):
        levels = np.linspace(sigma[-1] ** (1 / 7), sigma[end] ** (1 / 7), n + 1) ** 7
        return np.array([1 + np.abs(sigma[1:] - level).argmin() for level in levels], np.int32)

    spacings: tuple[samplers.Spacing, ...] = ("uniform", "quadratic", "log_snr", "karras")
    named = {
        f"{spacing}, to the data": (usual, functools.partial(samplers.times, usual, spacing=spacing))
        for spacing in spacings
    }
    return named | {
        "even in log SNR, to noise 0.01": (fine, lambda n: conformance.uniform_log_snr_times(fine, n, end)),
        "even in sigma^(1/7), to noise 0.01": (fine, karras),
    }


def heun_times(nfe: int, times_of) -> tuple[np.ndarray, int]:
    """Timesteps of Heun's method for a number of function evaluations, and the timestep from which steps are Euler's.

    The step to the data, where sigma is 0, is Euler's; where the number of calls is then odd, the one before too.
    """
    to_data = times_of(1)[-1] == 0
    last = (1 if nfe % 2 else 2) if to_data else nfe % 2
    times = times_of((nfe - last) // 2 + last)
    return times, int(times[len(times) - 1 - last]) if last else -1


def solvers() -> dict:
    """Name -> `conformance.SamplerFactory`, for solvers with one function evaluation a step."""
    kinds = {"dpm_solver_pp": samplers.dpm_solver_pp, "unipc": samplers.unipc, "unipc, as published": published_unipc}

    def of(make, order):
        return lambda schedule, denoise, noise: make(schedule, denoise, order=order)

    return {f"{name}, order {order}": of(make, order) for name, make in kinds.items() for order in (1, 2, 3)}


def measure() -> list[dict]:
    """One row for each grid, solver and data distribution: errors by NFE."""
    rows = []
    for grid, (schedule, times_of) in time_grids().items():
        chains = [times_of(n) for n in NFE]
        twice = [heun_times(n, times_of) for n in NFE]
        for data, law in {"Gaussian": GAUSSIAN, "mixture": MIXTURE}.items():
            found = {name: conformance.flow_errors(of, schedule, law, chains) for name, of in solvers().items()}
            found["heun, two calls a step"] = np.concatenate(
                [
                    conformance.flow_errors(lambda s, d, _, single=single: heun(s, d, single), schedule, law, [times])
                    for times, single in twice
                ]
            )
            for name, flow_errors in found.items():
                rows.append({"grid": grid, "solver": name, "data": data, "errors": [float(e) for e in flow_errors]})
                print(*rows[-1].values(), flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """Markdown table, the best of a grid bold; `as published` is only in the JSON file."""
    laws = ("Gaussian", "mixture")
    solver_errors = {(row["grid"], row["solver"]): [] for row in rows if "published" not in row["solver"]}
    for row in rows:
        if (row["grid"], row["solver"]) in solver_errors:
            solver_errors[row["grid"], row["solver"]] += row["errors"]
    head = ["grid", "solver", *(f"{law}, {n}" if n == NFE[0] else f"{n}" for law in laws for n in NFE)]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * len(laws) * len(NFE)]
    for (grid, solver), found in solver_errors.items():
        best = np.min([others for (where, _), others in solver_errors.items() if where == grid], axis=0)
        cells = [f"**{e:.1e}**" if e == least else f"{e:.1e}" for e, least in zip(found, best, strict=True)]
        lines.append("| " + " | ".join([grid, solver, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints and writes."""
    process.initialize()
    jax.config.update("jax_enable_x64", True)
    rows = measure()
    RESULTS.write_text(json.dumps({"calls": NFE, "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
