"""Errors of the options and arguments of networks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import jax
import jax.numpy as jnp

from ddpm_jax.guidance import Array
from ddpm_jax.models.unet.compat import AttentionBy, Padding, Resample, TimeConditioning, TimeOrder
from ddpm_jax.models.unet.layers import DROPOUT_STEP
from ddpm_jax.models.unet.norm import group_count

if TYPE_CHECKING:
    from ddpm_jax.models.patch_transformer import PatchTransformer
    from ddpm_jax.models.unet.network import UNet


def check_options(net: "UNet") -> None:
    """Raises a ValueError for options out of range."""
    if len(net.channel_multipliers) == 0:
        raise ValueError("channel_multipliers is empty: give one integer per level, such as (1, 2, 2, 2)")
    _check_heads(net)
    _check_choices(net)
    if net.groups < 1:
        raise ValueError(f"groups = {net.groups}: a normalisation needs at least one")
    # only where parameters are made; scale_shift, after the normalisation, has no such problem
    fresh = net.is_initializing() and net.time_conditioning == "add"
    if fresh and all(group_count(net.channels * m, net.groups) == net.channels * m for m in net.channel_multipliers):
        raise ValueError(
            f"channels = {net.channels}, channel_multipliers = {tuple(net.channel_multipliers)}: every channel would"
            " be a group of the normalisation by itself and forget the time that is added to it;"
            f" some level needs more than groups = {net.groups} channels"
        )
    check_shared_options(net)


def check_shared_options(net: "UNet | PatchTransformer") -> None:
    """Raises a ValueError for options out of range that all networks have."""
    if net.num_classes < 0 or net.context_dim < 0:
        raise ValueError(
            f"num_classes = {net.num_classes}, context_dim = {net.context_dim}: 0 for none, or how many there are"
        )
    if not 0 <= net.dropout < 1 - DROPOUT_STEP / 2:
        raise ValueError(f"dropout = {net.dropout} is not in [0, 1): it is the share of numbers that are set to 0")


def _check_heads(net: "UNet") -> None:
    if net.heads != 1 and net.head_channels:
        raise ValueError(
            f"heads = {net.heads}, head_channels = {net.head_channels}: say how many heads there are, or how many"
            " channels each has (heads = 1), and not both"
        )
    for m in net.channel_multipliers:
        if net.channels * m % net.heads:
            raise ValueError(
                f"heads = {net.heads} does not divide the {net.channels * m} channels of the level with multiplier {m}"
                f" (channels = {net.channels}): every head needs the same number of them"
            )
        if net.head_channels < 0 or (net.head_channels and net.channels * m % net.head_channels):
            raise ValueError(
                f"head_channels = {net.head_channels} does not divide the {net.channels * m} channels of the level with"
                f" multiplier {m} (channels = {net.channels}); 0 is as many heads as heads says"
            )


def _check_choices(net: "UNet") -> None:
    compat = net.compat
    check_choices({
        "attention_by": (net.attention_by, AttentionBy),
        "time_conditioning": (net.time_conditioning, TimeConditioning),
        "resample": (net.resample, Resample),
        "compat.padding": (compat.padding, Padding),
        "compat.time_order": (compat.time_order, TimeOrder),
    })  # fmt: skip
    factors = [2**i for i in range(len(net.channel_multipliers))]
    if net.attention_by == "factor" and not set(net.attention_resolutions) <= set(factors):
        raise ValueError(
            f"attention_resolutions = {tuple(net.attention_resolutions)} with attention_by = 'factor': the levels are"
            f" smaller than the image by {', '.join(map(str, factors))}"
        )
    if not compat.eps > 0 or not compat.time_scale > 0:
        raise ValueError(f"compat.eps = {compat.eps}, compat.time_scale = {compat.time_scale}: both must be positive")
    if compat.time_shift not in (0, 1) or compat.time_dim < 0:
        raise ValueError(
            f"compat.time_shift = {compat.time_shift}, compat.time_dim = {compat.time_dim}: the first is 0 or 1,"
            " the second how many numbers a time becomes, 0 for as many as channels"
        )


def check_choices(choices: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises a ValueError for options, by name, whose value is none of their `Literal`'s."""
    for name, (value, literal) in choices.items():
        if value not in get_args(literal):
            raise ValueError(f"{name} = {value!r} is not one of {', '.join(map(repr, get_args(literal)))}")


def check_arguments(x: jax.Array, t: jax.Array, dropout_keys: jax.Array | None) -> None:
    """Raises a ValueError for arrays of the wrong shape or dtype."""
    if x.ndim not in (3, 4, 5):
        raise ValueError(
            f"x has shape {x.shape}: images are [B, H, W, C], volumes [B, D, H, W, C], sequences [B, L, C]"
        )
    if x.size == 0:
        raise ValueError(f"x has shape {x.shape}: give at least one image, with no side of 0")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x is {x.dtype}: scale {x.dtype} images to [-1, 1] first, as floats (x / 127.5 - 1)")
    if t.shape != x.shape[:1]:
        raise ValueError(f"t has shape {t.shape}, x has shape {x.shape}: t is [B], one time per image")
    if not jnp.issubdtype(t.dtype, jnp.integer):
        raise ValueError(f"t is {t.dtype}: times are the integers 1 .. T")
    if dropout_keys is None:
        return
    dtype = getattr(dropout_keys, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        found = type(dropout_keys).__name__ if dtype is None else dtype
        raise ValueError(f"dropout_keys is {found}: give typed keys, jax.random.split(jax.random.key(seed), B)")
    if "rbg" in str(dtype):  # jax draws a batch of these from its first key alone
        raise ValueError(f"dropout_keys is {dtype}: under vmap only threefry2x32 keys give each image its own bits")
    if dropout_keys.shape != x.shape[:1]:
        raise ValueError(f"dropout_keys has shape {dropout_keys.shape}, x has shape {x.shape}: one key per image, [B]")


def check_conditions(
    net: "UNet | PatchTransformer",
    x: jax.Array,
    label: Array | None,
    context: Array | None,
    mask: Array | None,
    image: Array | None,
) -> None:
    """Raises a ValueError for conditions that the network does not take, or of the wrong shape or dtype."""
    batch, sides = x.shape[0], x.shape[1:-1]
    if label is not None:
        if not net.num_classes:
            raise ValueError("a label is given, but the network has num_classes = 0: it was made without labels")
        if label.shape != (batch,) or not jnp.issubdtype(label.dtype, jnp.integer):
            raise ValueError(f"label is {label.dtype} {label.shape}, x has shape {x.shape}: labels are integers [B]")
    if context is not None:
        if not net.context_dim:
            raise ValueError("a context is given, but the network has context_dim = 0: it was made without context")
        wanted = (batch, context.shape[1] if context.ndim > 1 else "L", net.context_dim)
        if context.shape != wanted or not jnp.issubdtype(context.dtype, jnp.floating):
            raise ValueError(f"context is {context.dtype} {context.shape}: expected floats [B, L, D] = {wanted}")
        if mask is not None and (mask.shape != context.shape[:2] or mask.dtype != bool):
            raise ValueError(f"mask is {mask.dtype} {mask.shape}: expected booleans [B, L] = {context.shape[:2]}")
    elif mask is not None:
        raise ValueError("a mask is given without a context")
    if image is not None and (image.shape[:-1] != (batch, *sides) or not jnp.issubdtype(image.dtype, jnp.floating)):
        raise ValueError(f"image is {image.dtype} {image.shape}: expected floats {(batch, *sides, 'C')}, as x")
