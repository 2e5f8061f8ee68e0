"""What a network is told: of the images of a data set, in training, and of the images that are asked for."""

import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import conditioning, data, process, text
from ddpm_jax import config as configs
from ddpm_jax.conditioning import Condition
from ddpm_jax.config import flags, objects
from ddpm_jax.data import captions, survey
from ddpm_jax.data.stream import split_by_device
from ddpm_jax.runs import pictures


class DatasetConditions:
    """What is said of each image of a data set, as the network of a config takes it.

    Args:
        held_out: of the images that are held out, not of those to train on.

    Raises:
        ValueError: if the images have no labels or texts where the network takes them, or labels that it does not know,
            or a text is too long.
    """

    def __init__(self, config: configs.Config, images: data.Dataset, *, held_out: bool = False) -> None:
        self.images = images.test if held_out else images.train
        self.factor, self.levels = config.condition.super_resolution_factor if held_out else 0, images.levels
        if config.condition.super_resolution_factor:
            conditioning.block_average(np.zeros((1, *images.train.shape[1:])), config.condition.super_resolution_factor)
        if config.condition.paired:
            other = _load_paired(config, images)
            self.images, self.levels = other.test if held_out else other.train, other.levels
        self.has_images = bool(config.condition.paired or self.factor)
        self.labels: np.ndarray | None = None
        self.text_rows: np.ndarray | None = None
        if config.net.num_classes:
            self.labels = _checked_labels(config, images)[held_out]
        if config.text.layers:
            of = captions.held_out_caption_table if held_out else captions.caption_table
            self.texts, self.text_rows = of(images, config.condition.templates)
            self.tokens = _token_table(self.texts, config.text.length)

    def gather(self, indices: np.ndarray) -> Condition:
        """What is said of the images at `indices` [...]: labels [...], and tokens [..., K, L] of all texts of each.

        And the images beside them [..., H, W, C] in [-1, 1]; a coarser one in training is made there, of the image.
        """
        label = None if self.labels is None else self.labels[indices]
        tokens = None if self.text_rows is None else self.tokens[self.text_rows[indices]]
        return Condition(label, tokens, image=self._conditioning_images(indices) if self.has_images else None)

    def _conditioning_images(self, indices: np.ndarray) -> np.ndarray:
        x = np.asarray(data.normalize(np.asarray(self.images[indices.reshape(-1)]), self.levels))
        x = np.asarray(conditioning.block_average(x, self.factor)) if self.factor else x
        return x.reshape(*indices.shape, *x.shape[1:])

    def gather_first_text(self, indices: np.ndarray) -> Condition:
        """As `gather`, but the first text alone, tokens [..., L]."""
        rows = self.gather(indices)
        return rows if rows.tokens is None else rows._replace(tokens=rows.tokens[..., 0, :])

    def device_batch(self, indices: np.ndarray) -> Condition:
        """As `gather`, of the images of k steps [k, batch], on this process's devices: [devices, k, b, ...]."""
        return self.gather(process.local_shard(split_by_device(indices, jax.device_count())))


class ConditioningImage(NamedTuple):
    """An image that the network sees beside: the file it came from, the sha256 of its numbers, and these in [-1, 1].

    Two are equal if their hashes are.
    """

    path: str
    sha256: str
    x: Any

    def __eq__(self, other) -> bool:
        return isinstance(other, ConditioningImage) and self.sha256 == other.sha256

    def __ne__(self, other) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.sha256)


class ConditionRequest(NamedTuple):
    """What images to draw: image i is told labels[i % len(labels)] and texts[i % len(texts)]; () is told nothing.

    images: `ConditioningImage` of the shape that the network sees, images[i % len(images)] beside image i.
    """

    labels: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    images: tuple[ConditioningImage, ...] = ()

    def check(self, config: configs.Config) -> None:
        """Raises a ValueError if the network of the config cannot be told this."""
        classes, length = config.net.num_classes, config.text.length
        sees = bool(config.condition.super_resolution_factor or config.condition.paired)
        if self.images and not sees:
            raise ValueError("an image is given, and this run's network sees no other one beside its own")
        if sees and not self.images:
            raise ValueError("this run's network sees another image beside its own: give --image FILE, one or more")
        if self.labels and not classes:
            raise ValueError("labels are asked for, and this run's network was not told any (net.num_classes is 0)")
        if self.texts and not config.text.layers:
            raise ValueError("a text is given, and this run's network was not told any (text.layers is 0)")
        for label in self.labels:
            if not 0 <= label < classes:
                raise ValueError(f"label {label} is asked for, and this run knows 0 to {classes - 1}")
        text.tokenize(self.texts, length)
        if objects.is_conditional(config) and not (self.labels or self.texts) and not config.condition.dropout:
            raise ValueError(
                "this run's network was always told something (condition.dropout is 0): say which images to draw"
            )

    def gather(self, config: configs.Config, shape: tuple[int, ...], indices: np.ndarray) -> Condition:
        """What the images at `indices` [n] of this shape are told."""
        found, places = objects.empty_condition(config, len(indices), shape), np.asarray(indices, np.int64)
        if self.images:
            found = found._replace(image=np.stack([shown.x for shown in self.images])[places % len(self.images)])
        if self.labels:
            found = found._replace(label=np.asarray(self.labels, np.int32)[places % len(self.labels)])
        if self.texts:
            found = found._replace(tokens=text.tokenize(self.texts, config.text.length)[places % len(self.texts)])
        return found

    def to_record(self) -> dict[str, list]:
        """As a manifest has it."""
        images = [[shown.path, shown.sha256] for shown in self.images]
        return {"labels": list(self.labels), "texts": list(self.texts), "images": images}

    def describe(self, names: Sequence[str]) -> str:
        """In words."""
        labels = ", ".join(survey.printable(names[i]) if i < len(names) else str(i) for i in self.labels)
        beside = ", ".join(survey.printable(image.path) for image in self.images)
        said = {"labels": labels, "texts": "; ".join(map(survey.printable, self.texts)), "beside": beside}
        return " and ".join(f"{name} {what}" for name, what in said.items() if what) or "told nothing"


UNCONDITIONAL = ConditionRequest()
"""Images of nothing in particular."""


def training_condition(config: configs.Config, keys, condition: Condition) -> Condition:
    """What training tells of examples with keys [b], given `DatasetConditions.gather`: one text of each, or nothing."""
    if not objects.is_conditional(config):
        return condition
    if condition.tokens is not None:
        condition = condition._replace(tokens=conditioning.random_caption(keys, condition.tokens))
    null = conditioning.null_condition(condition, config.net.num_classes)
    return conditioning.drop_condition(keys, condition, null, config.condition.dropout)


def parse_request(options: flags.ConditionOptions, sampling: flags.SamplingOptions, model: Any) -> ConditionRequest:
    """What the flags ask of a `runs.Pipeline`.

    Raises:
        FileNotFoundError: if an image is not there.
        ValueError: for a label that is neither a name nor a number of one, naming those that there are, or that no
            training image had; for an image that is not such as the network sees; or if there is a flag for guidance,
            and nothing to go for.
    """
    names, num_classes = model.label_names, model.config.net.num_classes
    images = tuple(read_conditioning_image(model, path) for path in options.image)
    if sampling.guidance is not None and not (options.label or options.labels or options.text):
        raise ValueError(f"--guidance {sampling.guidance:g} needs something to go for: a label or a text")
    if options.label is not None and options.labels is not None:
        raise ValueError("--label is one for all images and --labels several: say one of them")
    words = (
        [options.label] if options.label is not None else [] if options.labels is None else options.labels.split(",")
    )
    if not num_classes and words:
        raise ValueError("labels are asked for, and this run's network was not told any (net.num_classes is 0)")
    if options.label is None and words == ["all"]:
        return ConditionRequest(
            tuple(i for i in range(num_classes) if i not in model.untrained_labels), options.text, images
        )
    labels = tuple(_parse_label(word, names, num_classes) for word in words)
    for label, word in zip(labels, words, strict=True):
        if label in model.untrained_labels:
            raise ValueError(f"the label {word!r} is asked for, and none of this run's training images had it")
    return ConditionRequest(labels, options.text, images)


def _parse_label(word: str, names: Sequence[str], num_classes: int) -> int:
    """The label that a name or a number means; where names are numbers, names alone mean one."""
    word = unicodedata.normalize("NFC", word)
    for name in (word, word.strip()):
        if name in names:
            return names.index(name)
    numbers = any(name.isdecimal() for name in names)
    if not numbers and word.strip().isdecimal() and int(word) < num_classes:
        return int(word)
    known = (
        f"are called {survey.join_first(names)}"
        if numbers
        else f"are 0 to {num_classes - 1} ({survey.join_first(names)})"
    )
    raise ValueError(f"no label {word.strip()!r}: this run's {known}")


def request_from_manifest(record: dict[str, Any], model: Any) -> ConditionRequest:
    """What a manifest's record of a `ConditionRequest` asks, its images being read again.

    Raises:
        FileNotFoundError: if an image is no longer there.
        ValueError: if it has other pixels now.
    """
    images = []
    for path, sha256 in record.get("images", []):
        images.append(read_conditioning_image(model, path))
        if images[-1].sha256 != sha256:
            raise ValueError(f"{path} has other pixels than when these images were made")
    return ConditionRequest(tuple(record["labels"]), tuple(record["texts"]), tuple(images))


def read_conditioning_image(model: Any, path: str) -> ConditioningImage:
    """The image in a file, as the network of a `runs.Pipeline` sees it beside its own; a coarser one is a small one.

    Raises:
        FileNotFoundError, ValueError: as `pictures.read_image`; or if the network sees no other image.
    """
    shape, coarse = (
        objects.conditioning_image_shape(model.config, model.shape),
        model.config.condition.super_resolution_factor,
    )
    if shape is None:
        raise ValueError("an image is given, and this run's network sees no other one beside its own")
    if coarse:
        shape = (*(side // coarse for side in shape[:-1]), shape[-1])
    image = pictures.read_image(model, "--image", path, shape)
    x = np.asarray(data.normalize(image[None], model.levels))[0]
    for axis in range(len(shape) - 1 if coarse else 0):
        x = x.repeat(coarse, axis)
    return ConditioningImage(path, pictures.image_hash(image), x)


def _load_paired(config: configs.Config, images: data.Dataset) -> data.Dataset:
    c = config.data
    other = data.load(
        config.condition.paired, held_out=c.held_out, resolution=c.resolution, value_range=c.range,
        levels=None if isinstance(images.levels, data.ValueRange) else c.levels, stream=c.stream,
    )  # fmt: skip
    wanted = objects.conditioning_image_shape(config, images.train.shape[1:])
    if other.train.shape[1:] != wanted:
        raise ValueError(
            f"{other.name} has images {other.train.shape[1:]}, and {wanted} are to be shown beside those of "
            f"{images.name} (--condition.paired-channels)"
        )
    if (other.levels, other.train.dtype) != (images.levels, images.train.dtype):
        raise ValueError(
            f"{other.name} has {other.train.dtype} of {other.levels} levels, and {images.name} {images.train.dtype} of "
            f"{images.levels}: pairs must be of one kind"
        )
    if (len(other.train), len(other.test)) != (len(images.train), len(images.test)):
        raise ValueError(
            f"{other.name} has {len(other.train)} training and {len(other.test)} held-out images, "
            f"{images.name} {len(images.train)} and {len(images.test)}: they cannot be pairs"
        )
    return other


def _checked_labels(config: configs.Config, images: data.Dataset) -> tuple[Any, Any]:
    classes = config.net.num_classes
    if images.train_labels is None or images.test_labels is None:
        raise ValueError(f"{images.name} has no labels, and net.num_classes = {classes} tells the network the labels")
    most = int(max(images.train_labels.max(), images.test_labels.max())) + 1
    if max(most, len(images.label_names)) > classes:
        raise ValueError(
            f"{images.name} has {max(most, len(images.label_names))} labels, and net.num_classes is {classes}"
        )
    return images.train_labels, images.test_labels


def _token_table(texts: Sequence[Sequence[str]], length: int) -> np.ndarray:
    """The tokens of rows of texts, uint8 [rows, K, length], 0 where a row has fewer than K."""
    most = max(map(len, texts))
    try:
        flat = text.tokenize([text for row in texts for text in (*row, *[""] * (most - len(row)))], length)
    except ValueError as error:
        raise ValueError(f"{error}; --text.length sets how many bytes a text may have") from None
    return flat.reshape(len(texts), most, length)
