"""Rules that map the tensors of another format to our parameters, with their application and inverse.

A format is a module with `rules(config) -> list[Rule]`.  Every tensor of the source belongs to one rule and every leaf
of our parameters to one rule, so nothing is left over on either side and every conversion can be undone.
"""

import collections
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Path = tuple[str, ...]
Tensors = Mapping[str, np.ndarray]


class Rule(NamedTuple):
    """A map between leaves of our parameters and tensors of the source, in both directions.

    Most map one to one (see `identity`, `dense`, `conv`, `pointwise`).  Several leaves come from one tensor where the
    source keeps queries, keys and values in one.  The maps only rearrange numbers.
    """

    paths: tuple[Path, ...]  # of our leaves, each the keys from the top of the tree: ("mid", "attn_1", "q", "bias")
    names: tuple[str, ...]  # of the source's tensors
    to_ours: Callable[..., tuple[np.ndarray, ...]]  # (*tensors) -> the leaves, in the order of `paths`
    to_theirs: Callable[..., tuple[np.ndarray, ...]]  # (*leaves) -> the tensors, in the order of `names`


def identity(path: Path, name: str) -> Rule:
    """The unchanged tensor: biases, and the scales of normalisations."""
    return Rule((path,), (name,), lambda tensor: (tensor,), lambda leaf: (leaf,))


def dense(path: Path, name: str) -> Rule:
    """A matrix [out, in], as PyTorch's Linear has it, as ours [in, out]."""
    return Rule((path,), (name,), lambda tensor: (tensor.T,), lambda leaf: (leaf.T,))


def conv(path: Path, name: str) -> Rule:
    """A convolution's kernel [out, in, ...sides], as PyTorch has it, as ours [...sides, in, out]."""

    def to_ours(tensor):
        return (np.moveaxis(tensor, (0, 1), (-1, -2)),)

    def to_theirs(leaf):
        return (np.moveaxis(leaf, (-1, -2), (0, 1)),)

    return Rule((path,), (name,), to_ours, to_theirs)


def pointwise(path: Path, name: str, axes: int) -> Rule:
    """A convolution of 1 along each of `axes` sides, [out, in, 1, ...], as our matrix [in, out]."""

    def to_ours(tensor):
        return (tensor.reshape(tensor.shape[:2]).T,)

    def to_theirs(leaf):
        return (leaf.T.reshape(*leaf.shape[::-1], *(1,) * axes),)

    return Rule((path,), (name,), to_ours, to_theirs)


def label_embedding(path: Path, name: str) -> Rule:
    """A table of label embeddings without a row for no label: ours is 0, adding nothing to the time embedding."""

    def to_theirs(leaf):
        if np.any(leaf[-1]):
            raise ValueError(
                f"{'/'.join(path)}: the row of no label is not 0, and {name} has none: networks that were trained "
                "without their labels at times (condition.dropout) cannot be expressed there"
            )
        return (leaf[:-1],)

    return Rule((path,), (name,), lambda tensor: (np.concatenate([tensor, np.zeros_like(tensor[:1])]),), to_theirs)


def from_torch(path: Path, leaf: Any, module: str, *, conv1x1: bool = False) -> Rule | None:
    """The rule for one leaf of ours that is a PyTorch module's: its `weight` or its `bias`; None for other leaves.

    Args:
        leaf: our array, or its shape.
        module: the dotted name of PyTorch's module.
        conv1x1: whether our matrix is a 1x1 convolution there instead of a Linear.
    """
    if path[-1] in ("bias", "scale"):
        return identity(path, f"{module}.bias" if path[-1] == "bias" else f"{module}.weight")
    if path[-1] != "kernel":
        return None
    if len(leaf.shape) > 2:
        return conv(path, f"{module}.weight")
    return pointwise(path, f"{module}.weight", 2) if conv1x1 else dense(path, f"{module}.weight")


def apply(rules: Sequence[Rule], tensors: Tensors, target: Any) -> dict[str, Any]:
    """Our parameters, a nested dict of new numpy arrays of the target's shapes and dtypes.

    Args:
        tensors: the source's, all of which must be used.
        target: our parameters' tree of arrays or `jax.ShapeDtypeStruct`s, all of which must be filled.

    Raises:
        ValueError: one, which lists by name all tensors that are missing, unused, of another shape, apparently
            transposed, not of floats, not finite, or not exact in the target's dtype.
    """
    leaves: dict[Path, Any] = flatten_dict(target)
    _check_rules(rules, leaves)
    expected = {name: shape for rule in rules for name, shape in _expected_shapes(rule, leaves).items()}
    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in tensors]
    unused = [f"{name} {np.shape(t)}" for name, t in tensors.items() if name not in expected]
    present = [name for name in expected if name in tensors]
    _raise_if_any([
        *_summary("tensors are missing", missing),
        *_summary("tensors are unused", unused),
        *_summary("tensors have another shape", (_shape_error(n, tensors[n].shape, expected[n]) for n in present)),
        *_summary("tensors are not of floats", (_dtype_error(n, tensors[n]) for n in present)),
    ])  # fmt: skip
    filled: dict[Path, np.ndarray] = {}
    inexact = []
    for rule in rules:
        ours = rule.to_ours(*(tensors[name] for name in rule.names))
        for path, leaf in zip(rule.paths, ours, strict=True):
            dtype = np.dtype(leaves[path].dtype)
            with np.errstate(over="ignore"):
                filled[path] = np.array(leaf, dtype, order="C")
            if not np.isfinite(leaf).all():
                inexact.append(f"{', '.join(rule.names)} holds NaN or infinity")
            elif not np.array_equal(filled[path], leaf):
                inexact.append(f"{', '.join(rule.names)}, {leaf.dtype}, is not exact in {dtype}: cast it first")
    _raise_if_any(_summary("tensors hold no usable numbers", dict.fromkeys(inexact)))
    return unflatten_dict(filled)


def invert(rules: Sequence[Rule], params: Any) -> dict[str, np.ndarray]:
    """The source's tensors by name, the inverse of `apply`: C-ordered numpy arrays.

    Raises:
        ValueError: one, which lists by name the leaves without a rule, those that are missing, and those that
            are not finite.
    """
    leaves: dict[Path, Any] = flatten_dict(params)
    _check_rules(rules, leaves)
    not_finite = (f"{'/'.join(path)} holds NaN or infinity" for path, x in leaves.items() if not np.isfinite(x).all())
    _raise_if_any(_summary("leaves hold no usable numbers", not_finite))
    tensors: dict[str, np.ndarray] = {}
    for rule in rules:
        theirs = rule.to_theirs(*(np.asarray(leaves[path]) for path in rule.paths))
        tensors.update({name: np.array(t, order="C") for name, t in zip(rule.names, theirs, strict=True)})
    return tensors


def _check_rules(rules: Sequence[Rule], leaves: Mapping[Path, Any]) -> None:
    paths = collections.Counter(path for rule in rules for path in rule.paths)
    names = collections.Counter(name for rule in rules for name in rule.names)
    _raise_if_any([
        *_summary("tensors have two rules", (name for name, n in names.items() if n > 1)),
        *_summary("leaves have two rules", ("/".join(path) for path, n in paths.items() if n > 1)),
        *_summary("leaves of ours have no rule in this format", ("/".join(p) for p in leaves if p not in paths)),
        *_summary("rules name leaves that the network does not have", ("/".join(p) for p in paths if p not in leaves)),
    ])  # fmt: skip


def _expected_shapes(rule: Rule, leaves: Mapping[Path, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each of the rule's tensors, by name, from those of its leaves."""
    # one zero, repeated, has the shape and takes no memory
    zeros = (np.broadcast_to(np.zeros((), np.float32), leaves[path].shape) for path in rule.paths)
    return {name: np.shape(t) for name, t in zip(rule.names, rule.to_theirs(*zeros), strict=True)}


def _shape_error(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> str | None:
    if shape == expected:
        return None
    hint = ", of as many numbers" if math.prod(shape) == math.prod(expected) else ""
    hint = ", which looks transposed" if sorted(shape) == sorted(expected) else hint
    return f"{name} {shape} where {expected} is right{hint}"


def _dtype_error(name: str, tensor: np.ndarray) -> str | None:
    # the narrow floats that numpy does not know itself are of kind V
    floating = tensor.dtype.kind == "f" or tensor.dtype.name.startswith(("bfloat", "float"))
    return None if floating else f"{name} is {tensor.dtype}"


def _summary(what: str, items: Iterable[str | None]) -> list[str]:
    listed = [one for one in items if one]
    return [f"{len(listed)} {what}: {'; '.join(listed)}"] if listed else []


def _raise_if_any(problems: list[str]) -> None:
    if problems:
        raise ValueError("the weights do not fit.\n  " + "\n  ".join(problems))
