"""What is said of each image: its own captions, or sentences that templates make of its label's name.

A template is a text in which `{}` stands for the name of the image's label and `{caption}` for the image's caption, as
in "a handwritten {}" or "a painting of {caption}"; `{{` and `}}` are braces.  A caption of several lines is as many
descriptions of one image.

A training step draws one of an image's texts by its key.  So images do not carry texts but the number of a row in a
table that holds each text once, small enough to lie on the device.
"""

import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.data.dataset import Dataset

TEMPLATE_FIELDS = ("", "caption")


class CaptionTable(NamedTuple):
    """Image i is described by every one of texts[row_indices[i]].

    Attributes:
        texts: rows of one or more texts, none twice in a row.  The rows of templates over labels are the classes 0, 1,
            ..., and all others are in the order in which images first need them.
        row_indices: int32 [N], the row of each image.
    """

    texts: tuple[tuple[str, ...], ...]
    row_indices: np.ndarray


def caption_table(dataset: Dataset, templates: Sequence[str] = ()) -> CaptionTable:
    """The texts of the training images: all that the templates make, one after the other.

        table(data.load("digits"), ("a handwritten {}", "the digit {}"))   # row_indices: the labels, of ten rows of two

    Without templates they are the images' captions, or else the names of their labels.  Where labels have no names but
    numbers, as those of most .npz files, a number is its name.

    Raises:
        ValueError: if templates are not as the module says, or the images have nothing for them to speak of.
    """
    return _caption_table(dataset, dataset.train_captions, dataset.train_labels, templates)


def held_out_caption_table(dataset: Dataset, templates: Sequence[str] = ()) -> CaptionTable:
    """The texts of the held-out images; as `table`, and the rows of templates over labels are the same."""
    return _caption_table(dataset, dataset.test_captions, dataset.test_labels, templates)


def label_names(dataset: Dataset) -> tuple[str, ...]:
    """What the labels are called, by number; the numbers themselves where they have no names; () without labels."""
    if dataset.train_labels is None or dataset.test_labels is None or dataset.label_names:
        return dataset.label_names
    return tuple(map(str, range(1 + max(int(dataset.train_labels.max()), int(dataset.test_labels.max())))))


def fill_template(template: str, name: str, caption: str = "") -> str:
    """A template with a label's name and a caption in their places.

    Raises:
        ValueError: if the template is not as the module says.
    """
    check_templates((template,))
    return _fill_template(template, name, caption)


def check_templates(templates: Sequence[str]) -> None:
    """Raises a ValueError if templates are not as the module says, if one names nothing, or one is there twice."""
    if isinstance(templates, str):
        raise ValueError(f"templates: expected a sequence of texts, got the text {templates!r}")
    for template in templates:
        fields = _template_fields(template)
        if not fields:
            raise ValueError(f"the template {template!r} says the same of every image; expected {{}} or {{caption}}")
        if templates.count(template) > 1:
            raise ValueError(f"the template {template!r} is there {templates.count(template)} times")


def _template_fields(template: str) -> set[str]:
    """The fields of a template, of "" and "caption"."""
    try:
        parsed = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"the template {template!r} is not one: {error}; a brace is written twice") from None
    for field, form, conversion in parsed:
        if field not in TEMPLATE_FIELDS or form or conversion:
            written = f"{field}{'!' * bool(conversion)}{conversion or ''}{':' * bool(form)}{form}"
            raise ValueError(f"the template {template!r} has a field {{{written}}}; there are {{}} and {{caption}}")
    return {field or "" for field, *_ in parsed}


def _caption_table(
    dataset: Dataset, captions: Sequence[str] | None, labels: np.ndarray | None, templates: Sequence[str]
) -> CaptionTable:
    check_templates(templates)
    if captions is None and labels is None:
        raise ValueError(f"{dataset.name}: images with neither captions nor labels, so there is nothing to say of them")
    templates = templates or ("{}" if captions is None else "{caption}",)
    fields = {field for template in templates for field in _template_fields(template)}
    for field, values in zip(TEMPLATE_FIELDS, (labels, captions), strict=True):
        if field in fields and values is None:
            missing = "labels" if field == "" else "captions"
            template = next(template for template in templates if field in _template_fields(template))
            raise ValueError(f"{dataset.name}: the template {template!r} needs {missing}, and the images have none")
    names = label_names(dataset)
    if captions is None or "caption" not in fields:
        assert labels is not None
        return CaptionTable(tuple(_expand_templates(templates, name, "") for name in names), labels.astype(np.int32))
    numbers = np.zeros(len(captions), int) if labels is None or "" not in fields else labels
    rows: dict[tuple[int, str], int] = {}
    pairs = zip(numbers.tolist(), captions, strict=True)
    row_indices = np.array([rows.setdefault(key, len(rows)) for key in pairs], np.int32)
    texts = tuple(_expand_templates(templates, names[number] if names else "", caption) for number, caption in rows)
    return CaptionTable(texts, row_indices)


def _fill_template(template: str, name: str, caption: str) -> str:
    value = {"": name, "caption": caption, None: ""}
    return "".join(literal + value[field] for literal, field, *_ in string.Formatter().parse(template))


def _expand_templates(templates: Sequence[str], name: str, caption: str) -> tuple[str, ...]:
    """Each template with each line of the caption, none twice; an empty caption is one empty line."""
    lines = [line.strip() for line in caption.splitlines() if line.strip()] or [""]
    return tuple(dict.fromkeys(_fill_template(template, name, line) for template in templates for line in lines))
