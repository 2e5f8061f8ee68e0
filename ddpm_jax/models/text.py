"""Text for a network: a small byte-level transformer, trained jointly with it from scratch.

A text is the bytes of its UTF-8, so there is no vocabulary and nothing is unknown; 0 fills what is left.  The empty
text is no text: the network that is told it is the network that is told nothing.
"""

import unicodedata
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ddpm_jax.guidance import Array
from ddpm_jax.models.unet import attend


def tokenize(texts: Sequence[str], length: int) -> np.ndarray:
    """The bytes of texts: uint8 [len(texts), length], 0 after the end of each.

    Texts are normalised first (NFC, Unicode Standard Annex 15): of one look there is one row.

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
    """A transformer's layer with the normalisations first (arXiv:2002.04745): attention, then two linear maps.

    To each logit is added a number that is learned of each head and distance, whose sign says which comes first
    (Shaw et al., arXiv:1803.02155; Raffel et al., arXiv:1910.10683): a text means the same wherever it begins.

    Attributes:
        heads: of the attention; they divide the width.
        length: of the longest text, in bytes: distances are learned up to it.
    """

    heads: int
    length: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: Array) -> jax.Array:
        """x [B, L, D], mask [B, L], True for tokens that count -> [B, L, D]."""
        _, length, width = x.shape
        by_distance = self.param("distances", _distance_bias_init, (self.heads, 2 * self.length - 1))
        positions = np.arange(length)  # known when it is traced, so that parameters may be numpy arrays, too
        bias = by_distance[:, self.length - 1 + positions - positions[:, None]]
        h = nn.LayerNorm(dtype=self.dtype, name="norm1")(x)
        q, k, v = (nn.Dense(width, dtype=self.dtype, name=name)(h) for name in ("q", "k", "v"))
        mixed = attend(q, k, v, self.heads, mask, bias)
        x = x + nn.Dense(width, dtype=self.dtype, name="proj_out")(mixed)
        h = nn.LayerNorm(dtype=self.dtype, name="norm2")(x)
        h = nn.gelu(nn.Dense(4 * width, dtype=self.dtype, name="dense0")(h))
        return x + nn.Dense(width, dtype=self.dtype, name="dense1")(h)


def _distance_bias_init(key: jax.Array, shape: tuple[int, int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Every other head begins by looking ahead and the others behind, each pair four times as far as the one before.

    Heads that all began alike would have to break their symmetry before the order of words can be told.
    """
    del key
    heads, length = np.arange(shape[0])[:, None], (shape[1] + 1) // 2
    ahead = np.arange(1 - length, length) * np.where(heads % 2, -1, 1)
    return jnp.asarray(np.where(ahead < 0, ahead, -ahead * 0.25 ** (1 + heads // 2)), dtype)


NEIGHBOUR_RADIUS = 3
"""How many bytes before and after it each byte is read together with: what letters spell is the same wherever it is."""

BYTE_EMBEDDING_DIM = 32
"""Numbers that stand for a byte by itself."""


class TextEncoder(nn.Module):
    """A text's bytes as vectors: with the defaults about 3.4M parameters; nothing hides a byte from those before it.

    Attributes:
        width: D of every vector, a multiple of `heads`.
        length: of the longest text, in bytes.
        dtype: what products are computed in.
    """

    width: int = 256
    layers: int = 4
    heads: int = 4
    length: int = 128
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> jax.Array:
        """tokens [B, L] integers, L <= length, 0 where there is nothing -> [B, L, width], to be read where tokens > 0.

        Raises:
            ValueError: if there are more tokens than `length`, or they are no integers [B, L], or heads do not divide
                the width.
        """
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} must be a multiple of heads = {self.heads}")
        if tokens.ndim != 2 or tokens.shape[1] > self.length or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens are {tokens.dtype} {tokens.shape}: expected integers [B, L], L <= {self.length}")
        one = nn.initializers.normal(1.0)
        x = nn.Embed(256, BYTE_EMBEDDING_DIM, embedding_init=one, dtype=self.dtype, name="bytes")(
            tokens.astype(jnp.int32)
        )
        x = stack_neighbours(x * (tokens > 0)[..., None].astype(x.dtype), NEIGHBOUR_RADIUS)
        x = nn.gelu(nn.Dense(2 * self.width, dtype=self.dtype, name="near0")(x))
        x = nn.Dense(self.width, dtype=self.dtype, name="near1")(x)
        for i in range(self.layers):
            x = TransformerLayer(self.heads, self.length, self.dtype, name=f"layer_{i}")(x, tokens > 0)
        return nn.LayerNorm(dtype=self.dtype, name="norm_out")(x)


def stack_neighbours(x: jax.Array, radius: int) -> jax.Array:
    """Each place's vector between those of its neighbours, so many to each side: [B, L, D] -> [B, L, (2 reach + 1) D].

    Beyond the ends is 0.
    """
    wide = jnp.pad(x, ((0, 0), (radius, radius), (0, 0)))
    return jnp.concatenate([wide[:, i : i + x.shape[1]] for i in range(2 * radius + 1)], axis=-1)
