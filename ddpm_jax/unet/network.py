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
    Downsample,
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
    attention_at: Sequence[int]
    blocks: int
    place: int
    resample: Callable[..., Downsample] | None

    @nn.compact
    def __call__(self, skips, temb, dropout_keys):
        """What the way up will need so far, its last entry being the input -> the same and what this level adds."""
        for i in range(self.blocks):
            h = self.block(name=f"block_{i}", place=self.place + i)(skips[-1], temb, dropout_keys)
            if min(h.shape[1:-1]) in self.attention_at:
                h = self.attention(name=f"attn_{i}")(h)
            skips = [*skips, h]
        return skips if self.resample is None else [*skips, self.resample(name="downsample")(skips[-1])]


class Middle(nn.Module):
    """The smallest size, which always attends."""

    block: Callable[..., ResnetBlock]
    attention: Callable[..., AttentionBlock]
    place: int

    @nn.compact
    def __call__(self, h, temb, dropout_keys):
        """[B, H, W, C] -> the same."""
        h = self.block(name="block_1", place=self.place)(h, temb, dropout_keys)
        h = self.attention(name="attn_1")(h)
        return self.block(name="block_2", place=self.place + 1)(h, temb, dropout_keys)


class Up(nn.Module):
    """One level of the way up: blocks, numbered from `place`, then twice the size unless `resample` is None."""

    block: Callable[..., ResnetBlock]
    attention: Callable[..., AttentionBlock]
    attention_at: Sequence[int]
    place: int
    resample: Callable[..., Upsample] | None

    @nn.compact
    def __call__(self, h, skips, temb, dropout_keys):
        """The input and what the way down left at this level, one for each block, used from the end."""
        for i, skip in enumerate(reversed(skips)):
            h = jnp.concatenate([h, skip], axis=-1)
            h = self.block(name=f"block_{i}", place=self.place + i)(h, temb, dropout_keys)
            if min(h.shape[1:-1]) in self.attention_at:
                h = self.attention(name=f"attn_{i}")(h)
        return h if self.resample is None else self.resample(name="upsample")(h)


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

    @nn.compact
    def __call__(self, x, t, *, dropout_keys=None):
        """The network's prediction for x at time t.

        Args:
            x: [B, L, C], [B, H, W, C] or [B, D, H, W, C] floats, in [-1, 1].  Sizes that 2^(levels - 1) does not
                divide are filled with zeros at the end (the bottom and the right), and the result is cut back.
            t: [B] integers, the paper's 1 .. T.
            dropout_keys: [B] typed keys, one per image; None, as in sampling and evaluation, drops nothing.

        Returns:
            As x, with out_channels for C; float32, or float64 if x is.

        Raises:
            ValueError: if the shapes or dtypes of the arguments, or the options, are not as above.
        """
        x, t = jnp.asarray(x), jnp.asarray(t)
        _check_options(self)
        _check_arguments(x, t, dropout_keys)
        wide, levels = jnp.promote_types(self.dtype, jnp.float32), len(self.multipliers)
        # The published weights were trained on 0 .. T - 1, where 0 is one step of noise: the paper's t = 1.
        temb = TimeEmbedding(self.channels, wide, name="temb")(t.astype(wide) - 1)

        sides, axes = x.shape[1:-1], spatial(x)
        h = jnp.pad(x, ((0, 0), *((0, -size % 2 ** (levels - 1)) for size in sides), (0, 0)))
        skips = [conv(self.channels, axes, name="conv_in", dtype=self.dtype)(h)]
        again = nn.remat if self.remat else (lambda layer: layer)
        block = functools.partial(again(ResnetBlock), dropout=self.dropout, dtype=self.dtype, groups=self.groups)
        attention = functools.partial(again(AttentionBlock), self.heads, self.dtype, self.groups)
        down = functools.partial(Downsample, self.resample_with_conv, self.dtype)
        up = functools.partial(Upsample, self.resample_with_conv, self.dtype)

        place = 0
        sized = [functools.partial(block, self.channels * m) for m in self.multipliers]
        for i in range(levels):
            resample = down if i < levels - 1 else None
            level = Down(sized[i], attention, self.attention_at, self.blocks, place, resample, name=f"down_{i}")
            skips, place = level(skips, temb, dropout_keys), place + self.blocks
        h = Middle(sized[-1], attention, place, name="mid")(skips[-1], temb, dropout_keys)
        place += 2
        for i in reversed(range(levels)):
            level = Up(sized[i], attention, self.attention_at, place, up if i > 0 else None, name=f"up_{i}")
            h, place = level(h, skips[-self.blocks - 1 :], temb, dropout_keys), place + self.blocks + 1
            skips = skips[: -self.blocks - 1]

        h = GroupNorm(swish=True, dtype=wide, groups=self.groups, name="norm_out")(h)
        h = conv(self.out_channels, axes, scale=NEAR_ZERO, name="conv_out", dtype=wide)(h)
        return h[:, *(slice(side) for side in sides)].astype(jnp.promote_types(x.dtype, jnp.float32))


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
