"""A run that begins from another run's parameters: fine-tuning."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from ddpm_jax import config as configs
from ddpm_jax import training
from ddpm_jax.config.flags import InitFrom
from ddpm_jax.model import Model
from ddpm_jax.pipeline.pipeline import Pipeline
from ddpm_jax.trainer.step import init_params, init_state

PROVENANCE_KEYS = ("begun_from", "origin")
"""What checkpoints say of where the first parameters came from, as long as the run goes on."""

_MAY_DIFFER = ("attention_resolutions", "attention_by", "dropout", "dtype", "remat", "num_classes")
"""Fields of a network that change neither what its parameters mean nor, where those fit, whose they are."""

_REINITIALISED = ("conv_in", "conv_out", "patch_in", "patch_out", "label")
"""Modules whose parameters are made anew where images have other channels, or labels are others."""

_CONDITION_MODULES = ("label", "pooled", "text")
"""Modules that a network with more conditions adds; they, and cross_0, cross_1, ..., start with no effect."""


class TransferredParams(NamedTuple):
    """Parameters that are partly another run's."""

    params: Any  # a tree like our own
    reinitialised: dict[str, str]  # the modules that are not the other run's, and why
    num_transferred: int  # how many leaves are


def init_from_run(model: Model, key: Any, options: InitFrom) -> tuple[training.TrainState, dict[str, Any]]:
    """The state before the first step, with another run's parameters, and what a checkpoint keeps of that.

    Optimizer and average start afresh.  What was taken and what was not is printed.

    Raises:
        FileNotFoundError: if there is no such run or checkpoint.
        ValueError: naming what of the other network does not fit, and what would be right.
    """
    source = Pipeline(str(options.init_from), step=options.init_checkpoint, weights=options.init_weights, sampling={})
    _check_compatible(source, model.config, model.shape)
    transferred = transfer_params(init_params(model, key), source.params, _attention_hint(source))
    parts = ("schedule.", "loss.", "net.", "text.", "condition.")
    other = [line for line in configs.differences(source.config, model.config) if line.startswith(parts)]
    record = {
        "run": os.path.abspath(source.workdir),
        "step": source.step,
        "weights": source.weights,
        "fingerprint": source.fingerprint,
        "image": list(source.shape),
        "renewed": transferred.reinitialised,
        "otherwise": other,
        "origin": source.origin,
    }
    print(
        f"begun     from {source.workdir}, step {source.step}, {source.weights} weights: "
        f"{transferred.num_transferred} arrays transferred"
    )
    for name, why in transferred.reinitialised.items():
        print(f"          reinitialised: {name}, {why}")
    if not transferred.reinitialised:
        print("          nothing is reinitialised")
    for line in other:
        print(f"          different: {line}")
    return init_state(model, transferred.params), {"begun_from": record}


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """True if a run's folder has anything named like a checkpoint."""
    return any((workdir / "checkpoints").glob("[0-9]*"))


def provenance(meta: Mapping[str, Any], options: InitFrom, workdir: Any) -> dict[str, Any]:
    """The record of where a continued run's first parameters came from.

    Raises:
        ValueError: if it began from something other than what is asked for now.
    """
    begun = meta.get("begun_from")
    if options.init_from is not None and (begun is None or begun["run"] != os.path.abspath(options.init_from)):
        began = "from no other run" if begun is None else f"from {begun['run']}"
        raise ValueError(
            f"--init-from {options.init_from}: {workdir} already has checkpoints and began {began}: give a new "
            "folder, or leave the flag out to continue"
        )
    return {name: meta[name] for name in PROVENANCE_KEYS if name in meta}


def transfer_params(fresh: Any, source: Any, hint: str = "") -> TransferredParams:
    """Our own parameters with those of another network in their place, wherever these fit.

    Raises:
        ValueError: naming every leaf that does not fit, or that one of the two lacks, but for those of modules that may
            be made anew: the first and last layer, and what tells the network labels, texts or a context.
    """
    ours: dict[str, Any] = traverse_util.flatten_dict(fresh, sep="/")
    others: dict[str, Any] = traverse_util.flatten_dict(source, sep="/")
    reinitialised: dict[str, str] = {}
    wrong = [f"{path} {np.shape(leaf)} is there alone" for path, leaf in others.items() if path not in ours]
    for path, leaf in ours.items():
        module = _module_of(path)
        if path not in others and (module in _CONDITION_MODULES or "/" in module):
            reinitialised[module] = "which is not there"
        elif path not in others:
            wrong.append(f"{path} {leaf.shape} is here alone")
        elif leaf.shape != others[path].shape and module in _REINITIALISED:
            reinitialised.setdefault(module, f"{others[path].shape} there and {leaf.shape} here")
        elif leaf.shape != others[path].shape:
            wrong.append(f"{path} is {others[path].shape} there and {leaf.shape} here")
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"the other network does not fit: {'; '.join(wrong[:8])}{more}{hint}")
    taken = {path: others[path].astype(x.dtype) for path, x in ours.items() if _module_of(path) not in reinitialised}
    return TransferredParams(traverse_util.unflatten_dict(ours | taken, sep="/"), reinitialised, len(taken))


def _check_compatible(source: Pipeline, config: configs.Config, shape: tuple[int, ...]) -> None:
    """Raises a ValueError that names the options in which the two networks must be the same and are not."""
    ours, others = configs.flatten(config.net), configs.flatten(source.config.net)
    compared = [name for name in ours if name not in _MAY_DIFFER] if ours["kind"] == others["kind"] else ["kind"]
    wrong = [f"net.{n} is {others[n]!r} there and {ours[n]!r} here" for n in compared if others[n] != ours[n]]
    if len(source.shape) != len(shape):
        wrong.append(f"images have shape {source.shape} there and {shape} here")
    if wrong:
        raise ValueError(f"--init-from {source.workdir}: {'; '.join(wrong)}. Networks must have the same options")


def _attention_hint(source: Pipeline) -> str:
    """A hint: the flags by which a U-Net for images of any shape attends at the other network's levels."""
    net, side = source.config.net, min(source.shape[:-1])
    if net.kind != "unet":
        return ""
    factors = [2**i for i in range(len(net.channel_multipliers))]
    attended = [f for f in factors if (side // f if net.attention_by == "size" else f) in net.attention_resolutions]
    if not attended:
        return ". The other network attends in its middle alone, which is --net.attention-resolutions 0"
    factors_text = " ".join(map(str, attended))
    flags = f"--net.attention-by factor --net.attention-resolutions {factors_text}"
    return f". The other network attends where the image is smaller by {factors_text}: {flags}"


def _module_of(path: str) -> str:
    """The module that is reinitialised as one: a module of the network, or an attention to a context within a level."""
    top, *rest = path.split("/")
    return f"{top}/{rest[0]}" if rest and rest[0].startswith("cross_") else top
