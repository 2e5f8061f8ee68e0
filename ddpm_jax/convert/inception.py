"""The weights of Inception-v3 from torch-fidelity's file."""

import pathlib
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from ddpm_jax.convert import tensor_files
from ddpm_jax.convert.rules import Rule, apply, from_torch, identity
from ddpm_jax.metrics.inception import Inception

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


def read_weights(path: pathlib.Path) -> dict[str, Any]:
    """The variables of `metrics.inception.Inception` from torch-fidelity's file, or from another of the same tensors.

    Args:
        path: any file of `tensor_files.read_tensors`.

    Raises:
        FileNotFoundError: if there is none, with the file to download and the place for it.
        ValueError: if it is damaged, or holds the weights of another network.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there are no Inception weights {path}: download {URL} (96 MB; its SHA-256 begins with 6726825d) to "
            f"{path}, or name its place by --inception-weights"
        )
    target: Any = jax.eval_shape(Inception().init, jax.random.key(0), np.zeros((1, 1, 1, 3), np.uint8))
    # counters of training, and a bias that the Inception score leaves out
    unused = [".num_batches_tracked", "fc.bias"]
    tensors = tensor_files.read_tensors(path)
    used = {name: tensor for name, tensor in tensors.items() if not name.endswith(tuple(unused))}
    try:
        return apply([_rule(leaf, shape) for leaf, shape in flatten_dict(target).items()], used, target)
    except ValueError as error:
        details = f"{str(error)[:500]} ..."  # of another network, hundreds of tensors
        raise ValueError(f"{path}: these are not torch-fidelity's weights of Inception-v3: {details}") from error


def _rule(leaf: tuple[str, ...], shape: Any) -> Rule:
    module = ".".join(leaf[1:-1])
    if leaf[0] == "batch_stats":
        return identity(leaf, f"{module}.running_{leaf[-1]}")
    rule = from_torch(leaf, shape, module)
    assert rule is not None
    return rule
