"""The conditions of the images to draw: parsed from flags, checked against the network, and recorded."""

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ddpm_jax import config as configs
from ddpm_jax.config import flags
from ddpm_jax.data import folder_report
from ddpm_jax.guidance import Condition
from ddpm_jax.model import empty_condition, is_conditional
from ddpm_jax.models import text
from ddpm_jax.pipeline.user_images import ConditioningImage, read_conditioning_image

if TYPE_CHECKING:  # which imports this module
    from ddpm_jax.pipeline.pipeline import Pipeline


class ConditionRequest(NamedTuple):
    """The conditions to draw images with: image i has labels[i % len(labels)] and texts[i % len(texts)]; () has none.

    images: conditioning images of the shape that the network takes, images[i % len(images)] for image i.
    """

    labels: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    images: tuple[ConditioningImage, ...] = ()

    def check(self, config: configs.Config) -> None:
        """Raises a ValueError if the network of the config does not take this condition."""
        classes, length = config.net.num_classes, config.text.length
        sees = bool(config.condition.super_resolution_factor or config.condition.paired)
        if self.images and not sees:
            raise ValueError("an image is given, but this run's network takes no conditioning image")
        if sees and not self.images:
            raise ValueError("this run's network takes a conditioning image: give --image FILE, one or more")
        if self.labels and not classes:
            raise ValueError("labels are requested, but this run's network takes none (net.num_classes is 0)")
        if self.texts and not config.text.layers:
            raise ValueError("a text is given, but this run's network takes none (text.layers is 0)")
        for label in self.labels:
            if not 0 <= label < classes:
                raise ValueError(f"label {label} is requested, but this run has labels 0 to {classes - 1}")
        text.tokenize(self.texts, length)
        if is_conditional(config) and not (self.labels or self.texts) and not config.condition.dropout:
            raise ValueError("this network is never unconditional (condition.dropout is 0): give a label or a text")

    def gather(self, config: configs.Config, shape: tuple[int, ...], indices: np.ndarray) -> Condition:
        """The conditions of the images at `indices` [n] of this shape."""
        found, places = empty_condition(config, len(indices), shape), np.asarray(indices, np.int64)
        if self.images:
            found = found._replace(image=np.stack([shown.x for shown in self.images])[places % len(self.images)])
        if self.labels:
            found = found._replace(label=np.asarray(self.labels, np.int32)[places % len(self.labels)])
        if self.texts:
            found = found._replace(tokens=text.tokenize(self.texts, config.text.length)[places % len(self.texts)])
        return found

    def to_record(self) -> dict[str, list]:
        """The record of a manifest."""
        images = [[shown.path, shown.sha256] for shown in self.images]
        return {"labels": list(self.labels), "texts": list(self.texts), "images": images}

    def describe(self, names: Sequence[str]) -> str:
        """In words."""
        labels = ", ".join(folder_report.printable(names[i]) if i < len(names) else str(i) for i in self.labels)
        images = ", ".join(folder_report.printable(image.path) for image in self.images)
        parts = {"labels": labels, "texts": "; ".join(map(folder_report.printable, self.texts)), "images": images}
        return " and ".join(f"{name} {what}" for name, what in parts.items() if what) or "unconditional"


UNCONDITIONAL = ConditionRequest()
"""Images of nothing in particular."""


def parse_request(
    options: flags.ConditionOptions, sampling: flags.SamplingOptions, pipe: "Pipeline"
) -> ConditionRequest:
    """The request that flags make of a `Pipeline`.

    Raises:
        FileNotFoundError: if an image is not there.
        ValueError: for a label that is neither a name nor a number of one, naming those that there are, or that no
            training image had; for an image that is not such as the network sees; or if there is a flag for guidance,
            and nothing to go for.
    """
    names, num_classes = pipe.label_names, pipe.config.net.num_classes
    images = tuple(read_conditioning_image(pipe, path) for path in options.image)
    if sampling.guidance is not None and not (options.label or options.labels or options.text):
        raise ValueError(f"--guidance {sampling.guidance:g} needs a condition: give a label or a text")
    if options.label is not None and options.labels is not None:
        raise ValueError("--label is one label for all images and --labels a list: give only one of them")
    entries = [] if options.labels is None else options.labels.split(",")
    entries = entries if options.label is None else [options.label]
    if not num_classes and entries:
        raise ValueError("labels are requested, but this run's network takes none (net.num_classes is 0)")
    if options.label is None and entries == ["all"]:
        trained = (label for label in range(num_classes) if label not in pipe.untrained_labels)
        return ConditionRequest(tuple(trained), options.text, images)
    labels = tuple(_parse_label(entry, names, num_classes) for entry in entries)
    for label, entry in zip(labels, entries, strict=True):
        if label in pipe.untrained_labels:
            raise ValueError(f"label {entry!r} is requested, but no training image of this run has it")
    return ConditionRequest(labels, options.text, images)


def _parse_label(entry: str, names: Sequence[str], num_classes: int) -> int:
    """The label that a name or a number means; where names are numbers, names alone mean one."""
    entry = unicodedata.normalize("NFC", entry)
    for name in (entry, entry.strip()):
        if name in names:
            return names.index(name)
    numbers = any(name.isdecimal() for name in names)
    if not numbers and entry.strip().isdecimal() and int(entry) < num_classes:
        return int(entry)
    known = folder_report.join_first(names)
    known = f"called {known}" if numbers else f"0 to {num_classes - 1} ({known})"
    raise ValueError(f"no label {entry.strip()!r}: this run's are {known}")


def request_from_manifest(record: dict[str, Any], pipe: "Pipeline") -> ConditionRequest:
    """The request that a manifest records; its images are read again.

    Raises:
        FileNotFoundError: if an image is no longer there.
        ValueError: if it has other pixels now.
    """
    images = []
    for path, sha256 in record.get("images", []):
        images.append(read_conditioning_image(pipe, path))
        if images[-1].sha256 != sha256:
            raise ValueError(f"{path} has other pixels than when these images were made")
    return ConditionRequest(tuple(record["labels"]), tuple(record["texts"]), tuple(images))
