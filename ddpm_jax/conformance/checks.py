"""Orders, terminal moments and reproducibility of a sampler, measured against exact answers."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import samplers, schedules
from ddpm_jax.conformance.mixtures import (
    GaussianMixture,
    gaussian_data,
    ideal_denoiser,
    marginal_moments,
    mixture_data,
    probability_flow,
)
from ddpm_jax.gaussian import Denoiser
from ddpm_jax.samplers import Noise, Sampler
from ddpm_jax.schedules import Schedule

SamplerFactory = Callable[[Schedule, Denoiser, Noise], Sampler]
"""(schedule, denoise, noise) -> the sampler under test; one that is deterministic makes no use of the noise."""


def _ancestral(mix: float) -> SamplerFactory:
    return lambda schedule, denoise, noise: samplers.ancestral(schedule, denoise, variance_mix=mix, noise=noise)


def _solver(of: Callable[..., Sampler], order: int) -> SamplerFactory:
    return lambda schedule, denoise, noise: of(schedule, denoise, order=order)


BUILT_IN: Mapping[str, SamplerFactory] = {
    "ancestral, mix 0": _ancestral(0.0),
    "ancestral, mix 1": _ancestral(1.0),
    "ddim, eta 1": lambda schedule, denoise, noise: samplers.ddim(schedule, denoise, eta=1.0, noise=noise),
    "ddim, eta 0": lambda schedule, denoise, noise: samplers.ddim(schedule, denoise),
    **{f"dpm_solver_pp, order {order}": _solver(samplers.dpm_solver_pp, order) for order in (1, 2, 3)},
    **{f"unipc, order {order}": _solver(samplers.unipc, order) for order in (1, 2, 3)},
}
"""The samplers of the library, by the names that the table has for them."""

GAUSSIAN = gaussian_data([0.2, -0.1], [[0.25, 0.1], [0.1, 0.16]])
MIXTURE = mixture_data(
    [0.5, 0.3, 0.2],
    [[-0.6, 0.1], [0.5, 0.6], [0.4, -0.7]],
    [[[0.09, 0.02], [0.02, 0.04]], [[0.04, 0.0], [0.0, 0.04]], [[0.06, -0.03], [-0.03, 0.09]]],
)


class ConformanceReport(NamedTuple):
    """The results of `check`; an order is the slope of log error against log of the number of steps."""

    name: str
    nfe_per_step: int
    """Function evaluations of the network in each step."""
    deterministic: bool
    """True if x_T alone decides the result."""
    steps: np.ndarray
    """[n] the numbers of steps."""
    flow_error: np.ndarray
    """[n] largest distance to the exact flow, data units; NaN where not deterministic."""
    mean_error: np.ndarray
    """[n] largest error of the terminal mean for Gaussian data."""
    cov_error: np.ndarray
    """[n] largest error of the terminal covariance for Gaussian data."""
    is_reproducible: bool
    """True if the same keys give the same bits, also in another order."""
    batch_difference: float
    """Largest difference of an image drawn in a smaller batch, or with frames kept, data units."""

    @property
    def flow_order(self) -> float:
        """Order of the flow, over the last two numbers of steps; NaN where not deterministic."""
        return float(_convergence_orders(self.steps, self.flow_error)[-1])

    @property
    def cov_order(self) -> float:
        """Order of the terminal covariance, over the last two numbers of steps."""
        return float(_convergence_orders(self.steps, self.cov_error)[-1])


def check(name: str, make_sampler: SamplerFactory, *, steps: Sequence[int] = (40, 80, 160)) -> ConformanceReport:
    """A sampler's orders, terminal moments and reproducibility.

    Orders are measured from T = 100,000 down to a hundredth of the noise, on times about even in log SNR, so that
    neither rounding to times nor the last step to the data shows; the start has the exact law.  In float64 with
    `jax_enable_x64`; in float32, errors below 1e-5 are rounding and their slopes mean nothing.
    """
    schedule = schedules.linear(100_000, 1e-6, 2e-4)
    end = int(np.abs(np.asarray(schedule.noise) - 0.01).argmin())
    chains = [uniform_log_snr_times(schedule, n, end) for n in steps]
    nfe, deterministic = _probe_step(make_sampler)
    off = flow_errors(make_sampler, schedule, MIXTURE, chains) if deterministic else np.full(len(chains), np.nan)
    start, truth = marginal_moments(schedule, GAUSSIAN, schedule.T), marginal_moments(schedule, GAUSSIAN, end)
    found = terminal_moments(make_sampler, schedule, ideal_denoiser(schedule, GAUSSIAN), chains, start=start)
    mean, cov = (np.array([np.abs(f[i] - truth[i]).max() for f in found]) for i in range(2))
    repeats, apart = reproducibility(make_sampler)
    return ConformanceReport(name, nfe, deterministic, np.asarray(steps), off, mean, cov, repeats, apart)


def terminal_moments(
    make_sampler: SamplerFactory,
    schedule: Schedule,
    denoise: Denoiser,
    chains: Sequence[np.ndarray],
    *,
    start: tuple[np.ndarray, np.ndarray],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Exact mean [D] and covariance [D, D] of each chain's result, if all its steps are affine.

    With an affine denoiser, that of one Gaussian, x at the end is b + A x_T + sum_k C_k z_k in the start and the noise
    of each step, also of a sampler that remembers earlier steps.  One run with x_T and all z_k zero gives b, one for
    each component of x_T and of each z_k the columns of A and C_k.

    Args:
        denoise: affine in x_t, for x_t [B, D].
        chains: n vectors of falling times.
        start: mean [D] and covariance [D, D] of x_T.
    """
    mean, cov = (np.asarray(a, np.float64) for a in start)
    dims, longest = len(mean), max(map(len, chains))
    unit = np.concatenate([np.zeros((1, dims)), np.tile(np.eye(dims), (longest, 1))])
    keys = samplers.image_keys(0, range(len(unit)))

    @jax.jit
    def step(owner, state, t, s):
        def noise(keys, t, like):
            return jnp.where((owner == t)[:, None], jnp.asarray(unit, like.dtype), 0)

        return make_sampler(schedule, denoise, noise).step(keys, state, t, s)

    found = []
    for times in chains:
        # whose column a run finds: that of the noise of a step which leaves this time; 0 for x_T, -1 for nothing
        leaves = np.pad(np.asarray(times[:-1]), (0, longest - len(times)), constant_values=-1)
        owner = np.concatenate([[-1], np.repeat([0, *leaves], dims)])
        x_T = np.where((owner == 0)[:, None], unit, 0)
        sampler = make_sampler(schedule, denoise, samplers.step_noise)
        end = _run_chain(sampler, functools.partial(step, jnp.asarray(owner)), schedule, x_T, times)
        slopes = end[1:] - end[0]
        of_start, of_noise = slopes[:dims], slopes[dims:]
        found.append((end[0] + mean @ of_start, of_start.T @ cov @ of_start + of_noise.T @ of_noise))
    return found


def flow_errors(
    make_sampler: SamplerFactory,
    schedule: Schedule,
    mixture: GaussianMixture,
    chains: Sequence[np.ndarray],
    *,
    num: int = 64,
) -> np.ndarray:
    """The largest distance to the exact flow, over `num` standard normal points to start from, for each chain [n].

    Args:
        chains: n vectors of falling times, of any start and end.
    """
    x_t = np.random.default_rng(0).standard_normal((num, mixture.dims))
    sampler = make_sampler(schedule, ideal_denoiser(schedule, mixture), samplers.step_noise)
    step = jax.jit(lambda state, t, s: sampler.step(samplers.image_keys(0, range(num)), state, t, s))
    ends = [_run_chain(sampler, step, schedule, x_t, times) for times in chains]
    flow = functools.cache(lambda t, s: probability_flow(schedule, mixture, x_t, t, s))
    pairs = zip(ends, chains, strict=True)
    return np.array([np.abs(x - flow(int(times[0]), int(times[-1]))).max() for x, times in pairs])


def reproducibility(make_sampler: SamplerFactory, *, num: int = 8) -> tuple[bool, float]:
    """True if the same keys give the same bits, and the largest difference between programs of other batch sizes.

    The same program draws `num` images again, and in another order; other programs, whose last bits are their own,
    draw two of them alone, and all with every frame kept.
    """
    schedule = schedules.linear(100, 1e-3, 0.2)
    times = samplers.times(100, 10)
    sampler = make_sampler(schedule, ideal_denoiser(schedule, MIXTURE), samplers.step_noise)
    images = jax.jit(lambda keys: samplers.sample(keys, sampler, samplers.initial_noise(keys, (2,)), times))
    frames = jax.jit(
        lambda keys: samplers.trajectory(
            keys, sampler, samplers.initial_noise(keys, (2,)), times, save_at=times.tolist()
        )
    )
    keys = samplers.image_keys(0, range(num))
    whole, order = np.asarray(images(keys)), np.roll(np.arange(num), 3)[::-1]
    repeats = np.array_equal(images(keys), whole) and np.array_equal(images(keys[order]), whole[order])
    apart = np.abs(images(keys[:2]) - whole[:2]).max(), np.abs(frames(keys).x[-1] - whole).max()
    return repeats, float(max(apart))


def uniform_log_snr_times(schedule: Schedule, steps: int, end: int) -> np.ndarray:
    """Times from T to `end`, as even in log SNR as integers can be: int32 [steps + 1].

    A smooth grid, as the order of a solver is defined on.  The signal at T must not be 0.

    Raises:
        ValueError: if two of them would be the same time.
    """
    column = np.asarray(schedule.log_snr, np.float64)
    grid = np.linspace(column[-1], column[end], steps + 1)
    times = np.array([1 + np.abs(column[1:] - level).argmin() for level in grid], np.int32)
    if (np.diff(times) >= 0).any():
        raise ValueError(f"{steps} steps, even in log SNR from {schedule.T} to {end}, would visit a time twice")
    return times


def format_table(reports: Sequence[ConformanceReport]) -> str:
    """The reports as lines of text, one below the other; errors are those of each report's last number of steps."""
    lines = [
        f"{'sampler':<24}{'NFE':>6}{'steps':>7}{'flow error':>12}{'order':>7}"
        f"{'mean':>10}{'cov':>10}{'order':>7}{'same bits':>11}{'other batch':>13}"
    ]
    for r in reports:
        along = f"{r.flow_error[-1]:>12.1e}{r.flow_order:>7.2f}" if r.deterministic else f"{'random':>12}{'':>7}"
        lines.append(
            f"{r.name:<24}{r.nfe_per_step:>6}{r.steps[-1]:>7}{along}{r.mean_error[-1]:>10.1e}{r.cov_error[-1]:>10.1e}"
            f"{r.cov_order:>7.2f}{'yes' if r.is_reproducible else 'NO':>11}{r.batch_difference:>13.0e}"
        )
    return "\n".join(lines)


def _probe_step(make_sampler: SamplerFactory) -> tuple[int, bool]:
    """Function evaluations of a step, and True if it adds no noise."""
    schedule, nfe = schedules.linear(100), 0
    best = ideal_denoiser(schedule, GAUSSIAN)

    def denoise(x_t, t):
        nonlocal nfe
        nfe += 1
        return best(x_t, t)

    sampler = make_sampler(schedule, denoise, samplers.step_noise)
    x_T = jnp.array([[0.5, -1.0], [1.5, 0.2]])
    t, s = jnp.array([60, 30], jnp.int32)
    step = jax.jit(lambda keys, x: sampler.step(keys, sampler.init(x, t), t, s).x)
    one, two = (step(samplers.image_keys(seed, range(2)), x_T) for seed in (1, 2))
    return nfe, bool(np.array_equal(one, two))


def _run_chain(sampler: Sampler, step: Callable, schedule: Schedule, x, times: np.ndarray) -> np.ndarray:
    """x at the end of the chain, float64: step by step, as a scan would be another program for each length."""
    state = sampler.init(jnp.asarray(x, schedule.signal.dtype), jnp.asarray(times[0], jnp.int32))
    for t, s in itertools.pairwise(np.asarray(times, np.int32)):
        state = step(state, t, s)
    return np.asarray(state.x, np.float64)


def _convergence_orders(steps: np.ndarray, max_errors: np.ndarray) -> np.ndarray:
    return -np.diff(np.log(max_errors)) / np.diff(np.log(steps))
