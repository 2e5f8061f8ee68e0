"""Data sets of images, their order in training, and pictures of images.

`sources` loads data sets: from arrays (`array_files`), from folders (`folder`, `folder_report`, `annotations`) and from
TFDS (`tfds`); `dataset` has their types.  `order` shuffles by (seed, step), `device_loader` brings batches to the
devices, `captions` makes texts.  `images` has the only conversions to and from [-1, 1] and makes pictures for viewing;
`image_files` reads and writes images as data.
"""

from ddpm_jax.data.dataset import (
    Dataset,
    ImageReader,
    LazyImages,
    Pixels,
    load_into_memory,
    load_lazily,
    train_test_split,
)
from ddpm_jax.data.image_files import unwritable_reason, write_image
from ddpm_jax.data.images import (
    ValueRange,
    denormalize,
    make_grid,
    make_trajectory_grid,
    normalize,
    preview_scale,
    read_png,
    to_integer,
    write_gif,
    write_png,
)
from ddpm_jax.data.order import EpochShuffle, FlatImages, gather_examples, random_flip
from ddpm_jax.data.sources import load, open_readers, summary

__all__ = [
    "Dataset", "EpochShuffle", "FlatImages", "ImageReader", "LazyImages", "Pixels", "ValueRange", "denormalize",
    "gather_examples", "load", "load_into_memory", "load_lazily", "make_grid", "make_trajectory_grid", "normalize",
    "open_readers", "preview_scale", "random_flip", "read_png", "summary", "to_integer", "train_test_split",
    "unwritable_reason", "write_gif", "write_image", "write_png",
]  # fmt: skip
