"""Images that a user gives to a run: read, checked against what the run has, and named by their numbers."""

import dataclasses
import hashlib
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from ddpm_jax import data
from ddpm_jax.data import image_files
from ddpm_jax.model import conditioning_image_shape

if TYPE_CHECKING:  # which imports this module
    from ddpm_jax.pipeline.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class ConditioningImage:
    """A conditioning image: its file, the sha256 of its numbers, by which images are equal, and these in [-1, 1]."""

    path: str = dataclasses.field(compare=False)
    sha256: str
    x: np.ndarray = dataclasses.field(compare=False)


def read_conditioning_image(pipe: "Pipeline", path: str) -> ConditioningImage:
    """The conditioning image in a file, as a pipeline's network takes it; for super-resolution a small one.

    Raises:
        FileNotFoundError, ValueError: as `read_image`; or if the network takes no conditioning image.
    """
    shape = conditioning_image_shape(pipe.config, pipe.shape)
    if shape is None:
        raise ValueError("an image is given, but this run's network takes no conditioning image")
    factor = pipe.config.condition.super_resolution_factor or 1
    image = read_image(pipe, "--image", path, (*(side // factor for side in shape[:-1]), shape[-1]))
    x = np.asarray(data.normalize(image[None], pipe.levels))[0]
    return ConditioningImage(path, image_hash(image), enlarge(x, shape))


def enlarge(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A small image as one of this shape, its pixels repeated."""
    for axis, size in enumerate(shape):
        image = image.repeat(size // image.shape[axis], axis)
    return image


def read_image(pipe: "Pipeline", flag: str, path: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """The image in a file, which must be one of the run's: its type, its levels, and its shape or another one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the flag and the file, if it is not.
    """
    image, its = read_pixels(flag, path), pipe.shape if shape is None else shape
    if image.shape != its or image.dtype != pipe.dtype:
        wanted = f"this run has {describe_format(its, pipe.dtype)}" + (" there" if its != pipe.shape else "")
        raise ValueError(
            f"{flag} {path}: {describe_format(image.shape, image.dtype)}; {wanted}"
            f"{_conversion_hint(pipe, image, path, its)}"
        )
    if isinstance(pipe.levels, data.ValueRange):
        low, high = pipe.levels
        if image.min() < low or image.max() > high:
            raise ValueError(f"{flag} {path}: values from {image.min():g} to {image.max():g}; this run has {low:g} to "
                             f"{high:g}")  # fmt: skip
    elif image.max() >= pipe.levels:
        hint = f"this run has levels 0 to {pipe.levels - 1}{_conversion_hint(pipe, image, path, its)}"
        raise ValueError(f"{flag} {path}: holds the value {image.max()}; {hint}")
    return image


def _conversion_hint(pipe: "Pipeline", image: np.ndarray, path: str, its: tuple[int, ...]) -> str:
    """A hint for an ordinary picture of 8 bits, how it becomes one of the run's; "" for anything else."""
    if image.dtype != np.uint8 or pipe.dtype != np.uint8 or image.ndim != 3 or its[-1] not in (1, 3) or len(its) != 3:
        return ""
    steps = [] if image.shape[-1] == its[-1] else [f'.convert("{"L" if its[-1] == 1 else "RGB"}")']
    steps += [] if image.shape[:2] == its[:2] else [f".resize(({its[1]}, {its[0]}))"]
    if pipe.integer_levels < 256 and image.max() >= pipe.integer_levels:
        steps.append(f".point(lambda v: round(v * {pipe.integer_levels - 1} / 255))")
    return f'. Of an ordinary picture, with Pillow: Image.open("{path}"){"".join(steps)}.save("other.png")'


def read_pixels(flag: str, path: str) -> np.ndarray:
    """The image in a file, as it is.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the flag and the file, if it cannot be read.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{flag}: there is no file {path}")
    try:
        return image_files.decode(pathlib.Path(path)).pixels
    except ValueError as error:
        raise ValueError(f"{flag} {path}: {error}") from error


def describe_format(shape: tuple[int, ...], dtype: np.dtype) -> str:
    """A shape and a type in words."""
    return f"{'x'.join(map(str, shape))} {dtype}"


def image_hash(image: np.ndarray) -> str:
    """sha256 of an image's numbers, in the order of memory."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
