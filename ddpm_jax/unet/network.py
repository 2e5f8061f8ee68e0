"""The U-Net itself, and its levels."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.unet.layers import (
    DROPOUT_STEP,
    NEAR_ZERO,
    AttentionBlock,
    CrossAttention,
    Downsample,
    LabelEmbedding,
    PooledContext,
    ResnetBlock,
    TimeEmbedding,
    Upsample,
    conv,
    spatial,
)
from ddpm_jax.unet.norm import GroupNorm, group_count


class Down(nn.Module):
    """One level of the way down: blocks, numbered from `place`, then half the size unless `resample` is None."""

    block: Callable[..., ResnetBlock]
    attention: Callable[..., AttentionBlock]
    cross: Callable[..., CrossAttention] | None
    attention_at: Sequence[int]
    blocks: int
    place: int
    resample: Callable[..., Downsample] | None

    @nn.compact
    def __call__(self, skips, temb, context, dropout_keys):
        """What the way up will need so far, its last entry being the input -> the same and what this level adds."""
        for i in range(self.blocks):
            h = self.block(name=f"block_{i}", place=self.place + i)(skips[-1], temb, dropout_keys)
            if min(h.shape[1:-1]) in self.attention_at:
                h = attended(self, h, context, i)
            skips = [*skips, h]
        return skips if self.resample is None else [*skips, self.resample(name="downsample")(skips[-1])]


class Middle(nn.Module):
    """The smallest size, which always attends."""

    block: Callable[..., ResnetBlock]
    attention: Callable[..., AttentionBlock]
    cross: Callable[..., CrossAttention] | None
    place: int

    @nn.compact
    def __call__(self, h, temb, context, dropout_keys):
        """[B, H, W, C] -> the same."""
        h = self.block(name="block_1", place=self.place)(h, temb, dropout_keys)
        h = attended(self, h, context, 1)
        return self.block(name="block_2", place=self.place + 1)(h, temb, dropout_keys)


class Up(nn.Module):
    """One level of the way up: blocks, numbered from `place`, then twice the size unless `resample` is None."""

    block: Callable[..., ResnetBlock]
    attention: Callable[..., AttentionBlock]
    cross: Callable[..., CrossAttention] | None
    attention_at: Sequence[int]
    place: int
    resample: Callable[..., Upsample] | None

    @nn.compact
    def __call__(self, h, skips, temb, context, dropout_keys):
        """The input and what the way down left at this level, one for each block, used from the end."""
        for i, skip in enumerate(reversed(skips)):
            h = jnp.concatenate([h, skip], axis=-1)
            h = self.block(name=f"block_{i}", place=self.place + i)(h, temb, dropout_keys)
            if min(h.shape[1:-1]) in self.attention_at:
                h = attended(self, h, context, i)
        return h if self.resample is None else self.resample(name="upsample")(h)


def attended(level, h, context, i: int):
    """h after a level's attention number i: of its pixels to each other and then, if there is any, to the context."""
    h = level.attention(name=f"attn_{i}")(h)
    return h if level.cross is None else level.cross(name=f"cross_{i}")(h, *context)


class UNet(nn.Module):
    """The network of DDPM: with the defaults, and images [32, 32, 3], the 35,746,307 parameters of its CIFAR-10 model.

    Sequences and volumes have one and three spatial axes in place of two: every convolution is of 3, and every change
    of size by 2, along each of them.

    At the start its output is nearly 0 (a standard deviation of about 1e-5), so the first eps-loss is 1.000.

    Attributes:
        channels: of the first level; level i has `channels * multipliers[i]`, and half the size of level i - 1.
        blocks: residual blocks per level on the way down; there is one more on the way up.
        attention_at: attention follows every block where the shortest side of the image, after padding, is one of
            these; the middle always attends.
        heads: of every attention; their scale is (channels / heads)^-1/2.
        dropout: in every block, before its last convolution; a multiple of 2^-16, or rounded to one.
        out_channels: those of the images; twice as many if the variance is learned too.
        groups: of every normalisation.  A level of no more channels than groups does not feel the time (see
            `norm.group_count`), and there must be another.
        resample_with_conv: whether a convolution changes the size; else means of twos and plain repetition.
        dtype: of convolutions and products: float32, bfloat16, or (with parameters to match) float64.
        remat: keep only the inputs of blocks and attentions for the gradient, and compute what is inside them again:
            much less memory for about a third more work.
        num_classes: of labels 0 .. num_classes - 1; label num_classes stands for none.  0 takes no labels.
        context_dim: D of the context that pixels attend to, after each attention to each other; its mean is added to
            the time.  0 takes no context.

    Conditions start as nothing: what joins them to the rest is 0, so the first output is that of the network without.
    """

    channels: int = 128
    multipliers: Sequence[int] = (1, 2, 2, 2)
    blocks: int = 2
    attention_at: Sequence[int] = (16,)
    heads: int = 1
    dropout: float = 0.1
    out_channels: int = 3
    resample_with_conv: bool = True
    groups: int = 32
    dtype: Any = jnp.float32
    remat: bool = False
    num_classes: int = 0
    context_dim: int = 0

    @nn.compact
    def __call__(self, x, t, *, label=None, context=None, mask=None, image=None, dropout_keys=None):
        """The network's prediction for x at time t, given a condition.

        Args:
            x: [B, L, C], [B, H, W, C] or [B, D, H, W, C] floats, in [-1, 1].  Sizes that 2^(levels - 1) does not
                divide are filled with zeros at the end (the bottom and the right), and the result is cut back.
            t: [B] integers, the paper's 1 .. T.
            label: [B] integers 0 .. num_classes; None is num_classes, no label.
            context: [B, L, context_dim] floats, such as the tokens of an encoded text; None is no context.
            mask: [B, L] booleans, True for the tokens that count; None is all of them.  An image without any has no
                context.
            image: as x but for C: another image, which the first convolution sees beside x.  Whether there is one
                and how many channels it has is settled where the parameters are made.
            dropout_keys: [B] typed keys, one per image; None, as in sampling and evaluation, drops nothing.

        Returns:
            As x, with out_channels for C; float32, or float64 if x is.

        Raises:
            ValueError: if the shapes or dtypes of the arguments, or the options, are not as above.
        """
        x, t = jnp.asarray(x), jnp.asarray(t)
        _check_options(self)
        _check_arguments(x, t, dropout_keys)
        _check_conditions(self, x, label, context, mask, image)
        wide, levels = jnp.promote_types(self.dtype, jnp.float32), len(self.multipliers)
        # The published weights were trained on 0 .. T - 1, where 0 is one step of noise: the paper's t = 1.
        temb = TimeEmbedding(self.channels, wide, name="temb")(t.astype(wide) - 1)
        if self.num_classes:
            label = jnp.full(t.shape, self.num_classes) if label is None else label
            temb = temb + LabelEmbedding(self.num_classes, 4 * self.channels, wide, name="label")(label)
        tokens = _tokens(self, x, context, mask)
        if tokens is not None:
            temb = temb + PooledContext(4 * self.channels, wide, name="pooled")(*tokens)

        sides, axes = x.shape[1:-1], spatial(x)
        seen = x if image is None else jnp.concatenate([x, image.astype(x.dtype)], axis=-1)
        h = jnp.pad(seen, ((0, 0), *((0, -size % 2 ** (levels - 1)) for size in sides), (0, 0)))
        skips = [conv(self.channels, axes, name="conv_in", dtype=self.dtype)(h)]
        again = nn.remat if self.remat else (lambda layer: layer)
        block = functools.partial(again(ResnetBlock), dropout=self.dropout, dtype=self.dtype, groups=self.groups)
        attention = functools.partial(again(AttentionBlock), self.heads, self.dtype, self.groups)
        cross = functools.partial(again(CrossAttention), self.heads, self.dtype, self.groups)
        cross = None if tokens is None else cross
        down = functools.partial(Downsample, self.resample_with_conv, self.dtype)
        up = functools.partial(Upsample, self.resample_with_conv, self.dtype)

        place = 0
        sized = [functools.partial(block, self.channels * m) for m in self.multipliers]
        for i in range(levels):
            resample = down if i < levels - 1 else None
            level = Down(sized[i], attention, cross, self.attention_at, self.blocks, place, resample, name=f"down_{i}")
            skips, place = level(skips, temb, tokens, dropout_keys), place + self.blocks
        h = Middle(sized[-1], attention, cross, place, name="mid")(skips[-1], temb, tokens, dropout_keys)
        place += 2
        for i in reversed(range(levels)):
            level = Up(sized[i], attention, cross, self.attention_at, place, up if i > 0 else None, name=f"up_{i}")
            h, place = level(h, skips[-self.blocks - 1 :], temb, tokens, dropout_keys), place + self.blocks + 1
            skips = skips[: -self.blocks - 1]

        h = GroupNorm(swish=True, dtype=wide, groups=self.groups, name="norm_out")(h)
        h = conv(self.out_channels, axes, scale=NEAR_ZERO, name="conv_out", dtype=wide)(h)
        return h[:, *(slice(side) for side in sides)].astype(jnp.promote_types(x.dtype, jnp.float32))


def _tokens(net: UNet, x, context, mask):
    """The context and its mask, both always there; None for a network that takes no context."""
    if not net.context_dim:
        return None
    if context is None:
        return jnp.zeros((x.shape[0], 1, net.context_dim), x.dtype), jnp.zeros((x.shape[0], 1), bool)
    return context, jnp.ones(context.shape[:2], bool) if mask is None else mask


def _check_options(net: UNet) -> None:
    if len(net.multipliers) == 0:
        raise ValueError("multipliers is empty: give one integer per level, such as (1, 2, 2, 2)")
    for m in net.multipliers:
        if net.channels * m % net.heads:
            raise ValueError(
                f"heads = {net.heads} does not divide the {net.channels * m} channels of the level with multiplier {m}"
                f" (channels = {net.channels}): every head needs the same number of them"
            )
    if net.groups < 1:
        raise ValueError(f"groups = {net.groups}: a normalisation needs at least one")
    if all(group_count(net.channels * m, net.groups) == net.channels * m for m in net.multipliers):
        raise ValueError(
            f"channels = {net.channels}, multipliers = {tuple(net.multipliers)}: every channel would be a group of the"
            " normalisation by itself and forget the time that is added to it; some level needs more than"
            f" groups = {net.groups} channels"
        )
    if net.num_classes < 0 or net.context_dim < 0:
        raise ValueError(
            f"num_classes = {net.num_classes}, context_dim = {net.context_dim}: 0 for none, or how many there are"
        )
    if not 0 <= net.dropout < 1 - DROPOUT_STEP / 2:
        raise ValueError(f"dropout = {net.dropout} is not in [0, 1): it is the share of numbers that are set to 0")


def _check_arguments(x, t, dropout_keys) -> None:
    if x.ndim not in (3, 4, 5):
        raise ValueError(
            f"x has shape {x.shape}: images are [B, H, W, C], volumes [B, D, H, W, C], sequences [B, L, C]"
        )
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


def _check_conditions(net: UNet, x, label, context, mask, image) -> None:
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
        raise ValueError("a mask is given, but no context that it could hide")
    if image is not None and (image.shape[:-1] != (batch, *sides) or not jnp.issubdtype(image.dtype, jnp.floating)):
        raise ValueError(f"image is {image.dtype} {image.shape}: expected floats {(batch, *sides, 'C')}, as x")
