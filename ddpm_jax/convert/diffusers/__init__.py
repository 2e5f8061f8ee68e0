"""Folders of diffusers: a `UNet2DModel` with its `DDPMScheduler` or `DDIMScheduler`, read and written.

What its configuration says is read field by field; what cannot be had here is refused by the field's name, and a field
that is missing has the value that diffusers gives it.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax.convert import files
from ddpm_jax.convert.diffusers import names, network, scheduler
from ddpm_jax.convert.diffusers.network import null_label
from ddpm_jax.convert.diffusers.scheduler import differences
from ddpm_jax.convert.rules import Rule, invert

__all__ = ["WEIGHTS", "Source", "differences", "null_label", "source", "write"]

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""The files that hold weights, the one that takes no PyTorch first."""


class Source(NamedTuple):
    """What a folder holds.

    Attributes:
        network, chain: what its configuration says.
        tensors: the network's.
        files: those that were read.
        attention: the names in its attentions.
        fingerprint: of the tensors as our parameters, if `write` wrote them; else None.
        null_label: whether the last of its labels stands for none.
    """

    network: network.Network
    chain: scheduler.Chain
    tensors: Mapping[str, np.ndarray]
    files: tuple[pathlib.Path, ...]
    attention: names.Attention
    fingerprint: str | None
    null_label: bool

    def rules(self, target: Any) -> list[Rule]:
        """The rules of our tree of parameters."""
        return names.rules(target, self.attention, null_label=self.null_label)


def source(folder: pathlib.Path, *, null_label: bool = False) -> Source:
    """What a pipeline's folder holds, with its parts in `unet` and `scheduler` or side by side, as of 2022.

    Args:
        null_label: whether the last of its labels stands for none, which its configuration does not say.

    Raises:
        FileNotFoundError: if a file is missing, saying which.
        ValueError: if a file is damaged, or a field of a configuration stands in the way.
        ModuleNotFoundError: as `files.read`.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    places = (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json")
    settings = next((path for path in places if path.is_file()), None)
    if settings is None:
        raise FileNotFoundError(
            f"{folder} holds no scheduler_config.json, neither itself nor in scheduler: without it nobody knows the "
            "noise that the network was trained with"
        )
    read = network.read(files.read_json(unet / "config.json"), null_label=null_label)
    chain = scheduler.read(files.read_json(settings), doubled=read.doubled)
    weights = _weights(unet)
    tensors = files.read(weights)
    read_from, said = (unet / "config.json", settings, weights), files.header(weights).get("fingerprint")
    return Source(read, chain, tensors, read_from, names.attention_names(tensors), said, null_label)


def write(
    folder: pathlib.Path, config: configs.Config, shape: tuple[int, ...], params: Any, said: Mapping[str, str]
) -> None:
    """Fills a folder that diffusers' `DDPMPipeline.from_pretrained` (for a DDIM, `DDIMPipeline`) opens.

    Args:
        shape: of an image, (H, W, C).
        said: what is said in the header of the weights' file.

    Raises:
        ValueError: naming everything that diffusers cannot express; nothing is written then.
    """
    about = {"_diffusers_version": "0.30.0"}
    unet, chain = network.write(config, shape), scheduler.write(config)
    tensors = invert(names.rules(params, null_label=network.null_label(config)), params)
    pipeline = chain["_class_name"].replace("Scheduler", "Pipeline")
    for part in ("unet", "scheduler"):
        (folder / part).mkdir()
    index = {"_class_name": pipeline, **about, "unet": ["diffusers", "UNet2DModel"]}
    files.write_json(folder / "model_index.json", index | {"scheduler": ["diffusers", chain["_class_name"]]})
    files.write_json(folder / "unet" / "config.json", unet | about)
    files.write_json(folder / "scheduler" / "scheduler_config.json", chain | about)
    header = {"format": "pt", "ddpm_jax": ddpm_jax.__version__, **said}
    files.write_safetensors(folder / "unet" / WEIGHTS[0], tensors, header)


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
