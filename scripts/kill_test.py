"""Kill test: kills the programs at random moments (kill -9), continues them and checks that nothing is lost.

    python -m scripts.kill_test [--kills 100 --seed 0 --out kill_test.json]

Each program first runs undisturbed.  Then the same command runs in new folders, where it is killed and repeated several
times and at last runs to its end.  The result must equal that of the undisturbed run: for training every leaf of the
newest checkpoint, the images of each step, the log except its times, and the samples; for the other programs every
file, byte for byte.  The next process must continue from whatever was complete on the disk at a kill.

The seed chooses the moments to aim at; the exact time of a kill varies.  Everything runs on the CPU.
"""

import argparse
import collections
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from scripts.killed_programs import CONFIG, KilledProgram, KillMoment, killed_programs

ROOT = pathlib.Path(__file__).parents[1]
MAX_KILLS_PER_RUN = 10  # kills of one run, at most
TIMEOUT = 600  # seconds for one process
outcome_lock = threading.Lock()


class KillTest:
    """Folder of one kill test, with its inputs and compiled programs."""

    def __init__(self, home: pathlib.Path, cache: pathlib.Path):
        self.home, self.cache = home, cache
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        (home / "tiny.py").write_text(CONFIG)
        write_digits(home / "pictures")

    def start(self, kind: KilledProgram, folder: pathlib.Path, output, *, disturbed: bool = True) -> subprocess.Popen:
        """A process of the kind's command.

        What is killed reads the cache of compiled programs and does not write it: a kill cannot spoil it.
        """
        env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "100000" if disturbed else "0.2",
            "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        }
        command = kind.command(self.home, folder)
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, text=True)

    def finish(self, kind: KilledProgram, folder: pathlib.Path, *, disturbed: bool = True) -> str:
        """Output of the command when it runs to its end.

        Raises:
            RuntimeError: if it does not end with status 0.
        """
        with tempfile.TemporaryFile("w+") as output:
            process = self.start(kind, folder, output, disturbed=disturbed)
            status = process.wait(TIMEOUT)
            text = read_output(output)
        if status:
            raise RuntimeError(f"{kind.name} in {folder} ended with status {status}:\n{text}")
        return text

    def run_undisturbed(self, kind: KilledProgram) -> None:
        """Runs a program undisturbed, as the reference of the killed runs."""
        folder, begun = self.home / ("run" if kind.name == "train" else f"straight-{kind.name}"), time.monotonic()
        self.finish(kind, folder, disturbed=False)
        self.seconds[kind.name] = time.monotonic() - begun
        with outcome_lock:
            self.outcomes[kind.name] = kind.outcome(folder)

    def kill_repeatedly(
        self, kind: KilledProgram, folder: pathlib.Path, rng: random.Random, kills: int
    ) -> list[dict[str, Any]]:
        """Outcomes of each kill of a command in a new folder, killed a number of times or until it is done."""
        struck: list[dict[str, Any]] = []
        while len(struck) < kills:
            aim = rng.choices(kind.moments, [aim.weight for aim in kind.moments])[0]
            blow = self.kill(kind, folder, aim, rng.random())
            found = kind.find_loss(struck[-1]["safe"], folder, blow["output"]) if struck else ""
            if found:
                struck[-1]["lost"].append(found)
            if not blow["killed"]:
                break
            struck.append(blow)
        if not struck:
            return []
        if blow["killed"]:
            found = kind.find_loss(struck[-1]["safe"], folder, self.finish(kind, folder))
            struck[-1]["lost"] += [found] if found else []
        with outcome_lock:
            outcome = kind.outcome(folder)
        expected = self.outcomes[kind.name]
        differ = [name for name in {**expected, **outcome} if expected.get(name) != outcome.get(name)]
        struck[-1]["lost"] += [f"{folder}: other than undisturbed: {name}" for name in differ]
        if not any(blow["lost"] for blow in struck):
            shutil.rmtree(folder)
        return struck

    def kill(self, kind: KilledProgram, folder: pathlib.Path, moment: KillMoment, chance: float) -> dict[str, Any]:
        """Outcome of a process that is started and killed at a moment, unless it ends before.

        Raises:
            RuntimeError: if it ends by itself with another status than 0.
        """
        marks = kind.progress(folder)
        with tempfile.TemporaryFile("w+") as output:
            process, begun = self.start(kind, folder, output), time.monotonic()
            while process.poll() is None and not moment.has_come(folder, marks):
                time.sleep(0.0003)
                if time.monotonic() - begun > TIMEOUT:
                    process.kill()
                    raise RuntimeError(
                        f"{kind.name} in {folder} was not done after {TIMEOUT} seconds:\n{read_output(output)}"
                    )
            try:
                process.wait(chance * (moment.window or self.seconds[kind.name]))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            status = process.wait()
            text = read_output(output)
        if status not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{kind.name} in {folder} ended with status {status}:\n{text}")
        return {
            "killed": status != 0, "aim": moment.name, "saving": kind.is_saving(folder), "safe": kind.saved(folder),
            "behind": kind.unsaved_steps(folder), "lost": [], "output": text,
        }  # fmt: skip


def read_output(output) -> str:
    """Text of an output file."""
    output.seek(0)
    return output.read()


def write_digits(folder: pathlib.Path) -> None:
    """The training digits as a folder of PNG files."""
    from PIL import Image

    from ddpm_jax import data

    digits = data.load("digits")
    assert digits.train_labels is not None
    for i, (image, label) in enumerate(zip(digits.train[:], digits.train_labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0] * 15).save(folder / str(label) / f"{i:04d}.png")


def divide_kills(kills: int, programs: tuple[KilledProgram, ...]) -> list[tuple[KilledProgram, int]]:
    """Numbers of kills for each program, by its weight and at least one, in pieces of at most MAX_KILLS_PER_RUN."""
    counts = {kind: max(1, kills * kind.weight // sum(k.weight for k in programs)) for kind in programs}
    counts[programs[0]] += max(0, kills - sum(counts.values()))
    return [
        (kind, min(MAX_KILLS_PER_RUN, count - start)) for kind, count in counts.items()
        for start in range(0, count, MAX_KILLS_PER_RUN)
    ]  # fmt: skip


def run_kills(test: KillTest, kind: KilledProgram, number: int, kills: int, seed: int) -> list[dict[str, Any]]:
    """Outcomes of a number of kills of a program, over as many runs as needed."""
    dice, struck = random.Random(f"{seed} {kind.name} {number}"), []
    for attempt in range(20 * kills):
        if len(struck) >= kills:
            return struck
        folder = test.home / f"{kind.name}-{number}-{attempt}"
        found = test.kill_repeatedly(kind, folder, dice, kills - len(struck))
        for blow in found:
            print(f"{kind.name:11} killed {blow['aim']}{', in a save' if blow['saving'] else ''}"
                  f"{': LOST ' + '; '.join(blow['lost']) if blow['lost'] else ''}", flush=True)  # fmt: skip
        if found:
            found[-1]["run"] = True
        struck += found
    raise RuntimeError(f"{kind.name}: {len(struck)} of {kills} kills came in time")


def tally(kills: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over outcomes of kills."""
    return {
        "kills": len(kills),
        "of which during a save": sum(blow["saving"] for blow in kills),
        "aimed": dict(collections.Counter(blow["aim"] for blow in kills)),
        "runs": sum("run" in blow for blow in kills),
        "lost": sum(len(blow["lost"]) for blow in kills),
        "steps redone": sum(blow["behind"] for blow in kills),
    }


def format_tallies(tallies: dict[str, dict[str, Any]]) -> list[str]:
    """The tallies as a table."""
    names = ("kills", "of which during a save", "runs", "lost", "steps redone")
    lines = [f"{'':11}" + "".join(f"{name:>{len(name) + 3}}" for name in names)]
    for kind, found in tallies.items():
        lines.append(f"{kind:11}" + "".join(f"{found[name]:>{len(name) + 3}}" for name in names))
    return lines


def environment(seconds: float) -> dict[str, Any]:
    """Machine, versions and commit."""
    model = [line for line in cpu_lines() if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets", "array_record")
    return {
        "machine": {
            "cpu": model[0].partition(": ")[2] if model else platform.processor(),
            "cores": os.cpu_count(),
            "system": platform.system(),
        },
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in packages},
        "commit": commit or "unknown",
        "command": " ".join(["python", "-m", "scripts.kill_test", *sys.argv[1:]]),
        "seconds": round(seconds),
    }


def cpu_lines() -> list[str]:
    """Lines of /proc/cpuinfo about the processor."""
    path = pathlib.Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main(argv: list[str]) -> int:
    """Runs the kill test; the exit status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m scripts.kill_test", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="how many, over all programs")
    parser.add_argument("--seed", type=int, default=0, help="of where they are aimed at")
    parser.add_argument("--jobs", type=int, default=2, help="how many runs at a time")
    parser.add_argument("--cache", help="a folder of compiled programs to use and fill (default: one of its own)")
    parser.add_argument("--only", action="append", help="only this program (may be given again)")
    parser.add_argument("--out", help="a JSON file for the result")
    options = parser.parse_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"
    begun, home = time.monotonic(), pathlib.Path(tempfile.mkdtemp(prefix="kill-test-"))
    test = KillTest(home, pathlib.Path(options.cache or home / "cache").absolute())
    programs = tuple(
        kind for kind in killed_programs() if kind.name == "train" or kind.name in (options.only or [kind.name])
    )
    for kind in programs:  # training first: the others are about what it leaves
        test.run_undisturbed(kind)
        print(f"{kind.name:11} undisturbed: {test.seconds[kind.name]:.1f} s", flush=True)
    programs = tuple(kind for kind in programs if kind.name in (options.only or [kind.name]))
    pieces = list(enumerate(divide_kills(options.kills, programs)))
    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(lambda piece: (piece[1][0].name, run_kills(test, piece[1][0], piece[0], piece[1][1],
                                                                    options.seed)), pieces))  # fmt: skip
    each = {kind.name: [blow for name, blows in found if name == kind.name for blow in blows] for kind in programs}
    each["together"] = [blow for _, blows in found for blow in blows]
    tallies, seconds = {name: tally(struck) for name, struck in each.items()}, time.monotonic() - begun
    print("\n".join(format_tallies(tallies)), f"\nin {seconds:.0f} s", sep="")
    lost = [line for blow in each["together"] for line in blow["lost"]]
    if options.out:
        path = pathlib.Path(options.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({**environment(seconds), "seed": options.seed, "tally": tallies, "lost": lost}, indent=1)
        )
    if lost:
        print("\n".join(["LOST:", *lost, f"what was left is in {home}"]), file=sys.stderr)
        return 1
    shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
