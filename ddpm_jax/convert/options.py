"""The options of `ddpm-jax convert`, command by command."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro

from ddpm_jax.config import Config, flags, ranges


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """Options of the images, which weights do not contain."""

    source: flags.OptionalFlag[str] = None
    """Source of images to train on or evaluate against, as --data.source of train; `evaluate --data` replaces it."""
    levels: flags.OptionalFlag[Annotated[int, "[2, 65536]"]] = None
    """Number of values of a pixel (default: 256, 8 bits)."""
    range: flags.OptionalFlag[Annotated[tuple[float, float], "[-1e38, 1e38]"]] = None
    """Instead of levels: the values of floating-point images that become -1 and 1."""
    label_names: tuple[str, ...] = ()
    """Names of the labels, from label 0 on (default: their numbers)."""

    def apply_to(self, config: Config) -> Config:
        """The config with these options in its data; a ValueError if the range is empty, or both are given."""
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"--range must be the lowest and the highest value, got {self.range}")
        if self.range is not None and self.levels is not None:
            raise ValueError("--levels is for integer images and --range for floating-point images: give only one")
        changed: dict[str, Any] = {} if self.source is None else {"source": self.source}
        if self.range is not None:
            changed |= {"range": self.range, "levels": None}
        elif self.levels is not None:
            changed |= {"range": (), "levels": None if self.levels == 256 else self.levels}
        return dataclasses.replace(config, data=dataclasses.replace(config.data, **changed))

    def image_metadata(self, config: Config, shape: Sequence[int]) -> dict[str, Any]:
        """The image metadata of a checkpoint; a ValueError if there are not as many names as labels."""
        from ddpm_jax.data.images import to_value_range  # which imports JAX: a program's --help must not

        classes, data = config.net.num_classes, config.data
        if self.label_names and len(self.label_names) != classes:
            raise ValueError(f"--label-names has {len(self.label_names)} names, but the network has {classes} labels")
        names = self.label_names or tuple(map(str, range(classes)))
        value_range, levels = to_value_range(data.range), data.levels or 256
        usual = "float32" if value_range else "uint8" if levels <= 256 else "uint16"
        return {
            "shape": list(shape), "levels": list(value_range or ()) or levels, "dtype": usual, "format": "",
            "label_names": list(names),
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FromDiffusers:
    """A run from a folder of diffusers: UNet2DModel with DDPMScheduler or DDIMScheduler."""

    path: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="FOLDER")]]
    """The folder, with model_index.json, or with config.json and scheduler_config.json."""
    workdir: str
    """The run's folder, created."""
    null_label: bool = False
    """The last of num_class_embeds is the null label, as in networks trained for classifier-free guidance."""
    images: tyro.conf.OmitArgPrefixes[ImageOptions] = ImageOptions()


@dataclasses.dataclass(frozen=True)
class FromOriginal:
    """A run from the original's TensorFlow checkpoint, or from PyTorch's conversion of one."""

    path: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="FILE")]]
    """model.ckpt-STEP (needs TensorFlow), .ckpt or .pt (PyTorch), .npz or .safetensors."""
    config: str
    """The config, which the weights do not contain: configs/cifar10.py for CIFAR-10."""
    shape: Annotated[tuple[int, int, int], "[1, 65536]"]
    """Height, width and channels of an image."""
    workdir: str
    """The run's folder, created."""
    step: flags.OptionalFlag[ranges.CountOrZero] = None
    """The training step of the weights (default: that of the file, or 0)."""
    images: tyro.conf.OmitArgPrefixes[ImageOptions] = ImageOptions()


@dataclasses.dataclass(frozen=True)
class FromOpenAI:
    """A run from a checkpoint of improved- or guided-diffusion (.pt)."""

    path: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="FILE")]]
    """The file: .pt (PyTorch), .safetensors or .npz."""
    workdir: str
    """The run's folder, created."""
    published: flags.OptionalFlag[str] = None
    """Name of the published checkpoint, without .pt (default: the name of this file)."""
    family: flags.OptionalFlag[Literal["improved", "guided"]] = None
    """For other checkpoints: the project that trained them."""
    flags: str = ""
    """With --family: flags of the training command, for example --flags="--image_size 64 --learn_sigma True"."""
    num_classes: Annotated[int, "[0, 1000000]"] = 1000
    """With --family and --class_cond True in --flags: number of labels."""
    step: ranges.CountOrZero = 0
    """The training step of the weights."""
    images: tyro.conf.OmitArgPrefixes[ImageOptions] = ImageOptions()


@dataclasses.dataclass(frozen=True)
class FromPlain:
    """A run from a folder that `to plain` made."""

    path: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="FOLDER")]]
    """The folder."""
    workdir: str
    """The run's folder, created."""


@dataclasses.dataclass(frozen=True)
class ToPlain:
    """Weights, schedule and config as safetensors and JSON, for programs without JAX."""

    run: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
    """The run's folder."""
    out: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="OUT")]]
    """The folder, created."""
    model: tyro.conf.OmitArgPrefixes[flags.Weights] = flags.Weights()


@dataclasses.dataclass(frozen=True)
class ToDiffusers(ToPlain):
    """A folder that diffusers' DDPMPipeline or DDIMPipeline opens."""

    sampling: tyro.conf.OmitArgPrefixes[flags.SamplingOptions] = flags.SamplingOptions()
    """Defaults: those of the run's config."""
