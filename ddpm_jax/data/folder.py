"""Images in a folder: "folder:PATH".

    cats/train/tabby/1.png          labels are the first-level sub-folders, or stand in a .csv file beside them
    cats/test/tabby/2.png           train/ and test/ (or val/, validation/), if both are there, divide the images

A report says what is in the folder, and what will be done to it, before anything is compiled.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ddpm_jax.data import labels
from ddpm_jax.data.files import EXTENSIONS, decoded, fitted
from ddpm_jax.data.images import Range, range_of
from ddpm_jax.data.reader import Part, Progress, Reader, checked_range, divided
from ddpm_jax.data.survey import File, Survey, counted, indented, listed, reasons, shown, sized, survey

HELD_OUT = ("test", "val", "validation")


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
        try:
            image = decoded(self.root / file.path)
        except ValueError as error:
            raise ValueError(f"{self.root / file.path}: {error}") from error
        if (image.mode, image.pixels.shape) != (file.mode, file.shape):
            raise ValueError(
                f"{self.root / file.path}: was {file.mode} {file.shape} when the folder was looked through, and is "
                f"{image.mode} {image.pixels.shape}; do not change files that are in use"
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
    told = labels.of_files(path, [f.path for f in good], [f.path for f in found.files], found.tables, split)
    shape, dtype = (*(size or good[0].shape[:-1]), good[0].shape[-1]), np.dtype(good[0].dtype)
    scale = _range(path, good, levels, range_of(value_range)) if dtype.kind == "f" else _levels(good, dtype, levels)
    if dtype.kind != "f" and len(value_range):
        raise ValueError(f"{path}: images of type {dtype} have levels; a range is for floating-point images")
    format = Counter(file.format for file in good).most_common(1)[0][0].lower().replace("jpeg", "jpg")
    every = Folder(name, path, good, shape, dtype, scale, told.labels, told.names, told.captions, format)
    if split:
        first = np.array([file.path.startswith(f"{split[0]}/") for file in good])
        train, test = Part(every, np.flatnonzero(first)), Part(every, np.flatnonzero(~first))
        if not len(train) or not len(test):
            raise ValueError(f"{path}: no usable images in {split[0] if not len(train) else split[1]}/")
    else:
        train, test = divided(every, held_out)
    how = f"{split[0]}/ and {split[1]}/" if split else f"held_out={held_out} of a fixed permutation"
    _say(report, [*told.lines, f"split     {len(train):,} training and {len(test):,} held-out images: {how}"])
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


def _split(found: Survey) -> tuple[str, str] | tuple[()]:
    """The sub-folders that divide the images into those to train on and those held out; () if there are none."""
    tops = {file.path.partition("/")[0] for file in found.files if "/" in file.path}
    held = [name for name in HELD_OUT if name in tops]
    if "train" not in tops or not held:
        return ()
    if len(held) > 1:
        raise ValueError(f"{found.name}: {'/, '.join(held)}/ beside train/; keep one of them, to be held out")
    outside = [f.path for f in found.good() if not f.path.startswith(("train/", f"{held[0]}/"))]
    if outside:
        raise ValueError(
            f"{found.name}: {len(outside):,} images lie outside of train/ and {held[0]}/: {listed(outside)}; "
            "move them into one of the two, or out of the folder"
        )
    return "train", held[0]


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
