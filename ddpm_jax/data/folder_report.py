"""Report on the files of a folder of images, each of which is decoded once.

A file is *bad* if its pixels cannot be read exactly as stored, or are not of the mode of most others.
"""

import dataclasses
import math
import os
import re
import stat
import threading
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm_jax.data.dataset import ProgressCallback, map_in_threads
from ddpm_jax.data.image_files import EXTENSIONS, decode

TRAIN_NAMES = ("train", "training")
HELD_OUT_NAMES = ("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation", "holdout", "heldout")
MAX_LISTED = 20  # names in a list; the others are counted


class ImageFile(NamedTuple):
    """An image file: its format and values, or why it is bad."""

    path: str  # below the folder, with "/"
    size: int = 0  # bytes on disk
    format: str = ""  # this and the mode as in `image_files.DecodedImage`; "" if bad
    mode: str = ""
    shape: tuple[int, ...] = (0, 0, 0)  # (H, W, C), upright, or (D, H, W, C)
    dtype: np.dtype = np.dtype(np.uint8)  # uint8, uint16 or float32
    minimum: float = 0  # the smallest and the largest value; 0 of pictures if not asked for
    maximum: float = 0
    exif_transposed: bool = False  # its Exif orientation was applied
    warning: str = ""  # Pillow's warning, as of damaged metadata; the pixels are used
    bad: str = ""  # the reason why it cannot be used, or ""


@dataclasses.dataclass
class FolderReport:
    """The content of a folder."""

    name: str  # the source
    size: tuple[int, int] | None  # (H, W) to which images will be resized, or None
    files: list[ImageFile] = dataclasses.field(default_factory=list)  # in the order of their paths, including bad ones
    others: Counter[str] = dataclasses.field(default_factory=Counter)  # other files, by lower-case extension
    hidden: int = 0  # number of files and folders whose names begin with a dot; these are not entered
    tables: list[str] = dataclasses.field(default_factory=list)  # the .csv files beside the images
    skipped: list[str] = dataclasses.field(default_factory=list)  # not read, and why: links out or up, pipes, devices

    def good(self) -> tuple[ImageFile, ...]:
        """The usable files."""
        return tuple(file for file in self.files if not file.bad)

    def bad(self) -> tuple[ImageFile, ...]:
        """The bad files."""
        return tuple(file for file in self.files if file.bad)

    def sizes(self) -> Counter[tuple[int, ...]]:
        """Numbers of usable images of each (H, W) or (D, H, W)."""
        return Counter(file.shape[:-1] for file in self.good())

    def lines(self) -> list[str]:
        """The lines of the report: counts, resizing, disk and memory, and by name bad files and warnings."""
        good, bad = self.good(), self.bad()
        disk = sum(file.size for file in self.files)
        memory = sum(math.prod((*(self.size or f.shape[:-1]), f.shape[-1], f.dtype.itemsize)) for f in good)
        lines = [f"{self.name}: {len(self.files):,} image files, {disk / 1e6:,.1f} MB on disk; {len(good):,} usable"]
        if good:
            lines += [
                f"formats   {format_counts(Counter(file.format for file in good))}",
                f"modes     {format_counts(Counter(file.mode for file in good))}",
                f"sizes     {format_sizes(self.sizes())} (height x width)",
                f"resizing  {self._resizing()}",
                f"memory    {memory / 1e6:,.1f} MB when decoded",
            ]
        turned = [file.path for file in good if file.exif_transposed]
        if turned:
            lines.append(f"rotated   {len(turned):,} by their Exif orientation: {join_first(turned, 3)}")
        odd = [f"{printable(file.path)}: {printable(file.warning)}" for file in good if file.warning]
        if odd:
            lines += [f"warnings  {len(odd):,} files have damaged metadata; their pixels are used{indent_lines(odd)}"]
        if bad:
            lines.append(f"bad       {len(bad):,} files cannot be used{indent_lines(format_reasons(bad))}")
        if self.skipped:
            lines += [f"skipped   {len(self.skipped):,} that are not files of the folder{indent_lines(self.skipped)}"]
        ignored = [f"{self.others.total():,} other files ({format_counts(self.others)})"] if self.others else []
        ignored += [f"{self.hidden:,} hidden"] if self.hidden else []
        if ignored:
            lines.append(f"ignored   {', '.join(ignored)}")
        return lines

    def _resizing(self) -> str:
        if self.size is None:
            return "none"
        height, width = self.size
        sizes = self.sizes()
        cut = sum(n for (*_, h, w), n in sizes.items() if h * width != w * height)
        fewer = sum(n for (*_, h, w), n in sizes.items() if h < height or w < width)
        same = sizes[self.size]
        rest = sizes.total() - same
        if not rest:
            return f"none: all are {height}x{width}"
        return (
            f"{rest:,} to {height}x{width} with the Lanczos filter (antialiased), of which {cut:,} are "
            f"centre-cropped first and {fewer:,} enlarged; {same:,} unchanged"
        )


def make_folder_report(
    root: Path,
    name: str,
    size: tuple[int, int] | None = None,
    progress: ProgressCallback | None = None,
    *,
    extrema: bool = False,
) -> FolderReport:
    """The report on a folder, whose image files are decoded several at a time.

    Args:
        name, size: as in `FolderReport`.
        extrema: find the smallest and the largest value of pictures, which takes longer.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is not a folder.
    """
    if not root.exists():
        raise FileNotFoundError(f"load: no folder {root}")
    if not root.is_dir():
        raise ValueError(f"{root}: not a folder; PATH of folder:PATH must be the folder of the images")
    report = FolderReport(name, size)
    _find_files(root, report)
    files = [*report.bad(), *_decode_files(root, report.good(), extrema, progress)]
    report.files = sorted(_reject_other_modes(files), key=lambda file: file.path)
    report.tables.sort()
    report.skipped.sort()
    return report


def _find_files(root: Path, report: FolderReport) -> None:
    """Records all files below a folder; links are followed within it, but not in circles."""
    folders = [""]
    while folders:
        prefix = folders.pop()
        try:
            names = os.listdir(root / prefix)
        except OSError as error:
            report.files.append(ImageFile(prefix or ".", bad=f"a folder that cannot be listed: {error.strerror}"))
            continue
        shown = [name for name in names if not name.startswith(".")]
        report.hidden += len(names) - len(shown)
        folders += [f"{prefix}{name}/" for name in shown if _add_entry(root, prefix + name, report)]


def split_role(folder: str) -> str:
    """ "train" or "held out" for a folder named as a split, such as Train, test_images or val2017; else ""."""
    parts = re.findall(r"[^\W\d_]+", folder.casefold())
    name = "".join(part for part in parts if part not in ("data", "images", "split")).removesuffix("set")
    return "train" if name in TRAIN_NAMES else "held out" if name in HELD_OUT_NAMES else ""


def format_counts(counts: Counter[str]) -> str:
    """ "1,200 RGB, 3 L", the most frequent first, and the number of further kinds."""
    kinds = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(kinds) - 6:,} others" if len(kinds) > 6 else ""
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds[:6]) + more


def format_sizes(sizes: Counter[tuple[int, ...]]) -> str:
    """As `format_counts`, of the kinds "HxW"."""
    return format_counts(Counter({"x".join(map(str, size)): count for size, count in sizes.items()}))


def printable(text: str) -> str:
    """A text for printing, escaped if it has control characters or undecodable bytes."""
    return text if text.isprintable() else ascii(text)


def format_reasons(bad: Sequence[ImageFile]) -> list[str]:
    """ "PATH: reason" for each bad file."""
    return [f"{printable(file.path)}: {printable(file.bad)}" for file in bad]


def join_first(paths: Sequence[str], limit: int = MAX_LISTED) -> str:
    """The first paths on one line, and the number of the others."""
    more = f" and {len(paths) - limit:,} more" if len(paths) > limit else ""
    return ", ".join(map(printable, paths[:limit])) + more


def indent_lines(items: Sequence[str]) -> str:
    """The first items, one a line, and the number of the others."""
    more = [f"and {len(items) - MAX_LISTED:,} more"] if len(items) > MAX_LISTED else []
    return "".join(f"\n  {item}" for item in [*items[:MAX_LISTED], *more])


def _add_entry(root: Path, path: str, report: FolderReport) -> bool:
    """Records what lies at a path below the root; True if it is a folder to enter."""
    entry, extension = os.path.join(root, path), os.path.splitext(path)[1].lower()
    size, wrong = 0, ""
    try:
        about = os.stat(entry)
    except OSError as error:
        wrong = f"a broken link: {error.strerror}" if os.path.islink(entry) else f"{error.strerror}"
    else:
        skipped = _skip_reason(root, path, about.st_mode)
        if skipped:
            report.skipped.append(f"{printable(path)}: {skipped}")
            return False
        if not stat.S_ISDIR(about.st_mode):
            size = about.st_size
        elif extension in EXTENSIONS:
            wrong = "a folder, named like an image"
        else:
            return True
    folder = path.rpartition("/")[0]
    if extension in EXTENSIONS:
        report.files.append(ImageFile(path, size, bad=wrong))
    elif extension == ".csv" and not wrong and (not folder or ("/" not in folder and split_role(folder))):
        report.tables.append(path)
    else:
        report.others[extension if len(extension) > 1 else "without extension"] += 1
    return False


def _skip_reason(root: Path, path: str, mode: int) -> str:
    """The reason why an entry of a folder is not read, or ""."""
    entry = os.path.join(root, path)
    if os.path.islink(entry):
        real = Path(entry).resolve()
        if not real.is_relative_to(root.resolve()):
            return f"a link out of the folder, to {printable(str(real))}; use a copy instead"
        if any(os.path.samefile(entry, root / above) for above in Path(path).parents):
            return "a link to a folder that contains it"
    return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "a pipe, a socket or a device"


def _decode_files(
    root: Path, files: Sequence[ImageFile], extrema: bool, progress: ProgressCallback | None
) -> list[ImageFile]:
    """The files with their decoded properties, and the warnings of their decoding."""
    from PIL import Image

    Image.init()  # before several threads do
    current = threading.local()

    def record_warning(message, category, filename, lineno, file=None, line=None):
        if not hasattr(current, "warnings"):  # another thread of the program
            return before(message, category, filename, lineno, file, line)
        current.warnings.append(" ".join(str(message).split()))

    def examine(file: ImageFile) -> ImageFile:
        current.warnings = []
        try:
            image = decode(root / file.path, values=extrema)
        except ValueError as error:
            return file._replace(bad=str(error))
        pixels, ends = image.pixels, (0, 0)
        if extrema or image.format == "NPY":
            ends = pixels.min().item(), pixels.max().item()
        warning = current.warnings[0] if current.warnings else ""
        return file._replace(
            format=image.format, mode=image.mode, shape=pixels.shape, dtype=pixels.dtype, minimum=ends[0],
            maximum=ends[1], exif_transposed=image.exif_transposed, warning=warning,
        )  # fmt: skip

    # Filters and `showwarning` belong to the whole process, so they are set around all threads.
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before, warnings.showwarning = warnings.showwarning, record_warning
        return map_in_threads(examine, files, progress, "checked")


def _reject_other_modes(files: list[ImageFile]) -> list[ImageFile]:
    """The files, with those bad that are not of the most frequent mode."""
    modes = Counter(file.mode for file in files if not file.bad).most_common()
    if len(modes) < 2:
        return files
    (kept, most), (_, second) = modes[:2]
    why = f", but the most frequent mode is {kept}"
    if most == second:
        kept, why = None, ": no mode has a majority"
    return [f if f.bad or f.mode == kept else f._replace(bad=f"mode {f.mode}{why}") for f in files]
