"""What the tensors of another program's file are in ours: rules, and how they are applied and inverted.

A format is a module with `rules(config) -> list[Rule]`.  Every tensor of the source belongs to one rule and every leaf
of our parameters to one rule, so nothing is left over on either side and every conversion can be undone.
"""

import collections
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Path = tuple[str, ...]
Tensors = Mapping[str, np.ndarray]


class Rule(NamedTuple):
    """Leaves of ours that tensors of the source make, and the way back.

    Most are one and one (see `same`, `dense`, `conv`, `pointwise`).  Several leaves come of one tensor where the source
    keeps queries, keys and values in one.

    Attributes:
        paths: of our leaves, each the keys from the top of the tree, such as ("mid", "attn_1", "q", "bias").
        names: of the source's tensors.
        take: (*tensors) -> the leaves, in the order of `paths`.
        give: (*leaves) -> the tensors, in the order of `names`: the inverse of `take`.  Both only move numbers about.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    take: Callable[..., tuple[np.ndarray, ...]]
    give: Callable[..., tuple[np.ndarray, ...]]


def same(path: Path, name: str) -> Rule:
    """The tensor as it is: biases, and the scales of normalisations."""
    return Rule((path,), (name,), lambda tensor: (tensor,), lambda leaf: (leaf,))


def dense(path: Path, name: str) -> Rule:
    """A matrix [out, in], as PyTorch's Linear has it, as ours [in, out]."""
    return Rule((path,), (name,), lambda tensor: (tensor.T,), lambda leaf: (leaf.T,))


def conv(path: Path, name: str) -> Rule:
    """A convolution's kernel [out, in, ...sides], as PyTorch has it, as ours [...sides, in, out]."""

    def take(tensor):
        return (np.moveaxis(tensor, (0, 1), (-1, -2)),)

    def give(leaf):
        return (np.moveaxis(leaf, (-1, -2), (0, 1)),)

    return Rule((path,), (name,), take, give)


def pointwise(path: Path, name: str, axes: int) -> Rule:
    """A convolution of 1 along each of `axes` sides, [out, in, 1, ...], as our matrix [in, out]."""

    def take(tensor):
        return (tensor.reshape(tensor.shape[:2]).T,)

    def give(leaf):
        return (leaf.T.reshape(*leaf.shape[::-1], *(1,) * axes),)

    return Rule((path,), (name,), take, give)


def labels(path: Path, name: str) -> Rule:
    """A table of labels, which there has no row for none: here it is 0, as if none were added to the time."""

    def give(leaf):
        if np.any(leaf[-1]):
            raise ValueError(
                f"{'/'.join(path)}: the row of no label is not 0, and {name} has none: networks that were trained "
                "without their labels at times (condition.drop) cannot be had there"
            )
        return (leaf[:-1],)

    return Rule((path,), (name,), lambda tensor: (np.concatenate([tensor, np.zeros_like(tensor[:1])]),), give)


def from_torch(path: Path, leaf: Any, module: str, *, pixels: bool = False) -> Rule | None:
    """The rule for one leaf of ours that is a PyTorch module's: its `weight` or its `bias`; None for other leaves.

    Args:
        leaf: what has the shape of ours.
        module: the dotted name of PyTorch's.
        pixels: a matrix of ours is a convolution of 1 there, of images, and not a Linear.
    """
    if path[-1] in ("bias", "scale"):
        return same(path, f"{module}.bias" if path[-1] == "bias" else f"{module}.weight")
    if path[-1] != "kernel":
        return None
    if len(leaf.shape) > 2:
        return conv(path, f"{module}.weight")
    return pointwise(path, f"{module}.weight", 2) if pixels else dense(path, f"{module}.weight")


def apply(rules: Sequence[Rule], tensors: Tensors, target: Any) -> dict[str, Any]:
    """Our parameters, a nested dict of new numpy arrays of the target's shapes and dtypes.

    Args:
        tensors: the source's, all of which must be used.
        target: our parameters' tree of arrays or `jax.ShapeDtypeStruct`s, all of which must be filled.

    Raises:
        ValueError: one, which lists by name whatever is missing, unused, of another shape, transposed by the look of
            it, not of floats, not finite, or not to be had exactly in the target's dtype.
    """
    leaves = flatten(target)
    _check_rules(rules, leaves)
    wanted = {name: shape for rule in rules for name, shape in _shapes_wanted(rule, leaves).items()}
    problems = [
        *_listed("tensors are missing", (f"{name} {shape}" for name, shape in wanted.items() if name not in tensors)),
        *_listed("tensors are unused", (f"{name} {np.shape(t)}" for name, t in tensors.items() if name not in wanted)),
        *_listed(
            "tensors have another shape",
            (_misshapen(name, tensors[name].shape, shape) for name, shape in wanted.items() if name in tensors),
        ),
        *_listed("tensors are not of floats", (_not_floats(n, tensors[n]) for n in wanted if n in tensors)),
    ]
    _raise(problems)
    filled: dict[Path, np.ndarray] = {}
    inexact = []
    for rule in rules:
        taken = rule.take(*(tensors[name] for name in rule.names))
        for path, leaf in zip(rule.paths, taken, strict=True):
            dtype = np.dtype(leaves[path].dtype)
            with np.errstate(over="ignore"):
                filled[path] = np.array(leaf, dtype, order="C")
            if not np.isfinite(leaf).all():
                inexact.append(f"{', '.join(rule.names)} holds NaN or infinity")
            elif not np.array_equal(filled[path], leaf):
                inexact.append(
                    f"{', '.join(rule.names)}, {leaf.dtype}, cannot be had exactly in {dtype}: cast it first"
                )
    _raise(_listed("tensors hold no usable numbers", dict.fromkeys(inexact)))
    return nest(filled)


def invert(rules: Sequence[Rule], params: Any) -> dict[str, np.ndarray]:
    """The source's tensors, by name, that `apply` would make these parameters of: C-ordered numpy arrays.

    Raises:
        ValueError: one, which lists by name the leaves that no rule speaks of, those that are missing, and those that
            are not finite.
    """
    leaves = flatten(params)
    _check_rules(rules, leaves)
    wrong = (f"{'/'.join(path)} holds NaN or infinity" for path, x in leaves.items() if not np.isfinite(x).all())
    _raise(_listed("leaves hold no usable numbers", wrong))
    given: dict[str, np.ndarray] = {}
    for rule in rules:
        made = rule.give(*(np.asarray(leaves[path]) for path in rule.paths))
        given.update({name: np.array(t, order="C") for name, t in zip(rule.names, made, strict=True)})
    return given


def flatten(tree: Any) -> dict[Path, Any]:
    """The leaves of a nested dict, each by the keys that lead to it."""
    found: dict[Path, Any] = {}
    for key, value in tree.items():
        below = {(): value} if not isinstance(value, Mapping) else flatten(value)
        found.update({(key, *path): leaf for path, leaf in below.items()})
    return found


def nest(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        branch = tree
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = leaf
    return tree


def _check_rules(rules: Sequence[Rule], leaves: Mapping[Path, Any]) -> None:
    paths = collections.Counter(path for rule in rules for path in rule.paths)
    names = collections.Counter(name for rule in rules for name in rule.names)
    _raise([
        *_listed("tensors have two rules", (name for name, n in names.items() if n > 1)),
        *_listed("leaves have two rules", ("/".join(path) for path, n in paths.items() if n > 1)),
        *_listed("leaves of ours have no rule in this format", ("/".join(p) for p in leaves if p not in paths)),
        *_listed("rules name leaves that the network does not have", ("/".join(p) for p in paths if p not in leaves)),
    ])  # fmt: skip


def _shapes_wanted(rule: Rule, leaves: Mapping[Path, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each of the rule's tensors, by name, from those of its leaves."""
    # one zero, repeated, has the shape and takes no memory
    zeros = (np.broadcast_to(np.zeros((), np.float32), leaves[path].shape) for path in rule.paths)
    return {name: np.shape(t) for name, t in zip(rule.names, rule.give(*zeros), strict=True)}


def _misshapen(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str | None:
    if shape == wanted:
        return None
    turned = sorted(shape) == sorted(wanted)
    hint = (
        ", which looks transposed"
        if turned
        else ", of as many numbers"
        if math.prod(shape) == math.prod(wanted)
        else ""
    )
    return f"{name} {shape} where {wanted} is right{hint}"


def _not_floats(name: str, tensor: np.ndarray) -> str | None:
    # the narrow floats that numpy does not know itself are of kind V
    floating = tensor.dtype.kind == "f" or tensor.dtype.name.startswith(("bfloat", "float"))
    return None if floating else f"{name} is {tensor.dtype}"


def _listed(what: str, found: Iterable[str | None]) -> list[str]:
    said = [one for one in found if one]
    return [f"{len(said)} {what}: {'; '.join(said)}"] if said else []


def _raise(problems: list[str]) -> None:
    if problems:
        raise ValueError("the weights do not fit.\n  " + "\n  ".join(problems))
