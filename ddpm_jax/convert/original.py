"""The original's weights: its TensorFlow variables, and their PyTorch conversion.

Neither defines the network: that is a config of ours, such as `configs/cifar10.py`, and its names are checked.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from ddpm_jax.convert.rules import Path, Rule, from_torch, identity

EMA_SUFFIX = "/ExponentialMovingAverage"
"""TensorFlow's suffix for the moving average of a variable."""

_OPTIMIZER_VARIABLES = re.compile(r"global_step|beta[12]_power|.*/(Adam|Adam_1|Momentum|RMSProp|RMSProp_1)")
"""Names of the optimizer's variables."""

_CONV1X1 = ("q", "k", "v", "proj_out", "nin_shortcut")


class OriginalWeights(NamedTuple):
    """The weights of a file."""

    raw: Mapping[str, np.ndarray]  # tensors by name: the parameters as training left them, or the only ones
    ema: Mapping[str, np.ndarray] | None  # their average, if the file has both
    step: int  # of training; 0 if it is not in the file
    unused: tuple[str, ...]  # names of the optimizer's variables
    rules: Callable[[Any], list[Rule]]  # of our tree of parameters


def from_tensors(tensors: Mapping[str, np.ndarray]) -> OriginalWeights:
    """The weights in TensorFlow's tensors (`model/conv_in/W`, ...) or PyTorch's (`down.0.block.0.conv1.weight`, ...).

    Raises:
        ValueError: if their names are of neither.
    """
    if any(name.startswith("model/") for name in tensors):
        named = {name.removesuffix(":0"): tensor for name, tensor in tensors.items()}
        unused = tuple(name for name in named if _OPTIMIZER_VARIABLES.fullmatch(name))
        ema = {name.removesuffix(EMA_SUFFIX): tensor for name, tensor in named.items() if name.endswith(EMA_SUFFIX)}
        raw = {name: t for name, t in named.items() if name not in unused and not name.endswith(EMA_SUFFIX)}
        step = int(named["global_step"]) if "global_step" in named and named["global_step"].shape == () else 0
        return OriginalWeights(raw or ema, ema if raw and ema else None, step, unused, tensorflow_rules)
    if any(name.removeprefix("module.").startswith("down.0.") for name in tensors):
        parallel = all(name.startswith("module.") for name in tensors)  # as PyTorch's DataParallel has them
        named = {name.removeprefix("module.") if parallel else name: tensor for name, tensor in tensors.items()}
        return OriginalWeights(named, None, 0, (), torch_rules)
    raise ValueError(
        f"these are not the original's weights, nor PyTorch's conversion of them: they have no model/conv_in/W and no "
        f"down.0.block.0.conv1.weight, but {', '.join(list(tensors)[:3]) or 'nothing'}"
    )


def tensorflow_rules(target: Any) -> list[Rule]:
    """Our leaf down_0/block_0/conv1/kernel is the variable model/down_0/block_0/conv1/W, and so on: none is turned."""
    leaves = flatten_dict(target)

    def variable(path: Path) -> str | None:
        normalisation = (*path[:-1], "scale") in leaves
        names = {"kernel": "W", "scale": "gamma", "bias": "beta" if normalisation else "b"}
        return "/".join(("model", *path[:-1], names[path[-1]])) if path[-1] in names else None

    return [identity(path, name) for path in leaves if (name := variable(path))]


def torch_rules(target: Any) -> list[Rule]:
    """Our leaf down_0/block_0/conv1/kernel is the tensor down.0.block.0.conv1.weight, and so on."""
    rules = []
    for path, leaf in flatten_dict(target).items():
        module = ".".join(path[:-1])
        if path[0] != "mid":  # whose modules are numbered by name
            module = re.sub(r"(down|up|block|attn|dense)_?(\d+)", r"\1.\2", module)
        rules.append(from_torch(path, leaf, module, conv1x1=path[-2] in _CONV1X1))
    return [rule for rule in rules if rule]
