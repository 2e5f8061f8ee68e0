"""Conditions of the images of a data set: labels, texts and conditioning images."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax import config as configs
from ddpm_jax import data, guidance, process
from ddpm_jax.data import captions
from ddpm_jax.data.device_loader import split_by_device
from ddpm_jax.guidance import Condition
from ddpm_jax.model import conditioning_image_shape
from ddpm_jax.models import text


def load_images(config: configs.Data, **options: Any) -> data.Dataset:
    """The images that a config names, by `data.load`; `options` of it are added, or replace the config's.

    Raises:
        FileNotFoundError, ValueError: as `data.load`.
    """
    names = "source", "held_out", "levels", "resolution", "skip_bad", "stream"
    fields: dict[str, Any] = {name: getattr(config, name) for name in names} | {"value_range": config.range}
    return data.load(**fields | options)


class DatasetConditions:
    """The conditions of all images of a data set, as the network of a config takes them.

    Args:
        held_out: use the held-out images in place of the training images.

    Raises:
        ValueError: if the images lack labels or texts that the network takes, have more labels than it has classes, or
            have a text that is too long.
    """

    def __init__(self, config: configs.Config, images: data.Dataset, *, held_out: bool = False) -> None:
        self.images = images.test if held_out else images.train
        self.factor, self.levels = config.condition.super_resolution_factor if held_out else 0, images.levels
        if config.condition.super_resolution_factor:
            guidance.block_average(np.zeros((1, *images.train.shape[1:])), config.condition.super_resolution_factor)
        if config.condition.paired:
            other = _load_paired(config, images)
            self.images, self.levels = other.test if held_out else other.train, other.levels
        self.has_images = bool(config.condition.paired or self.factor)
        self.labels: np.ndarray | None = None
        self.text_rows: np.ndarray | None = None
        if config.net.num_classes:
            _check_labels(config.net.num_classes, images)
            self.labels = images.test_labels if held_out else images.train_labels
        if config.text.layers:
            self.texts, self.text_rows = captions.caption_table(images, config.condition.templates, held_out=held_out)
            self.tokens = _token_table(self.texts, config.text.length)

    def gather(self, indices: np.ndarray) -> Condition:
        """The conditions of the images at `indices` [...]: labels [...], tokens [..., K, L] of all texts of each.

        Conditioning images are [..., H, W, C] in [-1, 1]; in training, the step makes low-resolution ones itself.
        """
        label = None if self.labels is None else self.labels[indices]
        tokens = None if self.text_rows is None else self.tokens[self.text_rows[indices]]
        if not self.has_images:
            return Condition(label, tokens)
        x = np.asarray(data.normalize(np.asarray(self.images[indices.reshape(-1)]), self.levels))
        x = np.asarray(guidance.block_average(x, self.factor)) if self.factor else x
        return Condition(label, tokens, image=x.reshape(*indices.shape, *x.shape[1:]))

    def gather_first_text(self, indices: np.ndarray) -> Condition:
        """As `gather`, with only the first text, tokens [..., L]."""
        rows = self.gather(indices)
        return rows if rows.tokens is None else rows._replace(tokens=rows.tokens[..., 0, :])

    def device_batch(self, indices: np.ndarray) -> Condition:
        """As `gather`, for this process's devices: indices of k steps [k, batch] -> [devices, k, b, ...]."""
        return self.gather(process.local_shard(split_by_device(indices, jax.device_count())))


def _load_paired(config: configs.Config, images: data.Dataset) -> data.Dataset:
    levels = None if isinstance(images.levels, data.ValueRange) else config.data.levels
    other = load_images(config.data, source=config.condition.paired, levels=levels, skip_bad=False)
    expected = conditioning_image_shape(config, images.train.shape[1:])
    if other.train.shape[1:] != expected:
        raise ValueError(
            f"{other.name} has images {other.train.shape[1:]}, and {expected} are the conditioning images of those of "
            f"{images.name} (--condition.paired-channels)"
        )
    if (other.levels, other.train.dtype) != (images.levels, images.train.dtype):
        raise ValueError(
            f"{other.name} has {other.train.dtype} of {other.levels} levels, and {images.name} {images.train.dtype} of "
            f"{images.levels}: pairs must be of one kind"
        )
    if (len(other.train), len(other.test)) != (len(images.train), len(images.test)):
        raise ValueError(
            f"{other.name} has {len(other.train)} training and {len(other.test)} held-out images, "
            f"{images.name} {len(images.train)} and {len(images.test)}: they cannot be pairs"
        )
    return other


def _check_labels(classes: int, images: data.Dataset) -> None:
    if images.train_labels is None or images.test_labels is None:
        raise ValueError(f"{images.name} has no labels, and net.num_classes = {classes} needs them")
    most = max(1 + int(max(images.train_labels.max(), images.test_labels.max())), len(images.label_names))
    if most > classes:
        raise ValueError(f"{images.name} has {most} labels, and net.num_classes is {classes}")


def _token_table(texts: Sequence[Sequence[str]], length: int) -> np.ndarray:
    """The tokens of rows of texts, uint8 [rows, K, length], 0 where a row has fewer than K."""
    most = max(map(len, texts))
    try:
        flat = text.tokenize([text for row in texts for text in (*row, *[""] * (most - len(row)))], length)
    except ValueError as error:
        raise ValueError(f"{error}; --text.length sets the most bytes of a text") from None
    return flat.reshape(len(texts), most, length)
