"""The U-Net and its levels."""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.guidance import Array
from ddpm_jax.models.unet.attention import AttentionBlock, ContextAndMask, CrossAttention, context_and_mask
from ddpm_jax.models.unet.checks import check_arguments, check_conditions, check_options
from ddpm_jax.models.unet.compat import AttentionBy, CompatOptions, Resample, TimeConditioning
from ddpm_jax.models.unet.convolution import Conv, upsample_nearest
from ddpm_jax.models.unet.layers import (
    NEAR_ZERO,
    Downsample,
    LabelEmbedding,
    PooledContext,
    Resize,
    ResnetBlock,
    TimeEmbedding,
    Upsample,
    average_pool,
)
from ddpm_jax.models.unet.norm import GroupNorm
from ddpm_jax.models.unet.parameters import at_least_float32

_Attention = TypeVar("_Attention", covariant=True)


class ResampleLayer(Protocol):
    """(h [B, H, W, C], temb [B, D], dropout_keys [B] or None) -> h of another size."""

    def __call__(self, h: jax.Array, temb: jax.Array, dropout_keys: jax.Array | None, /, *, name: str) -> jax.Array: ...


class BlockFactory(Protocol):
    """The residual blocks of a level."""

    def __call__(self, *, name: str, dropout_index: int, resize: Resize | None = None) -> ResnetBlock: ...


class AttentionFactory(Protocol[_Attention]):
    """The attentions of a level."""

    def __call__(self, *, name: str) -> _Attention: ...


class LevelLayers(NamedTuple):
    """Factories of the layers of a level; None for those that it does not have."""

    block: BlockFactory
    attention: AttentionFactory[AttentionBlock] | None
    cross_attention: AttentionFactory[CrossAttention] | None
    resample: ResampleLayer | None


class Down(nn.Module):
    """A level of the encoder: blocks, dropout indices from `dropout_index`, downsampling unless `resample` is None."""

    layers: LevelLayers
    num_res_blocks: int
    dropout_index: int

    @nn.compact
    def __call__(
        self,
        skips: Sequence[jax.Array],
        temb: jax.Array,
        context: ContextAndMask | None,
        dropout_keys: jax.Array | None,
    ) -> Sequence[jax.Array]:
        """Skip connections so far, the last being the input -> the same and those of this level."""
        for i in range(self.num_res_blocks):
            block = self.layers.block(name=f"block_{i}", dropout_index=self.dropout_index + i)
            skips = [*skips, apply_attention(self.layers, block(skips[-1], temb, dropout_keys), context, i)]
        if self.layers.resample is None:
            return skips
        return [*skips, self.layers.resample(skips[-1], temb, dropout_keys, name="downsample")]


class Middle(nn.Module):
    """The level of the smallest size: two blocks with attention between them."""

    layers: LevelLayers
    dropout_index: int

    @nn.compact
    def __call__(
        self, h: jax.Array, temb: jax.Array, context: ContextAndMask | None, dropout_keys: jax.Array | None
    ) -> jax.Array:
        """[B, H, W, C] -> the same."""
        h = self.layers.block(name="block_1", dropout_index=self.dropout_index)(h, temb, dropout_keys)
        h = apply_attention(self.layers, h, context, 1)
        return self.layers.block(name="block_2", dropout_index=self.dropout_index + 1)(h, temb, dropout_keys)


class Up(nn.Module):
    """A level of the decoder: blocks, dropout indices from `dropout_index`, upsampling unless `resample` is None."""

    layers: LevelLayers
    dropout_index: int

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        skips: Sequence[jax.Array],
        temb: jax.Array,
        context: ContextAndMask | None,
        dropout_keys: jax.Array | None,
    ) -> jax.Array:
        """The input, and this level's skip connections, one for each block, from the last to the first."""
        for i, skip in enumerate(reversed(skips)):
            block = self.layers.block(name=f"block_{i}", dropout_index=self.dropout_index + i)
            h = apply_attention(self.layers, block((h, skip), temb, dropout_keys), context, i)
        resample = self.layers.resample
        return h if resample is None else resample(h, temb, dropout_keys, name="upsample")


def apply_attention(layers: LevelLayers, h: jax.Array, context: ContextAndMask | None, i: int) -> jax.Array:
    """h after a level's self-attention number i and, with a context, its cross-attention; h without attention."""
    if layers.attention is None:
        return h
    h = layers.attention(name=f"attn_{i}")(h)
    if layers.cross_attention is None or context is None:
        return h
    return layers.cross_attention(name=f"cross_{i}")(h, *context)


class UNet(nn.Module):
    """The U-Net of DDPM: with the defaults, and images [32, 32, 3], the 35,746,307 parameters of its CIFAR-10 model.

    Sequences and volumes have one and three spatial axes instead of two: kernels have size 3 and sizes change by 2
    along each of them.

    At initialisation the output is nearly 0 (a standard deviation of about 1e-5), so the first eps-loss is 1.000.

    Attributes:
        channels: of the first level; level i has `channels * channel_multipliers[i]`, and half the size of level i - 1.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_resolutions: attention follows every block where the shortest side of the image, after padding, is
            one of these, and is always in the middle.
        heads: of every attention; their scale is (channels / heads)^-1/2.  See head_channels.
        dropout: rate, in every block, before its last convolution; rounded to a multiple of 2^-16.
        out_channels: those of the images; twice as many with a learned variance.
        groups: of every normalisation.  Levels with at most this many channels ignore the time embedding (see
            `norm.group_count`), and there must be another.
        resample_with_conv: whether sizes change by convolutions; else by average pooling and nearest-neighbour
            upsampling.
        resample: "layer" is a layer of this kind; "block" is a residual block that pools or upsamples between its first
            normalisation and its first convolution (BigGAN's, arXiv:1809.11096).
        dtype: of convolutions and products: float32, bfloat16, or (with parameters to match) float64.
        remat: keep only the inputs of blocks and attentions for the gradient, and compute the rest again: much less
            memory for about a third more work.
        num_classes: of labels 0 .. num_classes - 1; num_classes is the null label.  0: no labels.
        context_dim: D of the context for cross-attention, after each self-attention; a projection of its mean is added
            to the time embedding.  0: no context.
        head_channels: channels of each head, in place of `heads`; 0: heads decides.
        attention_by: "size" takes attention_resolutions as above; "factor" takes it for the factors, powers of 2, by
            which a level is smaller than the image, so that images of every size have the same parameters.
        time_conditioning: see `layers.ResnetBlock`.
        compat: other differences between published networks.
        forward_mode: whether `jax.jvp` and `jax.linearize` go through: derivatives are JAX's own, in place of ones that
            take less time and memory.  Parameters are the same: `net.clone(forward_mode=True).apply(params, ...)`.

    At initialisation conditions have no effect: their projections are 0.
    """

    channels: int = 128
    channel_multipliers: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: Sequence[int] = (16,)
    heads: int = 1
    dropout: float = 0.1
    out_channels: int = 3
    resample_with_conv: bool = True
    groups: int = 32
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    num_classes: int = 0
    context_dim: int = 0
    head_channels: int = 0
    attention_by: AttentionBy = "size"
    time_conditioning: TimeConditioning = "add"
    resample: Resample = "layer"
    compat: CompatOptions = CompatOptions()
    forward_mode: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        *,
        label: Array | None = None,
        context: Array | None = None,
        mask: Array | None = None,
        image: Array | None = None,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """The network's prediction for x at time t, given a condition.

        Args:
            x: [B, L, C], [B, H, W, C] or [B, D, H, W, C] floats, in [-1, 1].  Sizes that 2^(levels - 1) does not
                divide are padded with zeros at the end (the bottom and the right), and the result is cropped.
            t: [B] integers, the paper's 1 .. T.
            label: [B] integers 0 .. num_classes; None is num_classes, the null label.
            context: [B, L, context_dim] floats, such as the tokens of an encoded text; None is no context.
            mask: [B, L] booleans, True for the tokens that count; None is all of them.  An image without any has no
                context.
            image: as x but for C: a conditioning image, concatenated with x.  The parameters are for a fixed number of
                its channels.
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
        wide, levels = at_least_float32(self.dtype), len(self.channel_multipliers)
        temb = _time_and_label_embedding(self, t, label, wide)
        attended = context_and_mask(self.context_dim, x, context, mask)
        if attended is not None:
            temb = temb + PooledContext(temb.shape[-1], wide, name="pooled")(*attended)

        sides = x.shape[1:-1]
        inputs = x if image is None else jnp.concatenate([x, image.astype(x.dtype)], axis=-1)
        h = jnp.pad(inputs, ((0, 0), *((0, -size % 2 ** (levels - 1)) for size in sides), (0, 0)))
        has_attention = _levels_with_attention(self, min(h.shape[1:-1]))
        conv = functools.partial(Conv, forward_mode=self.forward_mode)
        skips: Sequence[jax.Array] = [conv(self.channels, dtype=self.dtype, name="conv_in")(h)]
        block_of_level, attention, cross_attention = _layer_factories(self)
        layers = [
            LevelLayers(block, attention if attends else None, cross_attention, None)
            for block, attends in zip(block_of_level, has_attention, strict=True)
        ]

        dropout_index = 0
        for i, level in enumerate(layers):
            resample = _resample_layer(self, level.block, "down", i) if i < levels - 1 else None
            down = Down(level._replace(resample=resample), self.num_res_blocks, dropout_index, name=f"down_{i}")
            skips = down(skips, temb, attended, dropout_keys)
            dropout_index += self.num_res_blocks
        middle = Middle(layers[-1]._replace(attention=attention), dropout_index, name="mid")
        h = middle(skips[-1], temb, attended, dropout_keys)
        dropout_index += 2
        for i, level in reversed([*enumerate(layers)]):
            resample = _resample_layer(self, level.block, "up", i) if i > 0 else None
            up = Up(level._replace(resample=resample), dropout_index, name=f"up_{i}")
            h = up(h, skips[-self.num_res_blocks - 1 :], temb, attended, dropout_keys)
            skips, dropout_index = skips[: -self.num_res_blocks - 1], dropout_index + self.num_res_blocks + 1

        h = GroupNorm(True, self.compat.eps, wide, self.groups, self.forward_mode, name="norm_out")(h)
        h = conv(self.out_channels, scale=NEAR_ZERO, dtype=wide, name="conv_out")(h)
        return h[:, *(slice(side) for side in sides)].astype(at_least_float32(x.dtype))


def _time_and_label_embedding(net: UNet, t: jax.Array, label: Array | None, wide: jnp.dtype) -> jax.Array:
    """The embedding [B, D] of times and, if the network takes them, labels."""
    compat = net.compat
    dim = compat.time_dim or net.channels
    # The published weights were trained on 0 .. T - 1, where 0 is one step of noise: the paper's t = 1.
    t = t.astype(wide) - 1
    if compat.time_scale != 1:
        t = t * compat.time_scale
    temb = TimeEmbedding(dim, wide, compat.time_order == "cos_sin", compat.time_shift, name="temb")(t)
    if not net.num_classes:
        return temb
    label = jnp.full(t.shape, net.num_classes) if label is None else label
    return temb + LabelEmbedding(net.num_classes, 4 * dim, wide, name="label")(label)


def _levels_with_attention(net: UNet, side: int) -> list[bool]:
    """For each level, whether attention follows its blocks, for images with a shortest side of `side`."""
    factors = [2**i for i in range(len(net.channel_multipliers))]
    return [
        (side // factor if net.attention_by == "size" else factor) in net.attention_resolutions for factor in factors
    ]


def _layer_factories(
    net: UNet,
) -> tuple[Sequence[BlockFactory], AttentionFactory[AttentionBlock], AttentionFactory[CrossAttention] | None]:
    """Factories of the blocks of each level, of attentions and of cross-attentions, None without a context."""
    # not while parameters are drawn: no gradient follows, and `nn.remat` would trace the keys
    maybe_remat = nn.remat if net.remat and not net.is_initializing() else (lambda layer: layer)
    numerics = {
        "dtype": net.dtype, "groups": net.groups, "eps": net.compat.eps, "forward_mode": net.forward_mode
    }  # fmt: skip
    block = functools.partial(
        maybe_remat(ResnetBlock), dropout=net.dropout, time_conditioning=net.time_conditioning, **numerics
    )
    heads = {"heads": net.heads, "head_channels": net.head_channels, **numerics}
    block_of_level = [functools.partial(block, net.channels * m) for m in net.channel_multipliers]
    return (
        block_of_level,
        functools.partial(maybe_remat(AttentionBlock), **heads),
        functools.partial(maybe_remat(CrossAttention), **heads) if net.context_dim else None,
    )


def _resample_layer(net: UNet, block: BlockFactory, direction: Literal["down", "up"], level: int) -> ResampleLayer:
    """The layer that halves or doubles the size after a level."""
    if net.resample == "block":
        levels = len(net.channel_multipliers)
        # indices of their dropouts after all others, which so do not depend on `resample`
        dropout_index = levels * (2 * net.num_res_blocks + 1) + 2 + (level if direction == "down" else levels + level)
        resize = average_pool if direction == "down" else upsample_nearest
        return lambda h, temb, keys, *, name: block(name=name, dropout_index=dropout_index, resize=resize)(
            h, temb, keys
        )
    if direction == "down":
        layer = functools.partial(Downsample, net.resample_with_conv, net.dtype, net.compat.padding, net.forward_mode)
    else:
        layer = functools.partial(Upsample, net.resample_with_conv, net.dtype, net.forward_mode)
    return lambda h, temb, keys, *, name: layer(name=name)(h)
