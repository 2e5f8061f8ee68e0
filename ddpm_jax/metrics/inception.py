"""Inception-v3 as a Flax module, the Inception score and the kernel Inception distance.

Published FIDs use TensorFlow's weights of 5 December 2015; `convert.inception` reads torch-fidelity's file of them.
Features of other weights, another pooling or another resizing are not comparable.

The layers are those of arXiv:1512.00567, with three differences of the TensorFlow graph: averages over 3x3 pixels leave
out the padding; the last block has a maximum in place of the average; images are resized without antialiasing, and
their first pixels have the same place.

Two protocols, chosen by the type of the images, not to be mixed within a comparison:

    integers    rounded to 8 bits, as published FIDs of saved images are
    float32     clipped but not rounded, as in DDPM's own code (8-bit data are the same in both)
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.metrics import check_values

SIZE = 299
"""Height and width of the network's images."""

FEATURES, CLASSES = 2048, 1008

SHUFFLE_SEED = 2020  # torch-fidelity's own, so that its command line finds the same scores


class Score(NamedTuple):
    """A mean over splits or subsets of the images, and the standard deviation among them (not the mean's error)."""

    mean: float
    std: float


class Inception(nn.Module):
    """Inception-v3: images -> features and logits.

    Parameters have the names of torch-fidelity's file.  All arithmetic is in float32, on accelerators too.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features and logits.

        Args:
            images: uint8 or float32 [n, H, W, 1 | 3], values 0 .. 255 as of `to_8_bit`; one channel is grey RGB.

        Returns:
            features: float32 [n, 2048], the mean over the last layer: for FID, KID, precision and recall.
            logits: float32 [n, 1008], without the last layer's bias, as in the published Inception score.
        """
        x = resize(images.astype(jnp.float32))
        x = (jnp.broadcast_to(x, (*x.shape[:3], 3)) - 128) / 128
        x = Conv(32, (3, 3), 2, name="Conv2d_1a_3x3")(x)
        x = Conv(32, (3, 3), padding="VALID", name="Conv2d_2a_3x3")(x)
        x = max_pool(Conv(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = Conv(80, name="Conv2d_3b_1x1")(x)
        x = max_pool(Conv(192, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(x))
        for block in (
            BlockA(32, name="Mixed_5b"), BlockA(64, name="Mixed_5c"), BlockA(64, name="Mixed_5d"),
            BlockB(name="Mixed_6a"),
            BlockC(128, name="Mixed_6b"), BlockC(160, name="Mixed_6c"), BlockC(160, name="Mixed_6d"),
            BlockC(192, name="Mixed_6e"),
            BlockD(name="Mixed_7a"),
            BlockE("average", name="Mixed_7b"), BlockE("max", name="Mixed_7c"),
        ):  # fmt: skip
            x = block(x)
        x = x.mean((1, 2))
        return x, nn.Dense(CLASSES, use_bias=False, precision=jax.lax.Precision.HIGHEST, name="fc")(x)


class Conv(nn.Module):
    """Convolution without bias, normalisation by stored statistics, ReLU; no padding where the stride is 2."""

    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = self.padding if self.stride == 1 else "VALID"
        # accelerators would round the factors of float32 products to fewer digits
        exact = jax.lax.Precision.HIGHEST
        x = nn.Conv(
            self.channels, self.kernel, self.stride, padding, use_bias=False, precision=exact, name="conv"
        )(x)  # fmt: skip
        return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x))


class BlockA(nn.Module):
    """The blocks of 35x35 pixels."""

    pool_channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = Conv(64, name="branch1x1")(x)
        five = _chain(x, "branch5x5", (48,), (64, (5, 5)))
        three = _chain(x, "branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3)))
        return jnp.concatenate([one, five, three, Conv(self.pool_channels, name="branch_pool")(average_pool(x))], -1)


class BlockB(nn.Module):
    """From 35x35 to 17x17 pixels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = Conv(384, (3, 3), 2, name="branch3x3")(x)
        twice = _chain(x, "branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3), 2))
        return jnp.concatenate([three, twice, max_pool(x)], -1)


class BlockC(nn.Module):
    """The blocks of 17x17 pixels."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, row, column = self.channels, (1, 7), (7, 1)
        one = Conv(192, name="branch1x1")(x)
        seven = _chain(x, "branch7x7", (c,), (c, row), (192, column))
        twice = _chain(x, "branch7x7dbl", (c,), (c, column), (c, row), (c, column), (192, row))
        return jnp.concatenate([one, seven, twice, Conv(192, name="branch_pool")(average_pool(x))], -1)


class BlockD(nn.Module):
    """From 17x17 to 8x8 pixels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = _chain(x, "branch3x3", (192,), (320, (3, 3), 2))
        seven = _chain(x, "branch7x7x3", (192,), (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2))
        return jnp.concatenate([three, seven, max_pool(x)], -1)


class BlockE(nn.Module):
    """The blocks of 8x8 pixels; pool: "average" or "max"."""

    pool: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def fork(y: jax.Array, name: str) -> list[jax.Array]:
            return [Conv(384, (1, 3), name=f"{name}a")(y), Conv(384, (3, 1), name=f"{name}b")(y)]

        one = Conv(320, name="branch1x1")(x)
        three = fork(Conv(384, name="branch3x3_1")(x), "branch3x3_2")
        twice = fork(_chain(x, "branch3x3dbl", (448,), (384, (3, 3))), "branch3x3dbl_3")
        pooled = average_pool(x) if self.pool == "average" else max_pool(x, 1, "SAME")
        return jnp.concatenate([one, *three, *twice, Conv(192, name="branch_pool")(pooled)], -1)


def _chain(x: jax.Array, name: str, *layers: tuple) -> jax.Array:
    """Convolutions one after the other, each the arguments of a `Conv`."""
    for i, layer in enumerate(layers):
        x = Conv(*layer, name=f"{name}_{i + 1}")(x)
    return x


def average_pool(x: jax.Array) -> jax.Array:
    """The mean over 3x3 pixels, of those that are inside the image."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def max_pool(x: jax.Array, stride: int = 2, padding: str = "VALID") -> jax.Array:
    """The maximum over 3x3 pixels."""
    return nn.max_pool(x, (3, 3), (stride, stride), padding)


def resize(images: jax.Array) -> jax.Array:
    """Images [n, H, W, C] in float32, resized to 299x299 as by TensorFlow 1's `resize_bilinear`.

    Row i of the result is at i H / 299 in the image, interpolated between the two rows there; beyond the last row it is
    the last row.  Columns likewise.  Larger images are not smoothed before.
    """
    for axis in (2, 1):
        n = images.shape[axis]
        position = np.arange(SIZE, dtype=np.float32) * np.float32(n / SIZE)
        low = position.astype(np.int32)
        shape = [1, 1, 1, 1]
        shape[axis] = SIZE
        weight = (position - low).reshape(shape)
        below, above = (jnp.take(images, indices, axis) for indices in (low, np.minimum(low + 1, n - 1)))
        images = below + (above - below) * weight
    return images


def to_8_bit(images: np.ndarray, levels: int) -> np.ndarray:
    """Images on the scale 0 .. 255: integers rounded to uint8, float32 not rounded.

    Args:
        images: uint8, uint16 or float32 [n, H, W, 1 | 3], values 0 .. levels - 1.

    Raises:
        ValueError: if images are not as described.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.size == 0:
        raise ValueError(f"Inception: expected images [n, H, W, 1 | 3], none of them 0, got shape {images.shape}")
    check_values("Inception", images, levels)
    if levels == 256:
        return images if images.dtype == np.float32 else images.astype(np.uint8)
    scaled = images * (255 / (levels - 1))
    return scaled.astype(np.float32) if images.dtype == np.float32 else np.rint(scaled).astype(np.uint8)


def inception_score(logits: np.ndarray, *, splits: int = 10) -> Score:
    """The Inception score.  The mean over splits of

        exp(mean over x of KL(p(y|x) || mean over x of p(y|x)))

    Improved Techniques for Training GANs (arXiv:1606.03498), section 4.  The images are shuffled by torch-fidelity's
    seed and cut into splits of n / splits.  The score grows with a split's size: compare at equal n and splits.

    Args:
        logits: floating point [n, classes], n >= splits.
        splits: 10 is usual; DDPM's own code takes 1.

    Raises:
        ValueError: if the logits are not as described, or splits is less than 1.
    """
    _check_rows("inception_score", "logits", logits)
    n = len(logits)
    if not 1 <= splits <= n:
        raise ValueError(f"inception_score: expected splits in 1 .. {n}, the images, got {splits}")
    x = logits[np.random.RandomState(SHUFFLE_SEED).permutation(n)].astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    scores = []
    for i in range(splits):
        part = log_p[i * n // splits : (i + 1) * n // splits]
        p = np.exp(part)
        divergences = (p * (part - np.log(p.mean(axis=0)))).sum(axis=1)
        scores.append(np.exp(divergences.mean()))
    return Score(float(np.mean(scores)), float(np.std(scores)))


def kernel_distance(
    features: np.ndarray, reference: np.ndarray, *, subsets: int = 100, subset_size: int = 1000
) -> Score:
    """The kernel Inception distance (KID).  The mean over random subsets of the unbiased estimate of

        MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),    k(x, y) = (x . y / d + 1)^3

    Demystifying MMD GANs (arXiv:1801.01401), section 4.  Unlike the FID its expectation does not depend on n; it can be
    a little less than 0.  Subsets are drawn by torch-fidelity's seed, and computed in the features' own precision.

    Args:
        features, reference: both float32 or both float64 [n, d], n at least 2 and of each its own.
        subset_size: rows drawn from each, without replacement; all of the smaller set where that has fewer.

    Raises:
        ValueError: if the features are not as described, or an option is out of range.
    """
    _check_rows("kernel_distance", "features", features)
    _check_rows("kernel_distance", "reference", reference)
    if features.dtype != reference.dtype or features.shape[1] != reference.shape[1]:
        described = f"{features.dtype} {features.shape} and {reference.dtype} {reference.shape}"
        raise ValueError(f"kernel_distance: expected two sets [n, d] of one type and one d, got {described}")
    m = min(subset_size, len(features), len(reference))
    if m < 2 or subsets < 1:
        raise ValueError(
            "kernel_distance: expected subsets >= 1 and subsets of at least 2 rows, got "
            f"subsets={subsets}, subset_size={subset_size}, {len(features)} and {len(reference)} rows"
        )

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_of_pairs(k: np.ndarray) -> np.ndarray:
        return (k.sum() - k.trace()) / (m * (m - 1))

    random, distances = np.random.RandomState(SHUFFLE_SEED), []
    for _ in range(subsets):
        x, y = (rows[random.choice(len(rows), m, replace=False)] for rows in (features, reference))
        distances.append(mean_of_pairs(kernel(x, x)) + mean_of_pairs(kernel(y, y)) - 2 * kernel(x, y).mean())
    return Score(float(np.mean(distances)), float(np.std(distances)))


def _check_rows(caller: str, name: str, rows: np.ndarray) -> None:
    if rows.ndim != 2 or rows.dtype not in (np.float32, np.float64):
        raise ValueError(f"{caller}: expected {name} float32 or float64 [n, d], got {rows.dtype} {rows.shape}")
