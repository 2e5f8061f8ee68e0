"""A schedule of your own, tested on data whose denoiser is known.

    python examples/own_schedule.py

A schedule is a table: give betas, or log SNR as a function of the time.
"""

import jax.numpy as jnp
import numpy as np

from ddpm_jax import gaussian, samplers, schedules

MEAN, STD = 0.3, 0.5


def sigmoid(T=1000, start=-3.0, end=3.0):
    """The sigmoid schedule (Jabri et al., arXiv:2212.11972): alpha-bar falls as a logistic function."""
    time = np.linspace(0, 1, T + 1)
    falling = 1 / (1 + np.exp(start + (end - start) * time))
    alpha_bar = (falling - falling[-1]) / (falling[0] - falling[-1])
    return schedules.from_betas(np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 1e-5, 0.999))


def straight_log_snr(T=1000):
    """Log SNR that falls in a straight line from 10 to -10."""
    return schedules.from_log_snr(lambda time: 10 - 20 * time, T)


def sample(schedule, num=4000, steps=40):
    """Samples by DPM-Solver++ of N(MEAN, STD^2), for which the best network is a formula."""

    def net(x_t, t):  # the exact E[x_0 | x_t]
        signal, noise = (gather(x_t, t) for gather in columns)
        gain = signal * STD**2 / (signal**2 * STD**2 + noise**2)
        return MEAN + gain * (x_t - signal * MEAN)

    columns = [lambda x, t, c=c: schedules.gather(c, t, x) for c in (schedule.signal, schedule.noise)]
    denoise = gaussian.denoiser(schedule, net, predicts="x0")
    keys = samplers.image_keys(seed=0, indices=range(num))
    times = samplers.times(schedule, steps, spacing="log_snr")
    sampler = samplers.dpm_solver_pp(schedule, denoise)
    return samplers.sample(keys, sampler, samplers.initial_noise(keys, (1,)), times)


def main(num=4000):
    """Prints mean and standard deviation of samples by schedule, and returns them."""
    made = {"linear": schedules.linear(1000), "sigmoid": sigmoid(), "straight log SNR": straight_log_snr()}
    found = {}
    for name, schedule in made.items():
        x = sample(schedule, num)
        found[name] = float(jnp.mean(x)), float(jnp.std(x))
        print(f"{name:17} log SNR {schedule.log_snr[1]:6.2f} to {schedule.log_snr[-1]:7.2f}", end="   ")
        print("mean %.3f, std %.3f" % found[name], f"(exact {MEAN}, {STD})")  # noqa: UP031
    return found


if __name__ == "__main__":
    main()
