"""Configurations of published checkpoints, as their files say, and networks of their form that are small."""

import json
import pathlib

import goldens_loader as goldens
import jax
import numpy as np
from safetensors.numpy import save_file

from ddpm_jax.config import Config
from ddpm_jax.convert import rules
from ddpm_jax.convert import run_folder as folders
from ddpm_jax.convert.diffusers import names, network

CIFAR10 = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
"""google/ddpm-cifar10-32: config.json."""

CAT256 = CIFAR10 | {
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "sample_size": 256,
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
}
"""google/ddpm-cat-256: config.json."""

DDPM_FIXED_LARGE = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}
"""scheduler_config.json of google/ddpm-cifar10-32."""

DDPM_FIXED_SMALL = DDPM_FIXED_LARGE | {"variance_type": "fixed_small"}
"""scheduler_config.json of google/ddpm-cat-256."""

GOLDEN = "h/diffusers_open"
"""A small network of diffusers with what it gives."""

CONFIG = {"_class_name": "UNet2DModel"} | goldens.MANIFEST[GOLDEN]["args"]
"""Its config.json."""

TINY = CONFIG | {
    "block_out_channels": [16], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 8,
}  # fmt: skip
"""The config.json of one of a single level."""

NAMES_OF_2022 = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""The names in attentions today, and those of 2022."""


def tensors() -> dict[str, np.ndarray]:
    """The small network's, in float32."""
    found = (name for name in goldens.MANIFEST[GOLDEN]["arrays"] if name.startswith("param:"))
    return {name.removeprefix("param:"): goldens.stored_array(GOLDEN, name).astype(np.float32) for name in found}


def tiny_tensors() -> dict[str, np.ndarray]:
    """Some for `TINY`."""
    read, rng = network.from_diffusers(TINY), np.random.default_rng(0)
    target = folders.param_shapes(Config(net=read.net), read.shape)
    drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), target)
    return rules.invert(names.rules(target), drawn)


def with_names_of_2022(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With the names of 2022 in attentions."""

    def name_of(name):
        for today, old in NAMES_OF_2022.items():
            name = name.replace(f".{today}.", f".{old}.")
        return name

    return {name_of(name): tensor for name, tensor in tensors.items()}


def write_pipeline(folder: pathlib.Path, *, config=None, scheduler=None, held=None) -> pathlib.Path:
    """A folder as those of 2022 are: the small network's, unless other things are given."""
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (folder / "scheduler_config.json").write_text(json.dumps(DDPM_FIXED_LARGE if scheduler is None else scheduler))
    save_file(tensors() if held is None else held, folder / "diffusion_pytorch_model.safetensors")
    return folder
