"""Damaged folders, five hundred by a seed: each is read as it was, or refused in words of ours, and nothing is touched.

A case is a fresh copy of a small folder in which one or two files were cut off, changed, emptied, exchanged, removed or
added.  Where a format has no checksum (pixels of a picture, a number in a text) another legal content is what it then
holds; everywhere else what is read must be what was written.
"""

import collections
import csv
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import shutil
import signal
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import checkpoint, data, pipeline, tracking
from ddpm_jax import config as configs
from ddpm_jax.data.tfds import prepare
from ddpm_jax.evaluate import likelihood, protocol
from ddpm_jax.pipeline import image_parts

SEED = int(os.environ.get("FUZZ_SEED", "0"))
SECONDS = 20  # for one case
OURS = (ValueError, FileNotFoundError, OSError, checkpoint.CheckpointError)
SHAPE = (11, 13, 3)


class Hang(BaseException):
    """A case took too long; not an Exception, which decoders would catch."""


class Kind(NamedTuple):
    """Something to damage.

    make: fills a new folder.
    read: what comes of reading it, and whether it had to fall back on something older.
    same: whether what was read of a damaged folder may be taken for what was read of the whole one.
    """

    cases: int
    make: Callable[[pathlib.Path], object]
    read: Callable[[pathlib.Path, bool], tuple[Any, bool]]
    same: Callable[[Any, Any], bool]


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(repr((array.shape, str(array.dtype))).encode() + array.tobytes()).hexdigest()


def pixels(count: int) -> np.ndarray:
    """Not noise, so that compressed formats have something to compress."""
    phase = np.random.RandomState(0).uniform(0, 6, (count, 1, 1, 3))
    x, y = np.linspace(0, 3, SHAPE[0])[None, :, None, None], np.linspace(0, 3, SHAPE[1])[None, None, :, None]
    return np.rint(127.5 + 127.5 * np.sin(phase + x * phase + y)).astype(np.uint8)


def equal(found: Any, written: Any) -> bool:
    return found == written


def any_legal(found: Any, written: Any) -> bool:
    return type(found) is type(written)


# Images


def put(folder: pathlib.Path, forms: tuple[str, ...]) -> list[str]:
    """Ten images, in files of these forms in turn; their names."""
    names = []
    for i, image in enumerate(pixels(10)):
        path = folder / ("ab"[i % 2]) / f"image{i}{forms[i % len(forms)]}"
        path.parent.mkdir(exist_ok=True)
        np.save(path, image) if path.suffix == ".npy" else Image.fromarray(image).save(path)
        names.append(str(path.relative_to(folder)))
    return names


def make_table(folder: pathlib.Path) -> None:
    rows = [(name, f"class {i % 3}", f"this is number {i}") for i, name in enumerate(put(folder, (".png",)))]
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "caption"), *rows])


def read_folder(folder: pathlib.Path, odd: bool) -> tuple[Any, bool]:
    """The images that were loaded; none may be left out unasked."""
    there = [path for path in folder.rglob("*") if path.suffix.lower() in data.image_files.EXTENSIONS]
    reported: list[str] = []
    images = data.load(f"folder:{folder}", skip_bad=odd, report=reported.append)
    count = len(images.train) + len(images.test)
    assert count == len(there) or (odd and "cannot be used" in "".join(reported)), (count, len(there))
    return {digest(image) for image in (*images.train, *images.test)}, count < len(there)


def nearly_all(found: set[str], written: set[str]) -> bool:
    """At most two files are damaged: the others are as they were."""
    return len(written - found) <= 2


def make_npz(folder: pathlib.Path) -> None:
    images, labels = pixels(20), np.arange(20) % 4
    np.savez(folder / "a.npz", train=images[:15], test=images[15:], labels=labels[:15], test_labels=labels[15:])


def make_packed_npz(folder: pathlib.Path) -> None:
    np.savez_compressed(folder / "a.npz", images=pixels(20), labels=np.arange(20) % 4)


def make_npz_of_jpegs(folder: pathlib.Path) -> None:
    files = []
    for image in pixels(20):
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG")
        files.append(file.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(folder / "a.npz", jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets)


def read_npz(folder: pathlib.Path, odd: bool) -> tuple[Any, bool]:
    images = data.load(f"npz:{folder / 'a.npz'}")
    arrays = (images.train, images.test, images.train_labels, images.test_labels)
    return [None if array is None else digest(array) for array in arrays], False


def make_prepared(folder: pathlib.Path) -> None:
    make_table(folder)
    options = prepare.Prepare(source=f"folder:{folder}", name="mine", out=str(folder), shards=2, held_out=0.3)
    assert prepare.run(options) == 0
    for path in folder.iterdir():
        if path.name != "mine":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_prepared(folder: pathlib.Path, odd: bool) -> tuple[Any, bool]:
    images = data.load(f"tfds:mine@{folder}")
    labels = images.train_labels.tolist(), images.test_labels.tolist(), images.label_names
    return [digest(images.train), digest(images.test), labels, images.train_captions, images.levels], False


# Texts

CONFIG = configs.Config(steps=30, data=configs.Data("npz:a.npz", levels=200), optim=configs.Optim(clip=None))
TEXT = """
from ddpm_jax.config import Config, Data, Net, Optim

base = Config(steps=30, batch=16, data=Data("npz:a.npz", levels=200), net=Net(8, (1, 2), 1, (4,), dropout=0.1))
config = Config(steps=40, optim=Optim(learning_rate=3e-3, warmup=10, ema_decay=0.9))
"""
MANIFEST = {
    "fingerprint": "sha256:0123", "step": 30, "weights": "ema",
    "sampling": dataclasses.asdict(CONFIG.sampling), "times": [20, 10, 0],
    "image": {"shape": [8, 8, 1], "levels": 17}, "machine": {"platform": "cpu", "kind": "cpu", "devices": 1},
    "versions": {"jax": "0"}, "seed": 5, "start": 0, "num": 2, "sha256": ["12ab", "34cd"],
}  # fmt: skip


def make_metrics(folder: pathlib.Path) -> None:
    lines = tracking.MetricsLog(folder / "metrics.jsonl")
    for step in range(1, 20):
        lines.write({"step": step, "loss": 1 / step, "seen": "0123456789abcdef"})


def read_metrics(folder: pathlib.Path, odd: bool) -> tuple[Any, bool]:
    if odd:  # as a run that goes on, which drops what is beyond its step
        copy = folder.parent / "copy" / "metrics.jsonl"
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(folder / "metrics.jsonl", copy)
        tracking.MetricsLog(copy, 30)
        return tracking.read_metrics(copy), False
    return tracking.read_metrics(folder / "metrics.jsonl"), False


# Checkpoints


def state(step: int) -> dict[str, Any]:
    random = np.random.RandomState(step)
    return {
        "step": np.int32(step),
        "params": {"a": random.normal(size=(3, 5)).astype(np.float32), "b": {"c": random.normal(size=40)}},
        "ema": {"a": random.normal(size=(30, 50)).astype(np.float32)},
    }


def make_checkpoints(folder: pathlib.Path) -> None:
    with checkpoint.Checkpoints(folder / "checkpoints") as saved:
        for step in (1, 2):
            saved.save(step, state(step), {"config": dataclasses.asdict(CONFIG)})


def read_checkpoints(folder: pathlib.Path, odd: bool) -> tuple[Any, bool]:
    """As a trainer reads them, or as sampling does."""
    with warnings.catch_warnings(record=True) as reported:
        warnings.simplefilter("always")
        with checkpoint.Checkpoints(folder / "checkpoints", read_only=not odd) as saved:
            if odd:
                step, found, _ = saved.restore(state(0))
            else:
                configs.from_dict(saved.meta()["config"])
                step, found, _ = saved.restore_part("ema", state(0)["ema"])
    written = state(step) if odd else state(step)["ema"]
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(written), strict=True)
    assert all(a.tobytes() == np.asarray(b).tobytes() for a, b in leaves)
    warned = any(warning.category is checkpoint.CheckpointWarning for warning in reported)
    assert step == 2 or (step == 1 and warned)
    return "a checkpoint", step == 1


def make_evaluation(folder: pathlib.Path) -> None:
    random = np.random.RandomState(0)
    likelihood.save(folder / "likelihood-1.npz", likelihood.VlbResult(*random.normal(size=(10, 30))))
    numbers = [protocol.Measurement("bits/dim", 3.5, 0.1, {"n": 10, "data": "a"})]
    protocol.write_measurements(folder / "likelihood-1.json", numbers, {"jax": "0"})
    for start in (0, 8):
        image_parts.write_part(folder, start, random.randint(0, 256, (8, 6, 6, 3)).astype(np.uint8))


def read_evaluation(folder: pathlib.Path, odd: bool) -> tuple[Any, bool]:
    if odd:  # samples have no checksum, and a part that is gone is drawn again
        return [digest(part) for part in image_parts.read_chunks(folder, 0, 16)], False
    numbers = [number.name for number in protocol.read_measurements(folder / "likelihood-1.json")]
    return [numbers, *map(digest, likelihood.load(folder / "likelihood-1.npz"))], False


def same_evaluation(found: Any, written: Any) -> bool:
    """The arrays of a measurement have a checksum; names in JSON, and samples, do not."""
    return found[1:] == written[1:] or len(found) <= 2


def write_text(name: str, text: str) -> Callable[[pathlib.Path], object]:
    return lambda folder: (folder / name).write_text(text)


KINDS = {
    "folder": Kind(100, lambda folder: put(folder, (".png", ".jpg", ".webp", ".bmp", ".tif")), read_folder, nearly_all),
    "folder of arrays": Kind(30, lambda folder: put(folder, (".npy",)), read_folder, nearly_all),
    "folder with a table": Kind(40, make_table, read_folder, nearly_all),
    "npz": Kind(30, make_npz, read_npz, equal),
    "npz, compressed": Kind(30, make_packed_npz, read_npz, equal),
    "npz of JPEG files": Kind(20, make_npz_of_jpegs, read_npz, equal),
    "tfds": Kind(80, make_prepared, read_prepared, equal),
    "config.json": Kind(
        30, write_text("config.json", configs.to_json(CONFIG)),
        lambda folder, odd: (configs.read(folder / "config.json"), False), any_legal,
    ),
    "config.py": Kind(
        30, write_text("mine.py", TEXT),
        lambda folder, odd: (configs.load(f"{folder / 'mine.py'}{':base' if odd else ''}"), False), any_legal,
    ),
    "manifest": Kind(
        15, write_text("manifest.json", json.dumps(MANIFEST, indent=1)),
        lambda folder, odd: (pipeline.read_manifest(folder / "manifest.json"), False), any_legal,
    ),
    "metrics.jsonl": Kind(15, make_metrics, read_metrics, any_legal),
    "evaluation": Kind(20, make_evaluation, read_evaluation, same_evaluation),
    "checkpoints": Kind(60, make_checkpoints, read_checkpoints, equal),
}  # fmt: skip


# Damage


def damage(folder: pathlib.Path, random: np.random.RandomState, mutators) -> str:
    """Damages one or two files of a folder in one of these ways; what was done."""
    done = []
    for _ in range(random.choice((1, 1, 2))):
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        if not paths:
            break
        # what holds much is hit often, and so is the newest checkpoint
        weights = np.array([(path.stat().st_size ** 0.5 + 5) * (4 if "/2/" in str(path) else 1) for path in paths])
        path, other = (paths[i] for i in random.choice(len(paths), size=2, p=weights / weights.sum()))
        how = mutators[random.randint(len(mutators))]
        how(path, other, random)
        done.append(f"{how.__name__} {path.relative_to(folder)}")
    return "; ".join(done)


def random_offset(content: bytes, random: np.random.RandomState) -> int:
    """Half of the damage is in the first bytes, where formats say what follows."""
    return random.randint((len(content), min(64, len(content)))[random.randint(2)] or 1) if content else 0


def cut(path, other, random):
    content = path.read_bytes()
    path.write_bytes(content[: random_offset(content, random)])


def flip(path, other, random):
    content = bytearray(path.read_bytes())
    for _ in range(random.randint(1, 9) if content else 0):
        content[random_offset(content, random)] ^= 1 << random.randint(8)
    path.write_bytes(content)


def zero(path, other, random):
    content = bytearray(path.read_bytes())
    offset = random_offset(content, random)
    length = min(random.choice((1, 4, 64, 4096)), len(content) - offset)
    content[offset : offset + length] = bytes(length)
    path.write_bytes(content)


def rubbish(path, other, random):
    content = bytearray(path.read_bytes())
    offset, length = random_offset(content, random), random.choice((1, 4, 30))
    content[offset : offset + length] = random.bytes(length)
    path.write_bytes(content)


def insert(path, other, random):
    content = bytearray(path.read_bytes())
    offset = random_offset(content, random)
    content[offset:offset] = (random.bytes(9), b"[" * 100_000, b"NaN", b'"', b"-", b"9" * 30)[random.randint(6)]
    path.write_bytes(content)


def remove_bytes(path, other, random):
    content = bytearray(path.read_bytes())
    offset = random_offset(content, random)
    del content[offset : offset + random.randint(1, 30)]
    path.write_bytes(content)


def append(path, other, random):
    path.write_bytes(path.read_bytes() + (random.bytes(100), b"{}\n", b"\0" * 5000, b"\n")[random.randint(4)])


def empty(path, other, random):
    path.write_bytes(b"")


def remove(path, other, random):
    path.unlink()


def swap(path, other, random):
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def make_folder_of_it(path, other, random):
    path.unlink()
    path.mkdir()


def foreign(path, other, random):
    name = ("notes.txt", "7", ".DS_Store", "Thumbs.db", "metadata")[random.randint(5)]
    new = path.parents[random.randint(2) if len(path.parents) > 1 else 0] / name
    if not new.exists() and path.parent.name not in ("damaged",):
        new.write_bytes(random.bytes(50))


HOW = (
    cut,
    cut,
    flip,
    flip,
    flip,
    zero,
    rubbish,
    insert,
    remove_bytes,
    append,
    empty,
    remove,
    swap,
    make_folder_of_it,
    foreign,
)


MUTATORS = tuple(dict.fromkeys(HOW))
LONG = ("checkpoints", "folder", "folder of arrays", "folder with a table", "tfds")
"""Kinds of files whose cases take seconds."""


def few(name: str) -> list[tuple]:
    """Six of the twelve ways of damage, others for the next kind of files."""
    start = LONG.index(name)
    return [(MUTATORS[(start + 2 * case) % len(MUTATORS)],) for case in range(6)]


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Every file and empty folder by name; what a trainer sets aside keeps its old name here."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder)).replace(".unreadable", "")
        if path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not any(path.iterdir()):
            found[name] = "empty"
    return found


# The cases


def judged(kind: Kind, folder: pathlib.Path, odd: bool, whole: Any) -> str:
    """What becomes of a damaged folder: "read", "fell back" or "refused"; an AssertionError if that is not right."""
    before = contents(folder)
    try:
        found, fell_back = kind.read(folder, odd)
    except Exception as error:
        assert type(error) in OURS or isinstance(error, OSError), f"{type(error).__name__}: {error}"
        text = str(error)
        assert str(folder) in text or any(name.rpartition("/")[2] in text for name in before), f"names nothing: {text}"
        assert "Traceback" not in text and len(text) < 5000, text
        outcome = "refused"
    else:
        assert kind.same(found, whole), f"read as {str(found)[:300]}"
        outcome = "fell back" if fell_back else "read"
    assert contents(folder) == before
    return outcome


@pytest.fixture(scope="module")
def limit():
    """A case that takes too long is ended."""

    def late(number, frame):
        raise Hang(f"not done after {SECONDS} seconds")

    was = signal.signal(signal.SIGALRM, late)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.signal(signal.SIGALRM, was)


# what orbax was still reading when it gave up may say so a moment later
@pytest.mark.filterwarnings("ignore:(?s).*Event loop is closed:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("name", "complete"),
    [
        *((name, False) for name in LONG),
        *(pytest.param(name, True, marks=pytest.mark.slow if name in LONG else ()) for name in KINDS),
    ],
)
def test_damage_is_refused_by_name_or_does_not_matter(name, complete, tmp_path, limit, capsys):
    kind, original = KINDS[name], tmp_path / "original"
    cases = [HOW] * kind.cases if complete else few(name)
    original.mkdir()
    kind.make(original)
    whole = {odd: kind.read(original, odd)[0] for odd in (True, False)}
    outcomes, wrong = collections.Counter(), []
    for case, mutators in enumerate(cases):
        random = np.random.RandomState([SEED, sum(map(ord, name)), case])
        folder = tmp_path / "damaged"
        shutil.copytree(original, folder)
        what, odd = damage(folder, random, mutators), bool(case % 2)
        limit(SECONDS)
        try:
            outcomes[judged(kind, folder, odd, whole[odd])] += 1
        except (AssertionError, Hang) as error:
            wrong.append(f"case {case} ({what}): {str(error)[:600]}")
        finally:
            limit(0)
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\n{name}: {dict(outcomes)}, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)
    assert outcomes.total() == len(cases) and (not complete or len(cases) > outcomes["read"])


def test_the_cases_are_five_hundred_and_few_of_them_have_every_damage():
    assert sum(kind.cases for kind in KINDS.values()) == 500
    assert {mutator for name in LONG for mutators in few(name) for mutator in mutators} == set(MUTATORS)
