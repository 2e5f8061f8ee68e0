"""Comparison of this library's training with other libraries' trainers: equal minutes, same images and machine.

    python -m benchmarks.compare_trainers digits --minutes 5 --rates 2e-3 [--seeds 0 1 2] [--python ENV/bin/python]

`train.py` runs with the config as it is (without sample grids, and with --steps if given); the others (--trainers) run
as their authors set them (`benchmarks.baseline_trainer`, `benchmarks.jax_trainers`), at the config's batch and with a
network of the same size.  The trainers take turns of --slice seconds; the others are stopped meanwhile.  Minutes
include imports and compilation.  Every trainer is then evaluated alike: the bound on held-out images, and samples of
the same sampler compared with the training images.  The same command again continues an interrupted evaluation;
interrupted training starts again.
"""

import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal

import tyro

from benchmarks import alternating, compare_libraries
from benchmarks.evaluations import COLUMNS, ROOT, mean_and_error, read_numbers, run_program
from ddpm_jax.evaluate import protocol

TRAINERS = {
    "diffusers": ("baseline_trainer", 1e-4), "denoising-diffusion-pytorch": ("baseline_trainer", 1e-4),
    "flaxdiff": ("jax_trainers", 2e-4), "flax-tutorial": ("jax_trainers", 5e-4),
    "flax-tutorial-small": ("jax_trainers", 5e-4),
}  # fmt: skip
"""The others: the module that runs each, and its authors' learning rate."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    cell: tyro.conf.Positional[Literal["digits", "mnist"]]
    """The configuration."""
    trainers: tuple[
        Literal["diffusers", "denoising-diffusion-pytorch", "flaxdiff", "flax-tutorial", "flax-tutorial-small"], ...
    ] = ("diffusers", "denoising-diffusion-pytorch")
    """The others."""
    label: str = ""
    """Part of the rows' name: tells machines apart."""
    minutes: float = 5.0
    """Minutes of training for each trainer."""
    slice: float = 20.0
    """Seconds of a turn."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each trainer runs once with each."""
    samples: int = 1000
    """Samples to draw of each network."""
    nfe: int = 250
    """Number of function evaluations per sample."""
    rates: tuple[float, ...] = ()
    """Further learning rates for the other trainers."""
    own: bool = True
    """Run the other trainers at their own learning rate."""
    source: str | None = None
    """Where the images are, if not where the config says."""
    steps: int | None = None
    """Steps of ours and of its learning rate decay, if this machine is too slow for the config's."""
    python: str = sys.executable
    """Interpreter of the environment with the other libraries."""
    runs: str = "runs/compare_trainers"
    """Folder of the trained runs."""


def main(argv: list[str]) -> None:
    args = tyro.cli(Arguments, prog="python -m benchmarks.compare_trainers", args=argv)
    shown_argv = [arg for arg in argv if arg not in ("--python", args.python)]  # where that is means nothing elsewhere
    path = alternating.RESULTS / "compare_trainers.json"
    for seed in args.seeds:
        found = train_and_evaluate(args, seed)
        results = json.loads(path.read_text()) if path.exists() else {}
        made = {
            "commit": alternating.commit(), **alternating.environment("jax", "flax", "optax"),
            "command": f"python -m benchmarks.compare_trainers {shlex.join(shown_argv)}",
        }  # fmt: skip
        rows = results.setdefault(f"{args.cell}, {args.minutes:g} minutes{args.label}", {}).setdefault(str(seed), {})
        rows.update({who: {"made": made, **numbers} for who, numbers in found.items()})
        alternating.write_results("compare_trainers", results)
        for who, numbers in found.items():
            print(seed, who, {key: value[0] if isinstance(value, list) else value for key, value in numbers.items()})
    for line in baseline_table(json.loads(path.read_text())):
        print(line)


def baseline_table(results: Mapping[str, Any]) -> list[str]:
    """Markdown table of results: a row for each trainer."""
    heads = ["steps", *COLUMNS, "seeds", "commit"] if results else []
    lines = [f"| | | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"] if results else []
    for cell, found in results.items():
        for who in dict.fromkeys(who for seed in found.values() for who in seed):
            seeds = [seed[who] for seed in found.values() if who in seed]
            commits = ", ".join(sorted({seed["made"]["commit"] for seed in seeds}))
            values = [protocol.format_value(*mean_and_error([seed["steps"] for seed in seeds]))]
            values += [
                protocol.format_value(*mean_and_error([seed[key][0] for seed in seeds])) for key in COLUMNS.values()
            ]
            lines.append(f"| {cell} | {who} | {' | '.join(values)} | {len(seeds)} | {commits} |")
    return lines


def train_and_evaluate(args: Arguments, seed: int) -> dict[str, Any]:
    """Results of each trainer: name -> numbers."""
    folder = pathlib.Path(args.runs) / f"{args.cell}-{seed}"
    from ddpm_jax import config as configs
    from ddpm_jax import data

    path = compare_libraries.CONFIGS / f"{args.cell}.py"
    config = configs.load(path)
    source = args.source or config.data.source
    images = data.load(source)
    held, shape = min(args.samples, len(images.test)), images.train.shape[1:]
    network = dataclasses.asdict(
        compare_libraries.workload_spec(path.name, shape, config.batch, 0, 0, compare_libraries.Arguments())
    )
    network["unet"]["out_channels"] = shape[-1]  # theirs learn no variance
    ours = folder / "ours"
    shorter = () if args.steps is None else ("--steps", str(args.steps), "--optim.decay", str(args.steps))
    commands = {
        "ours": [sys.executable, "train.py", str(path), "--seed", str(seed), "--data.source", source,
                 "--sample-every", "0", "--workdir", str(ours), *shorter],
    }  # fmt: skip
    theirs = {}
    for name in args.trainers:
        module, own = TRAINERS[name]
        for rate in (*((own,) if args.own else ()), *args.rates):
            label = name if rate == own else f"{name}, rate {rate:g}"
            spec = {"network": network, "source": source, "minutes": args.minutes, "seed": seed,
                    "samples": args.samples, "nfe": args.nfe, "learning_rate": rate}  # fmt: skip
            theirs[label] = [
                args.python,
                "-m",
                f"benchmarks.{module}",
                name,
                json.dumps(spec),
                str(folder / label),
            ]
            commands[label] = [*theirs[label], "train"]
    train_unless_done(commands, folder, 60 * args.minutes, args.slice)
    unmeasured = [name for name in theirs if not (folder / name / "numbers.json").exists()]
    run_in_parallel({name: [*theirs[name], "evaluate"] for name in unmeasured}, folder)
    how = ("--num", str(args.samples))
    found: dict[str, Any] = {}
    for name in commands:
        out = folder / "measured" / name
        if name == "ours":
            likelihood_command = ("likelihood", "--estimate", "16", "--num", str(held))
            run_program("-m", "ddpm_jax", "evaluate", str(ours), *likelihood_command, "--out", str(out / "bound"))
            steps = max(int(path.name) for path in (ours / "checkpoints").iterdir() if path.name.isdigit())
            numbers = {"steps": steps, **read_numbers("bound", out / "bound")}
            flags = ("--steps", str(args.nfe), "--variance-mix", "0")
        else:
            numbers = json.loads((folder / name / "numbers.json").read_text())
            flags = ("--samples", str(folder / name / "samples.npz"))
        run_program("-m", "ddpm_jax", "evaluate", str(ours), "samples", *how, *flags, "--out", str(out / "samples"))
        found[name] = numbers | read_numbers("samples", out / "samples")
        if (drawn := folder / name / "own.npz").exists():
            flags = ("--samples", str(drawn), "--out", str(out / "own"))
            run_program("-m", "ddpm_jax", "evaluate", str(ours), "samples", *how, *flags)
            found[f"{name}, own sampler"] = numbers | read_numbers("samples", out / "own")
    return found


def train_unless_done(commands: dict[str, list[str]], folder: pathlib.Path, seconds: float, turn: float) -> None:
    """Trains in turns, unless the folder already holds the result of these commands.

    Raises:
        SystemExit: if the folder holds something else.
    """
    mark, description = folder / "trained.json", {"commands": commands, "seconds": seconds, "turn": turn}
    if mark.exists() and json.loads(mark.read_text()) == description:
        return
    if folder.exists():
        sys.exit(f"{folder} holds other training, or some that was interrupted: remove it, or choose another --runs")
    run_in_turns(commands, folder, seconds, turn)
    mark.write_text(json.dumps(description))


def run_in_turns(commands: dict[str, list[str]], folder: pathlib.Path, seconds: float, turn: float) -> None:
    """Runs programs in turns for the given seconds each, then ends those that still run with SIGTERM.

    Their output goes to NAME.log in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    running: dict[str, subprocess.Popen] = {}
    used = dict.fromkeys(commands, 0.0)
    try:
        while min(used.values()) < seconds:
            for name, command in commands.items():
                if used[name] >= seconds:
                    continue
                begun = time.monotonic()
                if name not in running:
                    running[name] = start(command, folder / f"{name}.log")
                else:
                    os.killpg(running[name].pid, signal.SIGCONT)
                try:
                    check_status(name, running[name].wait(min(turn, seconds - used[name])), folder)
                    used[name] = seconds
                except subprocess.TimeoutExpired:
                    os.killpg(running[name].pid, signal.SIGSTOP)
                    used[name] += time.monotonic() - begun
        for process in running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                os.killpg(process.pid, signal.SIGCONT)
        for name, process in running.items():
            check_status(name, process.wait(), folder)
    finally:
        kill_all(running)


def run_in_parallel(commands: dict[str, list[str]], folder: pathlib.Path) -> None:
    """Runs programs in parallel until they end."""
    running = {name: start(command, folder / f"{name}.log") for name, command in commands.items()}
    try:
        for name, process in running.items():
            check_status(name, process.wait(), folder)
    finally:
        kill_all(running)


def start(command: list[str], log: pathlib.Path) -> subprocess.Popen:
    """Process of a command in a new session, with its output appended to a file."""
    with log.open("a") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)


def kill_all(running: dict[str, subprocess.Popen]) -> None:
    """Kills the processes that still run."""
    for process in running.values():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def check_status(name: str, status: int, folder: pathlib.Path) -> None:
    """Checks the exit status of a program.

    Raises:
        SystemExit: if it is not 0.
    """
    if status:
        sys.exit(f"{name} ended with status {status}: see {folder / name}.log")


if __name__ == "__main__":
    main(sys.argv[1:])
