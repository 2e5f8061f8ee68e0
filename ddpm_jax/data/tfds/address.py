"""Addresses of prepared data sets of TensorFlow Datasets (TFDS).

    tfds:NAME[/CONFIG][:VERSION][#TRAIN[,TEST]][@FOLDER]

NAME, CONFIG and VERSION are TFDS's own; without a version the newest one present is taken.  FOLDER holds the data sets,
by default the environment's TFDS_DATA_DIR or ~/tensorflow_datasets.  TRAIN and TEST are splits as TFDS writes them,
`train[:90%]` for example.
"""

import importlib.util
import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from ddpm_jax.data.folder_report import join_first

ADDRESS_PATTERN = re.compile(
    r"tfds:(?P<name>\w+)(/(?P<config>[\w.-]+))?(:(?P<version>\d+\.\d+\.\d+))?(#(?P<splits>[^@,]+(,[^@,]+)?))?(@(?P<data_dir>.+))?"
)
VERSION_PATTERN = re.compile(r"\d+\.\d+\.\d+")


class TfdsAddress(NamedTuple):
    """The parts of an address; config and version are "", splits () if it leaves them out."""

    name: str
    config: str
    version: str
    splits: tuple[str, ...]
    data_dir: Path


def parse_address(source: str) -> TfdsAddress:
    """The parts of a source `tfds:...`.

    Raises:
        ValueError: if it does not match the form above.
    """
    found = ADDRESS_PATTERN.fullmatch(source)
    if found is None:
        raise ValueError(f"{source!r}: expected tfds:NAME[/CONFIG][:VERSION][#TRAIN[,TEST]][@FOLDER]")
    data_dir = found["data_dir"] or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    splits = tuple(found["splits"].split(",")) if found["splits"] else ()
    return TfdsAddress(
        found["name"], found["config"] or "", found["version"] or "", splits, Path(os.path.expanduser(data_dir))
    )


def find_folder(address: TfdsAddress) -> Path:
    """The folder of a prepared data set, of the newest version unless the address has one.

    Raises:
        FileNotFoundError: if it is not there, with the command that prepares it.
        ValueError: if it has several configs and the address names none.
    """
    top = address.data_dir / address.name / address.config
    versions = _versions(top)
    if versions:
        version = address.version or versions[-1]
        if version not in versions:
            raise FileNotFoundError(f"{top}: no version {version}; there are {', '.join(versions)}")
        return top / version
    configs = sorted(child.name for child in top.iterdir() if _versions(child)) if top.is_dir() else []
    if configs and not address.config:
        raise ValueError(f"{top} has the configs {join_first(configs)}: name one, as tfds:{address.name}/{configs[0]}")
    import tensorflow_datasets as tfds

    if address.name in tfds.list_builders(with_community_datasets=False):
        name = "/".join(filter(None, address[:2]))
        hint = f"This prepares it, once: {prepare_command(address, address.data_dir)}"
        raise FileNotFoundError(f"{name} is not prepared in {address.data_dir}. {hint}")
    there = sorted(path.name for path in address.data_dir.glob("*/"))
    raise FileNotFoundError(
        f"{address.data_dir}: no data set {address.name}; there are {join_first(there) or 'none'}. "
        "This makes one of images in a folder: "
        f"ddpm-jax prepare folder:PATH --name {address.name} --out {shlex.quote(str(address.data_dir))}"
    )


def _versions(folder: Path) -> list[str]:
    """The versions prepared in a folder, the newest last."""
    found = [path.parent.name for path in folder.glob("*/dataset_info.json")]
    return sorted(filter(VERSION_PATTERN.fullmatch, found), key=lambda name: [int(part) for part in name.split(".")])


def prepare_command(address: TfdsAddress, data_dir: Path) -> str:
    """The shell command that prepares a data set of TFDS's catalogue, after installing TensorFlow if needed."""
    name = "/".join(filter(None, address[:2]))
    call = f"tfds.builder({name!r}, data_dir={str(data_dir)!r}, file_format='array_record').download_and_prepare()"
    install = "" if importlib.util.find_spec("tensorflow") else 'pip install "ddpm-jax[tfds]" && '
    return f'{install}python -c "import tensorflow_datasets as tfds; {call}"'
