"""Tensor files, read without executing their content."""

import glob
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ddpm_jax import process
from ddpm_jax.convert import torch_files

NPZ_RECIPE = (
    "numpy.savez('weights.npz', **{name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})"
)
"""Code that makes an .npz archive of `reader = tensorflow.train.load_checkpoint(PREFIX)`."""


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a file, by name: .safetensors, .npz, PyTorch's .bin, .pt, .pth, .ckpt, or TensorFlow's .ckpt-STEP.

    Nothing in it is executed: safetensors and TensorFlow's checkpoints hold no code, arrays of objects are refused, and
    of PyTorch's pickles only what makes tensors is read.  TensorFlow's checkpoints take TensorFlow.

    Args:
        path: of a TensorFlow checkpoint the name that its files have in common, or one of them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is damaged, of another kind, or holds something other than named tensors.
        ModuleNotFoundError: if it takes TensorFlow, which is not there.
    """
    from safetensors.numpy import load_file

    suffix, first_file = path.suffix, checkpoint_files(path)[0]
    if not first_file.is_file():
        raise FileNotFoundError(f"there is no file {first_file}")
    readers: dict[str, Callable[[pathlib.Path], Any]] = {".safetensors": load_file, ".npz": _npz}
    readers |= dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), _torch)
    reader = readers.get(suffix) if _tensorflow_prefix(path) is None else _tensorflow
    if reader is None:
        raise ValueError(
            f"{path}: tensors are read from {', '.join(readers)} and TensorFlow's checkpoints, not from "
            f"{suffix or 'a file without a suffix'}"
        )
    try:
        return reader(path)
    except (MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # a damaged archive can fail in any way
        raise ValueError(
            f"{path} cannot be read, it is damaged or of another kind: {process.first_line(error)}"
        ) from error


def checkpoint_files(path: pathlib.Path) -> list[pathlib.Path]:
    """The files that `read_tensors` reads: the one of this name, or a TensorFlow checkpoint's index and its data."""
    prefix = _tensorflow_prefix(path)
    if prefix is None:
        return [path]
    return [path.with_name(f"{prefix}.index"), *sorted(path.parent.glob(f"{glob.escape(prefix)}.data-*"))]


def safetensors_metadata(path: pathlib.Path) -> dict[str, str]:
    """The metadata of a .safetensors file; {} of another kind of file."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # of what JSON nests too deeply
        raise ValueError(f"{path} is not JSON, or damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold an object with fields, got {str(values)[:60]}")
    return values


def file_digest(path: pathlib.Path) -> dict[str, Any]:
    """A file's length in bytes and its sha256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def write_safetensors(path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes tensors and metadata, the same bytes for the same content."""
    from safetensors.numpy import save

    # not its save_file, whose files nobody else may read
    path.write_bytes(save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}, dict(metadata)))


def write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Writes an object as indented JSON."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:  # numpy leaves it open where it fails
        stored = np.load(file, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise ValueError("it holds one array without a name")
        arrays = {name: stored[name] for name in stored.files}
    not_arrays = [name for name, held in arrays.items() if not isinstance(held, np.ndarray)]
    if not_arrays:  # which numpy gives as bytes
        raise ValueError(f"{not_arrays[0]} is no array")
    return arrays


def _tensorflow_prefix(path: pathlib.Path) -> str | None:
    """The common name of a TensorFlow checkpoint's files, such as model.ckpt-790000; None for other files."""
    found = re.fullmatch(r"(.+?)(\.index|\.meta|\.data-\d+-of-\d+)?", path.name)
    return found[1] if found and (found[2] or re.search(r"\.ckpt-\d+$", found[1])) else None


def _tensorflow(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import tensorflow  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
    except ModuleNotFoundError as error:
        hint = f"pip install 'ddpm-jax[tfds]'; or make an archive in another environment, {NPZ_RECIPE}"
        raise ModuleNotFoundError(f"{path} is TensorFlow's and takes TensorFlow to read: {hint}") from error
    reader = tensorflow.train.load_checkpoint(str(path.with_name(_tensorflow_prefix(path) or path.name)))
    return {name: np.asarray(reader.get_tensor(name)) for name in sorted(reader.get_variable_to_shape_map())}


def _torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    loaded = torch_files.load(path)
    is_dict = isinstance(loaded, Mapping)
    if not is_dict or not all(isinstance(value, np.ndarray) for value in loaded.values()):
        inside = f"dict of {', '.join(map(str, list(loaded)[:5]))}" if is_dict else type(loaded).__name__
        raise ValueError(f"expected named tensors, and it holds a {inside}: save the part that is the network's alone")
    return {str(name): np.asarray(tensor, order="C") for name, tensor in loaded.items()}
