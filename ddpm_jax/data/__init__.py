"""Images: where they come from, in which order they are seen, and how they become pictures again.

`sources` loads images (`reader` says how those are read that lie in files of their own, `folder` finds them and
`survey` reports on them), `batches` orders them by (seed, step), `stream` brings them to the devices, `images` holds
the only converters to and from [-1, 1] and makes pictures to look at, and `files` reads and writes images as data.
"""

from ddpm_jax.data.batches import Order, Rows, examples, mirrored
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
    "Range",
    "Reader",
    "Rows",
    "Unread",
    "divided",
    "examples",
    "from_unit",
    "gathered",
    "grid",
    "load",
    "mirrored",
    "nbytes",
    "parts",
    "preview_scale",
    "range_of",
    "read_png",
    "strip",
    "summary",
    "to_integer",
    "to_unit",
    "unread",
    "unwritable",
    "whole",
    "write",
    "write_gif",
    "write_png",
]
