"""The conditioning image of a request: read from a file, and named by its pixels."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ddpm_jax import data
from ddpm_jax.model import conditioning_image_shape
from ddpm_jax.pipeline import user_images

if TYPE_CHECKING:  # which imports this module
    from ddpm_jax.pipeline.pipeline import Pipeline


class ConditioningImage(NamedTuple):
    """A conditioning image: its file, the sha256 of its numbers, and these in [-1, 1].

    Two are equal if their hashes are.
    """

    path: str
    sha256: str
    x: np.ndarray

    def __eq__(self, other) -> bool:
        return isinstance(other, ConditioningImage) and self.sha256 == other.sha256

    def __ne__(self, other) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.sha256)


def read_conditioning_image(pipe: "Pipeline", path: str) -> ConditioningImage:
    """The conditioning image in a file, as a pipeline's network takes it; for super-resolution a small one.

    Raises:
        FileNotFoundError, ValueError: as `user_images.read_image`; or if the network takes no conditioning image.
    """
    shape = conditioning_image_shape(pipe.config, pipe.shape)
    factor = pipe.config.condition.super_resolution_factor
    if shape is None:
        raise ValueError("an image is given, but this run's network takes no conditioning image")
    if factor:
        shape = (*(side // factor for side in shape[:-1]), shape[-1])
    image = user_images.read_image(pipe, "--image", path, shape)
    x = np.asarray(data.normalize(image[None], pipe.levels))[0]
    for axis in range(len(shape) - 1 if factor else 0):
        x = x.repeat(factor, axis)
    return ConditioningImage(path, user_images.image_hash(image), x)
