"""Files of tensors, read without running anything that is in them; and folders that appear whole or not at all."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_FROM_TF = """\
{path} is a TensorFlow checkpoint, which TensorFlow alone reads. Where that is installed (any version will do):
    import numpy, tensorflow
    reader = tensorflow.train.load_checkpoint("{prefix}")
    names = reader.get_variable_to_shape_map()
    numpy.savez("weights.npz", **{{name: reader.get_tensor(name) for name in names}})
and then convert weights.npz"""


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a file, by name: .safetensors, .npz, or PyTorch's .bin, .pt, .pth, .ckpt.

    Nothing in it is executed: safetensors holds no code, arrays of objects are refused, and of PyTorch's pickles only
    what makes tensors is read (`weights_only`), which takes PyTorch.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is damaged, of another kind, or holds something other than named tensors.
        ModuleNotFoundError: if it takes PyTorch, which is not there.
    """
    kind = path.suffix
    if ".ckpt-" in path.name or kind in (".index", ".meta"):
        prefix = str(path).removesuffix(".index").removesuffix(".meta").partition(".data-")[0]
        raise ValueError(_FROM_TF.format(path=path, prefix=prefix))
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    readers = {".safetensors": _safetensors, ".npz": _npz}
    readers |= dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), _pickled)
    if kind not in readers:
        raise ValueError(
            f"{path}: tensors are read from {', '.join(readers)}, not from {kind or 'a file without a suffix'}"
        )
    try:
        return readers[kind](path)
    except (MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # a damaged archive can fail in any way
        raise ValueError(f"{path} cannot be read, it is damaged or of another kind: {_first_line(error)}") from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # of what JSON nests too deeply
        raise ValueError(f"{path} is not JSON, or damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object with fields, got {str(found)[:60]}")
    return found


def fingerprint(path: pathlib.Path) -> dict[str, Any]:
    """What names a file's content: its length in bytes and its sha256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def shapes(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Shape and dtype of each tensor, in words."""
    return {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in sorted(tensors.items())}


def write_safetensors(path: pathlib.Path, tensors: Mapping[str, np.ndarray], said: Mapping[str, str]) -> None:
    """Writes tensors with what is said of them, the same bytes for the same content."""
    from safetensors.numpy import save

    # not its save_file, whose files nobody else may read
    path.write_bytes(save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}, dict(said)))


def write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Writes an object as a person would like to read it."""
    path.write_text(json.dumps(values, indent=2) + "\n")


@contextlib.contextmanager
def appearing(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill, which gets its name when all went well and is removed when not.

    Raises:
        ValueError: on entering, if there is something of that name other than an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already: take a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")  # beside it, where a new name is all that it takes
    part.mkdir()
    try:
        yield part
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def _npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:  # numpy leaves it open where it fails
        stored = np.load(file, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise ValueError("it holds one array without a name")
        found = {name: stored[name] for name in stored.files}
    odd = [name for name, held in found.items() if not isinstance(held, np.ndarray)]
    if odd:  # which numpy gives as bytes
        raise ValueError(f"{odd[0]} is no array")
    return found


def _pickled(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is PyTorch's and takes PyTorch to read: pip install 'ddpm-jax[convert]'; a .safetensors file of "
            "the same weights, where there is one, takes nothing"
        ) from error
    held = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(held, Mapping) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        inside = (
            f"a dict of {', '.join(map(str, list(held)[:5]))}"
            if isinstance(held, Mapping)
            else f"a {type(held).__name__}"
        )
        raise ValueError(
            f"named tensors are expected, and it holds {inside}: save the part that is the network's alone"
        )
    return {str(name): _as_numpy(tensor.detach()) for name, tensor in held.items()}


def _as_numpy(tensor) -> np.ndarray:
    import torch  # pyright: ignore[reportMissingImports]

    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    import ml_dtypes  # JAX brings it

    return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__
