"""The commands of `ddpm-jax convert`."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from ddpm_jax import config as configs
from ddpm_jax import runs
from ddpm_jax.config import flags, objects
from ddpm_jax.convert import diffusers, files, folder, openai, options, original, plain

ONE_SET = "one set of weights, which stands for raw and averaged ones"

UNKNOWN = "unknown"
"""The source of data of weights that do not say of which they are: nothing is loaded from it."""

SMALL = 64 * 64 * 3
"""Numbers of an image from which on training draws fewer of them."""


def from_diffusers(chosen: options.FromDiffusers) -> None:
    """Reads a folder of diffusers and writes a run.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: as `diffusers.source` and `folder.write`.
    """
    found = diffusers.source(pathlib.Path(chosen.path), null_label=chosen.null_label)
    network, chain = found.network, found.chain
    always_told = network.net.num_classes and not chosen.null_label
    config = configs.Config(
        data=configs.Data(UNKNOWN),
        schedule=chain.schedule,
        net=network.net,
        condition=configs.Condition(drop=0.0) if always_told else configs.Condition(),
        loss=chain.loss,
        sampling=_fewer_shown(chain.sampling, network.shape),
    )
    config = chosen.unsaid.applied(config)
    origin = folder.origin("diffusers", found.files, found.tensors)
    image = chosen.unsaid.image(config, network.shape)
    imported = folder.Imported(config, image, found.tensors, found.tensors, found.rules, 0, origin, found.fingerprint)
    _written(chosen.workdir, imported, ONE_SET)
    _tell_differences(config)


def from_original(chosen: options.FromOriginal) -> None:
    """Reads the original's weights and writes a run.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: as `files.read`, `original.source` and `folder.write`.
    """
    path, unsaid = pathlib.Path(chosen.path), chosen.unsaid
    config = unsaid.applied(configs.load(chosen.config))
    found = original.source(files.read(path))
    step = found.step if chosen.step is None else chosen.step
    averaged = {f"{name}{original.AVERAGE}": tensor for name, tensor in found.ema.items()} if found.both else {}
    read = {**found.raw, **averaged}
    origin = folder.origin("original", files.parts(path), read, aside=list(found.aside))
    image = unsaid.image(config, chosen.shape)
    imported = folder.Imported(config, image, found.raw, found.ema, found.rules, step, origin)
    sets = "raw and averaged weights" if found.both else ONE_SET
    _written(chosen.workdir, imported, sets)


def from_openai(chosen: options.FromOpenAI) -> None:
    """Reads a checkpoint of OpenAI's and writes a run.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: as `files.read`, `openai.published`, `openai.model` and
            `folder.write`.
    """
    path = pathlib.Path(chosen.path)
    if chosen.family is not None and chosen.published is not None:
        raise ValueError("--published says which network it is, and so do --family and --flags: give one of them")
    if chosen.family is None and chosen.flags:
        raise ValueError("--flags are those of a project: say which by --family improved or --family guided")
    if chosen.family is not None:
        model = openai.model(chosen.family, chosen.flags, num_classes=chosen.num_classes)
        said = {"family": chosen.family, "flags": chosen.flags}
    else:
        name = chosen.published or path.stem
        model = openai.published(name)
        said = {"published": name, "trained": openai.PRESETS[name].trained}
    config = chosen.unsaid.applied(
        dataclasses.replace(model.config, data=configs.Data(UNKNOWN, model.config.data.flip))
    )
    config = dataclasses.replace(config, sampling=_fewer_shown(config.sampling, model.shape))
    tensors = files.read(path)
    origin = folder.origin("openai", [path], tensors, **said)
    image = chosen.unsaid.image(config, model.shape)
    imported = folder.Imported(config, image, tensors, tensors, model.rules, chosen.step, origin)
    _written(chosen.workdir, imported, ONE_SET)


def from_plain(chosen: options.FromPlain) -> None:
    """Reads what `to_plain` wrote and writes a run.

    Raises:
        FileNotFoundError, ValueError: as `plain.read` and `folder.write`.
    """
    source = pathlib.Path(chosen.path)
    config, said, tensors = plain.read(source)
    read = [source / name for name in ("weights.safetensors", "config.json", "model.json")]
    origin = folder.origin("plain", read, tensors)
    step = said["step"] if isinstance(said.get("step"), int) else 0
    imported = folder.Imported(config, said["image"], tensors, tensors, plain.rules, step, origin, said["fingerprint"])
    _written(chosen.workdir, imported, f"the {said.get('weights')} weights, which stand for both")


def to_diffusers(chosen: options.ToDiffusers) -> None:
    """Writes a run's weights as diffusers reads them.

    Raises:
        FileNotFoundError, ValueError: as `runs.Model` and `diffusers.write`.
    """
    model = _model(chosen.run, chosen.model, chosen.sampling)
    with files.appearing(pathlib.Path(chosen.out)) as part:
        said = {"fingerprint": model.fingerprint, "step": str(model.step), "weights": model.weights}
        diffusers.write(part, model.config, model.shape, model.params, said)
    print(f"{model.describe()}")
    print(f"written   {chosen.out}: diffusers.DiffusionPipeline.from_pretrained({chosen.out!r})")
    _tell_differences(model.config)
    if model.config.net.num_classes:
        none = f", {model.config.net.num_classes} for none" if diffusers.null_label(model.config) else ""
        print(f"note: its pipelines pass no labels; call unet(x, t, class_labels=...) in a loop of your own{none}")


def to_plain(chosen: options.ToPlain) -> None:
    """Writes a run's weights, schedule and config for anyone.

    Raises:
        FileNotFoundError, ValueError: as `runs.Model`.
    """
    model = _model(chosen.run, chosen.model, flags.Sampling())
    with files.appearing(pathlib.Path(chosen.out)) as part:
        plain.write(part, model.config, model.params, folder.said_of(model))
    print(f"{model.describe()}")
    print(f"written   {chosen.out}: weights.safetensors, schedule.safetensors, config.json, model.json")


def _fewer_shown(sampling: configs.Sampling, shape: Sequence[int]) -> configs.Sampling:
    """The same, but for how many images of this shape training draws if they are large."""
    return dataclasses.replace(sampling, num=16) if math.prod(shape) > SMALL else sampling


def _tell_differences(config: configs.Config) -> None:
    for line in diffusers.differences(config):
        print(f"note: {line}")


def _model(run: str, which: flags.Weights, sampling: flags.Sampling) -> Any:
    return runs.Model(run, step=which.checkpoint, weights=which.weights, sampling=sampling.chosen())


def _written(workdir: str, imported: folder.Imported, sets: str) -> None:
    """Writes a run and says what it is."""
    parameters = folder.write(pathlib.Path(workdir), imported)
    image, chain = imported.image, imported.config.sampling
    size, origin = "x".join(map(str, image["shape"])), imported.origin
    print(f"read      {', '.join(origin['files'])}: {len(origin['tensors'])} tensors, all used; {sets}")
    if origin.get("aside"):
        print(f"          {len(origin['aside'])} variables of its training are left aside")
    print(f"network   {parameters:,} parameters for images {size} of {image['levels']} levels")
    fixed = f"mix {chain.mix:g}" if chain.sampler == "ancestral" else f"eta {chain.eta:g}"
    variance = "learned variance" if objects.learned_variance(imported.config) else fixed
    clipped = "clipped" if chain.clip else "not clipped"
    print(f"sampling  {chain.sampler}, {chain.steps} steps, {variance}, {clipped}")
    print(f"written   {workdir}, step {imported.step}: python sample.py {workdir}")
