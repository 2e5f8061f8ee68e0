"""Two small classifiers with weights in the package, of digits and of MNIST: features and class probabilities.

The features are for distances between sets of images of *one domain*: Fréchet distance, precision and recall, coverage,
where Inception does not know the domain or is not available.  The probabilities are for `class_coverage`.

scripts/make_classifier.py trained them, on the training images alone; each file's record has the results.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ddpm_jax.metrics import check_values, fingerprint
from ddpm_jax.models.unet import dropout

TILE = 256
"""Fixed batch size: a convolution's bits depend on its batch."""

CONFIDENT = 0.9
"""Probability above which a classifier is confident."""


class ClassifierNetwork(nn.Module):
    """Network of 3x3 convolutions, a dense layer for the features and one for the classes.

    The features are the dense layer's output *before* its nonlinearity: nearer to a normal law than after a ReLU, which
    makes half of them exactly 0.  The nonlinearity is smooth and not flat below 0, so every feature learns, and the
    covariance has full rank.

    Attributes:
        levels: of the images.
        convolutions: channels and stride of each.
        features, classes: their numbers.
        dropout: rate in training, before each dense layer.
    """

    levels: int
    convolutions: tuple[tuple[int, int], ...]
    features: int = 64
    classes: int = 10
    dropout: float = 0.5

    @nn.compact
    def __call__(self, images: jax.Array, dropout_keys: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """images float32 [n, H, W, C], values 0 .. levels - 1 -> features [n, d], logits [n, classes].

        Args:
            dropout_keys: [n] keys, or None where nothing is dropped.
        """
        # Accelerators would round the factors of float32 products to fewer digits: numbers would depend on the device.
        exact = jax.lax.Precision.HIGHEST
        x = images * (2 / (self.levels - 1)) - 1
        for i, (channels, stride) in enumerate(self.convolutions):
            x = nn.silu(nn.Conv(channels, (3, 3), stride, precision=exact, name=f"convolution{i}")(x))
        x = dropout(jnp.reshape(x, (len(x), -1)), dropout_keys, self.dropout, 0)
        features = nn.Dense(self.features, precision=exact, name="features")(x)
        x = dropout(nn.silu(features), dropout_keys, self.dropout, 1)
        return features, nn.Dense(self.classes, precision=exact, name="logits")(x)


class ClassifierSpec(NamedTuple):
    """The images that a classifier is for, [n, *shape] of values 0 .. levels - 1, and its network without weights."""

    shape: tuple[int, int, int]
    levels: int
    network: ClassifierNetwork


CLASSIFIERS = {
    "digits": ClassifierSpec((8, 8, 1), 17, ClassifierNetwork(17, ((32, 1), (64, 2)))),
    "mnist": ClassifierSpec((28, 28, 1), 256, ClassifierNetwork(256, ((16, 1), (32, 2), (64, 2)))),
}


class ClassifierOutput(NamedTuple):
    """Features and class probabilities of n images.

    Attributes:
        features: float32 [n, dimension].
        probabilities: float32 [n, classes], of the classes 0, 1, ...
    """

    features: np.ndarray
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier, images -> `ClassifierOutput`; see `load`.

        output = classifier.load("digits")(images)

    Accuracy on held-out images, and their squared Fréchet distance to the training images:

                held-out images                    accuracy    distance
        digits  297, of `data.load("digits")`       99.33 %        3.51
        mnist   MNIST's 10,000 test images          99.24 %        0.84

    For as many training images against the others it is 3.5 and 0.4.  The halves of MNIST's test images are of
    different kinds of writers, each at a distance of 5.9: a held-out baseline needs all of them, or a random part.

    Attributes:
        name: "digits" or "mnist".
        weights: float32, by "layer/weight".
        record: how the weights were made and how well they do, see scripts/make_classifier.py.
    """

    name: str
    weights: Mapping[str, np.ndarray]
    record: Mapping[str, Any]

    @property
    def dimension(self) -> int:
        """The number of features."""
        return CLASSIFIERS[self.name].network.features

    @functools.cached_property
    def fingerprint(self) -> str:
        """12 hex digits of the SHA-256 of the weights: scores of different fingerprints do not compare."""
        return fingerprint(self.weights)

    def __call__(self, images: np.ndarray) -> ClassifierOutput:
        """Features and class probabilities, `TILE` images at a time, the last tile padded with black ones.

        The output of an image depends on it and its index in its tile, not on other images or their number.  Integers
        and the same values as float32 give the same bits.

        Args:
            images: uint8, uint16 or float32 [n, H, W, C], values 0 .. levels - 1; floats are not rounded.

        Raises:
            ValueError: if images are not as described.
        """
        kind, n = CLASSIFIERS[self.name], len(images)
        if images.shape[1:] != kind.shape or n == 0:
            size = ", ".join(map(str, kind.shape))
            raise ValueError(f"{self.name}: expected images [n, {size}], n at least 1, got shape {images.shape}")
        check_values(self.name, images, kind.levels)
        params, outputs = jax.device_put(traverse_util.unflatten_dict(self.weights, sep="/")), []
        for start in range(0, n, TILE):
            tile = np.zeros((TILE, *kind.shape), np.float32)
            tile[: n - start] = images[start : start + TILE]
            outputs.append(jax.device_get(_extract(kind.network, params, tile)))
        return ClassifierOutput(*(np.concatenate(parts)[:n] for parts in zip(*outputs, strict=True)))


def load(name: str) -> Classifier:
    """The classifier "digits" (8x8x1, 17 levels) or "mnist" (28x28x1, 256 levels), with the package's weights.

    The file has the weights in float16; all results are for these rounded weights.

    Raises:
        ValueError: if there is no classifier of that name.
    """
    if name not in CLASSIFIERS:
        raise ValueError(f"load: no classifier {name!r}; there are {_list_classifiers()}")
    return load_file(Path(__file__).with_name(f"{name}.npz"))


def load_file(path: Path) -> Classifier:
    """The classifier in a file that scripts/make_classifier.py wrote."""
    with np.load(path, allow_pickle=False) as archive:
        record = json.loads(str(archive["record"]))
        weights = {key: archive[key].astype(np.float32) for key in archive.files if key != "record"}
    return Classifier(record["name"], weights, record)


def name_for_images(shape: Sequence[int], levels: int) -> str:
    """The name of the classifier for images of shape (H, W, C) and values 0 .. levels - 1.

    Whether the images show digits is not checked.

    Raises:
        ValueError: if there is none, with a list of all classifiers.
    """
    for name, kind in CLASSIFIERS.items():
        if (kind.shape, kind.levels) == (tuple(shape), levels):
            return name
    size = "x".join(map(str, shape))
    raise ValueError(f"no classifier for images {size} of {levels} levels; there are {_list_classifiers()}")


class ClassCoverage(NamedTuple):
    """The classes of samples against those of a reference.

    Attributes:
        classes: number of classes in the reference.
        present: number of those with a sample.
        total_variation: half the sum of the absolute differences of the shares, 0 (equal) to 1 (disjoint).
        confident: share of the samples with classifier confidence p > 0.9.
    """

    classes: int
    present: int
    total_variation: float
    confident: float


def class_coverage(probabilities: np.ndarray, reference: np.ndarray) -> ClassCoverage:
    """Class coverage of samples against a reference, from the class probabilities of both.

    Sets of n and m images of the same law, K classes of equal shares, are still

        ((K - 1) (1/n + 1/m) / 2 pi)^1/2

    apart in total variation on average: 0.04 for ten classes, n = 1000 and m = 10,000.

    Args:
        probabilities: of the samples, floating point [n, classes], as `ClassifierOutput` has them.
        reference: of the reference, [m, classes].

    Raises:
        ValueError: if these are not probabilities, or of different numbers of classes.
    """
    _check_probabilities("probabilities", probabilities)
    _check_probabilities("reference", reference)
    width = probabilities.shape[1]
    if reference.shape[1] != width:
        raise ValueError(f"class_coverage: expected as many classes on both sides, got {width} and {len(reference[0])}")
    counts, reference_counts = (np.bincount(p.argmax(axis=1), minlength=width) for p in (probabilities, reference))
    known = reference_counts > 0
    fractions, reference_fractions = counts / counts.sum(), reference_counts / reference_counts.sum()
    return ClassCoverage(
        classes=int(known.sum()),
        present=int((counts[known] > 0).sum()),
        total_variation=float(np.abs(fractions - reference_fractions).sum() / 2),
        confident=float((probabilities.max(axis=1) > CONFIDENT).mean()),
    )


@functools.partial(jax.jit, static_argnames="network")
def _extract(network: ClassifierNetwork, params: Mapping[str, Any], images: jax.Array) -> tuple[jax.Array, jax.Array]:
    output: Any = network.apply({"params": params}, images)
    return output[0], nn.softmax(output[1])


def _list_classifiers() -> str:
    described = (f"{name} ({'x'.join(map(str, k.shape))}, {k.levels} levels)" for name, k in CLASSIFIERS.items())
    return " and ".join(described)


def _check_probabilities(name: str, probabilities: np.ndarray) -> None:
    if probabilities.ndim != 2 or 0 in probabilities.shape or not np.issubdtype(probabilities.dtype, np.floating):
        what = f"{probabilities.dtype} {probabilities.shape}"
        raise ValueError(f"class_coverage: expected {name} floating point [n, classes], none of them 0, got {what}")
    off = np.abs(probabilities.sum(axis=1) - 1).max()
    if not (probabilities.min() >= 0 and off < 1e-3):
        found = f"{probabilities.min():.3g} and sums off by up to {off:.3g}"
        raise ValueError(f"class_coverage: expected {name} from 0 that sum to 1, got {found}: are these logits?")
