"""The record of a checkpoint: its parts, shape and dtype of every array, and a fingerprint of every part."""

import hashlib
import json
import operator
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

_MAX_SHOWN = 5  # how many differing paths an error lists


def fingerprint(tree: Any) -> str:
    """The SHA-256, as "sha256:...", of path, dtype, shape and bytes of every array of a tree, in the order of paths.

    Raises:
        ValueError: if a leaf is not an array of numbers with at least one element.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(named_leaves(tree), key=operator.itemgetter(0)):
        digest.update(f"{path} {_describe(leaf)}\n".encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return f"sha256:{digest.hexdigest()}"


def named_parts(state: Any) -> dict[str, Any]:
    """The named parts of a state, a NamedTuple or a dict."""
    parts = state._asdict() if hasattr(state, "_asdict") else state
    if not isinstance(parts, Mapping) or not all(isinstance(name, str) for name in parts):
        raise ValueError(f"a state must be a NamedTuple or a dict of named parts, got {type(state).__name__}")
    odd = [name for name in parts if name == "meta" or not re.fullmatch(r"[A-Za-z]\w*", name)]
    if odd:
        raise ValueError(f"a part of a state must have the name of a variable other than 'meta', got {odd[0]!r}")
    return dict(parts)


def named_leaves(tree: Any, name: str = "") -> list[tuple[str, Any]]:
    """The leaves of a tree in its own order, each with its path below `name`; they must be arrays of numbers."""
    leaves = []
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: leaf is None)[0]:
        path = "/".join(filter(None, [name, jax.tree_util.keystr(keys, simple=True, separator="/")]))
        array_like = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic | int | float)
        if array_like and jax.numpy.issubdtype(dtype_of(leaf), jax.dtypes.prng_key):
            raise ValueError(f"{path} is a PRNG key: keep the seed instead, or jax.random.key_data of the key")
        if not array_like or dtype_of(leaf).kind in "OSUMm":
            raise ValueError(f"{path or 'a tree'} must be an array of numbers, got {type(leaf).__name__}")
        shape = getattr(leaf, "shape", ())
        if 0 in shape:
            raise ValueError(f"{path or 'a tree'} has no elements, shape {shape}: orbax cannot store it")
        leaves.append((path, leaf))
    return leaves


def dtype_of(leaf: Any) -> Any:
    """The dtype of an array or a number."""
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def _describe(leaf: Any) -> str:
    return f"{np.shape(leaf)} {dtype_of(leaf).name}"


def layout(tree: Any, name: str) -> dict[str, str]:
    """Shape and dtype of every array of a tree, by path."""
    return {path: _describe(leaf) for path, leaf in named_leaves(tree, name)}


def to_host(part: Any, name: str) -> Any:
    """The part as numpy copies.

    A numpy view of an array on the CPU would keep its buffer from being donated, and orbax refuses one host's jax
    arrays when there are several hosts.
    """
    for path, leaf in named_leaves(part, name):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_replicated or leaf.is_fully_addressable):
            raise ValueError(f"{path} is spread over several hosts, sharding {leaf.sharding}: gather it first")
    one = jax.tree.map(lambda leaf: leaf.addressable_data(0) if _replicated(leaf) else leaf, part)
    for leaf in filter(_replicated, jax.tree.leaves(one)):
        leaf.copy_to_host_async()
    return jax.tree.map(np.array, one)


def _replicated(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and leaf.is_fully_replicated


def make_record(parts: dict[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON record of a checkpoint, with a digest of itself."""
    if "fingerprint" in meta:
        raise ValueError("meta must not have the name 'fingerprint': it is added on saving")
    described = {name: {"fingerprint": fingerprint(part), "arrays": layout(part, name)} for name, part in parts.items()}
    try:
        record = json.loads(json.dumps({"meta": dict(meta), "parts": described}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"meta must have JSON values: {error}") from error
    return record | {"sha256": json_digest(record)}


def json_digest(record: dict[str, Any]) -> str:
    """The SHA-256 of a record as JSON."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def public_meta(record: dict[str, Any]) -> dict[str, Any]:
    """The values saved with a checkpoint, and the fingerprint of every part."""
    prints = {name: part["fingerprint"] for name, part in record["parts"].items()}
    return record["meta"] | {"fingerprint": prints}


def check_layout(stored: dict[str, Any], expected: dict[str, dict[str, str]], step: int) -> None:
    """Raises a ValueError, naming the first paths, if shapes or dtypes of a checkpoint are not the expected ones."""
    has = {path: d for part in stored.values() for path, d in part["arrays"].items()}
    wants = {path: d for part in expected.values() for path, d in part.items()}
    paths = [path for path in {**wants, **has} if has.get(path) != wants.get(path)]
    lines = [
        f"{path}: the checkpoint has {has.get(path, 'nothing')}, the configuration wants {wants.get(path, 'nothing')}"
        for path in paths
    ]
    if lines:
        more = f"; and {len(lines) - _MAX_SHOWN} more" if len(lines) > _MAX_SHOWN else ""
        raise ValueError(f"checkpoint {step} does not fit the configuration. " + "; ".join(lines[:_MAX_SHOWN]) + more)
