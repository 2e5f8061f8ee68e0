"""Maker of `digits.npz` and `mnist.npz`, the weights of the classifiers inside the package.

    python -m scripts.make_classifier digits
    python -m scripts.make_classifier mnist --source npz:PATH

The digits are those of `data.load("digits")`; for MNIST, PATH is a file as `data.load` takes it, with the 60,000
training and 10,000 test images and their labels.  Only the training images are trained on; the test images gave the
accuracy in the record, and served to choose among a handful of recipes.

The file has the weights in float16, and a record in JSON: the accuracies that the rounded weights have, the SHA-256 of
the training images and labels, the recipe and the versions.  The same machine and versions write the same bytes.
"""

import argparse
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from ddpm_jax import data, keys, metrics
from ddpm_jax.metrics.classifier import CLASSIFIERS, Classifier, ClassifierNetwork, load_file


class Recipe(NamedTuple):
    """How a classifier is trained.

    The Fréchet distance of held-out images to the training images is what samples are measured against, so both must
    have features of nearly the same law: hence much dropout, weight decay and few epochs.

    Attributes:
        epochs: times that each image is seen.
        batch: images per step.
        learning_rate: of AdamW at its peak, after a tenth of the steps; it ends near 0.
        weight_decay: of AdamW, times the learning rate.
        shifted: share of the images moved by one pixel up, and as many down, left and right; black comes in.
        seed: of all that is drawn.
    """

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    shifted: float
    seed: int = 0


RECIPES = {
    # A pixel is an eighth of the digits' width: most stay where they are.
    "digits": Recipe(epochs=60, batch=100, learning_rate=3e-3, weight_decay=0.1, shifted=1 / 8),
    "mnist": Recipe(epochs=6, batch=128, learning_rate=3e-3, weight_decay=0.1, shifted=1 / 3),
}


def main(argv: list[str]) -> int:
    """Trains, writes the file and prints its record; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.make_classifier")
    parser.add_argument("name", choices=sorted(CLASSIFIERS))
    parser.add_argument("--source", help='where the images come from, as data.load takes it; "digits" for the digits')
    parser.add_argument("--out", type=Path, help="the file to write; by default the package's own")
    args = parser.parse_args(argv)
    if args.source is None and args.name != "digits":
        parser.error(f"{args.name} needs --source npz:PATH")
    path = args.out or Path(metrics.__file__).with_name(f"{args.name}.npz")
    save_file(path, make_classifier(args.name, data.load(args.source or "digits"), RECIPES[args.name]))
    classifier = load_file(path)
    print(f"{path}: {path.stat().st_size:,} bytes, fingerprint {classifier.fingerprint}")
    print(json.dumps(classifier.record, indent=2))
    return 0


def make_classifier(name: str, images: data.Dataset, recipe: Recipe) -> Classifier:
    """A classifier trained on images.train, its weights rounded to float16, with its record.

    Args:
        name: of the kind in `classifier.KINDS` that it is to be.
        images: of that kind, with labels.

    Raises:
        ValueError: if images are of another kind, or have no labels.
    """
    kind = CLASSIFIERS[name]
    found = (images.train.shape[1:], images.levels)
    if found != (kind.shape, kind.levels):
        raise ValueError(f"{name}: expected images {kind.shape} of {kind.levels} levels, got {found[0]} of {found[1]}")
    if images.train_labels is None or images.test_labels is None:
        raise ValueError(f"{name}: expected images with labels, {images.name} has none")
    train, test = np.asarray(images.train), np.asarray(images.test)
    params = train_network(kind.network, train, images.train_labels, recipe)
    flat = traverse_util.flatten_dict(jax.device_get(params), sep="/")
    weights = {path: np.asarray(weight, np.float16).astype(np.float32) for path, weight in flat.items()}
    classifier = Classifier(name, weights, {})
    record = {
        "name": name,
        "train_images": len(train),
        "train_accuracy": _accuracy(classifier, train, images.train_labels),
        "held_out_images": len(test),
        "held_out_accuracy": _accuracy(classifier, test, images.test_labels),
        "data_sha256": data_sha256(train, images.train_labels),
        "recipe": recipe._asdict(),
        "versions": {package: importlib.metadata.version(package) for package in ("jax", "jaxlib", "flax", "optax")},
    }
    return dataclasses.replace(classifier, record=record)


def train_network(
    network: ClassifierNetwork, images: np.ndarray, labels: np.ndarray, recipe: Recipe
) -> Mapping[str, Any]:
    """The parameters after training on images [N, H, W, C] and labels [N]."""
    init_key, order_key, step_key = jax.random.split(keys.from_seed(recipe.seed), 3)
    params = network.init(init_key, jnp.zeros((1, *images.shape[1:])))["params"]
    steps = recipe.epochs * len(images) // recipe.batch
    rates = optax.cosine_onecycle_schedule(steps, recipe.learning_rate, pct_start=0.1)
    optimizer = optax.adamw(rates, weight_decay=recipe.weight_decay)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, images, labels, n):
        params, moments = state
        grads = jax.grad(_loss)(params, network, jax.random.fold_in(step_key, n), images, labels, recipe.shifted)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments

    state, order = (params, optimizer.init(params)), data.EpochShuffle(order_key, len(images))
    for n in range(steps):
        selected = order.indices(n, recipe.batch)
        state = step(state, images[selected].astype(np.float32), labels[selected], n)
    return state[0]


def _loss(
    params, network: ClassifierNetwork, key: jax.Array, images: jax.Array, labels: jax.Array, probability: float
) -> jax.Array:
    shift_key, dropout_key = jax.random.split(key)
    dropout_keys = jax.random.split(dropout_key, len(images))
    found: Any = network.apply({"params": params}, random_shift(shift_key, images, probability), dropout_keys)
    _, logits = found
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def random_shift(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Images [b, H, W, C], each moved by -1, 0 or 1 pixels down and across, -1 and 1 with `probability` each."""
    draw = jax.random.uniform(key, (len(images), 2), jnp.float32)
    corners = 1 + (draw > 1 - probability).astype(jnp.int32) - (draw < probability).astype(jnp.int32)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    cut = jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:]))
    return cut(padded, corners)


def save_file(path: Path, classifier: Classifier) -> None:
    """Writes weights and record, without a date."""
    arrays: dict[str, Any] = {key: weight.astype(np.float16) for key, weight in sorted(classifier.weights.items())}
    with path.open("wb") as file:
        np.savez_compressed(file, record=np.array(json.dumps(classifier.record)), **arrays)


def _accuracy(classifier: Classifier, images: np.ndarray, labels: np.ndarray) -> float:
    return round(float((classifier(images).probabilities.argmax(axis=1) == labels).mean()), 5)


def data_sha256(images: np.ndarray, labels: np.ndarray) -> str:
    """Of images uint8 or uint16 and labels int32, little-endian."""
    digest = hashlib.sha256(images.astype(images.dtype.newbyteorder("<")).tobytes())
    digest.update(labels.astype("<i4").tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
