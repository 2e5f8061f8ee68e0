"""Samples beside the training images nearest to them: what a copy would look like, and whether there are any."""

import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import data
from ddpm_jax.evaluate import draws, figures, protocol, samples
from ddpm_jax.evaluate.options import Neighbours, Samples
from ddpm_jax.evaluate.protocol import Number
from ddpm_jax.evaluate.subject import Split, Subject, images, split
from ddpm_jax.metrics import manifold, monitors

QUANTILES = {"5 % quantile": 0.05, "median": 0.5, "95 % quantile": 0.95}


class Space(NamedTuple):
    """Where distances are measured.

    Attributes:
        name: what it is.
        unit: of the distances, in words.
        place: integer images [n, H, W, C] -> vectors [n, d].
        scale: what Euclidean distances of these are divided by.
    """

    name: str
    unit: str
    place: Callable[[np.ndarray], np.ndarray]
    scale: float


class Found(NamedTuple):
    """Neighbours among the training images.

    Attributes:
        distances: [n, k] of each sample, ascending.
        indices: [n, k] rows of the reference.
        held_out: [h] distances of the held-out images to the nearest.
        copying: the verdict, in pixels.
    """

    distances: np.ndarray
    indices: np.ndarray
    held_out: np.ndarray
    copying: monitors.Copying

    def order(self) -> np.ndarray:
        """[n] the samples, the one nearest to a training image first."""
        return np.argsort(self.distances[:, 0], kind="stable")


def run(subject: Subject, options: Neighbours) -> int:
    """Writes the picture, the numbers and the neighbours, and says the verdict; status 4 if it is interrupted."""
    loaded = images(subject, stream=False)  # every sample is compared with all of them
    train, held = split(loaded, "train"), split(loaded, "test")
    check(options, len(train.images))
    space = where(subject, options)
    folder = draws.ensure(subject, options.num, options.seed, "integer")
    if folder is None:
        return 4
    drawn = np.concatenate(list(draws.chunks(folder, 0, options.num)))
    compared = reference(np.asarray(train.images), subject.model.config.data.flip)
    found = measure(drawn, compared, np.asarray(loaded.test), space, options.k)
    facts = fields(subject, options, train, space)
    counted = numbers(found, held, space, facts)
    name = f"neighbours-{protocol.identity({**facts, 'rows': options.rows, 'k': options.k})}"
    first = found.order()[: options.rows]
    legend = (
        f"rows: the {options.rows} of {options.num} samples of seed {options.seed} that are nearest to a training "
        f"image, nearest first: {figures.listed(first)}; columns: the sample, then its {options.k} nearest training "
        f"images by {space.name}"
    )
    beside = data.grid(compared[found.indices[first]].reshape(-1, *drawn.shape[1:]), loaded.levels, columns=options.k)
    alone = data.grid(drawn[first], loaded.levels, columns=1)
    figures.save(subject, name, np.concatenate([alone, beside], axis=1), legend)
    write(subject.out / f"{name}.json", subject, found, counted, len(train.images))
    for number in counted:
        print(protocol.line(number))
    print(f"verdict in pixels: {found.copying.reason}")
    print(f"numbers, verdict and the neighbours of each sample in {name}.json")
    return 0


def check(options: Neighbours, references: int) -> None:
    """Refuses what cannot be shown, before anything is drawn."""
    if not 1 <= options.rows <= options.num:
        raise ValueError(f"--rows must be 1 to --num, {options.num}, got {options.rows}")
    if not 1 <= options.k <= references:
        raise ValueError(f"--k must be 1 to {references}, the number of training images, got {options.k}")


def reference(train: np.ndarray, flip: bool) -> np.ndarray:
    """The training images, and after them their mirror images where training mirrors."""
    return np.concatenate([train, train[:, :, ::-1]]) if flip else train


def where(subject: Subject, options: Neighbours) -> Space:
    """The space that distances are measured in."""
    if options.features == "pixels":
        return pixels(subject.model.shape)
    asked = Samples(features=options.features, inception_weights=options.inception_weights)
    eye = samples.extractor(subject.model, asked)

    def features(integers: np.ndarray) -> np.ndarray:
        parts = range(0, len(integers), samples.BATCH)
        return np.concatenate([eye.judge(integers[i : i + samples.BATCH])[0] for i in parts])

    return Space(eye.name, "feature units", features, 1.0)


def pixels(shape: Sequence[int]) -> Space:
    """Root mean square over the pixels of images of this shape, as the verdict has it."""
    return Space(
        "pixels", "RMS in levels", lambda integers: integers.reshape(len(integers), -1), math.prod(shape) ** 0.5
    )


def measure(drawn: np.ndarray, compared: np.ndarray, held_out: np.ndarray, space: Space, k: int) -> Found:
    """The k nearest of the images compared with, for each sample, and how far held-out images are from theirs.

    Args:
        drawn, compared, held_out: integer images [n, H, W, C], alike; only `held_out` may be empty.
    """
    places = space.place(compared)
    near = manifold.nearest(space.place(drawn), places, k)
    known = manifold.nearest(space.place(held_out), places).distances[:, 0] if len(held_out) else np.zeros(0)
    verdict = monitors.memorisation(drawn, monitors.yardstick(compared, held_out))
    return Found(near.distances / space.scale, near.indices, known / space.scale, verdict)


def fields(subject: Subject, options: Neighbours, train: Split, space: Space) -> protocol.Protocol:
    """What the samples' numbers depend on."""
    mirrored = " and mirrored" if subject.model.config.data.flip else ""
    return {
        "n": options.num,
        "reference": f"{train.name} n={len(train.images)}{mirrored}",
        "features": space.name,
        **draws.fields(subject, options.seed, "integer"),
    }


def numbers(found: Found, held: Split, space: Space, facts: protocol.Protocol) -> list[Number]:
    """Of samples and of held-out images: quantiles of the distance to the nearest training image, shares of copies."""
    of_held = {"n": len(held.images), "data": held.name, "reference": facts["reference"]}
    judged, nan, rows = found.copying, math.nan, []
    for who, distances, known in (("samples", found.distances[:, 0], facts), ("held-out", found.held_out, of_held)):
        for name, q in QUANTILES.items():
            value = float(np.quantile(distances, q)) if len(distances) else nan
            what = f"nearest training image, {who}, {name}, {space.unit}"
            rows.append(Number(what, value, nan, {**known, "features": space.name}))
    for name, value, known in (
        ("share of samples as near as the nearest 5 % of held-out images", judged.near, facts),
        ("share of samples like copies of one training image", judged.copied, facts),
        ("share of held-out images like copies of one training image", judged.held_out_copied, of_held),
    ):
        rows.append(Number(name, value, nan, {**known, "features": "pixels"}))
    return rows


def write(path: pathlib.Path, subject: Subject, found: Found, counted: list[Number], m: int) -> None:
    """Writes the numbers, and beside them the verdict and each sample's neighbours, the nearest sample first."""
    protocol.write(path, counted, subject.made_with())
    rows: list[dict[str, Any]] = [
        {
            "sample": int(i),
            "train": (found.indices[i] % m).tolist(),
            "mirrored": (found.indices[i] >= m).tolist(),
            "distance": found.distances[i].tolist(),
        }
        for i in found.order()
    ]
    verdict = {"verdict": found.copying.verdict, "reason": found.copying.reason, "neighbours": rows}
    figures.written(path, json.loads(path.read_text(encoding="utf-8")) | verdict)
