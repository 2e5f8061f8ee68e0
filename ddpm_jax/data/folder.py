"""Images in a folder: "folder:PATH".

    cats/train/tabby/1.png          labels are the first-level sub-folders, or stand in a .csv file beside them
    cats/test/tabby/2.png           train/ and test/, if both are there, divide the images: also Training/ or train2017/
                                    and val/, valid/, validation/, testing/, dev/, eval/ or holdout/, in any case

A report says what is in the folder, and what will be done to it, before anything is compiled.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm_jax.data import labels
from ddpm_jax.data.files import EXTENSIONS, decoded, fitted
from ddpm_jax.data.images import Range, range_of
from ddpm_jax.data.reader import Part, Progress, Reader, checked_range, divided
from ddpm_jax.data.survey import File, Survey, counted, indented, listed, reasons, role, shown, sized, survey


class Split(NamedTuple):
    """Sub-folders that divide the images into those to train on and those held out, "" where there is none.

    named: whether the sub-folders of all images are named after splits, and so are no labels.
    """

    train: str = ""
    held_out: str = ""
    named: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """Image files as a `Reader`: each is decoded when it is asked for.

    root: the folder.
    files: those that are used, all of one mode.
    """

    name: str
    root: Path
    files: tuple[File, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    levels: int | Range
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    captions: tuple[str, ...] | None
    format: str

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> np.ndarray:
        file = self.files[i]
        where = shown(str(self.root / file.path))
        try:
            image = decoded(self.root / file.path)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if (image.mode, image.pixels.shape) != (file.mode, file.shape):
            raise ValueError(
                f"{where}: was {file.mode} {file.shape} when the folder was looked through, and is {image.mode} "
                f"{image.pixels.shape}; do not change files that are in use"
            )
        return fitted(image.pixels, image.mode, self.shape[:-1], self.levels)


def parts(
    path: Path,
    name: str,
    *,
    held_out: float = 0.1,
    levels: int | None = None,
    value_range: Sequence[float] = (),
    resolution: Sequence[int] = (),
    skip_bad: bool = False,
    report: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> tuple[Reader, Reader]:
    """The training and the held-out images of a folder, as readers.

    Args:
        path: the folder.
        name: the source, as it was given.
        held_out, levels, value_range, resolution, skip_bad, report, progress: as in `sources.load`.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no images, or bad ones and not `skip_bad`, or images of several sizes and no resolution
            is given; if labels are not as described, or an option is out of range.
    """
    size = size_of(resolution)
    found = survey(path, name, size, progress)
    _say(report, found.lines())
    _check(found, path, skip_bad)
    split = _split(found)
    good = found.good()
    told = labels.of_files(path, [f.path for f in good], [f.path for f in found.files], found.tables, split.named)
    shape, dtype = (*(size or good[0].shape[:-1]), good[0].shape[-1]), np.dtype(good[0].dtype)
    scale = _range(path, good, levels, range_of(value_range)) if dtype.kind == "f" else _levels(good, dtype, levels)
    if dtype.kind != "f" and len(value_range):
        raise ValueError(f"{path}: images of type {dtype} have levels; a range is for floating-point images")
    format = Counter(file.format for file in good).most_common(1)[0][0].lower().replace("jpeg", "jpg")
    every = Folder(name, path, good, shape, dtype, scale, told.labels, told.names, told.captions, format)
    if split.held_out:
        first = np.array([file.path.startswith(f"{split.train}/") for file in good])
        train, test = Part(every, np.flatnonzero(first)), Part(every, np.flatnonzero(~first))
        if not len(train) or not len(test):
            raise ValueError(f"{path}: no usable images in {shown(split.held_out if len(train) else split.train)}/")
    else:
        train, test = divided(every, held_out)
    how = "the one image is both" if len(every) == 1 else f"held_out={held_out} of a fixed permutation"
    how = f"{shown(split.train)}/ and {shown(split.held_out)}/" if split.held_out else how
    _say(
        report,
        [
            *told.lines,
            *_doubts(found, split),
            f"split     {len(train):,} training and {len(test):,} held-out images: {how}",
        ],
    )
    return train, test


def _say(report: Callable[[str], None] | None, lines: Sequence[str]) -> None:
    if report is not None:
        for line in lines:
            report(line)


def size_of(resolution: Sequence[int]) -> tuple[int, int] | None:
    """(H, W) of a resolution; None for as stored.

    Raises:
        ValueError: if it has more than two sides, or one below 1.
    """
    if len(resolution) > 2 or any(side < 1 for side in resolution):
        raise ValueError(
            f"resolution must be one side, as 64, or height and width, as 48 64, got {' '.join(map(str, resolution))}"
        )
    return (resolution[0], resolution[-1]) if resolution else None


def _check(found: Survey, path: Path, skip_bad: bool) -> None:
    """Raises a ValueError if the files cannot be used together."""
    good, bad = found.good(), found.bad()
    if not found.files:
        there = f"; found {counted(Counter(found.others))}" if found.others else ", and no other files"
        there += f"; skipped were{indented(found.skipped)}" if found.skipped else ""
        raise ValueError(f"{path}: no images: looked for {', '.join(EXTENSIONS)} in it and its sub-folders{there}")
    if bad and not skip_bad:
        raise ValueError(
            f"{path}: {len(bad):,} of {len(found.files):,} image files cannot be used; mend or remove them, or go on "
            f"without them with --data.skip-bad:{indented(reasons(bad))}"
        )
    if not good:
        raise ValueError(f"{path}: none of {len(bad):,} image files can be used:{indented(reasons(bad))}")
    sizes = found.sizes()
    deep = next((file for file in good if len(file.shape) == 4), None)
    if deep and found.size:
        raise ValueError(
            f"{path}: {shown(deep.path)} is a volume {'x'.join(map(str, deep.shape))}, and these are not resized"
        )
    if deep and len(sizes) > 1:
        raise ValueError(f"{path}: volumes of different sizes: {counted(sized(sizes))}; cut them to one size")
    if found.size is None and len(sizes) > 1:
        side = min(min(size) for size in sizes)
        side = 1 << side.bit_length() - 1
        raise ValueError(
            f"{path}: images of different sizes: {counted(sized(sizes))} (height x width); --data.resolution {side} "
            f"would cut each to its middle and scale it to {side}x{side}"
        )


def _split(found: Survey) -> Split:
    """How sub-folders divide the images.

    Raises:
        ValueError: if their names leave that open; or if one of them is a split's, and another one, which is not, has
            the same sub-folders, so that a split would be taken for a label.
    """
    inner = _inner(found)
    train, held = ([top for top in inner if role(top) == part] for part in ("train", "held out"))
    if train and held:
        if len(train + held) > 2:
            both = f"{'/, '.join(map(shown, held))}/ beside {'/, '.join(map(shown, train))}/"
            raise ValueError(f"{found.name}: {both}; keep one of them to train on and one to be held out")
        outside = [f.path for f in found.good() if not f.path.startswith((f"{train[0]}/", f"{held[0]}/"))]
        if outside:
            raise ValueError(
                f"{found.name}: {len(outside):,} images lie outside of {shown(train[0])}/ and {shown(held[0])}/: "
                f"{listed(outside)}; move them into one of the two, or out of the folder"
            )
        return Split(train[0], held[0], True)
    for top in train + held:
        for other in inner:
            if other != top and inner[other] & inner[top]:
                same = listed(sorted(inner[top] & inner[other]), 6)
                raise ValueError(
                    f"{found.name}: {shown(top)}/ and {shown(other)}/ both have sub-folders {same}: if the two divide "
                    f"the images, call them train/ and test/; if they are labels, call {shown(top)}/ something else"
                )
    alone = len(inner) == 1 and all("/" in file.path for file in found.files)
    return Split(named=alone and bool(train + held))


def _doubts(found: Survey, split: Split) -> list[str]:
    """A line of the report where labels may be splits in another language: all have the same sub-folders."""
    first, *others = [*_inner(found).values()] or [set()]
    if split.named or found.tables or len(first) < 2 or not others or any(inner != first for inner in others):
        return []
    same = listed(sorted(first), 6)
    return [f"          all have the sub-folders {same}: if they divide the images, call them train/ and test/"]


def _inner(found: Survey) -> dict[str, set[str]]:
    """The sub-folders with images, and what sub-folders with images they have."""
    inner: dict[str, set[str]] = {}
    for top, *deeper, _ in (file.path.split("/") for file in found.files if "/" in file.path):
        inner.setdefault(top, set()).update(deeper[:1])
    return inner


def _range(path: Path, files: Sequence[File], levels: int | None, given: Range | None) -> Range:
    if given is not None:
        for file in files:
            checked_range(f"{path / shown(file.path)}", file.least, file.peak, levels=levels, given=given)
    least, most = min(file.least for file in files), max(file.peak for file in files)
    return checked_range(str(path), least, most, levels=levels, given=given)


def _levels(files: Sequence[File], dtype: np.dtype, levels: int | None) -> int:
    most = int(np.iinfo(dtype).max) + 1
    if levels is None:
        return most
    if not 2 <= levels <= most:
        raise ValueError(f"load: images of type {dtype} have 2 to {most} levels, got levels={levels}")
    highest = max(files, key=lambda file: file.peak)
    if highest.peak >= levels:
        raise ValueError(f"{shown(highest.path)} holds the value {highest.peak}, above levels - 1 = {levels - 1}")
    return levels
