"""A noise schedule as float64 arrays, for other programs."""

import jax
import numpy as np

from ddpm_jax import config as configs
from ddpm_jax.model import noise_schedule


def schedule_table(config: configs.Config) -> dict[str, np.ndarray]:
    """The columns `signal`, `noise` and `log_snr`, [T + 1] with the data in row 0, and `betas` [T]; all float64."""
    with jax.enable_x64(True):
        schedule = noise_schedule(config)
        columns = {name: np.asarray(getattr(schedule, name)) for name in ("signal", "noise", "log_snr")}
    # from log SNR, whose digits do not end where signal is next to 1
    log_alpha_bar = -np.logaddexp(0, -columns["log_snr"])
    return columns | {"betas": -np.expm1(np.diff(log_alpha_bar))}
