"""Images: where they come from, in which order they are seen, and how they become pictures again.

`sources` loads integer images (`reader` says how those are read that lie in files of their own, `folder` finds them and
`survey` reports on them), `batches` orders them by (seed, step) and feeds the training step, and `images` holds
the only converters between integers and [-1, 1] and the only writers of picture files.
"""

from ddpm_jax.data.batches import Order, examples
from ddpm_jax.data.images import (
    Picture,
    grid,
    preview_scale,
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
    "Reader",
    "divided",
    "examples",
    "gathered",
    "grid",
    "load",
    "nbytes",
    "parts",
    "preview_scale",
    "read_png",
    "strip",
    "summary",
    "to_integer",
    "to_unit",
    "whole",
    "write_gif",
    "write_png",
]
