"""MNIST and CIFAR-10 from archives like the published ones: bit for bit, or refused with what to do."""

import gzip
import hashlib
import io
import os
import pathlib
import pickle
import re
import shlex
import struct
import tarfile

import numpy as np
import pytest

from ddpm_jax import config, data
from ddpm_jax.config import flags
from ddpm_jax.data import archives
from ddpm_jax.programs.cli import call as main

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
RNG = np.random.RandomState(0)
MNIST = {
    part: (RNG.randint(0, 256, (n, 28, 28), np.uint8), np.arange(n) % 10) for part, n in (("train", 7), ("t10k", 3))
}
CIFAR10 = {
    name: (RNG.randint(0, 256, (2, 32, 32, 3), np.uint8), np.array([i, 9 - i])) for i, name in enumerate(BATCHES)
}


def idx(array):
    """An idx file of bytes."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def pickled(images, labels, dtype=b"u1"):
    """A batch of CIFAR-10 as Python 2 and its numpy pickled it: all red values of an image, then green, then blue."""
    rows = np.moveaxis(images, -1, 1).reshape(len(images), -1)

    def text(content):
        return b"T" + struct.pack("<i", len(content)) + content

    def integers(*values):
        return b"".join(b"J" + struct.pack("<i", int(value)) for value in values)

    kind = b"cnumpy\ndtype\n" + text(dtype) + integers(0, 1) + b"\x87R(" + integers(3) + text(b"|") + b"NNN"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integers(0) + b"\x85" + text(b"b") + b"\x87R("
    array += integers(1) + b"(" + integers(*rows.shape) + b"t" + kind + integers(-1, -1, 0) + b"tb\x89"
    array += text(rows.tobytes()) + b"tb"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"](" + integers(*labels) + b"eu."


def files_of(name):
    """The content of the files of a small data set, by name."""
    if name == "cifar10":
        return {batch: pickled(*CIFAR10[batch]) for batch in BATCHES}
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    return {f"{part}-{kind}": idx(array) for part in MNIST for kind, array in zip(kinds, MNIST[part], strict=True)}


def expected_of(name):
    """Its images and labels: train, test."""
    if name == "mnist":
        return [(images[..., None], labels) for images, labels in MNIST.values()]
    train = [CIFAR10[batch] for batch in BATCHES[:-1]]
    return [tuple(map(np.concatenate, zip(*train, strict=True))), CIFAR10["test_batch"]]


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """The small data sets stand in for the published ones; returns a function that changes a file's content."""
    for name, real in archives.PUBLISHED.items():
        shapes = tuple(images.shape for images, _ in expected_of(name))
        md5 = {file: hashlib.md5(content).hexdigest() for file, content in files_of(name).items()}
        assert list(md5) == list(real.md5)
        monkeypatch.setitem(archives.PUBLISHED, name, real._replace(shapes=shapes, md5=md5))

    def change(name, file, content):
        now = archives.PUBLISHED[name]
        md5 = {**now.md5, file: hashlib.md5(content).hexdigest()}
        monkeypatch.setitem(archives.PUBLISHED, name, now._replace(md5=md5))

    return change


def write_files(folder, files, suffix="", zipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if zipped else content)


def tar_of(files, mode="w:gz"):
    """An archive of files, in another order than that of their names, as the published one is."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode=mode) as archive:
        for name, content in [("readme.html", b"text"), *reversed(files.items())]:
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return whole.getvalue()


def write_tar(folder, content, name="cifar-10-python.tar.gz"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def prepare(name, out, *more):
    return main(["prepare", name, "--out", str(out), *map(str, more)])


def check_written(name, folder):
    found = data.load(f"npz:{folder / f'{name}.npz'}")
    (train, train_labels), (test, test_labels) = expected_of(name)
    for array, expected in ((found.train, train), (found.test, test)):
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(found.train_labels, train_labels)
    np.testing.assert_array_equal(found.test_labels, test_labels)
    assert found.label_names == (archives.CIFAR10_NAMES if name == "cifar10" else ())


# What is written

FORMS = {
    "mnist, gzip files": ("mnist", lambda folder: write_files(folder, files_of("mnist"), ".gz", zipped=True)),
    "mnist, unpacked": ("mnist", lambda folder: write_files(folder, files_of("mnist"))),
    "mnist, unpacked by the browser": ("mnist", lambda folder: write_files(folder, files_of("mnist"), ".gz")),
    "mnist, as gunzip -N names them": (
        "mnist",
        lambda folder: write_files(folder, {n.replace("-idx", ".idx"): c for n, c in files_of("mnist").items()}),
    ),
    "cifar10, archive": ("cifar10", lambda folder: write_tar(folder, tar_of(files_of("cifar10")))),
    "cifar10, tar": (
        "cifar10",
        lambda folder: write_tar(folder, tar_of(files_of("cifar10"), "w"), "cifar-10-python.tar"),
    ),
    "cifar10, unpacked": ("cifar10", lambda folder: write_files(folder / "cifar-10-batches-py", files_of("cifar10"))),
    "cifar10, in the folder": ("cifar10", lambda folder: write_files(folder, files_of("cifar10"))),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_images_are_those_of_the_files(tmp_path, form):
    name, write = FORMS[form]
    write(tmp_path / "files")
    before = sorted(tmp_path.rglob("*"))
    assert prepare(name, tmp_path / "data", "--from", tmp_path / "files") == 0
    check_written(name, tmp_path / "data")
    after = {path.relative_to(tmp_path).as_posix() for path in set(tmp_path.rglob("*")) - set(before)}
    assert after == {"data", "data/.lock", f"data/{name}.npz"}  # nothing is extracted


def test_files_lie_in_the_folder_that_is_written_to_if_no_other_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, form in (("mnist", "mnist, gzip files"), ("cifar10", "cifar10, archive")):
        FORMS[form][1](tmp_path / "data")
        assert prepare(name, "data") == 0
        assert f"train on it: ddpm-jax train {name} --workdir runs/{name}\n" in capsys.readouterr().out
        assert config.load(name).data.source == f"npz:data/{name}.npz"  # what that command reads
        check_written(name, tmp_path / "data")
    write_files(tmp_path / "other place", files_of("mnist"))
    assert prepare("mnist", "other place") == 0
    assert "runs/mnist --data.source 'npz:other place/mnist.npz'\n" in capsys.readouterr().out


def test_the_same_command_again_does_nothing_and_the_bytes_are_a_function_of_the_files(tmp_path, capsys):
    FORMS["cifar10, archive"][1](tmp_path)
    assert prepare("cifar10", tmp_path) == 0
    target = tmp_path / "cifar10.npz"
    contents, written = target.read_bytes(), target.stat().st_mtime_ns
    assert "written: npz:" in capsys.readouterr().out
    assert prepare("cifar10", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "nothing to do, the file exists: npz:" in shown and "10 training and 2 held-out images, 32x32x3" in shown
    assert target.stat().st_mtime_ns == written
    target.unlink()
    assert prepare("cifar10", tmp_path) == 0
    assert target.read_bytes() == contents


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_data_set_that_tfds_has_prepared_is_taken_too(tmp_path, capsys, name):
    write_files(tmp_path / "files", files_of(name))
    assert prepare(name, tmp_path / "files") == 0
    source = f"tfds:{name}@{tmp_path / 'sets'}"
    assert (
        main(["prepare", f"npz:{tmp_path / 'files' / name}.npz", "--name", name, "--out", str(tmp_path / "sets")]) == 0
    )
    assert prepare(name, tmp_path / "data", "--from", source) == 0
    check_written(name, tmp_path / "data")
    other = {"mnist": "cifar10", "cifar10": "mnist"}[name]
    capsys.readouterr()
    assert prepare(other, tmp_path / "data", "--from", source) == 2
    assert f"--from {source}: expected tfds:{other} for {other}" in capsys.readouterr().err
    assert prepare(name, tmp_path / "part", "--from", f"tfds:{name}#train[:4],test@{tmp_path / 'sets'}") == 2
    assert f" is not {name} (expected uint8 (" in capsys.readouterr().err
    assert not (tmp_path / "part").exists()


# What is missing


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_without_files_their_addresses_are_said_and_nothing_is_made(tmp_path, capsys, name):
    assert prepare(name, tmp_path / "data") == 2
    shown = capsys.readouterr().err
    assert (
        f"{tmp_path / 'data'} has no {', '.join(files_of(name))} of {name}. Download into {tmp_path / 'data'}" in shown
    )
    for address in archives.PUBLISHED[name].downloads:
        assert shown.count(f"\n  {address}\n") == 1
    assert f"--from tfds:{name}" in shown
    assert not (tmp_path / "data").exists()


def test_only_what_is_missing_is_asked_for(tmp_path, capsys):
    write_files(tmp_path, files_of("mnist"))
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    assert prepare("mnist", tmp_path) == 2
    shown = capsys.readouterr().err
    assert f"{tmp_path} has no t10k-labels-idx1-ubyte of mnist" in shown
    assert shown.count("http") == 1 and "/t10k-labels-idx1-ubyte.gz (4,542 bytes)" in shown
    files = files_of("cifar10")
    del files["data_batch_3"]
    write_tar(tmp_path, tar_of(files))
    assert prepare("cifar10", tmp_path) == 2
    assert "cifar-10-python.tar.gz has no data_batch_3 of cifar10. Download into" in capsys.readouterr().err


def test_what_a_config_misses_is_named_with_the_command_that_makes_it():
    for name in archives.PUBLISHED:
        with pytest.raises(FileNotFoundError, match=f"; ddpm-jax prepare {name} --out 'a b' makes it$"):
            data.load(f"npz:a b/{name}.npz")
        with pytest.raises(ValueError, match=f"; ddpm-jax prepare {name} --out data makes npz:data/{name}.npz$"):
            data.load(name)
    with pytest.raises(FileNotFoundError, match=r"no file a b/digits\.npz$"):
        data.load("npz:a b/digits.npz")


# What is damaged, or something else


def refused(name, folder, capsys):
    """The error of files that are refused, after which no file is written."""
    before = sorted(folder.rglob("*"))
    assert prepare(name, folder) == 2
    assert sorted(folder.rglob("*")) == before
    return capsys.readouterr().err


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path, capsys, fraction):
    write_files(tmp_path, files_of("mnist"), ".gz", zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    shown = refused("mnist", tmp_path, capsys)
    assert f"{path} is damaged or not whole ({path.stat().st_size:,} bytes; EOFError: " in shown
    assert "Download it again: https://" in shown and "/train-images-idx3-ubyte.gz (9,912,422 bytes)" in shown
    whole = tar_of(files_of("cifar10"))
    write_tar(tmp_path, whole[: int(fraction * len(whole))])
    assert "cifar-10-python.tar.gz is damaged or not whole (" in refused("cifar10", tmp_path, capsys)


def test_a_flipped_bit_is_noticed(tmp_path, capsys):
    files = files_of("cifar10")
    for zipped, error in ((True, "is damaged or "), (False, "data_batch_2 is damaged or of another data set")):
        content = bytearray(tar_of(files, "w:gz" if zipped else "w"))
        offset = len(content) // 2 if zipped else bytes(content).index(files["data_batch_2"]) + 4000
        content[offset] ^= 4
        write_tar(tmp_path, bytes(content))
        assert error in refused("cifar10", tmp_path, capsys)


def test_another_data_set_of_the_same_names_is_refused_with_both_sums(tmp_path, capsys):
    files = files_of("mnist")
    other = idx(255 - MNIST["t10k"][0])
    write_files(tmp_path, {**files, "t10k-images-idx3-ubyte": other}, ".gz", zipped=True)
    shown = refused("mnist", tmp_path, capsys)
    assert (
        "t10k-images-idx3-ubyte.gz: t10k-images-idx3-ubyte is damaged or of another data set: its 2,368 bytes" in shown
    )
    for content in (other, files["t10k-images-idx3-ubyte"]):
        assert hashlib.md5(content).hexdigest() in shown


def test_a_small_file_of_much_content_is_not_read_whole(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 6000)
    write_files(tmp_path, {**files_of("mnist"), "train-images-idx3-ubyte": bytes(1 << 20)}, ".gz", zipped=True)
    assert "its 6,000 bytes have the MD5" in refused("mnist", tmp_path, capsys)


class Malicious:
    """What a pickle may name: a function that is called when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("known", [True, False])
def test_a_pickle_cannot_execute_anything(tmp_path, capsys, published, known):
    content = pickle.dumps(Malicious(tmp_path / "executed"), protocol=2)
    write_files(tmp_path, {**files_of("cifar10"), "data_batch_4": content})
    if known:  # even if its checksum were the published one
        published("cifar10", "data_batch_4", content)
    shown = refused("cifar10", tmp_path, capsys)
    named = f"a pickle of CIFAR-10 names {os.mkdir.__module__}.mkdir, which is not loaded: only arrays are"
    assert (named if known else "data_batch_4 is damaged or of another data set") in shown
    pickle.loads(content)
    assert (tmp_path / "executed").is_dir()  # as a plain unpickler does


def test_links_in_an_archive_are_not_followed(tmp_path, capsys):
    whole, files = io.BytesIO(), files_of("cifar10")
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if name == "data_batch_5":
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
            archive.addfile(member, io.BytesIO(content))
    write_tar(tmp_path, whole.getvalue())
    assert "has no data_batch_5 of cifar10" in refused("cifar10", tmp_path, capsys)


def test_a_file_of_something_else_is_not_overwritten(tmp_path, capsys):
    write_files(tmp_path, files_of("mnist"))
    for arrays in (
        {"train": MNIST["train"][0], "test": MNIST["t10k"][0]},
        {"train": MNIST["train"][0][:4], "test": MNIST["t10k"][0], "labels": np.arange(4), "test_labels": np.arange(3)},
    ):
        np.savez(tmp_path / "mnist.npz", **arrays)
        shown = refused("mnist", tmp_path, capsys)
        assert "mnist.npz exists and is not mnist: remove it, or give another --out (expected " in shown
    (tmp_path / "mnist.npz").write_bytes(b"PK")
    assert "mnist.npz: not an .npz file, or not a whole one" in refused("mnist", tmp_path, capsys)


def test_a_write_that_fails_leaves_no_part_of_the_file(tmp_path, capsys, monkeypatch):
    def full(file, **arrays):
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    write_files(tmp_path, files_of("mnist"))
    monkeypatch.setattr(np, "savez", full)
    assert prepare("mnist", tmp_path) == 6
    assert "No space left on device" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {".lock", *files_of("mnist")}


# Options


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["mnist", "--name", "a", "--held-out", "0.5"], "--name, --held-out: not for mnist, which is written to "),
        (
            ["cifar10", "--skip-bad"],
            r"--skip-bad: not for cifar10, .* prepare npz:\S*cifar10.npz --name NAME --out FOL",
        ),
        (["digits"], "--name is missing: digits becomes a data set in OUT/NAME, read as tfds:NAME@OUT"),
        (["digits", "--name", "a", "--from", "b"], "--from is for mnist and cifar10; digits is itself the source"),
    ],
)
def test_options_of_other_sources_are_refused(tmp_path, capsys, arguments, text):
    assert main(["prepare", *arguments, "--out", str(tmp_path / "data")]) == 2
    assert re.search(text, capsys.readouterr().err)
    assert not (tmp_path / "data").exists()


def test_the_commands_of_the_page_on_data_are_the_programs_own():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "data.md").read_text()
    commands = re.findall(r"ddpm-jax prepare ([^`\n]+)", page)
    assert len(commands) >= 5
    for command in commands:
        options = flags.parse(flags.Prepare, shlex.split(command), prog="prepare")
        assert options.source in archives.PUBLISHED or options.name
    for source in archives.PUBLISHED:
        assert f"`npz:data/{source}.npz`" in page
    names = re.findall(r"ddpm-jax train (\w+) ", page)
    assert len(names) >= 3
    for name in names:
        assert name == "CONFIG" or config.load(name)


def test_a_home_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert prepare("mnist", "~nobody-of-this-name/data") == 2
    assert "--out ~nobody-of-this-name/data: Could not determine home" in capsys.readouterr().err
    assert prepare("mnist", tmp_path, "--from", "~nobody-of-this-name") == 2
    assert "~nobody-of-this-name has no train-images-idx3-ubyte" in capsys.readouterr().err
