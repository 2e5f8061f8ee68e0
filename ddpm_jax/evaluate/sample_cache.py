"""Sample cache: image i of a seed is drawn once, however many evaluations use it.

A folder holds parts, FIRST-STOP.npy, without gaps; a request for more images draws the missing ones.
"""

import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator

import numpy as np

from ddpm_jax import data, process, tracking
from ddpm_jax.evaluate import protocol
from ddpm_jax.evaluate.context import EvaluationContext
from ddpm_jax.evaluate.options import Format
from ddpm_jax.model import denoiser_options, is_conditional, sampler_options

PART_SIZE = 1024


def protocol_fields(context: EvaluationContext, seed: int, form: Format) -> protocol.Protocol:
    """The protocol fields of a run's samples."""
    c = context.model.config
    s, T = c.sampling, c.schedule.T
    how = "".join(f" {name}={value}" for name, value in sampler_options(c).items())
    steps = f"{s.steps} steps" if s.steps == T else f"{s.steps} of {T} steps {s.spacing}"
    errors = context.model.x0_mse_digest
    integers = "uint8" if context.model.integer_levels <= 256 else "uint16"
    return {
        "samples": f"{s.sampler} {steps}{how}",
        **({"x0_errors": errors.removeprefix("sha256:")[:12]} if errors else {}),
        **denoiser_options(c),
        **_condition_fields(context),
        "format": integers if form == "integer" else "float",
        **context.weights_fields(),
        "seed": seed,
    }


def _condition_fields(context: EvaluationContext) -> protocol.Protocol:
    """The protocol fields of the condition; none for an unconditional network."""
    if not is_conditional(context.model.config):
        return {}
    s, request = context.model.config.sampling, context.model.request
    interval = " at t {}..{}".format(*s.guidance_interval) if s.guidance_interval else ""
    return {"asked": request.describe(context.model.label_names), "guidance": f"{s.guidance:g}{interval}"}


def ensure_samples(context: EvaluationContext, num: int, seed: int, form: Format) -> pathlib.Path | None:
    """The folder that holds images 0 ... num - 1 of a seed, drawing the missing ones; None if interrupted.

    With several processes all draw, and the first goes on alone: the others end here, by SystemExit.
    """
    folder = _draw_missing(context, num, seed, form)
    if folder is not None and not process.is_main_process():
        raise SystemExit(0)
    return folder


def _draw_missing(context: EvaluationContext, num: int, seed: int, form: Format) -> pathlib.Path | None:
    model, fields = context.model, {**protocol_fields(context, seed, form), "tile": context.model.tile}
    folder = context.out / "draws" / protocol.short_hash(fields)
    if process.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "protocol.json").write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")

    def missing(done: int) -> Iterator[np.ndarray]:
        for drawn in model.draw(seed=seed, start=done, num=num - done):
            yield to_levels(drawn.x, model.integer_levels, form)

    return folder if complete_parts(folder, num, missing) else None


def complete_parts(
    folder: pathlib.Path, num: int, draw_from: Callable[[int], Iterator[np.ndarray]], save_seconds=math.inf
) -> bool:
    """Draws the missing images of a folder's `num` and writes them in parts; False if interrupted.

    Args:
        draw_from: number of images there are -> iterator over the following ones, in order.
        save_seconds: a part is written after this time, or when it has `PART_SIZE` images.
    """
    done = sum(stop - first for first, stop, _ in list_parts(folder))
    process.check_equal_across_processes({"images that are kept": str(done).encode()})
    if done >= num:
        return True
    progress, waiting = tracking.Progress(num, start=done, unit="images", active=process.is_main_process()), []
    with process.Interrupt() as interrupt:
        written = time.monotonic()
        for drawn in draw_from(done):
            waiting.append(drawn)
            count = sum(map(len, waiting))
            progress.update(done + count, {})
            stopping = process.any_process(interrupt.requested)
            if count >= PART_SIZE or done + count == num or stopping or time.monotonic() - written > save_seconds:
                if process.is_main_process():
                    write_part(folder, done, np.concatenate(waiting))
                done, waiting, written = done + count, [], time.monotonic()
            if stopping and done < num:
                progress.close()
                print(f"interrupted: {done} of {num} images are kept; the same command continues")
                return False
    progress.close()
    return True


def to_levels(x: np.ndarray, levels: int, form: Format) -> np.ndarray:
    """Samples in [-1, 1] on the scale 0 .. levels - 1: integers, or float32."""
    integers = data.to_integer(x, levels)  # which also refuses what is not finite
    if form == "integer":
        return integers
    return ((np.clip(x, -1, 1).astype(np.float64) + 1) * ((levels - 1) / 2)).astype(np.float32)


def read_chunks(folder: pathlib.Path, first: int, stop: int) -> Iterator[np.ndarray]:
    """The images first ... stop - 1, part by part.

    Raises:
        ValueError: naming the file, if one is damaged.
    """
    for start, end, path in list_parts(folder):
        if start < stop and end > first:
            try:
                images = np.load(path, mmap_mode="r", allow_pickle=False)
            except Exception as error:  # a damaged header is read as Python and fails as Python does, in any way
                raise ValueError(f"{path} is damaged: remove it, and its images are drawn anew") from error
            if images.ndim < 4 or len(images) != end - start:
                raise ValueError(f"{path} holds {images.shape}, not {end - start} images: remove it")
            yield images[max(first - start, 0) : stop - start]


def write_part(folder: pathlib.Path, first: int, images: np.ndarray) -> None:
    """Writes a part, atomically."""
    with process.atomic_file(folder / f"{first:08d}-{first + len(images):08d}.npy") as file:
        np.save(file, images)


def list_parts(folder: pathlib.Path) -> list[tuple[int, int, pathlib.Path]]:
    """First, stop and path of each part, in order, up to the first gap."""
    parts, expected_first = [], 0
    for path in sorted(folder.glob(f"{'[0-9]' * 8}-{'[0-9]' * 8}.npy")):
        first, stop = map(int, path.stem.split("-"))
        if first != expected_first:
            break
        parts.append((first, stop, path))
        expected_first = stop
    return parts
