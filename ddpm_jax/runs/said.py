"""What a network is told: of the images of a data set, in training, and of the images that are asked for."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import conditioning, data, process, text
from ddpm_jax import config as configs
from ddpm_jax.conditioning import Condition
from ddpm_jax.config import flags, objects
from ddpm_jax.data import captions


class Said:
    """What is said of each image of a data set, as the network of a config takes it.

    Args:
        held_out: of the images that are held out, not of those to train on.

    Raises:
        ValueError: if the images have no labels or texts where the network takes them, or labels that it does not know,
            or a text is too long.
    """

    def __init__(self, config: configs.Config, images: data.Images, *, held_out: bool = False) -> None:
        self.labels: np.ndarray | None = None
        self.which: np.ndarray | None = None
        if config.net.num_classes:
            self.labels = _labels(config, images)[held_out]
        if config.text.layers:
            of = captions.held_out_table if held_out else captions.table
            self.texts, self.which = of(images, config.condition.templates)
            self.tokens = _table(self.texts, config.text.length)

    def rows(self, indices: np.ndarray) -> Condition:
        """What is said of the images at `indices` [...]: labels [...], and tokens [..., K, L] of all texts of each."""
        labels = None if self.labels is None else self.labels[indices]
        return Condition(labels, None if self.which is None else self.tokens[self.which[indices]])

    def first(self, indices: np.ndarray) -> Condition:
        """As `rows`, but the first text alone, tokens [..., L]."""
        rows = self.rows(indices)
        return rows if rows.tokens is None else rows._replace(tokens=rows.tokens[..., 0, :])

    def batch(self, indices: np.ndarray) -> Condition:
        """As `rows`, of the images of a step [batch], on this process's devices: [devices, b, ...]."""
        return self.rows(process.share(indices.reshape(jax.device_count(), -1)))


class Asked(NamedTuple):
    """What images to draw: image i is told labels[i % len(labels)] and texts[i % len(texts)]; () is told nothing."""

    labels: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()

    def check(self, config: configs.Config) -> None:
        """Raises a ValueError if the network of the config cannot be told this."""
        classes, length = config.net.num_classes, config.text.length
        if self.labels and not classes:
            raise ValueError("labels are asked for, and this run's network was not told any (net.num_classes is 0)")
        if self.texts and not config.text.layers:
            raise ValueError("a text is given, and this run's network was not told any (text.layers is 0)")
        for label in self.labels:
            if not 0 <= label < classes:
                raise ValueError(f"label {label} is asked for, and this run knows 0 to {classes - 1}")
        text.tokens(self.texts, length)
        if objects.conditional(config) and not (self.labels or self.texts) and not config.condition.drop:
            raise ValueError(
                "this run's network was always told something (condition.drop is 0): say which images to draw"
            )

    def rows(self, config: configs.Config, indices: np.ndarray) -> Condition:
        """What the images at `indices` [n] are told."""
        found, places = objects.blank(config, len(indices)), np.asarray(indices, np.int64)
        if self.labels:
            found = found._replace(label=np.asarray(self.labels, np.int32)[places % len(self.labels)])
        if self.texts:
            found = found._replace(tokens=text.tokens(self.texts, config.text.length)[places % len(self.texts)])
        return found

    def record(self) -> dict[str, list]:
        """As a manifest has it."""
        return {"labels": list(self.labels), "texts": list(self.texts)}

    def describe(self, names: Sequence[str]) -> str:
        """In words."""
        labels = ", ".join(names[i] if i < len(names) else str(i) for i in self.labels)
        texts = "; ".join(self.texts)
        return " and ".join([f"labels {labels}"] * bool(labels) + [f"texts {texts}"] * bool(texts)) or "told nothing"


NOTHING = Asked()
"""Images of nothing in particular."""


def in_training(config: configs.Config, keys, rows: Condition) -> Condition:
    """What training tells of examples with these keys [b], given `Said.rows`: one text of each, or nothing."""
    if not objects.conditional(config):
        return rows
    if rows.tokens is not None:
        rows = rows._replace(tokens=conditioning.one_text(keys, rows.tokens))
    null = conditioning.nothing(rows, config.net.num_classes)
    return conditioning.drop(keys, rows, null, config.condition.drop)


def asked(wanted: flags.Asked, sampling: flags.Sampling, names: Sequence[str], num_classes: int) -> Asked:
    """What the flags ask of a network for so many labels with these names.

    Raises:
        ValueError: for a label that is neither a name nor a number of one, naming those that there are; or if there is
            a flag for guidance, and nothing to go for.
    """
    if sampling.guidance is not None and not (wanted.label or wanted.labels or wanted.text):
        raise ValueError(f"--guidance {sampling.guidance:g} needs something to go for: a label or a text")
    if wanted.label is not None and wanted.labels is not None:
        raise ValueError("--label is one for all images and --labels several: say one of them")
    words = [wanted.label] if wanted.label is not None else wanted.labels.split(",") if wanted.labels else []
    if not num_classes and words:
        raise ValueError("labels are asked for, and this run's network was not told any (net.num_classes is 0)")
    if words == ["all"]:
        return Asked(tuple(range(num_classes)), wanted.text)
    labels = []
    for word in map(str.strip, words):
        if word in names:
            labels.append(names.index(word))
        elif word.isdecimal() and int(word) < num_classes:
            labels.append(int(word))
        else:
            raise ValueError(f"no label {word!r}: this run has 0 to {num_classes - 1} ({', '.join(names)})")
    return Asked(tuple(labels), wanted.text)


def _labels(config: configs.Config, images: data.Images) -> tuple[Any, Any]:
    classes = config.net.num_classes
    if images.train_labels is None or images.test_labels is None:
        raise ValueError(f"{images.name} has no labels, and net.num_classes = {classes} tells the network the labels")
    most = int(max(images.train_labels.max(), images.test_labels.max())) + 1
    if max(most, len(images.label_names)) > classes:
        raise ValueError(
            f"{images.name} has {max(most, len(images.label_names))} labels, and net.num_classes is {classes}"
        )
    return images.train_labels, images.test_labels


def _table(texts: Sequence[Sequence[str]], length: int) -> np.ndarray:
    """The tokens of rows of texts, uint8 [rows, K, length], 0 where a row has fewer than K."""
    most = max(map(len, texts))
    try:
        flat = text.tokens([text for row in texts for text in (*row, *[""] * (most - len(row)))], length)
    except ValueError as error:
        raise ValueError(f"{error}; --text.length sets how many bytes a text may have") from None
    return flat.reshape(len(texts), most, length)
