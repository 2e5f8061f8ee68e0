"""Progressive generation: x_t at times of the reverse process."""

import numpy as np

from ddpm_jax import data, pipeline, process
from ddpm_jax.evaluate import sample_cache
from ddpm_jax.evaluate.context import EvaluationContext
from ddpm_jax.evaluate.figures import figure
from ddpm_jax.evaluate.options import ProgressiveOptions


def run(context: EvaluationContext, options: ProgressiveOptions) -> None:
    """Writes the picture, the animation, and the manifest of the images with their hashes."""
    model = context.model
    times = figure.evenly_spaced(model.times, options.frames)
    x = figure.draw_states(model, options, times.tolist())
    fields = {"n": options.num, "start": options.start, "frames": len(times)}
    files = figure.FigureFiles(
        context, "progressive", {**fields, **sample_cache.protocol_fields(context, options.seed, "float")}
    )
    legend = f"rows: {options.describe_images()}; columns: x_t at t = {figure.format_times(times)}"
    files.save_image(data.make_trajectory_grid(list(x)), legend)
    frames = [data.make_grid(x_t, 256) for x_t in np.moveaxis(data.to_integer(x, 256), 1, 0)]
    animation = files.path.with_suffix(".gif")
    data.write_gif(animation, frames, scale=data.preview_scale(model.shape), duration=200)
    hashes = [pipeline.image_hash(image) for image in model.to_pixels(x[:, -1])]
    made = {"seed": options.seed, "start": options.start, "num": options.num, "kept": times.tolist()}
    process.atomic_write_json(files.path.with_suffix(".json"), model.manifest() | made | {"sha256": hashes})
    print(f"animation in {animation.name}, hashes of the images in {files.path.name}.json")
