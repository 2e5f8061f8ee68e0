"""Images: where they come from, in which order they are seen, and how they become pictures again.

`sources` loads integer images, `batches` orders them by (seed, step) and feeds the training step, and `images` holds
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
from ddpm_jax.data.sources import Images, load, summary

__all__ = [
    "Images",
    "Order",
    "Picture",
    "examples",
    "grid",
    "load",
    "preview_scale",
    "read_png",
    "strip",
    "summary",
    "to_integer",
    "to_unit",
    "write_gif",
    "write_png",
]
