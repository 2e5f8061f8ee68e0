"""Text encoder: a small byte-level transformer, trained from scratch together with the network.

A text is its UTF-8 bytes, padded with 0, so there is no vocabulary.  The empty text is the null condition.
"""

import functools
import unicodedata
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ddpm_jax.guidance import Array
from ddpm_jax.models.unet import Dense, attend


def tokenize(texts: Sequence[str], length: int) -> np.ndarray:
    """The bytes of texts: uint8 [len(texts), length], 0 after the end of each.

    Texts are normalised first (NFC, Unicode Standard Annex 15), so texts that look alike have the same bytes.

    Raises:
        ValueError: naming the text, if one has more than `length` bytes or holds the character 0.
    """
    rows = np.zeros((len(texts), length), np.uint8)
    for row, text in zip(rows, texts, strict=True):
        encoded = unicodedata.normalize("NFC", text).encode()
        if len(encoded) > length:
            raise ValueError(f"a text of {len(encoded)} bytes where {length} is the most: {text[:80]!r}")
        if 0 in encoded:
            raise ValueError(f"a text with the character 0, which stands for its end: {text[:80]!r}")
        row[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    return rows


class TransformerLayer(nn.Module):
    """A pre-norm transformer layer (arXiv:2002.04745): attention, then two linear maps.

    Logits have a learned bias for each head and signed distance, so that a text means the same wherever it starts
    (Shaw et al., arXiv:1803.02155; Raffel et al., arXiv:1910.10683).

    Attributes:
        heads: of the attention; a divisor of the width.
        length: of the longest text, in bytes, and so of the largest distance.
    """

    heads: int
    length: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: Array) -> jax.Array:
        """x [B, L, D], mask [B, L], True for tokens that count -> [B, L, D]."""
        _, length, width = x.shape
        dense = functools.partial(Dense, kernel_init=nn.initializers.lecun_normal(), dtype=self.dtype)
        by_distance = self.param("distances", _distance_bias_init, (self.heads, 2 * self.length - 1))
        positions = np.arange(length)  # static, so that parameters may be numpy arrays, too
        bias = by_distance[:, self.length - 1 + positions - positions[:, None]]
        h = nn.LayerNorm(dtype=self.dtype, name="norm1")(x)
        q, k, v = (dense(width, name=name)(h) for name in ("q", "k", "v"))
        mixed = attend(q, k, v, self.heads, mask, bias)
        x = x + dense(width, name="proj_out")(mixed)
        h = nn.LayerNorm(dtype=self.dtype, name="norm2")(x)
        h = nn.gelu(dense(4 * width, name="dense0")(h))
        return x + dense(width, name="dense1")(h)


def _distance_bias_init(key: jax.Array, shape: tuple[int, int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Initial biases: even and odd heads attend in opposite directions, each pair four times as far as the one before.

    With equal heads, training would have to break their symmetry before it can learn the order of words.
    """
    del key
    heads, length = np.arange(shape[0])[:, None], (shape[1] + 1) // 2
    ahead = np.arange(1 - length, length) * np.where(heads % 2, -1, 1)
    return jnp.asarray(np.where(ahead < 0, ahead, -ahead * 0.25 ** (1 + heads // 2)), dtype)


NEIGHBOUR_RADIUS = 3
"""Number of bytes before and after each byte whose embeddings are stacked with its own."""

BYTE_EMBEDDING_DIM = 32
"""Dimension of a byte's embedding."""


class TextEncoder(nn.Module):
    """A bidirectional transformer over a text's bytes, with the defaults of about 3.4M parameters.

    Attributes:
        width: D of every vector, a multiple of `heads`.
        length: of the longest text, in bytes.
        dtype: of the products.
    """

    width: int = 256
    layers: int = 4
    heads: int = 4
    length: int = 128
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> jax.Array:
        """tokens [B, L] integers, L <= length, 0 after the end -> [B, L, width], to be used where tokens > 0.

        Raises:
            ValueError: if tokens are not integers [B, L], L <= length, or are none, or heads do not divide the width.
        """
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} must be a multiple of heads = {self.heads}")
        if tokens.ndim != 2 or tokens.shape[1] > self.length or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens are {tokens.dtype} {tokens.shape}: expected integers [B, L], L <= {self.length}")
        if tokens.size == 0:
            raise ValueError(f"tokens have shape {tokens.shape}: give at least one text, of L at least 1")
        one = nn.initializers.normal(1.0)
        dense = functools.partial(Dense, kernel_init=nn.initializers.lecun_normal(), dtype=self.dtype)
        embed = nn.Embed(256, BYTE_EMBEDDING_DIM, embedding_init=one, name="bytes")  # gradients are summed in float32
        x = embed(tokens.astype(jnp.int32)).astype(self.dtype)
        x = stack_neighbours(x * (tokens > 0)[..., None].astype(x.dtype), NEIGHBOUR_RADIUS)
        x = nn.gelu(dense(2 * self.width, name="near0")(x))
        x = dense(self.width, name="near1")(x)
        for i in range(self.layers):
            x = TransformerLayer(self.heads, self.length, self.dtype, name=f"layer_{i}")(x, tokens > 0)
        return nn.LayerNorm(dtype=self.dtype, name="norm_out")(x)


def stack_neighbours(x: jax.Array, radius: int) -> jax.Array:
    """[B, L, D] -> [B, L, (2 radius + 1) D]: vectors stacked with their neighbours, 0 beyond the ends."""
    wide = jnp.pad(x, ((0, 0), (radius, radius), (0, 0)))
    return jnp.concatenate([wide[:, i : i + x.shape[1]] for i in range(2 * radius + 1)], axis=-1)
