"""Texts of each image: its captions, or sentences made by templates from its label's name.

In a template, `{}` stands for the name of the image's label and `{caption}` for the image's caption, as in
"a handwritten {}" or "a painting of {caption}"; `{{` and `}}` are braces.  Each line of a caption describes the image.

A training step draws one of an image's texts by the image's key.  So images have the index of a row in a table that
holds each text once, small enough for the device.
"""

import string
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.data.dataset import Dataset


class CaptionTable(NamedTuple):
    """Table of texts: each of texts[row_indices[i]] describes image i.

    Attributes:
        texts: rows of one or more different texts.  Rows of templates over labels are the classes 0, 1, ...; all others
            are in the order of the images.
        row_indices: int32 [N], the row of each image.
    """

    texts: tuple[tuple[str, ...], ...]
    row_indices: np.ndarray


def caption_table(dataset: Dataset, templates: Sequence[str] = (), *, held_out: bool = False) -> CaptionTable:
    """The texts of the training images, or of the held-out images, by template.

        caption_table(data.load("digits"), ("a handwritten {}", "the digit {}"))   # the labels, ten rows of two

    Without templates they are the images' captions, or else the names of their labels.  Labels without names, as in
    most .npz files, are named by their numbers.  Rows of templates over labels are the same for both sets of images.

    Raises:
        ValueError: if a template is invalid, or the images lack the labels or captions that it needs.
    """
    captions, labels = dataset.train_captions, dataset.train_labels
    if held_out:
        captions, labels = dataset.test_captions, dataset.test_labels
    _check_templates(templates)
    if captions is None and labels is None:
        raise ValueError(f"{dataset.name}: images with neither captions nor labels have no texts")
    templates = templates or ("{}" if captions is None else "{caption}",)
    template_of = {field: template for template in reversed(templates) for field in _template_fields(template)}
    for field, needed, values in (("", "labels", labels), ("caption", "captions", captions)):
        if field in template_of and values is None:
            raise ValueError(f"{dataset.name}: the template {template_of[field]!r} needs {needed}: there are none")
    names = label_names(dataset)
    if captions is None or "caption" not in template_of:
        assert labels is not None
        return CaptionTable(tuple(_expand_templates(templates, name, "") for name in names), labels.astype(np.int32))
    numbers = np.zeros(len(captions), int) if labels is None or "" not in template_of else labels
    rows: dict[tuple[int, str], int] = {}
    pairs = zip(numbers.tolist(), captions, strict=True)
    row_indices = np.array([rows.setdefault(key, len(rows)) for key in pairs], np.int32)
    texts = tuple(_expand_templates(templates, names[number] if names else "", caption) for number, caption in rows)
    return CaptionTable(texts, row_indices)


def label_names(dataset: Dataset) -> tuple[str, ...]:
    """The names of the labels, by number; the numbers themselves if they have no names; () without labels."""
    if dataset.train_labels is None or dataset.test_labels is None or dataset.label_names:
        return dataset.label_names
    return tuple(map(str, range(1 + max(int(dataset.train_labels.max()), int(dataset.test_labels.max())))))


def _check_templates(templates: Sequence[str]) -> None:
    """Raises a ValueError if a template is invalid, has no field, or occurs twice."""
    if isinstance(templates, str):
        raise ValueError(f"templates: expected a sequence of texts, got the text {templates!r}")
    for template in templates:
        fields = _template_fields(template)
        if not fields:
            raise ValueError(f"the template {template!r} gives every image the same text; expected {{}} or {{caption}}")
        if templates.count(template) > 1:
            raise ValueError(f"the template {template!r} occurs {templates.count(template)} times")


def _template_fields(template: str) -> set[str]:
    """The fields of a template, of "" and "caption"."""
    try:
        parsed = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"the template {template!r} is invalid: {error}; a literal brace is written twice") from None
    for field, form, conversion in parsed:
        if field not in ("", "caption") or form or conversion:
            written = f"{field}{'!' * bool(conversion)}{conversion or ''}{':' * bool(form)}{form}"
            raise ValueError(f"the template {template!r} has a field {{{written}}}; there are {{}} and {{caption}}")
    return {field or "" for field, *_ in parsed}


def _expand_templates(templates: Sequence[str], name: str, caption: str) -> tuple[str, ...]:
    """Each template with each line of the caption, without duplicates; an empty caption is one empty line."""
    lines = [line.strip() for line in caption.splitlines() if line.strip()] or [""]
    # as many names as any template has fields {}
    names = [name] * max(template.count("{}") for template in templates)
    return tuple(dict.fromkeys(template.format(*names, caption=line) for template in templates for line in lines))
