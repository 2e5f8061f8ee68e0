"""PyTorch's files of named tensors, read without PyTorch and without executing their content.

Since PyTorch 1.6 a file is a zip archive: a pickle, and a member for the numbers of each storage.  Before, it was a row
of pickles, followed by the numbers.  The pickles name classes and functions; only those that make tensors are known
here, and stand for code of this module.
"""

import collections
import functools
import io
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

Memory = bytes | bytearray
Storage = tuple[Memory, np.dtype]

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
"""The first two pickles of an old file."""

DTYPES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?",
}  # fmt: skip


def load(path: pathlib.Path) -> Any:
    """The object in a file, usually a dict, with numpy arrays for its tensors.

    Raises:
        Exception: of any kind, if the file is damaged or refers to anything else than tensors.
    """
    with path.open("rb") as file:
        return _load_zip(file) if zipfile.is_zipfile(path) else _load_old(file, path.stat().st_size)


def _load_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        (pickled,) = [name for name in archive.namelist() if pathlib.PurePosixPath(name).name == "data.pkl"]
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        read = functools.cache(archive.read)
        with archive.open(pickled) as stream:
            return _Unpickler(stream, lambda key, size: read(f"{folder}data/{key}")).load()


def _load_old(file: io.BufferedReader, file_size: int) -> Any:
    memories: dict[str, bytearray] = {}  # filled after the tensors are made, which are views

    def memory(key: str, size: int) -> bytearray:
        if not 0 <= size <= file_size:
            raise ValueError(f"it has a storage of {size} bytes, more than the file")
        return memories.setdefault(key, bytearray(size))

    def unpickle() -> Any:
        return _Unpickler(file, memory).load()

    if unpickle() != MAGIC or unpickle() != VERSION or not unpickle()["little_endian"]:
        raise ValueError("it has another beginning than PyTorch's files")
    loaded, keys = unpickle(), unpickle()
    for key in keys:
        file.seek(8, 1)  # the number of elements, which the pickle has, too
        if file.readinto(memories[key]) != len(memories[key]):
            raise ValueError("it ends early")
    return loaded


class _Unpickler(pickle.Unpickler):
    """Knows tensors, parameters and ordered dicts, and refuses everything else.

    memory: (key, number of bytes) -> the numbers of a storage.
    """

    def __init__(self, file: Any, memory: Callable[[str, int], Memory]):
        super().__init__(file)
        self._memory = memory

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name == "torch" and global_name in DTYPES:
            return global_name
        found = _FUNCTIONS.get((module_name, global_name))
        if found is None:
            raise pickle.UnpicklingError(f"it refers to {module_name}.{global_name}, which is no part of a tensor")
        return found

    def persistent_load(self, pid: Any, /) -> Storage:
        kind, name, key, _, size, *view = pid
        if kind != "storage" or any(view):
            raise pickle.UnpicklingError(f"it refers to {str(pid)[:60]}, which is no whole storage")
        dtype = np.dtype(DTYPES[name])
        return self._memory(key, size * dtype.itemsize), dtype


def _tensor(storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> np.ndarray:
    memory, dtype = storage
    # numpy raises an error where this would go beyond the memory
    return np.ndarray(shape, dtype, memory, offset * dtype.itemsize, [stride * dtype.itemsize for stride in strides])


_FUNCTIONS = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}
