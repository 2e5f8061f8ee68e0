"""Errors of diffusers' schedulers and of our samplers on data with a known answer; needs the extra [bench].

    python -m benchmarks.schedulers

Both take the same times of `schedules.linear(1000)` and the ideal denoiser of data that are one Gaussian, or three
(those of `ddpm_jax.conformance`), in float64.  The error is the largest distance of 64 points from where the exact flow
carries them; of ancestral sampling, which is random, the standard deviation of what comes out for data of 0.5; of
clipping, the mean distance for a network whose noise is 5 % too large.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import conformance, denoisers, process, samplers, schedules
from ddpm_jax.conformance.checks import GAUSSIAN, MIXTURE
from ddpm_jax.gaussian import Denoiser

RESULTS = pathlib.Path(__file__).parent / "results" / "schedulers.json"
LAWS = {"Gaussian": GAUSSIAN, "mixture": MIXTURE}
ISOTROPIC = conformance.gaussian_data([0.2, -0.1], 0.25 * np.eye(2))
EPS_FACTOR = 1.05


def run_diffusers(scheduler: Any, denoise: Denoiser, x_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Result of a scheduler from x_T [B, ...], and its timesteps, counted from 1, with 0 at the end."""
    import torch

    for name in ("alphas_cumprod", "final_alpha_cumprod", "one"):  # whose float32 is no difference of method
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    predict = jax.jit(lambda x, t: denoise(x, t).eps)
    x = torch.from_numpy(x_T)
    for t in scheduler.timesteps:
        eps = np.asarray(predict(x.numpy(), jnp.full(len(x), int(t) + 1)))
        x = scheduler.step(torch.from_numpy(eps.copy()), t, x, return_dict=False)[0]
    return x.numpy(), np.append(np.asarray(scheduler.timesteps) + 1, 0).astype(np.int32)


def run_ours(sampler: samplers.Sampler, x_T: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Result of a deterministic sampler from x_T."""
    keys = samplers.image_keys(0, range(len(x_T)))
    return np.asarray(jax.jit(lambda x: samplers.sample(keys, sampler, x, times))(x_T))


def measure() -> list[dict[str, Any]]:
    """One row for each scheduler, spacing, number of steps and data distribution."""
    import diffusers
    import torch

    schedule, rows = schedules.linear(1000), []
    x_T = np.random.default_rng(0).standard_normal((64, 2))
    ends = {name: np.asarray(conformance.probability_flow(schedule, law, x_T, 1000, 0)) for name, law in LAWS.items()}

    def row(what: str, n: int, data: str, peer: float, own: float) -> None:
        rows.append({"what": what, "steps": n, "data": data, "theirs": float(peer), "ours": float(own)})
        print(*rows[-1].values(), flush=True)

    def compare(
        what: str, n: int, scheduler: Callable[[], Any], sampler: Callable[[Denoiser], samplers.Sampler]
    ) -> None:
        for name, law in LAWS.items():
            denoise = conformance.ideal_denoiser(schedule, law)
            peer_x0, times = run_diffusers(scheduler(), denoise, x_T)
            own_x0 = run_ours(sampler(denoise), x_T, times)
            row(what, n, name, np.abs(peer_x0 - ends[name]).max(), np.abs(own_x0 - ends[name]).max())

    def make_scheduler(kind: str, n: int | None = None, times: np.ndarray | None = None, **config: Any) -> Any:
        scheduler = getattr(diffusers, f"{kind}Scheduler")(**config)
        if times is None:
            scheduler.set_timesteps(n)
        else:
            scheduler.set_timesteps(timesteps=(times[:-1] - 1).tolist())
        return scheduler

    for n, spacing in ((10, "linspace"), (50, "linspace"), (300, "linspace"), (600, "linspace"), (600, "trailing")):
        compare(
            f"DDIM, {spacing}", n,
            lambda n=n, spacing=spacing: make_scheduler("DDIM", n, timestep_spacing=spacing, clip_sample=False),
            lambda denoise: samplers.ddim(schedule, denoise),
        )  # fmt: skip
    for n in (20, 40):
        log_snr_times = samplers.times(schedule, n, spacing="log_snr")
        compare(
            "DPM-Solver++, order 3, log_snr", n,
            lambda times=log_snr_times: make_scheduler("DPMSolverMultistep", times=times, solver_order=3),
            lambda denoise: samplers.dpm_solver_pp(schedule, denoise, order=3),
        )  # fmt: skip
    for n in (10, 20):
        compare(
            "UniPC, order 3, trailing", n,
            lambda n=n: make_scheduler("UniPCMultistep", n, solver_order=3, timestep_spacing="trailing"),
            lambda denoise: samplers.unipc(schedule, denoise, order=3),
        )  # fmt: skip

    best = conformance.ideal_denoiser(schedule, MIXTURE)
    wrong = denoisers.scale_eps(schedule, best, 1 / EPS_FACTOR)
    clipped = denoisers.limit_x0(schedule, wrong, denoisers.clip)
    for n in (10, 50):
        peer_x0, times = run_diffusers(make_scheduler("DDIM", n, timestep_spacing="leading"), wrong, x_T)
        own_x0 = run_ours(samplers.ddim(schedule, clipped), x_T, times)
        off = [np.linalg.norm(x - ends["mixture"], axis=1).mean() for x in (peer_x0, own_x0)]
        row("DDIM, clipped, noise 5 % too large, leading", n, "mixture", *off)

    many = np.random.default_rng(1).standard_normal((100_000, 2))
    torch.manual_seed(0)
    for n in (10, 20, 50):
        denoise = conformance.ideal_denoiser(schedule, ISOTROPIC)
        scheduler = make_scheduler(
            "DDPM", n, timestep_spacing="trailing", variance_type="fixed_large", clip_sample=False
        )
        peer_x0, times = run_diffusers(scheduler, denoise, many)
        ((_, cov),) = conformance.terminal_moments(
            lambda schedule, denoise, noise: samplers.ancestral(schedule, denoise, variance_mix=1.0, noise=noise),
            schedule, denoise, [times], start=(np.zeros(2), np.eye(2)),
        )  # fmt: skip
        row("DDPM, fixed_large, trailing: std of data of 0.5", n, "Gaussian", peer_x0[:, 0].std(), np.sqrt(cov[0, 0]))
    return rows


def main() -> None:
    """Measures, prints and writes."""
    process.initialize()
    jax.config.update("jax_enable_x64", True)
    import diffusers

    RESULTS.write_text(json.dumps({"diffusers": diffusers.__version__, "rows": measure()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
