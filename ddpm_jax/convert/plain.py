"""Weights, schedule and config as safetensors and JSON, readable without JAX.

weights.safetensors    our leaves, named by their paths: down_0/block_0/conv1/kernel, float32
schedule.safetensors   signal, noise and log_snr [T + 1], betas [T], float64
config.json            the config of the run
model.json             image shape and levels, fingerprint, step, and notes on the arrays
"""

import pathlib
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax.convert import tensor_files
from ddpm_jax.convert.rules import Rule, Tensors, identity, invert
from ddpm_jax.model import noise_schedule
from ddpm_jax.pipeline import Pipeline

NOTES = {
    "images": "float32 [B, H, W, C] in [-1, 1]",
    "kernels": "convolutions [height, width, in, out], matrices [in, out]",
    "times": "row t of the schedule is the paper's t = 1 .. T, row 0 the data; the network embeds t - 1",
}
"""Notes for readers of the arrays."""


def rules(target: Any) -> list[Rule]:
    """Every leaf is a tensor of its path."""
    return [identity(path, "/".join(path)) for path in flatten_dict(target)]


def schedule_table(config: configs.Config) -> dict[str, np.ndarray]:
    """The columns `signal`, `noise` and `log_snr`, [T + 1] with the data in row 0, and `betas` [T]; all float64."""
    with jax.enable_x64(True):
        schedule = noise_schedule(config)
        columns = {name: np.asarray(getattr(schedule, name)) for name in ("signal", "noise", "log_snr")}
    # from log SNR, whose digits do not end where signal is next to 1
    log_alpha_bar = -np.logaddexp(0, -columns["log_snr"])
    return columns | {"betas": -np.expm1(np.diff(log_alpha_bar))}


def write_folder(folder: pathlib.Path, model: Pipeline) -> None:
    """Fills a folder with a trained network's weights, schedule and config."""
    tensors = invert(rules(model.params), model.params)
    tensor_files.write_safetensors(folder / "weights.safetensors", tensors, {})
    tensor_files.write_safetensors(folder / "schedule.safetensors", schedule_table(model.config), {})
    (folder / "config.json").write_text(configs.to_json(model.config), encoding="utf-8")
    metadata = {
        "fingerprint": model.fingerprint,
        "step": model.step,
        "weights": model.weights,
        "image": {
            "shape": model.shape,
            "levels": model.levels,
            "dtype": str(model.dtype),
            "format": model.format,
            "label_names": model.label_names,
            "untrained": model.untrained_labels,
        },
        "versions": {"ddpm_jax": ddpm_jax.__version__, "jax": jax.__version__},
        "notes": NOTES,
    }
    tensor_files.write_json(folder / "model.json", metadata)


def read_folder(folder: pathlib.Path) -> tuple[configs.Config, dict[str, Any], Tensors]:
    """Config, metadata and tensors of a folder that `write_folder` filled.

    Raises:
        FileNotFoundError, ValueError: if a file is missing or damaged.
    """
    metadata = tensor_files.read_json(folder / "model.json")
    if not isinstance(metadata.get("image"), dict) or not isinstance(metadata["image"].get("shape"), list):
        raise ValueError(f"{folder / 'model.json'} has no image shape")
    if not isinstance(metadata.get("fingerprint"), str):
        raise ValueError(f"{folder / 'model.json'} has no fingerprint of the weights")
    return configs.read(folder / "config.json"), metadata, tensor_files.read_tensors(folder / "weights.safetensors")
