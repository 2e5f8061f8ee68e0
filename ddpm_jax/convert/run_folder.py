"""A run's folder from imported weights, which `sample.py`, `evaluate` and `train.py` open."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ddpm_jax
from ddpm_jax import checkpoint, keys, process, training
from ddpm_jax import config as configs
from ddpm_jax.convert import tensor_files
from ddpm_jax.convert.rules import Rule, Tensors, apply
from ddpm_jax.model import build, check, optimizer


class ImportedModel(NamedTuple):
    """An imported model."""

    config: configs.Config  # the run's
    image: dict[str, Any]  # see `options.ImageOptions.image_metadata`
    raw: Tensors  # by the source's names
    rules: Callable[[Any], list[Rule]]  # of our tree of parameters
    origin: dict[str, Any]  # see `describe_origin`
    step: int = 0  # of training
    ema: Tensors | None = None  # as `raw`; None where there is one set of weights, used as both
    fingerprint: str | None = None  # of the raw weights as our parameters, if the source has it


def describe_origin(format: str, paths: Sequence[pathlib.Path], tensors: Tensors, **more: Any) -> dict[str, Any]:
    """The provenance of a run's weights: files with hashes, tensors with shapes and dtypes."""
    digests = {path.name: tensor_files.file_digest(path) for path in paths}
    described = {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in sorted(tensors.items())}
    return {"format": format, "files": digests, "tensors": described, **more}


def param_shapes(config: configs.Config, shape: Sequence[int]) -> Any:
    """Our tree of parameters, as shapes and dtypes; a ValueError if the network's options are invalid."""
    return jax.eval_shape(build(config, shape, levels=256).init, keys.from_seed(0))  # levels have no parameters


def write_run(workdir: pathlib.Path, imported: ImportedModel) -> int:
    """Writes a run's folder with one checkpoint, with a fresh optimizer state; returns the number of parameters.

    Raises:
        ValueError: if config or weights are invalid, or the folder exists; nothing is written then.
    """
    check(imported.config)
    shapes = param_shapes(imported.config, imported.image["shape"])
    rules = imported.rules(shapes)
    params = apply(rules, imported.raw, shapes)
    if imported.fingerprint not in (None, actual := checkpoint.fingerprint(params)):
        raise ValueError(
            f"the weights in {', '.join(imported.origin['files'])} are damaged, or others than were written: their "
            f"fingerprint is {actual}, expected {imported.fingerprint}"
        )
    ema = params if imported.ema is None else apply(rules, imported.ema, shapes)
    # an optimizer that has taken no step: all zeros, which as numpy's take no memory yet
    opt_shapes = jax.eval_shape(optimizer(imported.config).init, shapes)
    opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), opt_shapes)
    state = training.TrainState(jnp.int32(imported.step), params, ema, opt_state)
    meta = {
        "step": imported.step,
        "config": dataclasses.asdict(imported.config),
        "image": imported.image,
        "origin": imported.origin,
        "versions": {"ddpm_jax": ddpm_jax.__version__, "jax": jax.__version__},
    }
    with process.atomic_folder(workdir) as part:
        (part / "config.json").write_text(configs.to_json(imported.config), encoding="utf-8")
        (part / "samples").mkdir()
        with checkpoint.Checkpoints(part / "checkpoints", keep=imported.config.keep) as saved:
            saved.save(imported.step, state, json.loads(json.dumps(meta)))
    return sum(leaf.size for leaf in jax.tree.leaves(params))
