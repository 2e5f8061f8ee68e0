"""Images: where they come from, in which order they are seen, and how they become pictures again.

`sources` loads images (`reader` says how those are read that lie in files of their own, `folder` finds them and
`survey` reports on them), `batches` orders them by (seed, step), `stream` brings them to the devices, `images` holds
the only converters to and from [-1, 1] and makes pictures to look at, and `files` reads and writes images as data.
"""

from ddpm_jax.data.dataset import (
    MAX_BYTES_IN_MEMORY,
    Dataset,
    ImageReader,
    LazyImages,
    Pixels,
    ProgressCallback,
    Subset,
    load_into_memory,
    load_lazily,
    load_split_into_memory,
    nbytes,
    train_test_split,
)
from ddpm_jax.data.image_files import unwritable_reason, write_image
from ddpm_jax.data.images import (
    PngImage,
    ValueRange,
    denormalize,
    make_grid,
    make_trajectory_grid,
    normalize,
    preview_scale,
    read_png,
    to_integer,
    to_value_range,
    write_gif,
    write_png,
)
from ddpm_jax.data.order import EpochShuffle, FlatImages, gather_examples, random_flip
from ddpm_jax.data.sources import load, open_readers, summary

__all__ = [
    "MAX_BYTES_IN_MEMORY",
    "Dataset",
    "EpochShuffle",
    "FlatImages",
    "ImageReader",
    "LazyImages",
    "Pixels",
    "PngImage",
    "ProgressCallback",
    "Subset",
    "ValueRange",
    "denormalize",
    "gather_examples",
    "load",
    "load_into_memory",
    "load_lazily",
    "load_split_into_memory",
    "make_grid",
    "make_trajectory_grid",
    "nbytes",
    "normalize",
    "open_readers",
    "preview_scale",
    "random_flip",
    "read_png",
    "summary",
    "to_integer",
    "to_value_range",
    "train_test_split",
    "unwritable_reason",
    "write_gif",
    "write_image",
    "write_png",
]
