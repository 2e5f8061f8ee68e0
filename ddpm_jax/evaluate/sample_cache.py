"""Sample cache: image i of a seed is drawn once, however many evaluations use it.

A request for more images draws the missing ones.
"""

import json
import pathlib
from collections.abc import Iterator

import numpy as np

from ddpm_jax import data, process
from ddpm_jax.evaluate import protocol
from ddpm_jax.evaluate.context import EvaluationContext, Interrupted
from ddpm_jax.evaluate.options import Format
from ddpm_jax.model import denoiser_options, is_conditional, sampler_options
from ddpm_jax.pipeline import image_parts, manifest


def protocol_fields(context: EvaluationContext, seed: int, form: Format) -> protocol.Protocol:
    """The protocol fields of a run's samples."""
    c = context.model.config
    s, T = c.sampling, c.schedule.T
    how = "".join(f" {name}={value}" for name, value in sampler_options(c).items())
    steps = f"{s.steps} steps" if s.steps == T else f"{s.steps} of {T} steps {s.spacing}"
    x0_mse_digest = context.model.x0_mse_digest
    integers = "uint8" if context.model.integer_levels <= 256 else "uint16"
    rounding = "floor" if form == "floor" else "round"  # to the level below, or to the nearest
    condition = {}
    if is_conditional(c):
        interval = " at t {}..{}".format(*s.guidance_interval) if s.guidance_interval else ""
        request_text = context.model.request.describe(context.model.label_names)
        condition = {"asked": request_text, "guidance": f"{s.guidance:g}{interval}"}
    return {
        "samples": f"{s.sampler} {steps}{how}",
        **({"x0_errors": x0_mse_digest.removeprefix("sha256:")[:12]} if x0_mse_digest else {}),
        **denoiser_options(c),
        **condition,
        **({"format": "float"} if form == "float" else {"format": integers, "rounding": rounding}),
        **context.weights_fields(),
        "seed": seed,
    }


def ensure_samples(context: EvaluationContext, num: int, seed: int, form: Format) -> pathlib.Path:
    """The folder that holds images 0 ... num - 1 of a seed, drawing the missing ones."""
    model, fields = context.model, {**protocol_fields(context, seed, form), "tile": context.model.tile}
    process.check_equal_across_processes({"weights and flags": [fields, num]})
    if form == "integer":
        del fields["rounding"]  # so that images that were drawn before there were two are found
    folder = context.out / "draws" / manifest.short_hash(fields)
    if process.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "protocol.json").write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")

    def missing(done: int) -> Iterator[np.ndarray]:
        for drawn in model.draw(seed=seed, start=done, num=num - done):
            yield to_levels(drawn.x, model.integer_levels, form)

    if not image_parts.complete_parts(folder, num, missing):
        raise Interrupted
    return folder


def to_levels(x: np.ndarray, levels: int, form: Format) -> np.ndarray:
    """Samples in [-1, 1] on the scale 0 .. levels - 1: integers, rounded or cut, or float32."""
    integers = data.to_integer(x, levels)  # which also refuses what is not finite
    if form == "integer":
        return integers
    # floor in the arithmetic of the programs that do it
    scaled = (np.clip(x, -1, 1).astype(np.float32 if form == "floor" else np.float64) + 1) * ((levels - 1) / 2)
    return scaled.astype(integers.dtype if form == "floor" else np.float32)
