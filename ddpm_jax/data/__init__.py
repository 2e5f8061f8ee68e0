"""Images: where they come from, in which order they are seen, and how they become pictures again.

`sources` loads integer images (`reader` says how those are read that lie in files of their own, `folder` finds them and
`survey` reports on them), `batches` orders them by (seed, step), `stream` brings them to the devices, and `images`
holds the only converters between integers and [-1, 1] and the only writers of picture files.

`stream` is imported by its own name: it needs grain, which takes a second.
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
from ddpm_jax.data.reader import (
    IN_MEMORY,
    Images,
    Part,
    Pixels,
    Progress,
    Reader,
    Unread,
    divided,
    gathered,
    nbytes,
    unread,
    whole,
)
from ddpm_jax.data.sources import load, parts, summary

__all__ = [
    "IN_MEMORY",
    "Images",
    "Order",
    "Part",
    "Picture",
    "Pixels",
    "Progress",
    "Reader",
    "Unread",
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
    "unread",
    "whole",
    "write_gif",
    "write_png",
]
