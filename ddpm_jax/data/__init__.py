"""Images: where they come from, in which order they are seen, and how they become pictures again.

`sources` loads images (`reader` says how those are read that lie in files of their own, `folder` finds them and
`survey` reports on them), `batches` orders them by (seed, step) and feeds the training step, `images` holds the only
converters to and from [-1, 1] and makes pictures to look at, and `files` reads and writes images as data.
"""

from ddpm_jax.data.batches import Order, examples
from ddpm_jax.data.files import unwritable, write
from ddpm_jax.data.images import (
    Picture,
    Range,
    from_unit,
    grid,
    preview_scale,
    range_of,
    read_png,
    strip,
    to_integer,
    to_unit,
    write_gif,
    write_png,
)
from ddpm_jax.data.reader import Images, Part, Progress, Reader, divided, gathered, nbytes, whole
from ddpm_jax.data.sources import IN_MEMORY, load, parts, summary

__all__ = [
    "IN_MEMORY",
    "Images",
    "Order",
    "Part",
    "Picture",
    "Progress",
    "Range",
    "Reader",
    "divided",
    "examples",
    "from_unit",
    "gathered",
    "grid",
    "load",
    "nbytes",
    "parts",
    "preview_scale",
    "range_of",
    "read_png",
    "strip",
    "summary",
    "to_integer",
    "to_unit",
    "unwritable",
    "whole",
    "write",
    "write_gif",
    "write_png",
]
