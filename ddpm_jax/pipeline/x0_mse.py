"""The mean squared error of a run's x_0 prediction at each t, as `ddpm-jax evaluate RUN likelihood` measures it.

x0_errors.json, for `samplers.analytic`: it belongs to certain weights, and to what is done to their predictions.
"""

import json
import pathlib

import numpy as np

from ddpm_jax import config as configs
from ddpm_jax import process
from ddpm_jax.model import denoiser_options

FILE_NAME = "x0_errors.json"


def save(
    workdir: pathlib.Path, fingerprint: str, config: configs.Config, x0_mse: np.ndarray, images: int
) -> pathlib.Path:
    """Writes the mean squared errors of x_0_hat at t = 1..T, and returns where; those of more images stay.

    Args:
        x0_mse: [T] per component, squared data units.
        images: how many they are means over.
    """
    path = workdir / FILE_NAME
    found = {"fingerprint": fingerprint, "denoiser": denoiser_options(config), "images": images}
    try:
        before = _content(path)
    except (FileNotFoundError, ValueError):
        before = {}
    if any(before.get(name) != found[name] for name in ("fingerprint", "denoiser")) or before["images"] < images:
        content = found | {"x0_errors": [0.0, *map(float, x0_mse)]}
        process.atomic_write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def load(workdir: pathlib.Path, fingerprint: str, config: configs.Config) -> np.ndarray:
    """The errors, float32 [T+1], row 0 being 0.

    Raises:
        FileNotFoundError: if they have not been measured.
        ValueError: naming the file, if it is damaged, or about other weights or another clipping.
    """
    path, T = workdir / FILE_NAME, config.schedule.T
    measure = (
        f"ddpm-jax evaluate {workdir} likelihood --steps {T}, with the same --checkpoint, --weights, --clip, "
        "--threshold and --eps-scale, measures them"
    )
    if not path.is_file():
        raise FileNotFoundError(f"--sampler analytic needs the network's errors, and there is no {path}: {measure}")
    found = _content(path)
    if found["fingerprint"] != fingerprint:
        raise ValueError(f"{path} has the errors of {found['fingerprint']}, not of {fingerprint}: {measure}")
    if found["denoiser"] != denoiser_options(config):
        raise ValueError(f"{path} has errors with {found['denoiser']}, not {denoiser_options(config)}: {measure}")
    if len(found["x0_errors"]) != T + 1:
        raise ValueError(f"{path} is damaged: {len(found['x0_errors'])} errors, not {T + 1}; remove it, and {measure}")
    return np.asarray(found["x0_errors"], np.float32)


def _content(path: pathlib.Path) -> dict:
    try:
        found = json.loads(path.read_bytes())
        numbers = np.asarray(found["x0_errors"], np.float64)
        right = numbers.ndim == 1 and np.isfinite(numbers).all() and (numbers >= 0).all() and found["images"] > 0
        if not right or type(found["fingerprint"]) is not str or type(found["denoiser"]) is not dict:
            raise ValueError("unexpected content")
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # of what JSON nests too deeply
        raise ValueError(f"{path} is damaged, remove it: {process.first_line(error)}") from error
    return found
