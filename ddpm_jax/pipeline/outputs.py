"""The files of a call of `sample.py`: samples.npz, manifest.json, grid.png, images/ and the trajectory."""

import json
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from ddpm_jax import data, process
from ddpm_jax.pipeline.pipeline import Pipeline
from ddpm_jax.pipeline.user_images import image_hash


def file_format(pipe: Pipeline, requested: str) -> str:
    """The format of the image files to write, "npz" for none.

    Raises:
        ValueError: if the format that is asked for cannot hold the run's images.
    """
    if requested not in ("source", "npz"):
        refusal = data.unwritable_reason(requested, pipe.shape, pipe.dtype)
        if refusal:
            raise ValueError(f"--format {requested}: images {refusal} (samples.npz is always written)")
        return requested
    came = pipe.format or "npz"
    if requested == "npz" or came == "npz":
        return "npz"
    if came != "gif" and not data.unwritable_reason(came, pipe.shape, pipe.dtype):
        return came
    print(f"training images are {came} files, which cannot be written: the samples will be png files")
    return "png"


def write_files(folder: pathlib.Path, drawn: np.ndarray, start: int, format: str) -> None:
    """Writes each image as a file that bears its index."""
    if format == "npz":
        return
    folder.mkdir(exist_ok=True)
    names = [f"{start + i:06d}.{format}" for i in range(len(drawn))]
    for name, image in zip(names, drawn, strict=True):
        data.write_image(folder / name, image, format)
    lossy = "; jpg is lossy, samples.npz is exact" if format == "jpg" else ""
    print(f"files     {folder / names[0]} to {names[-1]}{lossy}")
    others = len(list(folder.iterdir())) - len(names)
    if others:
        print(f"note: {folder} holds {others} other files, of other calls")


def write_outputs(
    pipe: Pipeline, drawn: np.ndarray, out: pathlib.Path, made: dict, pictures: Sequence[np.ndarray] = ()
) -> None:
    """Writes the images, a grid of them after the other pictures, and their manifest.

    Of several conditions that images take in turn, each has a row of the grid, if there are two images of each.
    """
    manifest = made | {"sha256": [image_hash(image) for image in drawn]}
    (out / "manifest.json").unlink(missing_ok=True)  # of an earlier call: it must not stand beside these images
    with process.atomic_file(out / "samples.npz") as file:
        np.savez(file, arr_0=drawn)
    process.atomic_write_json(out / "manifest.json", manifest)
    label = pipe.png_text() | {"asked": json.dumps(manifest["asked"])}
    in_turn = math.lcm(*(len(part) for part in pipe.request if part))
    rows = in_turn if 1 < in_turn <= len(drawn) // 2 and not pictures else None
    picture = data.make_grid(np.stack([*pictures, *drawn]), pipe.levels, rows=rows)
    data.write_png(out / "grid.png", picture, scale=data.preview_scale(pipe.shape), text=label)


def write_trajectory(
    pipe: Pipeline, drawn: np.ndarray | None, out: pathlib.Path, *, seed: int, start: int, num: int, frames: int = 21
) -> None:
    """Writes the way to the first images, at evenly spread places of the chain."""
    times = pipe.times
    save_at = times[np.unique(np.linspace(0, len(times) - 1, frames).round().astype(int))]
    num = min(num, 16)
    parts = pipe.draw(seed=seed, start=start, num=num, save_at=[int(t) for t in save_at])
    states = np.concatenate([part.x for part in parts])  # [num, 2, frames, ...]
    if drawn is None:  # another process writes
        return
    if not np.array_equal(pipe.to_pixels(states[:, 0, -1]), drawn[:num]):
        print("note: the trajectory's last images differ from samples.npz in the last bits of their arithmetic")
    shown, scale = data.to_integer(states, 256), data.preview_scale(pipe.shape)
    data.write_gif(
        out / "trajectory.gif", [data.make_grid(shown[:, 0, i], 256) for i in range(len(save_at))], scale=scale
    )
    few = np.unique(np.linspace(0, len(save_at) - 1, 11).round().astype(int))
    rows = [row[few] for image in states[: min(num, 4)] for row in image]
    data.write_png(
        out / "trajectory.png", data.make_trajectory_grid(rows), scale=scale, text={"times": str(save_at[few].tolist())}
    )
    print(f"trajectory at t = {save_at[few].tolist()}, x_t above the predicted x_0: {out / 'trajectory.png'}")
