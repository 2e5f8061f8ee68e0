"""Folders of diffusers: a `UNet2DModel` with its `DDPMScheduler` or `DDIMScheduler`, read and written.

Its configuration is read field by field; an unsupported value is refused by the field's name, and a field
that is missing has the value that diffusers gives it.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax.convert import tensor_files
from ddpm_jax.convert.diffusers import names, network, scheduler
from ddpm_jax.convert.diffusers.network import null_label
from ddpm_jax.convert.diffusers.scheduler import differences
from ddpm_jax.convert.rules import Rule, invert

__all__ = ["WEIGHTS", "DiffusersPipeline", "differences", "null_label", "read_pipeline", "write_pipeline"]

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""The files that hold weights, the one that takes no PyTorch first."""


class DiffusersPipeline(NamedTuple):
    """A pipeline in diffusers' format."""

    config: configs.Config  # ours.  Its data are the default's
    shape: tuple[int, int, int]  # of an image, (H, W, C)
    tensors: Mapping[str, np.ndarray]  # the network's
    files: tuple[pathlib.Path, ...]  # those that were read
    rules: Callable[[Any], list[Rule]]  # of our tree of parameters
    fingerprint: str | None  # of the tensors as our parameters, if `write_pipeline` wrote them; else None


def read_pipeline(folder: pathlib.Path, *, null_label: bool = False) -> DiffusersPipeline:
    """The pipeline in a folder, with its parts in `unet` and `scheduler` or side by side, as of 2022.

    Args:
        null_label: whether the last of its labels stands for none, which only a folder of `write_pipeline` contains.

    Raises:
        FileNotFoundError: if a file is missing, saying which.
        ValueError: if a file is damaged, a field is not supported, or `null_label` is not what the folder contains.
        ModuleNotFoundError: as `tensor_files.read_tensors`.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    places = (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json")
    settings = next((path for path in places if path.is_file()), None)
    if settings is None:
        hint = "it defines the noise that the network was trained with"
        raise FileNotFoundError(f"{folder} holds no scheduler_config.json, neither itself nor in scheduler: {hint}")
    read = network.from_diffusers(tensor_files.read_json(unet / "config.json"), null_label=null_label)
    chain = scheduler.from_diffusers(tensor_files.read_json(settings), learned_variance=read.learned_variance)
    always_labelled = read.net.num_classes and not null_label
    condition = configs.Condition(dropout=0.0) if always_labelled else configs.Condition()
    config = dataclasses.replace(chain, net=read.net, condition=condition)
    weights = _weights(unet)
    tensors, paths = tensor_files.read_tensors(weights), (unet / "config.json", settings, weights)
    rules = partial(names.rules, attention=names.attention_names(tensors), null_label=null_label)
    header = tensor_files.safetensors_metadata(weights)
    if header.get("null_label", str(null_label)) != str(null_label):
        hint = (
            "no row of its labels stands for none: leave out"
            if null_label
            else "the last row of its labels stands for none: give"
        )
        raise ValueError(f"{weights}: {hint} --null-label")
    return DiffusersPipeline(config, read.shape, tensors, paths, rules, header.get("fingerprint"))


def write_pipeline(
    folder: pathlib.Path, config: configs.Config, shape: tuple[int, ...], params: Any, metadata: Mapping[str, str]
) -> None:
    """Fills a folder that diffusers' `DDPMPipeline.from_pretrained` (for a DDIM, `DDIMPipeline`) opens.

    Args:
        shape: of an image, (H, W, C).
        metadata: for the header of the weights' file.

    Raises:
        ValueError: naming everything that diffusers cannot express; nothing is written then.
    """
    version = {"_diffusers_version": "0.30.0"}
    unet, diffusion = network.to_diffusers(config, shape), scheduler.to_diffusers(config)
    tensors = invert(names.rules(params, null_label=network.null_label(config)), params)
    pipeline = diffusion["_class_name"].replace("Scheduler", "Pipeline")
    for part in ("unet", "scheduler"):
        (folder / part).mkdir()
    index = {"_class_name": pipeline, **version, "unet": ["diffusers", "UNet2DModel"]}
    tensor_files.write_json(folder / "model_index.json", index | {"scheduler": ["diffusers", diffusion["_class_name"]]})
    tensor_files.write_json(folder / "unet" / "config.json", unet | version)
    tensor_files.write_json(folder / "scheduler" / "scheduler_config.json", diffusion | version)
    header = {"format": "pt", "ddpm_jax": ddpm_jax.__version__, "null_label": str(null_label(config)), **metadata}
    tensor_files.write_safetensors(folder / "unet" / WEIGHTS[0], tensors, header)


def _weights(unet: pathlib.Path) -> pathlib.Path:
    found = next((unet / name for name in WEIGHTS if (unet / name).is_file()), None)
    if found is None:
        others = sorted(
            p.name for p in unet.iterdir() if p.suffix in (".safetensors", ".bin", ".msgpack") or ".index." in p.name
        )
        raise FileNotFoundError(
            f"{unet} holds neither {' nor '.join(WEIGHTS)}" + (f", but {', '.join(others)}" if others else "")
        )
    return found
