"""The U-Net itself, and its levels."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.unet.attention import AttentionBlock, CrossAttention
from ddpm_jax.unet.checks import check_arguments, check_conditions, check_options
from ddpm_jax.unet.conventions import AttentionBy, Conventions, ResampleBy, TimeJoins
from ddpm_jax.unet.convolution import Conv, doubled
from ddpm_jax.unet.layers import (
    NEAR_ZERO,
    Downsample,
    LabelEmbedding,
    PooledContext,
    ResnetBlock,
    TimeEmbedding,
    Upsample,
    halved,
)
from ddpm_jax.unet.norm import GroupNorm
from ddpm_jax.unet.parameters import widened

Resample = Callable[..., jax.Array]
"""(h, temb, dropout_keys, *, name) -> h of another size."""


class Down(nn.Module):
    """One level of the way down: blocks, numbered from `place`, then half the size unless `resample` is None."""

    block: Callable[..., ResnetBlock]
    attention: Callable[..., AttentionBlock]
    cross: Callable[..., CrossAttention] | None
    attends: bool
    blocks: int
    place: int
    resample: Resample | None

    @nn.compact
    def __call__(self, skips, temb, context, dropout_keys):
        """What the way up will need so far, its last entry being the input -> the same and what this level adds."""
        for i in range(self.blocks):
            h = self.block(name=f"block_{i}", place=self.place + i)(skips[-1], temb, dropout_keys)
            if self.attends:
                h = attended(self, h, context, i)
            skips = [*skips, h]
        if self.resample is None:
            return skips
        return [*skips, self.resample(skips[-1], temb, dropout_keys, name="downsample")]


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
    attends: bool
    place: int
    resample: Resample | None

    @nn.compact
    def __call__(self, h, skips, temb, context, dropout_keys):
        """The input and what the way down left at this level, one for each block, used from the end."""
        for i, skip in enumerate(reversed(skips)):
            h = self.block(name=f"block_{i}", place=self.place + i)((h, skip), temb, dropout_keys)
            if self.attends:
                h = attended(self, h, context, i)
        return h if self.resample is None else self.resample(h, temb, dropout_keys, name="upsample")


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
        heads: of every attention; their scale is (channels / heads)^-1/2.  With head_channels, as many as have so
            many channels.
        dropout: in every block, before its last convolution; a multiple of 2^-16, or rounded to one.
        out_channels: those of the images; twice as many if the variance is learned too.
        groups: of every normalisation.  A level of no more channels than groups does not feel the time (see
            `norm.group_count`), and there must be another.
        resample_with_conv: whether a convolution changes the size; else means of twos and plain repetition.
        resample_by: "layer" is such a layer; "block" in its place a residual block, which takes means of twos or
            repeats between its first normalisation and its first convolution (BigGAN's, arXiv:1809.11096).
        dtype: of convolutions and products: float32, bfloat16, or (with parameters to match) float64.
        remat: keep only the inputs of blocks and attentions for the gradient, and compute what is inside them again:
            much less memory for about a third more work.
        num_classes: of labels 0 .. num_classes - 1; label num_classes stands for none.  0 takes no labels.
        context_dim: D of the context that pixels attend to, after each attention to each other; its mean is added to
            the time.  0 takes no context.
        head_channels: of each head; 0 is what `heads` says.
        attention_by: "size" takes attention_at as above; "factor" takes it for the factors, powers of 2, by which a
            level is smaller than the image, so that images of every size have the same parameters.
        time_joins: "add" adds the time to what the first convolution of a block gives; "scale_shift" scales and shifts
            with it what the second normalisation gives (arXiv:2102.09672).
        conventions: in what else published networks of this form differ.

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
    head_channels: int = 0
    attention_by: AttentionBy = "size"
    time_joins: TimeJoins = "add"
    resample_by: ResampleBy = "layer"
    conventions: Conventions = Conventions()

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
        check_options(self)
        check_arguments(x, t, dropout_keys)
        check_conditions(self, x, label, context, mask, image)
        wide, levels = widened(self.dtype), len(self.multipliers)
        temb = _embedded(self, t, label, wide)
        tokens = _tokens(self, x, context, mask)
        if tokens is not None:
            temb = temb + PooledContext(temb.shape[-1], wide, name="pooled")(*tokens)

        sides = x.shape[1:-1]
        seen = x if image is None else jnp.concatenate([x, image.astype(x.dtype)], axis=-1)
        h = jnp.pad(seen, ((0, 0), *((0, -size % 2 ** (levels - 1)) for size in sides), (0, 0)))
        attends = _attends(self, min(h.shape[1:-1]))
        skips = [Conv(self.channels, dtype=self.dtype, name="conv_in")(h)]
        sized, attention, cross = _layers(self)
        cross = None if tokens is None else cross

        place = 0
        for i in range(levels):
            resample = _resample(self, sized[i], "down", i) if i < levels - 1 else None
            level = Down(sized[i], attention, cross, attends[i], self.blocks, place, resample, name=f"down_{i}")
            skips, place = level(skips, temb, tokens, dropout_keys), place + self.blocks
        h = Middle(sized[-1], attention, cross, place, name="mid")(skips[-1], temb, tokens, dropout_keys)
        place += 2
        for i in reversed(range(levels)):
            resample = _resample(self, sized[i], "up", i) if i > 0 else None
            level = Up(sized[i], attention, cross, attends[i], place, resample, name=f"up_{i}")
            h, place = level(h, skips[-self.blocks - 1 :], temb, tokens, dropout_keys), place + self.blocks + 1
            skips = skips[: -self.blocks - 1]

        h = GroupNorm(swish=True, dtype=wide, groups=self.groups, eps=self.conventions.eps, name="norm_out")(h)
        h = Conv(self.out_channels, scale=NEAR_ZERO, dtype=wide, name="conv_out")(h)
        return h[:, *(slice(side) for side in sides)].astype(widened(x.dtype))


def _embedded(net: UNet, t, label, wide) -> jax.Array:
    """The times and, if the network takes them, the labels as [B, D]."""
    said = net.conventions
    dim = said.time_dim or net.channels
    # The published weights were trained on 0 .. T - 1, where 0 is one step of noise: the paper's t = 1.
    t = t.astype(wide) - 1
    if said.time_scale != 1:
        t = t * said.time_scale
    temb = TimeEmbedding(dim, wide, said.time_order == "cos_sin", said.time_shift, name="temb")(t)
    if not net.num_classes:
        return temb
    label = jnp.full(t.shape, net.num_classes) if label is None else label
    return temb + LabelEmbedding(net.num_classes, 4 * dim, wide, name="label")(label)


def _attends(net: UNet, side: int) -> list[bool]:
    """Whether attention follows the blocks of each level of an image whose shortest side is `side` long."""
    factors = [2**i for i in range(len(net.multipliers))]
    return [(side // factor if net.attention_by == "size" else factor) in net.attention_at for factor in factors]


def _layers(net: UNet):
    """What makes the blocks of each level, the attentions, and those to a context."""
    again = nn.remat if net.remat else (lambda layer: layer)
    numerics = {"dtype": net.dtype, "groups": net.groups, "eps": net.conventions.eps}
    block = functools.partial(again(ResnetBlock), dropout=net.dropout, time_joins=net.time_joins, **numerics)
    heads = {"heads": net.heads, "head_channels": net.head_channels, **numerics}
    sized = [functools.partial(block, net.channels * m) for m in net.multipliers]
    return sized, functools.partial(again(AttentionBlock), **heads), functools.partial(again(CrossAttention), **heads)


def _resample(net: UNet, block, way: Literal["down", "up"], level: int) -> Resample:
    """What halves or doubles the size after a level that is made of `block`s."""
    if net.resample_by == "block":
        levels = len(net.multipliers)
        # numbers for their dropouts after those of all others, which so have theirs whatever changes the size
        place = levels * (2 * net.blocks + 1) + 2 + (level if way == "down" else levels + level)
        resize = halved if way == "down" else doubled
        return lambda h, temb, keys, *, name: block(name=name, place=place, resize=resize)(h, temb, keys)
    if way == "down":
        layer = functools.partial(Downsample, net.resample_with_conv, net.dtype, net.conventions.padding)
    else:
        layer = functools.partial(Upsample, net.resample_with_conv, net.dtype)
    return lambda h, temb, keys, *, name: layer(name=name)(h)


def _tokens(net: UNet, x, context, mask):
    """The context and its mask, both always there; None for a network that takes no context."""
    if not net.context_dim:
        return None
    if context is None:
        return jnp.zeros((x.shape[0], 1, net.context_dim), x.dtype), jnp.zeros((x.shape[0], 1), bool)
    return context, jnp.ones(context.shape[:2], bool) if mask is None else mask
