"""A run that begins from another run's parameters: fine-tuning."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import config as configs
from ddpm_jax import training
from ddpm_jax.config import objects
from ddpm_jax.config.flags import Begin
from ddpm_jax.runs.model import Model

KEPT = ("begun_from", "origin")
"""What checkpoints say of where the first parameters came from, as long as the run goes on."""

_MAY_DIFFER = ("attention_at", "attention_by", "dropout", "dtype", "remat", "num_classes")
"""Fields of a network that change neither what its parameters mean nor, where those fit, whose they are."""

_RENEWED = ("conv_in", "conv_out", "label")
"""Modules whose parameters are made anew where images have other channels, or labels are others."""

_CONDITIONS = ("label", "pooled", "text")
"""Modules that a network that is told more has besides; they, and cross_0, cross_1, ... start as nothing."""


class Adopted(NamedTuple):
    """Parameters that are partly another run's.

    Attributes:
        params: a tree like our own.
        renewed: the modules that are not the other run's, and why.
        taken: how many leaves are.
    """

    params: Any
    renewed: dict[str, str]
    taken: int


def begin(
    config: configs.Config, net: Any, key: Any, shape: tuple[int, ...], which: Begin
) -> tuple[Any, dict[str, Any]]:
    """The state before the first step, with another run's parameters, and what a checkpoint keeps of that.

    Optimizer and average start afresh.  What was taken and what was not is printed.

    Raises:
        FileNotFoundError: if there is no such run or checkpoint.
        ValueError: naming what of the other network does not fit, and what would be right.
    """
    source = Model(str(which.init_from), step=which.init_checkpoint, weights=which.init_weights, sampling={})
    _check_alike(source, config, shape)
    own = jax.jit(lambda key: objects.parameters(config, net, key, shape))(key)
    adopted = adopt(own, source.params, _hint(source, shape))
    other = [
        line
        for line in configs.differences(source.config, config)
        if line.startswith(("schedule.", "loss.", "net.", "text.", "condition."))
    ]
    said = {
        "run": os.path.abspath(source.workdir),
        "step": source.step,
        "weights": source.weights,
        "fingerprint": source.fingerprint,
        "image": list(source.shape),
        "renewed": adopted.renewed,
        "otherwise": other,
        "origin": source.origin,
    }
    print(
        f"begun     from {source.workdir}, step {source.step}, {source.weights} weights: {adopted.taken} arrays are its"
    )
    for name, why in adopted.renewed.items():
        print(f"          made anew: {name}, {why}")
    if not adopted.renewed:
        print("          nothing is made anew")
    for line in other:
        print(f"          not as there: {line}")
    return training.init(adopted.params, objects.optimizer(config)), {"begun_from": said}


def under_way(workdir: pathlib.Path) -> bool:
    """Whether a run's folder has checkpoints by the look of it."""
    return any((workdir / "checkpoints").glob("[0-9]*"))


def kept(meta: Mapping[str, Any], which: Begin, workdir: Any) -> dict[str, Any]:
    """What a run that goes on keeps saying of where its first parameters came from.

    Raises:
        ValueError: if it began from something other than what is asked for now.
    """
    begun = meta.get("begun_from")
    if which.init_from is not None and (begun is None or begun["run"] != os.path.abspath(which.init_from)):
        began = "from no other run" if begun is None else f"from {begun['run']}"
        raise ValueError(
            f"--init-from {which.init_from}: {workdir} is under way and began {began}; take a new folder, or leave the "
            "flag out to go on"
        )
    return {name: meta[name] for name in KEPT if name in meta}


def adopt(own: Any, theirs: Any, hint: str = "") -> Adopted:
    """Our own parameters with those of another network in their place, wherever these fit.

    Raises:
        ValueError: naming every leaf that does not fit, or that one of the two lacks, but for those of modules that may
            be made anew: the first and last convolution, and what tells the network labels, texts or a context.
    """
    ours, others = _leaves(own), _leaves(theirs)
    renewed: dict[str, str] = {}
    wrong = [f"{path} {np.shape(leaf)} is there alone" for path, leaf in others.items() if path not in ours]
    for path, leaf in ours.items():
        module = _module(path)
        if path not in others and _tells(path):
            renewed[module] = "which is not there"
        elif path not in others:
            wrong.append(f"{path} {leaf.shape} is here alone")
        elif leaf.shape != others[path].shape and module in _RENEWED:
            renewed.setdefault(module, f"{others[path].shape} there and {leaf.shape} here")
        elif leaf.shape != others[path].shape:
            wrong.append(f"{path} is {others[path].shape} there and {leaf.shape} here")
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"the other network does not fit: {'; '.join(wrong[:8])}{more}{hint}")
    mine = [path for path in ours if _module(path) in renewed]
    taken = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: leaf if _module(_name(keys)) in renewed else others[_name(keys)].astype(leaf.dtype), own
    )
    return Adopted(taken, renewed, len(ours) - len(mine))


def _check_alike(source: Model, config: configs.Config, shape: tuple[int, ...]) -> None:
    """Raises a ValueError that names the options in which the two networks must be the same and are not."""
    pairs = [(f"net.{f.name}", getattr(source.config.net, f.name), getattr(config.net, f.name))
             for f in dataclasses.fields(config.net) if f.name not in _MAY_DIFFER]  # fmt: skip
    wrong = [f"{name} is {there!r} there and {here!r} here" for name, there, here in pairs if there != here]
    if len(source.shape) != len(shape):
        wrong.append(f"images have shape {source.shape} there and {shape} here")
    if wrong:
        raise ValueError(f"--init-from {source.workdir}: {'; '.join(wrong)}. Networks must have the same options")


def _hint(source: Model, shape: tuple[int, ...]) -> str:
    """How to say, for images of this shape, which levels of the other network attend."""
    net, side = source.config.net, min(source.shape[:-1])
    factors = [2**i for i in range(len(net.multipliers))]
    attended = [f for f in factors if (side // f if net.attention_by == "size" else f) in net.attention_at]
    if not attended:
        return ". The other network attends in its middle alone, which is --net.attention-at 0"
    said = " ".join(map(str, attended))
    flags = f"--net.attention-by factor --net.attention-at {said}"
    return f". The other network attends where the image is smaller by {said}: {flags}"


def _leaves(tree: Any) -> dict[str, Any]:
    return {_name(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _name(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _module(path: str) -> str:
    """What is made anew as one: a module of the network, or an attention to a context within a level."""
    top, *rest = path.split("/")
    return f"{top}/{rest[0]}" if rest and rest[0].startswith("cross_") else top


def _tells(path: str) -> bool:
    module = _module(path)
    return module in _CONDITIONS or "/" in module
