"""A transformer over the patches of an image; also of sequences and volumes.

The form is DiT's (arXiv:2212.09748, adaLN-zero) with the bottleneck of the patch embedding of "Back to Basics"
(arXiv:2511.13720), written from the papers.  Parameters are float32; products are computed in `dtype`; normalisation,
softmax, modulation and the last linear map are float32 at least.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ddpm_jax.guidance import Array
from ddpm_jax.models.unet.attention import ContextAndMask, CrossAttention, attend, context_and_mask
from ddpm_jax.models.unet.checks import check_arguments, check_choices, check_conditions, check_shared_options
from ddpm_jax.models.unet.layers import Dense, LabelEmbedding, PooledContext, TimeEmbedding, dropout
from ddpm_jax.models.unet.parameters import at_least_float32, fan_average, parameter

Norm = Literal["rms", "layer"]
"""Normalisation by the root mean square (arXiv:1910.07467), or by mean and standard deviation."""

Positions = Literal["rotary", "learned", "none"]
"""Positions of patches: rotations of queries and keys, a learned vector for each patch, or none at all."""

EPS = 1e-6
"""Added to the mean square in every normalisation."""

ROTARY_BASE = 100.0
"""The slowest rotation is almost this many times slower than the fastest, of one radian per patch."""


def split_patches(x: jax.Array, size: int) -> jax.Array:
    """The patches of images, each as one vector: [B, H, W, C] -> [B, H / size, W / size, size^2 C], of any axes."""
    b, *sides, c = x.shape
    grid, n = [side // size for side in sides], len(sides)
    x = jnp.reshape(x, (b, *(part for count in grid for part in (count, size)), c))
    x = jnp.transpose(x, (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1))
    return jnp.reshape(x, (b, *grid, size**n * c))


def join_patches(patches: jax.Array, size: int) -> jax.Array:
    """The images of patches, the inverse of `split_patches`."""
    b, *grid, features = patches.shape
    n = len(grid)
    x = jnp.reshape(patches, (b, *grid, *(size,) * n, features // size**n))
    x = jnp.transpose(x, (0, *(axis for i in range(1, n + 1) for axis in (i, i + n)), 2 * n + 1))
    return jnp.reshape(x, (b, *(count * size for count in grid), features // size**n))


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions (arXiv:2104.09864): pairs of channels rotated by angles in proportion to the patch's position.

    Products of rotated queries and keys depend on differences of positions only.  Each of n axes of the grid has a
    share of C // 2n pairs, with speeds from 1 down to almost 1 / `ROTARY_BASE`; channels left over stay as they are.

    Args:
        x: [B, *grid, heads, C].
    """
    *grid, _, channels = x.shape[1:]
    pairs = channels // (2 * len(grid))
    speeds = ROTARY_BASE ** (-np.arange(pairs) / pairs)
    positions = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1)
    angle = np.reshape(positions[..., None] * speeds, (*grid, 1, -1))
    wide = at_least_float32(x.dtype)
    cos, sin = (jnp.asarray(wave[None], wide) for wave in (np.cos(angle), np.sin(angle)))
    a, b, rest = jnp.split(x.astype(wide), (angle.shape[-1], 2 * angle.shape[-1]), axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos, rest], axis=-1).astype(x.dtype)


def modulated_norm(x: jax.Array, norm: Norm, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Normalisation over the channels, without parameters of its own, times 1 + scale [B, C], plus shift [B, C]."""
    axes, x = range(1, x.ndim - 1), x.astype(scale.dtype)
    if norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPS)
    return x * (1 + jnp.expand_dims(scale, axes)) + jnp.expand_dims(shift, axes)


class TransformerBlock(nn.Module):
    """A pre-norm block with adaLN-zero: attention and two linear maps, each a branch with a gate.

    Scales, shifts and gates are linear maps of the time embedding that are 0 at initialisation, so the block is then
    the identity.  The cross-attention to a context is the U-Net's: its queries have positions, also with "none".

    Attributes:
        dropout: rate, before the last linear map; its `index` is `dropout_index`.
        others: see `PatchTransformer`.
    """

    heads: int
    mlp_ratio: int
    norm: Norm
    rotary: bool
    dropout: float
    dropout_index: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: jax.Array, temb: jax.Array, context: ContextAndMask | None, dropout_keys: jax.Array | None
    ) -> jax.Array:
        """x [B, *grid, C], temb [B, D] -> as x."""
        width, dtype = x.shape[-1], self.dtype
        modulation = Dense(6 * width, scale=0, dtype=temb.dtype, name="modulation")(nn.swish(temb))
        scale1, shift1, gate1, scale2, shift2, gate2 = jnp.split(modulation, 6, axis=-1)

        def gated(gate: jax.Array, branch: jax.Array) -> jax.Array:
            # in float32, as the gradient of a gate is a sum over patches
            return (jnp.expand_dims(gate, range(1, x.ndim - 1)) * branch.astype(gate.dtype)).astype(dtype)

        h = modulated_norm(x, self.norm, scale1, shift1).astype(dtype)
        q, k, v = (Dense(width, dtype=dtype, name=name)(h) for name in ("q", "k", "v"))
        if self.rotary:
            by_head = (*x.shape[:-1], self.heads, width // self.heads)
            q, k = (jnp.reshape(rotate(jnp.reshape(each, by_head)), x.shape) for each in (q, k))
        q, k, v = (jnp.reshape(each, (x.shape[0], -1, width)) for each in (q, k, v))
        mixed = jnp.reshape(attend(q, k, v, self.heads), x.shape)
        x = x + gated(gate1, Dense(width, dtype=dtype, name="proj_out")(mixed))
        if context is not None:
            x = CrossAttention(self.heads, dtype, forward_mode=True, name="cross_0")(x, *context)
        h = modulated_norm(x, self.norm, scale2, shift2).astype(dtype)
        h = nn.gelu(Dense(self.mlp_ratio * width, dtype=dtype, name="dense0")(h))
        h = dropout(h, dropout_keys, self.dropout, self.dropout_index)
        return x + gated(gate2, Dense(width, dtype=dtype, name="dense1")(h))


class PatchTransformer(nn.Module):
    """A transformer over patches that takes what `UNet` takes; its output is 0 at initialisation.

    `jax.jvp` goes through.

    Attributes:
        patch_size: side of a patch, in pixels along each axis.
        width: channels of each patch's vector, at least 16, a multiple of 4 and of `heads`.
        depth: number of blocks.
        heads: of every attention.
        mlp_ratio: channels between the two linear maps of a block, in units of `width`.
        bottleneck: channels between two linear maps that embed a patch; 0: one linear map.
        norm: see `Norm`.
        positions: see `Positions`.  With "learned" the parameters are for one size of the images.
        dropout: rate, in every block, before its last linear map; rounded to a multiple of 2^-16.
        out_channels, dtype, num_classes, context_dim: see `UNet`.
        remat: keep only the inputs of blocks for the gradient, and compute the rest again.
    """

    patch_size: int = 4
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: int = 4
    bottleneck: int = 0
    norm: Norm = "rms"
    positions: Positions = "rotary"
    dropout: float = 0.0
    out_channels: int = 3
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    num_classes: int = 0
    context_dim: int = 0

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
        """The network's prediction for x at time t, given a condition: arguments, result and errors are `UNet`'s.

        Sizes that `patch_size` does not divide are padded with zeros at the end, and the result is cropped.
        """
        x, t = jnp.asarray(x), jnp.asarray(t)
        check_arguments(x, t, dropout_keys)
        check_conditions(self, x, label, context, mask, image)
        sides, size, wide = x.shape[1:-1], self.patch_size, at_least_float32(self.dtype)
        self._check_options(axes=len(sides))

        temb = TimeEmbedding(self.width // 4, wide, name="temb")(t.astype(wide) - 1)  # counted from 0, as in the U-Net
        if self.num_classes:
            label = jnp.full(t.shape, self.num_classes) if label is None else label
            temb = temb + LabelEmbedding(self.num_classes, self.width, wide, name="label")(label)
        attended = context_and_mask(self.context_dim, x, context, mask)
        if attended is not None:
            temb = temb + PooledContext(self.width, wide, name="pooled")(*attended)

        inputs = x if image is None else jnp.concatenate([x, image.astype(x.dtype)], axis=-1)
        h = jnp.pad(inputs, ((0, 0), *((0, -side % size) for side in sides), (0, 0)))
        h = split_patches(h, size)
        if self.bottleneck:
            h = Dense(self.bottleneck, dtype=self.dtype, name="patch_in")(h)
        h = Dense(self.width, dtype=self.dtype, name="bottleneck_out" if self.bottleneck else "patch_in")(h)
        if self.positions == "learned":
            # in float32, as their gradient is a sum over images
            h = (h.astype(wide) + self._learned_positions(h.shape[1:])[None]).astype(self.dtype)

        # not while parameters are drawn: no gradient follows, and `nn.remat` would trace the keys
        block = nn.remat(TransformerBlock) if self.remat and not self.is_initializing() else TransformerBlock
        rotary = self.positions == "rotary"
        for i in range(self.depth):
            options = (self.heads, self.mlp_ratio, self.norm, rotary, self.dropout, i, self.dtype)
            h = block(*options, name=f"block_{i}")(h, temb, attended, dropout_keys)

        modulation = Dense(2 * self.width, scale=0, dtype=wide, name="modulation_out")(nn.swish(temb))
        h = modulated_norm(h, self.norm, *jnp.split(modulation, 2, axis=-1))
        h = Dense(size ** len(sides) * self.out_channels, scale=0, dtype=wide, name="patch_out")(h)
        return join_patches(h, size)[:, *(slice(side) for side in sides)].astype(at_least_float32(x.dtype))

    def _learned_positions(self, shape: tuple[int, ...]) -> jax.Array:
        if self.has_variable("params", "positions"):
            found = np.shape(self.get_variable("params", "positions"))
            if found != shape:
                raise ValueError(
                    f"positions = 'learned' are those of {found[:-1]} patches, and the image has {shape[:-1]}: give"
                    " images of the size of training, or train with positions = 'rotary'"
                )
        return parameter(self, "positions", fan_average(), shape)

    def _check_options(self, axes: int) -> None:
        check_choices({"norm": (self.norm, Norm), "positions": (self.positions, Positions)})
        check_shared_options(self)
        numbers = {name: getattr(self, name) for name in ("patch_size", "width", "depth", "heads", "mlp_ratio")}
        if min(numbers.values()) < 1 or self.bottleneck < 0:
            given = ", ".join(f"{name} = {value}" for name, value in numbers.items())
            raise ValueError(f"{given} must be at least 1, and bottleneck = {self.bottleneck} at least 0")
        if self.width < 16 or self.width % 4 or self.width % self.heads:
            raise ValueError(f"width = {self.width} must be at least 16, a multiple of 4 and of heads = {self.heads}")
        if self.positions == "rotary" and self.width // self.heads < 2 * axes:
            raise ValueError(
                f"width = {self.width}, heads = {self.heads}: rotary positions along {axes} axes need at least"
                f" {2 * axes} channels per head; take fewer heads, or positions = 'learned'"
            )
