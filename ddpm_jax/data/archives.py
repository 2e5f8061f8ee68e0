"""MNIST and CIFAR-10 from the files that their authors publish, or as TFDS has prepared them.

Each file's content is compared with the MD5 of the published one before it is used: other data sets have files of the
same names (Fashion-MNIST those of MNIST).  CIFAR-10's files are pickles, which can name code to execute; here a pickle
can name numpy's arrays only.  Members of its archive are read in memory, nothing is extracted.

Sources: Y. LeCun, C. Cortes and C. Burges, http://yann.lecun.com/exdb/mnist/, whose files are fetched from the mirror
that TFDS uses; A. Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from ddpm_jax.data import sources
from ddpm_jax.data.dataset import Dataset
from ddpm_jax.data.tfds.address import parse_address
from ddpm_jax.process import first_line

MAX_BYTES = 64 << 20  # read of one file; the largest published one has 47,040,016
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Published(NamedTuple):
    """A data set as it is published."""

    shapes: tuple[tuple[int, ...], tuple[int, ...]]  # of the training and the test images, uint8 [N, H, W, C]
    md5: Mapping[str, str]  # of the content of each file, by name
    parse: Callable[[Mapping[str, bytes]], Dataset]  # name -> content of the files, to the images
    downloads: tuple[str, ...]  # the address of each file to download, with its size
    archive: str = ""  # the archive with the files; "" if they are published singly
    folder: str = ""  # the folder in it, with a slash

    def download(self, name: str) -> str:
        """The download that has the file `name`."""
        return next((address for address in self.downloads if name in address), self.downloads[0])


def read(name: str, source: str) -> Dataset:
    """The images of "mnist" or "cifar10", uint8 [N, H, W, C], in the published order or TFDS's.

    Args:
        source: the folder with the files, packed or not, or "tfds:..." of the data set prepared by TFDS.

    Raises:
        FileNotFoundError: if files or the prepared data set are missing, with what to do.
        ValueError: if a file is damaged or not the published one, or the prepared data set is another one.
    """
    if not source.startswith("tfds:"):
        images = PUBLISHED[name].parse(_read_files(name, Path(os.path.expanduser(source))))
    elif parse_address(source).name == name:
        images = sources.load(source, stream=False)
    else:
        raise ValueError(f"--from {source}: expected tfds:{name} for {name}")
    check(name, images, f"{source} is not {name}")
    return images


def check(name: str, images: Dataset, message: str) -> None:
    """Raises a ValueError that begins with `message` if images have not the published type and shape, or no labels."""
    expected = [f"uint8 {shape}" for shape in PUBLISHED[name].shapes]
    found = [f"{part.dtype} {part.shape}" for part in (images.train, images.test)]
    if found != expected or images.train_labels is None:
        what = "labels" if found == expected else f"{' and '.join(expected)}, found {' and '.join(found)}"
        raise ValueError(f"{message} (expected {what})")


def _read_files(name: str, folder: Path) -> dict[str, bytes]:
    """The verified content of each file, by name: of the files in a folder, or else of the archive in it."""
    published, searched = PUBLISHED[name], folder
    contents = _read_loose_files(published, folder)
    for archive in (folder / f"{published.archive}{suffix}" for suffix in (".gz", "")):
        if published.archive and not contents and archive.is_file():
            contents, searched = _read_members(published, archive), archive
    missing = [file_name for file_name in published.md5 if file_name not in contents]
    if missing:
        downloads = "\n  ".join(dict.fromkeys(map(published.download, missing)))
        raise FileNotFoundError(
            f"{searched} has no {', '.join(missing)} of {name}. Download into {folder}, or name the folder of the "
            f"files with --from:\n  {downloads}\nIf TFDS has prepared the data set: --from tfds:{name}"
        )
    return contents


def _read_loose_files(published: Published, folder: Path) -> dict[str, bytes]:
    contents = {}
    for name in published.md5:
        stems = (name, name.replace("-idx", ".idx"))  # the original name of MNIST's files, which gunzip -N restores
        names = [f"{inner}{stem}{end}" for inner in ("", published.folder) for stem in stems for end in ("", ".gz")]
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is not None:
            with _open_unzipped(path, published.download(name)) as file:
                contents[name] = _verified_content(path, published, name, file)
    return contents


def _read_members(published: Published, archive: Path) -> dict[str, bytes]:
    contents = {}
    with _open_unzipped(archive, published.downloads[0]) as file, tarfile.open(fileobj=file, mode="r:") as members:
        for member in members:
            name = PurePosixPath(member.name).name
            if name in published.md5 and member.isfile():
                contents[name] = _verified_content(archive, published, name, members.extractfile(member))
    return contents


@contextlib.contextmanager
def _open_unzipped(path: Path, download: str) -> Iterator[BinaryIO]:
    """A file, decompressed if it is a gzip file, whatever its name: browsers decompress some and keep the name.

    Raises:
        ValueError: if reading it shows that it is damaged or truncated.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if zipped else file
        except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
            what = f"{path.stat().st_size:,} bytes; {first_line(error)}"
            raise ValueError(f"{path} is damaged or not whole ({what}). Download it again: {download}") from error


def _verified_content(path: Path, published: Published, name: str, file: Any) -> bytes:
    """The content of the file `name`, which is `path` or in it; a ValueError if it is not the published one."""
    content = file.read(MAX_BYTES)
    found, expected = hashlib.md5(content, usedforsecurity=False).hexdigest(), published.md5[name]
    if found != expected:
        raise ValueError(
            f"{path}: {name} is damaged or of another data set: its {len(content):,} bytes have the MD5 {found}, those "
            f"of the published file {expected}. Download it again: {published.download(name)}"
        )
    return content


def _parse_mnist(contents: Mapping[str, bytes]) -> Dataset:
    """The images of four idx files: a header of 16 bytes for images or 8 for labels, then a byte for each value."""

    def values(name: str, header: int) -> np.ndarray:
        return np.frombuffer(contents[name], np.uint8, offset=header)

    train, test = (values(f"{part}-images-idx3-ubyte", 16).reshape(-1, 28, 28, 1) for part in ("train", "t10k"))
    labels, test_labels = (values(f"{part}-labels-idx1-ubyte", 8).astype(np.int32) for part in ("train", "t10k"))
    return Dataset(train, test, labels, test_labels, 256, "mnist")


def _parse_cifar10(contents: Mapping[str, bytes]) -> Dataset:
    """The images of pickled dicts: "data" has a row for each image, all red values first; "labels" is a list."""
    files = {name: io.BytesIO(content) for name, content in contents.items()}
    batches = {name: _ArrayUnpickler(file, encoding="bytes").load() for name, file in files.items()}
    parts = [batches[name] for name in sorted(batches) if name != "test_batch"], [batches["test_batch"]]
    rows = (np.concatenate([batch[b"data"] for batch in part]) for part in parts)
    train, test = (np.moveaxis(part.reshape(-1, 3, 32, 32), 1, -1) for part in rows)
    labels, test_labels = (np.concatenate([batch[b"labels"] for batch in part]).astype(np.int32) for part in parts)
    return Dataset(train, test, labels, test_labels, 256, "cifar10", CIFAR10_NAMES)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of dicts, lists, numbers, bytes and numpy's arrays, as Python 2 wrote them."""

    ALLOWED: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): cast(tuple, np.empty(0).__reduce__())[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): lambda kind, align, copy: np.dtype(kind, bool(align), bool(copy)),  # pickled as 0 and 1
    }

    def find_class(self, module: str, name: str) -> Any:
        """The class or function that a pickle names; a ValueError unless it is one of those of numpy's arrays."""
        if (module, name) not in self.ALLOWED:
            raise ValueError(f"a pickle of CIFAR-10 names {module}.{name}, which is not loaded: only arrays are")
        return self.ALLOWED[module, name]


_MIRROR = "https://storage.googleapis.com/cvdf-datasets/mnist"

PUBLISHED: dict[str, Published] = {
    "mnist": Published(
        shapes=((60_000, 28, 28, 1), (10_000, 28, 28, 1)),
        md5={
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
        parse=_parse_mnist,
        downloads=(
            f"{_MIRROR}/train-images-idx3-ubyte.gz (9,912,422 bytes)",
            f"{_MIRROR}/train-labels-idx1-ubyte.gz (28,881 bytes)",
            f"{_MIRROR}/t10k-images-idx3-ubyte.gz (1,648,877 bytes)",
            f"{_MIRROR}/t10k-labels-idx1-ubyte.gz (4,542 bytes)",
        ),
    ),
    "cifar10": Published(
        shapes=((50_000, 32, 32, 3), (10_000, 32, 32, 3)),
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        parse=_parse_cifar10,
        downloads=("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz (170,498,071 bytes)",),
        archive="cifar-10-python.tar",
        folder="cifar-10-batches-py/",
    ),
}
"""The data sets that `ddpm-jax prepare` writes as .npz files, by name."""
