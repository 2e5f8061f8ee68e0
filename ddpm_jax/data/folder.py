"""Data sets in a folder of image files, "folder:PATH".

    cats/train/tabby/1.png          labels are the first-level sub-folders, or are in a .csv file
    cats/test/tabby/2.png           train/ and test/, if both exist, are the splits: also Training/ or train2017/
                                    and val/, valid/, validation/, testing/, dev/, eval/ or holdout/, in any case

The content of the folder and its use are reported before anything is compiled.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.annotations import read_annotations
from ddpm_jax.data.dataset import ImageReader, ProgressCallback, check_values, subset, train_test_split
from ddpm_jax.data.folder_report import (
    FolderReport,
    format_counts,
    format_reasons,
    format_sizes,
    indent_lines,
    join_first,
    make_folder_report,
    printable,
    split_role,
)
from ddpm_jax.data.image_files import EXTENSIONS, decode, resize_center_crop
from ddpm_jax.data.images import to_value_range


class SplitFolders(NamedTuple):
    """The sub-folders of the training and the held-out images, "" for none."""

    train: str = ""
    held_out: str = ""
    only_splits: bool = False  # the first-level sub-folders of all images are splits, and not labels


def open_readers(
    path: Path,
    name: str,
    *,
    held_out: float,
    levels: int | None,
    value_range: Sequence[float],
    resolution: Sequence[int],
    skip_bad: bool,
    report: Callable[[str], None] | None,
    progress: ProgressCallback | None,
) -> tuple[ImageReader, ImageReader]:
    """The training and the held-out images of a folder; options as in `sources.open_readers`, `name` is the source.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no images, or bad ones without `skip_bad`, or images of several sizes without a
            resolution; if labels are invalid, or an option is out of range.
    """
    size = parse_resolution(resolution)
    folder_report = make_folder_report(path, name, size, progress, extrema=levels is not None or len(value_range) > 0)
    report = report or (lambda line: None)
    for line in folder_report.lines():
        report(line)
    _check_usable(folder_report, path, skip_bad)
    split = _find_split(folder_report)
    good = folder_report.good()
    annotations = read_annotations(path, folder_report, split.only_splits)
    shape, dtype = (*(size or good[0].shape[:-1]), good[0].shape[-1]), good[0].dtype
    format = Counter(file.format for file in good).most_common(1)[0][0].lower().replace("jpeg", "jpg")
    limits: dict[str, Any] = {"levels": levels, "value_range": to_value_range(value_range)}
    lowest, highest = min(good, key=lambda file: file.minimum), max(good, key=lambda file: file.maximum)
    for file in (lowest, highest) if limits["levels"] or limits["value_range"] else ():
        check_values(str(path / printable(file.path)), dtype, file.minimum, file.maximum, **limits)
    scale = check_values(str(path), dtype, lowest.minimum, highest.maximum, **limits)

    def read(i: int) -> np.ndarray:
        file = good[i]
        try:
            image = decode(os.path.join(path, file.path))
            if (image.mode, image.pixels.shape) != (file.mode, file.shape):
                raise ValueError(
                    f"was {file.mode} {file.shape} when the folder was read, and is {image.mode} "
                    f"{image.pixels.shape}; do not change files that are in use"
                )
        except ValueError as error:
            raise ValueError(f"{printable(str(path / file.path))}: {error}") from error
        return resize_center_crop(image.pixels, image.mode, shape[:-1], scale)

    labels, label_names, captions, _ = annotations
    reader = ImageReader(name, shape, dtype, scale, labels, label_names, captions, format, len(good), read)
    if split.held_out:
        in_train = np.array([file.path.startswith(f"{split.train}/") for file in good])
        train, test = subset(reader, np.flatnonzero(in_train)), subset(reader, np.flatnonzero(~in_train))
        if not len(train) or not len(test):
            raise ValueError(f"{path}: no usable images in {printable(split.held_out if len(train) else split.train)}/")
        how = f"{printable(split.train)}/ and {printable(split.held_out)}/"
    else:
        train, test = train_test_split(reader, held_out)
        how = "the one image is both" if len(reader) == 1 else f"held_out={held_out} of a fixed permutation"
    for line in (*annotations.lines, *_split_hints(folder_report, split)):
        report(line)
    report(f"split     {len(train):,} training and {len(test):,} held-out images: {how}")
    return train, test


def parse_resolution(resolution: Sequence[int]) -> tuple[int, int] | None:
    """(H, W) of a resolution; None for the stored sizes.

    Raises:
        ValueError: if it has more than two sides, or one below 1.
    """
    if len(resolution) > 2 or any(side < 1 for side in resolution):
        raise ValueError(f"resolution must be SIDE or HEIGHT WIDTH, as 48 64, got {' '.join(map(str, resolution))}")
    return (resolution[0], resolution[-1]) if resolution else None


def _check_usable(report: FolderReport, path: Path, skip_bad: bool) -> None:
    """Raises a ValueError if the files of a folder cannot be used together."""
    good, bad = report.good(), report.bad()
    if not report.files:
        there = f"; found {format_counts(report.others)}" if report.others else ", and no other files"
        there += f"; skipped were{indent_lines(report.skipped)}" if report.skipped else ""
        raise ValueError(f"{path}: no images: looked for {', '.join(EXTENSIONS)} in it and its sub-folders{there}")
    if bad and not skip_bad:
        hint = f"repair or remove them, or leave them out with --data.skip-bad:{indent_lines(format_reasons(bad))}"
        raise ValueError(f"{path}: {len(bad):,} of {len(report.files):,} image files cannot be used; {hint}")
    if not good:
        raise ValueError(f"{path}: none of {len(bad):,} image files can be used:{indent_lines(format_reasons(bad))}")
    sizes = report.sizes()
    deep = next((file for file in good if len(file.shape) == 4), None)
    if deep and report.size:
        size = "x".join(map(str, deep.shape))
        raise ValueError(f"{path}: {printable(deep.path)} is a volume {size}, and these are not resized")
    if deep and len(sizes) > 1:
        raise ValueError(f"{path}: volumes of different sizes: {format_sizes(sizes)}; cut them to one size")
    if report.size is None and len(sizes) > 1:
        side = min(min(size) for size in sizes)
        side = 1 << side.bit_length() - 1
        hint = f"--data.resolution {side} would cut each to its middle and scale it to {side}x{side}"
        raise ValueError(f"{path}: images of different sizes: {format_sizes(sizes)} (height x width); {hint}")


def _find_split(report: FolderReport) -> SplitFolders:
    """The sub-folders that are splits, by their names.

    Raises:
        ValueError: if the names are ambiguous; or if one is a split's and another, which is not, has the same
            sub-folders, so that a split would be taken for a label.
    """
    inner = _subfolders(report)
    train, held = ([top for top in inner if split_role(top) == part] for part in ("train", "held out"))
    if train and held:
        if len(train + held) > 2:
            both = f"{'/, '.join(map(printable, held))}/ beside {'/, '.join(map(printable, train))}/"
            raise ValueError(f"{report.name}: {both}; keep one to train on and one to hold out")
        outside = [f.path for f in report.good() if not f.path.startswith((f"{train[0]}/", f"{held[0]}/"))]
        if outside:
            both = f"{printable(train[0])}/ and {printable(held[0])}/: {join_first(outside)}"
            hint = "move them into one of the two, or out of the folder"
            raise ValueError(f"{report.name}: {len(outside):,} images lie outside of {both}; {hint}")
        return SplitFolders(train[0], held[0], True)
    for top in train + held:
        for other in inner:
            if other != top and inner[other] & inner[top]:
                name, same = printable(top), join_first(sorted(inner[top] & inner[other]), 6)
                raise ValueError(
                    f"{report.name}: {name}/ and {printable(other)}/ both have sub-folders {same}: if the two divide "
                    f"the images, call them train/ and test/; if they are labels, call {name}/ something else"
                )
    alone = len(inner) == 1 and all("/" in file.path for file in report.files)
    return SplitFolders(only_splits=alone and bool(train + held))


def _split_hints(report: FolderReport, split: SplitFolders) -> list[str]:
    """A line of the report if labels may be splits in another language: all have the same sub-folders."""
    names, *others = [*_subfolders(report).values()] or [set()]
    if split.only_splits or report.tables or len(names) < 2 or not others or any(inner != names for inner in others):
        return []
    same = join_first(sorted(names), 6)
    return [f"          all have the sub-folders {same}: if they divide the images, call them train/ and test/"]


def _subfolders(report: FolderReport) -> dict[str, set[str]]:
    """The sub-folders with images, and the names of their own sub-folders with images."""
    inner: dict[str, set[str]] = {}
    for top, *deeper, _ in (file.path.split("/") for file in report.files if "/" in file.path):
        inner.setdefault(top, set()).update(deeper[:1])
    return inner
