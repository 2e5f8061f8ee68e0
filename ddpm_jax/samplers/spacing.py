"""Spacings of the timesteps that a sampler visits."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ddpm_jax.schedules import Schedule, check_steps

Spacing = Literal["uniform", "leading", "trailing", "linspace", "ddim", "quadratic", "log_snr", "karras"]


def times(T: int | Schedule, steps: int, *, spacing: Spacing = "uniform") -> np.ndarray:
    """The timesteps of a sampler with `steps` function evaluations, falling to 0: int32 [steps + 1].

    Args:
        T: the number of noise steps, or a schedule of so many, which "log_snr" and "karras" need.
        spacing: "uniform" has equal strides from T to 1 (OpenAI's "N"); "leading" the multiples of T // steps, plus
            one, "trailing" equal strides down from T, "linspace" rounded as diffusers does; "ddim" the smallest
            integer stride that gives `steps` times (OpenAI's "ddimN"), which need not exist; "quadratic" squares,
            dense near the data (DDIM, appendix D.2); "log_snr" the times nearest to even strides in log SNR from T
            to 1 (DPM-Solver, arXiv:2206.00927), "karras" those nearest to even strides in sigma^(1/7), sigma =
            noise / signal (arXiv:2206.00364, equation 5).

    Raises:
        ValueError: if T is not an integer of at least 1, steps is not in 1..T, the spacing is unknown or lacks its
            schedule, or "ddim" cannot give that many.
    """
    schedule, T = (T, T.T) if isinstance(T, Schedule) else (None, T)
    check_steps(T)
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or not 1 <= steps <= T:
        raise ValueError(f"steps must be an integer in 1..T = {T}, got {steps!r}")
    i = np.arange(steps)
    if spacing == "uniform":
        rising = np.array([T]) if steps == 1 else 1 + np.round((T - 1) / (steps - 1) * i)
    elif spacing == "leading":
        rising = 1 + i * (T // steps)
    elif spacing == "trailing":
        rising = np.round(np.arange(T, 0, -T / steps))[::-1][-steps:]
    elif spacing == "linspace":
        rising = 1 + np.round(np.linspace(0, T - 1, steps))
    elif spacing == "ddim":
        stride = next((n for n in range(1, T + 1) if len(range(0, T, n)) == steps), None)
        if stride is None:
            raise ValueError(f"spacing 'ddim': no integer stride over {T} steps gives {steps} times")
        rising = 1 + i * stride
    elif spacing == "quadratic":
        squares = 1 + np.round((T - 1) * (i / max(steps - 1, 1)) ** 2)
        rising = np.array([T]) if steps == 1 else np.maximum(squares, i + 1)  # no time twice near the data
    elif spacing in ("log_snr", "karras"):
        if schedule is None:
            raise ValueError(f"spacing {spacing!r} depends on the noise: give times the schedule in place of T = {T}")
        rising = _nearest(schedule, steps, power=0.0 if spacing == "log_snr" else 1 / 7)
    else:
        legal = ", ".join(map(repr, Spacing.__args__))
        raise ValueError(f"spacing must be one of {legal}, got {spacing!r}")
    return np.concatenate([[0], rising]).astype(np.int32)[::-1].copy()


def _nearest(schedule: Schedule, steps: int, *, power: float) -> np.ndarray:
    """The rows from 1 to T nearest to even strides in sigma^power (log sigma for power 0), without repetition."""
    if steps == 1:
        return np.array([schedule.T])
    log_sigma = -0.5 * np.asarray(schedule.log_snr, np.float64)[1:]
    if np.isinf(log_sigma[-1]):  # no signal at T: strides down from what there is at T - 1
        log_sigma[-1] = log_sigma[-2]
    measure = np.exp(power * log_sigma) if power else log_sigma
    levels = np.linspace(measure[0], measure[-1], steps)
    nearest = 1 + np.searchsorted((measure[1:] + measure[:-1]) / 2, levels)
    nearest[-1] = schedule.T
    # where strides are shorter than the way to the next row, rows follow each other: up from 1, and down from T
    i = np.arange(steps)
    return np.minimum(i + np.maximum.accumulate(nearest - i), schedule.T - i[::-1])


def section_times(T: int, counts: Sequence[int]) -> np.ndarray:
    """OpenAI's respacing: 1..T in len(counts) equal sections, counts[i] times evenly in the i-th; falling to 0.

    Args:
        counts: number of times in each section, from the data on; 0 is allowed.

    Raises:
        ValueError: if a section has fewer steps than its count, all counts are 0, or one is not an integer.
    """
    check_steps(T)
    if any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0 for n in counts) or not any(counts):
        raise ValueError(f"counts must be integers of at least 0, and ask for at least one time, got {list(counts)}")
    size, extra = divmod(T, len(counts))
    start, selected_times = 0, set()
    for i, count in enumerate(counts):
        length = size + (i < extra)
        if length < count:
            raise ValueError(f"a section of {length} steps cannot give {count} times")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            # the positions are accumulated, as there, so that halves round alike
            selected_times.add(start + round(position) + 1)
            position += stride
        start += length
    return np.array([*sorted(selected_times, reverse=True), 0], np.int32)
