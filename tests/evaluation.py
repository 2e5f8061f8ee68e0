"""Evaluations as tests run them: over two devices, and compiled once in a process for all who want the same."""

import contextlib
import dataclasses
import functools
import pathlib
from unittest import mock

import programs

from ddpm_jax import gaussian, generate, runs, schedules
from ddpm_jax.config import flags, objects
from ddpm_jax.evaluate import likelihood
from ddpm_jax.evaluate import subject as subjects
from ddpm_jax.evaluate.subject import Subject, Which

Model, measuring = runs.Model, likelihood.program


class Ideal(Model):
    """A run whose network has learned data N(0, variance) to perfection: nothing to trace or to compile in it."""

    variance = 1.0

    def denoiser(self, params):
        def denoise(x_t, t):
            signal, noise = (schedules.at(column, t, x_t) for column in (self.schedule.signal, self.schedule.noise))
            total = signal**2 * self.variance + noise**2
            return gaussian.Estimate(signal * self.variance / total * x_t, noise / total * x_t)

        return denoise

    def sampler_told(self, inputs, rows, conditioned=None):
        return objects.sampler(self.config, self.schedule, self.denoiser(inputs.params), inputs.numbers)


class Narrow(Ideal):
    """The same of data N(0, 1/25)."""

    variance = 1 / 25


@functools.cache
def _programs(kind: type, config: str, shape: tuple[int, ...]) -> dict:
    """What draws of such networks were compiled: their parameters are arguments."""
    return {}


@functools.cache
def _opened(kind: type, workdir: str, weights: str) -> Model:
    found = kind(workdir, step=None, weights=weights, sampling={})
    config = dataclasses.replace(found.config, data=type(found.config.data)())
    found._programs = _programs(kind, repr(config), found.shape)
    return found


def model(workdir, *, step=None, weights="ema", sampling, kind=Model) -> Model:
    """As `runs.Model`, whose checkpoint is read once, and whose programs are those of all networks like it."""
    base = _opened(kind, str(workdir), weights)
    if step not in (None, base.step):
        return kind(workdir, step=step, weights=weights, sampling=sampling)
    return base.asking(base.asked, **sampling)


def ideal(workdir, kind=Ideal, weights="ema", **sampling) -> Model:
    """A model that has learned Gaussian data."""
    return model(workdir, weights=weights, sampling=sampling, kind=kind)


_bounds: dict[tuple, generate.Program] = {}


def program(model, options):
    """As `likelihood.program`, made once."""
    config = dataclasses.replace(model.config, data=type(model.config.data)())
    name = type(model), repr(config), model.shape, model.levels, options.estimate, options.decoder
    if name not in _bounds:
        _bounds[name] = measuring(model, options)
    return _bounds[name]


@contextlib.contextmanager
def shared():
    """Evaluations, and sample.py, have two devices here and share what they compile."""
    with (
        programs.on_devices(2),
        mock.patch.object(runs, "Model", model),
        mock.patch.object(likelihood, "program", program),
    ):
        yield


def subject(folder, out=None, *, source=None, weights="ema", **sampling) -> Subject:
    """The subject of a run with these flags."""
    which = Which(
        flags.Weights(weights), sampling=flags.Sampling(**sampling), source=source, out=out and str(out)
    )  # fmt: skip
    return subjects.subject(str(folder), which)


def changed(old: Subject, shape=None, levels=None, **config) -> Subject:
    """The subject with other fields of its config, or other images."""
    model = old.model.asking(old.model.asked)
    model.config = dataclasses.replace(model.config, **config)
    model.shape, model.levels = shape or model.shape, levels or model.levels
    return old._replace(model=model)


@functools.cache
def by_sample_py(folder: pathlib.Path) -> pathlib.Path:
    """What sample.py leaves of eighty images of seed 3: four steps of DDIM."""
    out = folder.parent / "by_sample_py"
    chosen = ("--num", 80, "--seed", 3, "--sampler", "ddim", "--steps", 4, "--devices", 2)
    programs.run("sample.py", folder, *chosen, "--out", out)
    return out
