"""Evaluations as tests run them: over two devices, and compiled once in a process for all who want the same."""

import contextlib
import dataclasses
import functools
import pathlib
from unittest import mock

import numpy as np
import run_programs

from ddpm_jax import data, gaussian, pipeline, schedules
from ddpm_jax.config import flags
from ddpm_jax.evaluate import likelihood
from ddpm_jax.evaluate.context import CommonFlags, EvaluationContext, open_context
from ddpm_jax.pipeline import tiles

Model, original_program = pipeline.Pipeline, likelihood.tile_function


class Ideal(Model):
    """A run whose network has learned data N(0, variance) to perfection: nothing to trace or to compile in it."""

    variance = 1.0

    def denoiser(self, params):
        def denoise(x_t, t):
            signal, noise = (schedules.gather(column, t, x_t) for column in (self.schedule.signal, self.schedule.noise))
            total = signal**2 * self.variance + noise**2
            return gaussian.Estimate(signal * self.variance / total * x_t, noise / total * x_t)

        return denoise

    def conditioned_sampler(self, inputs, condition, transform=None):
        return self.model.sampler_of(self.denoiser(inputs.params), inputs.scalars)


class Narrow(Ideal):
    """The same of data N(0, 1/25)."""

    variance = 1 / 25


@functools.cache
def _programs(kind: type, config: str, shape: tuple[int, ...]) -> dict:
    """What draws of such networks were compiled: their parameters are arguments."""
    return {}


@functools.cache
def _open_model(kind: type, workdir: str, weights: str) -> Model:
    found = kind(workdir, step=None, weights=weights, sampling={})
    config = dataclasses.replace(found.config, data=type(found.config.data)())
    found._programs = _programs(kind, repr(config), found.shape)
    return found


def shared_model(workdir, *, step=None, weights="ema", sampling, kind=Model) -> Model:
    """As `pipeline.Pipeline`, whose checkpoint is read once, and whose programs are those of all networks like it."""
    base = _open_model(kind, str(workdir), weights)
    if step not in (None, base.step):
        return kind(workdir, step=step, weights=weights, sampling=sampling)
    return base.with_request(base.request, **sampling)


def ideal_model(workdir, kind=Ideal, weights="ema", **sampling) -> Model:
    """A model that has learned Gaussian data."""
    return shared_model(workdir, weights=weights, sampling=sampling, kind=kind)


_vlb_programs: dict[tuple, tiles.TileFunction] = {}


def shared_program(model, options):
    """As `likelihood.program`, made once."""
    config = dataclasses.replace(model.config, data=type(model.config.data)())
    name = type(model), repr(config), model.shape, model.levels, options.estimate, options.decoder
    if name not in _vlb_programs:
        _vlb_programs[name] = original_program(model, options)
    return _vlb_programs[name]


@contextlib.contextmanager
def share_programs():
    """Evaluations, and sample.py, have two devices here and share what they compile."""
    with (
        run_programs.on_devices(2),
        mock.patch.object(pipeline, "Pipeline", shared_model),
        mock.patch.object(likelihood, "tile_function", shared_program),
    ):
        yield


def evaluation_context(folder, out=None, *, source=None, weights="ema", **sampling) -> EvaluationContext:
    """The context of a run with these flags."""
    which = CommonFlags(
        flags.Weights(weights), sampling=flags.SamplingOptions(**sampling), source=source, out=out and str(out)
    )  # fmt: skip
    return open_context(str(folder), which)


def replace_config(old: EvaluationContext, shape=None, levels=None, **config) -> EvaluationContext:
    """The context with other fields of its config, or other images."""
    model = old.model.with_request(old.model.request)
    model.config = dataclasses.replace(model.config, **config)
    model.shape, model.levels = shape or model.shape, levels or model.levels
    return old._replace(model=model)


def ddim_context(folder, out, **sampling) -> EvaluationContext:
    """The context of a run with four steps of DDIM."""
    return evaluation_context(folder, out, **{"sampler": "ddim", "steps": 4} | sampling)


def picture_column(path, which: int) -> np.ndarray:
    """The cells of one column of a picture of 8x8 images, eight times as large."""
    pixels = data.read_png(path).image[::8, ::8, 0]
    return np.stack([row[:, 9 * which + 1 :][:, :8] for row in np.split(pixels[1:], len(pixels) // 9)])[:, :8]


@functools.cache
def samples_of_sample_py(folder: pathlib.Path) -> pathlib.Path:
    """What sample.py leaves of eighty images of seed 3: four steps of DDIM."""
    out = folder.parent / "by_sample_py"
    selected = ("--num", 80, "--seed", 3, "--sampler", "ddim", "--steps", 4, "--devices", 2)
    run_programs.run("sample.py", folder, *selected, "--out", out)
    return out
