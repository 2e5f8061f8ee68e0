"""Images of a seed, kept in parts as they are drawn, so that an interrupted call continues.

A folder holds parts, FIRST-STOP.npy, without gaps.  Two calls may leave parts that overlap, with the same images.
"""

import json
import math
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator

import numpy as np

from ddpm_jax import process, tracking
from ddpm_jax.pipeline.edits import Edit
from ddpm_jax.pipeline.pipeline import Pipeline

PART_SIZE = 1024


def draw_parts(
    folder: pathlib.Path, drawer: Pipeline | Edit, made: dict, *, seed: int, start: int, num: int, batch: int | None
) -> bool:
    """Draws images part by part, after those that the same call has left in the folder; False if interrupted.

    Args:
        made: the call's record; parts of a call with another one are removed.

    Raises:
        ValueError: if several processes have other records or batches.
    """
    process.check_equal_across_processes({"weights, flags and files": [made, batch]})
    call, record = folder / "call.json", json.dumps(made)
    if process.is_main_process() and not (call.exists() and call.read_text(encoding="utf-8") == record):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        call.write_text(record, encoding="utf-8")

    def missing(done: int) -> Iterator[np.ndarray]:
        parts = drawer.draw(seed=seed, start=start + done, num=num - done, batch=batch)
        return (drawer.to_pixels(part.x) for part in parts)

    with process.explain_oom("a tile of images", lambda: process.sampling_oom_hints(drawer.tile)):
        return complete_parts(folder, num, missing, save_seconds=20)


def complete_parts(
    folder: pathlib.Path, num: int, draw_from: Callable[[int], Iterator[np.ndarray]], save_seconds=math.inf
) -> bool:
    """Draws the missing images of a folder's `num` and writes them in parts; False if interrupted.

    Of several processes only the first one reads and writes the folder, which may be its own.

    Args:
        draw_from: number of images there are -> iterator over the following ones, in order.
        save_seconds: a part is written after this time, or when it has `PART_SIZE` images.
    """
    done = int(process.broadcast(np.int32(max((stop for _, stop, _ in list_parts(folder)), default=0))))
    if done >= num:
        return True
    progress, waiting = tracking.Progress(num, start=done, unit="images", active=process.is_main_process()), []
    with process.Interrupt() as interrupt, progress:
        written = time.monotonic()
        for drawn in draw_from(done):
            waiting.append(drawn)
            count = sum(map(len, waiting))
            progress.update(done + count)
            stopping = process.any_process(interrupt.requested)
            if count >= PART_SIZE or done + count == num or stopping or time.monotonic() - written > save_seconds:
                if process.is_main_process():
                    write_part(folder, done, np.concatenate(waiting))
                done, waiting, written = done + count, [], time.monotonic()
            if stopping and done < num:
                progress.close()
                print(f"interrupted: {done} of {num} images are kept; the same command continues")
                return False
    return True


def read_chunks(folder: pathlib.Path, start: int, stop: int) -> Iterator[np.ndarray]:
    """The images start ... stop - 1, part by part.

    Raises:
        ValueError: naming the file, if one is damaged.
    """
    for part_start, part_stop, path in list_parts(folder):
        if start < min(stop, part_stop):
            try:
                images = np.load(path, mmap_mode="r", allow_pickle=False)
            except Exception as error:  # a damaged header is read as Python and fails as Python does, in any way
                raise ValueError(f"{path} is damaged: remove it, and its images are drawn again") from error
            if images.ndim < 4 or len(images) != part_stop - part_start:
                raise ValueError(f"{path} holds {images.shape}, not {part_stop - part_start} images: remove it")
            yield images[start - part_start : stop - part_start]
            start = part_stop


def write_part(folder: pathlib.Path, start: int, images: np.ndarray) -> None:
    """Writes a part, atomically."""
    with process.atomic_file(folder / f"{start:08d}-{start + len(images):08d}.npy") as file:
        np.save(file, images)


def list_parts(folder: pathlib.Path) -> list[tuple[int, int, pathlib.Path]]:
    """Start, stop and path of each part, in order, up to the first gap; not of those within the parts before."""
    parts, end = [], 0
    for path in sorted(folder.glob(f"{'[0-9]' * 8}-{'[0-9]' * 8}.npy")):
        start, stop = map(int, path.stem.split("-"))
        if start <= end < stop:
            parts.append((start, stop, path))
            end = stop
    return parts
