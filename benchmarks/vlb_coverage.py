"""Coverage of the bound's stated standard errors, for data with a known bound.

    python -m benchmarks.vlb_coverage

Data N(0.2, 1/4) and its ideal denoiser, 1000 linear steps, beta as the reverse variance: the bound is known in closed
form, 0.840462 nats per component.  Each seed draws 256 new images of 16 components, timesteps and noise.  The same
images are evaluated by the exact bound, with one draw for every term.
"""

import numpy as np


def main(seeds: int = 1000, n: int = 256, dims: int = 16) -> None:
    """Prints the shares of the seeds within one, two and three standard errors."""
    import jax

    from ddpm_jax import gaussian, likelihood, process, schedules

    process.initialize()
    schedule, mean, std, truth = schedules.linear(1000), 0.2, 0.5, 0.840462

    def net(x, t):
        signal, noise = (schedules.gather(column, t, x) for column in (schedule.signal, schedule.noise))
        return noise * (x - signal * mean) / (signal**2 * std**2 + noise**2)

    denoise = gaussian.denoiser(schedule, net, clip=False)

    def both(key):
        data_key, key, exact_key = jax.random.split(key, 3)
        x0 = mean + std * jax.random.normal(data_key, (n, dims))
        guess = likelihood.estimate_vlb(key, schedule, denoise, x0, decoder=likelihood.gaussian_density)
        exact = likelihood.vlb(exact_key, schedule, denoise, x0, decoder=likelihood.gaussian_density)
        return guess.total / dims, exact.total / dims

    found = jax.jit(lambda keys: jax.lax.map(both, keys))(
        jax.random.split(jax.random.key(0, impl="threefry2x32"), seeds)
    )
    for name, nats in zip(("estimate, 16 strata", "exact bound"), found, strict=True):
        nats = np.asarray(nats, np.float64)
        off = (nats.mean(1) - truth) / (nats.std(1, ddof=1) / n**0.5)
        shares = ", ".join(f"{k}: {(abs(off) < k).mean():.1%}" for k in (1, 2, 3))
        print(f"{name}: of {seeds} seeds within k standard errors of {truth}: {shares}; mean offset {off.mean():+.3f}")


if __name__ == "__main__":
    main()
