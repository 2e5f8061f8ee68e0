"""The command `ddpm-jax prepare`: writes MNIST or CIFAR-10 to an .npz file, or other images to a TFDS data set.

ddpm-jax prepare mnist --out data
ddpm-jax prepare SOURCE --name NAME --out FOLDER [--resolution 64 ...]
"""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from ddpm_jax import process
from ddpm_jax.config import flags


def main(argv: list[str]) -> int:
    """Runs the command; returns exit status 0, or 4 if interrupted (the same command resumes)."""
    options = flags.parse(flags.Prepare, argv, prog="ddpm-jax prepare")

    from ddpm_jax.data import archives
    from ddpm_jax.data.tfds import prepare

    with process.explain_write_errors(options.out):
        try:
            return write_npz(options) if options.source in archives.PUBLISHED else prepare.run(options)
        except ValueError as error:  # which names the flags of train: here they have no prefix
            raise ValueError(str(error).replace("--data.", "--")) from error


def write_npz(options: flags.Prepare) -> int:
    """Writes OUT/mnist.npz or OUT/cifar10.npz, or finds it there; returns exit status 0.

    Raises:
        FileNotFoundError: as `archives.read`.
        ValueError: as `archives.read`; if OUT/NAME.npz holds other images, or an option is for other sources.
    """
    import numpy as np

    from ddpm_jax.data import archives, sources
    from ddpm_jax.data.tfds.prepare import out_folder

    name, folder = options.source, out_folder(options)
    target = folder / f"{name}.npz"
    source = f"npz:{target}"
    others = [field for field in dataclasses.fields(options) if field.name not in ("source", "out", "archives")]
    changed = [f"--{f.name.replace('_', '-')}" for f in others if getattr(options, f.name) != f.default]
    if changed:
        hint = f"To make a TFDS data set of that file: ddpm-jax prepare {shlex.quote(source)} --name NAME --out FOLDER"
        raise ValueError(f"{', '.join(changed)}: not for {name}, which is written to {target} as published. {hint}")
    if target.exists():
        present = sources.load(source)
        archives.check(name, present, f"{target} exists and is not {name}: remove it, or give another --out")
        print(f"nothing to do, the file exists: {sources.summary(present)}")
        return 0
    images = archives.read(name, options.out if options.archives is None else options.archives)
    parts = dict(x_train=images.train, y_train=images.train_labels, x_test=images.test, y_test=images.test_labels)
    arrays: dict[str, Any] = {key: np.asarray(array, np.uint8) for key, array in parts.items()}
    if images.label_names:
        arrays["label_names"] = np.array(images.label_names)
    folder.mkdir(parents=True, exist_ok=True)
    with process.FolderLock(folder), process.atomic_file(target) as file:
        np.savez(file, **arrays)
    print(f"written: {sources.summary(images._replace(name=source))}")
    flag = "" if target == Path("data", target.name) else f" --data.source {shlex.quote(source)}"  # as in the configs
    print(f"train on it: ddpm-jax train {name} --workdir runs/{name}{flag}")
    return 0
