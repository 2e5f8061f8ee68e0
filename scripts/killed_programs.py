"""Programs of `scripts.kill_test`: their commands, the moments to kill them, and their expected results."""

import hashlib
import io
import json
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

STEPS = 40
CONFIG = f"""
from ddpm_jax.config import Config, Data, Evaluation, Net, Optim, Sampling, Schedule

config = Config(
    steps={STEPS}, batch=16, log_every=1, sample_every=20, save_every=2, keep=3, snapshot_every=4,
    data=Data("digits", flip=True), evaluation=Evaluation(images=16, strata=2),
    schedule=Schedule(T=20, beta_1=0.005, beta_T=0.6), net=Net(8, (1,), 1, (), dropout=0.1),
    optim=Optim(learning_rate=3e-3, warmup=10, ema_decay=0.9, ema_lengths=(0.05, 0.1)),
    sampling=Sampling(steps=20, tile=4, num=8),
)
"""

# The commands write what they have every 20 seconds and every 1024 images: too seldom for runs of two seconds.
SAVE_OFTEN = (
    "from ddpm_jax.evaluate import likelihood; from ddpm_jax.pipeline import image_parts; "
    "from ddpm_jax.programs import cli; "
    "likelihood.SAVE_SECONDS, image_parts.PART_SIZE = 0.05, 16; cli.main('evaluate')"
)


class KillMoment(NamedTuple):
    """A moment to kill: up to `window` seconds (0: as long as the command takes) after its condition holds.

    has_come: (folder, its progress at the process's start) -> whether the condition holds.
    weight: relative frequency.
    """

    name: str
    weight: int
    has_come: Callable[[pathlib.Path, Any], bool]
    window: float


class KilledProgram(NamedTuple):
    """A program to kill, and functions of its output folder.

    weight: its part of the kills, relative to the other programs.
    command: (folder of this kill test, output folder) -> command line.
    progress: a value that changes with progress, for `KillMoment`.
    is_saving: whether something is half-written.
    saved: what is complete on the disk, by name; the value changes if it is written again.
    find_loss: description of saved work that the next process did not use, from its output; "" if there is none.
    unsaved_steps: number of known steps after the last save.
    outcome: everything that must equal an undisturbed run, by name.
    """

    name: str
    weight: int
    command: Callable[[pathlib.Path, pathlib.Path], list[str]]
    moments: tuple[KillMoment, ...]
    progress: Callable[[pathlib.Path], Any]
    is_saving: Callable[[pathlib.Path], bool]
    saved: Callable[[pathlib.Path], dict[str, Any]]
    find_loss: Callable[[dict[str, Any], pathlib.Path, str], str]
    unsaved_steps: Callable[[pathlib.Path], int]
    outcome: Callable[[pathlib.Path], dict[str, Any]]


def at_any_time(folder: pathlib.Path, marks: Any) -> bool:
    """Condition of a moment that may come at any time."""
    return True


def no_steps(folder: pathlib.Path) -> int:
    """Number of unsaved steps of programs without steps: 0."""
    return 0


def file_digests(folder: pathlib.Path) -> dict[str, str]:
    """Every file below a folder with the sha256 of its bytes; of a trainer's lock only the name."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def file_stamps(folder: pathlib.Path, pattern: str) -> dict[str, tuple[int, int]]:
    """The files and folders of a pattern with what a second writing would change."""
    found = {}
    for path in folder.glob(pattern):
        try:
            about = path.stat()
        except FileNotFoundError:  # renamed meanwhile
            continue
        found[str(path.relative_to(folder))] = (about.st_ino, about.st_mtime_ns)
    return found


def lost_or_rewritten(saved: dict[str, Any], now: dict[str, Any]) -> str:
    """Names of saved files that are gone or were written again."""
    return ", ".join(name for name, stamp in saved.items() if now.get(name) != stamp)


# Training


def checkpoint_steps(folder: pathlib.Path) -> list[int]:
    """The checkpoints that are whole."""
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def log_rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def newest_checkpoint(folder: pathlib.Path) -> dict[str, Any]:
    """The newest checkpoint, as what is safe."""
    return {"newest": max(checkpoint_steps(folder), default=0)}


def find_fallback(saved: dict[str, Any], folder: pathlib.Path, output: str) -> str:
    """Message in a trainer's first lines that it continued at an older step."""
    found = re.search(r"^run  .*?(?:continued from step (\d+))?$", output, re.MULTILINE)
    if found and int(found[1] or 0) != saved["newest"]:
        return f"continued from step {found[1] or 0}, where {saved['newest']} was whole"
    return "a checkpoint cannot be read" if "cannot be read" in output or "unreadable" in output else ""


def unsaved_steps(folder: pathlib.Path) -> int:
    """Steps in the log beyond the newest checkpoint: those that are taken again."""
    return max([row["step"] for row in log_rows(folder)], default=0) - newest_checkpoint(folder)["newest"]


def training_outcome(folder: pathlib.Path) -> dict[str, Any]:
    """Every leaf of the newest checkpoint, the log but for its times, and the bytes of all other files."""
    import jax

    from ddpm_jax import checkpoint
    from ddpm_jax import config as configs
    from ddpm_jax.model import build

    with checkpoint.Checkpoints(folder / "checkpoints", read_only=True) as saved:
        config = configs.from_dict(saved.meta()["config"])
        back = saved.restore(jax.eval_shape(build(config, (8, 8, 1), 17).init_state, jax.random.key(0)))
    found: dict[str, Any] = {"checkpoints": checkpoint_steps(folder), "step": back.step}
    for path, leaf in jax.tree_util.tree_flatten_with_path(back.tree)[0]:
        array = np.asarray(leaf)
        found[jax.tree_util.keystr(path)] = (array.shape, array.dtype.name, hashlib.sha256(array.tobytes()).hexdigest())
    log = log_rows(folder)
    found["images seen"] = [(row["step"], row["seen"]) for row in log if "seen" in row]
    found["log"] = [{k: v for k, v in row.items() if k not in ("steps_per_s", "images_per_s")} for row in log]
    others = {
        k: v for k, v in file_digests(folder).items() if k != "metrics.jsonl" and not k.startswith("checkpoints/")
    }
    return found | others


def killed_programs() -> tuple[KilledProgram, ...]:
    """The programs."""
    python = [sys.executable]
    return (
        KilledProgram(
            "train", 48,
            lambda home, folder: [
                *python, "train.py", f"{home}/tiny.py", "--workdir", str(folder), "--devices", "1"
            ],
            (
                KillMoment("at any time", 2, at_any_time, 8),
                KillMoment("while stepping", 3, lambda folder, was: newest_checkpoint(folder)["newest"] > was, 0.7),
                KillMoment("in a save", 6, lambda folder, was: newest_checkpoint(folder)["newest"] > was
                     and is_saving_checkpoint(folder), 0.06),
                KillMoment("in the last samples", 1,
                     lambda folder, was: newest_checkpoint(folder)["newest"] == STEPS > was, 2.5),
            ),
            lambda folder: newest_checkpoint(folder)["newest"],
            is_saving_checkpoint, newest_checkpoint, find_fallback, unsaved_steps, training_outcome,
        ),
        KilledProgram(
            "prepare", 18,
            lambda home, folder: [
                *python, "-m", "ddpm_jax", "prepare", f"folder:{home}/pictures", "--name", "pictures", "--shards",
                "60", "--out", str(folder),
            ],
            (
                KillMoment("at any time", 2, at_any_time, 0),
                KillMoment("between shards", 3, lambda folder, was: len(finished_shards(folder)) > was, 0.1),
                KillMoment("in a save", 3, lambda folder, was: len(finished_shards(folder)) > was
                     and is_saving_shard(folder), 0.003),
                KillMoment("in the descriptions", 2,
                     lambda folder, was: bool([*folder.glob("*/*/features.json")]), 0.1),
            ),
            lambda folder: len(finished_shards(folder)),
            is_saving_shard, finished_shards,
            lambda safe, folder, output: lost_or_rewritten(safe, finished_shards(folder)), no_steps, file_digests,
        ),
        KilledProgram(
            "sample", 12,
            lambda home, folder: [
                *python, "sample.py", f"{home}/run", "--num", "200", "--devices", "1", "--out", str(folder)
            ],
            (
                KillMoment("at any time", 3, at_any_time, 0),
                KillMoment("in a save", 2, lambda folder, was: file_stamps(folder, "*") != was, 0.02),
            ),
            lambda folder: file_stamps(folder, "*"),
            lambda folder: bool([*folder.glob("**/*.part")]),
            lambda folder: {}, lambda safe, folder, output: "", no_steps, file_digests,
        ),
        KilledProgram(
            "likelihood", 11,
            lambda home, folder: [
                *python, "-c", SAVE_OFTEN, f"{home}/run", "likelihood", "--devices", "1", "--out", str(folder)
            ],
            (
                KillMoment("at any time", 2, at_any_time, 0),
                KillMoment("while measuring", 2, lambda folder, was: images_measured(folder) > was, 0.5),
                KillMoment("in a save", 2, lambda folder, was: file_stamps(folder, "*.part.npz.part") != {}, 0.0003),
            ),
            images_measured,
            lambda folder: bool([*folder.glob("*.part")]),
            lambda folder: {"images": images_measured(folder)}, find_remeasured, no_steps, file_digests,
        ),
        KilledProgram(
            "samples", 11,
            lambda home, folder: [
                *python, "-c", SAVE_OFTEN, f"{home}/run", "samples", "--num", "300", "--devices", "1",
                "--out", str(folder)
            ],
            (
                KillMoment("at any time", 2, at_any_time, 0),
                KillMoment("while drawing", 2, lambda folder, was: len(sample_parts(folder)) > was, 0.5),
                KillMoment("in a save", 2, lambda folder, was: file_stamps(folder, "**/*.part") != {}, 0.0003),
            ),
            lambda folder: len(sample_parts(folder)),
            lambda folder: bool([*folder.rglob("*.part")]),
            sample_parts, lambda safe, folder, output: lost_or_rewritten(safe, sample_parts(folder)), no_steps,
            file_digests,
        ),
    )  # fmt: skip


def is_saving_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((folder / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def finished_shards(folder: pathlib.Path) -> dict[str, Any]:
    """The shards in the record of a data set, finished or not; their names without their folder's, which changes."""
    for record in folder.glob("*/*/prepare.json"):
        try:
            names = json.loads(record.read_text())["shards"]
        except FileNotFoundError:  # the folder has got its last name meanwhile
            continue
        return {name: stamp for name, stamp in file_stamps(record.parent, "*").items() if name in names}
    return {}


def is_saving_shard(folder: pathlib.Path) -> bool:
    """Whether a shard or the record of them is being written."""
    return any(any(folder.glob(f"*/*/{name}")) for name in ("unfinished", "prepare.json.part"))


def images_measured(folder: pathlib.Path) -> int:
    """Number of images with a bound on the disk."""
    for path in folder.glob("likelihood-*.npz"):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        with np.load(io.BytesIO(content)) as arrays:
            return int(arrays["done"])
    return 0


def find_remeasured(saved: dict[str, Any], folder: pathlib.Path, output: str) -> str:
    """Message of a measurement that it continued with fewer images."""
    found = re.search(r"continued after (\d+) of", output)
    before = int(found[1]) if found else 0
    begun = found or re.search(r"^\d+ of \d+ images", output, re.MULTILINE)
    return (
        f"continued after {before} images, where {saved['images']} were" if begun and before < saved["images"] else ""
    )


def sample_parts(folder: pathlib.Path) -> dict[str, Any]:
    """The parts of samples that are whole."""
    return file_stamps(folder, "draws/*/*.npy")
